"""A whole federation over a road that breaks: connections, messages, hospitals.

Whatever happens, every opened sum is the exact integer sum of its survivors, and where
nobody dropped out the model is the undisturbed run's to the last bit.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from common.ids import hospital_id
from common.messages import (
    BeginEpoch,
    DownloadChunk,
    Hello,
    ReleaseNotice,
    ReleaseReceipt,
    StudyDecision,
    StudyOffer,
    UploadChunk,
    Welcome,
)
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Kem,
    KemForward,
    KeyAdvert,
    Propose,
    Ready,
    Release,
    Roster,
    RoundResult,
    RoundStart,
    UploadEnd,
)
from common.views import RunPhase
from coordinator.run_state import RunState
from tests.federation import CHUNK_BYTES, NAME, SITES, Federation, names

THREE_CHUNKS = 2 * CHUNK_BYTES // 4 + 1000
"""Words of a vector that travels in three chunks."""


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The final model's digest when nothing goes wrong."""

    async def run() -> bytes:
        async with Federation(tmp_path_factory.mktemp("fed") / "f") as fed:
            return model_of(await fed.run())

    return asyncio.run(run())


def model_of(run: RunState) -> bytes:
    assert run.model is not None
    return run.model.model_sha256


def survivors(run: RunState) -> list[set[str]]:
    return [names(record.survivors) for record in run.history if record.opened]


# --- nothing goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
async def test_the_sums_are_exact_and_every_hospital_keeps_the_model(
    tmp_path: Path, suite: str, undisturbed: bytes
) -> None:
    async with Federation(tmp_path / "f", suite=suite) as fed:
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES)] * 2
        assert model_of(run) == undisturbed  # whatever the keys were
        assert names(run.receipts) == set(SITES)
        for site in SITES:
            kept = fed.plan.site_folder(site) / "state" / "releases" / run.run_id
            assert (kept / "model.safetensors").is_file()
        spool = fed.plan.coordinator_folder / "state" / "spool"
        assert list(spool.iterdir()) == []


# --- the road ------------------------------------------------------------------------------------


MESSAGES = (
    Hello,
    Welcome,
    StudyOffer,
    StudyDecision,
    BeginEpoch,
    KeyAdvert,
    Roster,
    Kem,
    KemForward,
    Confirm,
    Ready,
    RoundStart,
    DownloadChunk,
    UploadChunk,
    UploadEnd,
    Propose,
    Commit,
    Certificate,
    Release,
    RoundResult,
    ReleaseNotice,
    ReleaseReceipt,
)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
async def test_a_connection_that_breaks_at_any_message_changes_nothing(
    tmp_path: Path, kind: type, undisturbed: bytes
) -> None:
    """The message is lost with its connection; the hospital dials again and it goes on."""
    async with Federation(tmp_path / "f", suite="hybrid", gather="5s") as fed:
        fed.on_send("hungarian", kind, fed.cut)
        run = await fed.run()
        fed.check(run)
        assert [rule.used for rule in fed.rules] == [True]
        assert survivors(run) == [set(SITES)] * 2
        assert model_of(run) == undisturbed


@pytest.mark.parametrize(
    "kind",
    [StudyDecision, KeyAdvert, Kem, Confirm, Ready, UploadEnd, Commit, Release, ReleaseReceipt],
    ids=lambda kind: kind.__name__,
)
async def test_an_answer_that_is_lost_is_not_counted_twice(
    tmp_path: Path, kind: type, undisturbed: bytes
) -> None:
    """The message arrived, and then the connection broke."""
    async with Federation(tmp_path / "f", suite="hybrid", gather="5s") as fed:
        fed.on_send("va", kind, fed.cut, late=True)
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES)] * 2
        assert model_of(run) == undisturbed


@pytest.mark.fault("F31")
async def test_every_message_twice_changes_nothing(tmp_path: Path, undisturbed: bytes) -> None:
    async with Federation(tmp_path / "f", suite="hybrid") as fed:
        fed.copies = 2
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES)] * 2
        assert model_of(run) == undisturbed


@pytest.mark.parametrize("seed", range(8))
async def test_delays_repetitions_and_broken_connections_in_any_order_change_nothing(
    tmp_path: Path, seed: int, undisturbed: bytes
) -> None:
    """Messages of different hospitals overtake each other; connections break at random."""
    chance = np.random.default_rng(seed)
    async with Federation(tmp_path / "f", gather="5s", suite="hybrid") as fed:

        async def jostle() -> None:
            for _ in range(int(chance.integers(0, 12))):
                await asyncio.sleep(0)
            fed.copies = 1 + int(chance.random() < 0.2)
            if chance.random() < 0.03:
                await fed.cut(SITES[int(chance.integers(0, 4))])

        fed.jostle = jostle
        run = await fed.run()
        fed.check(run)
        if all(len(record.survivors) == 4 for record in run.history) and len(run.history) == 2:
            assert model_of(run) == undisturbed


# --- uploads that break off ----------------------------------------------------------------------


@pytest.mark.fault("F24")
@pytest.mark.parametrize("sent", [0, 1, 2])
async def test_a_broken_upload_goes_on_where_it_stopped(tmp_path: Path, sent: int) -> None:
    async with Federation(tmp_path / "f", size=THREE_CHUNKS, rounds=1, gather="5s") as fed:
        fed.on_send("cleveland", UploadChunk, fed.cut, skip=sent)
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES)]
        _sent_once(fed)


async def test_a_node_killed_in_mid_upload_sends_the_rest_and_nothing_again(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", size=THREE_CHUNKS, rounds=1, gather="5s") as fed:
        fed.on_send("cleveland", UploadChunk, fed.crash, skip=2)
        run = await fed.run()
        fed.check(run)
        assert fed.crashes == 1
        assert survivors(run) == [set(SITES)]
        _sent_once(fed)


async def test_a_coordinator_killed_in_mid_upload_keeps_what_it_has(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", size=THREE_CHUNKS, rounds=1, gather="5s") as fed:

        async def crash(_site: str) -> None:
            fed.later(fed.restart_coordinator())
            await fed.cut("cleveland")

        fed.on_send("cleveland", UploadChunk, crash, skip=2)
        run = await fed.run()
        fed.check(run)
        assert fed.crashes == 1
        assert survivors(run) == [set(SITES)]
        _sent_once(fed)
        assert len(fed.chunks_sent) <= 4 * 3 + 4  # the others': at most the chunk in flight


async def test_the_coordinators_spool_is_checked_after_its_crash(tmp_path: Path) -> None:
    """Bytes altered on the coordinator's disk are noticed, and the upload is sent again."""
    async with Federation(tmp_path / "f", size=THREE_CHUNKS, rounds=1, gather="5s") as fed:

        async def spoil(_site: str) -> None:
            await fed.kill_coordinator()
            spool = fed.plan.coordinator_folder / "state" / "spool"
            (file,) = spool.glob("*/cleveland")
            with file.open("r+b") as opened:
                opened.write(b"\x00" * 64)
            fed.start_coordinator()

        async def spoil_soon(site: str) -> None:
            fed.later(spoil(site))
            await fed.cut(site)

        fed.on_send("cleveland", UploadChunk, spoil_soon, skip=2)
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES)]


def _sent_once(fed: Federation) -> None:
    """Demand that cleveland sent every chunk, and again at most the one that was in flight."""
    chunks = [index for site, _, index in fed.chunks_sent if site == "cleveland"]
    assert chunks in ([0, 1, 2], [0, 0, 1, 2], [0, 1, 1, 2])


# --- hospitals that vanish ------------------------------------------------------------------------


STEPS = {
    "before it is ready": (Ready, False),
    "in training": (RoundStart, False),
    "in mid-upload": (UploadChunk, False),
    "before the end of its upload": (UploadEnd, False),
    "after its upload": (UploadEnd, True),
    "at the proposal": (Propose, False),
    "after its commit": (Commit, True),
    "at the certificate": (Certificate, False),
}
COUNTED = {"after its upload", "at the proposal", "after its commit", "at the certificate"}
"""Steps from which on its upload is in the sum, whatever becomes of it."""


@pytest.mark.parametrize("step", STEPS)
async def test_one_hospital_may_vanish_at_any_step_and_the_round_still_closes(
    tmp_path: Path, step: str
) -> None:
    kind, late = STEPS[step]
    size = THREE_CHUNKS if kind is UploadChunk else 300
    async with Federation(tmp_path / "f", size=size, deadline="1s") as fed:
        skip = 1 if kind is UploadChunk else 0
        fed.on_send("switzerland", kind, fed.kill, skip=skip, late=late)
        run = await fed.run()
        fed.check(run)
        others = set(SITES) - {"switzerland"}
        assert survivors(run) == [set(SITES) if step in COUNTED else others, others]
        assert len(run.history) == 2  # not one round was voided
        assert names(run.receipts) == others


async def test_a_hospital_that_comes_back_takes_part_in_the_next_round(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", rounds=3, deadline="1s", gather="20s") as fed:
        fed.on_send("switzerland", RoundStart, fed.kill)

        async def back(_site: str) -> None:
            fed.start("switzerland")

        fed.on_send("va", RoundResult, back)
        run = await fed.run()
        fed.check(run)
        assert survivors(run) == [set(SITES) - {"switzerland"}, set(SITES), set(SITES)]


@pytest.mark.parametrize("kind", [RoundStart, UploadEnd], ids=["in training", "in upload"])
@pytest.mark.fault("F20")
async def test_two_that_vanish_void_the_round_and_it_is_made_up_for_when_they_return(
    tmp_path: Path, kind: type
) -> None:
    async with Federation(tmp_path / "f", deadline="1s", gather="20s") as fed:
        for site in ("hungarian", "va"):
            fed.on_send(site, kind, fed.kill)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.history))
        voided = fed.state.history[0]
        assert (voided.opened, voided.reason, voided.position) == (False, "NOT_ENOUGH", 1)
        assert (voided.survivors, voided.sum_sha256, voided.model_sha256) == ((), b"", b"")
        before = fed.state.model
        assert fed.state.phase is RunPhase.RUNNING
        assert "round.voided" in fed.words.getvalue()
        for site in ("hungarian", "va"):
            fed.start(site)
        run = await fed.finish()
        fed.check(run)
        assert survivors(run) == [set(SITES)] * 2
        starts = [record.position for record in run.history]
        assert starts[:2] == [1, 1]
        assert before is not None


@pytest.mark.fault("F20")
async def test_below_the_quorum_the_run_waits_and_nothing_is_opened(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", deadline="1s") as fed:
        for site in ("hungarian", "va"):
            fed.on_send(site, Commit, fed.kill)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.history))
        assert not fed.state.history[0].opened
        view = fed.driver.view() if fed.driver is not None else None
        assert view is not None
        assert {site.site for site in view.sites if not site.connected} == {"hungarian", "va"}
        assert {s.waiting_for for s in view.sites if not s.connected} == {"its connection"}
        for site in ("hungarian", "va"):
            fed.start(site)
        fed.check(await fed.finish())


# --- people ----------------------------------------------------------------------------


async def test_a_run_can_be_cancelled_and_the_study_submitted_again(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f") as fed:
        await fed.submit()
        await fed.until(lambda: fed.state.round is not None)
        assert fed.service is not None
        assert fed.run_id is not None
        view = await fed.service.cancel(fed.run_id, "operator ann: wrong data")
        assert (view.state, view.reason) == (RunPhase.CANCELLED, "operator ann: wrong data")
        first = fed.run_id
        await fed.submit(request="request-2")
        assert fed.run_id != first
        fed.check(await fed.finish())


async def test_a_second_run_that_makes_the_same_models_leaves_the_first_ones_release(
    tmp_path: Path,
) -> None:
    """Files are named by their contents: what one run lets go another may have released."""
    async with Federation(tmp_path / "f", rounds=2) as fed:
        first = await fed.run()
        fed.study = fed.study.model_copy(
            update={"federation": fed.study.federation.model_copy(update={"rounds": 6})}
        )
        await fed.submit(request="request-2")
        second = await fed.finish()
        fed.check(second)
        assert second.history[1].model_sha256 == first.history[1].model_sha256
        assert first.model is not None
        objects = fed.plan.coordinator_folder / "state" / "objects"
        assert (objects / first.model.object_sha256.hex()).exists()
        models = {record.model_sha256 for record in second.history}
        assert len(models) == 6
        large = [path for path in objects.iterdir() if path.stat().st_size > 1000]
        before = len(large)
        # The same after a restart: what is released stays, what is past does not come back.
        await fed.restart_coordinator()
        await fed.until(lambda: fed.driver is not None)
        assert (objects / first.model.object_sha256.hex()).exists()
        assert len([path for path in objects.iterdir() if path.stat().st_size > 1000]) == before


async def test_the_same_request_again_is_the_same_run(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f") as fed:
        await fed.submit()
        first = fed.run_id
        await fed.submit()
        assert fed.run_id == first
        await fed.restart_coordinator()
        await fed.submit()
        assert fed.run_id == first
        fed.check(await fed.finish())


async def test_nothing_is_said_on_a_new_stream_before_its_welcome(tmp_path: Path) -> None:
    """A hospital whose stream is new is told what it needs after Hello, not before."""
    async with Federation(tmp_path / "f") as fed:
        await fed.run()
        assert fed.service is not None
        node = hospital_id(NAME, "va")
        outbox = fed.service.connect(node)
        fed.service._shop.hub.send(node, "pattern", RoundResultLike)
        await fed.service.receive(node, "", Hello("fedcare", 1, ()))
        fed.service._shop.hub.disconnect(outbox)
        said = [step async for _, step in outbox.messages()]
        assert isinstance(said[0], Welcome)


RoundResultLike = BeginEpoch("run-1", "pattern", 1, 0, 1)  # type: ignore[arg-type]
