"""The shipped primitives reproduce section 15 and the reference's further vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.encoding import Item, Label, enc, expand, extract, hash_label
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, SessionId, Sha256
from common.secagg import keys, transcript
from common.secagg.header import quant_bound
from common.secagg.helpers import helper_count, helper_threshold
from common.secagg.params import default_colluders, quorum
from common.secagg.prg import Keystream
from common.secagg.ring import word_dtype
from common.secagg.sealed import Sealed, open_sealed
from common.secret import Secret
from common.vectors import (
    EMPTY_MODEL,
    ModelHasher,
    ParameterSchema,
    TensorSpec,
    TensorType,
    model_digest,
)
from tests.reference import plain
from tests.vectors.generate import same, toy_header, toy_local_header
from tests.vectors.stored import header_of, load, unhex

S15 = load("section15.json")
MORE = load("primitives.json")
H1, H2, H3 = NodeId("h1"), NodeId("h2"), NodeId("h3")
SESSION = SessionId(unhex(S15["session_id"]))
HD = HeaderDigest(unhex(S15["hd"]))
CK_1 = keys.ChainKey(unhex(S15["CK_1"]))
EDGE = keys.EdgeSeed(unhex(S15["edge"]))


def words(seed: Secret, w: int, start: int, count: int) -> list[int]:
    out = np.zeros(count, word_dtype(w))
    Keystream.of_mask(seed, w).words_into(out, start)
    return [int(x) for x in out]


def test_section_15_encoding_and_derivations() -> None:
    assert enc("a", 1, b"").hex() == S15["enc"]
    made = transcript.session_id(
        "fed", "task", Epoch(7), ConfigHash(same(1)), transcript.RosterHash(same(2))
    )
    assert made == SESSION
    prk = keys.PairKey(extract(SESSION, same(3) + same(4)))
    assert prk.reveal().hex() == S15["prk"]
    for one, other in ((H1, H2), (H2, H1)):
        assert keys.chain0(prk, one, other) == CK_1
    assert keys.ratchet(CK_1).reveal().hex() == S15["CK_2"]
    assert hash_label(Label.HEADER, "placeholder") == HD
    assert keys.edge_seed(CK_1, HD) == EDGE
    assert keys.edge_tag(EDGE).hex() == S15["edge_tag"]
    assert keys.share_key(CK_1, HD, H1, H2).reveal().hex() == S15["share_key"]
    assert keys.self_commit(HD, H1, keys.SelfSeed(same(5))).hex() == S15["self_commit"]


def test_section_15_keystream() -> None:
    assert words(EDGE, 32, 0, 4) == S15["prg_32"]
    assert words(EDGE, 32, 1_000_000, 4) == S15["prg_32_from_1000000"]
    assert words(EDGE, 64, 0, 2) == S15["prg_64"]


def test_section_15_commit_statement_and_signature() -> None:
    digests = {NodeId(f"h{k}"): Sha256(same(k)) for k in (3, 1, 2)}
    st = transcript.commit_statement(HD, digests)
    assert plain.sha(st).hex() == S15["st_sha256"]
    key = keys.SessionKey(Secret(same(7)))
    assert key.sign(st).hex() == S15["st_signature"]
    keys.verify_session_signature(
        key.public(), unhex(S15["st_signature"]), st, refusal="CERT_SIG", who=H1
    )


def test_section_15_layout_model_header_and_tags() -> None:
    schema = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (5,)),), ("loss",))
    assert schema.layout_sha256.hex() == S15["layout_sha256"]
    model = np.arange(5, dtype="<f4").tobytes()
    assert model_digest(schema, model).hex() == S15["model_sha256"]
    header = header_of(_stored(toy_header()))
    header.check_form()
    assert header.digest().hex() == S15["header_digest"]
    assert (header.d, header.n, len(header.ranges)) == (schema.words, 3, schema.range_count)
    tags = {H3: keys.EdgeTag(bytes([9]) * 16), H2: keys.edge_tag(EDGE)}
    assert transcript.tags_hash(tags).hex() == S15["tags_hash"]


def _stored(tree: dict[str, Any]) -> dict[str, Any]:
    stored = {
        key: value.hex() if isinstance(value, bytes) else value for key, value in tree.items()
    }
    return stored | {"members": [[i, n.hex()] for i, n in tree["members"]]}


def test_section_15_header_of_local_steps() -> None:
    header = header_of(_stored(toy_local_header()))
    header.check_form()
    assert header.digest().hex() == S15["local_header_digest"] == load("local_steps.json")["hd"]
    assert header.sharers == 1
    assert header.word_bound == header.bound


def test_encoding_of_every_type() -> None:
    make = {"text": str, "integer": int, "float": float, "bytes": bytes.fromhex}
    items: list[Item] = [make[kind](value) for kind, value in MORE["enc"]["items"]]  # type: ignore[operator]
    assert enc(*items).hex() == MORE["enc"]["bytes"]
    assert hash_label(Label.HEADER, *items).hex() == MORE["hash"]


@pytest.mark.parametrize("size", [16, 32, 64])
def test_expand_of_every_length(size: int) -> None:
    made = expand(unhex(MORE["seed"]), Label.POLY, "self", 1, length=size)
    assert made.hex() == MORE["expand"][str(size)]


def test_chain_of_a_whole_epoch() -> None:
    first = keys.ChainKey(unhex(MORE["seed"]))
    for r, value in MORE["chain"].items():
        assert keys.ratchet_to(first, 1, int(r)).reveal().hex() == value


@pytest.mark.parametrize("row", MORE["prg"], ids=lambda row: f"w{row['w']}-{row['start']}")
def test_keystream_from_any_aligned_word(row: dict[str, Any]) -> None:
    assert words(Secret(unhex(MORE["seed"])), row["w"], row["start"], 6) == row["words"]


def test_sealed_shares_open_only_in_their_place() -> None:
    stored = MORE["gcm"]
    key = keys.ShareKey(unhex(stored["key"]))
    hd = HeaderDigest(unhex(stored["key"]))
    sealed = Sealed(unhex(stored["nonce"]), unhex(stored["sealed"]))
    opened = open_sealed(key, hd, NodeId("i"), NodeId("h"), sealed)
    assert opened.reveal().hex() == stored["plaintext"]


def test_layout_and_model_of_every_dtype() -> None:
    stored = MORE["layout"]
    tensors = tuple(
        TensorSpec(name, TensorType(dtype), tuple(dims)) for name, dtype, dims in stored["tensors"]
    )
    schema = ParameterSchema(tensors, tuple(stored["metrics"]))
    assert schema.layout_sha256.hex() == stored["layout_sha256"]
    hasher = ModelHasher(schema)
    for byte in b"".join(unhex(stored["data"][t.name]) for t in tensors):
        hasher.update(bytes([byte]))
    assert hasher.finish().hex() == stored["model_sha256"]
    assert EMPTY_MODEL.hex() == stored["model_sha256_of_nothing"]


def test_group_keys_order_the_roster() -> None:
    session = SessionId(unhex(MORE["seed"]))
    order = sorted(
        (NodeId(i) for i in MORE["groups"]), key=lambda i: hash_label(Label.GROUP, session, i)
    )
    assert {i: place % 3 + 1 for place, i in enumerate(order)} == MORE["groups"]


def test_quorum_colluders_and_helpers() -> None:
    stored = load("params.json")
    for size, c in stored["colluders"].items():
        assert default_colluders(int(size)) == c
    for row in stored["rows"]:
        assert quorum(row["n"], row["c"]) == row["q"]
        assert helper_count(row["n"]) == row["kappa"]
        if row["t_h"] <= row["kappa"]:
            assert helper_threshold(row["n"], row["c"]) == row["t_h"], row


def test_levels() -> None:
    for row in load("quantise.json")["rows"]:
        assert quant_bound(row["n"], row["w"]) == row["B"]


def test_pair_key_of_both_suites() -> None:
    stored = load("mlkem_pair.json")
    low, high = NodeId(stored["low"]), NodeId(stored["high"])
    mine = keys.AgreementKeys(Secret(unhex(stored["low_x25519"])), None)
    theirs = keys.AgreementKeys(
        Secret(unhex(stored["high_x25519"])), Secret(unhex(stored["high_mlkem_seed"]))
    )
    assert theirs.mlkem_public().hex() == stored["high_mlkem_pub"]
    ct = unhex(stored["ct"])
    shared = theirs.exchange(mine.x25519_public())
    assert shared.reveal().hex() == stored["shared_x25519"]
    assert shared == mine.exchange(theirs.x25519_public())
    kem = theirs.decapsulate(ct)
    assert kem.reveal().hex() == stored["mlkem_secret"]
    session = SessionId(unhex(stored["session_id"]))
    prk = keys.pair_prk(session, shared, kem, ct)
    assert keys.chain0(prk, high, low).reveal().hex() == stored["CK_1"]
    classical = keys.pair_prk(SessionId(unhex(stored["classical_session_id"])), shared, None, b"")
    assert keys.chain0(classical, low, high).reveal().hex() == stored["classical_CK_1"]
    signed = keys.SessionKey(Secret(unhex(stored["low_session_seed"]))).sign(
        transcript.kem_statement(session, low, high, ct)
    )
    assert signed.hex() == stored["kem_sig"]
    altered = theirs.decapsulate(bytes([ct[0] ^ 1]) + ct[1:])
    assert altered.reveal().hex() == stored["altered_ct_secret"]
