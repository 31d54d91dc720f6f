"""Did history go back? The hospitals are the witnesses of the coordinator's store.

A store that was put back from an old copy fits together perfectly; nothing in it shows that
rounds, epochs or releases are missing. But whatever a hospital has seen was durable here before
it was sent: an epoch was reserved before it was begun, a header stored before it went out, a
release before its notice. So a hospital that tells of more than the store knows proves that
the store is an older one (fault F40a). Nothing is then started: a run that went on from an
older model would have its hospitals sum other sets on models they know.

What was told is kept in `history.json`, so that a restart does not forget it, until a
person accepts the loss (`coordinator.operator`): of just what was told by then, so that the
same run that goes back a second time is noticed again. What a hospital told that is no member
any more does not count: one that tells of what nobody else has seen stops all others until
people take it out. In the same way the coordinator
is a witness of each hospital's own state (`witness`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from common.errors import StateError
from common.ids import NodeId, site_name
from common.messages import MAX_SEEN, Seen
from common.state_folder import FILE_MODE, disk_errors, fsync_folder
from coordinator.progress import Progress

NAME: Final = "history.json"
SCHEMA: Final = "fedcare.coordinator-history/1"


@dataclass(frozen=True, slots=True)
class Told:
    """What one hospital told of that the store does not know."""

    site: str
    seen: Seen
    why: str


@dataclass(frozen=True, slots=True)
class Loss:
    """A person accepted that these runs, and these releases, are not in the store.

    `seen`: how far hospitals had seen them; what goes further is another loss.
    """

    unix: float
    reason: str
    runs: tuple[str, ...]
    seen: tuple[Seen, ...] = ()

    def covers(self, one: Seen) -> bool:
        """Whether what a hospital tells is no more than what was accepted."""
        return any(
            one.run_id == known.run_id
            and one.released <= known.released
            and (one.epoch, one.r) <= (known.epoch, known.r)
            and (one.epoch, one.next_r) <= (known.epoch, known.next_r)
            for known in self.seen
        )


class History:
    """The file `history.json` of a state directory; without a folder it is kept in memory.

    `members`: the hospitals' short names; without, whoever told counts.
    """

    def __init__(self, folder: Path | None = None, members: Iterable[str] | None = None) -> None:
        self._path = None if folder is None else folder / NAME
        self._members = None if members is None else frozenset(members)
        self._told: tuple[Told, ...] = ()
        """What was told, by whomever."""
        self.losses: tuple[Loss, ...] = ()
        self._kept = True
        """Whether all of that is in the file."""
        if self._path is not None and self._path.exists():
            self._read(self._path)

    @property
    def told(self) -> tuple[Told, ...]:
        """What members know and the store does not; nothing goes on while there is any."""
        members = self._members
        return tuple(one for one in self._told if members is None or one.site in members)

    @property
    def lost(self) -> frozenset[str]:
        """Runs whose loss was accepted."""
        return frozenset(run for loss in self.losses for run in loss.runs)

    def tell(self, told: Sequence[Told]) -> list[Told]:
        """Keep what a hospital told, durably; return what of it was not known.

        A hospital that comes again tells the same; one that invents runs is heard so many times.

        Raises:
            StateError: DISK.
        """
        known = {(one.site, one.seen.run_id): one for one in self._told}
        of_site = Counter(one.site for one in self._told)
        new = []
        for one in told:
            key, full = (one.site, one.seen.run_id), of_site[one.site] >= MAX_SEEN
            if known.get(key) == one or (full and key not in known):
                continue
            of_site[one.site] += key not in known
            known[key] = one
            new.append(one)
        if new or not self._kept:
            self._told, self._kept = tuple(known.values()), False
            self._write()
            self._kept = True
        return new

    def accept(self, loss: Loss) -> None:
        """Take over what was told as lost.

        Raises:
            StateError: DISK.
        """
        self.losses = (*self.losses, loss)
        self._told = ()
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        tree: dict[str, object] = {
            "schema": SCHEMA,
            "told": [asdict(one) for one in self._told],
            "losses": [asdict(one) for one in self.losses],
        }
        tree["sha256"] = _digest(tree)
        temporary = self._path.with_name(f".{NAME}")
        with disk_errors(self._path):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                json.dump(tree, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
            fsync_folder(self._path.parent)

    def _read(self, path: Path) -> None:
        try:
            tree = json.loads(path.read_bytes())
            self._told = tuple(
                Told(one["site"], Seen(**one["seen"]), one["why"]) for one in tree["told"]
            )
            self.losses = tuple(
                Loss(
                    one["unix"],
                    one["reason"],
                    tuple(one["runs"]),
                    tuple(Seen(**seen) for seen in one.get("seen", ())),
                )
                for one in tree["losses"]
            )
            known = tree["schema"] == SCHEMA and tree["sha256"] == _digest(tree)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            known = False
        if not known:
            raise StateError("STATE_DAMAGED", f"{path} is not what the coordinator wrote") from None


def _digest(tree: Mapping[str, object]) -> str:
    rest = {name: value for name, value in tree.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def unknown(
    node: NodeId,
    seen: Iterable[Seen],
    runs: Iterable[Progress],
    epochs: Mapping[str, int],
    losses: Sequence[Loss],
) -> list[Told]:
    """Return what a hospital tells of that the store does not know, and nobody has accepted.

    A run that the store does not know at all is lost whole: no more of it can get lost.
    """
    found = []
    known = {run.run_id: run for run in runs}
    lost = {run for loss in losses for run in loss.runs}
    for one in seen:
        run = known.get(one.run_id)
        gone = run is None and one.run_id in lost
        why = "" if gone or any(loss.covers(one) for loss in losses) else _why(one, run, epochs)
        if why:
            found.append(Told(site_name(node), one, why))
    return found


def _why(seen: Seen, run: Progress | None, epochs: Mapping[str, int]) -> str:
    if run is None:
        return f"it accepted run {seen.run_id}, which is not in the store"
    known = epochs.get(seen.task, 0)
    if seen.epoch > known:
        return f"it is in epoch {seen.epoch} of {seen.task}; the store knows {known}"
    if seen.epoch == run.epoch != 0:
        if seen.r > run.begun_r:
            return f"it began round {seen.r} of epoch {seen.epoch}; the store knows {run.begun_r}"
        if seen.next_r > run.next_r:
            over = f"round {seen.next_r - 1} of epoch {seen.epoch} is over"
            return f"it was told that {over}; the store has not ended round {run.next_r}"
    if seen.released and not run.released:
        return f"it holds the release of {seen.run_id}, which the store does not know"
    return ""


def witness(runs: Iterable[Progress], node: NodeId) -> tuple[Seen, ...]:
    """Return how far a hospital had come by what it sent: the latest run of each task.

    `runs` in the order in which they were submitted. A hospital stores what it confirms before
    it confirms, and a header before its upload. Each entry says too how far the run itself is,
    so that the hospital can judge the coordinator. A welcome holds MAX_SEEN of them: the tasks
    whose latest run is the youngest.
    """
    found: dict[str, Seen] = {}
    for run in runs:
        uploaded = dict(run.confirmed).get(node)
        if uploaded is None:
            continue
        seen = Seen(run.run_id, run.task, run.epoch, uploaded, released=False, next_r=run.next_r)
        before = found.pop(seen.task, seen)
        found[seen.task] = seen if seen.epoch > before.epoch else before
    return tuple(list(found.values())[-MAX_SEEN:])
