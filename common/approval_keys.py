"""Approvers' keys as text, `ed25519:` and 64 hexadecimal digits; no cryptography is loaded.

A policy is read by every command of a node, so the check is of the text alone. The points
of small order are refused: under such a key a signature proves nothing, and the one that
people write by mistake is the key of 64 zeros.
"""

from __future__ import annotations

import re
from typing import Final

from common.text import show

KEY_PREFIX: Final = "ed25519:"

_FORM: Final = re.compile(rf"{KEY_PREFIX}([0-9a-f]{{64}})")
_FIELD: Final = 2**255 - 19
_EIGHTH: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL_ORDER: Final = frozenset({0, 1, _FIELD - 1, _FIELD, _FIELD + 1, _EIGHTH, _FIELD - _EIGHTH})
"""The y coordinates, as 255 bits can hold them, of the eight points whose order divides 8."""

_FIX: Final = "`fedcare node approvals key FILE` makes one and prints the line"


def approver_key(value: str) -> str:
    """Return an approver's public key as a policy states it (for use as a validator).

    Raises:
        ValueError: it is not of that form, or proves nothing.
    """
    found = _FORM.fullmatch(value)
    if found is None:
        raise ValueError(
            f"must be {KEY_PREFIX} and the 64 hexadecimal digits of a public key, not "
            f"{show(value)}; {_FIX}"
        )
    if int.from_bytes(bytes.fromhex(found[1]), "little") % 2**255 in SMALL_ORDER:
        raise ValueError(f"is a key under which anybody can sign; {_FIX}")
    return value


def key_text(public: bytes) -> str:
    """Return the text of a raw public key of 32 bytes."""
    return KEY_PREFIX + public.hex()


def key_bytes(text: str) -> bytes:
    """Return the raw public key of a text that `approver_key` let through."""
    return bytes.fromhex(text.removeprefix(KEY_PREFIX))
