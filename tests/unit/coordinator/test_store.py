"""What the coordinator remembers: whole prefixes of the truth, or a clear refusal."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from common.certificates import Role
from common.errors import NoRoom, RoundError, StateError
from common.ids import ConfigHash, RunId, StudyId
from common.pki import create_ca, issue
from coordinator import store as module
from coordinator.checksums import Mark
from coordinator.store import (
    SqlStore,
    StoredFact,
    StoredRelease,
    StoredRun,
    StoredStudy,
    default_url,
    open_beside,
    open_engine,
    open_store,
)

HASH = ConfigHash(b"\x05" * 32)
STUDY = StoredStudy(StudyId("heart"), HASH, b'{"id":"heart"}')


def run(name: str = "heart-1", request: str = "r-1", created: float = 1.5) -> StoredRun:
    return StoredRun(
        run_id=RunId(name),
        study_id=STUDY.study_id,
        config_hash=HASH,
        request=request,
        signature=b"sig",
        chain=b"pem",
        created_unix=created,
        ended=False,
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(default_url(tmp_path))
    yield opened
    opened.close()


def reopened(store: SqlStore) -> SqlStore:
    store.close()
    return open_store(str(store._engine.url))


def test_what_was_stored_is_there_after_a_restart(store: SqlStore) -> None:
    release = StoredRelease(b"{}", b"signature", b"chain")
    assert store.add_run(STUDY, run()) == run()
    store.append(RunId("heart-1"), 0, [b"one", b"two"])
    store.append(RunId("heart-1"), 2, [b"three"])
    store.put_release(RunId("heart-1"), release)
    epoch = store.next_epoch("heart", 100)
    again = reopened(store)
    assert again.studies() == [STUDY]
    assert again.study(HASH) == STUDY
    assert again.runs() == [run()]
    bodies = [fact.body for fact in again.facts(RunId("heart-1"))]
    assert bodies == [b"one", b"two", b"three"]
    assert again.release(RunId("heart-1")) == release
    assert again.next_epoch("heart", 100) == epoch + 1
    again.close()


def test_the_same_request_twice_is_one_run(store: SqlStore) -> None:
    store.add_run(STUDY, run())
    assert store.add_run(STUDY, run(name="heart-2")) == run()
    assert store.runs() == [run()]


def test_a_second_run_of_the_same_study_stores_the_study_once(store: SqlStore) -> None:
    store.add_run(STUDY, run("heart-2", "r-2", created=2.0))
    store.add_run(STUDY, run("heart-1", "r-1", created=1.0))
    assert store.studies() == [STUDY]
    assert [stored.run_id for stored in store.runs()] == ["heart-1", "heart-2"]


def test_facts_of_two_runs_do_not_mix(store: SqlStore) -> None:
    store.append(RunId("a"), 0, [b"a0"])
    store.append(RunId("b"), 0, [b"b0"])
    store.append(RunId("a"), 1, [b"a1"])
    assert [fact.body for fact in store.facts(RunId("a"))] == [b"a0", b"a1"]


def test_facts_are_read_as_of_one_moment(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks at a coordinator that writes must not call its store damaged."""
    store.add_run(STUDY, run())
    store.append(RunId("heart-1"), 0, [b"a"], [])
    real, reader = SqlStore._head, SqlStore(sql.create_engine(store._engine.url))

    def head(self: SqlStore, db: sql.Connection, run_id: RunId, count: int) -> bytes:
        if self is reader:  # between its two looks at the tables
            store.append(run_id, 1, [b"b"], [])
        return real(self, db, run_id, count)

    monkeypatch.setattr(SqlStore, "_head", head)
    assert [fact.body for fact in reader.facts(RunId("heart-1"))] == [b"a"]
    monkeypatch.undo()
    assert [fact.body for fact in reader.facts(RunId("heart-1"))] == [b"a", b"b"]
    reader.close()


def test_a_group_of_facts_is_stored_whole_or_not_at_all(store: SqlStore) -> None:
    store.append(RunId("a"), 0, [b"0", b"1"])
    with pytest.raises(StateError) as refused:
        store.append(RunId("a"), 1, [b"another 1", b"2"], blank=[0])
    assert refused.value.name == "STATE_DAMAGED"  # two that write to one run
    assert store.facts(RunId("a")) == [StoredFact(0, b"0"), StoredFact(1, b"1")]


def test_a_refused_write_does_not_tell_what_was_to_be_written(store: SqlStore) -> None:
    store.append(RunId("a"), 0, [b"0"])
    with pytest.raises(StateError) as refused:
        store.append(RunId("a"), 0, [b"a secret seed"])
    assert "secret" not in str(refused.value)


def test_a_transaction_without_room_is_rolled_back_whole_and_may_be_tried_again(
    tmp_path: Path,
) -> None:
    """SQLite's own word for a full disk, which is not that of a failed flush (F36, F38)."""
    store = open_store(default_url(tmp_path), mark=tmp_path / "mark")
    store.append(RunId("a"), 0, [b"0"])
    room: list[int] = []

    def small(connection: sqlite3.Connection, *_: object) -> None:
        pages = 100_000 if room else connection.execute("PRAGMA page_count").fetchone()[0] + 1
        connection.execute(f"PRAGMA max_page_count={pages}")

    sql.event.listen(store._engine, "checkout", small)
    with pytest.raises(NoRoom, match=r"full; .* are free"):
        store.append(RunId("a"), 1, [b"1" * 20_000, b"2"], blank=[0])
    assert store.facts(RunId("a")) == [StoredFact(0, b"0")]
    room.append(1)
    store.append(RunId("a"), 1, [b"1" * 20_000, b"2"], blank=[0])
    assert [fact.body for fact in store.facts(RunId("a"))] == [b"", b"1" * 20_000, b"2"]
    store.check()
    store.close()


def test_postgresql_too_says_when_it_is_full() -> None:
    class Words(Exception):
        sqlstate = "53100"

    engine = sql.create_engine("postgresql+psycopg://localhost/heart")
    failure = module._failure(engine, sql.exc.OperationalError("COMMIT", {}, Words()), "DISK")
    assert isinstance(failure, NoRoom)


def test_a_mark_without_room_is_no_transaction_without_room(
    store: SqlStore, tmp_path: Path
) -> None:
    """The transaction happened: tried again it would happen twice."""

    class Full(Mark):
        def write(self, count: int) -> None:
            raise NoRoom(f"no room for {count}")

    store._mark = Full(tmp_path / "mark")
    with pytest.raises(StateError) as refused:
        store.append(RunId("a"), 0, [b"0"])
    assert not isinstance(refused.value, NoRoom)
    assert store.facts(RunId("a")) == [StoredFact(0, b"0")]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_fact_is_damage(store: SqlStore, missing: int) -> None:
    store.append(RunId("a"), 0, [b"0", b"1", b"2"])
    with store._engine.begin() as db:
        db.execute(module.FACTS.delete().where(module.FACTS.c.seq == missing))
    with pytest.raises(StateError, match="run a") as refused:
        store.facts(RunId("a"))
    assert refused.value.name == "STATE_DAMAGED"


def test_a_blanked_fact_keeps_its_place_and_loses_its_content(
    store: SqlStore, tmp_path: Path
) -> None:
    seed = b"seed-to-be-forgotten" * 4
    store.append(RunId("a"), 0, [b"0", seed, b"2"])
    store.append(RunId("a"), 3, [b"3"], blank=[1])
    expected = [StoredFact(0, b"0"), StoredFact(1, b""), StoredFact(2, b"2"), StoredFact(3, b"3")]
    assert store.facts(RunId("a")) == expected
    store.close()  # the last connection: SQLite folds its write-ahead log into the file
    for path in tmp_path.iterdir():
        assert seed not in path.read_bytes(), path.name


def test_epochs_only_grow(store: SqlStore) -> None:
    given = [
        store.next_epoch("heart", 100),
        store.next_epoch("heart", 100),
        store.next_epoch("heart", 50),
        store.next_epoch("heart", 1000),
    ]
    assert given == [100, 101, 102, 1000]
    assert store.next_epoch("lung", 7) == 7


def test_a_release_is_stored_once(store: SqlStore) -> None:
    first = StoredRelease(b"first", b"s", b"c")
    store.put_release(RunId("a"), first)
    store.put_release(RunId("a"), StoredRelease(b"second", b"s", b"c"))
    assert store.release(RunId("a")) == first


def test_an_ended_run_is_marked(store: SqlStore) -> None:
    store.add_run(STUDY, run())
    store.end_run(RunId("heart-1"))
    assert [stored.ended for stored in store.runs()] == [True]


def test_what_is_not_there_is_named(store: SqlStore) -> None:
    for ask in (lambda: store.study(HASH), lambda: store.release(RunId("a"))):
        with pytest.raises(RoundError) as refused:
            ask()
        assert refused.value.name == "NOT_FOUND"
    assert store.facts(RunId("a")) == []


def test_sqlite_is_as_durable_as_promised(store: SqlStore) -> None:
    with store._engine.connect() as db:
        found = {
            name: db.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1}


def test_the_migrations_end_at_the_tables_of_the_code(store: SqlStore) -> None:
    with store._engine.connect() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True})
        assert compare_metadata(context, module._METADATA) == []


def test_opening_twice_migrates_once(store: SqlStore) -> None:
    store.add_run(STUDY, run())
    again = reopened(store)
    assert again.runs() == [run()]
    again.close()


def test_who_only_reads_brings_no_server_s_database_to_another_version(tmp_path: Path) -> None:
    """A coordinator of the former version may be writing to it."""
    url = default_url(tmp_path)
    store = open_store(url)
    store.add_run(STUDY, run())
    open_beside(url, "heart-network").close()
    for version in ("0001", "0009"):
        with store._engine.begin() as db:
            db.execute(sql.text("UPDATE alembic_version SET version_num = :v"), {"v": version})
        with pytest.raises(StateError, match=version):
            open_beside(url, "heart-network")
        with store._engine.connect() as db:
            assert db.execute(sql.text("SELECT version_num FROM alembic_version")).scalar() == (
                version
            )
    store.close()


# --- files that are not ours, or not whole --------------------------------------------------------


def refused(path: Path) -> StateError:
    with pytest.raises(StateError) as found:
        open_store(f"sqlite:///{path}")
    assert "\n" not in found.value.detail
    assert path.name in found.value.detail
    return found.value


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    path.write_bytes(b"this is not a database" * 100)
    assert refused(path).name == "STATE_DAMAGED"
    assert path.read_bytes() == b"this is not a database" * 100


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    with sqlite3.connect(path) as db:
        db.execute("create table runs (id integer)")
    db.close()
    assert refused(path).name == "STATE_DAMAGED"


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    open_store(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as db:
        db.execute("update alembic_version set version_num = '9999'")
    db.close()
    error = refused(path)
    assert error.name == "STATE_DAMAGED"
    assert "another version" in error.detail


def test_a_database_with_damaged_pages_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.db"
    store = open_store(f"sqlite:///{path}")
    store.add_run(STUDY, run())
    for seq in range(50):
        store.append(RunId("heart-1"), seq, [bytes([seq]) * 3000])
    store.close()
    whole = path.read_bytes()
    page = 4096
    path.write_bytes(whole[:page] + b"\xff" * (len(whole) - page))
    store = SqlStore(open_engine(f"sqlite:///{path}"))
    for ask in (store.runs, store.studies, lambda: store.facts(RunId("heart-1"))):
        with pytest.raises(StateError) as found:
            ask()
        assert found.value.name == "STATE_DAMAGED"
    store.close()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        open_store(default_url(tmp_path / "nowhere"))


def test_a_write_that_fails_is_one_clear_line(store: SqlStore) -> None:
    with store._engine.begin() as db:
        db.execute(sql.text("drop table facts"))
    with pytest.raises(StateError) as found:
        store.append(RunId("a"), 0, [b"0"])
    assert found.value.name == "DISK"
    assert "\n" not in found.value.detail


def test_a_database_of_another_federation_is_refused_before_its_tables_are_touched(
    tmp_path: Path,
) -> None:
    now = time.time()
    create_ca(tmp_path / "pki", "lung-network", now_unix=now)
    issue(tmp_path / "pki", Role.RESEARCHER, "uni-x", now_unix=now, out=tmp_path / "uni-x")
    chain = (tmp_path / "uni-x" / "tls.crt").read_bytes()
    url = default_url(tmp_path)
    store = open_store(url, "lung-network")
    store.add_run(STUDY, replace(run(), chain=chain))
    store.close()
    open_store(url, "lung-network").close()
    with pytest.raises(StateError) as found:
        open_store(url, "heart-network")
    assert found.value.name == "STATE_FOREIGN"
    assert "runs of lung-network" in found.value.detail


def test_an_epoch_reserved_by_a_clock_far_ahead_shuts_nobody_out(tmp_path: Path) -> None:
    """Hospitals refuse it; once the clock is right, numbers follow from the time again."""
    week = 7 * 24 * 3600
    with_clock_right = 1_800_000_000
    store = open_store(default_url(tmp_path))
    before = store.next_epoch("heart", with_clock_right)
    store.next_epoch("heart", with_clock_right + 20 * 366 * 86_400)
    assert store.next_epoch("heart", with_clock_right + 60) == before + 60
    ahead = store.next_epoch("heart", with_clock_right + week)  # hospitals take this one
    assert store.next_epoch("heart", with_clock_right + 120) == ahead + 1
