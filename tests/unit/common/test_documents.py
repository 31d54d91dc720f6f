"""Reading YAML and JSON: what is refused, what plain words mean, and where it stands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.documents import (
    MAX_BYTES,
    Source,
    dotted,
    dump_yaml,
    parse_json,
    parse_yaml,
    read_text,
    resolve_plain,
)
from common.errors import ConfigError


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "file.yaml")
    return caught.value


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("null", None),
        ("~", None),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("<<", "<<"),
        ("007", 7),
        ("-3", -3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
    ],
)
def test_plain_words_follow_the_core_schema_of_yaml_1_2(text: str, meaning: object) -> None:
    found = resolve_plain(text)
    assert found == meaning
    assert type(found) is type(meaning)


def test_a_quoted_number_stays_text() -> None:
    assert parse_yaml("a: '1'\nb: \"2\"\nc: 3", "f").data == {"a": "1", "b": "2", "c": 3}


def test_keys_stay_text_even_if_they_look_like_numbers() -> None:
    assert parse_yaml("{1: a, no: b}", "f").data == {"1": "a", "no": "b"}


def test_every_key_and_item_has_its_line() -> None:
    source = parse_yaml("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n", "f.yaml").source
    assert source.where("b") == "f.yaml:2"
    assert source.where("b", 1) == "f.yaml:4"
    assert source.where("b", 1, "d") == "f.yaml:5"


def test_what_is_not_there_stands_where_its_section_stands() -> None:
    source = parse_yaml("a: 1\nb:\n  c: 1\n", "f.yaml").source
    assert source.where("b", "missing", 3) == "f.yaml:2"
    assert Source("f.yaml").where("b") == "f.yaml"


def test_paths_are_written_as_people_write_them() -> None:
    assert dotted(("features", 2, "range", 0)) == "features[2].range[0]"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "DUPLICATE_KEY", "file.yaml:3: a stands on line 1 already"),
        ("s:\n  k: 1\n  'k': 2\n", "DUPLICATE_KEY", "file.yaml:3: s.k"),
        ("a: &x [1]\n", "FILE_SYNTAX", "file.yaml:1: not valid YAML: anchors"),
        ("a: 1\nb: *x\n", "FILE_SYNTAX", "file.yaml:2: not valid YAML: anchors"),
        ("a: !!python/object/apply:os.system [ls]\n", "FILE_SYNTAX", "tags"),
        ("a: !x 1\n", "FILE_SYNTAX", "tags"),
        ("a: 1\n---\nb: 2\n", "FILE_SYNTAX", "single document"),
        ("a: [1\nb: 2\n", "FILE_SYNTAX", "file.yaml:2"),
        ("a: 1\n\tb: 2\n", "FILE_SYNTAX", "file.yaml:2"),
        ("", "FILE_SYNTAX", "is empty"),
        ("# only a comment\n", "FILE_SYNTAX", "is empty"),
        ("a: 1\nb: \x07\n", "FILE_SYNTAX", "file.yaml:2: holds a character"),
        ("? [1, 2]\n: x\n", "FILE_SYNTAX", "file.yaml:1: a key must be a single word"),
        ("[" * 17 + "]" * 17, "FILE_SYNTAX", "nested too deeply"),
        ("a: " + "x" * MAX_BYTES, "FILE_SYNTAX", "larger than"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, name: str, words: str) -> None:
    error = refusal(text)
    assert error.name == name
    assert words in error.detail


def test_an_alias_bomb_does_not_expand() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
    )
    assert "anchors" in refusal(bomb).detail


def test_a_hostile_file_name_cannot_reach_the_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("", "a\x1b[31m\nb.yaml")
    assert "\x1b" not in caught.value.detail
    assert r"a\x1b[31m\nb.yaml" in caught.value.detail


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope.yaml: No such file") as caught:
        read_text(tmp_path / "nope.yaml")
    assert caught.value.name == "FILE_MISSING"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_text(tmp_path)
    assert caught.value.name == "FILE_MISSING"


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin.yaml:2: not UTF-8"):
        read_text(path)


def test_a_byte_order_mark_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes("﻿a: 1\n".encode())
    assert parse_yaml(read_text(path), "f").data == {"a": 1}


def test_a_file_over_the_cap_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_text(path)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"a":1,"a":2}', "DUPLICATE_KEY"),
        (b'{"a":NaN}', "FILE_SYNTAX"),
        (b'{"a":', "FILE_SYNTAX"),
        (b"\xff", "FILE_SYNTAX"),
        (b"[" * 100_000, "FILE_SYNTAX"),
        (b"[" * 17 + b"]" * 17, "FILE_SYNTAX"),
        (b'"' + b"x" * MAX_BYTES + b'"', "FILE_SYNTAX"),
    ],
)
def test_json_from_a_peer_passes_the_same_limits(raw: bytes, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(raw, "offer")
    assert caught.value.name == name


def test_json_lists_become_tuples() -> None:
    assert parse_json(b'{"a":[1,[2.5]]}', "offer").data == {"a": (1, (2.5,))}


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20)
    | st.sampled_from(["no", "1e5", "0x10", "null", "~", "12:30", "", " a ", "#", "- x", "<<", "="])
)
keys = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=8)


@given(
    st.dictionaries(
        keys,
        scalars
        | st.lists(scalars, max_size=4).map(tuple)
        | st.dictionaries(keys, scalars, max_size=4),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_dumped_reads_back_equal(data: dict[str, object]) -> None:
    again = parse_yaml(dump_yaml(data), "f").data
    assert again == data
    assert repr(again) == repr({key: data[key] for key in again})  # 1 is not 1.0 here
