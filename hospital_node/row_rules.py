"""Rules about a study that only this hospital's own rows, or its roster, can answer.

They are judged when the study is offered and again at each start of the node, before a
round. What they say leaves the hospital, so none of them holds a number of its patients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from common import layouts
from common.errors import PolicyRefusal, Refusal
from common.events import Event
from common.features import Table
from common.layouts import RoundLayout
from common.logs import EventLog
from common.regression import sums
from common.secagg.dp import DpTerms, check_terms
from common.secagg.header import RoundKind
from common.study import Study

if TYPE_CHECKING:
    from hospital_node.data.load import SiteData

MIN_CELL: Final = "release.min_cell"
_SUMMED: Final = {
    RoundKind.STATISTICS: "train",
    RoundKind.TRAIN: "train",
    RoundKind.EVALUATE: "test",
}
"""The part of the rows that each kind of round adds up."""

ROWS_PER_COEFFICIENT: Final = 2
"""Training patients that a hospital has for each coefficient of an exact regression."""

_SAFE_DELTA: Final = 10
"""Section 9.4: delta <= 1/(10 N)."""


def check_cells(study: Study, data: SiteData, min_cell: int, where: str) -> None:
    """Refuse a study if a sum without noise would hold fewer patients than the smallest cell.

    A part without any row adds zeros and passes; noised rounds are bounded by their noise.

    Raises:
        PolicyRefusal: POLICY_MIN_CELL, saying which part, never how many; also where an
            exact regression has more coefficients than these rows hide.
    """
    for kind in dict.fromkeys(layouts.round_kinds(study)):
        if layouts.round_layout(study, kind).dp is not None or kind not in _SUMMED:
            continue
        part = _SUMMED[kind]
        if 0 < patients(getattr(data, part)) < min_cell:
            raise PolicyRefusal(
                "POLICY_MIN_CELL",
                f"{where}: {MIN_CELL} is {min_cell}: does not allow a {kind.value} round over "
                f"the {part} rows of this hospital, which have fewer patients",
            )
    if layouts.is_exact(study):
        _check_regression(study, data)


def _check_regression(study: Study, data: SiteData) -> None:
    """Refuse an exact regression of more than half as many coefficients as training patients.

    Sums over two sets of hospitals differ by one hospital's gradient and Hessian. A Hessian
    x1 x1' + ... of no more rows than coefficients tells the space that the rows span, and of
    one row the row itself; with twice as many rows every coefficient has two behind it.
    """
    p = sums.size(study)
    if 0 < patients(data.train) < ROWS_PER_COEFFICIENT * p:
        raise PolicyRefusal(
            "POLICY_MIN_CELL",
            f"strategy newton: the study has {p} coefficients, and of the train rows a hospital "
            f"needs {ROWS_PER_COEFFICIENT} patients for each; this one has fewer",
            fix="Use fewer features or levels, or another strategy than newton.",
        )


def check_ring(study: Study, members: int) -> None:
    """Refuse noise terms with which a sum of all members could wrap around the ring.

    Raises:
        Refusal: OVERFLOW_BOUND; DP_WEAK, too few honest hospitals to make the noise, or more
            noise for each of them than a table holds.
    """
    h = study.federation.min_sites - study.colluders(members)
    for kind in dict.fromkeys(layouts.round_kinds(study)):
        layout = layouts.round_layout(study, kind)
        if layout.dp is not None:
            _check_round(layout, layout.dp.terms(h), members, h)


def _check_round(layout: RoundLayout, terms: DpTerms, members: int, h: int) -> None:
    try:
        check_terms(terms, n=members, h=h, d=layout.schema.words, w=layout.ring_bits)
    except Refusal as refusal:
        raise Refusal(
            refusal.name,
            f"privacy.dp: {refusal.detail}",
            fix="Lower max_patients or the noise (a larger epsilon), or use fewer hospitals.",
        ) from None


def check_delta(study: Study, data: SiteData | None, members: int, log: EventLog) -> None:
    """Refuse a delta with which one of those protected may be published whole.

    N is this hospital's patients in a noised sum, of the training part and, where figures are
    paid for, of the test part; or the hospitals of the roster in mode hospital. Between
    1/(10 N) and 1/N the hospital is warned: section 9.4 asks for less.

    Raises:
        Refusal: DP_WEAK.
    """
    if data is None:
        return  # a `vector`'s pattern is made of nobody
    hospitals = study.privacy.dp.mode == "hospital"
    figures = study.privacy.dp.evaluation_noise is not None
    summed = (data.train, data.test) if figures else (data.train,)
    protected = members if hospitals else patients(*summed)
    whose = "the federation's hospitals" if hospitals else "this hospital's patients"
    delta = study.privacy.dp.delta or 0.0
    if delta * protected >= 1:
        raise Refusal(
            "DP_WEAK",
            f"privacy.dp.delta {delta:g} is at least 1/n for {whose}: one of them could be "
            "published whole",
            fix="State a delta of at most a tenth of that.",
        )
    if delta * protected * _SAFE_DELTA > 1:
        meaning = f"privacy.dp.delta {delta:g} is above 1/(10 n) for {whose}; ask for less"
        log.warning(Event.STUDY_ACCEPTED, study=study.id, meaning=meaning)


def patients(*parts: Table) -> int:
    """Return how many patients have rows in any of these parts."""
    return len(np.unique(np.concatenate([table.patient for table in parts])))
