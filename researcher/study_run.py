"""`fedcare study run`: one study from its file to a verified model, as often as one likes.

    find the study's run at the coordinator, or submit it
    watch it to its end
    pull the model into OUT/<run>/ and verify it, or verify what is there

It may be stopped and started at any point, and the coordinator with it. Which run is
meant follows from the study's hash alone:

1. the newest finished run of that hash, if there is one;
2. else the run of it that is going on;
3. else a new one. Failed and cancelled runs do not count, but are told about.

A submission's id is made from the hash and the number of runs it has had, so two calls at
the same time begin one run: the coordinator gives the same id the same run.

A run that waits for people's approval at hospitals is waited for as well, or left (it goes on
without us; the same command later finds it) if `for_people` is False.

A coordinator that does not answer is waited for: `wait_s` bounds how long without any
contact. A refusal, a wrong certificate and a failed run end it at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol, TypeVar

from common.clock import Clock
from common.config import format_duration
from common.errors import ConfigError, FedError, InternalError, StateError
from common.ids import RunId
from common.install import lock, make_folder
from common.study import Study, canonical_json, config_hash
from common.text import escape
from common.views import RoundView, RunPhase, RunView, StudyView
from common.wire_operations import Submitted
from researcher.client import require_finished
from researcher.figures import listed
from researcher.progress import Display
from researcher.release import Source, VerifiedModel, pull, verify
from researcher.show import run_data, waits_for_people

T = TypeVar("T")

_AWAY: Final = frozenset({"UNREACHABLE", "DEADLINE", "BUSY"})
"""What a coordinator that is not there, or not for the moment, looks like."""

_PAUSE_S: Final = 1.0
_LOCK_PAUSE_S: Final = 0.2
_HASH_DIGITS: Final = 32


class Desk(Source, Protocol):
    """What is asked of the coordinator; `researcher.client.Client` is one."""

    async def studies(self) -> tuple[StudyView, ...]:
        """Return every study with its runs, oldest first."""
        ...

    async def run(self, run_id: str) -> RunView:
        """Return one run."""
        ...

    async def submit(self, study: bytes, client_id: str | None = None) -> Submitted:
        """Submit a study; the same id gives the same run."""
        ...

    def watch(self, run_id: str) -> AsyncIterator[RunView]:
        """Yield a run's view after each change, until it is final."""
        ...


class Begin(StrEnum):
    """How the run came about."""

    SUBMITTED = "submitted"
    GOING_ON = "going-on"
    FINISHED = "finished-before"


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run and its verified model; `pulled` is False if it was there already."""

    begin: Begin
    view: RunView
    model: VerifiedModel
    pulled: bool


@dataclass(frozen=True, slots=True)
class OnlyPeople:
    """A run that goes on once people at hospitals have approved the study."""

    view: RunView


@dataclass(slots=True)
class Patience:
    """Repeats what found nobody, until there was no contact for `wait_s` seconds."""

    wait_s: float
    clock: Clock
    screen: Display
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    _met: bool = field(default=False, init=False)
    _away_since: float | None = field(default=None, init=False)

    def contact(self) -> None:
        """Note that the coordinator answered."""
        if self._away_since is not None:
            self.screen.step("the coordinator answers")
        self._met, self._away_since = True, None

    async def missed(self, error: FedError) -> None:
        """Wait a little; or raise `error`, if waiting is of no use or was long enough."""
        # A server that ends during a handshake looks like one that refuses us: believe
        # that only of one that never took our certificate.
        if error.name not in _AWAY and not (self._met and error.name == "TLS_REFUSED"):
            raise error
        now = self.clock.monotonic()
        if self._away_since is None:
            self._away_since = now
            limit = format_duration(self.wait_s)
            self.screen.step(f"waiting up to {limit} for the coordinator: {escape(error.detail)}")
        if now - self._away_since >= self.wait_s:
            raise error
        await self.pause(_PAUSE_S)

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a question that may be asked again."""
        while True:
            try:
                answer = await question()
            except FedError as error:
                await self.missed(error)
            else:
                self.contact()
                return answer


@dataclass(frozen=True, slots=True)
class Errand:
    """What is wanted: the study run, its model under `out`, verified against `ca`."""

    study: Study
    out: Path
    ca: Path
    for_people: bool = True
    """Whether a run that only waits for people is waited for."""

    async def run(self, desk: Desk, patience: Patience) -> Ran | OnlyPeople:
        """Do all of it; see the module.

        Raises:
            RoundError: RUN_FAILED or RUN_CANCELLED, with the run's reason; BUSY, another
                study of that id is being run.
            FedError: what the coordinator refuses; UNREACHABLE after the wait; as
                `researcher.release.pull` and `verify`.
        """
        begin, run_id = await self._begin(desk, patience)
        if begin is Begin.FINISHED:
            view = await patience.ask(lambda: desk.run(run_id))
        else:
            view = await self._watched(desk, run_id, patience)
            if not view.state.final:
                return OnlyPeople(view)
        require_finished(view)
        async with _alone(self.out):
            model, pulled = await self._model(desk, run_id, patience)
        self._check_same(model, view)
        return Ran(begin, view, model, pulled)

    async def _model(
        self, desk: Desk, run_id: RunId, patience: Patience
    ) -> tuple[VerifiedModel, bool]:
        """Return the run's verified model and whether it was fetched for that."""
        folder = self.out / run_id
        if await asyncio.to_thread(_holds_something, folder):
            return await asyncio.to_thread(self._verify, folder), False
        patience.screen.step("fetching the model and verifying it")
        return await patience.ask(lambda: pull(desk, run_id, folder, self.ca)), True

    async def _watched(self, desk: Desk, run_id: str, patience: Patience) -> RunView:
        """Show a run until it ends, however often the coordinator goes away in between."""
        while True:
            try:
                async for view in desk.watch(run_id):
                    patience.contact()
                    patience.screen.show(view)
                    if view.state.final or (not self.for_people and waits_for_people(view)):
                        return view
                raise InternalError("a run was watched and its end was not seen")
            except FedError as error:
                await patience.missed(error)

    async def _begin(self, desk: Desk, patience: Patience) -> tuple[Begin, RunId]:
        past = await patience.ask(lambda: self._runs(desk))
        found = _choose(past)
        if found is None:
            submitted = await patience.ask(lambda: self._submit(desk, past, patience.screen))
            if isinstance(submitted, Submitted):
                return Begin.SUBMITTED, submitted.run_id
            # Somebody else was faster, perhaps with this very study.
            found = _choose(await patience.ask(lambda: self._runs(desk)))
            if found is None:
                raise submitted
        begin = Begin.FINISHED if found.state.final else Begin.GOING_ON
        words = "finished before" if begin is Begin.FINISHED else "is going on"
        patience.screen.step(f"run {escape(found.run_id)} of this study {words}")
        return begin, found.run_id

    async def _runs(self, desk: Desk) -> tuple[RunView, ...]:
        """Return the runs of this very study, oldest first."""
        digest = config_hash(self.study)
        known = [view for view in await desk.studies() if view.config_hash == digest]
        return tuple([await desk.run(run_id) for view in known for run_id in view.run_ids])

    async def _submit(
        self, desk: Desk, past: Sequence[RunView], screen: Display
    ) -> Submitted | FedError:
        """Begin a run; return the error if the coordinator is busy with a run of that id."""
        request = f"run-{config_hash(self.study).hex()[:_HASH_DIGITS]}-{len(past)}"
        try:
            submitted = await desk.submit(canonical_json(self.study), request)
        except FedError as error:
            if error.name != "BUSY":
                raise
            return error
        earlier = ""
        if past:
            last = past[-1]
            reason = f": {escape(last.reason)}" if last.reason else ""
            earlier = f", anew: {escape(last.run_id)} was {last.state.value}{reason}"
        screen.step(f"submitted study {self.study.id} as run {submitted.run_id}{earlier}")
        return submitted

    def _verify(self, folder: Path) -> VerifiedModel:
        try:
            return verify(folder, self.ca)
        except StateError as error:
            fix = f"Move {folder} away and run this again: it fetches the model anew."
            raise StateError(error.name, error.detail, fix=fix) from None

    def _check_same(self, model: VerifiedModel, view: RunView) -> None:
        """Refuse a genuine model of another run or study."""
        manifest = model.manifest
        found = (manifest.run, manifest.study.config_hash, manifest.model_sha256)
        wanted = (view.run_id, config_hash(self.study).hex(), view.model_sha256)
        for what, have, want in zip(("run", "study", "model"), found, wanted, strict=True):
            if have != want:
                raise StateError(
                    "MODEL_INVALID",
                    f"{model.folder} holds a model of {what} {escape(have)}, not {escape(want)}",
                )


def _choose(past: Sequence[RunView]) -> RunView | None:
    """Return the newest finished run, else the one that is going on, else None."""
    finished = [view for view in past if view.state is RunPhase.FINISHED]
    open_runs = [view for view in past if not view.state.final]
    return next(iter([*reversed(finished), *reversed(open_runs)]), None)


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Let one process at a time fetch into a folder; the next one finds what it left."""
    make_folder(folder)
    while (handle := lock(folder)) is None:  # noqa: ASYNC110 - another process's lock
        await asyncio.sleep(_LOCK_PAUSE_S)
    try:
        yield
    finally:
        os.close(handle)


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{folder}: {error.strerror}") from None


# --- telling ------------------------------------------------------------------------------


def ran_data(ran: Ran) -> dict[str, object]:
    """Return what came out, for an envelope."""
    manifest = ran.model.manifest
    return {
        **run_data(ran.view),
        "begin": ran.begin.value,
        "hash": f"sha256:{manifest.study.config_hash}",
        "folder": str(ran.model.folder),
        "pulled": ran.pulled,
        "verified": True,
        "signer": ran.model.signer,
    }


def ran_text(ran: Ran) -> str:
    """Return what came out, for people."""
    view = ran.view
    verb = "had finished" if ran.begin is Begin.FINISHED else "finished"
    figures = escape(listed(dict(view.pooled)))
    lines = [
        f"run {escape(view.run_id)} {verb}; model verified",
        f"rounds  {len(view.history)} in {view.seconds:.1f} s; {rounds_text(view.history)}",
        f"pooled  {figures or 'no figures'} (from masked sums)",
        f"model   {ran.model.folder}, sha256 {view.model_sha256}",
        f"signer  {ran.model.signer}",
    ]
    return "\n".join(lines)


def rounds_text(history: Sequence[RoundView]) -> str:
    """Return who took part in which rounds; neighbours that are alike in one phrase."""
    phrases: list[str] = []
    for words, group in groupby(history, _took_part):
        numbers = [entry.number for entry in group]
        first, last = numbers[0], numbers[-1]
        phrases.append(f"{first if first == last else f'{first} to {last}'}: {words}")
    return "; ".join(phrases)


def _took_part(entry: RoundView) -> str:
    words = f"{len(entry.survivors)} hospitals"
    if entry.dropped:
        words += f" without {escape(', '.join(entry.dropped))}"
    return words if entry.state == "CLOSED" else f"voided ({escape(entry.reason)})"
