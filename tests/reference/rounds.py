"""A whole session and a whole round over Python integers, every value in plain sight.

`run_session` makes adverts, ciphertexts, pair chains; `run_round` plays a cohort with
dropouts and silent survivors: uploads, tags, sealed shares, commits, releases,
recovery from shares, and the opened sum, which it checks against the plain sum before
it returns. Nothing is optimised and nothing is hidden: this is for vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.reference import gcm, mlkem, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Member:
    """One hospital's secrets of an epoch; `mlkem_seed` is empty in the classical suite."""

    node: str
    x25519: bytes
    mlkem_seed: bytes
    session_seed: bytes

    def mlkem_public(self) -> bytes:
        """Return the encapsulation key, or nothing."""
        return mlkem.public_key(self.mlkem_seed) if self.mlkem_seed else b""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all adverts of a session agree on."""

    federation: str
    task: str
    epoch: int
    config_hash: bytes
    not_before: int
    not_after: int


@dataclass(frozen=True, slots=True)
class Kem:
    """One ciphertext, the smaller id to the larger, and its signature."""

    sender: str
    to: str
    secret: bytes
    ct: bytes
    sig: bytes


@dataclass(frozen=True, slots=True)
class Session:
    """An epoch after set-up."""

    terms: Terms
    members: Mapping[str, Member]
    bodies: Mapping[str, bytes]
    roster_hash: bytes
    session_id: bytes
    kems: Mapping[Pair, Kem]
    chains: Mapping[Pair, bytes]
    confirms: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Input:
    """What one node brings to a round: its nonce, two seeds, its vector, GCM nonces."""

    nonce: bytes
    self_seed: bytes
    poly_seed: bytes
    v: Sequence[int]
    gcm_nonces: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Shares to one helper."""

    nonce: bytes
    plaintext: bytes
    ct: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload with its end record."""

    y: Sequence[int]
    ydig: bytes
    self_commit: bytes
    tags: Mapping[str, bytes]
    sealed: Mapping[str, Sealed]
    sig: bytes


@dataclass(frozen=True, slots=True)
class Round:
    """Everything said in a round; `recovered` holds what helpers gave for silent members."""

    header: Mapping[str, object]
    hd: bytes
    edges: Mapping[Pair, bytes]
    share_keys: Mapping[Pair, bytes]
    uploads: Mapping[str, Upload]
    survivors: Sequence[str]
    dropped: Sequence[str]
    statement: bytes
    commits: Mapping[str, bytes]
    releases: Mapping[str, tuple[bytes, Mapping[str, bytes]]]
    recovered: Mapping[str, Mapping[str, tuple[bytes, Mapping[str, bytes]]]] = field(
        default_factory=dict
    )
    opened: Sequence[int] = ()
    sum_sha256: bytes = b""


def pair(one: str, other: str) -> Pair:
    """Return the two ids in byte order."""
    low, high = plain.by_bytes([one, other])
    return low, high


def _pairs(ids: Sequence[str]) -> list[Pair]:
    return [(a, b) for k, a in enumerate(ids) for b in ids[k + 1 :]]


def run_session(
    members: Sequence[Member],
    terms: Terms,
    messages: Mapping[Pair, bytes] | None = None,
    taken: Mapping[Pair, bytes] | None = None,
) -> Session:
    """Return the session of these members.

    `messages` gives ML-KEM's 32 random bytes per pair; `taken` gives ciphertexts seen
    elsewhere, which are decapsulated instead. In the classical suite both stay empty.
    """
    table = {m.node: m for m in members}
    ids = plain.by_bytes(table)
    bodies = {
        i: plain.advert_body(
            terms.federation,
            terms.task,
            terms.epoch,
            i,
            plain.x25519_public(table[i].x25519),
            table[i].mlkem_public(),
            plain.ed25519_public(table[i].session_seed),
            terms.config_hash,
            terms.not_before,
            terms.not_after,
        )
        for i in ids
    }
    roster = plain.roster_hash(bodies)
    session = plain.session_id(terms.federation, terms.task, terms.epoch, terms.config_hash, roster)
    kems: dict[Pair, Kem] = {}
    chains: dict[Pair, bytes] = {}
    for low, high in _pairs(ids):
        secret = ct = b""
        if table[high].mlkem_seed and taken is not None:
            ct = taken[low, high]
            secret = mlkem.decapsulate(table[high].mlkem_seed, ct)
        elif table[high].mlkem_seed:
            secret, ct = mlkem.encapsulate(table[high].mlkem_public(), (messages or {})[low, high])
        if ct:
            text = plain.kem_statement(session, low, high, ct)
            kems[low, high] = Kem(low, high, secret, ct, plain.sign(table[low].session_seed, text))
        agreed = plain.x25519(table[low].x25519, plain.x25519_public(table[high].x25519))
        chains[low, high] = plain.chain_start(
            plain.pair_key(session, agreed, secret, ct), low, high
        )
    statement = plain.confirm_statement(session)
    confirms = {i: plain.sign(table[i].session_seed, statement) for i in ids}
    return Session(terms, table, bodies, roster, session, kems, chains, confirms)


def make_header(
    session: Session, inputs: Mapping[str, Input], terms: Mapping[str, object]
) -> dict[str, object]:
    """Return a header over `inputs`; `terms` adds model, vector and round items."""
    ids = plain.by_bytes(inputs)
    n, c = len(ids), terms["c"]
    kappa, t_h = plain.helper_threshold(n, c)  # type: ignore[arg-type]
    header: dict[str, object] = {
        "version": 1,
        "session_id": session.session_id,
        "group": 0,
        "config_hash": session.terms.config_hash,
        "n": n,
        "members": [(i, inputs[i].nonce) for i in ids],
        "q": plain.quorum(n, c),  # type: ignore[arg-type]
        "t_h": t_h,
        "kappa": kappa,
        "dp_mode": "none",
        "z": 0.0,
        "C": 0.0,
        "Delta_int": 0,
        "sigma_loc": 0.0,
        "T": 0,
        "p": 0.0,
        "m_max": 0,
    }
    return header | dict(terms)


def upload_of(
    node: str,
    given: Input,
    hd: bytes,
    w: int,
    t_h: int,
    edges: Mapping[str, bytes],
    share_keys: Mapping[str, bytes],
    session_seed: bytes,
) -> Upload:
    """Return the upload of one node; edges and keys by the other's id."""
    y = plain.masked(node, given.v, given.self_seed, edges, w)
    ydig = plain.sha(plain.words_to_bytes(y, w))
    commitment = plain.self_commit(hd, node, given.self_seed)
    tags = {j: plain.edge_tag(e) for j, e in edges.items()}
    order = plain.by_bytes([node, *edges])
    sealed = {}
    for helper in plain.by_bytes(edges):
        text = plain.share_plaintext(
            node, given.self_seed, edges, given.poly_seed, t_h, order.index(helper) + 1
        )
        nonce = given.gcm_nonces[helper]
        ct = gcm.seal(share_keys[helper], nonce, plain.enc(hd, node, helper), text)
        sealed[helper] = Sealed(nonce, text, ct)
    sig = plain.sign(session_seed, plain.upload_statement(hd, node, ydig, commitment, tags))
    return Upload(y, ydig, commitment, tags, sealed, sig)


def run_round(
    session: Session,
    header: Mapping[str, object],
    inputs: Mapping[str, Input],
    dropped: Sequence[str] = (),
    silent: Sequence[str] = (),
    signers: Sequence[str] | None = None,
) -> Round:
    """Return a round in which `dropped` never upload and `silent` never release."""
    ids = plain.by_bytes(inputs)
    r, w, t_h = header["r"], header["w"], header["t_h"]
    if not (isinstance(r, int) and isinstance(w, int) and isinstance(t_h, int)):
        raise TypeError("r, w and t_h are integers")
    hd = plain.header_digest(header)
    chains = {p: plain.chain_at(session.chains[p], r) for p in _pairs(ids)}
    edges = {p: plain.edge(chains[p], hd) for p in chains}
    keys = {
        (i, h): plain.share_key(chains[pair(i, h)], hd, i, h) for i in ids for h in ids if i != h
    }
    survivors = [i for i in ids if i not in dropped]
    uploads = {}
    for i in survivors:
        others = [j for j in ids if j != i]
        uploads[i] = upload_of(
            i,
            inputs[i],
            hd,
            w,
            t_h,
            {j: edges[pair(i, j)] for j in others},
            {j: keys[i, j] for j in others},
            session.members[i].session_seed,
        )
    digests = {i: uploads[i].ydig for i in survivors}
    statement = plain.commit_statement(hd, digests)
    commits = {
        i: plain.sign(session.members[i].session_seed, statement)
        for i in (survivors if signers is None else signers)
    }
    releases = {
        i: (inputs[i].self_seed, {j: edges[pair(i, j)] for j in plain.by_bytes(dropped)})
        for i in survivors
        if i not in silent
    }
    recovered = {
        i: {h: _help(i, h, ids, uploads[i], keys[i, h], hd, dropped) for h in releases}
        for i in plain.by_bytes(silent)
    }
    opened = _open(ids, uploads, releases, recovered, hd, t_h, w)
    expected = [sum(inputs[i].v[k] for i in survivors) for k in range(len(opened))]
    if opened != expected:
        raise ArithmeticError("the opened sum is not the sum of the survivors' vectors")
    return Round(
        header,
        hd,
        edges,
        keys,
        uploads,
        survivors,
        plain.by_bytes(dropped),
        statement,
        commits,
        releases,
        recovered,
        opened,
        plain.sha(plain.words_to_bytes(opened, w)),
    )


def _help(
    silent: str,
    helper: str,
    ids: Sequence[str],
    upload: Upload,
    key: bytes,
    hd: bytes,
    dropped: Sequence[str],
) -> tuple[bytes, dict[str, bytes]]:
    """Return what a helper gives: its share of b, and of the edges to dropouts only."""
    sealed = upload.sealed[helper]
    text = gcm.unseal(key, sealed.nonce, plain.enc(hd, silent, helper), sealed.ct)
    parts = [text[k : k + plain.SHARE_BYTES] for k in range(0, len(text), plain.SHARE_BYTES)]
    names = [j for j in ids if j != silent]
    edges = dict(zip(names, parts[1:], strict=True))
    return parts[0], {j: edges[j] for j in plain.by_bytes(dropped)}


def _recover(
    silent: str,
    ids: Sequence[str],
    shares: Mapping[str, tuple[bytes, Mapping[str, bytes]]],
    upload: Upload,
    hd: bytes,
    t_h: int,
) -> tuple[bytes, dict[str, bytes]]:
    """Interpolate from the first t_h helpers and check against commitment and tags."""
    helpers = plain.by_bytes(shares)[:t_h]
    point = {h: ids.index(h) + 1 for h in helpers}
    self_seed = plain.interpolate({point[h]: shares[h][0] for h in helpers})
    if plain.self_commit(hd, silent, self_seed) != upload.self_commit:
        raise ArithmeticError("the recovered self seed does not fit its commitment")
    edges = {}
    for j in shares[helpers[0]][1]:
        edges[j] = plain.interpolate({point[h]: shares[h][1][j] for h in helpers})
        if plain.edge_tag(edges[j]) != upload.tags[j]:
            raise ArithmeticError("the recovered edge does not fit its tag")
    return self_seed, edges


def _open(
    ids: Sequence[str],
    uploads: Mapping[str, Upload],
    releases: Mapping[str, tuple[bytes, Mapping[str, bytes]]],
    recovered: Mapping[str, Mapping[str, tuple[bytes, Mapping[str, bytes]]]],
    hd: bytes,
    t_h: int,
    w: int,
) -> list[int]:
    """Return the signed sum of 4.7 from what the coordinator holds."""
    opened: list[int] | None = None
    for i, upload in uploads.items():
        if i in releases:
            self_seed, edges = releases[i]
        else:
            self_seed, recovered_edges = _recover(i, ids, recovered[i], upload, hd, t_h)
            edges = recovered_edges
        d = len(upload.y)
        part = [y - m for y, m in zip(upload.y, plain.prg(self_seed, w, 0, d), strict=True)]
        for j, seed in edges.items():
            sign = 1 if i.encode() < j.encode() else -1
            part = [x - sign * m for x, m in zip(part, plain.prg(seed, w, 0, d), strict=True)]
        opened = part if opened is None else [a + b for a, b in zip(opened, part, strict=True)]
    return [plain.signed(x % 2**w, w) for x in opened or []]
