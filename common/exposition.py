"""Metrics in Prometheus' text form: what coordinator and node share.

A service declares its metrics as a table of `Metric`s; the runbook's table and a test are
made from the same. Names follow Prometheus' conventions: base units, `_total` for counters.
A label's values come from closed sets that exist before the first peer connects: members of
the configuration, kinds of rounds, codes of the catalogue. No metric tells one hospital's
count, loss or figure from another's (fault F87).

Counters and histograms follow from the event log (`Counts.observe`); gauges are read from
the pulse's last picture when somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from common.errors import BY_CODE, CATALOGUE
from common.state_folder import free_bytes
from common.version import VERSION


class Kind(StrEnum):
    """Prometheus' kinds of metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of a service's table."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""Upper bounds of duration histograms: a toy round in a test to a night's training."""

ROUND_KINDS: Final = ("statistics", "train", "evaluate")
"""Kinds of rounds that a run has."""

BUILD_INFO: Final = Metric("fedcare_build_info", Kind.GAUGE, ("version",), "Always 1.")
CERTIFICATE: Final = Metric(
    "fedcare_certificate_expiry_timestamp_seconds",
    Kind.GAUGE,
    (),
    "Unix time at which this process' certificate ends.",
)
FREE: Final = Metric(
    "fedcare_state_free_bytes",
    Kind.GAUGE,
    (),
    "Bytes this user may still write where the state directory lies.",
)
OTHER: Final = "other"
"""Label value of whatever is not in its closed set."""

Sample = tuple[tuple[str, ...], float]
"""Label values and a number."""

Samples = Mapping[str, Iterable[Sample]]
"""Metric name -> its samples."""


def plain(number: float) -> tuple[Sample, ...]:
    """Return the samples of a metric without labels."""
    return (((), number),)


def code_of(found: object) -> str:
    """Return the code that a log line's `code` field means: FC-nnnn, or `other`.

    A peer's refusal comes with a name of its choice; only those of the catalogue count.
    """
    if not isinstance(found, str):
        return OTHER
    if found in BY_CODE:
        return found
    kind = CATALOGUE.get(found)
    return OTHER if kind is None else kind.code


def kind_of(found: object) -> str:
    """Return a round's kind, or `other`."""
    return found if isinstance(found, str) and found in ROUND_KINDS else OTHER


class _Pictured:
    """A collector of what is read at the time of a scrape."""

    def __init__(self, metrics: Mapping[str, Metric], read: Callable[[], Samples]) -> None:
        self._metrics = metrics
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield one family for each metric read."""
        for name, samples in self._read().items():
            metric = self._metrics[name]
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(name, metric.meaning, labels=metric.labels)
            for labels, number in samples:
                family.add_metric(list(labels), number)
            yield family

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yield nothing: the registry need not read anything to know the names."""
        return iter(())


class Registry:
    """A service's metrics, and those of its process."""

    def __init__(self, table: Iterable[Metric]) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._metrics = {metric.name: metric for metric in table}
        self._registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        prometheus_client.PlatformCollector(registry=self._registry)

    def counter(self, name: str) -> Counter:
        """Return a counter of the table."""
        metric = self._metrics[name]
        return Counter(name, metric.meaning, metric.labels, registry=self._registry)

    def histogram(self, name: str) -> Histogram:
        """Return a histogram of durations of the table."""
        metric = self._metrics[name]
        return Histogram(
            name, metric.meaning, metric.labels, registry=self._registry, buckets=SECONDS
        )

    def read_at_scrape(self, read: Callable[[], Samples]) -> None:
        """Have `read` called at each scrape, in the scraper's thread."""
        self._registry.register(_Pictured(self._metrics, read))

    def text(self) -> str:
        """Return everything in Prometheus' text form."""
        return prometheus_client.generate_latest(self._registry).decode()


def process_samples(directory: Path, not_after: int) -> Samples:
    """Return what both services say about themselves."""
    return {
        BUILD_INFO.name: (((VERSION,), 1.0),),
        CERTIFICATE.name: plain(not_after),
        FREE.name: plain(free_bytes(directory)),
    }
