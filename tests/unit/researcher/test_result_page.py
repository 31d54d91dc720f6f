"""A release's figures as text and as a page: every published one, and nothing that breaks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import evaluation
from common.errors import StateError
from common.evaluation_document import document
from common.study import Study
from researcher.evaluation_file import evaluation_text, read_evaluation
from researcher.result_page import Result, html
from tests.learning import study
from tests.unit.researcher.test_report import Checker, comparison

LEVELS = ("benign", "<i>odd</i>", "$5 to $10")
KINDS = ("binary", "multiclass", "continuous")


def terms(kind: str) -> Study:
    levels = ", ".join(f"'{level}'" for level in LEVELS)
    return study(
        target={
            "binary": "{type: binary, name: y}",
            "multiclass": f"{{type: multiclass, name: y, levels: [{levels}]}}",
            "continuous": "{type: continuous, name: y}",
        }[kind],
        model="{kind: mlp, hidden: [4]}",
    )


def released(kind: str, rows: int = 200) -> dict[str, Any]:
    """Return `evaluation.json` of random predictions."""
    rng, of = np.random.default_rng(1), terms(kind)
    if kind == "multiclass":
        p, y = rng.dirichlet(np.ones(3), rows), rng.integers(0, 3, rows).astype(float)
    elif kind == "binary":
        p, y = rng.random(rows), rng.integers(0, 2, rows).astype(float)
    else:
        p, y = rng.normal(20, 5, rows), rng.normal(20, 5, rows)
    found: dict[str, Any] = json.loads(document(of, evaluation.site_metrics(of, p, y), ()))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_published_figure_is_on_the_page_and_in_the_text(kind: str) -> None:
    found = released(kind)
    page, text = html(terms(kind), Result(found)), evaluation_text(found)
    for name, value in found["figures"].items():
        if not name.endswith(("_low", "_high")):
            shown = str(value) if isinstance(value, int) else f"{value:.3f}"
            assert shown in page, name
            assert shown in text, name


def test_levels_and_the_confusion_table_are_on_the_page_as_text() -> None:
    found = released("multiclass")
    page = html(terms("multiclass"), Result(found))
    checker = Checker()
    checker.feed(page)
    assert (checker.outside, checker.open, checker.svgs) == ([], [], 1)
    assert "<i>" not in page
    assert "&lt;i&gt;odd" in page
    assert page.count("$5 to $10") >= 4  # picture, figures, row and column
    for row in found["confusion"]:
        assert "".join(f"<td>{count}</td>" for count in row) in page


def test_a_confusion_table_that_was_withheld_is_said_to_be() -> None:
    found = {**released("multiclass"), "confusion": []}
    assert "Too few rows for a table" in html(terms("multiclass"), Result(found))


def test_a_run_over_few_rows_has_a_page_that_says_so() -> None:
    assert "Too few test rows" in html(terms("binary"), Result())


def test_hospitals_of_a_simulation_have_their_rows_and_a_dash_for_no_value() -> None:
    page = html(terms("binary"), Result(released("binary"), None, comparison(one_class=True)))
    assert "whose owner has all the data" in page
    for site in ("cleveland", "hungarian", "va"):
        assert page.count(f"<td>{site}</td>") == 3
    assert "<td>va</td><td>60</td><td>-</td>" in page
    assert "nan" not in page.lower().replace("finance", "")


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"schema": "fedcare.evaluation/v9"}'])
def test_a_file_that_holds_no_figures_is_refused(tmp_path: Path, text: str) -> None:
    assert read_evaluation(tmp_path) is None
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(StateError) as caught:
        read_evaluation(tmp_path)
    assert caught.value.name == "MODEL_INVALID"
