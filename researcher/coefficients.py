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


def coefficients_text(found: Mapping[str, Any]) -> str:
    """Return the table for people: a line for each coefficient."""
    from common.tables import table
    from common.text import escape

    def number(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else format(value, form)

    def interval(low: float | None, high: float | None) -> str:
        return "-" if low is None or high is None else f"{low:.4g} to {high:.4g}"

    ratio = RATIOS.get(found["family"])
    rows = []
    for line in found["coefficients"]:
        p = line["p_value"]
        cells = [
            escape(line["name"]),
            number(line["coefficient"]),
            number(line["standard_error"]),
            interval(line["low"], line["high"]),
            "-" if p is None else ("<0.001" if p < 0.001 else f"{p:.3f}"),  # noqa: PLR2004
        ]
        if ratio:
            cells += [number(line["ratio"]), interval(line["ratio_low"], line["ratio_high"])]
        rows.append(tuple(cells))
    head = ["coefficient", "estimate", "std. error", f"{found['confidence']:.0%} interval", "p"]
    head += [ratio, "its interval"] if ratio else []
    state = "converged" if found["converged"] else "NOT CONVERGED"
    first = (
        f"{found['family']} regression of {found['rows']} rows, {state} in {found['rounds']} rounds"
    )
    first += f"; log-likelihood {found['log_likelihood']:.6g}, AIC {found['aic']:.6g}"
    notes = [f"note: {note}" for note in found["notes"]]
    return "\n".join([first, table(tuple(head), rows, right=frozenset({1, 2, 4, 5})), *notes])
