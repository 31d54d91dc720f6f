"""The lines of a ledger: what they hold, and how each is chained to the one before. Pure.

    {...,"entry":"opened", "prev":"<64 zeros>","sha256":"<h1>"}
    {...,"entry":"charge", "prev":"<h1>","sha256":"<h2>"}

A line is its body, JSON with sorted keys, with two items put behind: `prev`, the hash of the
line before, and `sha256 = SHA-256(prev || body)`, over the very bytes of the body. So a changed,
missing or moved line breaks the chain at its place. The chain has no key: that it was not made
anew from some line on, the sealed head says (`hospital_node.ledger`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import StateError
from common.privacy.accountant import NOTHING, ORDERS, Rdp

Costs: TypeAlias = NDArray[np.float64]
"""A cost at each of `ORDERS`."""

START: Final = "0" * 64
"""What the first line has before it."""

_OPENED, _CHARGE = "opened", "charge"
_COSTS: Final = b'"rdp":['
_FORM: Final = {
    **dict.fromkeys(("task", "session", "hd", "kind", "mode"), str),
    **dict.fromkeys(("time", "r", "delta_int", "h", "steps"), int),
    **dict.fromkeys(("z", "p", "sigma_loc"), float),
    "rdp": list,
}
_HEX: Final = 64
_PREV, _SHA, _END = b',"prev":"', b'","sha256":"', b'"}'
_TAIL: Final = len(_PREV) + _HEX + len(_SHA) + _HEX + len(_END)


@dataclass(frozen=True, slots=True)
class Charge:
    """One round's cost: `rdp` at each of the accountant's orders, and what it follows from.

    `kind` is the round's: a noised evaluation has an entry of its own beside the training's.
    `steps`: how many noised steps the round has; `rdp` is the cost of all of them.
    """

    time: int
    task: str
    session: str
    r: int
    hd: str
    kind: str
    mode: str
    z: float
    p: float
    delta_int: int
    sigma_loc: float
    h: int
    rdp: Rdp
    steps: int = 1


@dataclass(slots=True)
class Entries:
    """What a ledger's lines add up to: the charges, their sums, and the hash after each line."""

    charges: list[Charge] = field(default_factory=list)
    heads: list[str] = field(default_factory=lambda: [START])
    rounds: set[str] = field(default_factory=set)
    """The headers that were charged."""
    _costs: dict[Rdp, Costs] = field(default_factory=dict)
    """Rounds of one study cost the same: each cost is kept once."""
    _total: Costs = field(default_factory=lambda: np.zeros(len(ORDERS)))
    _by_task: dict[str, Costs] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many lines there are, the first included."""
        return len(self.heads) - 1

    @property
    def head(self) -> str:
        """The last line's hash."""
        return self.heads[-1]

    def spent(self, task: str | None = None) -> Rdp:
        """Return the cost of all charges, or of one task's."""
        found = self._total if task is None else self._by_task.get(task)
        return NOTHING if found is None else tuple(found.tolist())

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that were charged, in the order of their first charge."""
        return tuple(self._by_task)

    def take(self, charge: Charge | None, head: str) -> None:
        """Count a line; the first one has no charge."""
        self.heads.append(head)
        if charge is None:
            return
        cost = self._costs.get(charge.rdp)
        if cost is None:
            cost = self._costs[charge.rdp] = np.array(charge.rdp)
        self.charges.append(charge)
        self.rounds.add(charge.hd)
        self._total = self._total + cost
        before = self._by_task.get(charge.task)
        self._by_task[charge.task] = cost if before is None else before + cost


def opening(node: str, dataset: str, begun: int) -> tuple[bytes, str]:
    """Return the first line of a hospital's ledger of a data set, and its hash."""
    return _line({"entry": _OPENED, "node": node, "dataset": dataset, "time": begun}, START)


def charging(charge: Charge, before: str) -> tuple[bytes, str]:
    """Return a charge's line, and its hash."""
    fields = {name: getattr(charge, name) for name in Charge.__slots__}
    return _line({"entry": _CHARGE, **fields}, before)


def read_lines(raw: bytes, node: str, dataset: str, where: str) -> tuple[Entries, int]:
    """Return what the whole lines of a ledger say, and how many bytes they are.

    A last line without its end is not counted: it is being written, or its writer crashed.

    Raises:
        StateError: LEDGER_DAMAGED, with `where` and the line.
    """
    entries, known = Entries(), dict[bytes, Rdp]()
    whole, ending, _ = raw.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if ending else (), 1):
        try:
            text, head = _checked(line, entries.head)
            charge = None if number == 1 else _charge(text, known)
            if number == 1:
                _check_opening(text, node, dataset)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StateError(
                "LEDGER_DAMAGED",
                f"{where}, line {number}: is not what this hospital wrote there",
            ) from None
        entries.take(charge, head)
    return entries, len(whole) + len(ending)


def _line(body: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    head = _hash(before, text)
    return text[:-1] + _PREV + before.encode() + _SHA + head.encode() + _END + b"\n", head


def _checked(line: bytes, before: str) -> tuple[bytes, str]:
    """Check a line against the chain; return its body, unread, and its hash."""
    text = line[:-_TAIL] + b"}"
    head = _hash(before, text)
    if line[-_TAIL:] != _PREV + before.encode() + _SHA + head.encode() + _END:
        raise ValueError("the chain is broken")
    return text, head


def _hash(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


def _check_opening(text: bytes, node: str, dataset: str) -> None:
    body = json.loads(text)
    if (body["entry"], body["node"], body["dataset"]) != (_OPENED, node, dataset):
        raise ValueError("another hospital's or another data set's")


def _charge(text: bytes, known: dict[bytes, Rdp]) -> Charge:
    """Return a body's charge; `known` are the costs read so far, for few of them differ."""
    start = text.index(_COSTS) + len(_COSTS)
    end = text.index(b"]", start)
    costs = text[start:end]
    if costs not in known:
        known[costs] = _rdp(costs)
    body = json.loads(text[:start] + text[end:])  # with an empty list of costs
    if body.pop("entry") != _CHARGE:
        raise ValueError("only the first line opens a ledger")
    if {name: type(value) for name, value in body.items()} != _FORM:
        raise TypeError("an item is missing, is one too many or has another type")
    return Charge(**{**body, "rdp": known[costs]})


def _rdp(costs: bytes) -> Rdp:
    rdp = tuple(map(float, costs.split(b",")))
    if len(rdp) != len(ORDERS) or not all(cost >= 0 for cost in rdp):
        raise ValueError("a cost is missing or negative")
    return rdp
