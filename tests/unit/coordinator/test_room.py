"""What finds no room waits and is written once there is some; any other failure is final."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import NoRoom, StateError
from common.logs import make_log
from coordinator import room as module
from coordinator.failures import Failures, recorded
from coordinator.room import Room


class Disk:
    """A disk that is full so often."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.seen = ""

    async def write(self, room: Room) -> str:
        self.seen = room.why_not
        if self.times:
            self.times -= 1
            raise NoRoom("0 B are free")
        return "written"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST_S", 0.001)


def a_room(folder: Path) -> tuple[Room, ThreadPoolExecutor, io.StringIO]:
    words, disk, clock = io.StringIO(), ThreadPoolExecutor(1), ManualClock()
    return Room(Failures(folder), clock, make_log(words, clock=clock), disk), disk, words


async def test_a_write_waits_until_there_is_room(tmp_path: Path) -> None:
    room, thread, words = a_room(tmp_path)
    disk = Disk(times=4)
    assert await room.patiently(("run", "facts"), lambda: disk.write(room)) == "written"
    assert "0 B are free" in disk.seen
    assert room.why_not == ""
    thread.shutdown()
    assert [one.what for one in recorded(tmp_path)] == ["full", "room"]
    assert words.getvalue().count("state.failed") == 1
    assert words.getvalue().count("state.room") == 1


async def test_a_write_that_fails_in_another_way_is_not_tried_again(tmp_path: Path) -> None:
    room, _, _ = a_room(tmp_path)
    tries = 0

    async def write() -> None:
        nonlocal tries
        tries += 1
        raise StateError("DISK", "a flush failed")

    with pytest.raises(StateError, match="flush"):
        await room.patiently(("run", "facts"), write)
    assert tries == 1
    assert room.why_not == ""


async def test_there_is_room_when_nothing_waits_any_more(tmp_path: Path) -> None:
    """An upload is sent again by its hospital; its round may end before."""
    room, thread, _ = a_room(tmp_path)
    for what in (b"round", "a"), (b"round", "b"):
        with pytest.raises(NoRoom), room.attempt(what, lambda: True):
            raise NoRoom("0 B are free")
    with room.attempt((b"round", "a"), lambda: True):
        pass
    assert room.why_not
    room.drop(b"another round")
    assert room.why_not
    room.drop(b"round")
    assert room.why_not == ""
    thread.shutdown()
    assert [one.what for one in recorded(tmp_path)] == ["full", "room"]


async def test_an_upload_that_fails_after_its_round_leaves_nothing_waiting(tmp_path: Path) -> None:
    room, _, _ = a_room(tmp_path)
    room.drop(b"round")
    with pytest.raises(NoRoom), room.attempt((b"round", "a"), lambda: False):
        raise NoRoom("0 B are free")
    assert room.why_not == ""


async def test_who_is_cancelled_waits_no_longer(tmp_path: Path) -> None:
    room, _, _ = a_room(tmp_path)
    disk = Disk(times=10**9)
    job = asyncio.create_task(room.patiently(("run", "facts"), lambda: disk.write(room)))
    while not room.why_not:  # noqa: ASYNC110 - the job's own turn
        await asyncio.sleep(0)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    assert room.why_not == ""
