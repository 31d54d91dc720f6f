"""A caller with many downloads gets one at a time; others do not wait behind all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from common.messages import CHUNK_BYTES
from tests.security.desk import Desk


async def test_many_downloads_of_one_caller_leave_turns_for_others(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    address = desk.shop.objects.put(bytes(3 * CHUNK_BYTES))
    greedy = [desk.service.download(address, 0, "greedy") for _ in range(8)]
    first = [asyncio.ensure_future(anext(stream)) for stream in greedy]
    await asyncio.sleep(0.01)
    assert sum(task.done() for task in first) == 1
    got = [piece async for piece in desk.service.download(address, 0, "modest")]
    assert len(got) == 3
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    for stream in greedy:
        await stream.aclose()  # type: ignore[attr-defined]
    assert [len(p.data) async for p in desk.service.download(address, CHUNK_BYTES, "greedy")]
    await desk.close()
