"""Long work asks between two steps whether it may go on.

    with asked(check):           whoever runs the work, in the work's own thread
        take_steps(...)              -> go_on() before each step

`check` returns, returns later (other work goes first), or raises what ends the work. Nobody
has to hand it down through every function, as with `anyio.from_thread.check_cancelled`:
what is asked belongs to the thread and the block. Outside of one, work simply goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

Check = Callable[[], None]

_CHECK: Final[ContextVar[Check | None]] = ContextVar("check", default=None)


@contextmanager
def asked(check: Check) -> Iterator[None]:
    """Have `check` called wherever work inside the block can be interrupted."""
    before = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(before)


def go_on() -> None:
    """Return when the work may go on; called where nothing is half done.

    Raises:
        RoundError: RUN_CANCELLED, nobody wants the work any more.
    """
    check = _CHECK.get()
    if check is not None:
        check()
