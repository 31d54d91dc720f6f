"""A database has one coordinator at a time, and PostgreSQL's own tools copy it (F40a)."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from common.clock import SystemClock
from common.errors import StateError
from common.identity import load_identity
from common.secagg.messages import Commit, UploadEnd
from common.views import RunPhase
from coordinator import only_one
from coordinator.app import build_service
from coordinator.backups_cli import backed_up, restored
from coordinator.doctor import examine
from coordinator.restore import restore
from coordinator.store import open_store
from coordinator.verify import verify
from tests.faults.postgres import USER, Postgres, programs, why_not
from tests.faults.record import record
from tests.faults.test_backup import OWNER, back_up, nothing, settings
from tests.faults.test_old_backup import given, put_back
from tests.federation import Federation

needs_postgres = pytest.mark.skipif(bool(why_not()), reason=f"needs PostgreSQL: {why_not()}")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as running:
        yield running


def _run(server: Postgres, sentence: str, database: str = "postgres") -> None:
    import psycopg

    with psycopg.connect(_plain(server, database), autocommit=True) as connection:
        connection.execute(sentence)


CUT: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE"
    " pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
)


def _plain(server: Postgres, database: str = "postgres") -> str:
    return f"host={_folder(server)} user={USER} dbname={database}"


def _folder(server: Postgres) -> str:
    return server.url.partition("host=")[2]


def _url(server: Postgres, database: str) -> str:
    return server.url.replace("/postgres?", f"/{database}?")


def _two(url: str) -> StateError:
    """Open a database twice, and return what the second is told."""
    first = open_store(url, alone=True)
    try:
        with pytest.raises(StateError) as caught:
            open_store(url, alone=True)
        assert first.next_epoch("heart", 1) >= 1  # the first is not disturbed
        open_store(url).close()  # and may be looked at meanwhile
    finally:
        first.close()
    open_store(url, alone=True).close()
    return caught.value


def test_a_second_coordinator_on_an_embedded_database_does_not_start(tmp_path: Path) -> None:
    failure = _two(f"sqlite:///{tmp_path / 'shared.db'}")
    assert failure.name == "STATE_LOCKED"
    assert "shared.db is in use by another coordinator" in failure.detail
    assert "store" in failure.fix


@needs_postgres
def test_a_second_coordinator_on_a_postgresql_database_does_not_start(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(only_one, "PATIENCE_S", 0.2)
    failure = _two(server.url)
    assert failure.name == "STATE_LOCKED"
    assert "in use by another coordinator" in failure.detail


@needs_postgres
def test_who_lost_the_connection_that_held_the_database_writes_nothing_more(
    server: Postgres,
) -> None:
    first = open_store(server.url, alone=True)
    before = first.next_epoch("heart", 1)
    _run(server, CUT)
    second = open_store(server.url, alone=True)
    with pytest.raises(StateError) as lost:
        first.next_epoch("heart", 1)
    assert lost.value.fix
    for attempt in (lambda: first.next_epoch("heart", 1), first.ask):
        with pytest.raises(StateError, match="was lost") as after:
            attempt()
        assert after.value.name == "STATE_LOCKED"
    assert second.epochs()["heart"] == before
    first.close()
    second.close()


@needs_postgres
@pytest.mark.fault("F39")
def test_a_row_that_was_altered_in_postgresql_is_refused(server: Postgres) -> None:
    _run(server, "CREATE DATABASE altered")
    store = open_store(_url(server, "altered"), alone=True)
    store.next_epoch("heart", 5)
    _run(server, "UPDATE epochs SET epoch = epoch + 1", "altered")
    with pytest.raises(StateError, match="the epoch of 'heart'"):
        store.epochs()
    store.close()


def test_a_database_server_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught:
        open_store(f"postgresql+psycopg://x@/fedcare?host={tmp_path}", alone=True)
    assert caught.value.name == "DISK"
    assert "database server" in caught.value.fix


@needs_postgres
@pytest.mark.fault("F40a")
async def test_a_dump_and_a_backup_taken_after_it_restore_a_coordinator(
    server: Postgres, tmp_path: Path
) -> None:
    fed = Federation(tmp_path / "fed", rounds=1)
    store = _Stored(server, fed, tmp_path, ("one", "two"))
    async with fed:
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
        store.dump()
        made = back_up(fed, store.copy)
    assert "pg_dump" in backed_up(made).text
    store.move()
    config = settings(fed)
    state = config.path(config.state_dir)
    state.rename(tmp_path / "old")
    assert "pg_restore" in restored(restore(config, store.copy, state, nothing), state, 0.0).text
    parts = verify(config, OWNER)
    assert [part for part in parts if part.trouble] == []
    (found,) = examine(config, OWNER, run.run_id)
    assert found.state == RunPhase.FINISHED.value
    identity = load_identity(fed.plan.coordinator_folder, now_unix=SystemClock().unix())
    service = build_service(config, identity, SystemClock(), fed.log)
    service.recover()
    (again,) = service.states
    assert (again.phase, again.history) == (RunPhase.FINISHED, run.history)
    _run(server, CUT, "two")
    service._heartbeat_s = 0.02
    with pytest.raises(StateError):  # an idle coordinator too notices, and ends
        await asyncio.wait_for(service.keep_store(), 60)
    await service.close()
    service._shop.store.close()


@needs_postgres
@pytest.mark.fault("F40a")
async def test_an_old_dump_that_was_put_back_stops_until_a_person_accepts_the_loss(
    server: Postgres, tmp_path: Path
) -> None:
    fed = Federation(tmp_path / "fed", rounds=4)
    store = _Stored(server, fed, tmp_path, ("newer", "older"))

    async def take(_: str) -> None:
        store.dump()
        back_up(fed, store.copy)

    async def leave(_: str) -> None:
        fed.later(fed.kill_coordinator())

    async with fed:
        fed.on_send("va", Commit, take)
        fed.on_send("cleveland", UploadEnd, leave, skip=3, late=True)
        await fed.submit()
        await fed.until(lambda: fed.service is None)
        store.move()
        put_back(fed, store.copy)
        fed.start_coordinator()
        await fed.until(lambda: fed.count("history.back", name="HISTORY_BACK") > 0)
        assert fed.service is not None
        assert not fed.service._tasks_with_keys  # nobody was welcomed
        await fed.kill_coordinator()
        assert given(fed, "accept-loss")[0] == 0
        fed.start_coordinator()
        run = await fed.finish()
        assert run.phase is RunPhase.FINISHED
        fed.check(run)
    record("F40a", trials=1, failures=0, on_postgresql=1)


class _Stored:
    """A federation's store in the first of two databases; `move` has the second hold its dump."""

    def __init__(
        self, server: Postgres, fed: Federation, root: Path, databases: tuple[str, str]
    ) -> None:
        self._server = server
        self._first, self._second = databases
        self._dump = root / "dump"
        self._file = fed.plan.coordinator_folder / "coordinator.yaml"
        self._plain = self._file.read_text()
        self.copy = root / "copy"
        for name in databases:
            _run(server, f"CREATE DATABASE {name}")
        self._use(self._first)

    def dump(self) -> None:
        first = _plain(self._server, self._first)
        _tool("pg_dump", "--format=custom", f"--file={self._dump}", "--dbname", first)

    def move(self) -> None:
        self._use(self._second)
        _tool("pg_restore", "--dbname", _plain(self._server, self._second), str(self._dump))

    def _use(self, database: str) -> None:
        self._file.write_text(f"{self._plain}store: {_url(self._server, database)}\n")


def _tool(name: str, *arguments: str) -> None:
    bin_folder = programs()
    tool = shutil.which(name) if bin_folder is None else str(bin_folder / name)
    assert tool is not None
    subprocess.run([tool, *arguments], check=True, capture_output=True)
