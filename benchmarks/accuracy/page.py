"""The results page: a table an entry, what must be reached, and one picture of them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.accuracy.frame import AUROC, ROOT, Entry, Must, Result

PAGE: Final = ROOT / "docs" / "accuracy.md"
PICTURE: Final = ROOT / "docs" / "img" / "accuracy.svg"

_HEAD: Final = """\
# Accuracy

<!-- Written by `python -m benchmarks.accuracy page` from the entries' figures; run it again. -->

What models are worth that hospitals train together, beside what each hospital gets alone and what
all rows in one place would give. Every run is a whole federation in one process: nodes, keys,
masks and rounds as in production. Figures are of test rows only, as mean ± standard error over
seeds; a seed changes the order of rows in training, not the split, so the error tells nothing
about other patients. "Each hospital alone" is every hospital's own model on its own test rows.
A hospital whose test rows are of one class has no AUROC.

![Pooled AUROC of each entry, by way of training](img/accuracy.svg)
"""

_LEFT, _RIGHT, _ROW, _TOP = 330, 30, 22, 30
_WIDTH: Final = 760
_LOW, _HIGH = 0.5, 1.0
_FONT: Final = 'font-family="sans-serif" font-size="12" fill="#222"'
_SMALL, _TENS, _LARGE = 5e-5, 10.0, 1000.0
_COLOURS: Final = ("#0b6e99", "#8a8f98", "#b8860b", "#5a7d3a", "#8b3a62")


def write_page(entries: Sequence[Entry]) -> None:
    """Write the page and its picture."""
    PAGE.write_text(_HEAD + "".join(section(entry) for entry in entries), encoding="utf-8")
    PICTURE.write_text(picture(entries), encoding="utf-8")
    for entry in entries:
        if entry.picture:
            own_picture(entry).write_text(entry.picture, encoding="utf-8")


def own_picture(entry: Entry) -> Path:
    """Return where an entry's own picture goes."""
    return PICTURE.with_name(f"accuracy-{entry.name}.svg")


def section(entry: Entry) -> str:
    """Return one entry as Markdown."""
    names = list(dict.fromkeys(name for result in entry.results for name in result.figures))
    lines = [
        f"\n## {entry.title}\n",
        f"`{entry.command}` ({entry.seconds:.0f} s)\n",
        f"{entry.text}\n",
        "| | " + " | ".join(names) + " |",
        "|:---|" + "---:|" * len(names),
    ]
    for result in entry.results:
        cells = [_cell(result, name) for name in names]
        lines.append(f"| {result.way} | " + " | ".join(cells) + " |")
    if entry.picture:
        lines += ["", f"![{entry.title}](img/{own_picture(entry).name})"]
    if entry.musts:
        lines += ["", "| must | found | |", "|:---|---:|:---|"]
        lines += [_must(entry, must) for must in entry.musts]
    return "\n".join(lines) + "\n"


def _cell(result: Result, name: str) -> str:
    if name not in result.figures:
        return ""
    mean, error = result.mean(name), result.error(name)
    if len(result.figures[name]) == 1:
        return _number(mean)
    return f"{_number(mean)} ± {error:.4f}"


def _number(value: float) -> str:
    """Return as many places as tell something; a power of ten of a very small number."""
    size = abs(value)
    if size >= _LARGE or (size > 1 and value == int(value)):
        return f"{value:,.0f}"
    if 0 < size < _SMALL:
        return f"{value:.1e}"
    return f"{value:.1f}" if size >= _TENS else f"{value:.4f}"


def _must(entry: Entry, must: Must) -> str:
    mean = entry.result(must.way).mean(must.figure)
    asked = f"{must.way}, {must.figure} {'at most' if must.at_most else 'at least'} {must.value:g}"
    return f"| {asked} | {_number(mean)} | {'reached' if must.met(mean) else '**not reached**'} |"


def picture(entries: Sequence[Entry]) -> str:
    """Return an SVG: a dot for each way of training's pooled AUROC, with its standard error."""
    rows = [
        (entry, result) for entry in entries for result in entry.results if AUROC in result.figures
    ]
    height = _TOP + _ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        "<title>Pooled AUROC of each entry, by way of training</title>",
        *_axis(height),
    ]
    for place, (entry, result) in enumerate(rows):
        parts += _dot(place, entry, result)
    return "\n".join([*parts, "</svg>", ""])


def _x(value: float) -> float:
    share = (value - _LOW) / (_HIGH - _LOW)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _axis(height: int) -> Iterator[str]:
    for tenth in range(5, 11):
        x = _x(tenth / 10)
        yield f'<line x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{height - 30}" stroke="#ddd"/>'
        yield f'<text x="{x}" y="{height - 14}" text-anchor="middle">{tenth / 10:g}</text>'


def _dot(place: int, entry: Entry, result: Result) -> Iterator[str]:
    y = _TOP + _ROW * place + 6
    mean, error = result.mean(AUROC), result.error(AUROC)
    colour = _COLOURS[[one.way for one in entry.results].index(result.way) % len(_COLOURS)]
    yield f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{entry.name}: {result.way}</text>'
    yield (
        f'<line x1="{_x(mean - error)}" y1="{y}" x2="{_x(mean + error)}" y2="{y}" '
        f'stroke="{colour}" stroke-width="3"/>'
    )
    yield f'<circle cx="{_x(mean)}" cy="{y}" r="4.5" fill="{colour}"/>'
    yield f'<text x="{_x(mean + error) + 9}" y="{y + 4}" font-size="11">{mean:.3f}</text>'
