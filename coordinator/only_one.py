"""A database has one coordinator at a time.

The lock of the state directory does not show that another coordinator, with a directory of
its own, has been given the same database. So whoever serves from a database that its file
names holds that too:

PostgreSQL   a session's advisory lock, on the one connection through which all is read and
             written. Who has lost that connection has lost the lock and can write nothing any
             more; it is not made again, because another may have been here: the process stops.
SQLite       a lock on `<database>.lock`, as of the state directory

Commands that only read (`verify`, `doctor`, `backup`) hold nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from pathlib import Path
from typing import Any, Final, TextIO

import sqlalchemy as sql
from sqlalchemy.engine import Engine

from common.errors import StateError
from common.state_folder import disk_errors

SUFFIX: Final = ".lock"

PATIENCE_S: Final = 5.0
"""A server takes a moment to notice that a killed process is gone."""

_TURN_S: Final = 0.05
_KEY: Final = int.from_bytes(
    hashlib.sha256(b"fedcare/coordinator-store/1").digest()[:8], "big", signed=True
)
_SETTINGS: Final = (
    # So that a machine that lost its power holds the lock for half a minute, not for hours.
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 4",
)


def _locked(where: object) -> StateError:
    return StateError(
        "STATE_LOCKED",
        f"the database {where} is in use by another coordinator",
        fix="Stop the other coordinator, or name a database of this one's own as `store`.",
    )


def open_alone(url: str) -> Engine:
    """Return an engine of PostgreSQL whose one connection holds the database.

    Raises (at its first use): StateError: STATE_LOCKED, another coordinator has it.
    """
    engine = sql.create_engine(url, pool_size=1, max_overflow=0)
    name = engine.url.database
    held: list[bool] = []

    def take(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own
        if held:
            raise StateError(
                "STATE_LOCKED",
                f"the connection that held the database {name} was lost; another coordinator may"
                " have it now",
                fix="See whether PostgreSQL runs, and start the coordinator again.",
            )
        with connection.cursor() as cursor:
            for setting in _SETTINGS:
                cursor.execute(setting)
            patience = time.monotonic() + PATIENCE_S
            while not _taken(cursor):
                if time.monotonic() > patience:
                    raise _locked(name)
                time.sleep(_TURN_S)
        connection.commit()
        held.append(True)

    sql.event.listen(engine, "connect", take)
    return engine


def _taken(cursor: Any) -> bool:  # noqa: ANN401 - the driver's own
    cursor.execute("SELECT pg_try_advisory_lock(%s)", (_KEY,))
    return bool(cursor.fetchone()[0])


def lock_file(database: Path) -> TextIO:
    """Hold an embedded database that does not lie in the state directory; keep the handle open.

    Raises:
        StateError: STATE_LOCKED; DISK.
    """
    path = database.with_name(database.name + SUFFIX)
    with disk_errors(path):
        handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise _locked(database) from None
    return handle
