"""Canaries: patients made to be found, through the hospital's own code.

A canary patient's gradient has the full clip norm and points along a word of the model
that belongs to this canary alone (one column, far from 0). So one pass over many canaries
is as many independent trials of the strongest neighbour: each canary is in the data or
not by a coin, contributes `Delta_int` to its own word or nothing, and the noise of each
word is its own. What is observed is the opened sum of `h` honest hospitals, the fewest
that the accountant counts on; the adversary is the coordinator together with the others,
whose noise it knows and has subtracted. It also chooses the model: all zeros, in every
round.

    hospital_node.private.contribution.patient_sum  (gradient, Poisson draw, clip, integers)
    hospital_node.private.source.NoisedSource      (this hospital's noise)
    the sum over the hospitals                      (what a certificate opens)

In mode `patient-local` one hospital's update is observed, after its noised steps
(`hospital_node.private.local_steps`), with a learning rate so small that the model stays
where it was; it is seen before it is coded, which is more than a coordinator gets. In mode
`hospital` the canary is a hospital whose whole update is clipped; a pass is then one trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Final, TypeAlias
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy.bounds import Floats, Scored
from benchmarks.privacy.releases import header_of
from common.entropy import CountingEntropy, Entropy
from common.features import Encoded
from common.layouts import constant_count, round_layout
from common.models import layout
from common.privacy.clipping import Uniforms
from common.secagg.dp import DpTerms, check_terms
from common.secagg.header import RoundKind
from common.secagg.keys import CoefficientSeed
from common.study import Study, parse_study
from common.study_privacy import charged
from hospital_node.private import contribution
from hospital_node.private.local_steps import LocalTraining
from hospital_node.private.source import NoisedSource

FAR: Final = 1000.0
"""A canary's value in its own column: next to it the bias hardly counts."""

STILL: Final = 1e-6
"""Learning rate of mode patient-local: the model hardly moves between its steps."""

_HOSPITAL_COLUMNS: Final = 8


class Fault(StrEnum):
    """A defect planted in the mechanism, for the audit to find."""

    NONE = "as shipped"
    HALF_NOISE = "noise halved"
    NO_CLIP = "clip skipped"
    NO_SAMPLING = "sampling ignored"
    NO_GROUPING = "rows not grouped by patient"
    REUSED_NOISE = "noise reused in the next round"


@dataclass(frozen=True)
class Claim:
    """What a study promises, and the shape of the audit.

    `columns` canaries a pass (mode hospital: one); `rows` of each; `honest` hospitals;
    `steps` of a round (mode patient-local).
    """

    mode: str
    epsilon: float
    delta: float = 1e-5
    rounds: int = 1
    sampling: float = 1.0
    columns: int = 400
    rows: int = 1
    honest: int = 2
    steps: int = 1

    @cached_property
    def study(self) -> Study:
        """The study, completed as every hospital completes it: z follows from epsilon."""
        patient = self.mode != "hospital"
        lr = STILL if self.mode == "patient-local" else 1.0
        columns = self.columns if patient else _HOSPITAL_COLUMNS
        features = "\n".join(f"  - {{name: x{k}, type: float}}" for k in range(columns))
        more = f", sampling: {self.sampling}, batch: 1, max_patients: {columns}" if patient else ""
        return parse_study(
            f"""
schema: fedcare.study/v1
id: audit
purpose: research
dataset: canaries
owner: {{name: n, organisation: o}}
features:
{features}
target: {{type: binary, name: y}}
normalise: none
model: {{kind: logistic}}
train: {{optimiser: sgd, lr: {lr}, local_steps: {self.steps}}}
federation: {{rounds: {self.rounds}, min_sites: {max(3, self.honest)}}}
privacy:
  secure_aggregation: {{colluders: {max(3, self.honest) - self.honest}}}
  dp: {{mode: {self.mode}, epsilon: {self.epsilon}, delta: {self.delta}, clip: 1.0,
        spare_rounds: 0{more}}}
seed: 1
"""
        )

    @cached_property
    def terms(self) -> DpTerms:
        """The terms of every header, as both ends compute and check them."""
        plan = round_layout(self.study, RoundKind.TRAIN)
        if plan.dp is None:
            raise ValueError(f"mode {self.mode} has no terms in its header")
        terms = plan.dp.terms(self.honest)
        members = self.honest + 1
        words, ring = plan.schema.words, plan.ring_bits
        check_terms(terms, n=members, h=self.honest, d=words, w=ring)
        return terms

    @property
    def charged(self) -> float:
        """The epsilon that a hospital's ledger is charged."""
        return charged(self.study)


@dataclass(frozen=True, slots=True)
class Observed:
    """What the opened sums say of each canary: words / Delta_int, float64 [trials, rounds]."""

    present: Floats
    absent: Floats


Pass: TypeAlias = Callable[[Claim, Fault, Entropy, np.random.Generator], Observed]
"""Runs a study once."""


# --- the mechanism, whole or with a defect -------------------------------------------------------


@contextmanager
def _planted(fault: Fault) -> Iterator[None]:
    if fault is not Fault.NO_CLIP:
        yield
        return

    def unclipped(x: Floats, clip: float, delta_int: int, uniforms: Uniforms) -> NDArray[np.int64]:
        del uniforms
        found: NDArray[np.int64] = np.rint(x * (delta_int / clip)).astype(np.int64).sum(axis=0)
        return found

    with mock.patch.object(contribution, "integer_sum", unclipped):
        yield


def _noised(total: NDArray[np.int64], terms: DpTerms, seed: CoefficientSeed) -> NDArray[np.int64]:
    """Return a hospital's `v_i`, as `NoisedSource` writes it."""
    out = np.empty(total.size, np.uint64)
    NoisedSource(total, terms, seed).fill(out, 0)
    return out.view(np.int64)


class _Federation:
    """The honest hospitals of an audit: their totals in, one opened sum out."""

    def __init__(self, claim: Claim, fault: Fault, entropy: Entropy) -> None:
        self._claim = claim
        self._fault = fault
        self._entropy = entropy
        self._seeds = self._fresh()

    def _fresh(self) -> list[CoefficientSeed]:
        return [CoefficientSeed(self._entropy.take(32)) for _ in range(self._claim.honest)]

    def opened(self, totals: list[NDArray[np.int64]]) -> Floats:
        """Return the sum of a round over the weights, in units of `Delta_int`."""
        claim, terms = self._claim, self._claim.terms
        if self._fault is not Fault.REUSED_NOISE:
            self._seeds = self._fresh()
        if self._fault is Fault.HALF_NOISE:
            terms = replace(terms, sigma_loc=terms.sigma_loc / 2)
        constants = np.zeros(constant_count(claim.study), np.int64)
        whole = [np.concatenate([constants, total]) for total in totals]
        noised = [_noised(w, terms, s) for w, s in zip(whole, self._seeds, strict=True)]
        found: Floats = np.sum(noised, axis=0)[constants.size :] / terms.delta_int
        return found


# --- trials --------------------------------------------------------------------------------------


def observe(claim: Claim, fault: Fault, passes: int, seed: int) -> Observed:
    """Return what `passes` runs of the study show of their canaries."""
    entropy = CountingEntropy(f"audit/{claim.mode}/{fault}/{seed}".encode())
    rng = np.random.default_rng(seed)
    one = _PASSES[claim.mode]
    with _planted(fault):
        found = [one(claim, fault, entropy, rng) for _ in range(passes)]
    return Observed(
        np.concatenate([each.present for each in found]),
        np.concatenate([each.absent for each in found]),
    )


def _patients(claim: Claim, fault: Fault, entropy: Entropy, rng: np.random.Generator) -> Observed:
    """Run the study once over canaries that are present by a coin, spread over the hospitals."""
    present = rng.random(claim.columns) < 0.5  # noqa: PLR2004 - a coin
    at_home = np.arange(claim.columns) % claim.honest
    tables = [_table(claim, np.flatnonzero(present & (at_home == k))) for k in range(claim.honest)]
    weights = np.zeros(layout(claim.study).parameters, np.float32)
    terms = replace(claim.terms, p=1.0) if fault is Fault.NO_SAMPLING else claim.terms
    federation = _Federation(claim, fault, entropy)
    rounds = []
    for _ in range(claim.rounds):
        totals = []
        for data, owners in tables:
            patients = np.arange(owners.size) if fault is Fault.NO_GROUPING else owners
            listed = np.arange(int(patients.max(initial=-1)) + 1)
            found = contribution.patient_sum(
                claim.study, data, patients, weights, listed, terms, entropy
            )
            totals.append(found)
        rounds.append(federation.opened(totals)[: claim.columns])
    words = np.stack(rounds, axis=1)
    return Observed(words[present], words[~present])


def _local(claim: Claim, fault: Fault, entropy: Entropy, rng: np.random.Generator) -> Observed:
    """Run the study once at one hospital with canaries that are present by a coin."""
    present = rng.random(claim.columns) < 0.5  # noqa: PLR2004 - a coin
    data, owners = _table(claim, np.flatnonzero(present))
    patients = np.arange(owners.size) if fault is Fault.NO_GROUPING else owners
    listed = np.arange(int(patients.max(initial=-1)) + 1)
    header = header_of(claim.study, ("a", "b", "c"))
    terms = header.dp
    if fault is Fault.NO_SAMPLING:
        terms = replace(terms, p=1.0)
    if fault is Fault.HALF_NOISE:
        terms = replace(terms, sigma_loc=terms.sigma_loc / 2)
    header = replace(header, dp=terms)
    training = LocalTraining(claim.study, "a", data, patients, listed, entropy)
    weights = np.zeros(layout(claim.study).parameters, np.float32)
    seed = CoefficientSeed(entropy.take(32))
    rounds = []
    for _ in range(claim.rounds):
        if fault is not Fault.REUSED_NOISE:
            seed = CoefficientSeed(entropy.take(32))
        update = training.update(weights, header, seed).astype(np.float64)
        rounds.append(update[: claim.columns] / (STILL * terms.clip))
    words = np.stack(rounds, axis=1)
    return Observed(words[present], words[~present])


def _table(claim: Claim, canaries: NDArray[np.int64]) -> tuple[Encoded, NDArray[np.int64]]:
    """Return the rows of these canaries, and the patient of each row."""
    owners = np.repeat(np.arange(canaries.size), claim.rows)
    features = np.zeros((owners.size, claim.columns), np.float32)
    features[np.arange(owners.size), canaries[owners]] = FAR
    return Encoded(features, np.ones(owners.size, np.float32)), owners


def _hospital(claim: Claim, fault: Fault, entropy: Entropy, rng: np.random.Generator) -> Observed:
    """Run the study once with the canary hospital's update, and once with zeros in its place."""
    size = layout(claim.study).parameters
    weights = np.zeros(size, np.float32)
    features = np.zeros((4, size - 1), np.float32)
    features[:, int(rng.integers(size - 1))] = FAR
    data = Encoded(features, np.ones(len(features), np.float32))
    place = int(features[0].argmax())
    federation = _Federation(claim, fault, entropy)
    nothing = [np.zeros(size, np.int64)] * claim.honest
    rounds = []
    for _ in range(claim.rounds):
        own = contribution.hospital_step(claim.study, "canary", data, weights, claim.terms, entropy)
        with_it = federation.opened([own, *nothing[1:]])[place]
        rounds.append((with_it, federation.opened(nothing)[place]))
    words = np.array(rounds).T
    return Observed(words[:1], words[1:])


_PASSES: Final[Mapping[str, Pass]] = {
    "patient-distributed": _patients,
    "patient-local": _local,
    "hospital": _hospital,
}


# --- what the adversary computes -----------------------------------------------------------------


def statistics(claim: Claim, observed: Observed) -> dict[str, Scored]:
    """Return the adversary's statistics; the first is the likelihood ratio of the claim."""
    z = float(claim.study.privacy.dp.noise_multiplier or 0.0)
    p = claim.sampling

    def likelihood(words: Floats) -> Floats:
        ratio = np.exp(np.clip((2 * words - claim.steps) / (2 * z * z), -600, 600))
        total: Floats = np.log1p(p * (ratio - 1)).sum(axis=1)
        return total

    found = {"likelihood": Scored(likelihood(observed.present), likelihood(observed.absent))}
    if claim.rounds > 1:
        spread = [np.ptp(words, axis=1) for words in (observed.present, observed.absent)]
        found["difference of rounds"] = Scored(*spread)
    return found
