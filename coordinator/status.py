"""`fedcare coordinator status`: what is each site waiting for, on one screen."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from common.clock import SystemClock
from common.identity import Identity
from common.text import escape
from common.transport.status import remote_errors
from common.transport.tls import channel
from common.views import RunView, SiteView, StatusView
from common.wire_operations import decode_status
from fedcare.v1 import operations_pb2 as ops
from fedcare.v1 import operations_pb2_grpc

CALL_S = 10.0


async def ask(address: str, identity: Identity) -> StatusView:
    """Return the status of the coordinator at `address`.

    Raises:
        ConnectError, IdentityError: it does not answer, or not to this certificate.
    """
    identity.check_dates(SystemClock().unix())
    async with channel(address, identity) as link:
        stub = operations_pb2_grpc.OperationsStub(link)
        with remote_errors(address, identity, SystemClock()):
            return decode_status(await stub.GetStatus(ops.GetStatusRequest(), timeout=CALL_S))


def data_of(view: StatusView) -> dict[str, Any]:
    """Return the status for scripts; digests as hexadecimal text."""
    runs = [
        {
            "run": run.run_id,
            "study": run.study_id,
            "state": run.state.value,
            "round": run.round,
            "rounds": run.rounds,
            "seconds": round(run.seconds, 3),
            "sites": [asdict(site) for site in run.sites],
        }
        for run in view.runs
    ]
    return {
        "federation": view.federation,
        "software": view.software,
        "uptime_seconds": round(view.uptime_s, 1),
        "sites": [{"site": site.site, "connected": site.connected} for site in view.sites],
        "runs": runs,
    }


def screen(view: StatusView) -> str:
    """Return the status for people."""
    here = [site.site for site in view.sites if site.connected]
    away = [site.site for site in view.sites if not site.connected]
    lines = [
        f"federation {view.federation}, fedcare {view.software}, up {_duration(view.uptime_s)}",
        f"connected  {', '.join(here) or 'nobody'}",
        f"away       {', '.join(away) or 'nobody'}",
    ]
    for run in view.runs:
        lines += ["", *_run(run)]
    if not view.runs:
        lines += ["", "no run is open"]
    return "\n".join(lines)


def _run(run: RunView) -> list[str]:
    head = f"{run.run_id}  {run.state.value}, {run.round} of {run.rounds} rounds done"
    width = max(len(site.site) for site in run.sites)
    return [f"{head}, {_duration(run.seconds)}", *(_site(site, width) for site in run.sites)]


def _site(site: SiteView, width: int) -> str:
    text = f"  {site.site:<{width}}  {site.state:<14}"
    if site.waiting_for:
        text += f"  waits for {site.waiting_for}"
    if site.objection:
        text += f"  ({escape(site.objection)})"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"
