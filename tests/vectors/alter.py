"""Apply the changes of a bad vector to a message; see `tests.vectors.bad`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from enum import Enum
from typing import Any

from common.secret import Secret
from tests.simulation.secagg_harness import node_id


def altered(message: Any, changes: list[list[Any]]) -> Any:  # noqa: ANN401 - any message
    """Return a message with all changes in it."""
    for path, operation, argument in changes:
        message = _at(message, path.split("."), operation, argument)
    return message


def _at(value: Any, path: list[str], operation: str, argument: Any) -> Any:  # noqa: ANN401
    if not path:
        return _changed(value, operation, argument)
    head, *rest = path
    if isinstance(value, tuple):
        items = list(value)
        items[int(head)] = _at(items[int(head)], rest, operation, argument)
        return tuple(items)
    return dataclasses.replace(
        value, **{head: _at(getattr(value, head), rest, operation, argument)}
    )


def _changed(value: Any, operation: str, argument: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Secret):
        return Secret(_changed(value.reveal(), operation, argument))
    if operation == "set":
        return _value(value, argument)
    if operation == "add":
        return value + argument
    if operation == "flip":
        number = int.from_bytes(value, "big") ^ 1 << argument
        return number.to_bytes(len(value), "big")
    if operation == "cut":
        return value[: len(value) - argument]
    items = list(value)
    if operation == "drop":
        del items[argument]
    elif operation == "repeat":
        items.insert(argument, items[argument])
    elif operation == "swap":
        items[argument], items[argument + 1] = items[argument + 1], items[argument]
    else:
        raise ValueError(operation)
    return tuple(items)


def _value(old: Any, argument: Any) -> Any:  # noqa: ANN401
    if isinstance(old, Enum):
        return type(old)(argument)
    if isinstance(argument, str) and ":" in argument:
        kind, text = argument.split(":", 1)
        makers: dict[str, Callable[[str], object]] = {
            "node": lambda place: node_id(int(place)),
            "hex": bytes.fromhex,
            "float": float,
        }
        return makers[kind](text)
    return argument
