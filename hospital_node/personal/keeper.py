"""When a node makes its personal models: once for a release, beside the rounds.

A job has a thread of its own, so that no round waits for it, and one runs at a time; while
a round trains it waits between two of its steps. What a crash or a stop interrupted is begun
again at the next start: a release without its personal model is the only mark that is needed,
and a model gets its name when all of it is on the disk. A failure is logged and costs only
the personal model; the release stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from common.errors import FedError
from common.events import Event
from common.ids import RunId
from common.logs import EventLog
from common.manifest import MANIFEST_FILE, MODEL_FILE
from hospital_node import files
from hospital_node.store import NodeStore
from hospital_node.work import Work
from hospital_node.worker import Worker


class PersonalKeeper:
    """See the module."""

    def __init__(self, store: NodeStore, rounds: Worker, log: EventLog) -> None:
        self._store = store
        self._log = log
        self._worker = Worker(behind=rounds)
        self._turn = asyncio.Lock()
        """Held from the loading of a table on: no tables lie in memory and wait."""

    def wanting(self, run_id: RunId) -> bool:
        """Whether a verified release of the run has no personal model yet."""
        release = self._store.release_directory(run_id)
        return (release / MANIFEST_FILE).exists() and not self._folder(run_id).exists()

    async def make(self, run_id: RunId, open_work: Callable[[], Awaitable[Work]]) -> None:
        """Make and keep the run's personal model unless there is one."""
        if not self.wanting(run_id):
            return
        log = self._log.bind(run=run_id)
        model = self._store.release_directory(run_id) / MODEL_FILE
        try:
            async with self._turn:
                work = await open_work()
                own, folder = self._store.own(run_id), self._folder(run_id)
                chosen = await self._worker.run(lambda: work.personalise(model, own, folder))
        except FedError as failure:
            log.failure(Event.MODEL_PERSONAL, failure)
            files.replace(self._failed(run_id), f"{failure.name}\n".encode())
            return
        files.remove(self._failed(run_id))
        if chosen:
            log.info(Event.MODEL_PERSONAL, kind=chosen)

    async def close(self) -> bool:
        """Give up what is being made; return whether that has ended in time."""
        return await self._worker.close()

    def _failed(self, run_id: RunId) -> Path:
        """Where the error's name stands until a later start succeeds."""
        folder = self._folder(run_id)
        return folder.with_name(folder.name + ".failed")

    def _folder(self, run_id: RunId) -> Path:
        return self._store.personal_directory(run_id)
