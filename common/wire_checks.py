"""The checks that make a peer's field a trusted value; every one names the field it refuses.

`common.wire` and its two companions use these and nothing else looks at a raw field.

Raises (all): Refusal BAD_MESSAGE.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeVar

from common.errors import CATALOGUE, Refusal
from common.ids import (
    NAME_PATTERN,
    HeaderDigest,
    NodeId,
    Sha256,
)

MAX_MEMBERS: Final = 4096
MAX_STUDY_BYTES: Final = 256 << 10
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_CERT_BYTES: Final = 8 << 10
MAX_CHAIN: Final = 4
MAX_SIGNATURE: Final = 72
MAX_TEXT: Final = 1000
MAX_PEOPLE: Final = 64
MAX_RANGES: Final = 100_000
MAX_WHOLE: Final = (1 << 63) - 1

_NODE_ID = re.compile(rf"spiffe://{NAME_PATTERN}/hospital/{NAME_PATTERN}")
_PERSON = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_T = TypeVar("_T")
_P = TypeVar("_P")
_E = TypeVar("_E", bound=StrEnum)


def bad(field: str, why: str) -> Refusal:
    """Return the refusal of a field."""
    return Refusal("BAD_MESSAGE", f"{field} {why}")


def exact(value: bytes, field: str, *lengths: int) -> bytes:
    """Return bytes that have one of the given lengths."""
    if len(value) not in lengths:
        wanted = " or ".join(str(length) for length in lengths)
        raise bad(field, f"is {len(value)} bytes long, not {wanted}")
    return value


def at_most(value: bytes, field: str, limit: int) -> bytes:
    """Return bytes that are there and no more than `limit`."""
    if not 0 < len(value) <= limit:
        raise bad(field, f"is {len(value)} bytes long, not 1 to {limit}")
    return value


def printable(value: str, field: str, limit: int = MAX_TEXT) -> str:
    """Return text without control characters, at most `limit` of them."""
    if len(value) > limit:
        raise bad(field, f"is longer than {limit} characters")
    if not value.isprintable():
        raise bad(field, "holds control characters")
    return value


def checked_name(value: str, field: str) -> str:
    """Return a name of the one narrow alphabet: a study, a run, a task, a federation."""
    if not re.fullmatch(NAME_PATTERN, value):
        raise bad(field, "is not a name of a-z, 0-9 and inner hyphens")
    return value


def hospital(value: str, field: str) -> NodeId:
    """Return a hospital's whole certificate URI."""
    if len(value) > MAX_TEXT or not _NODE_ID.fullmatch(value):
        raise bad(field, "is not a hospital's certificate URI")
    return NodeId(value)


def whole(value: int, field: str, limit: int = MAX_WHOLE) -> int:
    """Return a number from 0 to `limit`."""
    if not 0 <= value <= limit:
        raise bad(field, f"is outside 0 to {limit}")
    return value


def finite(value: float, field: str) -> float:
    """Return a float that is a number."""
    if not math.isfinite(value):
        raise bad(field, "is not finite")
    return value


def many(
    items: Iterable[_P], field: str, convert: Callable[[_P], _T], limit: int = MAX_MEMBERS
) -> tuple[_T, ...]:
    """Return every entry converted, if there are not too many."""
    listed = list(items)
    if len(listed) > limit:
        raise bad(field, f"has {len(listed)} entries, more than {limit}")
    return tuple(convert(item) for item in listed)


def people(names: Iterable[str], field: str) -> tuple[str, ...]:
    """Return names of a policy's approvers: few, short, of one narrow alphabet, each once."""
    found = many(names, field, lambda name: _person(name, field), MAX_PEOPLE)
    if len(set(found)) != len(found):
        raise bad(field, "names somebody twice")
    return found


def _person(name: str, field: str) -> str:
    if not _PERSON.fullmatch(name):
        raise bad(field, "is not a name of a policy's approver")
    return name


def digest32(value: bytes, field: str) -> Sha256:
    """Return a SHA-256 digest."""
    return Sha256(exact(value, field, 32))


def header_digest(value: bytes, field: str = "hd") -> HeaderDigest:
    """Return a round header's digest."""
    return HeaderDigest(exact(value, field, 32))


def error_code(value: str, field: str) -> str:
    """Return a name of the error catalogue."""
    if value not in CATALOGUE:
        raise bad(field, "is not a name of the error catalogue")
    return value


def member(kind: type[_E], value: str, field: str) -> _E:
    """Return the member of an enumeration that travels as this text."""
    try:
        return kind(value)
    except ValueError:
        raise bad(field, f"is not one of {', '.join(kind)}") from None


def parsed(message: _P | None) -> _P:
    """Return a message that gRPC received; it hands over None where bytes did not parse."""
    if message is None:
        raise bad("message", "cannot be parsed")
    return message


def checked_chain(certs: Iterable[bytes], field: str) -> tuple[bytes, ...]:
    """Return certificates, each within `MAX_CERT_BYTES`, at least one, at most `MAX_CHAIN`."""
    chain = many(certs, field, lambda der: at_most(der, field, MAX_CERT_BYTES), MAX_CHAIN)
    if not chain:
        raise bad(field, "is empty")
    return chain
