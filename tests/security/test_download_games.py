"""A coordinator that plays with a download: gaps, overlaps, too much, and nothing for ever."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import Refusal, StateError
from common.ids import Sha256
from common.messages import DownloadChunk
from common.model_file import model_header
from common.vectors import ParameterSchema, TensorSpec, TensorType
from hospital_node.backoff import Backoff
from hospital_node.receive import ModelReceiver, take_all
from hospital_node.session import LinkSlot
from hospital_node.transfer import Road, download_small

SCHEMA = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (8,)),))
FILE = model_header(SCHEMA) + bytes(32)


def _piece(start: int, stop: int) -> DownloadChunk:
    return DownloadChunk(start, len(FILE), FILE[start:stop])


@pytest.mark.parametrize(
    "second",
    [
        _piece(41, 50),
        _piece(39, 50),
        _piece(0, 10),
        DownloadChunk(40, len(FILE), FILE[40:] + b"more"),
        DownloadChunk(40, len(FILE), b""),
        DownloadChunk(40, len(FILE) + 1, FILE[40:50]),
    ],
    ids=["gap", "overlap", "again", "too much", "nothing", "another size"],
)
def test_a_piece_that_does_not_follow_is_refused(tmp_path: Path, second: DownloadChunk) -> None:
    with ModelReceiver(tmp_path / "m", SCHEMA) as receiver:
        receiver.take(_piece(0, 40))
        with pytest.raises(Refusal) as found:
            receiver.take(second)
    assert found.value.name == "MODEL_HASH"


async def test_a_stream_of_empty_pieces_ends(tmp_path: Path) -> None:
    async def nothing() -> AsyncIterator[DownloadChunk]:
        while True:
            yield DownloadChunk(0, len(FILE), b"")

    with ModelReceiver(tmp_path / "m", SCHEMA) as receiver, pytest.raises(Refusal):
        await asyncio.wait_for(take_all(receiver, nothing()), 10)


async def test_a_small_file_in_empty_pieces_ends() -> None:
    class Nothing:
        async def download(self, _address: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
            while True:
                yield DownloadChunk(offset, 10, b"")

    slot = LinkSlot()
    slot.fill(cast("Any", Nothing()))
    road = Road(slot, asyncio.sleep, lambda: Backoff(lambda: 0.5))
    address = Sha256(hashlib.sha256(b"x").digest())
    with pytest.raises(StateError) as found:
        await asyncio.wait_for(download_small(road, address, 10), 10)
    assert found.value.name == "MODEL_INVALID"
