"""Plain tables and bars for people at a terminal; every cell is made safe to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from common.text import escape

Row: TypeAlias = Sequence[str]

BAR_WIDTH: Final = 24


def table(head: Row, rows: Sequence[Row], *, right: frozenset[int] = frozenset()) -> str:
    """Return a plain table; columns of `right` are aligned to the right."""
    lines = [tuple(escape(cell) for cell in row) for row in (head, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]

    def line(cells: Row) -> str:
        parts = [
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(parts).rstrip()

    return "\n".join(line(cells) for cells in lines)


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """Return `[#####....]`: empty only at 0, full only from 1 on."""
    if share >= 1:
        filled = width
    else:
        filled = min(width - 1, max(1, round(share * width))) if share > 0 else 0
    return "[" + "#" * filled + "." * (width - filled) + "]"
