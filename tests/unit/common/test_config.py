"""From data to models: what a person is told when a key, type or unit is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from common.config import (
    Label,
    Name,
    Number,
    Seconds,
    Section,
    Text,
    format_duration,
    load,
    parse_duration,
    problem,
    validate,
)
from common.documents import parse_yaml
from common.errors import ConfigError, FedError, PolicyRefusal


class Inner(Section):
    rate: Number = 1.0
    flag: bool = False
    items: Annotated[tuple[int, ...], Field(min_length=1, max_length=3)] = (1,)


class Outer(Section):
    schema_: Literal["test/v1"] = Field(alias="schema")
    name: Name = "x"
    label: Label = "x"
    title: Text = ""
    wait: Seconds = 30.0
    colour: Literal["red", "green"] = "red"
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


def outer(text: str) -> Outer:
    return validate(parse_yaml("schema: test/v1\n" + text, "f.yaml"), Outer, "test/v1")


def refusal(text: str) -> FedError:
    with pytest.raises(FedError) as caught:
        outer(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("colur: red", "UNKNOWN_KEY", "f.yaml:2: unknown key 'colur'; did you mean 'colour'?"),
        (
            "inner:\n  rte: 1",
            "UNKNOWN_KEY",
            "f.yaml:3: unknown key 'inner.rte'; did you mean 'rate'?",
        ),
        (
            "inner:\n  zzz: 1",
            "UNKNOWN_KEY",
            "unknown key 'inner.zzz'; known here: rate, flag, items",
        ),
        ("many:\n- rate: 1\n- rat: 2", "UNKNOWN_KEY", "f.yaml:4: unknown key 'many[1].rat'"),
        ("<<: {}", "UNKNOWN_KEY", "unknown key '<<'"),
        ("inner: {rate: fast}", "BAD_VALUE", "inner.rate must be a number, not the text 'fast'"),
        ("inner: {rate: '1'}", "BAD_VALUE", "inner.rate must be a number, not the text '1'"),
        ("inner: {rate: true}", "BAD_VALUE", "inner.rate must be a number, not true"),
        ("inner: {rate: .nan}", "BAD_VALUE", "inner.rate must be a finite number"),
        ("inner: {rate: 1e999}", "BAD_VALUE", "inner.rate must be a finite number"),
        ("inner: {rate: null}", "BAD_VALUE", "inner.rate must be a number, not null"),
        ("inner: {flag: yes}", "BAD_VALUE", "inner.flag must be true or false, not the text 'yes'"),
        ("inner: {flag: 1}", "BAD_VALUE", "inner.flag must be true or false, not the number 1"),
        ("inner: {items: 3}", "BAD_VALUE", "inner.items must be a list, not the number 3"),
        ("inner: {items: []}", "BAD_VALUE", "inner.items must have at least 1 entries"),
        ("inner: {items: [1,2,3,4]}", "BAD_VALUE", "inner.items is too long: at most 3 entries"),
        ("inner: {items: [1, 2.5]}", "BAD_VALUE", "inner.items[1] must be a whole number"),
        ("inner: 5", "BAD_VALUE", "inner must be keys and values, not the number 5"),
        ("name: 5", "BAD_VALUE", "name must be text, not the number 5; write it in quotes"),
        ("name: ''", "BAD_VALUE", "name must have 1 to 128 characters"),
        ("name: ' a'", "BAD_VALUE", "no space at either end"),
        ("colour: blue", "BAD_VALUE", "colour must be red or green, not 'blue'"),
        ("colour: grean", "BAD_VALUE", "did you mean 'green'?"),
        ("label: Heart", "BAD_VALUE", "label must be 1 to 63 of a-z"),
        ("wait: 30", "BAD_VALUE", "wait needs a unit, such as 30s or 30m"),
        ("wait: 30 seconds", "BAD_VALUE", "wait must be a duration such as 30s"),
        ("wait: 1.5h", "BAD_VALUE", "wait must be a duration"),
        ('title: "a\\u202Eb"', "BAD_VALUE", "title holds the unprintable character U+202E"),
        ('title: "a\\eb"', "BAD_VALUE", "title holds the unprintable character U+001B"),
        ('title: "a\\ud800b"', "BAD_VALUE", "U+D800"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_line_and_remedy(
    text: str, name: str, words: str
) -> None:
    error = refusal(text)
    assert error.name == name
    assert words in error.detail
    assert error.detail.startswith("f.yaml:")


def test_the_first_problem_by_line_is_told_and_the_rest_counted() -> None:
    error = refusal("wait: 3\ncolour: blue\nlabel: A\n")
    assert error.detail.startswith("f.yaml:2: wait")
    assert error.detail.endswith("(2 more problems in this file)")


def test_a_hostile_value_is_quoted_harmlessly() -> None:
    error = refusal('colour: "a\\e[31m\\nb' + "x" * 500 + '"')
    assert "\x1b" not in error.detail
    assert "\\x1b[31m\\nb" in error.detail
    assert len(error.detail) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: test/v2\n", "f.yaml:1: schema is 'test/v2', this version reads 'test/v1'"),
        ("name: x\n", "no schema is stated; add `schema: test/v1`"),
        ("schema: 1\n", "f.yaml:1: schema is 1"),
    ],
)
def test_another_schema_is_refused_before_anything_else(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(parse_yaml(text + "nonsense: 1\n", "f.yaml"), Outer, "test/v1")
    assert caught.value.name == "SCHEMA_VERSION"
    assert words in caught.value.detail


def test_a_file_that_is_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match="should hold keys and values"):
        validate(parse_yaml("- 1\n", "f.yaml"), Outer, "test/v1")


def test_a_missing_key_is_named() -> None:
    class Needs(Section):
        schema_: Literal["test/v1"] = Field(alias="schema")
        inner: Outer

    with pytest.raises(ConfigError, match=r"f.yaml:1: key 'inner' is missing"):
        validate(parse_yaml("schema: test/v1\n", "f.yaml"), Needs, "test/v1")


def test_nothing_can_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        outer("name: a").inner.rate = 2.0  # type: ignore[misc]


def test_environment_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "elsewhere")
    assert outer("title: $HOME ${HOME}").title == "$HOME ${HOME}"


def test_text_is_kept_in_one_normal_form() -> None:
    assert outer('name: "e\u0301"').name == "\u00e9"


def test_minus_zero_is_zero() -> None:
    assert str(outer("inner: {rate: -0.0}").inner.rate) == "0.0"


def test_load_names_the_file_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("schema: test/v1\nname: a\n")
    loaded = load(path, Outer, "test/v1")
    assert (loaded.value.name, loaded.source.where("name")) == ("a", f"{path}:2")


def test_a_problem_of_a_policy_is_a_policy_refusal() -> None:
    class Rule(Section):
        schema_: Literal["test/v1"] = Field(alias="schema")
        dp: Annotated[int, Field()] = 0

        def model_post_init(self, _context: object) -> None:
            raise problem("is set", "dp", name="POLICY_DP")

    with pytest.raises(PolicyRefusal, match=r"f.yaml:2: dp is set"):
        validate(parse_yaml("schema: test/v1\ndp: 1\n", "f.yaml"), Rule, "test/v1")


@pytest.mark.parametrize(
    ("text", "seconds", "canonical"),
    [
        ("30s", 30.0, "30s"),
        ("10m", 600.0, "10m"),
        ("90m", 5400.0, "1h30m"),
        ("1h30m", 5400.0, "1h30m"),
        ("90d", 7_776_000.0, "90d"),
        ("250ms", 0.25, "250ms"),
        ("1d2h3m4s5ms", 93784.005, "1d2h3m4s5ms"),
        ("0s", 0.0, "0s"),
        ("90", None, ""),
        ("", None, ""),
        ("m", None, ""),
        ("-5s", None, ""),
        ("5s5m", None, ""),
        ("5m5m", None, ""),
        ("5 m", None, ""),
        ("5M", None, ""),
        ("\u0665m", None, ""),
        (True, None, ""),
        (None, None, ""),
    ],
)
def test_durations_carry_their_unit(text: object, seconds: float | None, canonical: str) -> None:
    if seconds is None:
        with pytest.raises(ValueError, match="duration"):
            parse_duration(text)
    else:
        assert parse_duration(text) == seconds
        assert format_duration(seconds) == canonical


@given(st.integers(0, 10**12))
def test_durations_survive_their_canonical_spelling(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == seconds
