"""States and facts as versioned JSON, for the drivers to seal and store.

One codec for every frozen dataclass of the machines: fields by name, `bytes` and
`Secret` as base64, tuples as lists, a value of a union with its class's name under
`"is"`. Decoding builds exactly the declared types or raises; nothing is ever looked
up by a name that the reader did not declare, so a file cannot choose what is built.

    {"schema": "fedcare.node-state/1", "value": {...}}
"""

# ruff: noqa: ANN401 - types are known to a codec at run time only

from __future__ import annotations

import base64
import dataclasses
import json
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

from common.errors import FedError, InternalError, StateError
from common.secret import Secret

T = TypeVar("T")
_Encode = Callable[[Any], Any]
_Decode = Callable[[Any], Any]

_TAG: Final = "is"
_TRANSIENT: Final = "transient"
_ADDED: Final = "added"


def transient() -> dict[str, bool]:
    """Return field metadata for what must never reach a disk; it decodes to its default."""
    return {_TRANSIENT: True}


def added() -> dict[str, bool]:
    """Return field metadata for what earlier versions did not write; it then has its default."""
    return {_ADDED: True}


def encode(schema: str, hint: Any, value: object) -> bytes:
    """Return `value`, of declared type `hint`, as UTF-8 JSON under a schema name."""
    tree = {"schema": schema, "value": _coder(hint)[0](value)}
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode()


def decode(schema: str, hint: Any, data: bytes) -> Any:
    """Return the value that `encode(schema, hint, ...)` wrote.

    Raises:
        StateError: STATE_DAMAGED, not JSON, another schema, or not of the type.
    """
    try:
        tree = json.loads(data)
        found = tree["schema"]
        if found == schema:
            return _coder(hint)[1](tree["value"])
    except (ValueError, TypeError, KeyError, AttributeError, FedError) as error:
        raise StateError("STATE_DAMAGED", f"stored {schema} is damaged: {error}") from error
    raise StateError("STATE_DAMAGED", f"stored state is of schema {found!r}, not {schema}")


@cache
def _coder(hint: Any) -> tuple[_Encode, _Decode]:
    """Return how to write and read a value of type `hint`; made once per type."""
    while isinstance(hint, typing.NewType):
        hint = hint.__supertype__
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(typing.get_args(hint))
    if origin is tuple:
        return _tuple(typing.get_args(hint))
    if origin is frozenset:
        return _frozenset(typing.get_args(hint)[0])
    if origin is typing.Literal:
        return _literal(typing.get_args(hint))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return (lambda value: value.value), hint
    return _scalar(hint)


def _scalar(hint: Any) -> tuple[_Encode, _Decode]:
    if hint is bytes:
        return _b64, _unb64
    if isinstance(hint, type) and issubclass(hint, Secret):
        return (lambda value: _b64(value.reveal())), (lambda tree: hint(_unb64(tree)))
    if hint is float:
        return float, _checked(float)  # a whole number given as int stays readable
    if hint in (int, str, bool, type(None)):
        return (lambda value: value), _checked(hint)
    raise InternalError(f"no coder for {hint!r}")


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _unb64(tree: str) -> bytes:
    return base64.b64decode(tree, validate=True)


def _checked(kind: type) -> _Decode:
    def read(tree: Any) -> Any:
        if type(tree) is not kind:
            raise TypeError(f"{kind.__name__} expected, found {type(tree).__name__}")
        return tree

    return read


def _literal(values: tuple[Any, ...]) -> tuple[_Encode, _Decode]:
    def read(tree: Any) -> Any:
        if tree not in values:
            raise ValueError(f"{tree!r} is not one of {values}")
        return tree

    return (lambda value: value), read


def _tuple(items: tuple[Any, ...]) -> tuple[_Encode, _Decode]:
    if items[1:] == (Ellipsis,):
        write, read = _coder(items[0])
        return (
            lambda value: [write(item) for item in value],
            lambda tree: tuple(read(item) for item in _list(tree)),
        )
    coders = [_coder(item) for item in items]
    return (
        lambda value: [code[0](item) for code, item in zip(coders, value, strict=True)],
        lambda tree: tuple(code[1](item) for code, item in zip(coders, _list(tree), strict=True)),
    )


def _frozenset(item: Any) -> tuple[_Encode, _Decode]:
    write, read = _coder(item)
    return (
        lambda value: sorted(write(each) for each in value),
        lambda tree: frozenset(read(each) for each in _list(tree)),
    )


def _list(tree: Any) -> list[Any]:
    if not isinstance(tree, list):
        raise TypeError(f"a list expected, found {type(tree).__name__}")
    return tree


def _union(hints: tuple[Any, ...]) -> tuple[_Encode, _Decode]:
    """None or one plain type stands for itself; dataclasses carry their class's name."""
    classes: dict[str, Any] = {
        hint.__name__: hint
        for hint in hints
        if isinstance(hint, type) and dataclasses.is_dataclass(hint)
    }
    plain = [hint for hint in hints if hint is not type(None) and hint not in classes.values()]
    optional = type(None) in hints
    if not classes or plain:
        return _plain_union(hints)

    def write(value: Any) -> Any:
        if value is None:
            return None
        name = type(value).__name__
        return {_TAG: name, **_coder(classes[name])[0](value)}

    def read(tree: Any) -> Any:
        if tree is None and optional:
            return None
        name = tree[_TAG]
        return _coder(classes[name])[1]({key: tree[key] for key in tree if key != _TAG})

    return write, read


def _plain_union(hints: tuple[Any, ...]) -> tuple[_Encode, _Decode]:
    """A union that JSON tells apart by itself, such as `float | None | Literal[...]`."""
    optional = type(None) in hints
    rest = [hint for hint in hints if hint is not type(None)]
    if len(rest) == 1:
        inner, read = _coder(rest[0])
        return (
            lambda value: None if value is None else inner(value),
            lambda tree: None if tree is None and optional else read(tree),
        )
    coders = [_coder(hint)[1] for hint in rest]

    def read_first(tree: Any) -> Any:
        if tree is None and optional:
            return None
        for attempt in coders:
            try:
                return attempt(tree)
            except (TypeError, ValueError):
                continue
        raise TypeError(f"{tree!r} fits none of {hints}")

    def write(value: Any) -> Any:
        whole = type(value) is int and float in rest and int not in rest
        return float(value) if whole else value

    return write, read_first


def _dataclass(kind: type) -> tuple[_Encode, _Decode]:
    hints = typing.get_type_hints(kind)
    fields = [f for f in dataclasses.fields(kind) if not f.metadata.get(_TRANSIENT)]
    stored = [f.name for f in fields]
    names = frozenset(stored)
    needed = frozenset(f.name for f in fields if not f.metadata.get(_ADDED))

    def write(value: Any) -> dict[str, Any]:
        return {name: _coder(hints[name])[0](getattr(value, name)) for name in stored}

    def read(tree: Any) -> Any:
        if not isinstance(tree, dict) or not needed <= tree.keys() <= names:
            raise TypeError(f"fields of {kind.__name__} are not as declared")
        return kind(**{name: _coder(hints[name])[1](tree[name]) for name in stored if name in tree})

    return write, read
