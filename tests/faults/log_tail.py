"""Reads the logs of processes that are started again and again, as they grow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class LogTail:
    """The whole lines of the processes' logs, each given once, every process' in their order.

    Files are `NAME.NUMBER.log`, from 1, one for each start of the process NAME; the process of a
    number has ended when there is a next one. A last line without its end was cut off by a
    kill, or is still being written.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._folder = folder
        self._at = dict.fromkeys(names, (1, 0))
        """The log that each process is at, and how far it is read."""

    def new(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (process, line) of everything written since the last call."""
        for name in self._at:
            more = True
            while more:
                number, _ = self._at[name]
                more = (self._folder / f"{name}.{number + 1}.log").exists()  # then it has ended
                yield from self._lines(name)
                if more:
                    self._at[name] = (number + 1, 0)

    def _lines(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        number, at = self._at[name]
        path = self._folder / f"{name}.{number}.log"
        if not path.exists() or path.stat().st_size == at:
            return
        with path.open("rb") as file:
            file.seek(at)
            whole, ending, _ = file.read().rpartition(b"\n")
        self._at[name] = (number, at + len(whole) + len(ending))
        for line in whole.splitlines():
            if line.startswith(b"{"):
                yield name, json.loads(line)
