"""The table of an exact regression, as it lies in a release and as people read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import StateError
from common.manifest import COEFFICIENTS_FILE
from common.regression.table import RATIOS, SCHEMA


def read_coefficients(folder: Path) -> dict[str, Any] | None:
    """Return the table of an exact regression as data; None where the release has none.

    Raises:
        StateError: MODEL_INVALID, the file is not such a table.
    """
    path = folder / COEFFICIENTS_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["schema"] != SCHEMA:
            raise StateError("MODEL_INVALID", f"{path} is of another version")
    except (OSError, ValueError, KeyError, TypeError):
        raise StateError("MODEL_INVALID", f"{path} is not a table of coefficients") from None
    return dict(found)


def coefficients_grid(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the table's head and cells as text, a line for each coefficient."""
    ratio = RATIOS.get(found["family"])
    head = ["coefficient", "estimate", "std. error", f"{found['confidence']:.0%} interval", "p"]
    head += [ratio, "its interval"] if ratio else []
    rows = []
    for line in found["coefficients"]:
        cells = [
            line["name"],
            _number(line["coefficient"]),
            _number(line["standard_error"]),
            _interval(line["low"], line["high"]),
            p_text(line["p_value"]),
        ]
        if ratio:
            cells += [_number(line["ratio"]), _interval(line["ratio_low"], line["ratio_high"])]
        rows.append(cells)
    return head, rows


def coefficients_head(found: Mapping[str, Any]) -> str:
    """Return what was fitted, to how many rows, and whether it converged, in one line."""
    state = "converged" if found["converged"] else "NOT CONVERGED"
    return (
        f"{found['family']} regression of {found['rows']} rows, {state} in {found['rounds']} rounds"
        f"; log-likelihood {found['log_likelihood']:.6g}, AIC {found['aic']:.6g}"
    )


def coefficients_text(found: Mapping[str, Any]) -> str:
    """Return the table for people: a line for each coefficient."""
    from common.tables import table

    head, rows = coefficients_grid(found)
    notes = [f"note: {note}" for note in found["notes"]]
    lines = table(head, rows, right=frozenset({1, 2, 4, 5}))
    return "\n".join([coefficients_head(found), lines, *notes])


def p_text(value: float | None) -> str:
    """Return a p-value as papers print it."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004


def _number(value: float | None) -> str:
    return "-" if value is None else format(value, ".4g")


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.4g} to {high:.4g}"
