"""The fault proxy itself: each thing that it says it does to a connection, it does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from common.address import split_address
from tests.faults.proxy import Proxy

SENT = bytes(range(256)) * 400


@contextlib.asynccontextmanager
async def _echo() -> AsyncIterator[str]:
    """Serve what sends everything back."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _exchange(proxy: Proxy, data: bytes = SENT, patience_s: float = 5.0) -> bytes:
    """Send through the proxy; return what came back until the end, or until it broke."""
    try:
        reader, writer = await asyncio.open_connection(*split_address(proxy.address))
    except OSError:
        return b""
    back = bytearray()

    async def send() -> None:
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(patience_s):
            with contextlib.suppress(OSError):
                while piece := await reader.read(1 << 16):
                    back += piece
    except TimeoutError:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()
    return bytes(back)


async def test_it_carries_bytes_unchanged_and_counts_them() -> None:
    async with _echo() as target, Proxy(target) as proxy:
        assert await _exchange(proxy) == SENT
        assert (proxy.up.bytes, proxy.down.bytes, proxy.accepted) == (len(SENT), len(SENT), 1)


async def test_latency_and_a_slow_line_take_the_time_they_should() -> None:
    async with _echo() as target, Proxy(target) as proxy:
        proxy.up.latency_s, proxy.up.jitter_s = 0.2, 0.05
        proxy.down.bytes_per_s = 200_000
        began = time.monotonic()
        assert await _exchange(proxy) == SENT
        assert 0.15 + len(SENT) / 200_000 <= time.monotonic() - began < 5.0


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_blackhole_passes_nothing_until_it_ends(way: str) -> None:
    async with _echo() as target, Proxy(target) as proxy:
        held = proxy.up if way == "up" else proxy.down
        held.hold()
        going = asyncio.create_task(_exchange(proxy))
        await asyncio.sleep(0.2)
        assert held.bytes == 0
        held.go_on()
        assert await going == SENT


@pytest.mark.parametrize("truncate", [False, True])
async def test_a_connection_is_cut_after_its_bytes(*, truncate: bool) -> None:
    async with _echo() as target, Proxy(target) as proxy:
        proxy.truncate = truncate
        proxy.cut_after = lambda: 1_000
        assert len(await _exchange(proxy)) <= 1_000
        assert (proxy.cuts, proxy.up.bytes + proxy.down.bytes) == (1, 1_000)
        proxy.cut_after = lambda: None
        assert await _exchange(proxy) == SENT


async def test_one_bit_is_turned_once() -> None:
    async with _echo() as target, Proxy(target) as proxy:
        proxy.flip(proxy.up, at=70_000)
        back = await _exchange(proxy)
        assert [n for n, (a, b) in enumerate(zip(SENT, back, strict=True)) if a != b] == [70_000]
        assert await _exchange(proxy) == SENT
        assert proxy.up.flipped == 1


async def test_half_open_tells_the_near_end_nothing_and_a_reset_tells_it() -> None:
    async with _echo() as target, Proxy(target) as proxy:
        reader, writer = await asyncio.open_connection(*split_address(proxy.address))
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        proxy.half_open()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.close()
        reader, writer = await asyncio.open_connection(*split_address(proxy.address))
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), 2.0)
        writer.close()


async def test_a_recording_is_what_went_up_and_can_be_sent_again() -> None:
    async with _echo() as target, Proxy(target) as proxy:
        proxy.records = True
        assert await _exchange(proxy, b"session") == b"session"
        while proxy.connections:  # noqa: ASYNC110 - the proxy's own end of it
            await asyncio.sleep(0.01)
        assert proxy.recordings == [b"session"]
        with pytest.raises(TimeoutError):  # this target does not end it
            await proxy.replay(b"session", patience_s=0.2)


async def test_it_leads_elsewhere_or_refuses_when_told() -> None:
    async with _echo() as first, _echo() as second, Proxy(first) as proxy:
        proxy.refusing = True
        assert await _exchange(proxy) == b""
        proxy.refusing, proxy.target = False, second
        assert await _exchange(proxy) == SENT
