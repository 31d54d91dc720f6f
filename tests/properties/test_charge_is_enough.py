"""Invariant 12, the sums: what a hospital charges for a round is at least what the round costs.

For any study that is accepted, and any header that a node accepts for it, whatever numbers its
writer put in. The true cost is computed here from the noise that the hospitals really add and
from nothing that the books use; and no study costs more than it states.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import mpmath
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common import layouts
from common.errors import ConfigError, Refusal
from common.privacy.accountant import ORDERS, epsilon
from common.secagg.dp import NO_DP, DpMode
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.keys import Suite
from common.secagg.node_header import _check_study
from common.secagg.rules import NodeRules, check_floors
from common.study import Study, parse_study
from common.study_privacy import charged, steps
from hospital_node.private.books import round_cost
from tests.private_study import MEMBERS, header_of, private_text
from tests.properties.profile import bounded

LOOKED_AT: Final = (2, 3, 17, 64)
"""The orders at which the slow sum is taken."""

RULES: Final = NodeRules(colluders=1, min_cohort=3)
MODES: Final = ("patient-distributed", "patient-local", "hospital")


@st.composite
def studies(draw: st.DrawFn) -> Study:
    """A study of any mode with terms of any size, some of them out of tune with each other."""
    mode = draw(st.sampled_from(MODES))
    figure = st.sampled_from(["", ", evaluation_epsilon: 0.3", ", noise_multiplier: 0.7"])
    text = private_text(
        mode="patient-distributed" if mode == "patient-local" else mode,
        epsilon=draw(st.sampled_from([0.2, 1.0, 3.0, 12.0])),
        delta=draw(st.sampled_from([1e-8, 1e-5, 1e-3])),
        rounds=draw(st.integers(1, 30)),
        spare=draw(st.integers(0, 5)),
        more=draw(figure) if mode != "patient-local" else "",
    )
    text = text.replace("sampling: 0.5", f"sampling: {draw(st.sampled_from([0.01, 0.5, 1.0]))}")
    if mode == "patient-local":
        local = draw(st.integers(1, 6))
        text = text.replace("mode: patient-distributed", f"mode: {mode}")
        text = text.replace("{lr: 1.0}", f"{{lr: 0.1, local_steps: {local}}}")
    try:
        return parse_study(text)
    except ConfigError:
        assume(False)  # noqa: FBT003 - not a study
        raise


@st.composite
def headers(draw: st.DrawFn, study: Study) -> Header:
    """A header of one of the study's rounds with any of its numbers changed, or none."""
    kind = draw(st.sampled_from(list(dict.fromkeys(layouts.round_kinds(study)))))
    layout = layouts.round_layout(study, kind)
    assert layout.dp is not None
    s_min, c = draw(st.sampled_from([(3, 1), (3, 1), (4, 1), (4, 2)]))
    terms = layout.dp.terms(s_min - c)
    base = replace(
        header_of(study, 1),
        kind=kind,
        layout_sha256=layout.schema.layout_sha256,
        d=layout.schema.words,
        w=layout.ring_bits,
        ranges=layouts.header_ranges(layout, 1, ()),
        rounding=layout.rounding or Rounding.EVEN,
        s_min=s_min,
        c=c,
        q=(len(MEMBERS) + c) // 2 + 1,
        t_h=c + 1,
        dp=terms,
    )
    changes = draw(
        st.dictionaries(
            st.sampled_from(sorted(CHANGES)), st.sampled_from([0.25, 2.0, 4.0]), max_size=2
        )
    )
    for name, factor in changes.items():
        value = getattr(terms, name) * factor
        base = replace(base, dp=replace(base.dp, **{name: CHANGES[name](value)}))
    if draw(st.booleans()):  # not a number of the terms, but of who shares the noise
        base = replace(
            base, s_min=draw(st.sampled_from([3, 4])), c=draw(st.sampled_from([0, 1, 2]))
        )
    return base


CHANGES: Final[dict[str, Any]] = {
    "z": float,
    "clip": float,
    "sigma_loc": float,
    "p": lambda value: min(1.0, float(value)),
    "delta_int": int,
    "noise_cap": int,
    "m_max": int,
    "steps": int,
}


def accepted(study: Study, header: Header) -> bool:
    """Whether a node of the federation takes this header for this study, as far as it goes."""
    try:
        header.check_form()
        check_floors(header, RULES, Suite.CLASSICAL)
        _check_study(header, layouts.session_expectation(study, len(MEMBERS)), RULES)
    except Refusal:
        return False
    return True


def true_cost(header: Header, alpha: int) -> mpmath.mpf:
    """The cost of a round at an order, from what is added up and the noise that hides it."""
    terms = header.dp
    honest = 1 if terms.mode is DpMode.PATIENT_LOCAL else header.s_min - header.c
    noise = mpmath.sqrt(honest) * mpmath.mpf(terms.sigma_loc)
    u = (mpmath.mpf(terms.delta_int) / noise) ** 2
    p = mpmath.mpf(1) if terms.mode is DpMode.HOSPITAL else mpmath.mpf(terms.p)
    moment = mpmath.fsum(
        mpmath.binomial(alpha, k) * (1 - p) ** (alpha - k) * p**k * mpmath.exp(k * (k - 1) * u / 2)
        for k in range(alpha + 1)
    )
    taken = terms.steps if terms.mode is DpMode.PATIENT_LOCAL else 1
    return taken * mpmath.log(moment) / (alpha - 1)


seen: dict[bool, int] = {True: 0, False: 0}


@given(data=st.data())
@bounded(150, shrink=False)
def check_charges(data: st.DataObject) -> None:
    study = data.draw(studies())
    header = data.draw(headers(study))
    took = accepted(study, header)
    seen[took] += 1
    if took:
        cost = round_cost(header)
        for alpha in LOOKED_AT:
            assert cost[ORDERS.index(alpha)] >= true_cost(header, alpha) * (1 - 1e-9)


@pytest.mark.fault("F73")
def test_whatever_header_a_node_accepts_it_charges_what_the_round_costs() -> None:
    check_charges()
    assert min(seen.values()) >= 20, "headers of both kinds were tried"


@given(study=studies())
@bounded(60, shrink=False)
def test_no_study_charges_more_than_it_states(study: Study) -> None:
    """Over every round that its noise pays for, figures too, by the headers of the rounds."""
    total = [0.0] * len(ORDERS)
    for kind in dict.fromkeys(layouts.round_kinds(study)):
        layout = layouts.round_layout(study, kind)
        assert layout.dp is not None
        honest = study.federation.min_sites - 1
        base = header_of(study, 1)
        header = replace(base, kind=kind, d=layout.schema.words, dp=layout.dp.terms(honest))
        rounds = 1
        if kind is RoundKind.TRAIN:
            rounds = study.federation.rounds + (study.privacy.dp.spare_rounds or 0)
            assert rounds * header.dp.noised_steps == steps(study)
        cost = round_cost(header)
        total = [spent + rounds * one for spent, one in zip(total, cost, strict=True)]
    found = epsilon(total, study.privacy.dp.delta or 0.0).epsilon
    assert found == pytest.approx(charged(study), rel=1e-9)
    assert found <= (study.privacy.dp.epsilon or 0.0) * (1 + 1e-9)


@pytest.mark.parametrize("mode", ["patient-distributed", "hospital"])
@pytest.mark.fault("F73")
def test_no_privacy_term_of_an_accepted_study_can_be_altered(mode: str) -> None:
    """Also those that no charge hangs on, such as C and m_max."""
    more = ", evaluation_epsilon: 0.3" if mode == "patient-distributed" else ""
    study = parse_study(private_text(mode=mode, more=more))
    for kind in dict.fromkeys(layouts.round_kinds(study)):
        layout = layouts.round_layout(study, kind)
        assert layout.dp is not None
        header = replace(
            header_of(study, 1),
            kind=kind,
            layout_sha256=layout.schema.layout_sha256,
            d=layout.schema.words,
            w=layout.ring_bits,
            dp=layout.dp.terms(2),
        )
        assert accepted(study, header)
        assert not accepted(study, replace(header, dp=NO_DP))
        for name, kept in CHANGES.items():
            value = getattr(header.dp, name)
            for other in (value * 0.999, value * 1.001, value + 1):
                terms = replace(header.dp, **{name: kept(other)})
                assert terms == header.dp or not accepted(study, replace(header, dp=terms))
