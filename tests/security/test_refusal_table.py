"""Every way in which a study or a header can go beyond a hospital's policy or budget, one a row.

Two tables. Each row changes one thing, says the code it must be refused with, and which key
of the policy the refusal must cite, by file and line. The first goes through the real desk,
the second through the real header check and the real ledger. A row whose change is left out
must pass, so no row is refused for another reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from common.errors import Refusal
from common.secagg.dp import DpMode, DpPlan, DpTerms
from common.secagg.header import Header
from common.secagg.keys import Suite
from common.study import Study, parse_study
from hospital_node.private.books import Books
from tests.security.refusals import (
    NAME,
    OPEN,
    POLICY,
    PRIVATE,
    Change,
    books_of,
    changed,
    headed,
    header_of,
    judged,
    line_of,
)

DP = "require.dp."


@dataclass(frozen=True)
class Row:
    """One violation by a study: what is changed where, and what must be said to it."""

    name: str
    code: str
    cites: str
    base: str = OPEN
    study: tuple[Change, ...] = ()
    policy: tuple[Change, ...] = ()
    spent: int = 0
    """Rounds that the ledger holds already."""


def listed(name: str, code: str, cites: str, *study: Change, base: str = OPEN) -> Row:
    return Row(name, code, cites, base, study)


def stricter(name: str, code: str, cites: str, *policy: Change, base: str = OPEN) -> Row:
    return Row(name, code, cites, base, (), policy)


TIGHT = (("epsilon_total: 3.0", "epsilon_total: 1.1"), ("delta: 1.0e-3", "delta: 1.0e-4"))
"""Less than two of the private study's costs, counted at its own delta."""

OWN_LIMIT = (("epsilon_per_study: 2.0", "epsilon_per_study: 1.0"),)
"""What the private study states itself: the policy's word is the one that is cited."""

NEW_ID = ("id: heart-open", "id: lungs")
CLIP = ("clip: 1.0", "clip: 6.0")

STUDIES: Final = (
    listed("another purpose", "POLICY_PURPOSE", "allow.purposes",
           ("purpose: research", "purpose: marketing")),
    listed("another owner", "POLICY_OWNER", "allow.owners", ("uni-x", "uni-y")),
    listed("another data set", "POLICY_DATASET", "allow.datasets",
           ("dataset: heart", "dataset: lungs")),
    listed("another study id", "POLICY_TASK", "allow.tasks", NEW_ID),
    listed("exact counts as weights", "POLICY_WEIGHTS", "allow.weights",
           ("weights: equal", "weights: samples")),
    listed("public weights", "POLICY_WEIGHTS", "allow.weights",
           ("weights: equal", "weights: {a: 1, b: 1, c: 2}")),
    listed("another model", "POLICY_LAYOUT", "allow.layouts",
           ("model: {kind: logistic}", "model: {kind: mlp, hidden: [2]}")),
    listed("two hospitals in a sum", "POLICY_TWO_PARTY", "require.allow_two_party",
           ("min_sites: 3", "min_sites: 2"), ("colluders: 1", "colluders: 0")),
    listed("no colluders", "POLICY_COHORT", "require.colluders", ("colluders: 1", "colluders: 0")),
    listed("more hospitals than the roster has", "POLICY_COHORT", "federation.members",
           ("min_sites: 3", "min_sites: 5")),
    listed("the hospital's own figures", "POLICY_RELEASE", "release.site_metrics",
           ("site_metrics: false", "site_metrics: true")),
    listed("too many rounds", "POLICY_LIMITS", "limits.rounds", ("rounds: 4", "rounds: 21")),
    listed("too many steps", "POLICY_LIMITS", "limits.local_steps",
           ("local_steps: 2", "local_steps: 51")),
    listed("too many epochs", "POLICY_LIMITS", "limits.local_epochs",
           ("local_steps: 2", "local_epochs: 6")),
    listed("too large a batch", "POLICY_LIMITS", "limits.batch", ("batch: 16", "batch: 65")),
    listed("too long a round", "POLICY_LIMITS", "limits.round_deadline",
           ("round_deadline: 1m", "round_deadline: 2h")),
    listed("epsilon of the study", "POLICY_DP", DP + "epsilon_per_study",
           ("epsilon: 1.0", "epsilon: 2.5"), base=PRIVATE),
    listed("epsilon above the total", "POLICY_DP", DP + "epsilon_total",
           ("epsilon: 1.0", "epsilon: 3.5"), base=PRIVATE),
    listed("a large delta", "POLICY_DP", DP + "delta", ("delta: 1.0e-4", "delta: 2.0e-3"),
           base=PRIVATE),
    listed("a large clip", "POLICY_DP", DP + "max_clip", CLIP, base=PRIVATE),
    stricter("too little noise", "POLICY_DP", DP + "min_noise_multiplier",
             ("min_noise_multiplier: 0.5", "min_noise_multiplier: 50"), base=PRIVATE),
    stricter("no noise where noise is wanted", "POLICY_DP", DP + "modes",
             ("modes: [none, ", "modes: [")),
    stricter("a mode that is not allowed", "POLICY_DP", DP + "modes",
             ("patient-distributed, ", ""), base=PRIVATE),
    stricter("a model kind that is not allowed", "POLICY_MODEL", "allow.model_kinds",
             ("[logistic, mlp]", "[mlp]")),
    stricter("a strategy that is not allowed", "POLICY_STRATEGY", "allow.strategies",
             ("[fedavg]", "[fedprox]")),
    stricter("a study by another hash", "POLICY_OWNER", "allow.studies",
             ("owners: [uni-x]", f"studies: [sha256:{'0' * 64}]")),
    stricter("key agreement of the old kind only", "POLICY_PROTOCOL", "allow.suites",
             ("[hybrid, classical]", "[classical]")),
    stricter("a ring that is not allowed", "POLICY_PROTOCOL", "allow.ring_bits",
             ("ring_bits: [32, 64]", "ring_bits: [32]")),
    stricter("more survivors wanted", "POLICY_COHORT", "require.min_sites",
             ("min_sites: 3", "min_sites: 4")),
    stricter("more colluders feared", "POLICY_COHORT", "require.colluders",
             ("colluders: 1", "colluders: 2")),
    stricter("too large a model", "POLICY_LIMITS", "limits.parameters",
             ("parameters: 1000", "parameters: 4")),
    stricter("too large an upload", "POLICY_LIMITS", "limits.upload_bytes",
             ("upload_bytes: 1048576", "upload_bytes: 19")),
    stricter("fewer patients than the smallest cell", "POLICY_MIN_CELL", "release.min_cell",
             ("min_cell: 10", "min_cell: 25")),
    Row("the total is spent", "BUDGET", DP + "epsilon_total", PRIVATE,
        policy=TIGHT, spent=3),
    Row("the study's epsilon is spent", "BUDGET", DP + "epsilon_per_study", PRIVATE,
        policy=OWN_LIMIT, spent=3),
)  # fmt: skip


@pytest.mark.parametrize("row", STUDIES, ids=lambda row: row.name)
def test_a_study_beyond_the_policy_is_refused_with_code_and_line(row: Row, tmp_path: Path) -> None:
    policy, study = changed(POLICY, *row.policy), changed(row.base, *row.study)
    books = books_of(tmp_path, policy)
    if row.spent:
        spend(books, row)
    found = [one for one in judged(tmp_path, study, policy, books=books) if one.code == row.code]
    where = f"{NAME}:{line_of(policy, row.cites)}: {row.cites}"
    assert any(where in one.detail for one in found), found


def spend(books: Books, row: Row) -> None:
    """Charge some rounds of the same study, or (for the total) of another on the same data."""
    text = row.base
    if row.cites.endswith("total"):
        text = changed(text, ("id: heart-private", "id: earlier"))
    study = parse_study(text)
    books.admit(study, accepted=False)
    for r in range(1, row.spent + 1):
        books.charge(study, header_of(study, r=r))


@pytest.mark.parametrize("base", [OPEN, PRIVATE], ids=["open", "private"])
def test_the_unchanged_studies_are_accepted(base: str, tmp_path: Path) -> None:
    assert judged(tmp_path, base) == ()


# --- headers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weak:
    """One header that a coordinator might send in the middle of a job."""

    name: str
    code: str
    cites: str
    change: Callable[[Header], Header] = lambda header: header
    base: str = PRIVATE
    policy: tuple[Change, ...] = ()
    suite: Suite = Suite.HYBRID
    header: Callable[[Study], Header] = header_of


def terms(**fields: object) -> Callable[[Header], Header]:
    """Change privacy terms only."""
    return lambda header: replace(header, dp=replace(header.dp, **fields))  # type: ignore[arg-type]


def item(**fields: object) -> Callable[[Header], Header]:
    return lambda header: replace(header, **fields)  # type: ignore[arg-type]


def noise(scale: float) -> Callable[[Header], Header]:
    """Change z, and everything that follows from it: terms that are right in themselves."""

    def change(header: Header) -> Header:
        plan = plan_of(header)
        return replace(header, dp=replace(plan, z=plan.z * scale).terms(header.honest))

    return change


def plan_of(header: Header) -> DpPlan:
    """Return what a study would have fixed to give the header's terms."""
    dp = header.dp
    return DpPlan(dp.mode, dp.z, dp.clip, dp.delta_int, dp.p, dp.m_max)


def finer(header: Header) -> Header:
    """Twice the integer steps, with noise that fits them."""
    plan = replace(plan_of(header), delta_int=2 * header.dp.delta_int)
    return replace(header, dp=plan.terms(header.honest))


def shape(**numbers: int) -> Callable[[Study], Header]:
    return lambda study: header_of(study, **numbers)


RAISED = ("min_noise_multiplier: 0.5", "min_noise_multiplier: 100")

HEADERS: Final = (
    Weak("z lowered below the study's", "DP_WEAK", "require.dp", noise(0.9)),
    Weak("z below the policy's", "DP_WEAK", DP + "min_noise_multiplier", policy=(RAISED,)),
    Weak("C raised above the study's", "DP_WEAK", "require.dp", terms(clip=2.0)),
    Weak("C above the policy's", "DP_WEAK", DP + "max_clip", terms(clip=5.5)),
    Weak("Delta_int changed", "DP_WEAK", "require.dp", finer),
    Weak("p raised", "DP_WEAK", "require.dp", terms(p=1.0)),
    Weak("m_max raised", "DP_WEAK", "require.dp", terms(m_max=201)),
    Weak("sigma_loc lowered", "DP_WEAK", "require.dp",
         lambda h: terms(sigma_loc=h.dp.sigma_loc * 0.99)(h)),
    Weak("T lowered", "DP_WEAK", "require.dp", lambda h: terms(noise_cap=h.dp.noise_cap - 1)(h)),
    Weak("noise left out", "DP_WEAK", "require.dp", item(dp=DpTerms())),
    Weak("noise left out where none is allowed", "DP_WEAK", DP + "modes", item(dp=DpTerms()),
         policy=(("modes: [none, ", "modes: ["),)),
    Weak("another mode", "DP_WEAK", "require.dp", terms(mode=DpMode.HOSPITAL, p=0.0, m_max=0)),
    Weak("a mode that is not allowed", "DP_WEAK", DP + "modes",
         policy=(("patient-distributed, ", ""),)),
    Weak("colluders lowered", "QUORUM_RULE", "require.colluders", header=shape(c=0, s_min=3),
         base=OPEN),
    Weak("survivors below the policy's", "SMIN_RULE", "require.min_sites",
         policy=(("min_sites: 3", "min_sites: 4"),)),
    Weak("survivors below the study's", "SMIN_RULE", "require.min_sites",
         base=changed(OPEN, ("min_sites: 3", "min_sites: 4")), header=shape(s_min=3)),
    Weak("a cohort below the policy's", "COHORT_SMALL", "require.min_cohort",
         policy=(("min_cohort: 3", "min_cohort: 4"),), header=shape(members=3)),
    Weak("a cohort of two", "COHORT_SMALL", "require.min_cohort", base=OPEN,
         header=shape(members=2, c=0, s_min=2)),
    Weak("other weights", "HEADER_FORM", "allow.weights", item(w_max=1), base=OPEN),
    Weak("another ring", "HEADER_FORM", "allow.ring_bits", item(w=64)),
    Weak("a ring that is not allowed", "HEADER_FORM", "allow.ring_bits",
         policy=(("ring_bits: [32, 64]", "ring_bits: [64]"),)),
    Weak("a suite that is not allowed", "HEADER_FORM", "allow.suites",
         policy=(("[hybrid, classical]", "[hybrid]"),), suite=Suite.CLASSICAL),
    Weak("another layout", "LAYOUT", "allow.layouts", item(layout_sha256=b"l" * 32)),
    Weak("a longer round than the policy's", "POLICY_LIMITS", "limits.round_deadline",
         item(deadline_ms=3_600_001)),
    Weak("a larger upload than the policy's", "POLICY_LIMITS", "limits.upload_bytes",
         policy=(("upload_bytes: 1048576", "upload_bytes: 19"),)),
    Weak("a round outside the hours", "POLICY_HOURS", "hours",
         policy=(("hours: {}", 'hours: {from: "20:00", to: "06:00"}'),)),
)  # fmt: skip


@pytest.mark.parametrize("row", HEADERS, ids=lambda row: row.name)
def test_a_header_beyond_the_policy_is_refused_with_code_and_line(row: Weak) -> None:
    policy = changed(POLICY, *row.policy)
    with pytest.raises(Refusal) as caught:
        headed(row.base, row.change, policy, row.suite, row.header)
    assert caught.value.name == row.code, caught.value
    assert f"{NAME}:{line_of(policy, row.cites)}: {row.cites})" in caught.value.detail


@pytest.mark.parametrize("base", [OPEN, PRIVATE], ids=["open", "private"])
def test_the_unchanged_headers_are_accepted(base: str) -> None:
    headed(base, lambda header: header)


def rounds_charged(books: Books, study: Study) -> tuple[int, str]:
    """Ask for round after round until the ledger refuses; return how many it took, and why."""
    for r in range(1, 100):
        try:
            books.charge(study, header_of(study, r=r))
        except Refusal as refusal:
            return r - 1, str(refusal)
    raise AssertionError("the ledger never refused")


def test_rounds_beyond_what_the_study_promised_are_not_charged(tmp_path: Path) -> None:
    """A coordinator that goes on asking meets the hospital's ledger, whatever it promised."""
    policy = changed(POLICY, *OWN_LIMIT)
    books, study = books_of(tmp_path, policy), parse_study(PRIVATE)
    books.admit(study, accepted=False)
    charged, detail = rounds_charged(books, study)
    assert charged == study.federation.rounds + 2, "the rounds, and those in reserve"
    key = DP + "epsilon_per_study"
    assert "BUDGET" in detail
    assert f"({NAME}:{line_of(policy, key)}: {key})" in detail


def test_rounds_beyond_the_hospitals_total_are_not_charged(tmp_path: Path) -> None:
    """Two studies were accepted while each fitted; together they do not."""
    policy = changed(POLICY, *TIGHT)
    books = books_of(tmp_path, policy)
    one = parse_study(PRIVATE)
    other = parse_study(changed(PRIVATE, ("id: heart-private", "id: earlier")))
    for study in (one, other):
        books.admit(study, accepted=False)
    first, _ = rounds_charged(books, one)
    second, detail = rounds_charged(books, other)
    assert 0 < second < first
    key = DP + "epsilon_total"
    assert "BUDGET" in detail
    assert f"({NAME}:{line_of(policy, key)}: {key})" in detail


def test_the_tables_are_as_long_as_they_should_be() -> None:
    assert len(STUDIES) + len(HEADERS) >= 40
