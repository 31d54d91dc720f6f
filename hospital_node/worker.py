"""Where training runs: one job at a time, beside the event loop, never in its way.

Heartbeats go on while a job works. The next job waits for the one before, so that a
coordinator which keeps starting rounds cannot pile up threads. A job is never killed: it
asks between its steps whether it may go on (`hospital_node.going_on`), and ends there when
nobody wants its result any more or the node stops. `close` waits for that, but not for
long: threads are daemons, and one that is in a long step ends with the process. What it
writes appears under its name when it is whole, or never.

A worker may stand behind another one: its job waits while the other has one, so that what
has no hurry takes nothing from a round. Which steps a job takes does not depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from common.errors import RoundError
from hospital_node.going_on import asked

LONGEST_END_S: Final = 3.0
"""How long `close` waits for the step that a job is in."""

_LOOK_S: Final = 0.05
"""How often a job that waits for another worker looks whether it is still wanted."""

T = TypeVar("T")


def _always_wanted() -> bool:
    return False


class Worker:
    """Runs blocking calls in turn; for use from one event loop.

    `behind`: the worker whose jobs go first.
    """

    def __init__(self, behind: Worker | None = None) -> None:
        self._behind = behind
        self._turn = asyncio.Lock()
        self._closed = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T], unwanted: Callable[[], bool] = _always_wanted) -> T:
        """Run `call` in a thread and return what it returns, or raise what it raises.

        `unwanted` is asked between its steps, in the thread.

        Raises:
            RoundError: RUN_CANCELLED, the call is not wanted any more or the worker is closed.
        """
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def check() -> None:
            self._check(unwanted)

        def work() -> None:
            try:
                with asked(check):
                    check()
                    result = call()
            except BaseException as failure:  # noqa: BLE001 - raised again by the caller
                settle = _failing(done, failure)
            else:
                settle = _succeeding(done, result)
            self._idle.set()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._settle, settle)

        self._idle.clear()
        self._thread = threading.Thread(target=work, name="work", daemon=True)
        self._thread.start()
        return await done

    async def close(self) -> bool:
        """End the job at its next step and take no other; return whether it has ended in time."""
        self._closed.set()
        try:
            async with asyncio.timeout(LONGEST_END_S):
                await self._turn.acquire()
        except TimeoutError:
            return False
        self._turn.release()
        if self._thread is not None:
            self._thread.join()  # it has nothing left to do
        return True

    def _check(self, unwanted: Callable[[], bool]) -> None:
        """Return when a job may take its next step; see `hospital_node.going_on`."""
        while True:
            if self._closed.is_set() or unwanted():
                raise RoundError("RUN_CANCELLED", "the work is not wanted any more")
            if self._behind is None or self._behind._idle.wait(_LOOK_S):  # noqa: SLF001 - its own kind
                return

    def _settle(self, settle: Callable[[], None]) -> None:
        self._turn.release()
        settle()


def _succeeding(done: asyncio.Future[T], result: T) -> Callable[[], None]:
    return lambda: None if done.done() else done.set_result(result)


def _failing(done: asyncio.Future[T], failure: BaseException) -> Callable[[], None]:
    return lambda: None if done.done() else done.set_exception(failure)
