"""The coordinator's durable memory: what was submitted, and every fact of every run.

A run's state is never stored; its *facts* are, in the order in which they happened,
and the state is what replaying them gives. A fact is one row that is inserted once, so a
crash leaves a prefix of the truth and never a mixture. `append` makes a group of facts
durable in one transaction before it returns: that is the "persist" of "persist, then
send". The same transaction may blank facts that nothing will ever need again, seeds
above all: the row stays, so that a missing one is still noticed, its content goes.

Every row carries a checksum, a run's facts are a chain, and whatever is read is held
against them (`coordinator.checksums`).

SQLite runs in WAL mode with `synchronous=FULL`; PostgreSQL is used by URL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol, TextIO

import sqlalchemy as sql
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from common.certificates import read_leaf
from common.errors import FedError, NoRoom, RoundError, StateError
from common.failpoints import failpoint
from common.ids import ConfigHash, Epoch, RunId, StudyId
from common.secagg.params import EPOCH_SECONDS
from common.state_folder import MARKER, free_text, take_over
from common.text import show
from coordinator.checksums import FIRST_LINK, MARK_NAME, Mark, link, row_digest
from coordinator.failures import FAILURES_NAME
from coordinator.only_one import SUFFIX, lock_file, open_alone

STATE_NAMES: Final = frozenset(
    {
        MARKER, "lock", "address", ".address", "objects", "spool", "audit", MARK_NAME,
        FAILURES_NAME, f".{FAILURES_NAME}",
        "history.json", ".history.json", "ended.json", ".ended.json",
        "coordinator.db", "coordinator.db-wal", "coordinator.db-shm", "coordinator.db-journal",
        f"coordinator.db{SUFFIX}",
    }
)  # fmt: skip
"""What a coordinator keeps in its state directory."""

_METADATA: Final = sql.MetaData()

STUDIES: Final = sql.Table(
    "studies",
    _METADATA,
    sql.Column("config_hash", sql.LargeBinary(32), primary_key=True),
    sql.Column("study_id", sql.String(63), nullable=False, index=True),
    sql.Column("content", sql.LargeBinary, nullable=False),
    sql.Column("digest", sql.LargeBinary(32)),
)
RUNS: Final = sql.Table(
    "runs",
    _METADATA,
    sql.Column("run_id", sql.String(63), primary_key=True),
    sql.Column("study_id", sql.String(63), nullable=False),
    sql.Column("config_hash", sql.LargeBinary(32), nullable=False),
    sql.Column("request", sql.String(400), nullable=False, unique=True),
    sql.Column("signature", sql.LargeBinary, nullable=False),
    sql.Column("chain", sql.LargeBinary, nullable=False),
    sql.Column("created_unix", sql.Float, nullable=False),
    sql.Column("ended", sql.Boolean, nullable=False),
    sql.Column("digest", sql.LargeBinary(32)),
)
HEADS: Final = sql.Table(
    "heads",
    _METADATA,
    sql.Column("run_id", sql.String(63), primary_key=True),
    sql.Column("facts", sql.Integer, nullable=False),
    sql.Column("link", sql.LargeBinary(32), nullable=False),
)
"""How many facts a run has, and the last link of their chain."""
FACTS: Final = sql.Table(
    "facts",
    _METADATA,
    sql.Column("run_id", sql.String(63), primary_key=True),
    sql.Column("seq", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("body", sql.LargeBinary, nullable=False),
    sql.Column("unix", sql.Float),
    sql.Column("link", sql.LargeBinary(32)),
)
EPOCHS: Final = sql.Table(
    "epochs",
    _METADATA,
    sql.Column("task", sql.String(63), primary_key=True),
    sql.Column("epoch", sql.BigInteger, nullable=False),
    sql.Column("digest", sql.LargeBinary(32)),
)
RELEASES: Final = sql.Table(
    "releases",
    _METADATA,
    sql.Column("run_id", sql.String(63), primary_key=True),
    sql.Column("manifest", sql.LargeBinary, nullable=False),
    sql.Column("signature", sql.LargeBinary, nullable=False),
    sql.Column("chain", sql.LargeBinary, nullable=False),
    sql.Column("digest", sql.LargeBinary(32)),
)
METER: Final = sql.Table(
    "meter",
    _METADATA,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("changes", sql.BigInteger, nullable=False),
)
"""One row: how many transactions there were."""

# The statements of every commit, made once.
_RUN: Final[sql.BindParameter[str]] = sql.bindparam("run")
_HEAD: Final = sql.select(HEADS).where(HEADS.c.run_id == _RUN)
_FACTS: Final = (
    sql.select(FACTS.c.seq, FACTS.c.body, FACTS.c.unix, FACTS.c.link)
    .where(FACTS.c.run_id == _RUN)
    .order_by(FACTS.c.seq)
)
_ADD_HEAD: Final = HEADS.insert()
_MOVE_HEAD: Final = HEADS.update().where(HEADS.c.run_id == _RUN)
_ADD_FACTS: Final = FACTS.insert()
_CHANGES: Final = sql.select(METER.c.changes)
_ONE_MORE: Final = METER.update().values(changes=METER.c.changes + 1)


@dataclass(frozen=True, slots=True)
class StoredStudy:
    """A study as submitted: its canonical bytes and their hash."""

    study_id: StudyId
    config_hash: ConfigHash
    content: bytes


@dataclass(frozen=True, slots=True)
class StoredRun:
    """One submission of a study. `request` names it, so that a retry finds the same run.

    `signature` is the owner's over the study's hash; `chain` its certificates in PEM.
    """

    run_id: RunId
    study_id: StudyId
    config_hash: ConfigHash
    request: str
    signature: bytes
    chain: bytes
    created_unix: float
    ended: bool


@dataclass(frozen=True, slots=True)
class StoredRelease:
    """A signed manifest; `chain` is the signer's certificates in PEM, leaf first."""

    manifest: bytes
    signature: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class StoredFact:
    """A fact's place in its run, from 0, its content, and when it was stored, in Unix seconds.

    The content is empty if it was blanked; the time is 0 where a former version stored it.
    """

    seq: int
    body: bytes
    unix: float = 0.0


class Store(Protocol):
    """What the coordinator remembers. Every method that changes something is durable
    when it returns."""  # noqa: D205, D209 - one sentence

    def add_run(self, study: StoredStudy, run: StoredRun) -> StoredRun:
        """Store a submission; the same `request` again returns the run stored first."""
        ...

    def studies(self) -> list[StoredStudy]:
        """Return every study, by id and hash."""
        ...

    def study(self, config_hash: ConfigHash) -> StoredStudy:
        """Return one study; RoundError NOT_FOUND if there is none of that hash."""
        ...

    def runs(self) -> list[StoredRun]:
        """Return every run, oldest first."""
        ...

    def append(
        self,
        run_id: RunId,
        first_seq: int,
        bodies: Sequence[bytes],
        blank: Sequence[int] = (),
        unix: float = 0.0,
    ) -> None:
        """Add facts `first_seq`, `first_seq + 1`, ... of a run and blank old ones, at once."""
        ...

    def facts(self, run_id: RunId) -> list[StoredFact]:
        """Return a run's facts in order; a blanked one has an empty body."""
        ...

    def links(self) -> dict[RunId, bytes]:
        """Return the last link of each run's chain of facts: it stands for all of them."""
        ...

    def end_run(self, run_id: RunId) -> None:
        """Mark a run as ended: it is not resumed at the next start."""
        ...

    def next_epoch(self, task: str, at_least: int) -> Epoch:
        """Reserve an epoch number of at least `at_least`, now; see `next_number`."""
        ...

    def epochs(self) -> dict[str, Epoch]:
        """Return the largest epoch that was reserved for each task."""
        ...

    def put_release(self, run_id: RunId, release: StoredRelease) -> None:
        """Store a run's signed release; storing it again changes nothing."""
        ...

    def release(self, run_id: RunId) -> StoredRelease:
        """Return a run's release; RoundError NOT_FOUND while there is none."""
        ...

    def ask(self) -> None:
        """Raise if the database is not this process' any more, or does not answer."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


def next_number(reserved: int, now: int) -> int:
    """Return the epoch number after the last one that was `reserved`; 0: none was.

    A number beyond what hospitals accept was reserved while the clock was far ahead, and
    nobody took it. To go on from there would shut all of them out until that time comes.
    """
    taken = reserved if reserved <= now + EPOCH_SECONDS else 0
    return max(now, taken + 1)


def default_url(state_dir: Path) -> str:
    """Return the URL of the embedded database of a state directory."""
    return f"sqlite:///{state_dir / 'coordinator.db'}"


def open_engine(url: str) -> Engine:
    """Open the database, with full durability where it is SQLite."""
    engine = sql.create_engine(url)
    if engine.dialect.name == "sqlite":
        sql.event.listen(engine, "connect", _sqlite_settings)
    return engine


def _sqlite_settings(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # the DBAPI's own connection
    (mode,) = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":  # a flush failed, or the file system cannot: FULL would not be enough
        raise StateError("DISK", f"the database cannot keep a write-ahead log here: {mode}")
    for setting in ("synchronous=FULL", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Bring the database to this version's tables.

    Raises:
        StateError: STATE_DAMAGED, it is not a database of ours or is damaged; DISK.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "sqlite":
                # Python's module begins no transaction before DDL: a process that was killed
                # between two tables would leave what no later one could bring up to date.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise _failure(engine, error, "STATE_DAMAGED") from error
    except CommandError as error:
        raise StateError(
            "STATE_DAMAGED", f"{engine.url.database} was written by another version: {error}"
        ) from error


class SqlStore:
    """`Store` on a relational database, see the module's docstring."""

    def __init__(
        self,
        engine: Engine,
        mark: Mark | None = None,
        name: str = "",
        lock: TextIO | None = None,
    ) -> None:
        self._engine = engine
        self._mark = mark
        self._lock = lock
        self._name = name or str(engine.url.database)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        """All that is read is of one moment, while a coordinator goes on writing."""
        try:
            with self._engine.connect() as db:
                if self._engine.dialect.name == "sqlite":
                    db.exec_driver_sql("BEGIN")
                else:
                    db.execution_options(isolation_level="REPEATABLE READ")
                yield db
        except SQLAlchemyError as error:
            raise _failure(self._engine, error, "STATE_DAMAGED") from error
        except (TypeError, ValueError, OverflowError) as error:  # a cell of another type
            raise self._damaged("a row is not what was written") from error

    def _damaged(self, what: str) -> StateError:
        return StateError("STATE_DAMAGED", f"{self._name}: {what}")

    def _check(self, table: str, stored: bytes | None, digest: bytes, what: str) -> None:
        if stored is None or bytes(stored) != digest:
            raise self._damaged(f"{what} ({table}) is not what was written")

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[Connection]:
        """One transaction: all of it is durable afterwards, or nothing of it happened.

        Raises:
            NoRoom: nothing happened, and it may be tried again.
            StateError: DISK; what of it is on the disk only the next start can tell.
        """
        try:
            with self._engine.begin() as db:
                yield db
                changes = _count_change(db)
                failpoint(f"coordinator.{what}.before_commit")
        except SQLAlchemyError as error:
            raise _failure(self._engine, error, "DISK") from error
        if self._mark is not None:
            try:
                self._mark.write(changes)
            except NoRoom as error:  # all of it happened: never to be tried again
                raise StateError("DISK", error.detail) from error
        failpoint(f"coordinator.{what}.after_commit")

    def add_run(self, study: StoredStudy, run: StoredRun) -> StoredRun:
        """See `Store`."""
        with self._writing("run") as db:
            known = db.execute(sql.select(RUNS).where(RUNS.c.request == run.request)).first()
            if known is not None:
                return self._run(known)
            where = STUDIES.c.config_hash == study.config_hash
            if db.execute(sql.select(STUDIES.c.study_id).where(where)).first() is None:
                db.execute(
                    STUDIES.insert().values(
                        config_hash=study.config_hash,
                        study_id=study.study_id,
                        content=study.content,
                        digest=_study_digest(study),
                    )
                )
            db.execute(
                RUNS.insert().values(
                    run_id=run.run_id,
                    study_id=run.study_id,
                    config_hash=run.config_hash,
                    request=run.request,
                    signature=run.signature,
                    chain=run.chain,
                    created_unix=run.created_unix,
                    ended=run.ended,
                    digest=_run_digest(run),
                )
            )
        return run

    def studies(self) -> list[StoredStudy]:
        """See `Store`."""
        query = sql.select(STUDIES).order_by(STUDIES.c.study_id, STUDIES.c.config_hash)
        with self._reading() as db:
            return [self._study(row) for row in db.execute(query)]

    def study(self, config_hash: ConfigHash) -> StoredStudy:
        """See `Store`."""
        with self._reading() as db:
            query = sql.select(STUDIES).where(STUDIES.c.config_hash == config_hash)
            row = db.execute(query).first()
            if row is None:
                raise RoundError("NOT_FOUND", f"no study of hash {config_hash.hex()[:16]}")
            return self._study(row)

    def _study(self, row: sql.Row[tuple[object, ...]]) -> StoredStudy:
        study = _study(row)
        what = f"study {show(study.study_id)}"
        self._check("studies", row.digest, _study_digest(study), what)
        return study

    def _run(self, row: sql.Row[tuple[object, ...]]) -> StoredRun:
        run = _run(row)
        self._check("runs", row.digest, _run_digest(run), f"run {show(run.run_id)}")
        return run

    def runs(self) -> list[StoredRun]:
        """See `Store`."""
        query = sql.select(RUNS).order_by(RUNS.c.created_unix, RUNS.c.run_id)
        with self._reading() as db:
            return [self._run(row) for row in db.execute(query)]

    def append(
        self,
        run_id: RunId,
        first_seq: int,
        bodies: Sequence[bytes],
        blank: Sequence[int] = (),
        unix: float = 0.0,
    ) -> None:
        """See `Store`."""
        with self._writing("facts") as db:
            last = self._head(db, run_id, first_seq)
            rows: list[dict[str, object]] = []
            for seq, body in enumerate(bodies, first_seq):
                last = link(run_id, seq, last, body, unix)
                row = {"run_id": run_id, "seq": seq, "body": body, "unix": unix, "link": last}
                rows.append(row)
            db.execute(_ADD_FACTS, rows)
            head = {"facts": first_seq + len(rows), "link": last}
            if first_seq == 0:
                db.execute(_ADD_HEAD, {"run_id": run_id, **head})
            else:
                db.execute(_MOVE_HEAD, {"run": run_id, **head})
            if blank:
                old = (FACTS.c.run_id == run_id) & FACTS.c.seq.in_(blank)
                db.execute(FACTS.update().where(old).values(body=b""))

    def _head(self, db: Connection, run_id: RunId, count: int) -> bytes:
        """Return the last link of a run that has `count` facts."""
        row = db.execute(_HEAD, {"run": run_id}).first()
        if row is None and count == 0:
            return FIRST_LINK
        if row is None or row.facts != count:
            raise self._damaged(f"run {run_id} does not have {count} facts")
        return bytes(row.link)

    def facts(self, run_id: RunId) -> list[StoredFact]:
        """See `Store`.

        Raises:
            StateError: STATE_DAMAGED, a fact is missing, or is not the one that was written.
        """
        with self._reading() as db:
            rows = db.execute(_FACTS, {"run": run_id}).all()
            found = [
                StoredFact(seq, bytes(body), float(unix or 0.0)) for seq, body, unix, _ in rows
            ]
            if [fact.seq for fact in found] != list(range(len(found))):
                raise self._damaged(f"run {run_id}: a fact is missing from the store")
            last = FIRST_LINK
            for fact, row in zip(found, rows, strict=True):
                # Of one that was blanked nothing is left to compare.
                if fact.body and row.link != link(run_id, fact.seq, last, fact.body, fact.unix):
                    raise self._damaged(
                        f"run {run_id}: fact {fact.seq}, or the one before it, is not what was"
                        " written"
                    )
                last = bytes(row.link)
            if self._head(db, run_id, len(rows)) != last:
                raise self._damaged(f"run {run_id}: its last fact is not what was written")
        return found

    def links(self) -> dict[RunId, bytes]:
        """See `Store`."""
        with self._reading() as db:
            rows = db.execute(sql.select(HEADS.c.run_id, HEADS.c.link))
            return {RunId(row.run_id): bytes(row.link) for row in rows}

    def end_run(self, run_id: RunId) -> None:
        """See `Store`."""
        with self._writing("end") as db:
            where = RUNS.c.run_id == run_id
            row = db.execute(sql.select(RUNS).where(where)).first()
            if row is not None:
                digest = _run_digest(replace(self._run(row), ended=True))
                db.execute(RUNS.update().where(where).values(ended=True, digest=digest))

    def next_epoch(self, task: str, at_least: int) -> Epoch:
        """See `Store`."""
        with self._writing("epoch") as db:
            row = db.execute(sql.select(EPOCHS).where(EPOCHS.c.task == task)).first()
            epoch = next_number(0 if row is None else self._epoch(row), at_least)
            values = {"epoch": epoch, "digest": row_digest("epochs", task, epoch)}
            if row is None:
                db.execute(EPOCHS.insert().values(task=task, **values))
            else:
                db.execute(EPOCHS.update().where(EPOCHS.c.task == task).values(**values))
        return Epoch(epoch)

    def epochs(self) -> dict[str, Epoch]:
        """See `Store`."""
        with self._reading() as db:
            rows = db.execute(sql.select(EPOCHS)).all()
            return {row.task: Epoch(self._epoch(row)) for row in rows}

    def _epoch(self, row: sql.Row[tuple[object, ...]]) -> int:
        digest = row_digest("epochs", row.task, row.epoch)
        self._check("epochs", row.digest, digest, f"the epoch of {show(row.task)}")
        return int(row.epoch)

    def put_release(self, run_id: RunId, release: StoredRelease) -> None:
        """See `Store`."""
        with self._writing("release") as db:
            known = sql.select(RELEASES.c.run_id).where(RELEASES.c.run_id == run_id)
            if db.execute(known).first() is None:
                db.execute(
                    RELEASES.insert().values(
                        run_id=run_id,
                        manifest=release.manifest,
                        signature=release.signature,
                        chain=release.chain,
                        digest=_release_digest(run_id, release),
                    )
                )

    def release(self, run_id: RunId) -> StoredRelease:
        """See `Store`."""
        with self._reading() as db:
            row = db.execute(sql.select(RELEASES).where(RELEASES.c.run_id == run_id)).first()
            if row is None:
                raise RoundError("NOT_FOUND", f"run {run_id} has no released model")
            found = StoredRelease(bytes(row.manifest), bytes(row.signature), bytes(row.chain))
            self._check(
                "releases", row.digest, _release_digest(run_id, found), f"the release of {run_id}"
            )
        return found

    def check(self) -> None:
        """Hold the whole database against its own structure and against its mark.

        Raises:
            StateError: STATE_DAMAGED; DISK, the mark cannot be written.
        """
        with self._reading() as db:
            if db.dialect.name == "sqlite":
                found = db.execute(sql.text("PRAGMA integrity_check(1)")).scalar()
                if found != "ok":
                    raise self._damaged(f"its pages do not fit together: {show(found)}")
            row = db.execute(sql.select(METER)).all()
            if len(row) > 1 or (row and row[0].id != 1):
                raise self._damaged("its meter is not what was written")
        if self._mark is not None:
            self._mark.check(row[0].changes if row else 0, self._engine.url.database)

    def changes(self) -> int:
        """Return how many transactions there were."""
        with self._reading() as db:
            return int(db.execute(_CHANGES).scalar() or 0)

    def ask(self) -> None:
        """See whether the database is still held and answers. Blocking.

        Raises:
            StateError: STATE_LOCKED, the hold on it was lost; DISK.
        """
        with self._reading() as db:
            db.execute(sql.text("SELECT 1"))

    def close(self) -> None:
        """See `Store`."""
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()


def _count_change(db: Connection) -> int:
    """Count a transaction; return which one it is."""
    changes = db.execute(_CHANGES).scalar()
    if changes is None:
        db.execute(METER.insert().values(id=1, changes=1))
        return 1
    db.execute(_ONE_MORE)
    return int(changes) + 1


def _study_digest(study: StoredStudy) -> bytes:
    return row_digest("studies", study.config_hash, study.study_id, study.content)


def _run_digest(run: StoredRun) -> bytes:
    return row_digest(
        "runs",
        run.run_id,
        run.study_id,
        run.config_hash,
        run.request,
        run.signature,
        run.chain,
        run.created_unix,
        int(run.ended),
    )


def _release_digest(run_id: RunId, release: StoredRelease) -> bytes:
    return row_digest("releases", run_id, release.manifest, release.signature, release.chain)


def _study(row: sql.Row[tuple[object, ...]]) -> StoredStudy:
    return StoredStudy(
        StudyId(row.study_id), ConfigHash(bytes(row.config_hash)), bytes(row.content)
    )


def _run(row: sql.Row[tuple[object, ...]]) -> StoredRun:
    return StoredRun(
        RunId(row.run_id),
        StudyId(row.study_id),
        ConfigHash(bytes(row.config_hash)),
        row.request,
        bytes(row.signature),
        bytes(row.chain),
        row.created_unix,
        row.ended,
    )


def _why(error: SQLAlchemyError) -> str:
    """Return the database's own words, without the statement and its values."""
    return str(error.orig) if isinstance(error, DBAPIError) else type(error).__name__


_DISK_ERRORS: Final = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY")
_POSTGRESQL_FULL: Final = "53100"


def _failure(engine: Engine, error: SQLAlchemyError, otherwise: str) -> StateError:
    """Return NoRoom or DISK where the disk is to blame by the database's word, else `otherwise`.

    Both databases have rolled a transaction back that found no room. A flush that found none is
    another error, and of that nobody knows what it left behind.
    """
    detail, orig = f"{engine.url.database}: {_why(error)}", getattr(error, "orig", None)
    if getattr(orig, "sqlstate", None) == _POSTGRESQL_FULL:
        return NoRoom(detail)
    if engine.dialect.name != "sqlite" and isinstance(error, OperationalError | PoolTimeoutError):
        fix = "See whether the database server runs and takes this `store`; then start again."
        return StateError("DISK", detail, fix=fix)
    word = str(getattr(orig, "sqlite_errorname", ""))
    if not word.startswith(("SQLITE_FULL", *_DISK_ERRORS)):
        return StateError(otherwise, detail)
    if not word.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return StateError("DISK", detail)
    detail += f"; {free_text(Path(str(engine.url.database)).parent)}"
    return NoRoom(detail) if word == "SQLITE_FULL" else StateError("DISK", detail)


@contextlib.contextmanager
def read_errors(name: object) -> Iterator[None]:
    """Name the database where its driver comes upon names or words of it that are no text.

    Raises:
        StateError: STATE_DAMAGED.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        why = f"what is read of it is not what was written ({type(error).__name__})"
        raise StateError("STATE_DAMAGED", f"{name}: {why}") from error


def check_federation(engine: Engine, federation: str) -> None:
    """Refuse a database whose runs were submitted to another federation; changes nothing.

    A state directory says itself whose it is, but not a database elsewhere, nor the one of
    a version that wrote no `owner.json`. The certificates of the runs' owners do.

    Raises:
        StateError: STATE_FOREIGN; STATE_DAMAGED or DISK, it cannot be read.
    """
    try:
        with engine.connect() as db:
            if not sql.inspect(db).has_table(RUNS.name):
                return
            chain = db.execute(sql.select(RUNS.c.chain).limit(1)).scalar()
    except SQLAlchemyError as error:
        raise _failure(engine, error, "STATE_DAMAGED") from error
    found = None if chain is None else _federation_of(bytes(chain))
    if found not in (None, federation):
        raise StateError(
            "STATE_FOREIGN",
            f"{engine.url.database} holds runs of {found}; this coordinator is of {federation}",
        )


def _federation_of(chain: bytes) -> str | None:
    """Return the federation of a certificate chain in PEM; None if it is none (as in `sim`)."""
    from cryptography import x509

    try:
        return read_leaf(x509.load_pem_x509_certificates(chain)[0]).spiffe.federation
    except (ValueError, FedError):
        return None


def open_beside(url: str, federation: str) -> SqlStore:
    """Open the database of a server beside its coordinator, for who only reads.

    It is not brought to this version: a coordinator of the former one may be writing to it, and
    what that wrote later would have no checksums.

    Raises:
        StateError: STATE_DAMAGED, another version's; see `check_federation`, `SqlStore.check`.
    """
    engine = open_engine(url)
    store = SqlStore(engine)
    try:
        with read_errors(engine.url.database):
            check_federation(engine, federation)
            _check_version(engine)
            store.check()
    except BaseException:
        store.close()
        raise
    return store


def _check_version(engine: Engine) -> None:
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    try:
        with engine.connect() as db:
            found = MigrationContext.configure(db).get_current_heads()
    except SQLAlchemyError as error:
        raise _failure(engine, error, "STATE_DAMAGED") from error
    if set(found) != set(ScriptDirectory(str(_MIGRATIONS)).get_heads()):
        raise StateError(
            "STATE_DAMAGED",
            f"{engine.url.database} was written by another version, or by none:"
            f" {', '.join(found) or 'no tables'}",
            fix="Use the version that its coordinator is of; a newer one's start brings it up to"
            " date.",
        )


def open_store(
    url: str, federation: str | None = None, mark: Path | None = None, *, alone: bool = False
) -> SqlStore:
    """Open, check and migrate the database at `url`.

    It has to be `federation`'s if that is given; `mark` is the file that says how many
    transactions were acknowledged; `alone`: nobody else may, see `coordinator.only_one`.

    Raises:
        StateError: STATE_LOCKED; see `check_federation`, `migrate` and `SqlStore.check`.
    """
    embedded = url.startswith("sqlite")
    engine = open_alone(url) if alone and not embedded else open_engine(url)
    lock = lock_file(Path(str(engine.url.database))) if alone and embedded else None
    store = SqlStore(engine, None if mark is None else Mark(mark), lock=lock)
    try:
        with read_errors(engine.url.database):
            if federation is not None:
                check_federation(engine, federation)
            migrate(engine)
            store.check()  # before anything is moved: damage stays where it can be looked at
        _take_over(engine)
    except BaseException:
        store.close()
        raise
    return store


def _take_over(engine: Engine) -> None:
    """Make durable what a process that was killed left in SQLite's log.

    It may have died between the write of a commit and its flush. This process reads that
    commit and tells others of it, and a power cut could take it back.

    Raises:
        StateError: DISK.
    """
    if engine.dialect.name != "sqlite":
        return
    try:
        with engine.connect() as db:
            db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            # SQLite passes over a failure to flush the folder in which it made its files.
            take_over(Path(str(engine.url.database)).parent)
    except SQLAlchemyError as error:
        raise _failure(engine, error, "DISK") from error
