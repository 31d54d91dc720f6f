"""Plots of the report that medical papers ask for; see `researcher.plots` for the style.

Precision-recall, decision curve, and forest plots of the AUROC by hospital and by subgroup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from common import medical
from common.score_counts import ScoreCounts, counted
from researcher.comparison import Comparison, Figures, Scored
from researcher.figures import with_interval
from researcher.plots import ACCENT, GREY, INK, PALE, svg, together

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_THRESHOLDS: Final = np.linspace(0.01, 0.99, 99)
_LEAST_SHOWN: Final = -0.05
"""Net benefit below this is not drawn: nobody would treat everybody there."""


def counts_of(scores: Mapping[str, Scored]) -> ScoreCounts:
    """Return all hospitals' test rows by score."""
    rows = together(scores)
    return counted(rows.predictions, rows.target)


def precision_recall(comparison: Comparison) -> str:
    """Draw the released model's precision-recall curve; the dashed line is chance."""
    counts = counts_of(comparison.scores)
    points, figures = medical.precision_recall(counts), comparison.federated.pooled

    def draw(axes: Axes) -> None:
        prevalence = float(counts.sick.sum() / counts.rows.sum())
        axes.axhline(prevalence, color=GREY, linewidth=0.9, linestyle=(0, (3, 3)))
        axes.text(
            0.02, prevalence - 0.02, f"chance {prevalence:.2f}", fontsize=9, color=INK, va="top"
        )
        if points is not None:
            axes.plot(*points, color=INK, linewidth=2.2)
        _note(axes, f"AUPRC {with_interval(figures, 'auprc')}")
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", aspect="equal")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)

    return svg(draw, 5.0, 4.8)


def decision_curve(comparison: Comparison, threshold: float) -> str:
    """Draw the net benefit over thresholds: the model, treating everybody, treating nobody."""
    counts = counts_of(comparison.scores)
    curves = np.array([medical.net_benefit(counts, float(t)) for t in _THRESHOLDS])

    def draw(axes: Axes) -> None:
        axes.axvline(threshold, color=PALE, linewidth=1.2)
        axes.plot(_THRESHOLDS, curves[:, 1], color=GREY, linewidth=1.4, label="treat everybody")
        axes.axhline(0.0, color=INK, linewidth=0.9, linestyle=(0, (3, 3)), label="treat nobody")
        axes.plot(_THRESHOLDS, curves[:, 0], color=ACCENT, linewidth=2.2, label="federated model")
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(_LEAST_SHOWN, float(curves.max()) * 1.08 + 0.01)
        axes.legend(loc="upper right", fontsize=9.5)

    return svg(draw, 5.0, 4.4)


def forest(rows: Sequence[tuple[str, Figures]]) -> str:
    """Draw the AUROC of each row with its interval; the last row is everybody's."""
    shown = list(reversed(rows))
    everybody = shown[0][1].get("auroc")
    ends = [figures.get("auroc_low") for _, figures in shown]
    left = min([0.5, *(end for end in ends if end is not None)]) - 0.02

    def draw(axes: Axes) -> None:
        if everybody is not None:
            axes.axvline(everybody, color=PALE, linewidth=1.4, zorder=1)
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
        for place, (_, figures) in enumerate(shown):
            _whisker(axes, place, figures, everybody=place == 0)
        axes.set_yticks(range(len(shown)), [_named(name, figures) for name, figures in shown])
        axes.set_xlim(left, 1.01)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("AUROC")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return svg(draw, 8.4, 0.36 * len(shown) + 0.8)


def _named(name: str, figures: Figures) -> str:
    rows, positives = figures.get("rows"), figures.get("positives")
    if rows is None or positives is None:
        return name
    return f"{name}  ({positives:.0f} of {rows:.0f} sick)"


def _whisker(axes: Axes, place: int, figures: Figures, *, everybody: bool) -> None:
    value, low, high = (figures.get(key) for key in ("auroc", "auroc_low", "auroc_high"))
    colour = INK if everybody else ACCENT
    right = axes.get_yaxis_transform()
    if value is None:
        axes.text(1.02, place, "too few", transform=right, va="center", fontsize=9, color=GREY)
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=colour, linewidth=1.5, zorder=2)
    mark = "D" if everybody else "s"
    size = 18 + 60 * min(1.0, (figures.get("rows") or 0) / 500)
    axes.scatter([value], [place], s=size, marker=mark, color=colour, zorder=3)
    text = with_interval(figures, "auroc", 2)
    axes.text(1.02, place, text, transform=right, va="center", fontsize=9.5, color=colour)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.98, 0.04, text, transform=axes.transAxes, ha="right", fontsize=9.5, color=INK)
