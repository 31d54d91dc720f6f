"""A node runs a study only while the people whom its policy names agree, whatever its peer does."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.approval import Word
from common.ids import ConfigHash, HeaderDigest, NodeId, RunId
from common.messages import CHUNK_BYTES, RunEnded, StudyDecision, UploadChunk, Verdict
from common.secagg.messages import Commit, KeyAdvert, Ready, Refused
from common.secagg.node_state import Phase
from common.wire import NodeStep
from hospital_node import contribution, jobs
from hospital_node.round import opened
from tests.approvers import DAY, ITO, ROSSI, WEBER, Office, section
from tests.node_world import RUN, TASK, World, node_id

SITE = "h1"
CHUNKS_3 = 3 * CHUNK_BYTES // 4 - 100


class Clinic(World):
    """A federation in which one hospital's policy names people."""

    def ask(self, *names: str, quorum: int = 1) -> Office:
        rule = section(*names, quorum=quorum)
        self.more_policy[SITE] = f", {rule}"
        return Office(self.state_dir(SITE), SITE, "sim", self.config_hash)

    def start(self, site: str, wrap: Any = None) -> Any:  # noqa: ANN401 - as in the base
        node = super().start(site, wrap)
        (self.state_dir(site) / "approvals").mkdir(exist_ok=True)
        return node

    async def heed(self) -> None:
        """A heartbeat passes: the node looks whether people changed their minds."""
        self.clock.advance(1)
        self.nodes[SITE]._tick()
        await self.settle()

    def own(self, kind: type[NodeStep]) -> list[Any]:
        return [
            step for node, step in self.sent if node == node_id(SITE) and isinstance(step, kind)
        ]

    def said(self) -> StudyDecision:
        decisions: list[StudyDecision] = self.own(StudyDecision)
        return decisions[-1]

    def verdict(self) -> Verdict | None:
        return self.said().verdict if self.own(StudyDecision) else None

    def words(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def events(self, *names: str) -> list[str]:
        return [line["event"] for line in self.words() if line["event"] in names]

    def phase(self) -> Phase | None:
        task = self.nodes[SITE]._tasks.get(TASK)
        found = None if task is None else opened(task.state)
        return None if found is None else found.phase


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return Clinic(tmp_path)


async def waiting(clinic: Clinic, *names: str, quorum: int = 1) -> Office:
    """Start everybody; the one hospital waits for its people."""
    office = clinic.ask(*names, quorum=quorum)
    clinic.start_all()
    await clinic.until(lambda: len(clinic.coordinator.decisions) == 4)
    return office


async def running(clinic: Clinic, *names: str, days: float = 90) -> Office:
    """Start everybody, approved beforehand, and stop where the rounds begin."""
    office = clinic.ask(*names)
    clinic.state_dir(SITE).mkdir(mode=0o700, parents=True)
    office.say(names[0], Word.GRANT, clinic.clock.unix(), days=days)
    clinic.start_all()
    return office


async def test_a_study_waits_for_its_people_and_begins_by_itself_when_they_agree(
    clinic: Clinic,
) -> None:
    office = await waiting(clinic, WEBER)
    assert clinic.said().verdict is Verdict.WAITING
    assert clinic.said().waiting_for == (WEBER,)
    assert [o.code for o in clinic.said().objections] == ["APPROVAL_MISSING"]
    assert TASK not in clinic.nodes[SITE]._tasks
    assert clinic.own(KeyAdvert) == []
    await clinic.heed()
    assert len(clinic.own(StudyDecision)) == 1  # nothing has changed: nothing is said

    office.say(WEBER, Word.GRANT, clinic.clock.unix())
    await clinic.heed()
    assert clinic.said() == StudyDecision(RUN, clinic.config_hash, Verdict.ACCEPTED)
    await clinic.finish()
    clinic.check()
    assert clinic.events("study.waiting", "study.approved") == ["study.waiting", "study.approved"]


async def test_two_of_three_people_are_needed(clinic: Clinic) -> None:
    office = await waiting(clinic, WEBER, ITO, ROSSI, quorum=2)
    office.say(ITO, Word.GRANT, clinic.clock.unix())
    await clinic.heed()
    assert clinic.said().verdict is Verdict.WAITING
    assert clinic.said().waiting_for == (WEBER, ROSSI)
    office.say(ROSSI, Word.GRANT, clinic.clock.unix())
    await clinic.heed()
    await clinic.finish()
    clinic.check()


async def test_a_run_that_ends_before_its_people_answered_is_over_at_the_hospital(
    clinic: Clinic,
) -> None:
    """Else it would count among those that are not over, for ever (`limits.studies`)."""
    office = await waiting(clinic, WEBER)
    clinic.coordinator.send(node_id(SITE), TASK, RunEnded(RUN, "cancelled", "enough"))
    await clinic.until(lambda: clinic.nodes[SITE]._offers.accepted()[0].ended == "cancelled")
    office.say(WEBER, Word.GRANT, clinic.clock.unix())
    await clinic.heed()
    assert len(clinic.own(StudyDecision)) == 1
    await clinic.kill(SITE)
    clinic.start(SITE)
    await clinic.until(lambda: clinic.nodes[SITE].connected)
    assert clinic.nodes[SITE]._offers.accepted()[0].ended == "cancelled"
    assert TASK not in clinic.nodes[SITE]._tasks
    await clinic.stop()


async def test_a_denial_refuses_with_the_reason(clinic: Clinic) -> None:
    office = await waiting(clinic, WEBER)
    office.say(WEBER, Word.DENY, clinic.clock.unix())
    await clinic.heed()
    (objection,) = clinic.said().objections
    assert clinic.said().verdict is Verdict.REFUSED
    assert objection.code == "APPROVAL_DENIED"
    assert "the data were not cleared" in objection.detail
    assert clinic.events("study.denied") == ["study.denied"]
    await clinic.stop()


@pytest.mark.parametrize("word", [None, Word.GRANT, Word.DENY, Word.WITHDRAW])
async def test_a_node_that_starts_again_says_what_stands_in_its_folder(
    clinic: Clinic, word: Word | None
) -> None:
    office = await waiting(clinic, WEBER)
    await clinic.kill(SITE)
    if word is not None:
        office.say(WEBER, word, clinic.clock.unix())
    clinic.start(SITE)
    await clinic.until(lambda: len(clinic.own(StudyDecision)) == 2)
    wanted = {None: Verdict.WAITING, Word.GRANT: Verdict.ACCEPTED}
    assert clinic.said().verdict is wanted.get(word, Verdict.REFUSED)
    assert (TASK in clinic.nodes[SITE]._tasks) == (word is Word.GRANT)
    await clinic.stop()


async def test_another_version_than_the_approved_one_waits_and_says_so(clinic: Clinic) -> None:
    office = await running(clinic, WEBER)
    await clinic.finish()
    changed = dataclasses.replace(
        clinic.offer,
        run_id=RunId("run-2"),
        study=clinic.canonical.replace(b'"rounds":5', b'"rounds":6'),
    )
    digest = ConfigHash(hashlib.sha256(changed.study).digest())
    clinic.offer = dataclasses.replace(changed, config_hash=digest)
    clinic.start(SITE)
    await clinic.until(lambda: clinic.said().run_id == "run-2")
    assert clinic.said().verdict is Verdict.WAITING
    first, second = clinic.said().objections
    assert first.code == "APPROVAL_CHANGED"
    assert clinic.config_hash.hex() in first.detail
    assert second.code == "APPROVAL_MISSING"
    assert office.digest == clinic.config_hash
    await clinic.stop()


# --- withdrawal --------------------------------------------------------------------------------


async def test_a_withdrawal_between_rounds_ends_the_hospitals_part(clinic: Clinic) -> None:
    office = await running(clinic, WEBER)
    done: list[bool] = []

    def withdraw(node: object, message: NodeStep) -> bool:
        if node == node_id(SITE) and isinstance(message, Ready) and message.r == 2 and not done:
            done.append(True)
            office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)
        return False

    clinic.lose = withdraw
    await clinic.until(lambda: clinic.verdict() is Verdict.REFUSED)
    (objection,) = clinic.said().objections
    assert objection.code == "APPROVAL_WITHDRAWN"
    assert "cleared" not in objection.detail  # the reason stays at the hospital
    assert len(clinic.coordinator.opened) == 1
    uploads = [node for node, _ in clinic.uploads]
    assert uploads.count(node_id(SITE)) == 1
    refused = clinic.own(Refused)
    assert {one.code for one in refused} == {"APPROVAL_WITHDRAWN"}
    assert clinic.phase() is None
    # The second header was refused before anything of its model was fetched.
    assert [node for node, _ in clinic.downloads].count(node_id(SITE)) == 1
    await clinic.stop()


async def test_a_withdrawal_while_the_coordinator_is_unreachable_holds_after_a_restart(
    clinic: Clinic,
) -> None:
    office = await running(clinic, WEBER)
    cut = False

    def sever(node: object, message: NodeStep) -> bool:
        nonlocal cut
        if node != node_id(SITE) or not isinstance(message, Ready) or message.r != 2 or cut:
            return False
        cut = True
        clinic.links[node_id(SITE)].sever()
        return True  # lost with the connection

    clinic.lose = sever
    await clinic.until(lambda: cut)
    await clinic.kill(SITE)
    office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)  # nobody serves, nobody listens
    before = len(clinic.own(Ready))
    clinic.start(SITE)
    await clinic.until(lambda: clinic.verdict() is Verdict.REFUSED)
    await clinic.settle()
    assert len(clinic.own(Ready)) == before
    assert [node for node, _ in clinic.uploads].count(node_id(SITE)) == 1
    await clinic.stop()


async def test_a_withdrawal_during_an_upload_breaks_it_off_and_nothing_more_is_sent(
    tmp_path: Path,
) -> None:
    clinic = Clinic(tmp_path, size=CHUNKS_3, rounds=1)
    office = await running(clinic, WEBER)
    first = clinic.coordinator.chunk
    sent: list[int] = []

    def chunk(node: NodeId, hd: HeaderDigest, part: UploadChunk) -> None:
        first(node, hd, part)
        if node == node_id(SITE):
            sent.append(part.index)
            if len(sent) == 1:
                office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)
                clinic.clock.advance(1)
                asyncio.get_running_loop().call_soon(clinic.nodes[SITE]._tick)

    clinic.coordinator.chunk = chunk  # type: ignore[method-assign,assignment]
    await clinic.until(lambda: clinic.coordinator.opened)
    assert sent in ([0], [0, 1])  # not the last one, and no end record
    (opening,) = clinic.coordinator.opened
    assert node_id(SITE) not in opening[1]
    assert clinic.phase() in (Phase.UPLOADING, None)
    await clinic.stop()


async def test_a_vector_that_had_left_belongs_to_its_round_which_is_finished(
    clinic: Clinic,
) -> None:
    """Refusing the signature would not keep it out, and could hold up the others for good."""
    clinic.rounds = clinic.coordinator.rounds = 1
    office = await running(clinic, WEBER)
    done: list[bool] = []

    def withdraw(node: object, message: NodeStep) -> bool:
        if node == node_id("h2") and isinstance(message, Commit) and not done:
            done.append(True)  # the set is fixed, with this hospital in it
            office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)
            clinic.clock.advance(1)
            clinic.nodes[SITE]._tick()
        return False

    clinic.lose = withdraw
    await clinic.until(lambda: clinic.coordinator.opened)
    ((_, survivors, _),) = clinic.coordinator.opened
    assert node_id(SITE) in survivors
    assert len(clinic.own(Commit)) == 1
    assert clinic.said().verdict is Verdict.REFUSED
    await clinic.stop()


async def test_a_withdrawal_during_training_leaves_the_round_before_anything_is_sent(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic.rounds = clinic.coordinator.rounds = 1
    office = await running(clinic, WEBER)
    write = contribution.write_masked
    done: list[bool] = []

    def slow(path: Path, *rest: Any) -> Any:  # noqa: ANN401
        if SITE in str(path) and not done:
            done.append(True)
            office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)
        return write(path, *rest)

    monkeypatch.setattr(jobs, "write_masked", slow)
    await clinic.until(lambda: clinic.coordinator.opened)
    ((_, survivors, _),) = clinic.coordinator.opened
    assert node_id(SITE) not in survivors
    assert node_id(SITE) not in [node for node, _ in clinic.uploads]
    await clinic.stop()


async def test_training_that_a_withdrawal_makes_pointless_is_abandoned_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = Clinic(tmp_path, size=100_000, rounds=1)  # large enough for a thread of its own
    office = await running(clinic, WEBER)
    loop, write = asyncio.get_running_loop(), contribution.write_masked
    abandoned: list[bool] = []

    def slow(path: Path, source: Any, plan: Any, gone: Callable[[], bool]) -> Any:  # noqa: ANN401
        if SITE in str(path) and not abandoned:
            office.say(WEBER, Word.WITHDRAW, clinic.clock.unix() + 1)
            loop.call_soon_threadsafe(clinic.nodes[SITE]._tick)
            pause = threading.Event()
            abandoned.append(any(gone() or pause.wait(0.005) for _ in range(2000)))
        return write(path, source, plan, gone)

    monkeypatch.setattr(jobs, "write_masked", slow)
    await clinic.until(lambda: clinic.own(Refused))
    assert clinic.phase() is None
    await clinic.until(lambda: clinic.coordinator.opened)
    ((_, survivors, _),) = clinic.coordinator.opened
    assert node_id(SITE) not in survivors
    assert abandoned == [True]
    assert not list((clinic.state_dir(SITE) / "spool").glob("*.y"))
    await clinic.stop()


async def test_an_approval_that_ends_in_mid_run_stops_it_until_it_is_given_again(
    clinic: Clinic,
) -> None:
    office = await running(clinic, WEBER, days=0.5)
    done: list[bool] = []

    def expire(node: object, message: NodeStep) -> bool:
        if node == node_id("h2") and isinstance(message, Ready) and message.r == 2 and not done:
            done.append(True)
            clinic.clock.advance(0.6 * DAY)  # the epoch's keys last a day
        return False

    clinic.lose = expire
    await clinic.until(lambda: clinic.verdict() is Verdict.WAITING)
    (objection,) = clinic.said().objections
    assert objection.code == "APPROVAL_EXPIRED"
    assert clinic.said().waiting_for == (WEBER,)
    assert len(clinic.coordinator.opened) == 1
    office.say(WEBER, Word.GRANT, clinic.clock.unix())
    await clinic.heed()
    assert clinic.said().verdict is Verdict.ACCEPTED
    await clinic.stop()


async def test_the_status_screen_names_who_is_waited_for(clinic: Clinic) -> None:
    from hospital_node.status import describe, read_status

    office = await waiting(clinic, WEBER)
    await clinic.heed()
    found = read_status(clinic.state_dir(SITE))
    assert "run run-1 waits for approval by dr-weber" in describe(found, clinic.clock.unix())
    office.say(WEBER, Word.DENY, clinic.clock.unix())
    await clinic.heed()
    shown = describe(read_status(clinic.state_dir(SITE)), clinic.clock.unix())
    assert "run run-1 stopped: APPROVAL_DENIED: denied by dr-weber" in shown
    await clinic.stop()
