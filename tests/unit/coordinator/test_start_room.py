"""A start without room waits for some, ends the wait when told to stop, and nothing else waits."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import NoRoom, StateError
from common.logs import make_log
from coordinator import room as room_module
from coordinator import start_room as module
from coordinator.failures import Failures
from coordinator.room import Room
from coordinator.start_room import announce, once_there_is_room, reserve_address
from coordinator.whereabouts import ADDRESS_FILE


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(room_module, "RETRY_FIRST_S", 0.001)
    clock = ManualClock()
    log = make_log(io.StringIO(), clock=clock)
    return Room(Failures(tmp_path), clock, log, ThreadPoolExecutor(1))


@pytest.mark.parametrize(
    "failure", [NoRoom("full"), StateError("DISK", "coordinator.db: disk I/O error")]
)
async def test_a_start_is_tried_again_until_there_is_room(
    tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch, failure: StateError
) -> None:
    """Also where the database's word for it is another than "full"."""
    monkeypatch.setattr(module, "free_bytes", lambda _: 0)
    left = [failure, failure]

    def begin() -> str:
        if left:
            raise left.pop()
        return "begun"

    assert (
        await once_there_is_room(room, tmp_path, begin, asyncio.Event(), asyncio.Event()) == "begun"
    )


@pytest.mark.parametrize("name", ["DISK", "STATE_DAMAGED"])
async def test_a_start_that_fails_although_there_is_room_or_for_another_reason_has_failed(
    tmp_path: Path, room: Room, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 40 if name == "DISK" else 0)

    def begin() -> None:
        raise StateError(name, "broken")

    with pytest.raises(StateError) as failed:
        await once_there_is_room(room, tmp_path, begin, asyncio.Event(), asyncio.Event())
    assert failed.value.name == name


@pytest.mark.parametrize("order", ["stop", "drain"])
async def test_who_is_told_to_stop_or_to_drain_waits_no_longer(
    tmp_path: Path, room: Room, order: str
) -> None:
    told = {"stop": asyncio.Event(), "drain": asyncio.Event()}

    def begin() -> str:
        told[order].set()
        raise NoRoom("full")

    async with asyncio.timeout(60):
        assert await once_there_is_room(room, tmp_path, begin, *told.values()) is None
    assert room.why_not == ""


async def test_an_order_to_drain_keeps_no_start_that_has_room_from_going_on(
    tmp_path: Path, room: Room
) -> None:
    """A round may be open in what it finds: that one is finished before it ends."""
    drained = asyncio.Event()
    drained.set()
    assert await once_there_is_room(room, tmp_path, str, asyncio.Event(), drained) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "x" * 255])
def test_the_address_takes_the_room_that_was_reserved_for_it(tmp_path: Path, host: str) -> None:
    reserve_address(tmp_path)
    reserved = (tmp_path / f".{ADDRESS_FILE}").stat()
    announce(tmp_path, f"{host}:65535")
    told = (tmp_path / ADDRESS_FILE).stat()
    assert told.st_ino == reserved.st_ino
    assert told.st_size <= reserved.st_size
    assert (tmp_path / ADDRESS_FILE).read_text() == f"{host}:65535\n"
