"""A result folder that appears whole or not at all.

Everything is written beside the wanted place under a hidden name. When it is complete it
takes its name; a previous result of the same command, known by its marker file, is moved
aside first and deleted last, so that at every moment one whole result stands there.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError, StateError


@dataclass(frozen=True, slots=True)
class Staging:
    """`work` is where to write; `out` is where it will stand."""

    out: Path
    work: Path

    @property
    def failure_logs(self) -> Path:
        """Where logs of a failed attempt are kept."""
        return self.out.with_name(f"{self.out.name}.failed-logs")

    def keep_logs(self, logs: Path) -> None:
        """Save the logs of a failed attempt; an older failure's are replaced."""
        if logs.is_dir():
            shutil.rmtree(self.failure_logs, ignore_errors=True)
            shutil.move(logs, self.failure_logs)


@contextmanager
def staged(out: Path, marker: str, known: frozenset[str]) -> Iterator[Staging]:
    """Yield a folder to write into; install it as `out` if the block succeeds.

    `out` may be absent, empty, or a previous result: it then holds `marker` and nothing
    but the names in `known`.

    Raises:
        ConfigError: OUTPUT_EXISTS, `out` holds something else; FILE_MISSING, unreadable.
        StateError: DISK.
    """
    out = out.absolute()
    check_replaceable(out, marker, known)
    work = out.with_name(f".{out.name}.{secrets.token_hex(4)}.new")
    try:
        work.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise StateError("DISK", f"{work.parent}: {error.strerror}") from None
    try:
        yield Staging(out, work)
        _install(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_replaceable(out: Path, marker: str, known: frozenset[str]) -> None:
    """Refuse a place that holds anything but a previous result; see `staged`."""
    try:
        if not out.exists() and not out.is_symlink():
            return
        if out.is_dir() and not out.is_symlink():
            names = {entry.name for entry in out.iterdir()}
            if not names or (marker in names and names <= known):
                return
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{out}: {error.strerror}") from None
    raise ConfigError(
        "OUTPUT_EXISTS", f"{out} holds something that is not a previous result of this command"
    )


def _install(work: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{secrets.token_hex(4)}.old")
    try:
        if out.exists():
            out.rename(old)
        work.rename(out)
    except OSError as error:
        raise StateError("DISK", f"{out}: {error.strerror}") from None
    shutil.rmtree(old, ignore_errors=True)
