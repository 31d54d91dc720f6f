"""The lines of section 15 that touch primitives, word for word (noise comes with DP)."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from common.encoding import Label, enc, extract, hash_label
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, RoundNo, SessionId, Sha256
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import (
    ChainKey,
    CoefficientSeed,
    EdgeSeed,
    EdgeTag,
    PairKey,
    SelfSeed,
    SessionKey,
    chain0,
    edge_seed,
    edge_tag,
    ratchet,
    self_commit,
    share_key,
)
from common.secagg.prg import Keystream
from common.secagg.ring import word_dtype
from common.secagg.shamir import SELF_NAME, split
from common.secagg.transcript import RosterHash, commit_statement, session_id, tags_hash
from common.secret import Secret
from common.vectors import ParameterSchema, TensorSpec, TensorType, model_digest

H1, H2, H3 = NodeId("h1"), NodeId("h2"), NodeId("h3")
SESSION = SessionId(
    bytes.fromhex("c3ec1a1cf11cdbfc478c201bb03ffb236a2999d2e2aa46bae29eabaa33955d99")
)
CK_1 = ChainKey(bytes.fromhex("cb5ab268d5ae803f0c82a5e8bac1aa0a9b198c4e554ac595c2293cf2be52522f"))
HD = HeaderDigest(hash_label(Label.HEADER, "placeholder"))
EDGE = EdgeSeed(bytes.fromhex("97e6358618afe6c7a01b0a8b2811d2577d182ba580fef7fda6ba35ee7ea80bbc"))
DIGESTS = {node: Sha256(bytes((k,)) * 32) for node, k in ((H3, 3), (H1, 1), (H2, 2))}
LAYOUT = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (5,)),), ("loss",))


def test_enc() -> None:
    assert enc("a", 1, b"").hex() == "000000016100000008000000000000000100000000"


def test_session_id() -> None:
    made = session_id("fed", "task", Epoch(7), ConfigHash(b"\x01" * 32), RosterHash(b"\x02" * 32))
    assert made == SESSION


def test_prk_and_chain() -> None:
    prk = extract(SESSION, b"\x03" * 32 + b"\x04" * 32)
    assert prk.hex() == "c463f37fc02935a3eeab9315803d2df6a4949b493101bab4e8062e075d62dc83"
    assert chain0(PairKey(prk), H1, H2) == chain0(PairKey(prk), H2, H1) == CK_1
    second = "3041063e856e0950f2eaa0720bc967194a52d8df767c6f23477870a7aaa3b30b"
    assert ratchet(CK_1).reveal().hex() == second


def test_keys_of_a_header() -> None:
    assert HD.hex() == "755db86ee3eb8507e7ba81e1a28dbd49da592252457dc88329830463f093a773"
    assert edge_seed(CK_1, HD) == EDGE
    assert edge_tag(EDGE).hex() == "333f44203b6e1c3c0b7aa8daac858f47"
    share = "337cdb17efbc5dc6148ddb54918fff66a7edec3e58cb2225c689dcb788b0d9b5"
    assert share_key(CK_1, HD, H1, H2).reveal().hex() == share
    assert share_key(CK_1, HD, H2, H1).reveal().hex() != share


@pytest.mark.parametrize(
    ("w", "start", "words"),
    [
        (32, 0, [1783187552, 4087686653, 1968105954, 3317913288]),
        (32, 1_000_000, [4097974976, 2167787192, 555249939, 4131388342]),
        (64, 0, [7228131497894156024, 11499842946484895249]),
    ],
)
def test_prg(w: int, start: int, words: list[int]) -> None:
    out = np.empty(len(words), word_dtype(w))
    Keystream.of_mask(EDGE, w).words_into(out, start)
    assert [int(word) for word in out] == words


def test_self_commit() -> None:
    made = self_commit(HD, H1, SelfSeed(b"\x05" * 32))
    assert made.hex() == "f68d2927fe5f72107aa7bda9ddd8fd10ce9a9e7cabec2ae288e6fc1a84af5afa"


def test_shamir() -> None:
    made = split(Secret(b"\x05" * 32), SELF_NAME, CoefficientSeed(b"\x06" * 32), 3, (1, 2, 3, 4))
    assert [share.hex() for share in made] == [
        "00cf0c73be8bdd2f0fe19a026fbe661136c434d71bf81550c9d9cf66a566f3f8b9",
        "0014d4faef1801862125ce799594053951e20a8d43de5eb0397a1253b34947b6cc",
        "00d65e9a96a9720a38d1a26a7685e27d565e86277cb7e12353e5cdcc2eac0042b9",
        "0013a952b5402ebb56e515d51293fddd4439a7a5c6849caa191d01d0178f1d9905",
    ]


def test_commit_statement_and_its_signature() -> None:
    st = commit_statement(HD, DIGESTS)
    digest = "cfadd86d00c67d260ffae83476e48beba787b36c7cf19ec72f820972906b3d0c"
    assert hashlib.sha256(st).hexdigest() == digest
    assert SessionKey(Secret(b"\x07" * 32)).sign(st).hex() == (
        "14e4ceab42ea24b7d7fb251bdcced5e0313883ecc672243b6ae15ff05f94c9f3"
        "a297aeadd8387b677621db03110145800346790244882d24f9f69b134bb77800"
    )


def test_tags() -> None:
    made = tags_hash({H3: EdgeTag(b"\x09" * 16), H2: edge_tag(EDGE)})
    assert made.hex() == "b6cb3c566de4891bbf70cd2c1a94e69ffd762abd6c365acd9fd15f567b783177"


def test_layout_model_and_header() -> None:
    layout = LAYOUT.layout_sha256
    assert layout.hex() == "34f727e4a3c5a7568dfa58be0a36a6c4733c71834e88ad9da8f9b5f02144d78f"
    model = model_digest(LAYOUT, np.arange(5, dtype="<f4").tobytes())
    assert model.hex() == "2a661fda54537cec3b57652d38f1dd5a3133f9dd080bb4573450829e2b3f9f09"
    header = Header(
        session_id=SESSION,
        r=RoundNo(1),
        kind=RoundKind.TRAIN,
        model_sha256=model,
        layout_sha256=layout,
        config_hash=ConfigHash(b"\x01" * 32),
        members=((H1, b"\x11" * 32), (H2, b"\x12" * 32), (H3, b"\x13" * 32)),
        d=LAYOUT.words,
        w=32,
        c=1,
        q=3,
        s_min=3,
        t_h=2,
        kappa=2,
        ranges=(0.5, 1.0),
        w_max=1000,
        rounding=Rounding.EVEN,
        deadline_ms=600_000,
    )
    header.check_form()
    assert header.digest().hex() == (
        "0bacec136c717ff046f563fa2cb72367a63a9227f2abf62d4e59c27988a9245e"
    )
