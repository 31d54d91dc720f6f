"""Every bad vector is refused by its name, and leaves the state as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from common.errors import Refusal
from common.ids import NodeId
from common.secagg import coordinator as co
from common.secagg import keys, shamir, transcript
from common.secagg import node as nd
from common.secagg.dp import DpMode, DpPlan, DpTerms
from common.secagg.header import Header
from common.secagg.messages import (
    Certificate,
    Commit,
    Propose,
    RecoverRequest,
    Release,
    Roster,
    RoundStart,
    SealedFrom,
)
from common.secagg.session import body_of
from common.secret import Secret
from tests.simulation.secagg_harness import (
    Envelope,
    Setting,
    Simulation,
    Uploaded,
    node_id,
)
from tests.vectors.alter import altered
from tests.vectors.stored import header_of, load, unhex

SETTING = Setting(n=5, colluders=1)
JUDGE, LIAR = node_id(0), node_id(1)


def rows(name: str, part: str) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in load(name)[part]]


def judged(sim: Simulation, event: nd.NodeEvent) -> nd.NodeState:
    one = sim.nodes[JUDGE]
    return nd.handle(one.state, event, one.ctx)[0]


def refused_by_judge(sim: Simulation, event: nd.NodeEvent, expect: list[str]) -> None:
    before = nd.encode_state(sim.nodes[JUDGE].state)
    with pytest.raises(Refusal) as refused:
        judged(sim, event)
    assert refused.value.name in expect, refused.value
    assert nd.encode_state(sim.nodes[JUDGE].state) == before


# --- the good situations ---------------------------------------------------------------


def until(sim: Simulation, kind: type) -> Any:  # noqa: ANN401 - the message of that kind
    """Deliver until a message of a kind would reach the judge, and return it instead."""
    while sim.flying:
        envelope = sim.flying.pop(0)
        if envelope.node == JUDGE and isinstance(envelope.to_node, kind):
            return envelope.to_node
        sim.deliver(envelope)
    raise AssertionError(f"no {kind.__name__} came")


def fresh() -> Simulation:
    sim = Simulation(SETTING)
    sim.open_session()
    return sim


def at_roster() -> tuple[Simulation, Roster]:
    sim = fresh()
    return sim, until(sim, Roster)


def at_header() -> tuple[Simulation, RoundStart]:
    sim = fresh()
    sim.run()
    sim.open_round()
    return sim, until(sim, RoundStart)


def at_propose() -> tuple[Simulation, Propose]:
    sim, start = at_header()
    header = start.header
    sim.say(JUDGE, sim.nodes[JUDGE].hear(nd.HeaderReceived(header, header.model_sha256)))
    return sim, until(sim, Propose)


def at_certificate() -> tuple[Simulation, Certificate]:
    """All five have signed; the judge has not seen the certificate."""
    sim, propose = at_propose()
    sim.say(JUDGE, sim.nodes[JUDGE].hear(propose))
    seen = until(sim, Certificate)
    statement = transcript.commit_statement(seen.hd, dict(seen.digests))
    sigs = []
    for i, one in sim.nodes.items():
        assert one.state.session is not None
        sigs.append((i, one.state.session.key.sign(statement)))
    return sim, dataclasses.replace(seen, sigs=tuple(sigs))


def unbound() -> tuple[Simulation, Certificate]:
    """Return the same, but the judge never saw the proposal."""
    signed, certificate = at_certificate()
    sim, _ = at_propose()
    assert certificate.hd == until_hd(sim)
    del signed
    return sim, certificate


def until_hd(sim: Simulation) -> bytes:
    session = sim.nodes[JUDGE].state.session
    assert session is not None
    assert session.open is not None
    return session.open.hd


def at_recover() -> tuple[Simulation, RecoverRequest]:
    sim, certificate = at_certificate()
    uploaded = {u.sender: u.end for u in sim.round.uploads}
    sealed = next(one for one in uploaded[LIAR].sealed if one.helper == JUDGE)
    asked = (SealedFrom(LIAR, sealed.nonce, sealed.ct),)
    return sim, RecoverRequest(certificate, asked)


# --- headers -------------------------------------------------------------------------------


@pytest.mark.parametrize("row", rows("bad_header.json", "refused"))
def test_bad_header(row: dict[str, Any]) -> None:
    sim, start = at_header()
    bad = altered(start.header, row["changes"])
    refused_by_judge(sim, nd.HeaderReceived(bad, start.header.model_sha256), row["expect"])
    judged(sim, nd.HeaderReceived(start.header, start.header.model_sha256))


@pytest.mark.parametrize("row", rows("bad_header.json", "accepted"))
def test_header_that_a_node_may_accept_has_another_digest(row: dict[str, Any]) -> None:
    sim, start = at_header()
    header = altered(start.header, row["changes"])
    state = judged(sim, nd.HeaderReceived(header, header.model_sha256))
    assert state.session is not None
    assert state.session.open is not None
    assert state.session.open.hd == header.digest() != start.header.digest()


LOCAL = dataclasses.replace(
    SETTING, dp=DpPlan(DpMode.PATIENT_LOCAL, 2.0, 1.0, 20_000, 0.25, 300, 3)
)


def at_local_header() -> tuple[Simulation, Header]:
    """Return the moment at which the judge gets a header of mode patient-local."""
    sim = Simulation(LOCAL)
    sim.open_session()
    sim.run()
    sim.open_round()
    return sim, until(sim, RoundStart).header


@pytest.mark.parametrize("row", rows("local_steps.json", "refused"))
def test_bad_header_of_local_steps(row: dict[str, Any]) -> None:
    sim, good = at_local_header()
    bad = altered(good, row["changes"])
    refused_by_judge(sim, nd.HeaderReceived(bad, good.model_sha256), row["expect"])
    judged(sim, nd.HeaderReceived(good, good.model_sha256))


@pytest.mark.parametrize("row", rows("local_steps.json", "accepted"))
def test_header_of_local_steps_that_a_node_may_accept(row: dict[str, Any]) -> None:
    sim, good = at_local_header()
    header = altered(good, row["changes"])
    state = judged(sim, nd.HeaderReceived(header, header.model_sha256))
    assert state.session is not None
    assert state.session.open is not None
    assert state.session.open.hd == header.digest() != good.digest()


def test_every_privacy_item_of_local_steps_has_a_bad_vector() -> None:
    changed = {
        change[0].removeprefix("dp.")
        for row in load("local_steps.json")["refused"]
        for change in row["changes"]
        if change[0].startswith("dp.")
    }
    assert changed == {field.name for field in dataclasses.fields(DpTerms)}


def test_every_header_field_has_a_bad_vector() -> None:
    changed = {
        change[0].split(".")[0] if not change[0].startswith("dp.") else change[0]
        for row in load("bad_header.json")["refused"]
        for change in row["changes"]
    }
    header = at_header()[1].header
    names = {f.name for f in dataclasses.fields(header)} - {"dp"}
    names |= {f"dp.{f.name}" for f in dataclasses.fields(header.dp)}
    assert changed == names


# --- rosters -------------------------------------------------------------------------------


def resigned(sim: Simulation, roster: Roster) -> Roster:
    """Return the roster with every advert signed anew by the hospital it came from."""
    adverts = []
    for place, advert in enumerate(roster.adverts):
        signer = sim.nodes[node_id(place)].signer
        adverts.append(dataclasses.replace(advert, sig=signer.sign(body_of(advert))))
    return Roster(tuple(adverts), roster.next_r)


@pytest.mark.parametrize("row", rows("bad_roster.json", "refused"))
def test_bad_roster(row: dict[str, Any]) -> None:
    sim, roster = at_roster()
    bad = altered(roster, row["changes"])
    if row["resign"]:
        bad = resigned(sim, bad)
    refused_by_judge(sim, bad, row["expect"])
    judged(sim, roster)


@pytest.mark.parametrize("key", ["x25519_pub", "ed25519_pub"])
def test_a_public_key_that_stands_twice(key: str) -> None:
    sim, roster = at_roster()
    copied = dataclasses.replace(roster.adverts[2], **{key: getattr(roster.adverts[3], key)})
    bad = resigned(sim, Roster((*roster.adverts[:2], copied, *roster.adverts[3:]), roster.next_r))
    refused_by_judge(sim, bad, load("bad_roster.json")["copied"]["expect"])


# --- propose, certificate, recover ------------------------------------------------------------


@pytest.mark.parametrize("row", rows("bad_round.json", "propose"))
def test_bad_proposal(row: dict[str, Any]) -> None:
    sim, propose = at_propose()
    refused_by_judge(sim, altered(propose, row["changes"]), row["expect"])
    judged(sim, propose)


@pytest.mark.parametrize("row", rows("bad_round.json", "certificate"))
def test_bad_certificate_at_a_node_that_signed_nothing(row: dict[str, Any]) -> None:
    sim, certificate = unbound()
    refused_by_judge(sim, altered(certificate, row["changes"]), row["expect"])
    judged(sim, certificate)


@pytest.mark.parametrize("row", rows("bad_round.json", "after a commit"))
def test_another_set_after_a_commit(row: dict[str, Any]) -> None:
    sim, certificate = at_certificate()
    bad = altered(certificate, row["changes"])
    refused_by_judge(sim, Propose(bad.hd, bad.digests), row["expect"])
    refused_by_judge(sim, bad, row["expect"])
    refused_by_judge(sim, RecoverRequest(bad, ()), row["expect"])


@pytest.mark.parametrize("row", rows("bad_round.json", "recover"))
def test_bad_recovery_request(row: dict[str, Any]) -> None:
    sim, request = at_recover()
    refused_by_judge(sim, altered(request, row["changes"]), row["expect"])
    judged(sim, request)


# --- at the coordinator --------------------------------------------------------------------------


def at_coordinator(kind: type) -> tuple[Simulation, Any]:
    """Return a round in which the fifth hospital dropped out, and the liar's message."""
    sim = fresh()
    sim.run()
    held: list[Any] = []

    def on_send(envelope: Envelope) -> list[Envelope]:
        said = envelope.from_node
        if envelope.node == node_id(4) and isinstance(said, Uploaded):
            return []
        if envelope.node == LIAR and isinstance(said, kind) and not held:
            held.append(said)
            return []
        return [envelope]

    sim.on_send = on_send
    sim.open_round()
    sim.run()
    if kind is not Uploaded:
        sim.lose(4)
        sim.run()
    return sim, held[0]


def refused_by_coordinator(sim: Simulation, event: co.RoundEvent, expect: list[str]) -> None:
    before = sim.round
    with pytest.raises(Refusal) as refused:
        co.handle(before, event)
    assert refused.value.name in expect, refused.value
    assert sim.round == before


@pytest.mark.parametrize("row", rows("bad_upload.json", "upload"))
def test_bad_upload(row: dict[str, Any]) -> None:
    sim, uploaded = at_coordinator(Uploaded)
    end = altered(uploaded.end, row["changes"])
    if row["resign"]:
        tags = transcript.tags_hash({i: keys.EdgeTag(t) for i, t in end.tags})
        text = transcript.upload_statement(
            end.hd, LIAR, end.ydig, keys.SelfCommit(end.self_commit), tags
        )
        session = sim.nodes[LIAR].state.session
        assert session is not None
        end = dataclasses.replace(end, sig=session.key.sign(text))
    size = len(uploaded.body)
    event = co.UploadReceived(LIAR, end, uploaded.end.ydig, size)
    refused_by_coordinator(sim, event, row["expect"])
    good = co.UploadReceived(LIAR, uploaded.end, uploaded.end.ydig, size)
    for wrong in (size - 4, size + 4, 0):
        cut = dataclasses.replace(good, size_bytes=wrong)
        refused_by_coordinator(sim, cut, ["UPLOAD_SIZE"])
    co.handle(sim.round, good)


def test_an_upload_after_the_set_was_fixed() -> None:
    sim, _ = at_coordinator(Commit)
    late = next(said for said in sim.nodes[node_id(4)].said if isinstance(said, Uploaded))
    event = co.UploadReceived(node_id(4), late.end, late.end.ydig, len(late.body))
    refused_by_coordinator(sim, event, ["UPLOAD_LATE"])


@pytest.mark.parametrize("row", rows("bad_upload.json", "commit"))
def test_bad_commit(row: dict[str, Any]) -> None:
    sim, message = at_coordinator(Commit)
    refused_by_coordinator(sim, co.From(LIAR, altered(message, row["changes"])), row["expect"])
    refused_by_coordinator(sim, co.From(node_id(4), message), ["OUT_OF_TURN"])
    co.handle(sim.round, co.From(LIAR, message))


@pytest.mark.parametrize("row", rows("bad_upload.json", "release"))
def test_bad_release(row: dict[str, Any]) -> None:
    sim, message = at_coordinator(Release)
    refused_by_coordinator(sim, co.From(LIAR, altered(message, row["changes"])), row["expect"])
    refused_by_coordinator(sim, co.From(node_id(4), message), ["OUT_OF_TURN"])
    assert co.handle(sim.round, co.From(LIAR, message))[0].releases


# --- shares ------------------------------------------------------------


@cache
def silent() -> tuple[str, Any]:
    tree = load(load("bad_shares.json")["round"])
    ((name, helpers),) = tree["recovered"].items()
    return name, helpers


def sharesets() -> Iterator[tuple[str, list[tuple[int, bytes]], Any]]:
    """Yield each secret of the silent survivor: name, shares by point, and its check."""
    tree = load(load("bad_shares.json")["round"])
    header = header_of(tree["header"])
    name, helpers = silent()
    upload = tree["uploads"][name]

    def fits_self(secret: Secret) -> bool:
        seed = keys.SelfSeed(secret.reveal())
        made = keys.self_commit(header.digest(), NodeId(name), seed)
        return bool(made.hex() == upload["self_commit"])

    points = {helper: header.point_of(NodeId(helper)) for helper in helpers}
    yield "b", [(points[h], unhex(given["b_share"])) for h, given in helpers.items()], fits_self
    for j in tree["dropped"]:

        def fits_tag(secret: Secret, j: str = j) -> bool:
            return bool(keys.edge_tag(keys.EdgeSeed(secret.reveal())).hex() == upload["tags"][j])

        yield j, [(points[h], unhex(given["edges"][j])) for h, given in helpers.items()], fits_tag


@pytest.mark.parametrize("row", rows("bad_shares.json", "rows"))
def test_share_sets(row: dict[str, Any]) -> None:
    t_h = load(load("bad_shares.json")["round"])["header"]["t_h"]
    for _, given, fits in sharesets():
        used = dict(given[: row["helpers"]])
        for place, by in row["off"].items():
            point = given[int(place)][0]
            value = int.from_bytes(used[point], "big") + by
            used[point] = value.to_bytes(33, "big")
        if row["expect"]:
            with pytest.raises(Refusal) as refused:
                shamir.combine_checked(used, t_h, fits)
            assert refused.value.name in row["expect"]
        else:
            found = shamir.combine_checked(used, t_h, fits)
            assert list(found.wrong_points) == [given[k][0] for k in row["wrong"]]
