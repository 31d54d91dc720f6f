"""A byte that flipped in anything durable is found, and named, or it changes nothing (F39).

Each kind of file of both services is damaged at many places, a byte at a time and by cutting
its end off, and then read as the service reads it. What is not refused has to hold the very
same content: a page of SQLite that is free, a space between two values of JSON.
"""

from __future__ import annotations

import asyncio
import io
import random
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from common import state_folder
from common.clock import SystemClock
from common.errors import ExitCode, StateError
from common.identity import load_certificates, load_identity
from common.layouts import model_schema
from common.logs import make_log
from common.manifest import MODEL_FILE
from common.secagg.messages import Commit
from common.verified import shown
from coordinator.app import build_service
from coordinator.backup import objects_of, roster_of
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.history import History
from coordinator.objects import ObjectStore
from coordinator.spool import Spool
from coordinator.start_check import upload_trouble
from coordinator.store import STATE_NAMES, default_url, open_store
from coordinator.stored_runs import KnownRun, read_runs
from coordinator.verify import verify
from hospital_node.personal.make import read_released
from hospital_node.verify import verify as verify_node
from tests.faults.damage import Tally, cuts, damages, flips, refused, same
from tests.faults.kept_state import OWNER, Kept, keep
from tests.federation import Federation

DATABASE: Final = "coordinator.db"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return asyncio.run(keep(tmp_path_factory.mktemp("kept")))


# --- the coordinator's ------------------------------------------------------------------------


def read_all(config: CoordinatorConfig) -> tuple[list[KnownRun], object]:
    """Return the runs, and all that the database tells; it raises if anything is damaged."""
    state = config.path(config.state_dir)
    store = open_store(default_url(state), config.federation, state / MARK_NAME)
    try:
        runs = read_runs(store, config.federation, roster_of(config))
        released = [run.stored.run_id for run in runs if run.state.released is not None]
        times = [
            [(fact.seq, fact.unix) for fact in store.facts(run.stored.run_id) if fact.body]
            for run in runs
        ]
        return runs, (
            [(run.stored, run.state, run.facts) for run in runs],
            times,
            store.epochs(),
            store.studies(),
            [store.release(run_id) for run_id in released],
            [objects_of(store, run) for run in runs],
        )
    finally:
        store.close()


def counted(runs: list[KnownRun], state: Path) -> list[Path]:
    """Return the uploads that open rounds count; others may just have been coming."""
    spool = Spool.reading(state / "spool")
    return [
        spool.path(run.open_header or b"", node) for run in runs for node, _, _ in run.spooled()
    ]


@pytest.mark.fault("F39")
@pytest.mark.parametrize("which", ["open", "finished"])
def test_a_flipped_byte_in_the_coordinator_s_database_is_found_or_changes_nothing(
    kept: Kept, tmp_path: Path, which: str
) -> None:
    config = kept.coordinator(tmp_path / "good", which)
    names = [path.name for path in (tmp_path / "good").iterdir() if path.name.startswith(DATABASE)]
    truth = read_all(kept.coordinator(tmp_path / "truth", which))[1]
    rng, tally = random.Random(39), Tally()  # noqa: S311 - which byte
    for name in sorted([*names, MARK_NAME]):
        for content in damages((tmp_path / "good" / name).read_bytes(), rng):
            state = tmp_path / "state"
            shutil.rmtree(state, ignore_errors=True)
            config = kept.coordinator(state, which)
            (state / name).write_bytes(content)
            told: list[object] = []
            failure = refused(lambda: told.append(read_all(config)[1]))  # noqa: B023 - called here
            if failure is not None:
                tally.refused[name] += 1
                assert failure.fix
                assert (MARK_NAME if name == MARK_NAME else DATABASE) in failure.detail, failure
            elif told == [truth]:
                tally.harmless[name] += 1
            else:
                tally.missed.append((name, content))
    assert which == "finished" or f"{DATABASE}-wal" in names
    assert tally.refused.total() > tally.harmless.total() // 4
    tally.check()


@pytest.mark.fault("F39")
def test_a_flipped_byte_in_the_coordinator_s_files_is_found_and_named(
    kept: Kept, tmp_path: Path
) -> None:
    rng, tally = random.Random(40), Tally()  # noqa: S311 - which byte

    def each(name: str, work: Callable[[], object]) -> None:
        path = state / name
        good = path.read_bytes()
        for content in damages(good, rng):
            path.write_bytes(content)
            failure = refused(work)
            kind = name.partition("/")[0]
            if failure is not None and (path.name in failure.detail or kind == MARKER):
                tally.refused[kind] += 1
            elif failure is None and same(good, content):
                tally.harmless[kind] += 1
            else:
                tally.missed.append((name, content, failure))
        path.write_bytes(good)

    for which in ("open", "finished"):
        state = tmp_path / which
        config = kept.coordinator(state, which)
        runs, _ = read_all(config)
        (run,) = runs
        objects, spool = ObjectStore.reading(state / "objects"), Spool.reading(state / "spool")
        if which == "finished":
            each("history.json", lambda: History(state))  # noqa: B023 - called here
            each(MARKER, lambda: state_folder.check(state, OWNER, STATE_NAMES, lambda _: None))  # noqa: B023
            with_release = run.state.released
            assert with_release is not None
        model = run.state.model
        assert model is not None
        for address in model.addresses:
            each(f"objects/{address.hex()}", partial(objects.check, address))
        for node, ydig, size in run.spooled():
            hd = run.open_header
            assert hd is not None
            name = str(spool.path(hd, node).relative_to(state))
            each(name, partial(_upload, spool, hd, node, ydig, size))
    assert tally.refused.keys() == {"objects", "spool", "history.json", MARKER}
    tally.check()


MARKER: Final = state_folder.MARKER


def _upload(spool: Spool, hd: bytes, node: object, ydig: object, size: int) -> None:
    wrong = upload_trouble(spool, hd, node, ydig, size)  # type: ignore[arg-type]
    if wrong is not None:
        raise StateError("STATE_DAMAGED", f"{wrong[0]} {wrong[1]}")


@pytest.mark.fault("F39")
def test_verify_names_each_damaged_part_of_a_coordinator_s_state_and_no_other(
    kept: Kept, tmp_path: Path
) -> None:
    rng = random.Random(41)  # noqa: S311 - which byte
    named = 0
    for which in ("open", "finished"):
        state = tmp_path / which
        config = kept.coordinator(state, which)
        good = {part.name for part in verify(config, OWNER)}
        assert [part for part in verify(config, OWNER) if part.trouble] == []
        files = [state / name for name in ("owner.json", "history.json", MARK_NAME)]
        files += [path for path in state.glob("*s/*") if path.is_file()][:2]
        files += counted(read_all(config)[0], state)
        for path in files:
            if not path.exists():
                continue
            before = path.read_bytes()
            at = rng.randrange(1, len(before) - 1)
            path.write_bytes(before[:at] + b"\x01" + before[at + 1 :])
            parts = verify(config, OWNER)
            name = str(path.relative_to(state))
            assert [part.name for part in parts if part.trouble] == [name]
            assert {part.name for part in parts} == good
            assert all(part.fix for part in parts if part.trouble)
            path.write_bytes(before)
            named += 1
    assert named >= 8
    config = kept.coordinator(tmp_path / "rows", "finished")
    database = sqlite3.connect(tmp_path / "rows" / DATABASE)
    database.execute("UPDATE facts SET body = CAST(body || ' ' AS BLOB) WHERE seq = 1")
    database.commit()
    database.close()
    assert "runs" in {part.name for part in verify(config, OWNER) if part.trouble}


@pytest.mark.fault("F39")
def test_the_newest_part_of_the_write_ahead_log_is_not_lost_silently(tmp_path: Path) -> None:
    store = open_store(default_url(tmp_path), mark=tmp_path / MARK_NAME)
    for epoch in range(1, 6):
        store.next_epoch("heart", epoch)
    log = (tmp_path / "coordinator.db-wal").read_bytes()
    shutil.copytree(tmp_path, tmp_path / "killed")  # no checkpoint, as kill -9 leaves it
    store.close()
    for back in (1, 5000, 9000):
        again = tmp_path / f"again-{back}"
        shutil.copytree(tmp_path / "killed", again)
        at = len(log) - back
        (again / "coordinator.db-wal").write_bytes(
            log[:at] + bytes([log[at] ^ 0x10]) + log[at + 1 :]
        )
        failure = refused(partial(open_store, default_url(again), mark=again / MARK_NAME))
        assert failure is not None, back
        assert "newest part" in failure.detail
    whole = open_store(default_url(tmp_path / "killed"), mark=tmp_path / "killed" / MARK_NAME)
    assert whole.epochs() == {"heart": 5}
    whole.close()


@pytest.mark.fault("F39")
async def test_a_coordinator_does_not_start_on_a_damaged_file_and_names_it(
    kept: Kept, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    config = kept.coordinator(state, "open")
    (run,), _ = read_all(config)
    assert run.state.model is not None
    upload = counted([run], state)[0]
    clock = SystemClock()
    identity = load_identity(kept.fed.plan.coordinator_folder, now_unix=clock.unix())
    log = make_log(io.StringIO(), clock=clock)
    for victim in (state / "objects" / run.state.model.object_sha256.hex(), upload):
        before = victim.read_bytes()
        victim.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        service = build_service(config, identity, clock, log)
        with pytest.raises(StateError, match=victim.name) as caught:
            service.recover()
        assert caught.value.fix
        assert victim.exists()
        await service.close()
        service._shop.store.close()
        victim.write_bytes(before)


@pytest.mark.fault("F39")
async def test_an_upload_that_changes_on_the_disk_is_never_summed(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=1) as fed:

        async def damage(_: str) -> None:
            state = fed.plan.coordinator_folder / "state" / "spool"
            path = next(path for path in state.rglob("hungarian") if path.is_file())
            before = path.read_bytes()  # the lowest bit of a word: no range would show it
            path.write_bytes(bytes([before[0] ^ 1]) + before[1:])

        fed.on_send("va", Commit, damage)
        run = await fed.run()
        fed.check(run)
        assert [record.opened for record in run.history].count(False) == 1
        (line,) = fed.told("state.failed")
        assert line["name"] == "STATE_DAMAGED"
        assert "hungarian" in line["detail"]


# --- a hospital's -----------------------------------------------------------------------------

KINDS: Final = {
    "owner.json", "node.key", "rolled-back.json", "sessions", "decisions", "models", "spool",
    "checkpoints", "own", "personal", "releases", "reports", "ledger", "orders", "approvals",
}  # fmt: skip


WORDS: Final = {"lock", "status.json", "last-contact.json"}
"""What nothing but words follows from."""


def _names_it(part: str, path: str) -> bool:
    """Whether a damaged part is the file, or what the file vouches for."""
    file = Path(path)
    if path == "node.key":  # every sealed record is
        return True
    if part == path or part == str(file.with_suffix(".json")):  # a report names its page
        return True
    if file.parts[0] == "decisions" and part.startswith("models/"):  # of what study, it says
        return True
    if file.parts[0] == "personal":
        return part == str(file.parent)
    if file.parts[0] == "releases":
        return part.startswith(str(file.parent))
    if file.parts[0] == "ledger":  # its head and its lines vouch for each other
        return part == "ledger/heart.jsonl"
    return False


def _harmless(path: Path, before: bytes, after: bytes) -> bool:
    if path.suffix == ".pem":  # text around a certificate, or how its lines end
        path.write_bytes(before)
        good = load_certificates(path)
        path.write_bytes(after)
        return refused(lambda: load_certificates(path)) is None and load_certificates(path) == good
    return path.suffix == ".json" and same(before, after)


@pytest.mark.fault("F39")
def test_a_flipped_byte_in_a_hospital_s_state_is_found_and_named(
    kept: Kept, tmp_path: Path
) -> None:
    config = kept.node(tmp_path / "node")
    state = tmp_path / "node" / "state"
    assert [part for part in verify_node(config) if part.trouble] == []
    paths = [
        path
        for path in sorted(state.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name not in WORDS
    ]
    by_kind: dict[str, list[Path]] = {}
    for path in paths:
        by_kind.setdefault(path.relative_to(state).parts[0], []).append(path)
    assert by_kind.keys() == KINDS
    rng, tally = random.Random(3), Tally()  # noqa: S311 - which byte
    for kind, found in by_kind.items():
        # Every file of a kind is damaged: in turn, a few times each, as many times in all.
        streams = [damages(path.read_bytes(), rng) for path in found]
        for place in range(flips() + cuts()):
            path = found[place % len(found)]
            before = path.read_bytes()
            after = next(streams[place % len(found)])
            path.write_bytes(after)
            bad = [part for part in verify_node(config) if part.trouble]
            if bad and all(_names_it(one.name, str(path.relative_to(state))) for one in bad):
                assert all(one.fix for one in bad)
                tally.refused[kind] += 1
            elif not bad and _harmless(path, before, after):
                tally.harmless[kind] += 1
            else:
                tally.missed.append((path.name, before, after, bad))
            path.write_bytes(before)
    assert tally.refused.keys() == KINDS
    tally.check()


@pytest.mark.fault("F39")
def test_a_masked_vector_that_is_not_there_is_named_with_what_to_do(
    kept: Kept, tmp_path: Path
) -> None:
    config = kept.node(tmp_path / "node")
    for path in (tmp_path / "node" / "state" / "spool").glob("*.y"):
        path.unlink()
    screen = shown(verify_node(config))
    assert screen.exit_code == ExitCode.REFUSED
    damaged, fixes = screen.data["damaged"], screen.data["fixes"]
    assert isinstance(damaged, dict)
    assert isinstance(fixes, dict)
    ((name, trouble),) = damaged.items()
    assert name.startswith("spool/")
    assert "not there" in trouble
    assert "leaves that round" in fixes[name]


@pytest.mark.fault("F39")
def test_a_sealing_key_that_cannot_be_read_costs_nobody_the_state(
    kept: Kept, tmp_path: Path
) -> None:
    """The fix is about the key, and an empty state directory the last resort, if one at all."""
    config = kept.node(tmp_path / "node")
    key = tmp_path / "node" / "state" / "node.key"
    content = key.read_bytes()

    def said() -> tuple[str, str]:
        (bad,) = [part for part in verify_node(config) if part.trouble]
        assert bad.name == "node.key"
        assert "nothing that it sealed was looked at" in bad.trouble
        return bad.trouble, bad.fix

    key.chmod(0o644)
    assert said()[1].startswith("chmod 600")
    key.write_bytes(content[:-1])
    key.chmod(0o600)
    assert said()[1].startswith("Put the hospital's own key file back")
    key.unlink()
    for how in ("No such file", "Is a directory"):  # root may read all else
        trouble, fix = said()
        assert how in trouble
        assert fix.startswith("Give the file back, or to this user")
        key.mkdir(exist_ok=True)


@pytest.mark.fault("F39")
def test_a_release_is_held_against_its_manifest_whenever_a_model_is_made_of_it(
    kept: Kept, tmp_path: Path
) -> None:
    kept.node(tmp_path / "node")
    (path,) = (tmp_path / "node" / "state" / "releases").glob(f"*/{MODEL_FILE}")
    schema = model_schema(kept.fed.study)
    assert read_released(path, schema).size == schema.parameters
    before = path.read_bytes()
    path.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    failure = refused(lambda: read_released(path, schema))
    assert failure is not None
    assert failure.name == "MODEL_INVALID"
    assert path.parent.name in failure.detail
