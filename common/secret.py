"""Secret bytes that do not print, pickle or compare in variable time."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Key material. `reveal()` is the only way out, so that uses can be searched for."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """Return the bytes, for a primitive or for sealed storage."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> NoReturn:
        raise TypeError("a Secret is not hashable")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._value)} bytes>"

    __str__ = __repr__

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not picklable")

    def __format__(self, spec: str) -> str:
        return repr(self)
