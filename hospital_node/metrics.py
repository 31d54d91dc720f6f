"""What a node tells Prometheus, on its own machine only.

`TABLE` is the whole of it; the runbook shows the same table. Rounds and durations follow from
the event log, the rest from a `Picture` that the event loop leaves behind at each beat. No
label comes from the coordinator, and nothing here is a count of records, a loss or a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    kind_of,
    plain,
    process_samples,
)
from common.pulse import Pulse
from hospital_node.picture import Picture

OUTCOMES: Final = ("opened", "voided", "refused")

_CONNECTED: Final = "fedcare_node_connected"
_ROUNDS: Final = "fedcare_node_rounds_total"
_TRAINING: Final = "fedcare_node_training_duration_seconds"
_ATTEMPTS: Final = "fedcare_node_link_attempts_total"
_STUDIES: Final = "fedcare_node_studies"

TABLE: Final = (
    BUILD_INFO,
    Metric(_CONNECTED, Kind.GAUGE, (), "1 while the coordinator's session is up, else 0."),
    Metric(
        _ROUNDS,
        Kind.COUNTER,
        ("kind", "outcome"),
        "Rounds that ended here, or whose header this node refused.",
    ),
    Metric(
        _TRAINING,
        Kind.HISTOGRAM,
        ("kind",),
        "Seconds from a round's accepted header to its masked input.",
    ),
    Metric(_ATTEMPTS, Kind.COUNTER, (), "Dials of the coordinator, successful ones included."),
    Metric(_STUDIES, Kind.GAUGE, ("decision",), "Studies this hospital has decided on."),
    CERTIFICATE,
    FREE,
)
"""Every metric of a node, but for those of any process (`process_*`, `python_info`)."""


class NodeMetrics:
    """Counts what the log says; `read` adds the gauges once the node is there."""

    def __init__(self) -> None:
        self._registry = Registry(TABLE)
        self._rounds = self._registry.counter(_ROUNDS)
        self._training = self._registry.histogram(_TRAINING)
        for kind in ROUND_KINDS:
            self._training.labels(kind)
            for outcome in OUTCOMES:
                self._rounds.labels(kind, outcome)

    def observe(self, event: Event, _level: str, fields: Mapping[str, object]) -> None:
        """Count a line of the log; see `common.logs.make_log`."""
        kind = fields.get("kind")
        if kind is None:
            return
        match event:
            case Event.ROUND_CLOSED:
                opened = fields.get("status") == "opened"
                self._rounds.labels(kind_of(kind), "opened" if opened else "voided").inc()
            case Event.PROTOCOL_REFUSED:
                self._rounds.labels(kind_of(kind), "refused").inc()
            case Event.UPLOAD_STARTED:
                seconds = fields.get("trained_s")
                if isinstance(seconds, int | float):
                    self._training.labels(kind_of(kind)).observe(seconds)
            case _:
                pass

    def read(self, pulse: Pulse[Picture], state_dir: Path, not_after: int) -> None:
        """Have the gauges read from the pulse at each scrape."""
        self._registry.read_at_scrape(
            lambda: {**process_samples(state_dir, not_after), **_samples(pulse.last)}
        )

    def text(self) -> str:
        """Return everything in Prometheus' text form; from any thread."""
        return self._registry.text()


def _samples(seen: Picture) -> Samples:
    decided = ((("accepted",), float(seen.accepted)), (("refused",), float(seen.refused)))
    return {
        _CONNECTED: plain(seen.connected),
        _ATTEMPTS: plain(seen.attempts),
        _STUDIES: decided,
    }
