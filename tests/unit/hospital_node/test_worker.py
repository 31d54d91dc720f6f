"""Work in threads ends at its next step, waits behind what is more urgent, and never piles up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from common.errors import RoundError
from common.features import Encoded
from common.models import initial
from hospital_node import worker as workers
from hospital_node.going_on import asked, go_on
from hospital_node.models import build
from hospital_node.models.rows import tiles
from hospital_node.train import take_steps
from hospital_node.worker import Worker
from tests.learning import study


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "work"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == []


class Steps:
    """Endless work in short steps, which counts them."""

    def __init__(self) -> None:
        self.taken = 0
        self.begun = threading.Event()
        self.enough = False

    def __call__(self) -> str:
        while not self.enough:
            go_on()
            self.taken += 1
            self.begun.set()
            time.sleep(0.002)
        return "done"


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.005)


async def test_a_closed_workers_job_has_ended_at_its_next_step_and_its_thread_is_gone() -> None:
    worker, work = Worker(), Steps()
    job = asyncio.create_task(worker.run(work))
    await until(work.begun.is_set)
    job.cancel()
    assert await worker.close()
    assert threads() == []
    taken = work.taken
    await asyncio.sleep(0.02)
    assert work.taken == taken


async def test_a_closed_worker_begins_nothing() -> None:
    worker, work = Worker(), Steps()
    assert await worker.close()
    with pytest.raises(RoundError, match="not wanted"):
        await worker.run(work)
    assert work.taken == 0


async def test_a_step_that_lasts_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LONGEST_END_S", 0.05)
    worker, leave = Worker(), threading.Event()
    job = asyncio.create_task(worker.run(lambda: leave.wait(10)))
    await until(lambda: bool(threads()))
    job.cancel()
    began = time.monotonic()
    assert not await worker.close()
    assert time.monotonic() - began < 1
    leave.set()


async def test_work_that_is_not_wanted_any_more_ends_and_the_next_begins() -> None:
    worker, work, unwanted = Worker(), Steps(), threading.Event()
    job = asyncio.create_task(worker.run(work, unwanted.is_set))
    await until(work.begun.is_set)
    following = asyncio.create_task(worker.run(lambda: 7))
    await asyncio.sleep(0.02)
    assert not following.done()
    unwanted.set()
    with pytest.raises(RoundError, match="not wanted"):
        await job
    assert await following == 7


async def test_work_behind_a_round_takes_no_step_while_the_round_has_one() -> None:
    rounds = Worker()
    behind, slow, urgent = Worker(behind=rounds), Steps(), Steps()
    job = asyncio.create_task(behind.run(slow))
    await until(slow.begun.is_set)
    first = asyncio.create_task(rounds.run(urgent))
    await until(urgent.begun.is_set)
    await asyncio.sleep(0.02)  # the step that it was in
    taken, other = slow.taken, urgent.taken
    await asyncio.sleep(0.1)
    assert slow.taken == taken
    assert urgent.taken > other
    urgent.enough = True
    assert await first == "done"
    await until(lambda: slow.taken > taken)
    slow.enough = True
    assert await job == "done"


async def test_work_that_waits_behind_a_round_ends_when_its_worker_is_closed() -> None:
    rounds = Worker()
    behind, slow, urgent = Worker(behind=rounds), Steps(), Steps()
    first = asyncio.create_task(rounds.run(urgent))
    await until(urgent.begun.is_set)
    job = asyncio.create_task(behind.run(slow))
    await until(lambda: len(threads()) == 2)
    job.cancel()
    assert await behind.close()
    assert slow.taken == 0
    assert len(threads()) == 1
    urgent.enough = True
    assert await first == "done"


# --- where learning asks --------------------------------------------------------------------


class Counted:
    """A check that ends the work when it is asked for the n-th time."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RoundError("RUN_CANCELLED", "enough")


@pytest.mark.parametrize("last", [0, 3])
def test_training_ends_between_two_steps(last: int) -> None:
    asked_for = study("\n  - {name: a, type: float}", model="{kind: mlp, hidden: [3]}")
    data = Encoded(np.eye(40, 1, dtype=np.float32), np.ones(40, np.float32))
    once, whole = (build(asked_for, initial(asked_for)) for _ in range(2))
    with asked(Counted(last)), pytest.raises(RoundError):
        take_steps(asked_for, whole, data, 1)
    if last:
        terms = asked_for.train.model_copy(update={"local_steps": last, "local_epochs": None})
        take_steps(asked_for, once, data, 1, terms=terms)
    for after, here in zip(whole.parameters(), once.parameters(), strict=True):
        assert after.equal(here)


def test_a_pass_over_rows_ends_between_two_tiles() -> None:
    with asked(Counted(2)), pytest.raises(RoundError):
        list(tiles(1000))
    assert len(list(tiles(1000))) == 4


def test_a_thread_is_asked_for_itself_alone() -> None:
    found: list[str] = []

    def other() -> None:
        go_on()
        found.append("went on")

    with asked(Counted(0)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with pytest.raises(RoundError):
            go_on()
    go_on()
    assert found == ["went on"]
