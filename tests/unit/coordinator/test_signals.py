"""How a serving coordinator is ended: once in order, twice at once."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from common.certificates import Role
from common.pki import create_ca, issue
from researcher.local import free_address

CONFIG = """\
schema: fedcare.coordinator/v1
federation: heart
listen: "ADDRESS"
http: null
members: [cleveland, hungarian, va]
"""

STUCK = """
import asyncio, sys
from coordinator.service import CoordinatorService

async def close(self):
    print("stopping", flush=True)
    await asyncio.Event().wait()

if sys.argv.pop(1) == "stuck":
    CoordinatorService.close = close
from common.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command itself; with `stuck`, a coordinator that never finishes stopping."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    now = time.time()
    create_ca(tmp_path / "pki", "heart", now_unix=now)
    own = tmp_path / "own"
    hosts = ("127.0.0.1",)
    issue(tmp_path / "pki", Role.COORDINATOR, "coordinator", now_unix=now, hosts=hosts, out=own)
    (own / "coordinator.yaml").write_text(CONFIG.replace("ADDRESS", free_address()))
    return own / "coordinator.yaml"


async def start(config: Path, how: str) -> asyncio.subprocess.Process:
    serve = ("coordinator", "serve", "--config", str(config))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK, how, *serve,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await said(child.stderr, b"service.started")
    return child


async def said(stream: asyncio.StreamReader | None, word: bytes) -> None:
    assert stream is not None
    async with asyncio.timeout(60):
        while word not in (line := await stream.readline()):
            assert line, f"it ended without saying {word!r}"


@pytest.mark.fault("F16")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_ends_a_coordinator_in_order_with_exit_code_0(
    config: Path, number: signal.Signals
) -> None:
    child = await start(config, "as it is")
    child.send_signal(number)
    async with asyncio.timeout(30):
        _, rest = await child.communicate()
    assert child.returncode == 0
    assert rest.index(b"service.stopping") < rest.index(b"service.stopped")
    assert b"Traceback" not in rest
    assert not (config.parent / "state" / "address").exists()


@pytest.mark.fault("F16")
async def test_a_second_signal_ends_a_coordinator_that_does_not_come_to_its_end(
    config: Path,
) -> None:
    child = await start(config, "stuck")
    child.send_signal(signal.SIGTERM)
    await said(child.stdout, b"stopping")
    assert child.returncode is None
    child.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        assert await child.wait() == 1
