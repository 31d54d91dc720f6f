"""How a serving coordinator is ended: once in order, twice at once."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from common.certificates import Role
from common.pki import create_ca, issue
from researcher.local import free_address
from tests.serving import ends_at_the_second, ends_in_order, said, serving

CONFIG = """\
schema: fedcare.coordinator/v1
federation: heart
listen: "ADDRESS"
http: null
members: [cleveland, hungarian, va]
"""

STUCK = """
def spoil():
    from coordinator.service import CoordinatorService

    async def close(self):
        print("stopping", flush=True)
        await asyncio.Event().wait()

    CoordinatorService.close = close
"""

FULL = """
def spoil():
    from common import state_folder
    from common.errors import NoRoom

    mark = state_folder.mark

    def marked(path, owner):
        if not (path.parent / "room").exists():
            raise NoRoom("owner.json: No space left on device")
        mark(path, owner)

    state_folder.mark = marked
"""
"""A disk with room for all of a first start but the last file, until there is a file `room`."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    now = time.time()
    create_ca(tmp_path / "pki", "heart", now_unix=now)
    own = tmp_path / "own"
    hosts = ("127.0.0.1",)
    issue(tmp_path / "pki", Role.COORDINATOR, "coordinator", now_unix=now, hosts=hosts, out=own)
    (own / "coordinator.yaml").write_text(CONFIG.replace("ADDRESS", free_address()))
    return own / "coordinator.yaml"


async def start(
    config: Path, how: str, spoil: str = STUCK, word: bytes = b"service.started"
) -> asyncio.subprocess.Process:
    child = await serving(spoil, how, "coordinator", "serve", "--config", str(config))
    await said(child.stderr, word)
    return child


@pytest.mark.fault("F16")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_one_signal_ends_a_coordinator_in_order_with_exit_code_0(
    config: Path, number: signal.Signals
) -> None:
    await ends_in_order(await start(config, "as it is"), number)
    assert not (config.parent / "state" / "address").exists()


@pytest.mark.fault("F16")
async def test_a_second_signal_ends_a_coordinator_that_does_not_come_to_its_end(
    config: Path,
) -> None:
    assert await ends_at_the_second(await start(config, "stuck"), signal.SIGTERM) == 1


@pytest.mark.fault("F36")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
async def test_one_signal_ends_a_coordinator_whose_start_waits_for_room(
    config: Path, number: signal.Signals
) -> None:
    """An order to drain as well: no round is open."""
    child = await start(config, "stuck", FULL, b"state.failed")
    told = await ends_in_order(child, number)
    assert (b"service.draining" in told) == (number == signal.SIGUSR1)
    assert b"service.started" not in told
    assert not (config.parent / "state" / "owner.json").exists()


@pytest.mark.fault("F36")
async def test_a_first_start_waits_for_room_for_its_last_file_too(config: Path) -> None:
    child = await start(config, "stuck", FULL, b"state.failed")
    (config.parent / "room").touch()
    await said(child.stderr, b"service.started")
    assert "coordinator" in (config.parent / "state" / "owner.json").read_text()
    await ends_in_order(child, signal.SIGTERM)
