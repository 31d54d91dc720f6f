"""The shipped primitives, put together by hand, reproduce whole stored rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, Sha256
from common.secagg import keys, shamir, transcript
from common.secagg.masking import MaskPlan, OpeningPlan, edge_sign
from common.secagg.ring import check_sum_range, signed_view, word_dtype, words_of
from common.secagg.sealed import Sealed, open_sealed, seal
from common.secret import Secret
from tests.reference import plain
from tests.vectors.stored import header_of, load, unhex

ROUNDS = ("round_n3.json", "round_n5.json", "round_n5_w64.json")

pytestmark = pytest.mark.parametrize("name", ROUNDS)


class Fixed:
    """Entropy that gives one stored value."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def take(self, count: int) -> bytes:
        assert count == len(self.value)
        return self.value


def ids_of(tree: dict[str, Any]) -> list[NodeId]:
    return [NodeId(i) for i, _ in tree["header"]["members"]]


def pair(one: str, other: str) -> str:
    return " ".join(sorted((one, other), key=str.encode))


def chain(tree: dict[str, Any], one: str, other: str) -> keys.ChainKey:
    first = keys.ChainKey(unhex(tree["session"]["CK_1"][pair(one, other)]))
    return keys.ratchet_to(first, 1, tree["header"]["r"])


def edges_of(tree: dict[str, Any], node: NodeId) -> dict[NodeId, keys.EdgeSeed]:
    hd = HeaderDigest(unhex(tree["hd"]))
    return {j: keys.edge_seed(chain(tree, node, j), hd) for j in ids_of(tree) if j != node}


def seeds_of(tree: dict[str, Any], node: str) -> tuple[keys.SelfSeed, keys.CoefficientSeed]:
    given = tree["inputs"][node]
    return (
        keys.SelfSeed(unhex(given["self_seed"])),
        keys.CoefficientSeed(unhex(given["poly_seed"])),
    )


def test_session_keys(name: str) -> None:
    tree = load(name)["session"]
    members = {NodeId(i): m for i, m in tree["members"].items()}
    own = {
        i: keys.AgreementKeys(
            Secret(unhex(m["x25519"])), Secret(unhex(m["mlkem_seed"])) if m["mlkem_seed"] else None
        )
        for i, m in members.items()
    }
    signing = {i: keys.SessionKey(Secret(unhex(m["session_seed"]))) for i, m in members.items()}
    bodies = {
        i: transcript.advert_body(
            federation=tree["federation"],
            task=tree["task"],
            epoch=Epoch(tree["epoch"]),
            node=i,
            x25519_pub=own[i].x25519_public(),
            mlkem_pub=own[i].mlkem_public(),
            ed25519_pub=signing[i].public(),
            config_hash=ConfigHash(unhex(tree["config_hash"])),
            not_before=tree["not_before"],
            not_after=tree["not_after"],
        )
        for i in members
    }
    roster = transcript.roster_hash(bodies)
    session = transcript.session_id(
        tree["federation"],
        tree["task"],
        Epoch(tree["epoch"]),
        ConfigHash(unhex(tree["config_hash"])),
        roster,
    )
    assert (roster.hex(), session.hex()) == (tree["roster_hash"], tree["session_id"])
    for both, first in tree["CK_1"].items():
        low, high = (NodeId(x) for x in both.split())
        kem = tree["kems"].get(both)
        ct = unhex(kem["ct"]) if kem else b""
        secret = own[high].decapsulate(ct) if kem else None
        shared = own[low].exchange(own[high].x25519_public())
        prk = keys.pair_prk(session, shared, secret, ct)
        assert keys.chain0(prk, low, high).reveal().hex() == first
        if kem:
            text = transcript.kem_statement(session, low, high, ct)
            assert signing[low].sign(text).hex() == kem["sig"]
    for i, m in members.items():
        assert signing[i].sign(transcript.confirm_statement(session)).hex() == m["confirm"]


def test_header_digest_and_form(name: str) -> None:
    tree = load(name)
    header = header_of(tree["header"])
    header.check_form()
    assert header.digest().hex() == tree["hd"]


def test_uploads(name: str) -> None:
    tree = load(name)
    header, hd = header_of(tree["header"]), HeaderDigest(unhex(tree["hd"]))
    for i, stored in tree["uploads"].items():
        node = NodeId(i)
        b, _ = seeds_of(tree, i)
        edges = edges_of(tree, node)
        v = np.array(tree["inputs"][i]["v"], dtype=np.int64).astype(word_dtype(header.w))
        signed = tuple((edges[j], edge_sign(node, j)) for j in edges)
        MaskPlan(b, signed, header.w).stream().apply(v, 0)
        assert [int(x) for x in v] == stored["y"]
        ydig = Sha256(plain.sha(v.tobytes()))
        commit = keys.self_commit(hd, node, b)
        tags = {j: keys.edge_tag(e) for j, e in edges.items()}
        assert (ydig.hex(), commit.hex()) == (stored["ydig"], stored["self_commit"])
        assert {j: tag.hex() for j, tag in tags.items()} == stored["tags"]
        text = transcript.upload_statement(hd, node, ydig, commit, transcript.tags_hash(tags))
        seed = Secret(unhex(tree["session"]["members"][i]["session_seed"]))
        assert keys.SessionKey(seed).sign(text).hex() == stored["sig"]


def test_sealed_shares(name: str) -> None:
    tree = load(name)
    header, hd = header_of(tree["header"]), HeaderDigest(unhex(tree["hd"]))
    for i, stored in tree["uploads"].items():
        node = NodeId(i)
        b, a = seeds_of(tree, i)
        edges = edges_of(tree, node)
        helpers = list(edges)
        secrets: list[tuple[str, Secret]] = [(shamir.SELF_NAME, b), *edges.items()]
        points = [header.point_of(h) for h in helpers]
        bundles = shamir.share_secrets(secrets, a, header.t_h, points)
        for helper, bundle in zip(helpers, bundles, strict=True):
            entry = stored["sealed"][helper]
            assert bundle.reveal().hex() == entry["plaintext"]
            key = keys.share_key(chain(tree, node, helper), hd, node, helper)
            assert key.reveal().hex() == tree["share_keys"][f"{node} {helper}"]
            made = seal(key, hd, node, helper, bundle, Fixed(unhex(entry["nonce"])))
            assert made == Sealed(unhex(entry["nonce"]), unhex(entry["ct"]))
            assert open_sealed(key, hd, node, helper, made) == bundle


def test_commits(name: str) -> None:
    tree = load(name)
    hd = HeaderDigest(unhex(tree["hd"]))
    digests = {NodeId(i): Sha256(unhex(tree["uploads"][i]["ydig"])) for i in tree["survivors"]}
    st = transcript.commit_statement(hd, digests)
    assert st.hex() == tree["statement"]
    for i, sig in tree["commits"].items():
        seed = Secret(unhex(tree["session"]["members"][i]["session_seed"]))
        assert keys.SessionKey(seed).sign(st).hex() == sig
    assert len(tree["commits"]) >= tree["header"]["q"]


def recovered(tree: dict[str, Any], i: str) -> tuple[keys.SelfSeed, dict[NodeId, keys.EdgeSeed]]:
    header, hd = header_of(tree["header"]), HeaderDigest(unhex(tree["hd"]))
    helped = tree["recovered"][i]
    upload = tree["uploads"][i]

    def fits_self(secret: Secret) -> bool:
        commit = keys.self_commit(hd, NodeId(i), keys.SelfSeed(secret.reveal()))
        return bool(commit.hex() == upload["self_commit"])

    b_shares = {header.point_of(NodeId(h)): unhex(s["b_share"]) for h, s in helped.items()}
    b = shamir.combine_checked(b_shares, header.t_h, fits_self)
    assert b.wrong_points == ()
    edges = {}
    for j in tree["dropped"]:
        shares = {header.point_of(NodeId(h)): unhex(s["edges"][j]) for h, s in helped.items()}
        edge = keys.EdgeSeed(shamir.combine(shares, header.t_h).reveal())
        assert keys.edge_tag(edge).hex() == upload["tags"][j]
        edges[NodeId(j)] = edge
    return keys.SelfSeed(b.secret.reveal()), edges


def test_releases_recovery_and_the_opened_sum(name: str) -> None:
    tree = load(name)
    header = header_of(tree["header"])
    self_seeds = []
    dropped = []
    total = np.zeros(header.d, word_dtype(header.w))
    for i in tree["survivors"]:
        node = NodeId(i)
        if i in tree["releases"]:
            b = keys.SelfSeed(unhex(tree["releases"][i]["b"]))
            edges = {
                NodeId(j): keys.EdgeSeed(unhex(e)) for j, e in tree["releases"][i]["edges"].items()
            }
            assert edges == {j: edges_of(tree, node)[j] for j in edges}
        else:
            b, edges = recovered(tree, i)
        assert b == seeds_of(tree, i)[0]
        assert set(edges) == set(tree["dropped"])
        self_seeds.append(b)
        dropped += [(e, edge_sign(node, j)) for j, e in edges.items()]
        y = np.array(tree["uploads"][i]["y"], dtype=np.uint64).astype(word_dtype(header.w))
        total += words_of(y.tobytes(), header.w)
    OpeningPlan(tuple(self_seeds), tuple(dropped), header.w).stream().apply(total, 0)
    opened = [int(x) for x in signed_view(total)]
    assert opened == tree["opened"]
    assert opened == [
        sum(tree["inputs"][i]["v"][k] for i in tree["survivors"]) for k in range(header.d)
    ]
    check_sum_range(total, len(tree["survivors"]) * header.bound)
    assert plain.sha(total.tobytes()).hex() == tree["sum_sha256"]
