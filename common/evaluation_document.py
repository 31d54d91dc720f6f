"""`evaluation.json` of a release: the pooled figures that many patients stand behind.

The coordinator opens counts by fine bins of score and by subgroup. What it publishes is
coarser, by rules over `LEAST` = 10 rows of all hospitals together:

* of everybody fewer than 10 rows: nothing; fewer than 10 of a class: no figure that needs
  both classes;
* scores are published as bands of at least 10 rows each. ROC, precision-recall, calibration
  and decision curves all follow from these very bands: cut points of several curves could
  be subtracted from each other, those of one partition cannot;
* figures of a level against the rest need 10 rows of each level, or none; the confusion table
  and what follows from it 10 rows said to be of each level, or none (`withheld`);
* survival figures need 10 events; those at a horizon 10 cases and 10 controls (`withheld`);
* a subgroup's cell is shown with 10 rows of each class, and if what is left of the total is
  nobody or as large too (`common.subgroups.shown_cells`); so is its confusion table, with 10
  rows said yes and 10 said no to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from common import medical
from common.evaluation import CELLS, TABLE_RATES, Metrics
from common.multiclass import ByLevel, LevelFigures
from common.score_counts import ScoreCounts
from common.study import Study
from common.subgroups import cells, shown_cells
from common.suppression import is_small

SCHEMA: Final = "fedcare.evaluation/v1"
LEAST: Final = 10
"""Rows, of all hospitals together, below which no pooled figure is published."""

MOST_BANDS: Final = 100


def published(found: Metrics, threshold: float = 0.5) -> Metrics | None:
    """Return pooled figures without those that few patients stand behind.

    Over fewer than `LEAST` test rows nothing is kept; where one of two classes has fewer,
    its count and what needs both classes is left out. Where fewer are said yes (or no) to,
    the confusion table and its rates are. Each hospital's own smallest cell was asked of its
    own rows before they came into the sum.
    """
    if found.rows < LEAST:
        return None
    found = withheld(found, LEAST)
    positives = found.positives
    if positives is None:
        return found
    if min(positives, found.rows - positives) < LEAST:
        return replace(found, positives=None, auroc=None, detail=(), counts=None)
    if found.counts is None or min(_said(found, threshold)) >= LEAST:
        return found
    return _without_table(found)


def _said(found: Metrics, threshold: float) -> tuple[float, float]:
    """Return how many rows the model says no and yes to; 0 where no scores are known."""
    if found.counts is None:
        return 0.0, 0.0
    table = medical.confusion(found.counts, threshold)
    yes = round(table.true_positive + table.false_positive)
    return found.rows - yes, yes


def _without_table(found: Metrics) -> Metrics:
    """Return figures without the confusion table and its rates."""
    kept = tuple(
        pair for pair in found.detail
        if pair[0] not in CELLS and not pair[0].startswith(TABLE_RATES)
    )  # fmt: skip
    return replace(found, detail=kept)


def withheld(found: Metrics, least: int) -> Metrics:
    """Return survival and multiclass figures without those that few patients stand behind.

    Fewer than `least` events: no figure but the rows. Fewer censored, unless none is: no
    count of events. Fewer cases or controls at a horizon: no figure there. A level with few
    rows (but some): nothing by level and no AUROC, for its count would follow from the others'.
    A level that few rows are said to be of: no confusion table, and no rates.
    """
    if found.by_level is not None:
        return _withheld_levels(found, found.by_level, least)
    if found.events is None:
        return found
    if found.events < least:
        return Metrics(rows=found.rows)
    few = {
        name for at in found.at_horizons if min(at.cases, at.controls) < least for name in at.names
    }
    detail = tuple(pair for pair in found.detail if pair[0] not in few)
    events = None if is_small(found.rows - found.events, least) else found.events
    return replace(found, events=events, detail=detail)


def _withheld_levels(found: Metrics, by_level: ByLevel, least: int) -> Metrics:
    if any(is_small(level.rows, least) for level in by_level.levels):
        return replace(found, auroc=None, detail=(), by_level=None)
    if any(is_small(level.predicted or 0.0, least) for level in by_level.levels):
        levels = tuple(
            replace(level, predicted=None, sensitivity=medical.NONE, ppv=medical.NONE)
            for level in by_level.levels
        )
        return replace(found, by_level=replace(by_level, levels=levels, confusion=()))
    return found


def finite(study: Study, found: Metrics | None) -> dict[str, float]:
    """Return the figures that have a value."""
    figures = {} if found is None else found.as_dict(study)
    return {
        name: value for name, value in figures.items() if value is not None and math.isfinite(value)
    }


def document(study: Study, everybody: Metrics, groups: Sequence[Metrics]) -> str:
    """Return `evaluation.json`, canonical; empty where nothing may be published.

    `groups` has an entry for each of `common.subgroups.cells`, not yet suppressed.
    """
    threshold = float(study.evaluate.threshold)
    shown = published(everybody, threshold)
    if shown is None:
        return ""
    body = {
        "schema": SCHEMA,
        "threshold": threshold,
        "confidence": float(study.evaluate.confidence),
        "least": LEAST,
        "figures": finite(study, shown),
        "bands": [] if shown.counts is None else _bands(shown.counts, threshold),
        "subgroups": _subgroups(study, everybody, groups),
        **({} if shown.by_level is None else levels_data(shown.by_level)),
    }
    return json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True) + "\n"


def _bands(counts: ScoreCounts, threshold: float) -> list[dict[str, float]]:
    """Return bands of score: `score` is their mean, `up_to` their last; both of whole bins."""
    size = max(LEAST, float(counts.rows.sum()) / MOST_BANDS)
    found = []
    for first, last in medical.bands(counts, size, threshold):
        rows = counts.rows[first:last]
        found.append(
            {
                "up_to": float(f"{counts.scores[last - 1]:.4g}"),
                "score": float(f"{rows @ counts.scores[first:last] / rows.sum():.4g}"),
                "healthy": float(np.round(counts.healthy[first:last].sum())),
                "sick": float(np.round(counts.sick[first:last].sum())),
            }
        )
    return found


def levels_data(found: ByLevel) -> dict[str, object]:
    """Return `levels` and `confusion` [true][predicted] for files and envelopes."""
    levels = [
        {
            "level": one.level,
            "rows": round(one.rows),
            "predicted": None if one.predicted is None else round(one.predicted),
            "figures": _estimates(one),
        }
        for one in found.levels
    ]
    return {
        "levels": levels,
        "confusion": [[round(cell) for cell in row] for row in found.confusion],
    }


def _estimates(level: LevelFigures) -> dict[str, float]:
    found = {"auroc": level.auroc, "sensitivity": level.sensitivity, "ppv": level.ppv}
    pairs = {
        f"{name}{end}": value
        for name, one in found.items()
        for end, value in (("", one.value), ("_low", one.low), ("_high", one.high))
    }
    return {name: value for name, value in pairs.items() if value is not None}


def band_counts(bands: Sequence[dict[str, float]]) -> ScoreCounts:
    """Return published bands as counts, for the curves of `common.medical`."""
    columns = ([band[name] for band in bands] for name in ("score", "healthy", "sick"))
    return ScoreCounts(*(np.array(column, np.float64) for column in columns))


def _subgroups(
    study: Study, everybody: Metrics, groups: Sequence[Metrics]
) -> list[dict[str, object]]:
    return [
        {
            "feature": cell.feature,
            "label": cell.label,
            "figures": None if one is None else finite(study, one),
        }
        for cell, one in zip(cells(study), shown_groups(study, everybody, groups), strict=True)
    ]


def shown_groups(
    study: Study, everybody: Metrics, groups: Sequence[Metrics]
) -> list[Metrics | None]:
    """Return what is published of each of `common.subgroups.cells`, in order.

    A feature's confusion tables obey the rule of its cells once more, by whom the model says
    no and yes to: of everybody's table and all but one, the last one's margins would follow.
    """
    found: list[Metrics | None] = []
    every, total = cells(study), np.array(_classes(study, everybody))
    threshold = float(study.evaluate.threshold)
    said = np.array(_said(everybody, threshold))
    for place in range(len(study.evaluate.subgroups)):
        of = [one for cell, one in zip(every, groups, strict=True) if cell.group == place]
        counts = np.array([_classes(study, one) for one in of])
        shown = shown_cells(counts, total, LEAST)
        by_answer = np.array([_said(one, threshold) for one in of]) * shown[:, None]
        tables = shown_cells(by_answer, said, LEAST)
        found += [
            _shown(one, threshold, table=bool(table)) if kept else None
            for one, kept, table in zip(of, shown, tables, strict=True)
        ]
    return found


def _shown(one: Metrics, threshold: float, *, table: bool) -> Metrics | None:
    kept = published(one, threshold)
    return kept if table or kept is None else _without_table(kept)


def _classes(study: Study, found: Metrics) -> tuple[float, ...]:
    """Return rows of each class; all rows where the target has no two classes."""
    if study.target.type != "binary":
        return (found.rows,)
    positives = found.positives or 0.0
    return (found.rows - positives, positives)
