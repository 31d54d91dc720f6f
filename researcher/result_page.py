"""A training study's result as one HTML page: what the model is worth, and its coefficients.

Everything on it stands in the release's signed files, or, where one person owns all the data
(`fedcare sim`), in the comparison with each hospital alone and all rows in one place. The
content security policy lets nothing load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from common.evaluation import headline
from common.study import Study, config_hash
from researcher import evaluation_file, medical_plots
from researcher.coefficients import coefficients_grid, coefficients_head
from researcher.comparison import Comparison
from researcher.figures import names_of
from researcher.forest import coefficient_forest
from researcher.page import framed, plain_table, write_files

PAGE_FILE: Final = "result.html"


@dataclass(frozen=True, slots=True)
class Result:
    """What a page is made of: each part where there is one.

    `evaluation` is `evaluation.json`, `regression` `coefficients.json`, as data.
    """

    evaluation: Mapping[str, Any] | None = None
    regression: Mapping[str, Any] | None = None
    comparison: Comparison | None = None


def write_page(study: Study, result: Result, folder: Path) -> Path:
    """Write the page into a new or empty folder; return the folder's absolute path.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK.
    """
    return write_files(folder, {PAGE_FILE: html(study, result).encode()})


def html(study: Study, result: Result) -> str:
    """Return the whole page."""
    parts: list[str] = []
    if result.evaluation is not None:
        parts += [_figures(result.evaluation), _levels(result.evaluation)]
    if result.comparison is not None:
        parts.append(_hospitals(study, result.comparison))
    if result.evaluation is not None:
        parts.append(_subgroups(result.evaluation))
    if result.regression is not None:
        parts.append(_regression(study, result.regression))
    footer = (
        f"Study {study.id}, sha256:{config_hash(study).hex()}. From masked sums over the "
        "hospitals; nobody saw a hospital's own. For research; not a medical device."
    )
    if result.comparison is not None:
        footer += " Figures by hospital: from a simulation, whose owner has all the data."
    return framed(study.title or study.id, _lead(study, result), "".join(parts), footer)


def _lead(study: Study, result: Result) -> str:
    if result.regression is not None:
        return f"{coefficients_head(result.regression)}."
    rows = (result.evaluation or {"figures": {}})["figures"].get("rows")
    tested = "Too few test rows for any figure" if rows is None else f"{rows} test rows"
    return f"{study.model.kind} model, target {study.target.type}. {tested} of all hospitals."


def _figures(found: Mapping[str, Any]) -> str:
    head = ("figure", f"value ({found['confidence']:.0%} interval)")
    return (
        "<section><h2>All hospitals together</h2>"
        f"{plain_table(head, evaluation_file.figures_grid(found['figures']))}"
        "<p>Over test rows, which no model saw; from masked sums and histograms.</p></section>"
    )


def _levels(found: Mapping[str, Any]) -> str:
    levels = found.get("levels", ())
    if not levels:
        return ""
    rows = [(one["level"], one["figures"]) for one in levels]
    table, counts = evaluation_file.levels_grid(found), evaluation_file.confusion_grid(found)
    confusion = plain_table(*counts) if counts[1] else "<p>Too few rows for a table.</p>"
    return (
        "<section><h2>Each level against the rest</h2>"
        f"{medical_plots.forest([*rows, ('mean of the levels', found['figures'])])}"
        f"{plain_table(*table)}</section>"
        f"<section><h2>Confusion table</h2>{confusion}</section>"
    )


def _hospitals(study: Study, comparison: Comparison) -> str:
    by_site = comparison.federated.by_site
    shown = {*headline(study), "calibration_slope", "calibration_intercept"}
    names = ["rows", *(n for n in names_of(comparison.federated.pooled) if n in shown)]
    kinds = (("federated model", comparison.federated), ("local only", comparison.local_only),
             ("all rows in one place", comparison.centralised))  # fmt: skip
    sections = []
    for words, kind in kinds:
        cells = [
            [site, *(evaluation_file.value_text(kind.by_site[site], name) for name in names)]
            for site in by_site
        ]
        if kind is not comparison.local_only:
            pooled = [evaluation_file.value_text(kind.pooled, name) for name in names]
            cells.append(["all hospitals", *pooled])
        head = ["hospital", *(evaluation_file.title(name) for name in names)]
        sections.append(f"<h2>By hospital: {words}</h2>{plain_table(head, cells)}")
    notes = "<p>Local only: what each hospital makes of its own rows, tested at home.</p>"
    return f"<section>{'<br>'.join(sections)}{notes}</section>"


def _subgroups(found: Mapping[str, Any]) -> str:
    grid = evaluation_file.subgroups_grid(found)
    if not grid[1]:
        return ""
    return (
        f"<section><h2>By subgroup</h2>{plain_table(*grid)}<p>A dash: fewer than "
        f"{found['least']} patients of a class, or a figure from which so few would follow."
        "</p></section>"
    )


def _regression(study: Study, found: Mapping[str, Any]) -> str:
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
