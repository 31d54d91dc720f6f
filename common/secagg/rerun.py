"""One set per model: what a hospital remembers of every sum it agreed to (section 10.4).

Without differential privacy, two sums over different sets S on the same model can be
subtracted. So a node that signed or accepted S for a (kind, layout, model) signs or
accepts there only S again, with the same w, R and W_max, in that task over all
sessions. The memory is one flat byte string of digests, so that it stays cheap to
copy and to store after thousands of rounds:

    key (32) || digest of w, R, W_max (32) || H("set", S) (32)    per model

The coordinator names a set that a run waits for by `set_code`; a hospital forgets its last
record on that word only, and never one whose sum it was told is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from common.encoding import enc
from common.errors import Refusal
from common.ids import DIGEST_BYTES, NodeId, Sha256
from common.secagg import codec
from common.secagg.dp import DpMode
from common.secagg.header import Header, RoundKind
from common.secagg.transcript import set_hash

_RECORD: Final = 3 * DIGEST_BYTES


CODE_DIGITS: Final = 16
"""People read a code to one another: it tells sets apart, and nothing rests on its secrecy."""


def _key(kind: RoundKind, layout_sha256: Sha256, model_sha256: Sha256) -> bytes:
    """A local table key, not a statement of the protocol: no label is spent on it."""
    return hashlib.sha256(enc(kind.value, layout_sha256, model_sha256)).digest()


def _key_of(header: Header) -> bytes:
    return _key(header.kind, header.layout_sha256, header.model_sha256)


def set_code(
    kind: RoundKind, layout_sha256: Sha256, model_sha256: Sha256, survivors: Iterable[NodeId]
) -> str:
    """Return the code of a set S on a model: what a person says who orders it forgotten."""
    return _code(_key(kind, layout_sha256, model_sha256), set_hash(survivors))


def _code(key: bytes, survivors: bytes) -> str:
    return hashlib.sha256(key + survivors).hexdigest()[:CODE_DIGITS]


def _terms(header: Header) -> bytes:
    """Digest what the sums over one set have to have in common, whatever U they came from.

    Ranges that follow from B do so again with another n: the count's is B itself, that of a
    remainder is one level of the range before it. They are told apart from stated ones by
    their sign.
    """
    levels = header.bound
    ranges = []
    before = 0.0
    for value in map(float, header.ranges):
        follows = -1.0 if value == levels else -2.0 if value == before / levels else value
        ranges.append(follows)
        before = value
    return hashlib.sha256(enc(header.w, *ranges, header.w_max)).digest()


@dataclass(frozen=True, slots=True)
class RerunMemory:
    """Every (kind, layout, model) of a task that this node agreed to a set for."""

    records: bytes = b""
    opened: int = field(default=0, metadata=codec.added())
    """How many models, from the first on, came before one whose sum was opened, it included."""

    @property
    def last_code(self) -> str:
        """The code of the last set that was agreed to, empty for none."""
        last = self.records[-_RECORD:]
        return _code(last[:DIGEST_BYTES], last[2 * DIGEST_BYTES :]) if last else ""

    @property
    def last_is_opened(self) -> bool:
        """Whether this node was told that the last sum it agreed to was opened."""
        return self.opened >= self.models

    @property
    def models(self) -> int:
        """How many models a set was agreed to for."""
        return len(self.records) // _RECORD

    def check_terms(self, header: Header) -> None:
        """Refuse a header whose numbers differ from those agreed on for its model.

        Raises:
            Refusal: RERUN.
        """
        if header.dp.mode is not DpMode.NONE:
            return  # with differential privacy the hospital's ledger decides
        known = self._find(header)
        if known is not None and known[:DIGEST_BYTES] != _terms(header):
            raise Refusal("RERUN", "the same model came before with another w, R or W_max")

    def check_set(self, header: Header, survivors: Iterable[NodeId]) -> None:
        """Refuse another survivor set, or other numbers, for a model agreed on before.

        Raises:
            Refusal: RERUN.
        """
        self.check_terms(header)
        if header.dp.mode is not DpMode.NONE:
            return
        known = self._find(header)
        if known is not None and known[DIGEST_BYTES:] != set_hash(survivors):
            code = _code(_key_of(header), known[DIGEST_BYTES:])
            raise Refusal("RERUN", f"the survivor set {code} was accepted for the same model")

    def remember(self, header: Header, survivors: Iterable[NodeId]) -> RerunMemory:
        """Return the memory with this set in it; `check_set` came before."""
        if header.dp.mode is not DpMode.NONE or self._find(header) is not None:
            return self
        record = _key_of(header) + _terms(header) + set_hash(survivors)
        return replace(self, records=self.records + record)

    def with_opened(self, header: Header) -> RerunMemory:
        """Return the memory after the word that a header's sum was opened."""
        at = self._place(_key_of(header))
        return self if at is None else replace(self, opened=max(self.opened, at // _RECORD + 1))

    def without_last(self) -> RerunMemory:
        """Return the memory without the last set that was agreed to, on a person's order.

        It is that of the model that a stuck run stands at: each later model of the task was
        remembered after it.
        """
        return replace(self, records=self.records[:-_RECORD])

    def _find(self, header: Header) -> bytes | None:
        at = self._place(_key_of(header))
        return None if at is None else self.records[at + DIGEST_BYTES : at + _RECORD]

    def _place(self, key: bytes) -> int | None:
        for at in range(0, len(self.records), _RECORD):
            if self.records[at : at + DIGEST_BYTES] == key:
                return at
        return None
