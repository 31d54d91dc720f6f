"""How long killed processes took to be back, fault by fault: one picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

ALT: Final = "Seconds from a kill until the coordinator serves, or the hospital is connected, again"

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 760, 330, 40, 44, 22
_PROMISED_S: Final = 5.0
"""Of the coordinator, at the 99th percentile."""
_COLOURS: Final = {"recovery": "#0b6e99", "rejoin": "#b8860b"}
_WORDS: Final = {"recovery": "coordinator serves again", "rejoin": "hospital is connected again"}
_FONT: Final = 'font-family="sans-serif" font-size="12" fill="#222"'

Row = tuple[str, str, tuple[float, float, float]]
"""A fault in words, who is back, and p50, p99 and the longest, seconds."""


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """Return what the report tells of the time until a process was back."""
    return [
        (f"{entry['fault']} {entry['what']}", kind, (values[0], values[1], values[2]))
        for entry in report["faults"]
        for kind in _COLOURS
        if (values := [entry["figures"].get(f"{kind}_{word}_s", -1.0) for word in _POINTS])
        and min(values) >= 0.0
    ]


_POINTS: Final = ("p50", "p99", "max")


def picture(rows: list[Row]) -> str:
    """Return the picture as SVG: a line from the median to the longest, with a dot at the 99th."""
    longest = max(_PROMISED_S, *(values[2] for _, _, values in rows))
    height = _TOP + _ROW * len(rows) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {_FONT}>',
        f"<title>{ALT}</title>",
        *_legend(),
        *_axis(longest, height),
    ]
    for place, row in enumerate(rows):
        parts += _line(place, row, longest)
    return "\n".join((*parts, "</svg>")) + "\n"


def _x(seconds: float, longest: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * seconds / longest


def _legend() -> Iterator[str]:
    for place, (kind, colour) in enumerate(_COLOURS.items()):
        x = _LEFT + 190 * place
        yield f'<circle cx="{x}" cy="14" r="4" fill="{colour}"/>'
        yield f'<text x="{x + 8}" y="18">{_WORDS[kind]}</text>'


def _axis(longest: float, height: int) -> Iterator[str]:
    step = next(step for step in (1, 2, 5, 10, 20, 60) if longest / step <= 10 or step == 60)
    for seconds in range(0, int(longest) + 1, step):
        x, promised = _x(seconds, longest), seconds == _PROMISED_S
        stroke = 'stroke="#8b3a62" stroke-dasharray="4 3"' if promised else 'stroke="#ddd"'
        yield f'<line x1="{x:.1f}" y1="{_TOP - 14}" x2="{x:.1f}" y2="{height - 26}" {stroke}/>'
        yield f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{seconds} s</text>'


def _line(place: int, row: Row, longest: float) -> Iterator[str]:
    name, kind, values = row
    y, colour = _TOP + _ROW * place, _COLOURS[kind]
    half, most, worst = (_x(value, longest) for value in values)
    yield f'<text x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{_short(name)}</text>'
    yield (
        f'<line x1="{half:.1f}" y1="{y}" x2="{worst:.1f}" y2="{y}" stroke="{colour}"'
        ' stroke-width="2"/>'
    )
    yield f'<line x1="{half:.1f}" y1="{y - 5}" x2="{half:.1f}" y2="{y + 5}" stroke="{colour}"/>'
    told = f"{name}: {' / '.join(f'{value:.2f}' for value in values)} s"
    yield f'<circle cx="{most:.1f}" cy="{y}" r="4" fill="{colour}"><title>{told}</title></circle>'


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1].rstrip() + "…"


_MOST_LETTERS: Final = 46
