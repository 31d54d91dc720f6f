"""Real processes: a hospital that hangs and one that is killed are named while the round is open.

The coordinator's log says at once what the round does now, `status` shows it, and the line
that closes the round names who is not in its sum. One that comes back is one line.
The processes are forks of `tests.zygote`.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.identity import load_identity
from common.study import canonical_json
from researcher.client import Client
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from tests import forked
from tests.small_study import small_study, write_table
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

SITES = ("east", "north", "south", "west")
TIMING = {"enrolment_grace": "2s", "setup": "5s", "gather": "500ms", "heartbeat": "2s"}

ZYGOTE = Zygote(*forked.WORKING)


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        yield
    ZYGOTE.close()


Line = dict[str, Any]


class Watch:
    """Reads the coordinator's log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed = 0

    def _all(self) -> list[Line]:
        text = self._path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def forget(self) -> None:
        """Look only at what is written from now on."""
        self._passed = len(self._all())

    def lines(self, event: str) -> list[Line]:
        return [line for line in self._all()[self._passed :] if line["event"] == event]

    async def until(self, event: str, fits: Callable[[Line], bool]) -> Line:
        async with asyncio.timeout(40):
            while True:
                for line in self.lines(event):
                    if fits(line):
                        return line
                await asyncio.sleep(0.05)


def any_line(_: Line) -> bool:
    return True


def trained_by_all(line: Line) -> bool:
    return bool(line["round"] >= 4 and line["survivors"] == len(SITES))


@pytest.mark.fault("F21")
@pytest.mark.timeout(120)
async def test_the_log_names_a_hospital_that_hangs_and_one_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_FORMAT", "json")
    study = small_study(1200, 3, deadline="12s", local_steps=400)  # a second or so a round
    tables = [SitePlan(site, write_table(tmp_path / f"{site}.csv", 1)) for site in SITES]
    plan = FederationPlan(tmp_path / "fed", "heart", study, tables, TIMING)
    address = free_address()
    build(plan, address)
    async with LocalFederation(plan, address) as federation:
        await federation.start()
        me = load_identity(plan.researcher_folder, now_unix=SystemClock().unix())
        async with Client(address, me) as client:
            await client.submit(canonical_json(study))
            log = Watch(federation.children["coordinator"].words)
            await log.until("round.closed", trained_by_all)

            # --- it hangs: the connection stays up, nothing comes any more
            north = federation.children["north"].process
            log.forget()
            number = (await log.until("round.opened", any_line))["round"]
            north.send_signal(signal.SIGSTOP)
            lost = await log.until("link.lost", lambda line: line["site"] == "north")
            assert (lost["level"], lost["reason"]) == ("warning", "silent for 6 s")
            assert (lost["round"], lost["what"]) == (number, "upload")
            assert lost["until"] > lost["time"][:19]
            config = plan.coordinator_folder / "coordinator.yaml"
            code, screen, _ = await forked.run(
                ZYGOTE, ["coordinator", "status", "--config", str(config)]
            )
            assert code == 0
            assert "waits for north" in screen
            assert len(screen.splitlines()) <= 24
            assert max(map(len, screen.splitlines())) <= 80
            closed = await log.until("round.closed", lambda line: line["round"] >= number)
            assert (closed["round"], closed["dropped"]) == (number, ["north"])
            assert closed["survivors"] == 3

            # --- it comes back
            north.send_signal(signal.SIGCONT)
            back = await log.until("link.connected", lambda line: line["site"] == "north")
            assert back["away_s"] > 0
            log.forget()
            await log.until("round.closed", trained_by_all)

            # --- another one is killed
            south = federation.children["south"]
            log.forget()
            number = (await log.until("round.opened", any_line))["round"]
            south.process.send_signal(signal.SIGKILL)
            await south.ended
            lost = await log.until("link.lost", lambda line: line["site"] == "south")
            assert (lost["round"], lost["what"]) == (number, "upload")
            assert "reason" not in lost
            closed = await log.until("round.closed", lambda line: line["round"] >= number)
            assert (closed["round"], closed["dropped"]) == (number, ["south"])
