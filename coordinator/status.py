"""`fedcare coordinator status`: what is each site waiting for, on one screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from common.clock import SystemClock
from common.identity import Identity
from common.text import escape
from common.transport.status import remote_errors
from common.transport.tls import channel
from common.views import RoundView, RunView, SiteView, StatusView, WaitView
from common.wire_operations import decode_status
from fedcare.v1 import operations_pb2 as ops
from fedcare.v1 import operations_pb2_grpc

CALL_S: Final = 10.0
WIDTH: Final = 80
CELL: Final = 22
"""Characters of a line, and of a cell that is not its last."""

SHOWN_ROUNDS: Final = 3
SHOWN_NAMES: Final = 8


async def ask(address: str, identity: Identity, name: str | None = None) -> StatusView:
    """Return the status of the coordinator at `address`; `name`: as for `channel`.

    Raises:
        ConnectError, IdentityError: it does not answer, or not to this certificate.
    """
    identity.check_dates(SystemClock().unix())
    async with channel(address, identity, name=name) as link:
        stub = operations_pb2_grpc.OperationsStub(link)
        with remote_errors(address, identity, SystemClock()):
            return decode_status(await stub.GetStatus(ops.GetStatusRequest(), timeout=CALL_S))


def data_of(view: StatusView) -> dict[str, Any]:
    """Return the status for scripts: all that the screen shows, uncut."""
    return {
        "federation": view.federation,
        "software": view.software,
        "uptime_seconds": round(view.uptime_s, 1),
        "sites": [
            {
                "site": site.site,
                "connected": site.connected,
                "since_seconds": _rounded(site.since_s),
            }
            for site in view.sites
        ],
        "runs": [_run_data(run) for run in view.runs],
    }


def _run_data(run: RunView) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "study": run.study_id,
        "state": run.state.value,
        "paused": run.paused,
        "round": run.round,
        "rounds": run.rounds,
        "kind": run.kind,
        "open_seconds": _rounded(run.open_s),
        "seconds": _rounded(run.seconds),
        "wait": None if run.wait is None else _wait_data(run.wait),
        "sites": [
            {
                "site": site.site,
                "connected": site.connected,
                "state": site.state,
                "waiting_for": site.waiting_for,
                "objection": site.objection,
                "people": list(site.people),
            }
            for site in run.sites
        ],
        "last_rounds": [
            {
                "number": entry.number,
                "kind": entry.kind,
                "state": entry.state,
                "seconds": _rounded(entry.seconds),
                "dropped": list(entry.dropped),
                "reason": entry.reason,
            }
            for entry in _last(run)
        ],
    }


def _wait_data(wait: WaitView) -> dict[str, Any]:
    return {
        "waiting_for": list(wait.sites),
        "what": wait.what,
        "since_seconds": _rounded(wait.since_s),
        "left_seconds": _rounded(wait.left_s),
        "then": wait.then,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _last(run: RunView) -> tuple[RoundView, ...]:
    """Return the last rounds that ended, the latest first."""
    return run.history[: -SHOWN_ROUNDS - 1 : -1]


# --- for people -----------------------------------------------------------------------------


def screen(view: StatusView, now_unix: float) -> str:
    """Return the status for people: `WIDTH` columns, and 24 lines for one run of four hospitals."""
    here = sum(site.connected for site in view.sites)
    head = f"federation {view.federation}, fedcare {view.software}, up {_duration(view.uptime_s)}"
    lines = [f"{head}, {here} of {len(view.sites)} hospitals connected"]
    links: dict[str, str] = {site.site: _link(site) for site in view.sites}
    for run in view.runs:
        lines += ["", *_run(run, links, now_unix)]
    if not view.runs:
        rows = [(site.site, links[site.site]) for site in view.sites]
        lines += ["", "no run is open", "", *_table(("hospital", "link"), rows)]
    return "\n".join(_cut(escape(line), WIDTH) for line in lines)


def _link(site: SiteView) -> str:
    if site.since_s is None:
        return "up" if site.connected else "never seen"
    return f"{'up' if site.connected else 'away'} {_duration(site.since_s)}"


def _run(run: RunView, links: Mapping[str, str], now_unix: float) -> list[str]:
    rows = [
        (
            f"  {site.site}",
            links.get(site.site, "-"),
            site.state,
            site.objection or site.waiting_for or "-",
        )
        for site in run.sites
    ]
    lines = [
        *_heading(run),
        *_waits(run.wait, now_unix),
        "",
        *_table(("  hospital", "link", "doing", "waits for"), rows),
    ]
    if run.history:
        lines += ["", *_rounds(run)]
    return lines


def _heading(run: RunView) -> list[str]:
    """Say what is going on in a run: its state, and the round that is open or next."""
    state = "paused" if run.paused else run.state.value
    lines = [f"{run.run_id}", f"  {state} for {_duration(run.seconds)} since it was submitted"]
    number = min(run.round + 1, run.rounds)
    if run.open_s is not None:
        opened = f"round {number} of {run.rounds} ({run.kind}) open for {_duration(run.open_s)}"
        lines[-1] = f"  {state}, {opened}"
    elif run.kind:
        lines[-1] = f"  {state}, round {number} of {run.rounds} ({run.kind}) is next"
    return lines


def _waits(wait: WaitView | None, now_unix: float) -> list[str]:
    if wait is None:
        return ["  waits for nobody"]
    until = "until they come"
    if wait.left_s is not None:
        until = f"until {_clock(now_unix + wait.left_s)} (in {_duration(wait.left_s)})"
    names = ", ".join(wait.sites[:SHOWN_NAMES])
    if len(wait.sites) > SHOWN_NAMES:
        names += f" and {len(wait.sites) - SHOWN_NAMES} more"
    return [
        f"  waits for {names}",
        f"    {wait.what}, for {_duration(wait.since_s)}, {until}",
        f"    then: {wait.then}",
    ]


def _rounds(run: RunView) -> list[str]:
    rows = []
    for entry in _last(run):
        missing = ", ".join(entry.dropped) or "-"
        outcome = "closed" if entry.state == "CLOSED" else f"voided, {entry.reason}"
        rows.append((f"  {entry.number}", entry.kind, outcome, f"{entry.seconds:.1f} s", missing))
    return _table(("  round", "kind", "ended", "took", "dropped"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines of columns; all but the last are cut, so that the last one has room."""
    cut = [(*(_cut(cell, CELL) for cell in row[:-1]), row[-1]) for row in (head, *rows)]
    widths = [max(len(row[place]) for row in cut) for place in range(len(head) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in cut
    ]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _clock(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%H:%M:%S} UTC"


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
