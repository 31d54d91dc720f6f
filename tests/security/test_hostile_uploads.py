"""A hospital that misuses the upload: its own bytes after they were counted, and others' turns."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import Refusal
from common.ids import NodeId, Sha256
from common.messages import CHUNK_BYTES, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.wire import UploadPart
from tests.security.desk import BIG, Desk


def _stored(desk: Desk, node: NodeId, end: UploadEnd) -> bytes:
    header = desk.driver.state.round
    assert header is not None
    file = desk.driver.spool_file(node, end.hd)
    return file.path.read_bytes()


async def test_bytes_that_were_counted_cannot_be_replaced(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    await desk.send(node, body, end)
    other = bytes(len(body))
    for _ in range(2):  # the first attempt must not empty the file for the second
        with pytest.raises(Refusal) as found:
            await desk.send(node, other, replace(end, ydig=Sha256(hashlib.sha256(other).digest())))
        assert found.value.name == "UPLOAD_DIGEST"
    assert _stored(desk, node, end) == body
    await desk.send(node, body, end)  # the same one again is acknowledged again
    await desk.close()


async def test_bytes_that_were_counted_survive_a_restart_and_another_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    await desk.send(node, body, end)
    desk.shop.spool._open.clear()  # a new process knows what the file holds, not what it was
    with pytest.raises(Refusal):
        await desk.send(node, body, replace(end, ydig=Sha256(bytes(32))))
    assert _stored(desk, node, end) == body
    await desk.close()


async def test_two_ends_at_once_leave_the_bytes_of_the_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    desk.driver.spool_file(node, end.hd).append(0, body)
    wrong = replace(end, ydig=Sha256(bytes(32)))
    first, second = await asyncio.gather(
        desk.driver.finish_upload(node, end),
        desk.driver.finish_upload(node, wrong),
        return_exceptions=True,
    )
    assert first == UploadAck(end.hd, end.ydig)
    assert isinstance(second, Refusal)
    assert _stored(desk, node, end) == body
    await desk.close()


async def test_a_newer_upload_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    node, body, end = desk.upload_of(0)
    older = asyncio.create_task(desk.send(node, body, end))
    await asyncio.sleep(0)
    await desk.send(node, body, end)
    with pytest.raises(Refusal) as found:
        await older
    assert found.value.name == "BUSY"
    assert desk.service._uploads == {}
    await desk.close()


async def test_a_stream_of_chunks_that_are_already_here_ends(tmp_path: Path) -> None:
    desk = Desk(tmp_path, BIG)
    node, body, end = desk.upload_of(0)

    async def endless() -> AsyncIterator[UploadPart]:
        yield UploadStart("pattern", end.hd, 0)
        while True:
            yield UploadChunk(0, body[:CHUNK_BYTES])

    with pytest.raises(Refusal) as found:
        await asyncio.wait_for(desk.service.upload(node, endless()), 20)
    assert found.value.name == "UPLOAD_SIZE"
    await desk.close()


async def test_one_hospital_cannot_take_every_turn(tmp_path: Path) -> None:
    desk = Desk(tmp_path, BIG)
    node, body, end = desk.upload_of(0)
    quiet = asyncio.Event()

    async def busy() -> AsyncIterator[UploadPart]:
        yield UploadStart("pattern", end.hd, 0)
        yield UploadChunk(0, body[:CHUNK_BYTES])
        await quiet.wait()

    streams = [asyncio.create_task(desk.service.upload(node, busy())) for _ in range(4)]
    await asyncio.sleep(0)
    other = desk.upload_of(1)
    # Far below the patience after which a stalled stream lends its turn.
    await asyncio.wait_for(desk.send(*other), 0.4)
    for stream in streams:
        stream.cancel()
    ended = await asyncio.gather(*streams, return_exceptions=True)
    names = {one.name for one in ended if isinstance(one, Refusal)}
    assert names <= {"BUSY"}
    await desk.close()
