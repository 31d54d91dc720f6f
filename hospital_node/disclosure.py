"""What may leave the hospital in words and counts, and what is shown even inside it.

Two rules. A failure of the hospital's own files, rows or machine is told by its kind only:
names, widths, row numbers and cells of its tables stay in its own log. And a count below
the policy's `release.min_cell` is never written down, not in the hospital's own report
either: a report is mailed around sooner or later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.errors import ConfigError, DataError, FedError, IdentityError, StateError
from common.evaluation import CELLS, TABLE_RATES


def public_detail(failure: FedError) -> str:
    """Return the line about a failure that may leave the hospital.

    Data, files and our own bugs are described by their kind only.
    """
    private = isinstance(failure, DataError | ConfigError | StateError | IdentityError)
    return failure.kind.meaning if private else failure.detail


def shown_figures(figures: Mapping[str, float | None], min_cell: int) -> dict[str, object]:
    """Return a hospital's own figures with every count below `min_cell` withheld.

    Over fewer rows nothing but `<min_cell` is shown. Where one of two classes has fewer,
    its count (of a survival target, that of events or of the censored, which
    `common.evaluation_document.withheld` left out) is given as a bound, and what needs both
    classes is left out: the AUROC, which ranks its few rows, and all intervals. Where a cell
    of the confusion table has fewer, the table and its rates are.
    """
    rows = figures.get("rows") or 0
    if rows < min_cell:
        return {"rows": f"<{min_cell}"}
    if "events" in figures and figures["events"] is None:
        bound = f"<{min_cell}" if figures["c_index"] is None else f">{rows - min_cell:g}"
        return {**figures, "events": bound}
    positives = figures.get("positives")
    if positives is None or min(positives, rows - positives) >= min_cell:
        return _without_small_table(figures, min_cell)
    few = positives < min_cell
    bound = f"<{min_cell}" if few else f">{rows - min_cell:g}"
    kept = {name: figures[name] for name in _WITH_ONE_CLASS if name in figures}
    return {**kept, "positives": bound, "auroc": None}


_WITH_ONE_CLASS: Final = ("rows", "positives", "auroc", "accuracy", "brier", "log_loss")


def _without_small_table(figures: Mapping[str, float | None], min_cell: int) -> dict[str, object]:
    if all((figures.get(cell) or 0) >= min_cell for cell in CELLS if cell in figures):
        return dict(figures)
    return {
        name: value
        for name, value in figures.items()
        if name not in CELLS and not name.startswith(TABLE_RATES)
    }
