"""The database as of one moment, in memory, while a coordinator may write to it.

It holds the open round's seeds until that is closed: so a copy that is only looked at is
never written to a disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.pool import StaticPool

from common.errors import ConfigError, StateError
from coordinator.config import CoordinatorConfig
from coordinator.store import SqlStore, check_federation, migrate, open_beside, read_errors

DATABASE = "coordinator.db"


def is_embedded(config: CoordinatorConfig) -> bool:
    """Whether the store is a file of SQLite."""
    return config.store is None or config.store.startswith("sqlite")


def database_path(config: CoordinatorConfig) -> Path:
    """Return the file of an embedded database."""
    if config.store is None:
        return config.path(config.state_dir) / DATABASE
    return Path(config.store.partition("://")[2].removeprefix("/"))


def copy_database(database: Path, target: sqlite3.Connection) -> None:
    """Copy a database as of one transaction; whoever writes to it may go on.

    Raises:
        ConfigError: FILE_MISSING.
        StateError: STATE_DAMAGED.
    """
    if not database.is_file():
        raise ConfigError("FILE_MISSING", f"{database} is not there")
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as source:
            source.backup(target)
    except sqlite3.Error as error:
        raise StateError("STATE_DAMAGED", f"{database}: {error}") from error


@contextmanager
def snapshot(config: CoordinatorConfig) -> Iterator[SqlStore]:
    """Yield the store as of now; of PostgreSQL, the store itself.

    Raises:
        ConfigError: FILE_MISSING.
        StateError: STATE_DAMAGED; STATE_FOREIGN.
    """
    if not is_embedded(config):
        store = open_beside(str(config.store), config.federation)
    else:
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        copy_database(database_path(config), memory)
        engine = sql.create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
        store = SqlStore(engine, name=str(database_path(config)))
        try:
            with read_errors(database_path(config)):
                check_federation(engine, config.federation)
                migrate(engine)
                store.check()
        except BaseException:
            store.close()
            raise
    try:
        yield store
    finally:
        store.close()
