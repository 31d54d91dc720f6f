"""What `fedcare coordinator backup` and `restore` show while they work, and at their end."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer

from common.clock import Clock
from common.commands import Outcome
from coordinator.backup import Made, Tell

EVERY_S: Final = 1.0


def progress(clock: Clock) -> Tell:
    """Return what prints a line of progress at most once a second, and one at the end."""
    last = float("-inf")

    def tell(name: str, done: int, total: int) -> None:
        nonlocal last
        now = clock.monotonic()
        if name and now - last < EVERY_S:
            return
        last = now
        share = 100 * done // total if total else 100
        line = f"{share:3} %  {done / 1e6:.1f} of {total / 1e6:.1f} MB  {name}"
        typer.echo(line.rstrip(), file=sys.stdout)

    return tell


def data_of(made: Made) -> dict[str, object]:
    """Return a backup for scripts."""
    return {
        "path": str(made.path),
        "manifest_sha256": made.manifest_sha256,
        "made_unix": made.body["made_unix"],
        "database": made.body["database"],
        "transactions": made.body["transactions"],
        "runs": made.body["runs"],
        "files": len(made.files),
        "bytes": made.size,
    }


_DUMP: Final = (
    "The database is PostgreSQL, which is not in it. Take `pg_dump --format=custom` of it first"
    " and this backup right after it, and keep the two together: a dump is consistent while the"
    " coordinator serves, and the last models that it names are still here a round later."
)


def backed_up(made: Made) -> Outcome:
    """Return the end of a backup."""
    runs = made.body["runs"]
    lines = [
        f"{made.path}: {len(made.files)} files, {made.size / 1e6:.1f} MB, {len(runs)} runs",
        f"{made.body['transactions']} transactions; every file's SHA-256 is in its manifest",
    ]
    if made.body["database"] != "sqlite":
        lines.append(_DUMP)
    return Outcome(data_of(made), "\n".join(lines))


def restored(made: Made, into: Path, now_unix: float) -> Outcome:
    """Return the end of a restore."""
    when = datetime.fromtimestamp(made.body["made_unix"], UTC)
    hours = (now_unix - made.body["made_unix"]) / 3600
    lines = [
        f"{into}: restored and verified, as of {when:%Y-%m-%d %H:%M:%S} UTC ({hours:.1f} hours ago)"
    ]
    if made.body["database"] != "sqlite":
        lines.append("Restore the dump of its PostgreSQL database as well (`pg_restore`).")
    lines.append(
        "Start the coordinator on it. What happened since is not in it: hospitals that saw more"
        " are refused, and it says so, until `fedcare coordinator accept-loss` takes that over."
    )
    return Outcome({**data_of(made), "state_dir": str(into)}, "\n".join(lines))
