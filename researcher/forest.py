"""The forest plot of an exact regression: a line for each coefficient.

Models with ratios are drawn as ratios on a log scale around 1, in the features' own units as
papers have them. A linear model's coefficients, each in a unit of its own, could not share an
axis: they are drawn per standard deviation of the pooled rows, around 0.

A separated class or a nearly constant column has an interval thousands of times as wide as the
others. It is cut off at the frame, where an arrow says so, so that the rest stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from common.regression.table import RATIOS
from researcher.coefficients import p_text
from researcher.plots import ACCENT, GREY, INK, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN: Final = 44
"""Characters of a name; a longer one keeps its end, where a category's level stands."""
_TAIL: Final = 16
_ALWAYS: Final = math.log(20.0)
"""Ratios between 1/20 and 20 are never cut off."""
_FARTHEST: Final = math.log(1000.0)
"""A ratio beyond 1000 is a sign of separation; the axis does not reach out for it."""
_WIDER: Final = 3.0
"""A linear model's axis reaches to so many times the largest coefficient at most."""
_FEW: Final = math.log(5.0)
_DECADES: Final = math.log(2000.0)
_PLAIN: Final = math.log(10.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A coefficient and its interval on the axis (of a ratio: its logarithm); None: no value."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    p: float | None


def bars(found: Mapping[str, Any]) -> list[Bar]:
    """Return what is drawn of a table of coefficients: all but the intercept."""
    lines = [line for line in found["coefficients"] if line["name"] != "(intercept)"]
    if found["family"] in RATIOS:
        keys = ("name", "coefficient", "low", "high", "p_value")
        return [Bar(*(line[key] for key in keys)) for line in lines]
    return [_per_deviation(line) for line in lines]


def _per_deviation(line: Mapping[str, Any]) -> Bar:
    value = line["standardised"]
    if value is None:
        return Bar(line["name"], None, None, None, None)
    half = (line["high"] - line["coefficient"]) / line["standard_error"]
    half *= line["standardised_error"]
    return Bar(line["name"], value, value - half, value + half, line["p_value"])


def frame(shown: Sequence[Bar], *, ratios: bool) -> tuple[float, float]:
    """Return the axis' ends: around 0 and every interval, but for those too wide to show."""
    values = [abs(bar.value) for bar in shown if bar.value is not None]
    ends = [end for bar in shown for end in (bar.low, bar.high) if end is not None]
    if ratios:
        near = [value for value in values if value <= _FARTHEST]
        limit = max(_ALWAYS, 1.2 * max(near, default=0.0))
    else:
        limit = _WIDER * max(values, default=0.0)
    low, high = max(min([0.0, *ends]), -limit), min(max([0.0, *ends]), limit)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def ratio_ticks(low: float, high: float) -> list[float]:
    """Return round ratios within e^low to e^high, 1 among them where it is inside."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.exp(low), math.exp(high)
    if high - low < _FEW:
        # Steps away from 1, which is then one of them.
        steps_away = MaxNLocator(6, min_n_ticks=3).tick_values(first - 1.0, last - 1.0)
        found = [1.0 + float(step) for step in steps_away]
    else:
        steps = (1.0,) if high - low > _DECADES else (1.0, 2.0, 5.0)
        powers = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in found if first <= tick <= last]


def coefficient_forest(found: Mapping[str, Any]) -> str:
    """Return the plot as an `<svg>` element; empty where there is no coefficient to draw.

    Raises:
        ConfigError: NOT_INSTALLED, matplotlib.
    """
    shown, ratio = list(reversed(bars(found))), RATIOS.get(found["family"])
    if not shown:
        return ""
    low, high = frame(shown, ratios=ratio is not None)

    def draw(axes: Axes) -> None:
        axes.set_xlim(low, high)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.axvline(0.0, color=GREY, linewidth=1.0, linestyle=(0, (3, 3)), zorder=1)
        for place, bar in enumerate(shown):
            _draw_bar(axes, place, bar, (low, high), ratios=ratio is not None)
        axes.set_yticks(range(len(shown)), [short(bar.name) for bar in shown])
        if ratio is not None:
            ticks = ratio_ticks(low, high)
            axes.set_xticks([math.log(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
        interval = f"{found['confidence']:.0%} interval"
        what = "coefficient per standard deviation" if ratio is None else f"{ratio} (log scale)"
        axes.set_xlabel(f"{what}, {interval}")
        axes.tick_params(axis="y", length=0, pad=9)
        axes.spines["left"].set_visible(False)

    return svg(draw, 9.4, 0.34 * len(shown) + 0.9)


def short(name: str) -> str:
    """Return a name of at most 44 characters, its end kept."""
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - _TAIL - 1]}…{name[-_TAIL:]}"


def _draw_bar(axes: Axes, place: int, bar: Bar, ends: tuple[float, float], *, ratios: bool) -> None:
    beside = axes.get_yaxis_transform()
    if bar.value is None or bar.low is None or bar.high is None:
        text = "the data do not fix it"
        axes.text(1.02, place, text, transform=beside, va="center", fontsize=9, color=GREY)
        return
    low, high = ends
    inner = (max(bar.low, low), min(bar.high, high))
    if inner[0] < inner[1]:
        axes.plot(inner, [place, place], color=ACCENT, linewidth=1.5, zorder=2)
    for cut, at, mark in ((bar.low < low, low, "<"), (bar.high > high, high, ">")):
        if cut:
            axes.plot([at], [place], mark, color=ACCENT, markersize=7, clip_on=False, zorder=3)
    if low <= bar.value <= high:
        axes.plot([bar.value], [place], "s", color=ACCENT, markersize=5.5, zorder=3)
    text = f"{_figures(bar, ratios=ratios)}, p {p_text(bar.p)}"
    axes.text(1.02, place, text, transform=beside, va="center", fontsize=9.5, color=INK)


def _figures(bar: Bar, *, ratios: bool) -> str:
    value, low, high = (
        _power(number) if ratios else f"{number:.3g}"
        for number in (bar.value or 0.0, bar.low or 0.0, bar.high or 0.0)
    )
    return f"{value} ({low} to {high})"


def _power(log: float) -> str:
    """Return e^log, however large, in three digits or decimals."""
    if abs(log) > 600.0:  # noqa: PLR2004 - float64 ends at e^709
        return f"1e{log / math.log(10.0):+.0f}"
    return f"{math.exp(log):.3f}" if abs(log) < _PLAIN else f"{math.exp(log):.3g}"
