"""Fault F25 and F26: clocks that are wrong, of real processes (Debian's package faketime)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from common.certificates import Role
from researcher.processes import environment
from tests import forked
from tests.faults.network import CHUNK, CHUNK_WORDS, Network, everybody
from tests.faults.record import record
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
FAKETIME: Final = str(_LIBRARIES[0]) if _LIBRARIES else ""

needs_faketime = pytest.mark.skipif(not FAKETIME, reason="faketime is not installed")

ZYGOTE = Zygote("alembic.command", "sqlite3", "sqlalchemy.dialects.sqlite")

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        patch.setenv("LOG_FORMAT", "json")
        yield
    ZYGOTE.close()


def set_back(seconds: int, at: Path) -> None:
    """Order the clock of the processes that look at this file."""
    at.write_text(f"{seconds:+d}s\n", encoding="ascii")


def faked(order: Path) -> dict[str, str]:
    """Return an environment whose clock of the day is what the file says; durations are true."""
    return environment() | {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(order),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "LOG_FORMAT": "json",
    }


def node(folder: Path, env: dict[str, str], patience_s: float) -> str:
    """Run a node for a while in a process of its own; return what it said."""
    program = "import sys; from common.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", program, "node", "serve", "--config", "node.yaml"]
    with subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            return process.communicate(timeout=patience_s)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0]


@needs_faketime
@pytest.mark.fault("F25")
async def test_a_node_whose_clock_is_off_says_so_before_it_dials(tmp_path: Path) -> None:
    """Certificates that begin now for a clock that is behind; for one ahead, with an hour to go."""
    right = 0
    old_s = 2 * DAY_S - HOUR_S
    async with Network(tmp_path / "f", stay_away=frozenset({"va"}), old_s=old_s) as net:
        folder = net.plan.site_folder("va")
        cases = [
            (2 * HOUR_S, "CERT_INVALID", "if that clock is wrong, set it"),
            (3 * DAY_S, "CERT_INVALID", "if that clock is wrong, set it"),
            (-2 * HOUR_S, "CLOCK_OFF", "behind"),
            (-3 * DAY_S, "CLOCK_OFF", "behind"),
        ]
        for off_s, name, words in cases:
            if off_s == -2 * HOUR_S:
                net.issue(Role.HOSPITAL, "va", tmp_path / "issued")
                for kept in ("tls.crt", "tls.key"):
                    shutil.copy2(tmp_path / "issued" / kept, folder / kept)
            set_back(off_s, tmp_path / "clock")
            said = await asyncio.to_thread(node, folder, faked(tmp_path / "clock"), 20.0)
            right += name in said and words in said
            assert name in said, said
            assert words in said, said
        assert net.proxies["va"].accepted == 0, "it dialled"
        assert not net.log.lines("link.connected", site="va")
    record("F25", trials=len(cases), failures=len(cases) - right, right_share=right / len(cases))


@needs_faketime
@pytest.mark.fault("F26")
async def test_a_coordinators_clock_that_jumps_back_in_a_round_moves_no_deadline(
    tmp_path: Path,
) -> None:
    order, deadline_s = tmp_path / "clock", 8.0
    set_back(0, order)
    async with Network(
        tmp_path / "f", size=3 * CHUNK_WORDS, rounds=2, deadline=f"{deadline_s:g}s",
        coordinator=faked(order),
    ) as net:  # fmt: skip
        va = net.proxies["va"]
        va.up.bytes_per_s = CHUNK
        run = await net.submit()
        await net.uploading("va", CHUNK)
        va.hold()
        set_back(-HOUR_S, order)
        noticed = await net.log.until("clock.set")
        assert -HOUR_S - 2 < noticed["by_s"] < -HOUR_S + 2
        closed = await net.log.until("round.closed", round=1)
        assert closed["dropped"] == ["va"]
        assert deadline_s - 1 < closed["seconds"] < deadline_s + 4
        va.up.bytes_per_s = None
        va.go_on()
        set_back(0, order)
        view = await net.finish(run)
        assert not everybody(view)
        assert len(view.history[1].survivors) >= 3
        record(
            "F26", trials=1, failures=0, round_s=closed["seconds"], deadline_s=deadline_s,
            wrong_deadlines=0,
        )  # fmt: skip


def test_the_instrument_is_there_or_said_to_be_missing() -> None:
    """Where faketime is, it changes the day's clock and leaves durations alone."""
    if not FAKETIME:
        pytest.skip("faketime is not installed")
    program = "import time; print(time.time(), time.monotonic())"
    env = os.environ | {
        "LD_PRELOAD": FAKETIME, "FAKETIME": "-2h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"
    }  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert abs(float(said[0]) - time.time() + 2 * HOUR_S) < 30
    assert abs(float(said[1]) - time.monotonic()) < 30
