"""A training study's result as one HTML page: the table of coefficients and its forest plot.

Everything on it stands in the release's files; the content security policy lets nothing load.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from common.study import Study, config_hash
from researcher.coefficients import coefficients_grid, coefficients_head
from researcher.forest import coefficient_forest
from researcher.page import framed, plain_table, write_files

PAGE_FILE: Final = "result.html"


def write_page(study: Study, found: Mapping[str, Any], folder: Path) -> Path:
    """Write the page into a new or empty folder; return the folder's absolute path.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK. ConfigError: NOT_INSTALLED, matplotlib.
    """
    return write_files(folder, {PAGE_FILE: html(study, found).encode()})


def html(study: Study, found: Mapping[str, Any]) -> str:
    """Return the whole page of a table of coefficients (`researcher.coefficients`)."""
    footer = (
        f"Study {study.id}, sha256:{config_hash(study).hex()}. From masked sums over the "
        "hospitals; nobody saw a hospital's own. For research; not a medical device."
    )
    lead = f"{coefficients_head(found)}."
    return framed(study.title or study.id, lead, regression(study, found), footer)


def regression(study: Study, found: Mapping[str, Any]) -> str:
    """Return the sections of an exact regression."""
    notes = "".join(f"<p>{escape(note)}.</p>" for note in (*found["notes"], *_words(study)))
    return (
        f"<section><h2>Coefficients</h2>{coefficient_forest(found)}{notes}</section>"
        f"<section><h2>Coefficients in numbers</h2>{plain_table(*coefficients_grid(found))}"
        "<p>Estimates are per unit of the feature; of a category, against its first level."
        "</p></section>"
    )


def _words(study: Study) -> list[str]:
    units = [f"{one.name} per {one.unit}" for one in study.features if one.unit]
    scale = ["An arrow: the interval, or the whole of it, goes on beyond the picture"]
    return scale + ([f"Units: {', '.join(units)}"] if units else [])
