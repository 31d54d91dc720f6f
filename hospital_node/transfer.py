"""Bulk in and out over connections that may break: resume, never start over (P5, F24).

Both directions keep their place: a download asks from the byte it has, an upload from
the chunk the coordinator names. Attempts that fail wait with the same full jitter as
reconnects do; one that got further than those before it makes the next wait a short one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import ConfigError, DataError, FedError, Refusal, StateError
from common.ids import Sha256
from common.messages import UploadAck, UploadStart
from common.secagg.messages import ResumeState, UploadEnd
from hospital_node.backoff import Backoff
from hospital_node.contribution import read_chunks
from hospital_node.link import Link, closing
from hospital_node.receive import ModelReceiver, take_all
from hospital_node.session import LinkSlot, Sleep

DIGEST_TRIES: Final = 3
"""How often an upload that arrived altered is sent again before the node gives up."""

_LASTING: Final = (Refusal, StateError, DataError, ConfigError)
"""Failures that a later attempt meets again, but for `_PASSING`; all others may pass."""

_PASSING: Final = frozenset({"UPLOAD_DIGEST"})


@dataclass(frozen=True, slots=True)
class Road:
    """How to reach the coordinator and how to wait."""

    slot: LinkSlot
    sleep: Sleep
    backoff: Callable[[], Backoff]
    moved: Callable[[], None] = lambda: None
    """Told that a connection brought a transfer further: dialling again is worth while."""


async def download(road: Road, address: Sha256, receiver: ModelReceiver) -> Sha256:
    """Fetch an object by content address; return the `model_sha256` of what came.

    Raises:
        Refusal: MODEL_HASH or MODEL_RANGE; the partial file is discarded.
        StateError: DISK.
    """
    backoff = road.backoff()
    while not receiver.complete:
        link = await road.slot.get()
        before, asked_s = receiver.offset, 0.0
        try:
            async with closing(link.download(address, before)) as pieces:
                await take_all(receiver, pieces)
        except FedError as failure:
            if not _may_pass(failure):
                receiver.discard()
                raise
            asked_s = failure.retry_s
        if receiver.complete:
            break
        if receiver.offset > before:
            backoff.succeeded()
            road.moved()
        await road.sleep(backoff.failed(asked_s))
    return receiver.finish()


async def download_small(road: Road, address: Sha256, size: int) -> bytes:
    """Fetch a small object of a known size, whole, into memory.

    Raises:
        StateError: MODEL_INVALID, what came is not what the digest says.
        FedError: the coordinator refuses it for good.
    """
    backoff = road.backoff()
    while True:
        link = await road.slot.get()
        data = bytearray()
        try:
            async with closing(link.download(address, 0)) as pieces:
                async for piece in pieces:
                    data += piece.data
                    if piece.total != size or len(data) >= size or not piece.data:
                        break
        except FedError as failure:
            if not _may_pass(failure):
                raise
            asked_s = failure.retry_s
        else:
            if len(data) != size or Sha256(hashlib.sha256(data).digest()) != address:
                raise StateError("MODEL_INVALID", "a file of the release is not the manifest's")
            return bytes(data)
        await road.sleep(backoff.failed(asked_s))


async def upload(
    road: Road,
    start: UploadStart,
    path: Path,
    end: UploadEnd,
    resume: Callable[[Link], Awaitable[ResumeState]],
    *,
    fresh: bool,
) -> None:
    """Stream a durable masked vector until the coordinator holds all of it.

    `resume` asks the coordinator how far it got: before every attempt but the very
    first one (`fresh`).

    Raises:
        Refusal: the coordinator will not take it (for example UPLOAD_LATE).
        StateError: STATE_DAMAGED, the file is gone.
    """
    backoff = road.backoff()
    altered = arrived = 0
    while True:
        link = await road.slot.get()
        try:
            state = ResumeState(start.hd, 0, done=False) if fresh else await resume(link)
            fresh = False
            if state.done:
                return
            if state.next_chunk > arrived:
                arrived = state.next_chunk
                backoff.succeeded()
                road.moved()
            begin = UploadStart(start.task, start.hd, state.next_chunk)
            async with closing(read_chunks(path, state.next_chunk)) as chunks:
                _check_ack(await link.upload(begin, chunks, end), end)
        except FedError as failure:
            altered += failure.name == "UPLOAD_DIGEST"
            # Sending writes nothing here: the full disk is the coordinator's, and may have room.
            passing = _may_pass(failure) or failure.name == "DISK"
            if not passing or altered >= DIGEST_TRIES:
                raise
            asked_s = failure.retry_s
        else:
            return
        await road.sleep(backoff.failed(asked_s))


def _check_ack(ack: UploadAck, end: UploadEnd) -> None:
    if (ack.hd, ack.ydig) != (end.hd, end.ydig):
        raise Refusal("UPLOAD_DIGEST", "the coordinator acknowledged other bytes than were sent")


def _may_pass(failure: FedError) -> bool:
    return not isinstance(failure, _LASTING) or failure.name in _PASSING
