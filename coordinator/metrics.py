"""What a coordinator tells Prometheus.

`TABLE` is the whole of it; the runbook shows the same table. Counters of rounds and refusals
follow from the event log, bytes from the service's own tally, gauges from a `Picture` that
the event loop leaves behind at each beat. Label values are members of the configuration,
kinds, states, and codes of the catalogue; nothing here is one hospital's count, loss or
figure (fault F87). `fedcare_round_dropouts_total` counts rounds, not records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.events import Event
from common.exposition import (
    BUILD_INFO,
    CERTIFICATE,
    FREE,
    ROUND_KINDS,
    Kind,
    Metric,
    Registry,
    Samples,
    code_of,
    kind_of,
    plain,
    process_samples,
)
from common.ids import NodeId, site_name
from common.pulse import Pulse
from common.views import RunPhase
from coordinator.run_state import RunState
from coordinator.run_step import fewest, round_is_open
from coordinator.service import CoordinatorService
from coordinator.waits import wait_of

RUN_STATES: Final = ("enrolling", "running", "paused", "finished", "failed", "cancelled")
"""Where a run stands, for people who watch many: setting up and releasing count as running.

Paused: too few hospitals are connected; the run goes on by itself when they return.
"""

OUTCOMES: Final = ("closed", "voided")

_CONNECTED: Final = "fedcare_hospital_connected"
_RUNS: Final = "fedcare_runs"
_ROUNDS: Final = "fedcare_rounds_total"
_DURATION: Final = "fedcare_round_duration_seconds"
_DROPOUTS: Final = "fedcare_round_dropouts_total"
_OPEN_FOR: Final = "fedcare_round_open_seconds"
_TIME_LEFT: Final = "fedcare_round_deadline_seconds"
_WAITED_FOR: Final = "fedcare_hospitals_waited_for"
_UP: Final = "fedcare_upload_bytes_total"
_DOWN: Final = "fedcare_download_bytes_total"
_CALLS: Final = "fedcare_calls_refused_total"
_PROTOCOL: Final = "fedcare_protocol_refusals_total"
_PUBLISHED: Final = "fedcare_models_published_total"
_SUPPRESSED: Final = "fedcare_log_lines_suppressed_total"

_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM
TABLE: Final = (
    BUILD_INFO,
    Metric(_CONNECTED, _G, ("site",), "1 while the member's control stream is up, else 0."),
    Metric(_RUNS, _G, ("state",), "Runs in each state, ended ones included."),
    Metric(_ROUNDS, _C, ("kind", "outcome"), "Rounds that ended since the start."),
    Metric(_DURATION, _H, ("kind",), "Seconds from a round's header to its close; closed ones."),
    Metric(_DROPOUTS, _C, ("site",), "Closed rounds whose sum is without this member of theirs."),
    Metric(_OPEN_FOR, _G, (), "Age of the oldest open round; 0 if none is open."),
    Metric(_TIME_LEFT, _G, (), "Time left of the open round that ends first; 0 if none is open."),
    Metric(_WAITED_FOR, _G, (), "Hospitals that open runs wait for now."),
    Metric(_UP, _C, (), "Bytes of masked vectors received, broken uploads included."),
    Metric(_DOWN, _C, (), "Bytes of models sent, broken downloads included."),
    Metric(_CALLS, _C, ("code",), "Calls refused before they had any effect."),
    Metric(_PROTOCOL, _C, ("code",), "Steps refused by a rule of the protocol, by either side."),
    Metric(_PUBLISHED, _C, (), "Releases signed."),
    CERTIFICATE,
    FREE,
    Metric(_SUPPRESSED, _C, (), "Log lines left out because too many of their kind came."),
)
"""Every metric of a coordinator, but for those of any process (`process_*`, `python_info`)."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the event loop saw at its last beat; names are site names."""

    not_ready: str
    """Why no calls are taken, in one line; empty if they are."""
    connected: frozenset[str]
    runs: Mapping[str, int]
    """State -> how many; every state is there."""
    open_s: float
    left_s: float
    waited_for: int
    bytes_up: int
    bytes_down: int


def take_picture(service: CoordinatorService, not_ready: str, now: float) -> Picture:
    """Return the service as it is; inside the event loop only. `now`: monotonic seconds."""
    states = service.states
    counted = [*map(_state_of, states), *(phase.value for phase in service.ended_before)]
    open_rounds = [
        (now - state.round_began, state.round.header.deadline_ms / 1000)
        for state in states
        if not state.phase.final and state.round is not None and state.round.header is not None
    ]
    waits = [wait for state in states if (wait := wait_of(state)) is not None]
    awaited: frozenset[NodeId] = frozenset().union(*(wait.nodes for wait in waits))
    return Picture(
        not_ready=not_ready,
        connected=frozenset(site_name(node) for node in service.connected),
        runs={name: counted.count(name) for name in RUN_STATES},
        open_s=max((age for age, _ in open_rounds), default=0.0),
        left_s=min((max(0.0, limit - age) for age, limit in open_rounds), default=0.0),
        waited_for=len(awaited),
        bytes_up=service.traffic.up,
        bytes_down=service.traffic.down,
    )


def _state_of(state: RunState) -> str:
    if state.phase.final or state.phase is RunPhase.ENROLLING:
        return state.phase.value
    return "paused" if state.paused or _too_few(state) else "running"


def _too_few(state: RunState) -> bool:
    """Whether no round can open because hospitals are away; an open one goes on to its end."""
    if state.phase is RunPhase.RELEASING or round_is_open(state):
        return False
    return len(state.accepted & state.connected) < fewest(state)


class CoordinatorMetrics:
    """Counts what the log says; `read` adds the gauges once the service is there."""

    def __init__(self, members: tuple[str, ...]) -> None:
        self._members = frozenset(members)
        self._registry = Registry(TABLE)
        make = self._registry.counter
        self._rounds = make(_ROUNDS)
        self._dropouts = make(_DROPOUTS)
        self._calls = make(_CALLS)
        self._protocol = make(_PROTOCOL)
        self._published = make(_PUBLISHED)
        self._suppressed = make(_SUPPRESSED)
        self._durations = self._registry.histogram(_DURATION)
        for kind in ROUND_KINDS:  # a series that is there from the start has no gap to explain
            self._durations.labels(kind)
            for outcome in OUTCOMES:
                self._rounds.labels(kind, outcome)
        for site in members:
            self._dropouts.labels(site)

    def observe(self, event: Event, _level: str, fields: Mapping[str, object]) -> None:
        """Count a line of the log; see `common.logs.make_log`."""
        match event:
            case Event.ROUND_CLOSED | Event.ROUND_VOIDED:
                self._round_ended(fields, closed=event is Event.ROUND_CLOSED)
            case Event.CALL_REFUSED:
                self._calls.labels(code_of(fields.get("code"))).inc()
            case Event.PROTOCOL_REFUSED:
                self._protocol.labels(code_of(fields.get("code"))).inc()
            case Event.MODEL_PUBLISHED:
                self._published.inc()
            case Event.LOG_SUPPRESSED:
                left_out = fields.get("lines")
                self._suppressed.inc(left_out if isinstance(left_out, int) else 0)
            case _:
                pass

    def _round_ended(self, fields: Mapping[str, object], *, closed: bool) -> None:
        kind = kind_of(fields.get("kind"))
        self._rounds.labels(kind, "closed" if closed else "voided").inc()
        if not closed:
            return
        seconds, dropped = fields.get("seconds"), fields.get("dropped")
        if isinstance(seconds, int | float):
            self._durations.labels(kind).observe(seconds)
        for site in dropped if isinstance(dropped, tuple) else ():
            if site in self._members:
                self._dropouts.labels(site).inc()

    def read(self, pulse: Pulse[Picture], state_dir: Path, not_after: int) -> None:
        """Have the gauges read from the pulse at each scrape."""
        self._registry.read_at_scrape(
            lambda: {
                **process_samples(state_dir, not_after),
                **self._samples(pulse.last),
            }
        )

    def _samples(self, seen: Picture) -> Samples:
        here = sorted(self._members)
        return {
            _CONNECTED: [((site,), float(site in seen.connected)) for site in here],
            _RUNS: [((name,), seen.runs[name]) for name in RUN_STATES],
            _OPEN_FOR: plain(seen.open_s),
            _TIME_LEFT: plain(seen.left_s),
            _WAITED_FOR: plain(seen.waited_for),
            _UP: plain(seen.bytes_up),
            _DOWN: plain(seen.bytes_down),
        }

    def text(self) -> str:
        """Return everything in Prometheus' text form; from any thread."""
        return self._registry.text()
