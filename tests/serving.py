"""A service as a process of its own that never finishes stopping, if it is told so at its start."""

from __future__ import annotations

import asyncio
import sys

STUCK = """
import asyncio, sys
{spoil}
if sys.argv.pop(1) == "stuck":
    spoil()
from common.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command itself; with `stuck`, after `spoil`."""

PATIENCE_S = 60.0


async def serving(spoil: str, how: str, *command: str) -> asyncio.subprocess.Process:
    """Start `fedcare` with a command; `spoil` defines the function `spoil`, called if `stuck`."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK.format(spoil=spoil), how, *command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def said(stream: asyncio.StreamReader | None, word: bytes) -> None:
    """Wait for a line with a word."""
    assert stream is not None
    async with asyncio.timeout(PATIENCE_S):
        while word not in (line := await stream.readline()):
            assert line, f"it ended without saying {word!r}"


async def ends_in_order(child: asyncio.subprocess.Process, number: int) -> bytes:
    """Send a signal, and demand that the service says both that it stops and that it has.

    Returns what it said from then on.
    """
    child.send_signal(number)
    async with asyncio.timeout(PATIENCE_S):
        _, rest = await child.communicate()
    assert child.returncode == 0
    assert rest.index(b"service.stopping") < rest.index(b"service.stopped")
    assert b"Traceback" not in rest
    return rest


async def ends_at_the_second(child: asyncio.subprocess.Process, number: int) -> int:
    """Send a signal twice, to a service that then says `stopping`; return its exit code."""
    child.send_signal(number)
    await said(child.stdout, b"stopping")
    assert child.returncode is None
    child.send_signal(number)
    async with asyncio.timeout(PATIENCE_S):
        return await child.wait()
