"""A federation that has seen more studies than a message holds goes on as before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.ids import Epoch, RunId, hospital_id
from common.messages import MAX_SEEN, Welcome
from common.wire import decode_coordinator, encode_coordinator
from coordinator.history import witness
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
