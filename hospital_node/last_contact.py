"""What a node can know of its clock before it dials (fault F25).

Every welcome carries the coordinator's time of day. It is kept, with how long this machine had
been up. Until the machine is started anew, the two tell what the time is now, whatever its clock
of the day says: "about 2 h ahead". After that, they tell only what it cannot be before: "at
least 2 h behind". A machine that never had a welcome knows what its certificate's dates say.

A machine that was suspended looks like one whose clock was set ahead: what counts how long it
was up stood still. So a node that sees its clock jump ahead knows no more of it than after a new
start of the machine (`doubt`), until the next welcome; one that was not there to see it says
"unless this machine was suspended since".

All of this is words. Whether a certificate is good is decided by its dates and this machine's
clock, never by what a coordinator said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from common import state_folder
from common.certificates import stamp
from common.clock import Clock
from common.documents import parse_json
from common.errors import FedError, IdentityError
from common.identity import OutOfDates, span

NAME: Final = "last-contact.json"
TOLERATED_S: Final = 300.0
"""Less is the road's delay, or drift that a time service corrects."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MOST_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Off:
    """`ahead_s`: by how much a clock is ahead, behind if below 0; `least`: or by more.

    `guessed`: it is as likely right, and the machine stood still in between.
    """

    ahead_s: float
    here: float
    least: bool = False
    guessed: bool = False

    def __str__(self) -> str:
        here = stamp(datetime.fromtimestamp(self.here, UTC))
        how = "at least" if self.least else "about"
        way = "ahead" if self.ahead_s > 0 else "behind"
        unless = ", unless this machine was suspended since" if self.guessed else ""
        return (
            f"this machine's clock ({here}) is {how} {span(abs(self.ahead_s))} {way}, by the"
            f" coordinator's time at the last contact{unless}"
        )


def off_by(ahead_s: float, clock: Clock, *, least: bool = False) -> Off | None:
    """Return how wrong the clock is; None if it is as right as one can tell."""
    return Off(ahead_s, clock.unix(), least) if abs(ahead_s) > TOLERATED_S else None


def keep(folder: Path, coordinator_unix: int, clock: Clock) -> None:
    """Remember the coordinator's time. Not flushed: losing it costs words.

    Raises:
        StateError: DISK.
    """
    _write(folder, coordinator_unix, clock.monotonic(), _boot())


def doubt(folder: Path) -> None:
    """Forget how long the machine had been up: its clock has jumped ahead of that.

    Raises:
        StateError: DISK.
    """
    found = _read(folder)
    if found is not None:
        unix, up_s, _ = found
        _write(folder, unix, up_s, "")


def _write(folder: Path, unix: float, up_s: float, boot: str) -> None:
    path = folder / NAME
    temporary = path.with_name(path.name + ".part")
    with state_folder.disk_errors(path):
        temporary.write_text(json.dumps({"unix": unix, "up_s": up_s, "boot": boot}), "ascii")
        temporary.replace(path)


def _read(folder: Path) -> tuple[float, float, object] | None:
    try:
        with (folder / NAME).open("rb") as file:
            found = parse_json(file.read(_MOST_BYTES), NAME).data
        return float(found["unix"]), float(found["up_s"]), found["boot"]
    except (OSError, FedError, KeyError, TypeError, ValueError):
        return None


def known_off(folder: Path, clock: Clock) -> Off | None:
    """Return how wrong this machine's clock is by what is remembered; None: it does not tell."""
    found = _read(folder)
    if found is None:
        return None
    unix, up_s, boot = found
    since_s = clock.monotonic() - up_s
    if boot and boot == _boot() and since_s >= 0:
        off = off_by(clock.unix() - unix - since_s, clock)
        return replace(off, guessed=True) if off is not None and off.ahead_s > 0 else off
    return off_by(min(0.0, clock.unix() - unix), clock, least=True)


def explained(failure: FedError, folder: Path, clock: Clock) -> FedError:
    """Return a failure that is about dates as what it is: of this machine's clock, if it is."""
    if isinstance(failure, OutOfDates):
        off = known_off(folder, clock)
        if off is not None and abs(off.ahead_s) >= failure.by_s:
            fix = "Set the clock."
            if off.guessed:
                fix = "Set the clock; if it is right, renew the certificate."
            return IdentityError("CLOCK_OFF", f"{off}; {failure.detail}", fix=fix)
    return failure


def _boot() -> str:
    """Return what names this start of the machine; empty where nothing does."""
    try:
        return _BOOT.read_text("ascii").strip()
    except OSError:
        return ""
