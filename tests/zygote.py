"""One process that has imported the services, and forks a child for each start of one.

A fresh `fedcare ... serve` spends nearly all of its time on imports. A test that starts many
asks `Zygote` instead: the child changes its directory, takes the environment and the files for
its output, and then does what the console script does, `sys.exit(main(arguments))`, to the
interpreter's very end. The zygote itself has one thread and has set up nothing; whatever a
child changes (umask, limits, signals) stays the child's.

What only a fresh process shows is how a service is imported, so each module that uses this
starts some services afresh too. No child and no zygote outlives `Zygote.close`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

IMPORTED: Final = ("common.cli", "coordinator.cli", "coordinator.app", "hospital_node.cli",
                   "hospital_node.app", "typer.main")  # fmt: skip
_TURN_S: Final = 0.01
_PR_SET_PDEATHSIG: Final = 1


# --- the tests' side ----------------------------------------------------------------------------


@dataclass
class Child:
    """A process that the zygote forked, with what of `subprocess.Popen` the tests need."""

    zygote: Zygote
    pid: int
    _code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code once it ended; minus the signal's number, as Popen does."""
        if self._code is None:  # asked once only: its number may be another child's by now
            self._code = self.zygote.ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float) -> int:
        patience = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > patience:
                raise subprocess.TimeoutExpired("a child of the zygote", timeout)
            time.sleep(_TURN_S)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process, started with the first child that is asked for."""

    def __init__(self, *more: str) -> None:
        """Import `more` modules than the services'."""
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None
        self._children: list[Child] = []

    def start(
        self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path
    ) -> Child:
        """Run `fedcare` with these arguments in a process of its own."""
        order = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(env),
                 "out": str(out), "err": str(err)}  # fmt: skip
        child = Child(self, int(self.ask(order)))
        self._children.append(child)
        return child

    def ask(self, order: Mapping[str, object]) -> Any:  # noqa: ANN401 - JSON
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, *self._more],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                cwd="/", env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote ended"
        return json.loads(answer)

    def close(self) -> None:
        """End what still runs, and the zygote."""
        if self._process is None:
            return
        for child in self._children:
            child.kill()
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=30)
        self._process = None
        self._children = []


# --- the zygote's side --------------------------------------------------------------------------


def _lines() -> Any:  # noqa: ANN401 - orders
    """Yield each order; read past `sys.stdin`, whose buffer a child would inherit."""
    kept = b""
    while data := os.read(0, 65536):
        *whole, kept = (kept + data).split(b"\n")
        yield from map(json.loads, whole)


def _become(order: Mapping[str, Any]) -> list[str]:
    """Turn the forked process into what was ordered; return its command line."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    write = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], write),
        (2, order["err"], write),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["fedcare", *order["arguments"]]
    return list(order["arguments"])


def _serve() -> list[str]:
    """Fork as ordered; returns in a child only, with its command line."""
    ended: dict[int, int] = {}
    for order in _lines():
        answer: int | None
        if "poll" in order:
            pid = order["poll"]
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(pid)
        else:
            answer = os.fork()
            if answer == 0:
                return _become(order)
            ended.pop(answer, None)  # the system gives numbers of dead processes out again
        os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _zygote() -> None:
    for name in (*IMPORTED, *sys.argv[1:]):
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:  # a fork would copy the locks of threads that it does not copy
        raise SystemExit(f"the zygote has {threads} threads")
    gc.freeze()  # a child's collector would copy every page
    arguments = _serve()
    sys.exit(sys.modules["common.cli"].main(arguments))


if __name__ == "__main__":
    _zygote()
