"""A start that finds the disk full waits for room, as a coordinator that runs does.

    service = await once_there_is_room(room, state_dir, begin, stopped, drained)

Nothing is served meanwhile: there is no state to answer from. It says `state.failed` once, holds
the state directory, and goes on by itself; SIGTERM ends the wait, and so does an order to drain,
for no round is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from common.errors import NoRoom, StateError
from common.state_folder import disk_errors, free_bytes
from coordinator.room import Room
from coordinator.whereabouts import ADDRESS_FILE

ADDRESS_BYTES: Final = 300
"""A host name of 255 letters and a port, and more."""

ROOM_TO_START: Final = 1 << 20
"""Bytes; with less a database that cannot be opened is one without room."""

T = TypeVar("T")


def reserve_address(state_dir: Path) -> None:
    """Take the room that `announce` needs, before any call is taken.

    Raises:
        NoRoom: there is none.
        StateError: DISK.
    """
    with disk_errors(state_dir / ADDRESS_FILE):
        (state_dir / f".{ADDRESS_FILE}").write_bytes(b" " * ADDRESS_BYTES)


def announce(state_dir: Path, address: str) -> None:
    """Say where this coordinator listens. Raises OSError."""
    temporary = state_dir / f".{ADDRESS_FILE}"
    with temporary.open("r+b") as file:  # in its place: that takes no room
        file.write(f"{address}\n".encode("ascii"))
        file.truncate()
    temporary.rename(state_dir / ADDRESS_FILE)


async def once_there_is_room(
    room: Room,
    state_dir: Path,
    begin: Callable[[], T],
    stopped: asyncio.Event,
    drained: asyncio.Event,
) -> T | None:
    """Return what `begin` does as soon as the disk has room for it; None if told to stop first.

    Being told to drain ends a wait for room, and nothing else: a start that has room goes on.

    Raises:
        StateError: it failed for another reason.
    """
    waits = asyncio.Event()

    async def attempt() -> T:
        try:
            return begin()
        except StateError as failure:
            waits.set()
            # By a database's word a disk without room has failed. To try again is to start again:
            # this process has acknowledged nothing yet that a failed write may have lost.
            if failure.name == "DISK" and free_bytes(state_dir) < ROOM_TO_START:
                raise NoRoom(failure.detail) from failure
            raise

    async def drain() -> None:
        await waits.wait()
        await drained.wait()

    trying = asyncio.create_task(room.patiently(("start", "state"), attempt))
    ends = asyncio.create_task(stopped.wait()), asyncio.create_task(drain())
    try:
        await asyncio.wait({trying, *ends}, return_when=asyncio.FIRST_COMPLETED)
        return trying.result() if trying.done() else None
    finally:
        for task in (trying, *ends):
            task.cancel()
        await asyncio.gather(trying, *ends, return_exceptions=True)
