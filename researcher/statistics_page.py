"""A statistics study's result as one HTML page, with histograms and survival curves.

Everything on it stands in `statistics.json`; the content security policy lets nothing load.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final

from common.statistics_file import NumberEntry, StatisticsFile, SurvivalEntry
from common.study import Study
from researcher import table_one
from researcher.plots import ACCENT, COLOURS, GREY, INK, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE_FILE: Final = "statistics.html"
MARKDOWN_FILE: Final = "table1.md"
_STATISTICS_FILE: Final = "statistics.json"

_PAGE: Final = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>FedCare: $title</title>
<style>
:root { --ink: #1d2b36; --soft: #5b6b78; --line: #e3e8ec; --tint: #f5f8f9; --accent: #0f4c5c; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; }
header { background: var(--accent); color: #fff; padding: 32px 0; }
header > div, main { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header p { margin: 8px 0 0; color: #dcebef; }
h1 { font-size: 28px; margin: 0; font-weight: 650; }
h2 { font-size: 20px; margin: 0 0 12px; font-weight: 650; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 24px 28px; margin: 20px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
.one { width: 100%; border-bottom: 1.5px solid var(--ink); }
.scroll { overflow-x: auto; }
td, th { padding: 4px 10px; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 4px; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink);
  font-weight: 600; padding: 7px 10px; }
tr.head td { font-weight: 600; padding-top: 10px; }
tr.in td:first-child { padding-left: 24px; }
section p { color: var(--soft); font-size: 14px; margin: 12px 0 0; max-width: 860px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.curve { max-width: 760px; }
footer { color: var(--soft); font-size: 13px; padding-bottom: 40px; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; } }
</style>
</head>
<body>
<header><div><h1>$title</h1><p>$lead</p></div></header>
<main>$body
<footer>Study $study, sha256:$digest. From one masked sum over the hospitals; no hospital's own
figures were seen by anybody, so none are shown.</footer></main>
</body>
</html>
""")


def write_all(study: Study, found: StatisticsFile, folder: Path) -> Path:
    """Write the page, the Markdown tables and the figures' file into a new folder.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK. ConfigError: NOT_INSTALLED, matplotlib.
    """
    from common.errors import StateError
    from researcher.release import require_empty

    folder = require_empty(folder)
    files = {
        PAGE_FILE: html(study, found).encode(),
        MARKDOWN_FILE: table_one.markdown(found).encode(),
        _STATISTICS_FILE: found.to_json(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StateError("DISK", f"{folder}: {error.strerror}") from None
    return folder


def html(study: Study, found: StatisticsFile) -> str:
    """Return the whole page."""
    if not found.columns:
        body, lead = f"<section>{escape(table_one.text(found))}</section>", ""
    else:
        parts = (_table(found), _curves(found), _histograms(found), _cross(found))
        body, lead = "".join(parts), f"{found.columns[0].n} patients of all hospitals together."
    return _PAGE.substitute(
        title=escape(study.title or study.id),
        lead=lead,
        body=body,
        study=escape(found.study),
        digest=escape(found.config_hash),
    )


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


def _plain(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _cross(found: StatisticsFile) -> str:
    return "".join(
        f"<section><h2>{escape(one.rows)} by {escape(one.columns)}</h2>"
        f"{_plain(*table_one.cross_grid(one))}</section>"
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
                edgecolor="white" if shown else GREY,
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
        f"<section><h2>Survival in numbers</h2>{_plain(head, body)}</section>"
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
