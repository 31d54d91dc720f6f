"""A statistics study's result as one HTML page, with histograms and survival curves.

Everything on it stands in `statistics.json`; the content security policy lets nothing load.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.statistics_file import NumberEntry, StatisticsFile, SurvivalEntry
from common.study import Study
from researcher import table_one
from researcher.page import framed, plain_table, write_files
from researcher.plots import ACCENT, COLOURS, GREY, INK, PALE, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE_FILE: Final = "statistics.html"
MARKDOWN_FILE: Final = "table1.md"
_STATISTICS_FILE: Final = "statistics.json"


def write_all(study: Study, found: StatisticsFile, folder: Path) -> Path:
    """Write the page, the Markdown tables and the figures' file into a new folder.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK. ConfigError: NOT_INSTALLED, matplotlib.
    """
    return write_files(
        folder,
        {
            PAGE_FILE: html(study, found).encode(),
            MARKDOWN_FILE: table_one.markdown(found).encode(),
            _STATISTICS_FILE: found.to_json(),
        },
    )


def html(study: Study, found: StatisticsFile) -> str:
    """Return the whole page."""
    if not found.columns:
        body, lead = f"<section>{escape(table_one.text(found))}</section>", ""
    else:
        parts = (_table(found), _curves(found), _histograms(found), _cross(found))
        body, lead = "".join(parts), f"{found.columns[0].n} patients of all hospitals together."
    footer = (
        f"Study {found.study}, sha256:{found.config_hash}. From one masked sum over the hospitals; "
        "no hospital's own figures were seen by anybody, so none are shown."
    )
    return framed(study.title or study.id, lead, body, footer)


def _table(found: StatisticsFile) -> str:
    rows = []
    for line in table_one.lines(found):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in line.cells)
        kind = "head" if line.head else "in"
        rows.append(f'<tr class="{kind}"><td>{escape(line.label)}</td>{cells}</tr>')
    heads = "".join(f"<th>{escape(head)}</th>" for head in ("", *table_one.heads(found)))
    notes = escape(" ".join(table_one.notes(found)))
    return (
        f'<section><h2>Table 1. Patients</h2><div class="scroll"><table class="one">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>{notes}</p></section>"
    )


def _cross(found: StatisticsFile) -> str:
    return "".join(
        f"<section><h2>{escape(one.rows)} by {escape(one.columns)}</h2>"
        f"{plain_table(*table_one.cross_grid(one))}</section>"
        for one in found.cross
    )


# --- histograms -----------------------------------------------------------------------------


def _histograms(found: StatisticsFile) -> str:
    numbers = [entry for entry in found.features if isinstance(entry, NumberEntry)]
    drawn = [_histogram(entry) for entry in numbers if entry.histogram]
    if not drawn:
        return ""
    return (
        f'<section><h2>Distributions, all patients</h2><div class="grid">{"".join(drawn)}</div>'
        f"<p>Bars are as wide as they must be to hold at least {found.min_cell} patients, or none; "
        "their area is the number of patients. An empty frame: not published.</p></section>"
    )


def _histogram(entry: NumberEntry) -> str:
    bars = entry.histogram
    unit = f" ({entry.unit})" if entry.unit else ""

    def draw(axes: Axes) -> None:
        heights = [(bar.count or 0) / (bar.high - bar.low) for bar in bars]
        for bar, height in zip(bars, heights, strict=True):
            shown = bar.count is not None
            axes.bar(
                bar.low,
                height if shown else max(heights) * 0.06,
                width=bar.high - bar.low,
                align="edge",
                color=COLOURS[0] if shown else "none",
                edgecolor=PALE if shown else GREY,
                linewidth=0.8,
            )
        axes.set_xlabel(f"{entry.name}{unit}")
        axes.set_ylabel(f"patients per {entry.unit or 'unit'}")

    return f"<div>{svg(draw, 4.2, 2.7)}</div>"


# --- survival -------------------------------------------------------------------------------


def _curves(found: StatisticsFile) -> str:
    entry = found.survival
    if entry is None:
        return ""
    tests = "".join(f"<p>{escape(words)}</p>" for words in table_one.test_words(entry))
    head, body = table_one.curve_grid(found, entry)
    return (
        f"<section><h2>Survival, {escape(entry.time)}</h2>"
        f'<div class="curve">{_curve(found, entry)}</div>{tests}'
        "<p>Kaplan-Meier estimates with 95&nbsp;% intervals. Dots: the published times, where the "
        f"curve is exact; it steps only once {found.min_cell} events came since the one before "
        "and stops where too few would be left.</p></section>"
        f"<section><h2>Survival in numbers</h2>{plain_table(head, body)}</section>"
    )


def _curve(found: StatisticsFile, entry: SurvivalEntry) -> str:
    unit = f" ({entry.unit})" if entry.unit else ""

    def draw(axes: Axes) -> None:
        for place, curve in enumerate(entry.curves):
            colour = COLOURS[place % len(COLOURS)] if len(entry.curves) > 1 else ACCENT
            times = [0.0, *(step.time for step in curve.steps)]
            survival = [1.0, *(step.survival for step in curve.steps)]
            label = f"{table_one.curve_label(found, curve.label)} (n = {curve.n})"
            axes.step(times, survival, where="post", color=colour, linewidth=1.8, label=label)
            axes.plot(times[1:], survival[1:], "o", color=colour, markersize=3.5)
            low = [1.0, *(one.survival if one.low is None else one.low for one in curve.steps)]
            high = [1.0, *(one.survival if one.high is None else one.high for one in curve.steps)]
            axes.fill_between(times, low, high, step="post", color=colour, alpha=0.13, linewidth=0)
        axes.set(xlabel=f"{entry.time}{unit}", ylabel="share without the event")
        axes.set_ylim(0, 1.03)
        axes.set_xlim(left=0)
        axes.legend(loc="lower left", labelcolor=INK)

    return svg(draw, 6.8, 4.2)
