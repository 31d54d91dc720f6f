"""`fedcare bench round`: what a round costs, measured on a whole real federation.

A coordinator and N nodes run as processes of their own and talk over loopback with mutual
TLS and secure aggregation, exactly as in production. Only training is replaced: the model
kind `vector` adds a pattern that can be computed again (`common.models.vector`), so that
after the timing every opened sum is checked against the integers it must be. With `--dp`
the pattern is clipped, rounded and noised and the ledger charged as for patients' steps;
nobody could compute secret noise again, so the nodes keep copies of what they put in
(`researcher.recording`), and the copies are added up.

What is measured, and how:

* `round_seconds`: from the coordinator's own record, header sent until model written;
* `startup_seconds`: from the start of the first process until the first header was out;
* `cpu_seconds_per_round`: user and system time of all processes of the federation from the
  first header to the last closed round, divided by the rounds; comparable on a busy machine;
* peak memory: the kernel's high-water mark (VmHWM) of each process at the end;
* `wire_bytes_per_round`: the kernel's counters of the nodes' own sockets, headers included
  (`researcher.wirecount`). A node uploads in R rounds and fetches R + 1 models, the last
  one being the release: upload bytes count by R, download bytes by R + 1.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.address import split_address
from common.errors import ConfigError, RoundError
from common.layouts import header_ranges, round_layout
from common.manifest import Manifest, RoundEntry
from common.models.vector import PERIOD, perturbation
from common.privacy.calibration import charged_epsilon
from common.quantise import Coding, Quantiser
from common.secagg.header import RoundKind, default_rounding, quant_bound
from common.secagg.params import default_colluders, smallest_set
from common.secagg.ring import word_dtype
from common.study import DP_MODES, Study, canonical_json, parse_study
from common.views import RunPhase, RunView
from researcher.client import Client
from researcher.connection import Connection
from researcher.local import FederationPlan, LocalFederation, SitePlan, build, free_address
from researcher.processes import Program
from researcher.progress import Display
from researcher.recording import recorded_sum
from researcher.wirecount import WireCount, count

DROPOUT: Final = Program("researcher.dropout", "main")
RECORDING: Final = Program("researcher.recording", "main")
_BEFORE: Final = frozenset({"between rounds", "ready", "keys", "confirmed", "joining", "accepted"})
_PACKAGES: Final = ("fedcare", "grpcio", "protobuf", "numpy", "cryptography")
_MOST_SITES: Final = 64
_MOST_PARAMS: Final = 2**31
_NOISE_MULTIPLIER: Final = 16.0
"""z of a bench with noise: epsilon 1 over fifteen rounds, near enough."""

_DELTA: Final = 1e-5
_SPARE_ROUNDS: Final = 2


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """How large a federation to measure; the last `dropouts` hospitals leave every round."""

    sites: int
    params: int
    rounds: int
    dropouts: int = 0
    dp: str = "none"

    def names(self) -> list[str]:
        """Return the hospitals' names, in order."""
        return [f"site-{number:02d}" for number in range(1, self.sites + 1)]

    def dropping(self) -> list[str]:
        """Return the hospitals that drop out."""
        return self.names()[self.sites - self.dropouts :]

    def check(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            ConfigError: BAD_ARGUMENT.
        """
        if self.dp not in DP_MODES:
            raise ConfigError("BAD_ARGUMENT", f"--dp must be one of {', '.join(DP_MODES)}")
        for option, value, least, most in (
            ("--sites", self.sites, 2, _MOST_SITES),
            ("--params", self.params, 1, _MOST_PARAMS),
            ("--rounds", self.rounds, 1, 100_000),
            ("--dropouts", self.dropouts, 0, self.sites),
        ):
            if not least <= value <= most:
                raise ConfigError("BAD_ARGUMENT", f"{option} must be {least} to {most}")
        least = smallest_set(self.sites, default_colluders(self.sites))
        if self.sites - self.dropouts < least:
            raise ConfigError(
                "BAD_ARGUMENT",
                f"--dropouts {self.dropouts} of {self.sites} leaves {self.sites - self.dropouts}; "
                f"a sum of {self.sites} opens over at least {least}",
            )

    def study(self) -> Study:
        """Return the study that is run."""
        colluders = default_colluders(self.sites)
        return parse_study(
            f"""
            schema: fedcare.study/v1
            id: bench-vector
            purpose: benchmark
            dataset: none
            owner: {{name: bench, organisation: bench}}
            features: [{{name: x, type: float}}]
            target: {{type: binary, name: y}}
            normalise: none
            model: {{kind: vector, size: {self.params}}}
            federation:
              weights: equal
              rounds: {self.rounds}
              min_sites: {smallest_set(self.sites, colluders)}
              round_deadline: 10m
            train: {{optimiser: sgd, local_steps: 1}}
            privacy:
              secure_aggregation: {{colluders: {colluders}}}
              dp: {self._terms()}
            """
        )

    def _terms(self) -> str:
        """Return the study's privacy terms, in YAML; a pattern is one patient."""
        if self.dp == "none":
            return "{mode: none}"
        charged = charged_epsilon(_NOISE_MULTIPLIER, _DELTA, self.rounds + _SPARE_ROUNDS)
        terms = {
            "mode": self.dp,
            "epsilon": math.ceil(charged * 100) / 100,
            "delta": _DELTA,
            "clip": 1.0,
            "noise_multiplier": _NOISE_MULTIPLIER,
            "spare_rounds": _SPARE_ROUNDS,
        }
        if self.dp != "hospital":
            terms |= {"batch": self.sites, "max_patients": 1000}
        return json.dumps(terms)


@dataclass(slots=True)
class _Timing:
    """What is noted while the run goes on; times are monotonic, CPU in seconds."""

    started: float = 0.0
    opened: float = 0.0
    closed: float = 0.0
    cpu_opened: float = 0.0
    cpu_closed: float = 0.0


@dataclass(frozen=True, slots=True)
class _Measured:
    """A finished run with everything read from the kernel while its processes lived."""

    view: RunView
    manifest: Manifest
    timing: _Timing
    rss_mb: Mapping[str, float]
    wire: WireCount | None


def run_bench(plan: BenchPlan, screen: Display) -> dict[str, Any]:
    """Measure and return the envelope's `data`. Blocking; children are gone afterwards.

    Raises:
        ConfigError: see `BenchPlan.check`. RoundError: the run failed.
    """
    plan.check()
    with tempfile.TemporaryDirectory(prefix="fedcare-bench-") as folder:
        federation = Path(folder) / "federation"
        measured = asyncio.run(_measure(plan, federation, screen))
        screen.step("computing the integer sums again")
        return _data(plan, measured, federation / "sites")


async def _measure(plan: BenchPlan, folder: Path, screen: Display) -> _Measured:
    address = free_address()
    study = plan.study()
    sites = [SitePlan(name) for name in plan.names()]
    federation_plan = FederationPlan(folder, "bench", study, sites)
    build(federation_plan, address)
    programs = {} if plan.dp == "none" else dict.fromkeys(plan.names(), RECORDING)
    programs |= dict.fromkeys(plan.dropping(), DROPOUT)
    connection = Connection(address, federation_plan.researcher_folder)
    timing = _Timing(started=time.monotonic())
    async with LocalFederation(federation_plan, address, programs) as federation:
        screen.step(f"starting a coordinator and {plan.sites} nodes")
        await federation.start()
        async with federation.children.guard(), connection.open() as client:
            submitted = await client.submit(canonical_json(study))
            view = await _follow(client, submitted.run_id, federation, screen, timing)
            rss = federation.children.peak_rss_mb()
            pids = [federation.children[name].pid for name in plan.names()]
            wire = count(split_address(address)[1], pids)
            notice = await client.release(submitted.run_id)
    return _Measured(view, Manifest.from_json(notice.manifest), timing, rss, wire)


async def _follow(
    client: Client, run_id: str, federation: LocalFederation, screen: Display, timing: _Timing
) -> RunView:
    """Watch the run to its end, noting when rounds began and ended."""
    rounds = federation.plan.study.federation.rounds
    view = None
    async for view in client.watch(run_id):
        if not timing.opened and _first_round_open(view):
            timing.opened = time.monotonic() - sum(entry.seconds for entry in view.history)
            timing.cpu_opened = federation.children.cpu_seconds()
        done = sum(entry.state == "CLOSED" for entry in view.history)
        if not timing.closed and done == rounds:
            timing.closed = time.monotonic()
            timing.cpu_closed = federation.children.cpu_seconds()
        screen.show(view)
    if view is None or view.state is not RunPhase.FINISHED:
        reason = "" if view is None else view.reason
        raise RoundError("RUN_FAILED", f"the run did not finish: {reason or 'no reason'}")
    return view


def _first_round_open(view: RunView) -> bool:
    return view.state not in (RunPhase.ENROLLING, RunPhase.SETTING_UP) and (
        bool(view.history) or any(site.state not in _BEFORE for site in view.sites)
    )


# --- results ------------------------------------------------------------------------------------


def _data(plan: BenchPlan, measured: _Measured, sites: Path) -> dict[str, Any]:
    closed = [entry for entry in measured.view.history if entry.state == "CLOSED"]
    seconds = [round(entry.seconds, 6) for entry in closed]
    timing, rss = measured.timing, measured.rss_mb
    cpu = (timing.cpu_closed - timing.cpu_opened) / plan.rounds
    wire = wire_per_round(measured.wire, plan.rounds)
    ideal = 2 * 4 * plan.params * plan.sites
    return {
        "sites": plan.sites,
        "params": plan.params,
        "rounds": plan.rounds,
        "dropouts": plan.dropouts,
        "dp_mode": plan.dp,
        "startup_seconds": round(timing.opened - timing.started, 3),
        "round_seconds": seconds,
        "median_round_seconds": round(statistics.median(seconds), 6),
        "wall_seconds_per_round": round((timing.closed - timing.opened) / plan.rounds, 6),
        "coordinator_peak_rss_mb": round(rss["coordinator"], 1),
        "site_peak_rss_mb": round(max(rss[name] for name in plan.names()), 1),
        "wire_bytes_per_round": wire,
        "wire_share_of_ideal": None if wire is None else round(wire / ideal, 4),
        "cpu_seconds_per_round": round(cpu, 4),
        "exact": exact(plan, measured.manifest, measured.view, sites),
        "voided_rounds": len(measured.view.history) - len(closed),
        "dropped": [list(entry.dropped) for entry in closed],
        "versions": versions(),
    }


def wire_per_round(wire: WireCount | None, rounds: int) -> int | None:
    """Return the bytes of one round; see the module for what counts by what."""
    if wire is None:
        return None
    return round(wire.sent / rounds + wire.received / (rounds + 1))


def exact(plan: BenchPlan, manifest: Manifest, view: RunView, sites: Path) -> bool:
    """Say whether every opened sum is the integer sum of what its survivors put in.

    The manifest's digests are the coordinator's; each is compared with what the rule and
    the survivors' names give (with noise: with the sum of the copies that the survivors
    kept below `sites`), and with the run's record.
    """
    shown = {entry.header_digest.hex(): entry.sum_sha256.hex() for entry in view.history}
    study = plan.study()
    leaving = set(plan.dropping())
    layout = round_layout(study, RoundKind.TRAIN)

    def expected(entry: RoundEntry) -> str | None:
        if not study.privacy.dp.on:
            return expected_sum(study, entry)
        folders = [sites / site for site in entry.survivors]
        return recorded_sum(folders, entry.header, layout.schema.words, layout.ring_bits)

    return len(manifest.rounds) == plan.rounds and all(
        entry.sum_sha256 == expected(entry) == shown.get(entry.header)
        and set(entry.dropped) == leaving
        for entry in manifest.rounds
    )


def expected_sum(study: Study, entry: RoundEntry) -> str:
    """Return the SHA-256 of the words that a round without noise must open to, from names alone."""
    layout = round_layout(study, RoundKind.TRAIN)
    members = len(entry.survivors) + len(entry.dropped)
    bound = quant_bound(members, layout.ring_bits)
    scale = header_ranges(layout, bound, ())[0]
    size = layout.schema.parameters
    coding = Coding(bound, layout.ring_bits, default_rounding(members, layout.ring_bits))
    quantiser = Quantiser(coding)
    # Rounding to even looks at the value alone, so the sum repeats as the pattern does.
    period = min(size, PERIOD)
    total = np.zeros(period, word_dtype(layout.ring_bits))
    words = np.empty_like(total)
    for site in entry.survivors:
        quantiser.quantise(perturbation(site, entry.r, 0, period), scale, words)
        total += words
    digest = hashlib.sha256()
    for start in range(0, size, period):
        digest.update(total[: size - start].data)
    tail = layout.schema.words - size
    weights = np.full(tail, bound * len(entry.survivors) % (1 << layout.ring_bits), total.dtype)
    digest.update(weights.data)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return what a figure depends on: packages, interpreter, kernel, processor."""
    import os
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    found["python"] = platform.python_version()
    found["kernel"] = platform.release()
    found["machine"] = platform.machine()
    found["cpu"] = _cpu()
    found["cores"] = str(len(os.sched_getaffinity(0)))
    return found


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else "unknown"


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return measured rows as a table for people."""
    from common.tables import table

    head = (
        "sites", "parameters", "dropouts", "dp", "median round s", "CPU s a round",
        "coordinator MB", "site MB", "bytes a round", "of ideal", "start-up s", "exact",
    )  # fmt: skip
    body = [
        (
            str(row["sites"]),
            f"{row['params']:,}",
            str(row["dropouts"]),
            row["dp_mode"],
            f"{row['median_round_seconds']:.3f}",
            f"{row['cpu_seconds_per_round']:.3f}",
            f"{row['coordinator_peak_rss_mb']:.0f}",
            f"{row['site_peak_rss_mb']:.0f}",
            "-" if row["wire_bytes_per_round"] is None else f"{row['wire_bytes_per_round']:,}",
            "-" if row["wire_share_of_ideal"] is None else f"{row['wire_share_of_ideal']:.4f}",
            f"{row['startup_seconds']:.2f}",
            "yes" if row["exact"] else "NO",
        )
        for row in rows
    ]
    return table(head, body, right=frozenset(range(11)) - {3})
