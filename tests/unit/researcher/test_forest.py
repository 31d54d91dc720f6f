"""The forest plot of a regression: what is drawn where, and a page that needs nothing else."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.study import parse_study
from researcher import forest
from researcher.coefficients import coefficients_text
from researcher.result_page import Result, html
from tests.unit.researcher.test_report import Checker

Z = 1.959964
STUDY = """
schema: fedcare.study/v1
id: exact
title: Odds & ends
purpose: research
dataset: t
owner: {name: A, organisation: b}
features: [{name: age, type: float, unit: a}, {name: stage, type: category, levels: [i, ii]}]
target: {type: binary, name: y}
model: {kind: logistic}
federation: {min_sites: 3, strategy: {name: newton}}
"""


def exp(value: float) -> float | None:
    return math.exp(value) if value < 709 else None


def line(
    name: str, value: float | None, error: float = 0.1, own: float | None = None
) -> dict[str, Any]:
    """Return a line of a released table; `own`: the coefficient in the feature's unit."""
    if value is None:
        return {**dict.fromkeys(line("", 1.0)), "name": name}
    factor = 1.0 if own is None else own / value
    ends = [factor * (value + side * Z * error) for side in (-1, 1)]
    return {
        "name": name, "coefficient": factor * value, "standard_error": factor * error,
        "low": ends[0], "high": ends[1], "statistic": value / error, "p_value": 0.0213,
        "standardised": value, "standardised_error": error,
        "ratio": exp(factor * value), "ratio_low": exp(ends[0]), "ratio_high": exp(ends[1]),
    }  # fmt: skip


def found(*lines: dict[str, Any], family: str = "logistic", **other: object) -> dict[str, Any]:
    return {
        "family": family, "confidence": 0.95, "rows": 486, "rounds": 6, "converged": True,
        "log_likelihood": -200.5, "aic": 411.0, "notes": [], "coefficients": list(lines), **other,
    }  # fmt: skip


def texts(svg: str) -> list[str]:
    root = ET.fromstring(svg)  # noqa: S314 - made here
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def arrows(table: dict[str, Any]) -> tuple[int, int]:
    """Return how many intervals go on to the left and to the right of the frame."""
    shown = forest.bars(table)
    low, high = forest.frame(shown, ratios=table["family"] != "linear")
    return (
        sum(bar.low is not None and bar.low < low for bar in shown),
        sum(bar.high is not None and bar.high > high for bar in shown),
    )


def test_every_coefficient_but_the_intercept_has_its_line_ratio_and_p() -> None:
    table = found(line("age", 0.05), line("stage=ii", None), line("(intercept)", -2.0))
    words = texts(forest.coefficient_forest(table))
    assert "1.051 (0.864 to 1.279), p 0.021" in words
    assert "the data do not fix it" in words
    assert "odds ratio (log scale), 95% interval" in words
    assert {"age", "stage=ii"} <= set(words)
    assert "(intercept)" not in words
    assert "1" in words  # the reference line's tick


def test_a_separated_class_does_not_squeeze_the_others() -> None:
    usual = [line("age", 0.5), line("sex=1", -1.0)]
    low, high = forest.frame(forest.bars(found(*usual)), ratios=True)
    assert (low, high) == pytest.approx((-1.27, 0.77), abs=0.01)
    table = found(*usual, line("separated", 21.0, 9000.0), line("rare", 0.4, 5.0))
    low, high = forest.frame(forest.bars(table), ratios=True)
    assert (math.exp(low), math.exp(high)) == pytest.approx((1 / 20, 20), rel=0.35)
    assert arrows(table) == (2, 2)
    words = texts(forest.coefficient_forest(table))
    assert any("1e-7652 to 1e+7670" in word for word in words)


def test_each_cut_end_has_one_arrow_and_no_other_has() -> None:
    table = found(line("age", 0.5), line("rare", 0.4, 5.0), line("high", 2.0, 1.0))
    low, high = forest.frame(forest.bars(table), ratios=True)
    marks = forest.coefficient_forest(table).count("<use ")
    assert arrows(table) == (1, 2)
    squares = len(table["coefficients"])
    assert marks == len(forest.ratio_ticks(low, high)) + squares + 3  # arrows


def test_a_large_but_credible_ratio_is_not_cut_off() -> None:
    table = found(line("age", 0.1), line("stage=ii", 4.0, 0.1))
    assert arrows(table) == (0, 0)
    assert math.exp(4.0) < 20 * 3


def test_a_linear_model_is_drawn_per_standard_deviation() -> None:
    table = found(line("age", 2.0, 0.5, own=0.2), line("odd", 3.0, 90.0), family="linear")
    first = forest.bars(table)[0]
    assert (first.value, first.low, first.high) == pytest.approx((2.0, 2 - Z * 0.5, 2 + Z * 0.5))
    assert arrows(table) == (1, 1)
    assert any("per standard deviation" in word for word in texts(forest.coefficient_forest(table)))


def test_a_long_name_is_cut_in_its_middle_and_a_dollar_is_a_dollar() -> None:
    name = "a laboratory value whose name does not end=$5 to $10 a day"
    assert len(forest.short(name)) == 44
    words = texts(forest.coefficient_forest(found(line(name, 0.2))))
    assert forest.short(name) in words
    assert forest.short(name).endswith("$5 to $10 a day")


def test_colours_are_the_pages_to_change() -> None:
    svg = forest.coefficient_forest(found(line("age", 0.2), line("stage=ii", None)))
    colours = re.findall(r"(?:fill|stroke): ?([^;\"]+)", svg)
    assert {c for c in colours if c != "none" and not c.startswith("var(--")} == set()


numbers = st.floats(-30, 30, allow_nan=False)


@given(st.lists(st.tuples(numbers, st.floats(1e-6, 1e5)), min_size=1, max_size=8))
def test_the_frame_holds_the_reference_and_its_ticks_rise_within_it(
    values: list[tuple[float, float]],
) -> None:
    table = found(*(line(f"x{place}", *value) for place, value in enumerate(values)))
    low, high = forest.frame(forest.bars(table), ratios=True)
    assert low < 0 < high
    ticks = [math.log(tick) for tick in forest.ratio_ticks(low, high)]
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert ticks == sorted(ticks)
    assert 2 <= len(ticks) <= 12


def test_without_a_coefficient_there_is_no_picture() -> None:
    assert forest.coefficient_forest(found(line("(intercept)", 1.0))) == ""


def test_the_page_needs_no_other_file_and_says_what_the_table_says() -> None:
    notes = ["the fit did not converge: more rounds, or a ridge if classes are separated"]
    table = found(line("age", 0.05), line("stage=<b>", 0.3), converged=False, notes=notes)
    page = html(parse_study(STUDY), Result(regression=table))
    checker = Checker()
    checker.feed(page)
    assert (checker.outside, checker.open, checker.svgs) == ([], [], 1)
    for words in ("NOT CONVERGED", "Odds &amp; ends", "stage=&lt;b&gt;", "age per a", notes[0]):
        assert words in page
    assert "<b>" not in page
    for cell in ("1.051", "0.8642 to 1.279", "0.021"):
        assert cell in page
        assert cell in coefficients_text(table)
