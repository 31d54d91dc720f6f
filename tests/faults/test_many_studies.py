"""A federation that has seen more studies than a message holds goes on as before."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from common.ids import Epoch, RunId, hospital_id
from common.messages import MAX_SEEN, StudyDecision, Welcome
from common.wire import decode_coordinator, encode_coordinator
from coordinator.history import witness
from coordinator.hub import MAX_WAITING
from coordinator.journal import Journal
from coordinator.progress import progress_of
from coordinator.run_state import RunState
from tests.federation import NAME, SITES, Federation


async def test_a_welcome_tells_of_the_youngest_runs_and_is_never_too_long(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed") as fed:
        await fed.run()
        model = fed.state
    node = hospital_id(NAME, SITES[0])

    def run(number: int, epoch: int = 1) -> RunState:
        assert model.session is not None
        terms = replace(model.session.terms, epoch=Epoch(epoch))
        study = model.study.model_copy(update={"id": f"study-{number}"})
        return replace(
            model, run_id=RunId(f"run-{number}-{epoch}"), study=study,
            session=replace(model.session, terms=terms),
        )  # fmt: skip

    runs = [run(number) for number in range(MAX_SEEN + 40)]
    runs.append(run(7, epoch=2))  # the study of an old run has a young one too
    welcome = Welcome(NAME, 1000, (), witness(map(progress_of, runs), node))
    assert decode_coordinator(encode_coordinator("", welcome)) == ("", welcome)
    youngest = [f"study-{number}" for number in range(41, MAX_SEEN + 40)] + ["study-7"]
    assert [one.task for one in welcome.seen] == youngest
    assert welcome.seen[-1].epoch == 2


async def test_who_missed_the_end_of_one_of_many_failed_runs_is_told_of_that_one(
    tmp_path: Path,
) -> None:
    """Told of the end of each of them, its stream's outbox would overflow, every time."""
    async with Federation(tmp_path / "fed", rounds=500) as fed:
        gone = asyncio.Event()

        async def leave(_: str) -> None:
            fed.later(fed.kill("va"))
            gone.set()

        fed.on_send("va", StudyDecision, leave, late=True)
        await fed.submit()
        await gone.wait()
        await fed.until(lambda: hospital_id(NAME, "va") in fed.state.accepted)
        service, run = fed.service, fed.run_id
        assert service is not None
        assert run is not None
        await fed.until(lambda: hospital_id(NAME, "va") not in service.connected)
        await service.cancel(run, "enough of it")
        for number in range(2 * MAX_WAITING):
            service._start(replace(fed.state, run_id=RunId(f"run-{number}")), Journal(), 0.0)
        service._drivers[run] = service._drivers.pop(run)  # told last
        lost = fed.count("link.lost", site="va")
        fed.start("va")
        await fed.until(lambda: fed.count("run.cancelled", site="va", reason="enough of it") > 0)
        assert fed.count("link.lost", site="va") == lost


async def test_a_hospital_names_every_run_that_it_does_not_know_to_have_ended(
    tmp_path: Path,
) -> None:
    """However many it has taken part in since: it is told of the ends of those it names."""
    async with Federation(tmp_path / "fed") as fed:
        await fed.submit()
        node = fed.nodes["va"]
        await fed.until(lambda: bool(node._offers.accepted()))
        (first,) = node._offers.accepted()
        for number in range(MAX_SEEN + 1):
            later = first.decided_at + 1 + number
            run = RunId(f"run-{number}")
            node._offers.ended(replace(first, run_id=run, decided_at=later, ended="failed"))
        named = [one.run_id for one in node._seen()]
        assert len(named) == MAX_SEEN
        assert named[-2:] == [f"run-{MAX_SEEN}", first.run_id]
