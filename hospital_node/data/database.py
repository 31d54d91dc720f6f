"""One SELECT over a hospital's database, in a session that cannot write.

PostgreSQL runs it in a read-only transaction, SQLite opens the file read-only. What the
driver says about a failure may quote the address, the account, the query or a value, so
nothing of it is passed on but the name of its kind.
"""

from __future__ import annotations

import datetime as dt
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import polars as pl

from common.errors import ConfigError, DataError
from common.site_tables import Database, OmopTable, SqlTable
from common.text import show
from hospital_node.data.csv import Raw
from hospital_node.data.headings import table_name

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

CONNECT_S: Final = 10
STATEMENT_S: Final = 600
"""So long may a query run on PostgreSQL."""


def address_of(table: Database) -> str:
    """Return the database's URL from where the manifest says it stands.

    Raises:
        ConfigError: FILE_MISSING or BAD_VALUE; no message holds the URL.
    """
    if table.url is not None:
        return table.url
    if table.url_env is not None:
        found = os.environ.get(table.url_env, "").strip()
        if not found:
            raise ConfigError(
                "BAD_VALUE",
                f"url_env: the environment variable {show(table.url_env)} is not set",
                fix="Set it to the database's URL for the user who runs the node.",
            )
        return found
    path = Path(table.url_file or "")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            "FILE_MISSING", f"url_file: {path.name} cannot be read by uid {os.geteuid()}"
        ) from None


def read_sql(table: SqlTable) -> Raw:
    """Return the rows of the manifest's query as text.

    Raises:
        ConfigError: as `address_of`; NOT_INSTALLED, NOT_SUPPORTED.
        DataError: DATA_SOURCE, the database refused; DATA_EMPTY; DATA_VALUE, a column of bytes.
    """
    name = table_name(table)
    with session(table, name) as connection:
        # No bound values: a colon or a percent sign in the query means itself.
        result = connection.execution_options(no_parameters=True).exec_driver_sql(table.query)
        header, rows = list(result.keys()), result.fetchall()
    return as_raw(name, header, rows)


@contextmanager
def session(table: SqlTable | OmopTable, name: str) -> Iterator[Connection]:
    """Yield a read-only connection; every failure of the database becomes one of ours.

    Raises:
        ConfigError, DataError: as `read_sql`.
    """
    from sqlalchemy.exc import SQLAlchemyError

    engine = _engine(address_of(table), name)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            yield connection
            connection.rollback()
    except (SQLAlchemyError, OSError) as failure:
        cause = getattr(failure, "orig", None) or failure
        raise DataError(
            "DATA_SOURCE",
            f"{name}: the database could not be reached or refused the query "
            f"({type(cause).__name__})",
        ) from None
    finally:
        engine.dispose()


def _engine(address: str, name: str) -> Engine:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool

    try:
        url = sqlalchemy.make_url(address)
    except (ArgumentError, ValueError):  # its message holds the address
        raise ConfigError("BAD_VALUE", f"{name}: the database's URL cannot be read") from None
    match url.get_backend_name():
        case "sqlite":
            return sqlalchemy.create_engine(_read_only_file(url), poolclass=NullPool)
        case "postgresql":
            options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_S}s"
            return _postgres(url.set(drivername="postgresql+psycopg"), options)
        case other:
            raise ConfigError(
                "NOT_SUPPORTED",
                f"{name}: databases of kind {show(other)} cannot be opened read-only here",
                fix="Use PostgreSQL or SQLite, or export a CSV or Parquet file.",
            )


def _read_only_file(url: URL) -> URL:
    from sqlalchemy import URL as Address  # noqa: N811 - a class under another name

    file = quote(url.database or ":memory:")
    return Address.create("sqlite", database=f"file:{file}", query={"mode": "ro", "uri": "true"})


def _postgres(url: URL, options: str) -> Engine:
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    try:
        return sqlalchemy.create_engine(
            url,
            poolclass=NullPool,
            connect_args={"connect_timeout": CONNECT_S, "options": options},
            execution_options={"postgresql_readonly": True},
            hide_parameters=True,
        )
    except ImportError:
        raise ConfigError(
            "NOT_INSTALLED",
            "PostgreSQL needs the driver psycopg",
            fix="Install the extra: pip install 'fedcare[sql]'.",
        ) from None


def as_raw(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Raw:
    """Return a result's rows as text.

    Raises:
        DataError: DATA_EMPTY, no rows; DATA_VALUE, a value that is no plain one.
    """
    if not rows:
        raise DataError("DATA_EMPTY", f"{name}: the query gives no rows")
    columns = []
    for place, heading in enumerate(header):
        try:
            cells = [text(row[place]) for row in rows]
        except TypeError:
            raise DataError(
                "DATA_VALUE", f"{name}, column {show(heading)}: holds no plain values"
            ) from None
        columns.append(pl.Series(f"c{place}", cells, dtype=pl.String))
    return Raw(name, [str(heading).strip() for heading in header], pl.DataFrame(columns))


def text(value: object) -> str:
    """Return a database's value as a cell.

    Raises:
        TypeError: bytes, a list or another value that is no plain one.
    """
    match value:
        case None:
            return ""
        case bool():
            return str(int(value))
        case str():
            return value.strip()
        case float():
            return "" if math.isnan(value) else repr(value)
        case int():
            return str(value)
        case Decimal():
            return "" if value.is_nan() else format(value, "f")
        case dt.datetime() | dt.date() | dt.time():
            return value.isoformat()
        case _:
            raise TypeError(type(value).__name__)
