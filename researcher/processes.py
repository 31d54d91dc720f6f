"""Child processes of our own: started, watched, measured and stopped by their pid alone.

Each child is the console script itself in a fresh interpreter, its output in a file of
its own, its working directory its own folder. A child never outlives us: the kernel is
told to end it when we are gone, however we went (`PR_SET_PDEATHSIG`).

A child that dies on its own is noticed at once: whoever waits in `Children.guard` gets an
error with the child's last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from common.errors import RoundError
from common.events import Event
from common.text import escape

GRACE_S: Final = 5.0
"""A child that was asked to end is killed after this."""

_LAST_WORDS: Final = 4096
_FAILED: Final = Event.SERVICE_FAILED.value
_MIB: Final = 1024.0
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")

_START: Final = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "from {module} import {function}\n"
    "sys.exit({function}(sys.argv[2:]))\n"
)
"""Runs before the program: end with the parent (1 is PR_SET_PDEATHSIG), also if it is gone
already. The program is the console script's own function."""


@dataclass(frozen=True, slots=True)
class Program:
    """A function that takes arguments and returns an exit code; by default `fedcare`'s."""

    module: str = "common.cli"
    function: str = "main"


FEDCARE: Final = Program()


@dataclass(slots=True)
class Child:
    """One running program. `words` is the file that holds everything it said."""

    name: str
    process: asyncio.subprocess.Process
    words: Path
    stopping: bool = False
    ended: asyncio.Task[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ended = asyncio.create_task(self.process.wait(), name=f"child {self.name}")

    @property
    def pid(self) -> int:
        """The process id; ours until `ended` is done and reaped."""
        return self.process.pid

    def last_line(self) -> str:
        """Return the last line the child wrote, made printable."""
        try:
            with self.words.open("rb") as file:
                file.seek(max(0, self.words.stat().st_size - _LAST_WORDS))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error ") or _FAILED in line]
        chosen = errors or lines
        return escape(chosen[-1])[:500] if chosen else ""

    def death(self) -> RoundError:
        """Return the error that tells of this child's end."""
        code = self.process.returncode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended ({code})"
        said = self.last_line() or "it said nothing"
        return RoundError(
            "RUN_FAILED",
            f"process {self.name} {how}: {said}",
            fix=f"Its whole output is in {self.words}.",
        )


class Children:
    """All children of one federation; leaving the context stops every one of them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(self.stop())

    def __getitem__(self, name: str) -> Child:
        return self._children[name]

    async def start(
        self, name: str, arguments: list[str], folder: Path, program: Program = FEDCARE
    ) -> Child:
        """Start `fedcare ARGUMENTS` in `folder` and return at once."""
        words = self._logs / f"{name}.log"
        with words.open("ab") as out:
            process = await self._spawn(arguments, folder, out, program)
        child = Child(name, process, words)
        self._children[name] = child
        return child

    async def _spawn(
        self, arguments: list[str], folder: Path, out: IO[bytes], program: Program
    ) -> asyncio.subprocess.Process:
        start = _START.format(module=program.module, function=program.function)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            start,
            str(os.getpid()),
            *arguments,
            cwd=folder,
            env=environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # Ctrl-C is for us; the children are then ended in order.
            start_new_session=True,
        )

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Run the block until it ends or a child dies, whichever is first.

        Raises:
            RoundError: RUN_FAILED, with the name and last line of the child that died.
        """
        task = asyncio.current_task()
        if task is None:  # pragma: no cover - an async function always has a task
            raise RuntimeError("no task to guard")
        dead: list[Child] = []

        def note(child: Child) -> None:
            if not child.stopping and not dead:
                dead.append(child)
                task.cancel()

        hooks = [(child, lambda _t, c=child: note(c)) for child in self._children.values()]
        for child, hook in hooks:
            child.ended.add_done_callback(hook)
        try:
            yield
        except asyncio.CancelledError:
            if not dead or task.uncancel() > 0:
                raise
            raise dead[0].death() from None
        finally:
            for child, hook in hooks:
                child.ended.remove_done_callback(hook)

    async def stop(self, *names: str) -> None:
        """End the named children (all without names): ask, wait a little, then kill."""
        chosen = [self._children[name] for name in names] if names else self._children.values()
        running = [child for child in chosen if child.process.returncode is None]
        for child in running:
            child.stopping = True
            _signal(child, signal.SIGTERM)
        if running:
            waiting = [child.ended for child in running]
            _done, late = await asyncio.wait(waiting, timeout=GRACE_S)
            for child in running:
                if child.ended in late:
                    _signal(child, signal.SIGKILL)
            await asyncio.wait(waiting)

    def cpu_seconds(self) -> float:
        """Return the processor time, user and system, of all children that still run."""
        return sum(cpu_seconds(child.pid) for child in self._running())

    def peak_rss_mb(self) -> Mapping[str, float]:
        """Return each running child's largest resident memory so far, in MiB."""
        return {child.name: peak_rss_mb(child.pid) for child in self._running()}

    def _running(self) -> list[Child]:
        return [child for child in self._children.values() if child.process.returncode is None]


def _signal(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(number)


def environment() -> dict[str, str]:
    """Return the environment of a child: ours, one thread for each maths library."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "POLARS_MAX_THREADS": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def cpu_seconds(pid: int) -> float:
    """Return the user and system time a process has used, in seconds; 0 if it is gone.

    The name in /proc/<pid>/stat may hold anything, so fields are counted after its end.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def peak_rss_mb(pid: int) -> float:
    """Return a process's largest resident memory so far in MiB; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) / _MIB if found else 0.0
