"""Marked values, and a search for every form in which one of them could have leaked.

A number is looked for as text (in full, and rounded as logs and `%g` do), as binary of both
byte orders, in hex and in base64 at each of the three alignments. Patterns of fewer than
eight bytes would turn up in random bytes now and then, so numbers of four bytes are looked
for in pairs. Counts are too short to be searched as text inside other text: they must stand
alone, between characters that are no digits, letters or points.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise

import numpy as np

_LEAST_BYTES, _LEAST_DIGITS = 8, 9


def binary_forms(raw: bytes) -> Iterator[bytes]:
    """Yield some bytes as they are, in hex and as they look inside base64 text."""
    if len(raw) < _LEAST_BYTES:
        raise AssertionError(f"{raw!r} is too short to be told from chance")
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for shift in range(3):  # the characters that no neighbour has a part in
        text = base64.b64encode(b"\0" * shift + raw).rstrip(b"=")
        first = (shift * 8 + 5) // 6
        last = (shift + len(raw)) * 8 // 6
        yield text[first:last]


def number_forms(values: Sequence[float], *, marked: bool = False) -> Iterator[bytes]:
    """Yield the forms of each number of a list, and of two neighbours as float32.

    `marked` numbers were chosen so that their rounded text and their millionths as an
    integer are of nobody else; others are looked for with all their digits only.
    """
    for value in values:
        if len(repr(float(value))) < _LEAST_DIGITS:
            continue  # 0.0 and its like are everywhere
        yield repr(float(value)).encode()
        if marked:
            yield f"{value:.3f}".encode()
            yield f"{value:g}".encode()
        for order in "<>":
            yield from binary_forms(struct.pack(f"{order}d", value))
            if marked:
                yield from binary_forms(struct.pack(f"{order}q", round(value * 1e6)))
    for pair in (pair for pair in pairwise(values) if all(pair)):
        for order in "<>":
            yield from binary_forms(struct.pack(f"{order}2f", *pair))


def text_forms(text: str) -> Iterator[bytes]:
    yield text.encode()
    yield from binary_forms(text.encode())


def integer_forms(words: np.ndarray) -> Iterator[bytes]:
    """Yield quantised words, all of a vector at once, in both orders and widths."""
    for kind in ("<i4", ">i4", "<i8", ">i8"):
        yield from binary_forms(words.astype(kind).tobytes())


@dataclass
class Canaries:
    """What must not be found; `forms` by what they are forms of."""

    forms: dict[str, set[bytes]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, forms: Iterable[bytes]) -> None:
        self.forms.setdefault(name, set()).update(forms)

    def found_in(self, place: str, data: bytes) -> list[str]:
        """Return each canary that some bytes hold, with the place."""
        hits = [name for name, forms in self.forms.items() if any(form in data for form in forms)]
        for name, count in self.counts.items():
            if re.search(rb"(?<![\w.])%d(?![\w])" % count, data):
                hits.append(name)
        return [f"{name} in {place}" for name in hits]

    def found_in_fields(self, place: str, message: object) -> list[str]:
        """Return each count that a message holds as a number: a varint has no fixed form."""
        numbers = set(numbers_of(message))
        return [f"{name} in {place}" for name, count in self.counts.items() if count in numbers]


def numbers_of(message: object) -> Iterator[float]:
    """Yield every number of a message, however deep."""
    if isinstance(message, bool | str | bytes):
        return
    if isinstance(message, int | float):
        yield message
    elif is_dataclass(message) and not isinstance(message, type):
        for one in fields(message):
            yield from numbers_of(getattr(message, one.name))
    elif isinstance(message, tuple | list | frozenset | set):
        for part in message:
            yield from numbers_of(part)
    elif isinstance(message, dict):
        for part in message.values():
            yield from numbers_of(part)
