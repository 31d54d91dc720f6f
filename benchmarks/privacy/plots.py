"""The two pictures of README.md, in the style of the demo's report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.privacy.report import Cell, Table
from researcher.plots import ACCENT, COLOURS, GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedcare",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}
_SHIPPED: Final = "as shipped"
_WIDE: Final = 40.0


def _save(path: Path, draw: Callable[[Axes], None], width: float, height: float) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(path, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", path.read_text("utf-8"), flags=re.DOTALL)
    lines = (line.rstrip() for line in text.splitlines())
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def epsilon_picture(table: Table, path: Path) -> None:
    """Draw each audit's bound as a multiple of the epsilon that is charged."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    rows = [row for row in rows if row["charged"] is not None]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(reversed(rows)):
            whole = row["mechanism"] == _SHIPPED
            colour = ACCENT if whole else COLOURS[1]
            share = _best(row) / _number(row["charged"])
            axes.plot([0.02, max(share, 0.021)], [place, place], color=colour, linewidth=2)
            axes.scatter([max(share, 0.021)], [place], color=colour, s=34, zorder=3)
            shown = max(share, 0.021) * 1.15
            text = axes.text(shown, place, f"{share:.2g}", va="center", fontsize=8.5, zorder=4)
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(0.02, _WIDE * 2)
        axes.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])
        axes.set_yticks(range(len(rows)), [_label(row) for row in reversed(rows)], fontsize=8.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("proved of epsilon / epsilon charged")

    _save(path, draw, 7.6, 0.3 * len(rows) + 0.8)


def _best(row: dict[str, Cell]) -> float:
    names = ("bound, free", "bound, gaussian", "bound, one run")
    return max(_number(row[name]) for name in names)


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else 0.0


def _label(row: dict[str, Cell]) -> str:
    sampled = row["p"] is not None and row["p"] != 1
    details = f", p {row['p']:g}" if sampled else ""
    rows = f", {row['rows of a patient']} rows" if row["rows of a patient"] != 1 else ""
    return f"{row['mode']}{details}{rows}: {row['mechanism']}"


def inversion_picture(table: Table, model: str, path: Path) -> None:
    """Draw the reconstruction error of one model's records by patients of a hospital."""
    counts = [int(name.split()[0]) for name in table.columns[2:]]
    colours = {
        "in the clear": COLOURS[1],
        "opened sum": COLOURS[4],
        "masked": ACCENT,
        "with shared DP": COLOURS[2],
        "with local DP": COLOURS[3],
        "guess: other patients": GREY,
    }

    def draw(axes: Axes) -> None:
        axes.axhline(1, color=PALE, linewidth=6, zorder=0)
        for row in table.rows:
            view = str(row[1])
            if row[0] == model:
                values = [min(_number(cell), 3.0) for cell in row[2:]]
                style = "--" if view.startswith("guess") else "-"
                places = [math.log2(count) for count in counts]
                axes.plot(
                    places, values, style, color=colours[view], marker="o", markersize=4, label=view
                )
        axes.set_xticks([math.log2(count) for count in counts], [str(count) for count in counts])
        axes.set_xlabel("training patients of each of the four hospitals")
        axes.set_ylabel("error, standard deviations")
        axes.set_ylim(-0.05, 3.1)
        axes.legend(fontsize=8.5, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))

    _save(path, draw, 6.4, 3.6)
