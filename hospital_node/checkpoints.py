"""A round's training goes on after a crash from where it was, not from the received model.

    with kept(Keeper(slot, every_s, ...)):     whoever trains a round, in the work's thread
        take_steps(...)                            here(): begin, due?, save, end

Time decides: the first checkpoint is written `every_s` after the round's training began, so
a round that is quicker writes none and pays one look at the clock a step. The next one waits
until `every_s` have passed and the last one has cost less than `SHARE` of the time since, so
that whatever the model and the disk, checkpoints take about that share of a round at most.

One checkpoint a round, in place of the one before: for each call of `take_steps` so far how
many steps it took and what it had then (parameters and statistics, the optimiser's moments;
of a call that had ended the first only). The order of the rows follows from the seed and the
number of steps, and a strategy's hooks keep nothing from step to step: so what is trained on
from there is, bit for bit, what would have been trained.

It is an update in the making, so it is sealed (`hospital_node.sealing`) for its header and
nothing else, and goes as soon as the masked vector is on disk, or the round over. What does
not open, or was made of other rows, terms or software, is not used: training begins again.

Rounds with differential privacy keep none: which patients were drawn would have to lie on disk,
beside sums without noise. They begin again; nothing of the first attempt had left.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import StateError
from common.events import Event
from common.failpoints import failpoint
from common.ids import HeaderDigest
from common.logs import EventLog
from hospital_node import files
from hospital_node.sealing import Vault

Arrays: TypeAlias = dict[str, NDArray[Any]]

SHARE: Final = 0.02
"""Most of a round's time that writing checkpoints takes."""

MOST_BYTES: Final = 1 << 30
"""Larger states are not kept: sealing takes a whole one at a time, three times in memory."""

_STEPS: Final = "steps"
_OF: Final = "of"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one call of `take_steps` got: made `of` what (a digest), `steps`, its state."""

    of: bytes
    steps: int
    arrays: Arrays


class Slot(Protocol):
    """Where one round's checkpoint lies."""

    def load(self) -> bytes | None:
        """Return what was saved last, None if nothing was.

        Raises:
            StateError: STATE_DAMAGED, it cannot be trusted.
        """
        ...

    def save(self, content: bytes) -> None:
        """Take `content` in place of what was saved before.

        Raises:
            StateError: DISK; what was saved before still is, if the disk has it.
        """
        ...

    def resumed(self) -> None:
        """Hear that training goes on from what was loaded."""
        ...

    def ignored(self, why: StateError | str) -> None:
        """Hear that what was loaded is of no use, or nothing will be saved, and why."""
        ...


@dataclass(slots=True)
class Keeper:
    """One round's checkpoints, as `take_steps` uses them; `how` the training is computed."""

    slot: Slot
    every_s: float
    how: str = "1"
    now: Callable[[], float] = time.monotonic
    _calls: list[tuple[Callable[[], bytes], int, Arrays]] = field(default_factory=list)
    """What earlier calls of this process ended with."""
    _stored: list[Progress] | None = None
    _of: Callable[[], bytes] = bytes
    _last: float = 0.0
    _cost_s: float = 0.0

    def __post_init__(self) -> None:
        self._last = self.now()

    def begin(self, of: Callable[[], bytes], fits: Callable[[Arrays], bool]) -> Progress | None:
        """A call of `take_steps` begins; return how far an earlier process got in it, if it did.

        `of` returns the digest of everything that its result follows from, but for what the
        header binds; it is asked only when there is something to compare or to save. `fits`
        says whether arrays are a state of this very module.
        """
        self._of = of = cache(of)
        stored, place = self._load(), len(self._calls)
        if place >= len(stored):
            return None
        found = stored[place]
        if found.of == of() and fits(found.arrays):
            if found is stored[-1]:
                self.slot.resumed()
            return found
        self._stored = []
        self.slot.ignored(
            "the checkpoint is of other rows, terms or software, or another number of processes"
        )
        return None

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.now() - self._last >= max(self.every_s, self._cost_s / SHARE)

    def save(self, steps: int, arrays: Arrays) -> None:
        """Write how far this call is. What cannot be written costs no round: training goes on."""
        began = self.now()
        calls = [*self._calls, (self._of, steps, arrays)]
        size = sum(values.nbytes for *_, state in calls for values in state.values())
        if size > MOST_BYTES:
            self.slot.ignored(f"a state of {size} bytes is not kept; the most is {MOST_BYTES}")
            self.every_s = float("inf")
            return
        try:
            self.slot.save(_pack([Progress(of(), count, state) for of, count, state in calls]))
        except StateError as failure:
            self.slot.ignored(failure)
            self.every_s = float("inf")
        self._last = self.now()
        self._cost_s = self._last - began

    def end(self, steps: int, arrays: Arrays) -> None:
        """A call of `take_steps` ended; its state is copied, for checkpoints of later calls."""
        copied = {name: values.copy() for name, values in arrays.items()}
        self._calls.append((self._of, steps, copied))

    def _load(self) -> list[Progress]:
        if self._stored is None:
            try:
                content = self.slot.load()
                self._stored = [] if content is None else _unpack(content)
            except StateError as failure:
                self.slot.ignored(failure)
                self._stored = []
        return self._stored


_KEEPER: Final[ContextVar[Keeper | None]] = ContextVar("keeper", default=None)


def here() -> Keeper | None:
    """Return where training of this thread keeps its checkpoints; None: it keeps none."""
    return _KEEPER.get()


@contextlib.contextmanager
def kept(keeper: Keeper | None) -> Iterator[None]:
    """Keep checkpoints of the training inside the block."""
    before = _KEEPER.set(keeper)
    try:
        yield
    finally:
        _KEEPER.reset(before)


# --- where they lie ---------------------------------------------------------------------------


class CheckpointFolder:
    """The folder `checkpoints/` of a node's state: one sealed file for an open round."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder = folder
        self._vault = vault
        self._wanted: set[HeaderDigest] = set()

    def path(self, hd: HeaderDigest) -> Path:
        """Where a round's checkpoint lies, or would."""
        return self._folder / f"{hd.hex()}.sealed"

    def want(self, hd: HeaderDigest) -> None:
        """A round's training begins."""
        self._wanted.add(hd)

    def load(self, hd: HeaderDigest) -> bytes | None:
        """Return a round's checkpoint, None if there is none.

        Raises:
            StateError: STATE_DAMAGED, it does not open.
        """
        path = self.path(hd)
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as failure:
            raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from failure
        return self._vault.open(_purpose(hd), sealed, str(path))

    def check(self, path: Path) -> None:
        """Open a checkpoint of this folder, whatever round it is of.

        Raises:
            StateError: STATE_DAMAGED.
            OSError: it cannot be read.
        """
        _unpack(self._vault.open(f"checkpoint/{path.stem}", path.read_bytes(), str(path)))

    def save(self, hd: HeaderDigest, content: bytes) -> None:
        """Seal and write a round's checkpoint, durably; nothing of a round that is over stays.

        Raises:
            StateError: DISK.
        """
        path = self.path(hd)
        try:
            files.replace(path, self._vault.seal(_purpose(hd), content))
        except StateError:
            with contextlib.suppress(OSError):  # the disk may be full: leave it no worse
                path.with_name(path.name + files.TEMPORARY).unlink(missing_ok=True)
            raise
        if hd not in self._wanted:
            files.remove(path)
        failpoint("node.checkpoint.after")

    def drop(self, hd: HeaderDigest) -> None:
        """A round's checkpoint is of no use any more.

        Raises:
            StateError: DISK.
        """
        self._wanted.discard(hd)
        files.remove(self.path(hd))

    def keep(self, rounds: frozenset[HeaderDigest]) -> None:
        """Remove what is of none of the open `rounds`.

        Raises:
            StateError: DISK.
        """
        names = {self.path(hd).name for hd in rounds}
        for path in self._folder.iterdir():
            if path.name not in names:
                files.remove(path)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What a node's desk gives to the training of its rounds."""

    folder: CheckpointFolder
    every_s: float

    def of(self, hd: HeaderDigest, log: EventLog, how: str) -> Keeper:
        """Return a round's keeper."""
        self.folder.want(hd)
        return Keeper(SealedSlot(self.folder, hd, log), self.every_s, how)


@dataclass(frozen=True, slots=True)
class SealedSlot:
    """A round's file in the node's state directory; see `Slot`."""

    folder: CheckpointFolder
    hd: HeaderDigest
    log: EventLog

    def load(self) -> bytes | None:
        """See `Slot`."""
        return self.folder.load(self.hd)

    def save(self, content: bytes) -> None:
        """See `Slot`."""
        self.folder.save(self.hd, content)

    def resumed(self) -> None:
        """See `Slot`."""
        self.log.info(Event.TRAINING_RESUMED)

    def ignored(self, why: StateError | str) -> None:
        """See `Slot`."""
        if isinstance(why, str):
            self.log.warning(Event.CHECKPOINT_IGNORED, detail=why)
        else:
            self.log.failure(Event.CHECKPOINT_IGNORED, why)


@dataclass(frozen=True, slots=True)
class PlainSlot:
    """A round's file in the private folder of its training processes; see `Slot`.

    The node puts there what it has, takes and seals what comes (`hospital_node.launcher`):
    the processes never see its key.
    """

    folder: Path
    writes: bool

    def load(self) -> bytes | None:
        """See `Slot`."""
        path = self.folder / BEGIN
        return path.read_bytes() if path.exists() else None

    def save(self, content: bytes) -> None:
        """See `Slot`; only one of the processes writes, for all hold the same."""
        if self.writes:
            part = self.folder / (SAVED + files.TEMPORARY)
            with files.disk_errors(part):
                part.write_bytes(content)
                part.replace(self.folder / SAVED)

    def resumed(self) -> None:
        """See `Slot`."""
        self._note(RESUMED)

    def ignored(self, why: StateError | str) -> None:
        """See `Slot`."""
        self._note(IGNORED, why if isinstance(why, str) else why.detail)

    def _note(self, name: str, text: str = "") -> None:
        if self.writes:
            with contextlib.suppress(OSError):
                (self.folder / name).write_text(text, "utf-8")


BEGIN: Final = "begin.checkpoint"
SAVED: Final = "saved.checkpoint"
RESUMED: Final = "resumed.note"
IGNORED: Final = "ignored.note"


class Handed:
    """The node's side of a `PlainSlot`: what it gives to the processes, and takes from them."""

    def __init__(self, slot: Slot, folder: Path) -> None:
        self._slot = slot
        self._folder = folder

    def give(self) -> None:
        """Put the round's checkpoint where the processes look for it.

        Raises:
            StateError: DISK.
        """
        try:
            content = self._slot.load()
        except StateError as failure:
            self._slot.ignored(failure)
            return
        if content is not None:
            with files.disk_errors(self._folder):
                (self._folder / BEGIN).write_bytes(content)

    def take(self) -> None:
        """Seal what the processes left since, and say what they noted."""
        with contextlib.suppress(FileNotFoundError):
            content = (self._folder / SAVED).read_bytes()
            (self._folder / SAVED).unlink()
            try:
                self._slot.save(content)
            except StateError as failure:
                self._slot.ignored(failure)
        if (self._folder / RESUMED).exists():
            (self._folder / RESUMED).unlink()
            self._slot.resumed()
        with contextlib.suppress(FileNotFoundError):
            why = (self._folder / IGNORED).read_text("utf-8")
            (self._folder / IGNORED).unlink()
            self._slot.ignored(why)


def _purpose(hd: HeaderDigest) -> str:
    return f"checkpoint/{hd.hex()}"


# --- bytes --------------------------------------------------------------------------------------


def _pack(calls: list[Progress]) -> bytes:
    from safetensors.numpy import save

    arrays: Arrays = {
        _STEPS: np.array([one.steps for one in calls], np.int64),
        _OF: np.stack([np.frombuffer(one.of, np.uint8) for one in calls]),
    }
    for place, one in enumerate(calls):
        # a transposed array would be written in the order in which it lies in memory
        arrays |= {
            f"{place}/{name}": np.array(values, order="C") for name, values in one.arrays.items()
        }
    return save(arrays)


def _unpack(content: bytes) -> list[Progress]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
        steps, of = arrays.pop(_STEPS), arrays.pop(_OF)
        states: list[Arrays] = [{} for _ in steps]
        for name, values in arrays.items():
            place, _, rest = name.partition("/")
            states[int(place)][rest] = values
        made = zip(of, steps, states, strict=True)
        return [Progress(digest.tobytes(), int(count), state) for digest, count, state in made]
    except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as failure:
        said = f"a checkpoint of training is not one: {type(failure).__name__}"
        raise StateError("STATE_DAMAGED", said) from failure
