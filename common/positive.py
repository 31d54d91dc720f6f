"""Which labels count as positive: a rule of one comparison, read by our own small parser.

    > 0     >= 1     < 3     <= 2.5     == 1     != "healthy"     in ["ill", "very ill"]

Numbers compare with the cell's number, quoted texts with the cell itself. Nothing is
ever evaluated: a rule is an operator and up to a hundred constants.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from common.text import check_text, show

_ORDER: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RULE: Final = re.compile(r"\s*(>=|<=|==|!=|>|<|in(?=\s*\[))\s*(.*?)\s*", re.DOTALL)
_CONSTANT: Final = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30})(?:[eE][-+]?\d{1,3})?)"""
    r"""|"(?P<double>[^"\\]{0,128})"|'(?P<single>[^'\\]{0,128})')\s*""",
    re.ASCII,
)
_MOST: Final = 100


@dataclass(frozen=True, slots=True)
class PositiveRule:
    """An operator (`>`, `>=`, `<`, `<=`, `==`, `!=`, `in`) and its constants, all of one kind."""

    op: str
    values: tuple[float, ...] | tuple[str, ...]

    @property
    def numeric(self) -> bool:
        """Whether cells must be numbers for this rule."""
        return not isinstance(self.values[0], str)

    def matches(self, cell: float | str) -> bool:
        """Return whether a label is positive.

        `cell` is a number for a numeric rule (a text that reads as one will do), the
        cell's text otherwise.

        Raises:
            ValueError: the rule is numeric and the cell is not a finite number. The
                message does not hold the cell: it is a patient's value.
        """
        if not self.numeric:
            found = str(cell) in self.values
            return found != (self.op == "!=")
        number = _number(cell)
        compare = _ORDER.get(self.op)
        if compare is not None:
            return compare(number, float(self.values[0]))
        return (number in self.values) != (self.op == "!=")

    def __str__(self) -> str:
        words = [_written(value) for value in self.values]
        return f"in [{', '.join(words)}]" if self.op == "in" else f"{self.op} {words[0]}"


def _number(cell: float | str) -> float:
    try:
        number = float(cell)
    except ValueError:
        raise ValueError("is not a number") from None
    if not math.isfinite(number):
        raise ValueError("is not a finite number")
    return number


def _written(value: float | str) -> str:
    if isinstance(value, str):
        return f"'{value}'" if '"' in value else f'"{value}"'
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def parse_positive(text: str) -> PositiveRule:
    """Return the rule that `text` states; `str()` of it is its canonical spelling.

    Raises:
        ValueError: `text` is not such a rule.
    """
    rule = _RULE.fullmatch(text) if len(text) <= 20_000 else None  # noqa: PLR2004
    if rule is None:
        raise ValueError(_wrong(text))
    op, rest = rule.groups()
    if op == "in":
        if not rest.endswith("]"):
            raise ValueError(_wrong(text))
        values = _constants(rest[1:-1], text)
    else:
        values = _constants(rest, text)
        if len(values) != 1:
            raise ValueError(_wrong(text))
    if op in _ORDER and isinstance(values[0], str):
        raise ValueError(f"compares by {op}, which needs a number")
    return PositiveRule(op, values)


def _constants(rest: str, text: str) -> tuple[float, ...] | tuple[str, ...]:
    """Return the comma-separated constants of `rest`."""
    numbers: list[float] = []
    words: list[str] = []
    position = 0
    while True:
        found = _CONSTANT.match(rest, position)
        if found is None or len(numbers) + len(words) >= _MOST:
            raise ValueError(_wrong(text))
        if found["number"] is not None:
            numbers.append(_number(found["number"]) + 0.0)  # -0.0 becomes 0.0
        else:
            words.append(
                check_text(found["double"] if found["double"] is not None else found["single"])
            )
        position = found.end()
        if position == len(rest):
            break
        if rest[position] != ",":
            raise ValueError(_wrong(text))
        position += 1
    if numbers and words:
        raise ValueError("mixes numbers and texts")
    if len(set(numbers)) + len(set(words)) != len(numbers) + len(words):
        raise ValueError("names a value twice")
    return tuple(numbers) if numbers else tuple(words)


def _wrong(text: str) -> str:
    return f"""must be a rule such as "> 0", "== 1" or 'in ["a", "b"]', not {show(text)}"""
