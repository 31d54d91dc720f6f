"""Where training runs: one job at a time, beside the event loop, never in its way.

Heartbeats go on while a job works. A job cannot be interrupted, only abandoned: the
next one still waits for it, so that a coordinator which keeps starting rounds cannot
pile up threads. The threads are daemons: a node that is told to stop does not wait for
a training whose result nobody will use.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Runs blocking calls in turn; for use from one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` in a thread and return what it returns, or raise what it raises."""
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = call()
            except BaseException as failure:  # noqa: BLE001 - raised again by the caller
                settle = _failing(done, failure)
            else:
                settle = _succeeding(done, result)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._settle, settle)

        threading.Thread(target=work, name="work", daemon=True).start()
        return await done

    def _settle(self, settle: Callable[[], None]) -> None:
        self._turn.release()
        settle()


def _succeeding(done: asyncio.Future[T], result: T) -> Callable[[], None]:
    return lambda: None if done.done() else done.set_result(result)


def _failing(done: asyncio.Future[T], failure: BaseException) -> Callable[[], None]:
    return lambda: None if done.done() else done.set_exception(failure)
