"""Plots of the demo's report, as SVG text that stands inside a page without other files.

One colour for each hospital throughout, grey for what is compared with. Fonts are the
page's own: text stays text, so that the page can be searched and read aloud.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from common.medical import wilson
from common.views import RoundView
from researcher.comparison import Assessment, Comparison, Scored
from researcher.figures import with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#1f6f8b", "#c8553d", "#6a8d3f", "#8a5a9e", "#c08a1e", "#3d5a80", "#7f4f24")
INK: Final = "#1d2b36"
GREY: Final = "#98a4ae"
PALE: Final = "#dfe5ea"
ACCENT: Final = "#0f4c5c"

_INKS: Final = {INK: "ink", GREY: "grey", PALE: "pale", ACCENT: "accent"}
"""Colours that a page may set anew, as `--ink` and so on, for readers who like it dark."""

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedcare",
    "text.parse_math": False,  # a level or a feature may hold a $
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}
_CALIBRATION_BINS: Final = 8
_FEW_ROWS: Final = 8
_SHORT_MAX: Final = 60


def colours(sites: Sequence[str]) -> dict[str, str]:
    """Return each hospital's colour."""
    return {site: COLOURS[place % len(COLOURS)] for place, site in enumerate(sites)}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def svg(draw: Any, width: float, height: float) -> str:  # noqa: ANN401 - a drawing function
    """Return the drawing as an `<svg>` element that scales with the page."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure, axes = _figure(width, height)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, name in _INKS.items():
        text = text.replace(f": {colour}", f": var(--{name}, {colour})")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', text, count=1)


# --- ROC ----------------------------------------------------------------------------------------


def roc_points(scored: Scored) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return false and true positive rates from (0, 0) to (1, 1); None with one class only."""
    order = np.argsort(-scored.predictions, kind="stable")
    labels = scored.target[order] > 0
    sick, healthy = int(labels.sum()), int((~labels).sum())
    if sick == 0 or healthy == 0:
        return None
    # Equal scores are passed in one step: a curve must not depend on the order of ties.
    last = np.append(np.diff(scored.predictions[order]) != 0, True)
    true = np.concatenate([[0.0], np.cumsum(labels)[last] / sick])
    false = np.concatenate([[0.0], np.cumsum(~labels)[last] / healthy])
    return false, true


def together(scores: Mapping[str, Scored]) -> Scored:
    """Return all hospitals' rows in one."""
    return Scored(
        np.concatenate([rows.predictions for rows in scores.values()]),
        np.concatenate([rows.target for rows in scores.values()]),
    )


def roc(comparison: Comparison) -> str:
    """Draw the released model's ROC curves, pooled and per hospital."""
    palette = colours(list(comparison.scores))

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=PALE, linewidth=1, zorder=1)
        for site, scored in comparison.scores.items():
            points = roc_points(scored)
            if points is None:
                axes.plot([], [], color=palette[site], label=f"{site}: one class only")
                continue
            auroc = comparison.federated.by_site[site]["auroc"]
            axes.plot(*points, color=palette[site], linewidth=1.4, label=f"{site}  {auroc:.3f}")
        points = roc_points(together(comparison.scores))
        if points is not None:
            label = f"all hospitals  {with_interval(comparison.federated.pooled, 'auroc')}"
            axes.plot(*points, color=INK, linewidth=2.4, label=label)
        axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.02)
        axes.legend(loc="lower right", title="AUROC", fontsize=9.5, title_fontsize=9.5)

    return svg(draw, 5.0, 4.8)


# --- bars ---------------------------------------------------------------------------------------


def auroc_bars(comparison: Comparison) -> str:
    """Draw each hospital's AUROC at home: federated, local only, centralised."""
    sites = list(comparison.scores)
    palette = colours(sites)
    rows = ["all hospitals", *reversed(sites)]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            colour = palette.get(row, INK)
            _bar(axes, place + 0.27, _auroc(comparison.federated, row), colour, bold=True)
            _bar(axes, place, _auroc(comparison.local_only, row), GREY)
            _bar(axes, place - 0.27, _auroc(comparison.centralised, row), PALE)
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlim(0.35, 1.06)
        axes.set_xlabel("AUROC on the test rows (0.5 is chance)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _bar_legend(axes)

    return svg(draw, 5.6, 0.72 * len(rows) + 1.3)


def _auroc(assessment: Assessment, row: str) -> float | None:
    figures = assessment.by_site.get(row, assessment.pooled)
    return figures.get("auroc")


def _bar(
    axes: Axes,
    y: float,
    value: float | None,
    colour: str,
    *,
    bold: bool = False,
    height: float = 0.24,
) -> None:
    if value is None:
        axes.text(0.36, y, "no value: one class only", va="center", fontsize=8.5, color=GREY)
        return
    axes.barh(y, value, height=height, color=colour)
    weight = "bold" if bold else "normal"
    axes.text(value + 0.008, y, f"{value:.3f}", va="center", fontsize=8.5, weight=weight)


def elsewhere_bars(comparison: Comparison) -> str:
    """Draw what each single hospital's model is worth for all hospitals' test patients."""
    sites = list(comparison.elsewhere)
    palette = colours(sites)
    rows = [("federated", comparison.federated.pooled.get("auroc"), INK)]
    rows += [
        (f"{site} alone", comparison.elsewhere[site].get("auroc"), palette[site])
        for site in reversed(sites)
    ]

    def draw(axes: Axes) -> None:
        for place, (_, value, colour) in enumerate(rows):
            _bar(axes, place, value, colour, bold=place == 0, height=0.5)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_xlim(0.45, 1.0)
        axes.set_xlabel("AUROC on the test patients of all hospitals")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    return svg(draw, 5.0, 0.42 * len(rows) + 0.9)


def _bar_legend(axes: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=ACCENT, label="federated (in the hospital's colour)"),
        Patch(color=GREY, label="local only"),
        Patch(color=PALE, label="centralised"),
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, fontsize=9,
        columnspacing=1.2, handlelength=1.2, borderaxespad=0.2,
    )  # fmt: skip


# --- calibration ----------------------------------------------------------------------------------


def calibration(comparison: Comparison) -> str:
    """Draw observed against predicted risk over all hospitals' test rows, with 95 % intervals."""
    rows = together(comparison.scores)
    bins = calibration_bins(rows.predictions, rows.target)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.9, linestyle=(0, (3, 3)))
        predicted, observed, low, high, count = (
            np.array(column) for column in zip(*bins, strict=True)
        )
        bars = np.clip([observed - low, high - observed], 0.0, None)
        axes.errorbar(
            predicted, observed, yerr=bars, fmt="none", ecolor=ACCENT, elinewidth=1.1, alpha=0.55
        )
        axes.plot(predicted, observed, color=ACCENT, linewidth=1.2, alpha=0.6)
        axes.scatter(predicted, observed, s=14 + count, color=ACCENT, zorder=3)
        figures = comparison.federated.pooled
        lines = [
            f"{name} {with_interval(figures, f'calibration_{name}', 2)}"
            for name in ("slope", "intercept")
        ]
        axes.text(0.02, 0.98, "\n".join(lines), va="top", fontsize=9.5, transform=axes.transAxes)
        axes.set(xlabel="predicted probability", ylabel="share that was sick", aspect="equal")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)

    return svg(draw, 5.0, 4.8)


def calibration_bins(
    predictions: NDArray[np.float64], target: NDArray[np.float64]
) -> list[tuple[float, float, float, float, int]]:
    """Return (mean prediction, share of positives, lower, upper, rows) for equally full bins.

    The bounds are Wilson's 95 % interval (Wilson 1927).
    """
    order = np.argsort(predictions, kind="stable")
    count = max(1, min(_CALIBRATION_BINS, len(order) // _FEW_ROWS))
    found = []
    for members in np.array_split(order, count):
        if len(members):
            share = float((target[members] > 0).mean())
            low, high = wilson(share, len(members))
            found.append((float(predictions[members].mean()), share, low, high, len(members)))
    return found


# --- rounds ---------------------------------------------------------------------------------------


def timeline(history: Sequence[RoundView], sites: Sequence[str]) -> str:
    """Draw who took part in each round, and how long it took."""
    palette = colours(sites)
    shown = history[-_SHORT_MAX:]

    def draw(axes: Axes) -> None:
        for row, site in enumerate(reversed(sites)):
            for place, entry in enumerate(shown):
                if site in entry.survivors:
                    axes.scatter(place, row, s=58, color=palette[site], zorder=3)
                elif site in entry.dropped:
                    axes.scatter(
                        place, row, s=46, facecolor="none", edgecolor=palette[site], zorder=3
                    )
        _seconds(axes, shown)
        axes.set_yticks([-1.3, *range(len(sites))], ["seconds", *reversed(sites)])
        axes.set_xticks(range(len(shown)), _labels(history)[-len(shown) :], fontsize=8.5)
        axes.set_xlim(-0.7, len(shown) - 0.3)
        axes.set_ylim(-1.95, len(sites) - 0.5)
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    return svg(draw, max(6.0, min(11.4, 0.58 * len(shown) + 1.6)), 0.4 * len(sites) + 1.5)


def _seconds(axes: Axes, shown: Sequence[RoundView]) -> None:
    """Write each round's duration, void rounds with a cross."""
    for place, entry in enumerate(shown):
        void = entry.state == "ABORTED"
        text = f"{entry.seconds:.2f}" if entry.seconds < 10 else f"{entry.seconds:.0f}"  # noqa: PLR2004
        axes.text(
            place, -1.3, f"{text}\nvoid" if void else text, ha="center", va="center", fontsize=8.5,
            color=COLOURS[1] if void else INK,
        )  # fmt: skip


def _labels(history: Sequence[RoundView]) -> list[str]:
    """Number the training rounds from 1; a void one has the number of its repetition."""
    found, trained = [], 1
    for entry in history:
        found.append({"statistics": "sums", "evaluate": "test"}.get(entry.kind, str(trained)))
        trained += entry.kind == "train" and entry.state == "CLOSED"
    return found
