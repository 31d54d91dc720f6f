"""States and facts come back exactly, and only as what was declared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, NewType

import pytest

from common.errors import InternalError, StateError
from common.secagg import codec
from common.secagg.keys import ChainKey
from common.secret import Secret

Name = NewType("Name", str)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Leaf:
    name: Name
    data: bytes


@dataclass(frozen=True)
class Twig:
    name: Name
    key: ChainKey


@dataclass(frozen=True)
class Tree:
    count: int
    size: float
    good: bool
    colour: Colour
    best: Leaf | Twig | None
    rest: tuple[Leaf | Twig, ...]
    pairs: tuple[tuple[Name, Secret], ...]
    numbers: frozenset[int]
    rule: float | Literal["free", "count"]
    hint: int | None = None
    fleeting: bytes = field(default=b"", metadata=codec.transient())


LEAF = Leaf(Name("l"), b"\x00\xff")
TWIG = Twig(Name("t"), ChainKey(b"\x07" * 32))
TREE = Tree(
    count=2**63,
    size=0.1,
    good=True,
    colour=Colour.BLUE,
    best=TWIG,
    rest=(LEAF, TWIG, LEAF),
    pairs=((Name("a"), Secret(b"s")),),
    numbers=frozenset((3, 1, 2)),
    rule="count",
)
STORED = codec.encode("test/1", Tree, TREE)


def altered(**fields: object) -> bytes:
    tree = json.loads(STORED)
    tree["value"].update(fields)
    return json.dumps(tree).encode()


def test_everything_comes_back_with_its_type() -> None:
    back = codec.decode("test/1", Tree, STORED)
    assert back == TREE
    assert isinstance(back.best, Twig)
    assert isinstance(back.best.key, ChainKey)
    assert isinstance(back.numbers, frozenset)
    assert codec.encode("test/1", Tree, back) == STORED


def test_absent_values_and_plain_numbers_come_back_too() -> None:
    tree = Tree(0, -0.0, False, Colour.RED, None, (), (), frozenset(), 0.5, 7)  # noqa: FBT003
    assert codec.decode("test/1", Tree, codec.encode("test/1", Tree, tree)) == tree


def test_what_is_transient_is_not_written() -> None:
    tree = Tree(0, 0.0, False, Colour.RED, None, (), (), frozenset(), "free", None, b"nonce")  # noqa: FBT003
    data = codec.encode("test/1", Tree, tree)
    assert b"fleeting" not in data
    assert codec.decode("test/1", Tree, data).fleeting == b""


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"null",
        b'{"schema":"test/1"}',
        STORED[:-1],
        STORED.replace(b"test/1", b"test/2"),
        altered(count="1"),
        altered(count=1.5),
        altered(count=True),
        altered(good=1),
        altered(colour="green"),
        altered(best={"is": "Tree"}),
        altered(best={"is": "Leaf", "name": "x"}),
        altered(best={"is": "Leaf", "name": "x", "data": "", "more": 1}),
        altered(best={"is": "Leaf", "name": "x", "data": "not base64!"}),
        altered(best={"is": "Twig", "name": "x", "key": "AAAA"}),
        altered(rest={}),
        altered(rest=[1]),
        altered(pairs=[["a"]]),
        altered(pairs=[["a", "AA==", "AA=="]]),
        altered(numbers=[1, "2"]),
        altered(rule="other"),
        altered(rule=True),
        altered(hint="x"),
        altered(surplus=1),
    ],
)
def test_damage_is_an_error_and_never_another_value(damaged: bytes) -> None:
    with pytest.raises(StateError, match="STATE_DAMAGED"):
        codec.decode("test/1", Tree, damaged)


def test_a_whole_number_in_a_float_field_comes_back_as_a_float() -> None:
    tree = Tree(0, 2, False, Colour.RED, None, (), (), frozenset(), 1)  # noqa: FBT003
    back = codec.decode("test/1", Tree, codec.encode("test/1", Tree, tree))
    assert (back.size, back.rule) == (2.0, 1.0)
    assert (type(back.size), type(back.rule)) == (float, float)


def test_a_type_without_a_coder_is_our_bug() -> None:
    with pytest.raises(InternalError):
        codec.encode("test/1", dict, {})


def test_a_number_that_json_cannot_hold_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        codec.encode("test/1", float, float("nan"))
