"""Sections 3 and 4 of docs/protocol.md: encodings, hashes, derivations, statements.

Every function is a transcription of one line of the text; bytes in, bytes out.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from fractions import Fraction
from math import comb
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Item = str | bytes | int | float

PREFIX = "fedcare/secagg/1/"
PRIME = 2**256 + 297
SHARE_BYTES = 33


# --- 3.1 ---------------------------------------------------------------------------


def item(value: Item) -> bytes:
    """Return one item without its length."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return value.to_bytes(8, "big")
    return struct.pack(">d", value)


def enc(*items: Item) -> bytes:
    """Return the encoding of a list of items."""
    out = b""
    for value in items:
        data = item(value)
        out += len(data).to_bytes(4, "big") + data
    return out


def sha(data: bytes) -> bytes:
    """Return SHA-256."""
    return hashlib.sha256(data).digest()


def H(label: str, *items: Item) -> bytes:  # noqa: N802 - the specification's name
    """Return the labelled hash."""
    return sha(enc(PREFIX + label, *items))


def mac(key: bytes, data: bytes) -> bytes:
    """Return HMAC-SHA256."""
    return hmac.new(key, data, hashlib.sha256).digest()


def EXT(salt: bytes, ikm: bytes) -> bytes:  # noqa: N802
    """Return HKDF-Extract."""
    return mac(salt, ikm)


def X(key: bytes, label: str, *items: Item, length: int = 32) -> bytes:  # noqa: N802
    """Return HKDF-Expand under a label (RFC 5869, 2.3)."""
    info = enc(PREFIX + label, *items)
    out = block = b""
    counter = 1
    while len(out) < length:
        block = mac(key, block + info + bytes([counter]))
        out += block
        counter += 1
    return out[:length]


# --- 3.3 ---------------------------------------------------------------------------


def advert_body(  # noqa: PLR0917 - one argument per field of the statement
    federation: str,
    task: str,
    epoch: int,
    node: str,
    x25519_pub: bytes,
    mlkem_pub: bytes,
    ed25519_pub: bytes,
    config_hash: bytes,
    not_before: int,
    not_after: int,
) -> bytes:
    """Return what a certificate key signs in a KeyAdvert."""
    return enc(
        PREFIX + "advert",
        federation,
        task,
        epoch,
        node,
        x25519_pub,
        mlkem_pub,
        ed25519_pub,
        config_hash,
        not_before,
        not_after,
    )


def roster_hash(bodies: Mapping[str, bytes]) -> bytes:
    """Return the hash of the advert bodies, by the bytes of their ids."""
    return H("roster", *[bodies[i] for i in by_bytes(bodies)])


def session_id(federation: str, task: str, epoch: int, config: bytes, roster: bytes) -> bytes:
    """Return the session id."""
    return H("session", federation, task, epoch, config, roster)


def by_bytes(ids: Iterable[str]) -> list[str]:
    """Return ids sorted by their bytes."""
    return sorted(ids, key=lambda i: i.encode("utf-8"))


def x25519_public(secret: bytes) -> bytes:
    """Return the raw public key."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def x25519(secret: bytes, public: bytes) -> bytes:
    """Return the raw agreement."""
    return X25519PrivateKey.from_private_bytes(secret).exchange(
        X25519PublicKey.from_public_bytes(public)
    )


def sign(seed: bytes, message: bytes) -> bytes:
    """Return an Ed25519 signature."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def ed25519_public(seed: bytes) -> bytes:
    """Return the raw public key."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def kem_statement(session: bytes, sender: str, to: str, ct: bytes) -> bytes:
    """Return what a session key signs beside each ciphertext."""
    return enc(PREFIX + "kem", session, sender, to, ct)


def confirm_statement(session: bytes) -> bytes:
    """Return what a session key signs when all pair keys are durable."""
    return enc(PREFIX + "confirm", session)


def pair_key(session: bytes, agreed: bytes, mlkem_secret: bytes = b"", ct: bytes = b"") -> bytes:
    """Return prk; without ML-KEM both of its parts are empty."""
    return EXT(session, agreed + mlkem_secret + (sha(ct) if ct else b""))


def chain_start(prk: bytes, one: str, other: str) -> bytes:
    """Return CK_1 of a pair."""
    low, high = by_bytes([one, other])
    return X(prk, "chain0", low, high)


def chain_at(first: bytes, r: int) -> bytes:
    """Return CK_r, one step at a time."""
    key = first
    for _ in range(r - 1):
        key = X(key, "chain")
    return key


# --- 4.2 ---------------------------------------------------------------------------


def layout_sha256(
    tensors: Sequence[tuple[str, str, Sequence[int]]], metrics: Sequence[str]
) -> bytes:
    """Return the digest of (name, dtype, dims) per tensor and the metric names."""
    items: list[Item] = [len(tensors)]
    for name, dtype, dims in tensors:
        items += [name, dtype, len(dims), *dims]
    items += [len(metrics), *metrics]
    return H("layout", *items)


_FORMS = {"float16": "<e", "float32": "<f", "float64": "<d"}


def little_endian(dtype: str, values: Sequence[float]) -> bytes:
    """Return a tensor's data; bfloat16 is the upper half of an exact float32."""
    if dtype == "bfloat16":
        return b"".join(struct.pack("<f", v)[2:] for v in values)
    return b"".join(struct.pack(_FORMS[dtype], v) for v in values)


def model_sha256(
    tensors: Sequence[tuple[str, str, Sequence[int]]], data: Mapping[str, bytes]
) -> bytes:
    """Return the digest of a model in layout order; of no tensors, SHA-256 of nothing."""
    text = b""
    for name, dtype, dims in tensors:
        text += enc(name, dtype, len(dims), *dims, len(data[name])) + data[name]
    return sha(text)


def header_items(h: Mapping[str, object]) -> list[Item]:
    """Return the items of a header in the order of 4.2."""
    items: list[Item] = [h[key] for key in ("version", "session_id", "r", "kind", "group")]  # type: ignore[misc]
    items += [h["model_sha256"], h["layout_sha256"], h["config_hash"], h["n"]]  # type: ignore[list-item]
    for node, nonce in h["members"]:  # type: ignore[attr-defined]
        items += [node, nonce]
    items += [h[key] for key in ("d", "w", "c", "q", "s_min", "t_h", "kappa")]  # type: ignore[misc]
    ranges = [float(x) for x in h["ranges"]]  # type: ignore[attr-defined]
    items += [len(ranges), *ranges]
    items += [h["W_max"], h["rounding"], h["dp_mode"], float(h["z"]), float(h["C"])]  # type: ignore[arg-type, list-item]
    items += [h["Delta_int"], float(h["sigma_loc"]), h["T"], float(h["p"]), h["m_max"]]  # type: ignore[arg-type, list-item]
    if h["dp_mode"] == "patient-local":
        items.append(h["steps"])  # type: ignore[arg-type]
    items.append(h["deadline_ms"])  # type: ignore[arg-type]
    return items


def header_digest(h: Mapping[str, object]) -> bytes:
    """Return hd."""
    return H("header", *header_items(h))


def edge(chain: bytes, hd: bytes) -> bytes:
    """Return e_ij."""
    return X(chain, "edge", hd)


def edge_tag(seed: bytes) -> bytes:
    """Return the 16-byte tag of an edge."""
    return X(seed, "edge-tag", length=16)


def share_key(chain: bytes, hd: bytes, sender: str, to: str) -> bytes:
    """Return sh for one direction."""
    return X(chain, "share", hd, sender, to)


# --- 4.3 ---------------------------------------------------------------------------


def aes_block(key: bytes, block: bytes) -> bytes:
    """Return AES of one block."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - one block
    return cipher.update(block) + cipher.finalize()


def keystream(key: bytes, start: int, count: int) -> bytes:
    """Return `count` bytes of the CTR stream from byte `start`."""
    out = b""
    first = start // 16
    for counter in range(first, (start + count + 15) // 16):
        out += aes_block(key, counter.to_bytes(16, "big"))
    skip = start - 16 * first
    return out[skip : skip + count]


def prg(seed: bytes, w: int, start: int, count: int) -> list[int]:
    """Return words start .. start+count-1 of PRG(seed)."""
    size = w // 8
    data = keystream(X(seed, "mask", w), start * size, count * size)
    return [int.from_bytes(data[k : k + size], "little") for k in range(0, len(data), size)]


def words_to_bytes(words: Iterable[int], w: int) -> bytes:
    """Return little-endian words, negative ones in two's complement."""
    return b"".join((word % 2**w).to_bytes(w // 8, "little") for word in words)


def signed(word: int, w: int) -> int:
    """Return a ring word read as a signed integer."""
    return word - 2**w if word >= 2 ** (w - 1) else word


def masked(
    node: str,
    v: Sequence[int],
    self_seed: bytes,
    edges: Mapping[str, bytes],
    w: int,
) -> list[int]:
    """Return y_i of 4.3."""
    y = [a + b for a, b in zip(v, prg(self_seed, w, 0, len(v)), strict=True)]
    for other, seed in edges.items():
        sign_ = 1 if node.encode() < other.encode() else -1
        y = [a + sign_ * m for a, m in zip(y, prg(seed, w, 0, len(v)), strict=True)]
    return [a % 2**w for a in y]


def self_commit(hd: bytes, node: str, self_seed: bytes) -> bytes:
    """Return the commitment to b_i."""
    return H("self-commit", hd, node, self_seed)


def tags_hash(tags: Mapping[str, bytes]) -> bytes:
    """Return the hash over (j, tag_ij), sorted."""
    return H("tags", *[x for j in by_bytes(tags) for x in (j, tags[j])])


def upload_statement(
    hd: bytes, node: str, ydig: bytes, commitment: bytes, tags: Mapping[str, bytes]
) -> bytes:
    """Return what a session key signs at the end of an upload."""
    return enc(PREFIX + "upload", hd, node, ydig, commitment, tags_hash(tags))


def coefficients(secret: bytes, seed: bytes, name: str, threshold: int) -> list[int]:
    """Return the polynomial of one secret, constant term first."""
    first = int.from_bytes(secret, "big")
    rest = [
        int.from_bytes(X(seed, "poly", name, k, length=64), "big") % PRIME
        for k in range(1, threshold)
    ]
    return [first, *rest]


def share(poly: Sequence[int], x: int) -> bytes:
    """Return the polynomial's value at x, term by term, in 33 bytes."""
    total = 0
    for k, coefficient in enumerate(poly):
        total += coefficient * x**k
    return (total % PRIME).to_bytes(SHARE_BYTES, "big")


def interpolate(points: Mapping[int, bytes]) -> bytes:
    """Return the 32-byte secret from shares by evaluation point, by Lagrange at 0."""
    total = Fraction(0)
    residue = 0
    for x, value in points.items():
        weight = Fraction(1)
        for other in points:
            if other != x:
                weight *= Fraction(-other, x - other)
        total += weight
        inverse = pow(weight.denominator, -1, PRIME)
        residue += int.from_bytes(value, "big") * weight.numerator * inverse
    if total != 1:
        raise ArithmeticError("Lagrange weights must add up to one")
    return (residue % PRIME).to_bytes(32, "big")


def share_plaintext(
    node: str,
    self_seed: bytes,
    edges: Mapping[str, bytes],
    seed: bytes,
    threshold: int,
    point: int,
) -> bytes:
    """Return `shares` of 4.3 for the helper at an evaluation point."""
    if node in edges:
        raise ValueError("a node has no edge to itself")
    out = share(coefficients(self_seed, seed, "self", threshold), point)
    for other in by_bytes(edges):
        out += share(coefficients(edges[other], seed, other, threshold), point)
    return out


# --- 4.4 ---------------------------------------------------------------------------


def set_hash(ids: Iterable[str]) -> bytes:
    """Return the hash of a survivor set."""
    return H("set", *by_bytes(ids))


def digests_hash(digests: Mapping[str, bytes]) -> bytes:
    """Return the hash of (id, ydig), sorted."""
    return H("digests", *[x for i in by_bytes(digests) for x in (i, digests[i])])


def commit_statement(hd: bytes, digests: Mapping[str, bytes]) -> bytes:
    """Return st."""
    return enc(PREFIX + "commit", hd, set_hash(digests), digests_hash(digests))


# --- 1 and 6.3 ---------------------------------------------------------------------


def colluders(roster: int) -> int:
    """Return the default c for a roster of that size."""
    if roster == 2:
        return 0
    return 1 if roster <= 5 else roster // 4


def quorum(n: int, c: int) -> int:
    """Return q."""
    return (n + c) // 2 + 1


def helper_threshold(n: int, c: int) -> tuple[int, int]:
    """Return (kappa, t_h): section 1 up to 64 members, section 6.3 above."""
    if n <= 64:
        return n - 1, c + 1
    kappa = 64
    draws = comb(n - 1, kappa)
    for t in range(kappa + 1):
        tail = sum(
            comb(c, k) * comb(n - 1 - c, kappa - k)
            for k in range(t, min(c, kappa) + 1)
            if kappa - k <= n - 1 - c
        )
        if Fraction(n * tail, draws) <= Fraction(1, 2**40):
            return kappa, t
    raise ArithmeticError("no threshold keeps the bound")


def group_order(session: bytes, ids: Iterable[str], groups: int) -> dict[str, int]:
    """Return each member's group number (section 11)."""
    order = sorted(ids, key=lambda i: H("group", session, i))
    return {node: place % groups + 1 for place, node in enumerate(order)}
