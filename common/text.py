"""Text from outside, made safe to keep and safe to show.

Files, peers and command lines bring text that may hold control characters, escape
sequences for terminals, direction overrides or lone surrogates. `check_text` refuses
them where a value is kept; `show` makes any value printable where it is quoted in a
message. Neither is needed for numbers.
"""

from __future__ import annotations

import difflib
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNWANTED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that no name, title or level needs: controls, formats (direction
overrides among them), surrogates, private and unassigned code points, line separators."""

SHOWN: Final = 80
"""Characters of a foreign value that a message quotes."""


def check_text(value: str) -> str:
    """Return `value` in normal form C, so that equal-looking names are equal.

    Raises:
        ValueError: it holds a character that is not meant to be read.
    """
    for char in value:
        if unicodedata.category(char) in _UNWANTED:
            raise ValueError(f"holds the unprintable character U+{ord(char):04X}")
    return unicodedata.normalize("NFC", value)


def show(value: object, limit: int = SHOWN) -> str:
    """Return `value` for a message: quoted if text, every odd character escaped, cut at `limit`."""
    if isinstance(value, str):
        cut = value if len(value) <= limit else value[:limit] + "..."
        return "'" + escape(cut) + "'"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    shown = escape(repr(value))
    return shown if len(shown) <= limit else shown[:limit] + "..."


def escape(value: str) -> str:
    r"""Return `value` with every unprintable character as `\xNN`, `\uNNNN` or `\n`."""
    if value.isprintable():
        return value
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in value
    )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name that `word` is most likely a slip of, or None."""
    candidates = {name.casefold(): name for name in known}
    found = difflib.get_close_matches(word.casefold()[:SHOWN], candidates, n=1, cutoff=0.6)
    return candidates[found[0]] if found else None


def listed(names: Iterable[object]) -> str:
    """Return names for a message, `a, b or c`."""
    words = [str(name) for name in names]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
