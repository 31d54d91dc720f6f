"""SIGUSR1, the order to drain, waits until the service can follow it.

Whoever sends it does not know how far a start has come, and the system's own answer to it is to
kill the process. So it is held back from the first line of the command on, and comes in, however
early it was sent, once a handler stands.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_DRAIN: Final = {signal.SIGUSR1}


@contextmanager
def held_back() -> Iterator[None]:
    """Keep the signal waiting inside the block; what nobody took by its end is forgotten."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _DRAIN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _DRAIN)
        handler = signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # forgets one that waits
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR1, handler)


def let_in(asked: Callable[[], None]) -> None:
    """Call `asked` in the running loop at the first such signal, at once if one waits.

    Any later one is ignored, also while the process ends and no loop runs any more.
    """
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGUSR1)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        asked()

    loop.add_signal_handler(signal.SIGUSR1, first)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _DRAIN)
