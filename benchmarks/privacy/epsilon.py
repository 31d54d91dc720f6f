"""Empirical lower bounds on epsilon, through the hospital's own code, whole and with defects.

    python -m benchmarks.privacy.epsilon [--quick] [--json]

A sound mechanism's bound stays below the epsilon that its ledgers are charged, by as little
as the trials allow; a defect's rises above it. See `canaries` for what is run and `bounds`
for what the bounds assume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.privacy import bounds
from benchmarks.privacy.canaries import Claim, Fault, Observed, observe, statistics
from benchmarks.privacy.report import Cell, Table, main

ALPHA: Final = 0.001
"""A bound is too high with a chance of at most this."""

_COLUMNS: Final = (
    "mode", "mechanism", "p", "rounds x steps", "rows of a patient", "trials", "bound, free",
    "bound, gaussian", "bound, one run", "charged", "verdict",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Audit:
    """One row of the table: a claim, a defect or none, and how many passes tell."""

    claim: Claim
    fault: Fault
    passes: int
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """The bounds at confidence `1 - ALPHA` against what the ledger is charged."""

    trials: int
    free: float
    gaussian: float | None
    one_run: float | None
    charged: float

    @property
    def bound(self) -> float:
        """The largest of the bounds."""
        return max(self.free, self.gaussian or 0.0, self.one_run or 0.0)

    @property
    def caught(self) -> bool:
        """Whether the claim is refuted."""
        return self.bound > self.charged


def audit(what: Audit) -> Verdict:
    """Run one audit."""
    claim = what.claim
    seen = statistics(claim, observe(claim, what.fault, what.passes, what.seed))
    # Three bounds are compared with the claim: each has a third of the error.
    alpha = ALPHA / 3
    free = bounds.best(seen, bounds.free_epsilon, claim.delta, alpha)
    gaussian = None
    if claim.sampling == 1:  # a sampled mechanism's trade-off curve is no Gaussian one
        gaussian = bounds.best(seen, bounds.gaussian_epsilon, claim.delta, alpha).epsilon
    errors = free.errors
    return Verdict(
        trials=2 * (errors.present + errors.absent),
        free=free.epsilon,
        gaussian=gaussian,
        one_run=_one_run(what, alpha),
        charged=claim.charged,
    )


def _one_run(what: Audit, alpha: float) -> float | None:
    """Return what a single run's canaries tell; a hospital's audit has one canary a run."""
    if what.claim.mode == "hospital":
        return None
    runs: list[Observed] = [observe(what.claim, what.fault, 1, 10**6 + k) for k in (0, 1)]
    first, second = (next(iter(statistics(what.claim, run).values())) for run in runs)
    return bounds.one_run(first, second, what.claim.delta, alpha)


def plan(*, quick: bool) -> list[Audit]:
    """Return the audits: mechanisms as shipped, then each defect."""
    few, many = (10, 40) if quick else (60, 250)
    patient, hospital, local = "patient-distributed", "hospital", "patient-local"
    whole = [
        Audit(Claim(patient, 1.0, rounds=2), Fault.NONE, many),
        Audit(Claim(patient, 4.0, rounds=2), Fault.NONE, many),
        Audit(Claim(patient, 8.0), Fault.NONE, many),
        Audit(Claim(patient, 8.0, rounds=4, sampling=0.2), Fault.NONE, many),
        Audit(Claim(patient, 4.0, rows=20, columns=100), Fault.NONE, many),
        Audit(Claim(hospital, 4.0), Fault.NONE, 25 * many),
        Audit(Claim(local, 4.0, rounds=2, steps=4), Fault.NONE, many),
    ]
    broken = [
        Audit(Claim(patient, 4.0, rounds=2), Fault.HALF_NOISE, few),
        Audit(Claim(patient, 1.0), Fault.NO_CLIP, few),
        Audit(Claim(patient, 1.0, rounds=4, sampling=0.05), Fault.NO_SAMPLING, few),
        Audit(Claim(patient, 1.0, rows=20, columns=100), Fault.NO_GROUPING, few),
        Audit(Claim(patient, 1.0, rounds=2, sampling=0.5), Fault.REUSED_NOISE, few),
        Audit(Claim(local, 4.0, steps=4), Fault.HALF_NOISE, few),
        Audit(Claim(local, 1.0, rows=20, columns=100), Fault.NO_GROUPING, few),
        Audit(Claim(hospital, 4.0), Fault.HALF_NOISE, 150 * few),
        Audit(Claim(hospital, 1.0), Fault.NO_CLIP, 10 * few),
    ]
    return whole + broken


def row(what: Audit) -> tuple[Cell, ...]:
    """Return an audit's row of the table."""
    claim = what.claim
    head: tuple[Cell, ...] = (
        f"{claim.mode}, {claim.epsilon:g}", str(what.fault),
        None if claim.mode == "hospital" else claim.sampling,
        f"{claim.rounds} x {claim.steps}", claim.rows,
    )  # fmt: skip
    found = audit(what)
    share = found.bound / found.charged
    verdict = f"refuted, {share:.2g} x" if found.caught else f"stands, {share:.2f} x"
    return (*head, found.trials, found.free, found.gaussian, found.one_run, found.charged, verdict)


def measure(quick: bool) -> list[Table]:  # noqa: FBT001 - the one switch of every script here
    """Return the table of all audits."""
    return [Table("epsilon", _COLUMNS, tuple(row(what) for what in plan(quick=quick)))]


if __name__ == "__main__":
    main("epsilon", measure)
