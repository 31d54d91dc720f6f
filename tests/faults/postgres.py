"""A PostgreSQL server of Debian's package for a test: its own folder, its own socket.

    with Postgres() as server:
        server.url          # postgresql+psycopg://fedcare@/postgres?host=...

`fsync` and `synchronous_commit` are on, as shipped. The server refuses to run as root, so that
root starts it as the user `postgres`, which the package makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

USER: Final = "fedcare"
_SYSTEM_USER: Final = "postgres"
_START_S: Final = 30.0
_LOCAL: Final = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "")}


def programs() -> Path | None:
    """Return the folder of the newest installed server's programs; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def why_not() -> str:
    """Return why no server can be started here, empty if one can."""
    if programs() is None:
        return "PostgreSQL (Debian's package postgresql) is not installed"
    try:
        import psycopg  # noqa: F401 - looked for
    except ImportError:
        return "psycopg (the extra sql) is not installed"
    return ""


class Postgres:
    """A running server; leaving the context stops it, and removes a folder that it chose."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: where its data stay, and are found again; everybody may pass through it."""
        self._kept = folder is not None
        # short: a socket's path is
        self._folder = folder or Path(tempfile.mkdtemp(prefix="fedcare-pg-"))
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its database, as `coordinator.yaml` takes it."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self._folder}"

    def __enter__(self) -> Self:
        bin_folder = programs()
        assert bin_folder is not None
        self._folder.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self._folder, _SYSTEM_USER)
        data = self._folder / "data"
        if not data.exists():
            subprocess.run(
                [bin_folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "--no-locale",
                 "-E", "UTF8", "--no-instructions"],
                check=True, capture_output=True, cwd=self._folder, env=_LOCAL, **_user(),
            )  # fmt: skip
        with (self._folder / "log").open("wb") as words:
            self._server = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, "-k", self._folder, "-h", "",
                 "-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "max_connections=40"],
                stdout=words, stderr=words, cwd=self._folder, env=_LOCAL, **_user(),
            )  # fmt: skip
        self._wait()
        return self

    def _wait(self) -> None:
        import psycopg

        patience = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(f"host={self._folder} user={USER} dbname=postgres").close()
            except psycopg.OperationalError:
                assert self._server is not None
                if self._server.poll() is not None or time.monotonic() > patience:
                    raise
                time.sleep(0.05)
            else:
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)  # "fast": ends sessions, writes, stops
            self._server.wait(_START_S)
        if not self._kept:
            shutil.rmtree(self._folder, ignore_errors=True)


def _user() -> dict[str, Any]:
    return {"user": _SYSTEM_USER, "group": _SYSTEM_USER} if os.geteuid() == 0 else {}
