"""Fault F25 and F26: clocks that are wrong, of real processes (Debian's package faketime)."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from common.certificates import Role
from common.clock import ManualClock, SystemClock
from common.errors import IdentityError
from hospital_node.app import load_setup
from hospital_node.config import NodeConfig
from hospital_node.last_contact import NAME
from researcher.local import FederationPlan, SitePlan, build
from researcher.processes import environment
from tests import forked
from tests.faults.campaign import run_plan, scratch
from tests.faults.network import (
    CHUNK,
    CHUNK_WORDS,
    PATIENCE_S,
    Network,
    at,
    everybody,
    study_of,
    until,
)
from tests.faults.plan import Act, Fault, Plan
from tests.faults.record import record
from tests.federation import NAME as FEDERATION
from tests.federation import SITES
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
FAKETIME: Final = str(_LIBRARIES[0]) if _LIBRARIES else ""

needs_faketime = pytest.mark.skipif(not FAKETIME, reason="needs faketime: apt-get install faketime")

ZYGOTE = Zygote(*forked.SERVING)

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> FederationPlan:
    """A federation whose certificates begin now, and of which nothing has run."""
    root = tmp_path_factory.mktemp("clocks") / "f"
    study = study_of(size=8, rounds=1, deadline="60s")
    found = FederationPlan(root, FEDERATION, study, [SitePlan(site) for site in SITES])
    build(found, "127.0.0.1:1")
    return found


def set_back(seconds: int, at: Path) -> None:
    """Order the clock of the processes that look at this file."""
    at.write_text(f"{seconds:+d}s\n", encoding="ascii")


def faked(order: Path) -> dict[str, str]:
    """Return an environment whose clock of the day is what the file says; durations are true."""
    return environment() | {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(order),
        "FAKETIME_CACHE_DURATION": "1",  # looks at the file once a second, not at each call
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


HOURS_2, DAYS_3 = 2 * HOUR_S, 3 * DAY_S


@needs_faketime
@pytest.mark.fault("F25")
async def test_a_node_whose_clock_is_off_says_by_how_much_before_it_dials(tmp_path: Path) -> None:
    """Certificates that begin now for a clock that is behind; for one ahead, with an hour to go."""
    right, old_s = 0, 2 * DAY_S - HOUR_S
    async with Network(tmp_path / "f", old_s=old_s) as net:
        folder = net.plan.site_folder("va")
        await net.log.until("link.connected", site="va")
        await until((folder / "state" / NAME).exists)
        await net.federation.children.stop("va")
        dialled = net.proxies["va"].accepted
        cases = [
            (HOURS_2, "about 2 h ahead"),
            (DAYS_3, "about 3 days ahead"),
            (-HOURS_2, "about 2 h behind"),
            (-DAYS_3, "about 3 days behind"),
        ]
        for off_s, words in cases:
            if off_s == -HOURS_2:
                net.issue(Role.HOSPITAL, "va", tmp_path / "issued")
                for kept in ("tls.crt", "tls.key"):
                    shutil.copy2(tmp_path / "issued" / kept, folder / kept)
            set_back(off_s, tmp_path / "clock")
            said = await asyncio.to_thread(node, folder, faked(tmp_path / "clock"), PATIENCE_S)
            right += "CLOCK_OFF" in said and words in said
            assert "CLOCK_OFF" in said, said
            assert words in said, said
        assert net.proxies["va"].accepted == dialled, "it dialled"
    record(
        "F25", trials=len(cases), failures=len(cases) - right, told_right_share=right / len(cases)
    )


@pytest.mark.fault("F25")
@pytest.mark.parametrize(
    ("off_s", "name", "words"),
    [
        (HOURS_2, "CERT_INVALID", "expired 2 h ago by this machine's clock"),
        (DAYS_3, "CERT_INVALID", "expired 3 days ago by this machine's clock"),
        (-HOURS_2, "CLOCK_OFF", "at least 2 h behind"),
        (-DAYS_3, "CLOCK_OFF", "at least 3 days behind"),
    ],
)
def test_a_node_that_was_never_welcome_says_what_its_certificate_says(
    fresh: FederationPlan, off_s: float, name: str, words: str
) -> None:
    """Ahead, or a certificate that has ended: a machine alone cannot tell, and says both."""
    now = SystemClock().unix()
    config = NodeConfig.read(fresh.site_folder("va") / "node.yaml")
    at = now + off_s + (2 * DAY_S if off_s > 0 else 0)  # it begins now, and ends in two days
    with pytest.raises(IdentityError, match=words) as said:
        load_setup(config, ManualClock(epoch=at))
    assert said.value.name == name
    if off_s > 0:
        assert "if that clock is wrong, set it" in said.value.fix


@pytest.mark.fault("F25")
@pytest.mark.parametrize(("ahead_s", "words"), [(HOURS_2, "2 h ahead"), (-HOURS_2, "2 h behind")])
def test_a_clock_that_is_off_within_all_certificates_is_told_at_each_welcome(
    ahead_s: float, words: str
) -> None:
    """Nothing is refused for it: only certificates' dates decide."""
    wrong = Fault(Act.JUMP, "va", 0.5, ahead_s), Fault(Act.CUT, "va", 0.8)
    with scratch() as root:
        found = run_plan(root, Plan(1, wrong, 0.1))
    assert found.problem is None
    told = [line for line in found.words.splitlines() if '"clock.off"' in line]
    assert told, "no word of it"
    assert all(f"about {words}" in line and '"site": "va"' in line for line in told)


@needs_faketime
@pytest.mark.fault("F26")
async def test_a_coordinators_clock_that_jumps_back_in_a_round_moves_no_deadline(
    tmp_path: Path,
) -> None:
    order, deadline_s = tmp_path / "clock", 8.0
    set_back(0, order)
    async with Network(
        tmp_path / "f", size=CHUNK_WORDS, deadline=f"{deadline_s:g}s",
        coordinator=faked(order), old_s=2.0 * HOUR_S,
    ) as net:  # fmt: skip
        va = net.proxies["va"]
        va.up.bytes_per_s = CHUNK // 2
        run = await net.submit()
        await net.uploading("va", CHUNK // 4)
        va.hold()
        set_back(-HOUR_S, order)
        noticed = await net.log.until("clock.set")
        assert -HOUR_S - 2 < noticed["by_s"] < -HOUR_S + 2
        closed = await net.log.until("round.closed", round=1)
        assert closed["dropped"] == ["va"]
        assert deadline_s - 1 < closed["seconds"] < HOUR_S / 2, "the deadline is an hour off"
        va.up.bytes_per_s = None
        va.go_on()
        set_back(0, order)
        view = await net.finish(run)
        assert not everybody(view)
        record(
            "F26", trials=1, failures=0, round_s=closed["seconds"], deadline_s=deadline_s,
            wrong_deadlines=0,
        )  # fmt: skip


@needs_faketime
@pytest.mark.fault("F26")
async def test_a_coordinators_clock_that_runs_twice_as_fast_moves_no_deadline(
    tmp_path: Path,
) -> None:
    """By that clock the deadline would be over in half the time."""
    order, deadline_s = tmp_path / "clock", 8.0
    order.write_text("+0 x2\n", encoding="ascii")
    async with Network(
        tmp_path / "f", size=CHUNK_WORDS, deadline=f"{deadline_s:g}s", coordinator=faked(order),
        old_s=2.0 * HOUR_S,
    ) as net:  # fmt: skip
        va = net.proxies["va"]
        va.up.bytes_per_s = CHUNK // 2
        run = await net.submit()
        await net.uploading("va", CHUNK // 4)
        va.hold()
        closed = await net.log.until("round.closed", round=1)
        assert closed["dropped"] == ["va"]
        assert closed["seconds"] > deadline_s - 1
        by_that_clock = at(closed) - at(net.log.lines("round.opened", round=1)[0])
        assert by_that_clock > 1.5 * closed["seconds"], "the clock was right"
        va.up.bytes_per_s = None
        va.go_on()
        assert not everybody(await net.finish(run))
        record("F26", trials=1, failures=0, drift_round_s=closed["seconds"], wrong_deadlines=0)


def test_the_instrument_is_there_or_said_to_be_missing() -> None:
    """Where faketime is, it changes the day's clock and leaves durations alone."""
    if not FAKETIME:
        pytest.skip("needs faketime: apt-get install faketime")
    program = "import time; print(time.time(), time.monotonic())"
    env = os.environ | {
        "LD_PRELOAD": FAKETIME, "FAKETIME": "-2h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"
    }  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert abs(float(said[0]) - time.time() + 2 * HOUR_S) < 30
    assert abs(float(said[1]) - time.monotonic()) < 30
