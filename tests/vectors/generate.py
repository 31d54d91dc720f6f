"""Write the golden vectors, or with `--check` compare them with what is stored.

    python -m tests.vectors.generate [--check]

Everything comes from `tests.reference`, nothing from the product. The values printed
in section 15 of docs/protocol.md are asserted on the way. Bytes are lower-case hex.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from tests.reference import gcm, mlkem, noise, plain, quantiser
from tests.reference.rounds import Input, Round, Session, run_round
from tests.vectors import bad, inputs

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent

PRINTED = {
    "enc": "000000016100000008000000000000000100000000",
    "session_id": "c3ec1a1cf11cdbfc478c201bb03ffb236a2999d2e2aa46bae29eabaa33955d99",
    "prk": "c463f37fc02935a3eeab9315803d2df6a4949b493101bab4e8062e075d62dc83",
    "CK_1": "cb5ab268d5ae803f0c82a5e8bac1aa0a9b198c4e554ac595c2293cf2be52522f",
    "CK_2": "3041063e856e0950f2eaa0720bc967194a52d8df767c6f23477870a7aaa3b30b",
    "hd": "755db86ee3eb8507e7ba81e1a28dbd49da592252457dc88329830463f093a773",
    "edge": "97e6358618afe6c7a01b0a8b2811d2577d182ba580fef7fda6ba35ee7ea80bbc",
    "edge_tag": "333f44203b6e1c3c0b7aa8daac858f47",
    "share_key": "337cdb17efbc5dc6148ddb54918fff66a7edec3e58cb2225c689dcb788b0d9b5",
    "prg_32": [1783187552, 4087686653, 1968105954, 3317913288],
    "prg_32_from_1000000": [4097974976, 2167787192, 555249939, 4131388342],
    "prg_64": [7228131497894156024, 11499842946484895249],
    "self_commit": "f68d2927fe5f72107aa7bda9ddd8fd10ce9a9e7cabec2ae288e6fc1a84af5afa",
    "shares": [
        "00cf0c73be8bdd2f0fe19a026fbe661136c434d71bf81550c9d9cf66a566f3f8b9",
        "0014d4faef1801862125ce799594053951e20a8d43de5eb0397a1253b34947b6cc",
        "00d65e9a96a9720a38d1a26a7685e27d565e86277cb7e12353e5cdcc2eac0042b9",
        "0013a952b5402ebb56e515d51293fddd4439a7a5c6849caa191d01d0178f1d9905",
    ],
    "st_sha256": "cfadd86d00c67d260ffae83476e48beba787b36c7cf19ec72f820972906b3d0c",
    "st_signature": "14e4ceab42ea24b7d7fb251bdcced5e0313883ecc672243b6ae15ff05f94c9f3"
    "a297aeadd8387b677621db03110145800346790244882d24f9f69b134bb77800",
    "layout_sha256": "34f727e4a3c5a7568dfa58be0a36a6c4733c71834e88ad9da8f9b5f02144d78f",
    "model_sha256": "2a661fda54537cec3b57652d38f1dd5a3133f9dd080bb4573450829e2b3f9f09",
    "header_digest": "0bacec136c717ff046f563fa2cb72367a63a9227f2abf62d4e59c27988a9245e",
    "local_header_digest": "26a5c9ddda98b026b45bd0ccc2caa7137a96e37e3a8d2767e64955b21beea6f6",
    "tags_hash": "b6cb3c566de4891bbf70cd2c1a94e69ffd762abd6c365acd9fd15f567b783177",
    "B": 53687091,
    "Q": [5368709, -53687091, 53687091, 0],
}
PRINTED_NOISE = {
    4: [-4, 0, -3, -1, 8, -1, 3, 3, -4, -9, -1, -6],
    8: [-9, 1, -5, -1, 16, -2, 5, 5, -7, -18, -3, -13],
}
PRINTED_T_H = {
    (100, 25): 26,
    (128, 32): 33,
    (256, 64): 41,
    (1000, 100): 31,
    (1000, 250): 46,
    (1000, 333): 52,
}
PRINTED_Q = (
    (2, 0, 2, 0),
    (3, 0, 2, 1),
    (3, 1, 3, 0),
    (4, 1, 3, 1),
    (5, 1, 4, 1),
    (8, 2, 6, 2),
    (10, 2, 7, 3),
    (20, 5, 13, 7),
    (16, 4, 11, 5),
    (100, 25, 63, 37),
    (32, 8, 21, 11),
    (64, 16, 41, 23),
    (256, 64, 161, 95),
    (1000, 250, 626, 374),
)


class MismatchError(Exception):
    """The reference does not give a value that the specification prints."""


def must(name: str, made: object, printed: object) -> object:
    """Return `made`, which must be what the text prints."""
    if made != printed:
        raise MismatchError(f"{name}: made {made}, printed {printed}")
    return made


def same(count: int) -> bytes:
    """Return 32 bytes of one value."""
    return bytes([count]) * 32


def toy_header() -> dict[str, object]:
    """Return the header of section 15."""
    return {
        "version": 1,
        "session_id": plain.session_id("fed", "task", 7, same(1), same(2)),
        "r": 1,
        "kind": "train",
        "group": 0,
        "model_sha256": bytes.fromhex(str(PRINTED["model_sha256"])),
        "layout_sha256": bytes.fromhex(str(PRINTED["layout_sha256"])),
        "config_hash": same(1),
        "n": 3,
        "members": [("h1", same(0x11)), ("h2", same(0x12)), ("h3", same(0x13))],
        "d": 7,
        "w": 32,
        "c": 1,
        "q": 3,
        "s_min": 3,
        "t_h": 2,
        "kappa": 2,
        "ranges": [0.5, 1.0],
        "W_max": 1000,
        "rounding": "even",
        "dp_mode": "none",
        "z": 0.0,
        "C": 0.0,
        "Delta_int": 0,
        "sigma_loc": 0.0,
        "T": 0,
        "p": 0.0,
        "m_max": 0,
        "deadline_ms": 600_000,
    }


def toy_local_header() -> dict[str, object]:
    """Return the same of mode patient-local: tensors only, and the mode's own item."""
    return toy_header() | {
        "d": 5,
        "ranges": [0.5],
        "dp_mode": "patient-local",
        "z": 2.0,
        "C": 1.0,
        "Delta_int": 20_000,
        "sigma_loc": 40_000.0,
        "T": 520_000,
        "p": 0.25,
        "m_max": 300,
        "steps": 3,
    }


def section_15() -> object:
    """Return the values of section 15 under its own inputs, each as printed."""
    session = plain.session_id("fed", "task", 7, same(1), same(2))
    prk = plain.EXT(session, same(3) + same(4))
    first = plain.chain_start(prk, "h1", "h2")
    hd = plain.H("header", "placeholder")
    edge = plain.edge(first, hd)
    poly = plain.coefficients(same(5), same(6), "self", 3)
    st = plain.commit_statement(hd, {f"h{k}": same(k) for k in (1, 2, 3)})
    layout = [("w", "float32", (5,))]
    model = {"w": plain.little_endian("float32", [0.0, 1.0, 2.0, 3.0, 4.0])}
    tags = {"h2": plain.edge_tag(edge), "h3": bytes([9]) * 16}
    made = {
        "enc": plain.enc("a", 1, b"").hex(),
        "session_id": session.hex(),
        "prk": prk.hex(),
        "CK_1": first.hex(),
        "CK_2": plain.chain_at(first, 2).hex(),
        "hd": hd.hex(),
        "edge": edge.hex(),
        "edge_tag": plain.edge_tag(edge).hex(),
        "share_key": plain.share_key(first, hd, "h1", "h2").hex(),
        "prg_32": plain.prg(edge, 32, 0, 4),
        "prg_32_from_1000000": plain.prg(edge, 32, 1_000_000, 4),
        "prg_64": plain.prg(edge, 64, 0, 2),
        "self_commit": plain.self_commit(hd, "h1", same(5)).hex(),
        "shares": [plain.share(poly, x).hex() for x in (1, 2, 3, 4)],
        "st_sha256": plain.sha(st).hex(),
        "st_signature": plain.sign(same(7), st).hex(),
        "layout_sha256": plain.layout_sha256(layout, ["loss"]).hex(),
        "model_sha256": plain.model_sha256(layout, model).hex(),
        "header_digest": plain.header_digest(toy_header()).hex(),
        "local_header_digest": plain.header_digest(toy_local_header()).hex(),
        "tags_hash": plain.tags_hash(tags).hex(),
        "B": quantiser.levels(10, 32),
        "Q": [quantiser.even(x, 1.0, quantiser.levels(10, 32)) for x in (0.1, -1.0, 2.0, 1e-9)],
    }
    return {name: must(name, made[name], printed) for name, printed in PRINTED.items()}


def primitives() -> object:
    """Return more of the same, off the trodden path: other lengths, offsets, types."""
    seed = inputs.fixed("primitives")
    items: list[plain.Item] = ["", "é/ü", 0, 2**63 - 1, 0.5, -0.0, 1e-300, b"\x00\xff"]
    layout = [
        ("a.weight", "float16", (2, 2)),
        ("b", "bfloat16", (3,)),
        ("scalar", "float64", ()),
        ("none", "float32", (0, 4)),
    ]
    data = {
        "a.weight": plain.little_endian("float16", [1.0, -2.5, 0.0, 65504.0]),
        "b": plain.little_endian("bfloat16", [1.0, -0.5, 3.0]),
        "scalar": plain.little_endian("float64", [0.1]),
        "none": b"",
    }
    nonce = inputs.fixed("nonce", size=12)
    return {
        "enc": {"items": [_typed(x) for x in items], "bytes": plain.enc(*items).hex()},
        "hash": plain.H("header", *items).hex(),
        "expand": {
            str(size): plain.X(seed, "poly", "self", 1, length=size).hex() for size in (16, 32, 64)
        },
        "seed": seed.hex(),
        "chain": {str(r): plain.chain_at(seed, r).hex() for r in (1, 2, 3, 256)},
        "prg": [
            {"w": w, "start": start, "words": plain.prg(seed, w, start, 6)}
            for w in (16, 32, 64)
            for start in (0, 8, 4096, 2**31 - 8, 2**32 - 8)
        ],
        "gcm": {
            "key": seed.hex(),
            "nonce": nonce.hex(),
            "aad": plain.enc(seed, "i", "h").hex(),
            "plaintext": bytes(range(99)).hex(),
            "sealed": gcm.seal(seed, nonce, plain.enc(seed, "i", "h"), bytes(range(99))).hex(),
        },
        "layout": {
            "tensors": [[name, dtype, list(dims)] for name, dtype, dims in layout],
            "metrics": ["loss", "correct"],
            "layout_sha256": plain.layout_sha256(layout, ["loss", "correct"]).hex(),
            "data": {name: value.hex() for name, value in data.items()},
            "model_sha256": plain.model_sha256(layout, data).hex(),
            "model_sha256_of_nothing": plain.model_sha256([], {}).hex(),
        },
        "groups": plain.group_order(seed, [f"h{k}" for k in range(10)], 3),
    }


def _typed(value: plain.Item) -> list[object]:
    kind = {str: "text", int: "integer", float: "float", bytes: "bytes"}[type(value)]
    return [kind, value.hex() if isinstance(value, bytes) else value]


def params() -> object:
    """Return quorums, default colluder bounds and helper numbers."""
    for n, c, q, out in PRINTED_Q:
        must(f"q of n={n}, c={c}", (plain.quorum(n, c), n - plain.quorum(n, c)), (q, out))
    for (n, c), t in PRINTED_T_H.items():
        must(f"t_h of n={n}, c={c}", plain.helper_threshold(n, c), (64, t))
    small = [(n, c) for n in range(2, 13) for c in range(n - 1)]
    large = [*PRINTED_T_H, (64, 16), (65, 16), (65, 0), (500, 125)]
    return {
        "colluders": {str(n): plain.colluders(n) for n in range(2, 40)},
        "rows": [
            {
                "n": n,
                "c": c,
                "q": plain.quorum(n, c),
                "kappa": plain.helper_threshold(n, c)[0],
                "t_h": plain.helper_threshold(n, c)[1],
            }
            for n, c in [*small, *large]
        ],
    }


def quantise() -> object:
    """Return words for awkward values, both roundings, three rings."""
    values = [0.0, -0.0, 5e-324, 1e-9, 0.1, -0.1, 0.5, -0.5, 1.0, -1.0, 1.5, -3e38, 1e308]
    rows = []
    for n, w in ((3, 32), (10, 32), (1000, 32), (4, 16), (64, 16), (5, 64)):
        b = quantiser.levels(n, w)
        for range_ in (1.0, 0.3, 1e-3):
            seed = inputs.fixed("rounding", n, w, range_)
            ties = [k * range_ / b / 2 for k in range(-3, 4)]
            draws = quantiser.draws(seed)
            rows.append(
                {
                    "n": n,
                    "w": w,
                    "B": b,
                    "range": range_,
                    "values": values + ties,
                    "even": [quantiser.even(x, range_, b) for x in values + ties],
                    "seed": seed.hex(),
                    "stochastic": [
                        quantiser.stochastic(x, range_, b, next(draws)) for x in values + ties
                    ],
                }
            )
    counts = [1, 2, 3, 64, 300, 1023, 1024, 1500]
    b = quantiser.levels(10, 32)
    return {
        "rows": rows,
        "size_class": {str(k): quantiser.size_class(k) for k in counts},
        "weight_words": {
            "n": 10,
            "w": 32,
            "W_max": 1024,
            "words": {str(k): quantiser.weight_word(k, 1024, b) for k in counts},
        },
    }


def advert() -> object:
    """Return KeyAdverts of the hybrid suite, signed by leaves of a test CA.

    ECDSA P-256 (RFC 6979, so that the bytes repeat), and the first one under Ed25519.
    """
    session = inputs.session("abc", hybrid=True, epoch=4)
    out = {inputs.node(site): _advert(session, site, ed25519=False) for site in "abc"}
    return {
        "ca": inputs.authority()[1].public_bytes(Encoding.DER).hex(),
        "federation": inputs.FEDERATION,
        "task": inputs.TASK,
        "epoch": 4,
        "config_hash": inputs.CONFIG_HASH.hex(),
        "not_before": inputs.NOT_BEFORE,
        "not_after": inputs.NOT_AFTER,
        "adverts": out,
        "ed25519": {
            "ca": inputs.authority(ed25519=True)[1].public_bytes(Encoding.DER).hex(),
            "advert": _advert(session, "a", ed25519=True),
        },
        "roster_hash": session.roster_hash.hex(),
        "session_id": session.session_id.hex(),
    }


def _advert(session: Session, site: str, *, ed25519: bool) -> dict[str, object]:
    key, cert = inputs.leaf(site, ed25519=ed25519)
    body = session.bodies[inputs.node(site)]
    member = session.members[inputs.node(site)]
    return {
        "x25519_pub": plain.x25519_public(member.x25519).hex(),
        "mlkem_pub": member.mlkem_public().hex(),
        "ed25519_pub": plain.ed25519_public(member.session_seed).hex(),
        "body": body.hex(),
        "cert_chain": [cert.hex()],
        "sig": inputs.certificate_signature(key, body).hex(),
    }


def mlkem_pair() -> object:
    """Return one pair's keys, ciphertext and chain start, both suites."""
    hybrid = inputs.session("ab", hybrid=True, epoch=4)
    classical = inputs.session("ab", hybrid=False, epoch=4)
    pair = (inputs.node("a"), inputs.node("b"))
    kem = hybrid.kems[pair]
    low, high = (hybrid.members[i] for i in pair)
    return {
        "low": pair[0],
        "high": pair[1],
        "low_x25519": low.x25519.hex(),
        "high_x25519": high.x25519.hex(),
        "high_mlkem_seed": high.mlkem_seed.hex(),
        "high_mlkem_pub": high.mlkem_public().hex(),
        "low_session_seed": low.session_seed.hex(),
        "session_id": hybrid.session_id.hex(),
        "ct": kem.ct.hex(),
        "mlkem_secret": kem.secret.hex(),
        "kem_sig": kem.sig.hex(),
        "shared_x25519": plain.x25519(low.x25519, plain.x25519_public(high.x25519)).hex(),
        "CK_1": hybrid.chains[pair].hex(),
        "altered_ct_secret": mlkem.decapsulate(
            high.mlkem_seed, bytes([kem.ct[0] ^ 1]) + kem.ct[1:]
        ).hex(),
        "classical_session_id": classical.session_id.hex(),
        "classical_CK_1": classical.chains[pair].hex(),
    }


def _hex(value: object) -> object:
    """Return JSON values: bytes as hex, pairs of ids joined by a space."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {" ".join(k) if isinstance(k, tuple) else k: _hex(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hex(v) for v in value]
    return value


def full_round(session: Session, given: dict[str, Input], played: Round) -> object:
    """Return every value of a session and a round, secrets included."""
    return _hex(
        {
            "session": {
                "federation": session.terms.federation,
                "task": session.terms.task,
                "epoch": session.terms.epoch,
                "config_hash": session.terms.config_hash,
                "not_before": session.terms.not_before,
                "not_after": session.terms.not_after,
                "members": {
                    i: {
                        "x25519": m.x25519,
                        "mlkem_seed": m.mlkem_seed,
                        "session_seed": m.session_seed,
                        "confirm": session.confirms[i],
                    }
                    for i, m in session.members.items()
                },
                "roster_hash": session.roster_hash,
                "session_id": session.session_id,
                "kems": {p: {"ct": k.ct, "sig": k.sig} for p, k in session.kems.items()},
                "CK_1": dict(session.chains),
            },
            "header": dict(played.header),
            "hd": played.hd,
            "inputs": {
                i: {
                    "nonce": x.nonce,
                    "self_seed": x.self_seed,
                    "poly_seed": x.poly_seed,
                    "v": list(x.v),
                }
                for i, x in given.items()
            },
            "edges": dict(played.edges),
            "share_keys": dict(played.share_keys),
            "uploads": {
                i: {
                    "y": list(u.y),
                    "ydig": u.ydig,
                    "self_commit": u.self_commit,
                    "tags": dict(u.tags),
                    "sealed": {
                        h: {"nonce": s.nonce, "plaintext": s.plaintext, "ct": s.ct}
                        for h, s in u.sealed.items()
                    },
                    "sig": u.sig,
                }
                for i, u in played.uploads.items()
            },
            "survivors": list(played.survivors),
            "dropped": list(played.dropped),
            "statement": played.statement,
            "commits": dict(played.commits),
            "releases": {i: {"b": b, "edges": dict(e)} for i, (b, e) in played.releases.items()},
            "recovered": {
                i: {h: {"b_share": b, "edges": dict(e)} for h, (b, e) in by.items()}
                for i, by in played.recovered.items()
            },
            "opened": list(played.opened),
            "sum_sha256": played.sum_sha256,
        }
    )


def round_n3() -> object:
    """Return a classical round of three with one dropout; c = 0 as section 1 asks."""
    session = inputs.session("abc", hybrid=False, epoch=1)
    given = inputs.round_inputs("abc", 32)
    header = inputs.header(session, given, r=1, c=0, s_min=2, w=32)
    return full_round(session, given, run_round(session, header, given, [inputs.node("b")]))


def round_n5() -> object:
    """Return a hybrid second round of five: one dropout, one silent survivor, c = 1."""
    session = inputs.session("abcde", hybrid=True, epoch=2)
    given = inputs.round_inputs("abcde", 32)
    header = inputs.header(session, given, r=2, c=1, s_min=4, w=32)
    played = run_round(session, header, given, [inputs.node("c")], [inputs.node("d")])
    return full_round(session, given, played)


def round_n5_w64() -> object:
    """Return the same cohort in the wide ring, where the silent one sends nothing at all."""
    session = inputs.session("abcde", hybrid=True, epoch=3)
    given = inputs.round_inputs("abcde", 64)
    header = inputs.header(session, given, r=1, c=0, s_min=3, w=64)
    silent = inputs.node("e")
    rest = [inputs.node(s) for s in "abd"]
    return full_round(
        session, given, run_round(session, header, given, [inputs.node("c")], [silent], rest)
    )


def noise_draws() -> object:
    """Return tables and draws of section 9.2."""
    out: dict[str, object] = {}
    for sigma, printed in PRINTED_NOISE.items():
        table = noise.table(sigma)
        draws = [noise.draw(same(6), table, k) for k in range(12)]
        must(f"noise at sigma {sigma}", draws, printed)
        out[f"sigma_{sigma}"] = {
            "a": same(6).hex(),
            "table": [str(entry) for entry in table],
            "draws": [noise.draw(same(6), table, k) for k in range(64)],
        }
    return out


def local_steps() -> object:
    """Return a header of mode patient-local, the noise of its steps, and where they lead (9.6)."""
    header = toy_local_header()
    table = noise.table(8)
    first, d, steps = 2, 5, 3
    eta = [noise.of_step(same(6), table, k, d, first) for k in range(1, steps + 1)]
    sums = [[1000, -2000, 0], [-1, 2**40, 7], [123_456, -3, -(2**52)]]
    start = [0.5, -1.25, 3.0]
    terms = {"s": 20_000.0, "batch": 50.0, "lr": 0.3, "decay": 0.125}
    path = noise.local_steps(start, sums, eta, **terms)
    return {
        "header": _hex(header),
        "hd": plain.header_digest(header).hex(),
        "noise": {"a": same(6).hex(), "sigma": 8, "d": d, "first": first, "steps": eta},
        "training": {"start": start, "sums": sums, "path": path, **terms},
        **bad.local_headers(),
    }


VECTORS: dict[str, Callable[[], object]] = {
    "section15.json": section_15,
    "primitives.json": primitives,
    "params.json": params,
    "quantise.json": quantise,
    "advert.json": advert,
    "mlkem_pair.json": mlkem_pair,
    "round_n3.json": round_n3,
    "round_n5.json": round_n5,
    "round_n5_w64.json": round_n5_w64,
    "noise.json": noise_draws,
    "local_steps.json": local_steps,
    **bad.VECTORS,
}


def text_of(name: str) -> str:
    """Return a vector file's contents."""
    return json.dumps(VECTORS[name](), indent=1, sort_keys=True, allow_nan=False) + "\n"


def stale() -> list[str]:
    """Return the names of stored files that differ, lack, or have no maker."""
    stored = {path.name for path in HERE.glob("*.json")}
    wrong = [
        name
        for name in VECTORS
        if name not in stored or (HERE / name).read_text(encoding="utf-8") != text_of(name)
    ]
    return sorted({*wrong, *(stored - set(VECTORS))})


def main() -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        names = stale()
        for name in names:
            sys.stderr.write(f"{name} is not what the reference makes\n")
        return 1 if names else 0
    for name in VECTORS:
        (HERE / name).write_text(text_of(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
