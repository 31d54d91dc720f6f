"""The services and commands of real-process tests, forked from `tests.zygote`.

`services_of` lets `researcher.processes.Children`, and so `LocalFederation`, fork what it would
start afresh; `run` is a command whose output is wanted. That `Children` starts the console
script itself is checked in tests/unit/researcher/test_processes.py, and end to end by
tests/integration/test_operations.py and the demonstration, which start afresh.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import pytest

from researcher.processes import FEDCARE, Children, Program, environment
from tests.zygote import Child, Zygote

_TURN_S: Final = 0.02
SERVING: Final = ("hospital_node.grpc_link", "alembic.command", "sqlite3",
                  "sqlalchemy.dialects.sqlite")  # fmt: skip
"""What services import once they serve."""
WORKING: Final = ("torch", "torch._dynamo", "hospital_node.models.perceptron",
                  "hospital_node.train", "hospital_node.evaluate", "hospital_node.pipeline",
                  *SERVING)  # fmt: skip
"""And once they train: torch alone takes seconds, and so does `torch._dynamo`, which the first
optimiser imports. Not polars: it has threads."""


@dataclass(frozen=True)
class Awaited:
    """A child with what of `asyncio.subprocess.Process` is used of it."""

    child: Child

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def returncode(self) -> int | None:
        return self.child.poll()

    async def wait(self) -> int:
        while (code := self.child.poll()) is None:  # noqa: ASYNC110 - not our child to be told of
            await asyncio.sleep(_TURN_S)
        return code

    def send_signal(self, number: int) -> None:
        self.child.send_signal(number)

    def terminate(self) -> None:
        self.child.terminate()

    def kill(self) -> None:
        self.child.kill()


def services_of(zygote: Zygote, patch: pytest.MonkeyPatch) -> None:
    """Let `Children` fork what they start from a zygote."""

    async def spawn(
        _: Children, arguments: list[str], folder: Path, out: IO[bytes], program: Program
    ) -> Awaited:
        assert program == FEDCARE
        words = Path(out.name)
        return Awaited(zygote.start(arguments, folder, environment(), words, words))

    patch.setattr(Children, "_spawn", spawn)


def _read(out: Path, err: Path) -> tuple[str, str]:
    return out.read_text("utf-8"), err.read_text("utf-8")


async def run(zygote: Zygote, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run `fedcare` with these arguments; return its exit code, its stdout and its stderr."""
    with tempfile.TemporaryDirectory(prefix="fedcare-output-") as beside:
        out, err = Path(beside, "out"), Path(beside, "err")
        awaited = Awaited(zygote.start(arguments, Path(beside), environment(), out, err))
        try:
            code = await awaited.wait()
        finally:
            awaited.kill()
        return code, *(await asyncio.to_thread(_read, out, err))
