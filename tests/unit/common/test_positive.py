"""The rule for positive labels: a parser of our own, nothing evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.positive import PositiveRule, parse_positive


@pytest.mark.parametrize(
    ("text", "canonical", "yes", "no"),
    [
        ("> 0", "> 0", [1, "4", 0.5], [0, -1, "0"]),
        (">=1", ">= 1", [1, 2.5], [0.99]),
        ("< 3", "< 3", [2], [3]),
        ("<= 2.50", "<= 2.5", [2.5], [2.51]),
        ("== 1", "== 1", [1, "1", "1.0"], [0, 2]),
        ("!= 0", "!= 0", [1, -1], [0, "0.0"]),
        ("== 1e0", "== 1", [1], [10]),
        ("in [1,2 , 3]", "in [1, 2, 3]", [1, 2, 3.0], [0, 4]),
        ("in[1]", "in [1]", [1], [0]),
        ('== "ill"', '== "ill"', ["ill"], ["well", "ILL", " ill"]),
        ("!= 'well'", '!= "well"', ["ill"], ["well"]),
        ('in ["a, b", "c]"]', 'in ["a, b", "c]"]', ["a, b", "c]"], ["a", "b"]),
        ("""== 'say "x"'""", """== 'say "x"'""", ['say "x"'], ["x"]),
        ("> -0.0", "> 0", [1], [0]),
    ],
)
def test_a_rule_says_yes_and_no(
    text: str, canonical: str, yes: list[object], no: list[object]
) -> None:
    rule = parse_positive(text)
    assert str(rule) == canonical
    assert parse_positive(canonical) == rule
    assert [cell for cell in yes if not rule.matches(cell)] == []  # type: ignore[arg-type]
    assert [cell for cell in no if rule.matches(cell)] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "", ">", "0", "=> 0", "= 1", "> zero", "> 0 and 1", "> 0; import os", "__import__('os')",
        "in []", "in [1", "in 1, 2", "in [1,]", "in [,1]", "in [1 2]", "> 1, 2", "> nan", "> inf",
        '> "a"', 'in [1, "a"]', "in [1, 1.0]", "== 'a", '== "a\\""', "== 0x10", "== 1_0",
        "== \u0661", "in [" + ", ".join(map(str, range(101))) + "]", '== "\x00"', "> 1e999",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_positive(text)


@pytest.mark.parametrize("cell", ["", "ill", "nan", "inf", float("nan")])
def test_a_label_that_is_no_number_is_refused_and_not_quoted(cell: str | float) -> None:
    with pytest.raises(ValueError, match=r"finite number|not a number") as caught:
        parse_positive("> 0").matches(cell)
    assert "ill" not in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_crashes_the_parser(text: str) -> None:
    try:
        rule = parse_positive(text)
    except ValueError:
        return
    assert parse_positive(str(rule)) == rule


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False, width=32),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_numbers_survive_their_canonical_spelling(values: list[float]) -> None:
    rule = PositiveRule("in", tuple(value + 0.0 for value in values))
    assert parse_positive(str(rule)) == rule
