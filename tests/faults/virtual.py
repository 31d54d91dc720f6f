"""An event loop in virtual time: nothing waits, and equal inputs give equal histories.

Time passes only when nobody has anything to do, and then at once, up to the next timer.
What a program hands to threads is done in place. So a federation that waits a day for a
hospital takes milliseconds, and its order of events depends on nothing outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class StuckError(Exception):
    """Nothing is left that could ever happen, or too much time went by."""


class _Nothing(selectors.SelectSelector):
    """A selector without files: waiting is time that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: Callable[[float | None], None] = lambda _: None

    def select(self, timeout: float | None = None) -> list[Any]:
        self.passed(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. `most_s` is how long it may go on, in virtual seconds."""

    def __init__(self, most_s: float) -> None:
        selector = _Nothing()
        self._now = 0.0
        self._most_s = most_s
        super().__init__(selector)
        selector.passed = self._pass

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def give_time(self, seconds: float) -> None:
        """Let it go on for so long from now."""
        self._most_s = self._now + seconds

    def _pass(self, timeout: float | None) -> None:
        if timeout is None:
            raise StuckError("everybody waits for somebody else")
        self._now += timeout
        if self._now > self._most_s:
            raise StuckError(f"not over after {self._most_s:g} virtual seconds")

    def run_in_executor(
        self, executor: object, func: Callable[..., T], *args: object
    ) -> asyncio.Future[T]:
        """Do it here and now."""
        del executor
        done: asyncio.Future[T] = self.create_future()
        try:
            done.set_result(func(*args))
        except BaseException as failure:  # noqa: BLE001 - raised where it is awaited
            done.set_exception(failure)
        return done


class InlineThread:
    """Stands for `threading.Thread` where a simulated process starts one: done in place."""

    def __init__(self, *, target: Callable[[], None], name: str, daemon: bool) -> None:
        del name, daemon
        self._target = target

    def start(self) -> None:
        """Do all of it."""
        self._target()

    def is_alive(self) -> bool:
        """Return False: it is over when it has started."""
        return False

    def join(self, timeout: float | None = None) -> None:
        """Return at once."""


async def _cancel_all() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def run(work: Coroutine[Any, Any, T], most_s: float = 3600.0) -> T:
    """Run `work` in virtual time and return what it returns.

    Raises:
        StuckError: it takes longer than `most_s`, or nothing can happen any more.
    """
    loop = VirtualLoop(most_s)
    main = loop.create_task(work)
    try:
        return loop.run_until_complete(main)
    except StuckError:
        loop.give_time(most_s)
        main.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(main)
        raise
    finally:
        loop.give_time(most_s)
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
