"""A byte that flipped in anything durable is found, and named, or it changes nothing (F39)."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from common import state_folder
from common.errors import FedError, StateError
from common.secagg.messages import Commit, UploadEnd
from common.state_folder import Owner
from coordinator.backup import objects_of, roster_of
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.history import History
from coordinator.objects import ObjectStore
from coordinator.spool import Spool
from coordinator.store import default_url, open_store
from coordinator.stored_runs import read_runs
from coordinator.verify import verify
from hospital_node.config import NodeConfig
from hospital_node.verify import Part
from hospital_node.verify import verify as verify_node
from tests.faults.budget import trials
from tests.faults.record import record
from tests.faults.test_backup import OWNER, settings
from tests.federation import NAME, SITES, Federation


async def kept(root: Path, *, finished: bool) -> Federation:
    """Return a federation whose processes were killed, in the middle of a round or at the end."""
    async with Federation(root, rounds=2) as fed:
        if finished:
            await fed.run()
        else:

            async def stop(_: str) -> None:
                config = settings(fed)
                state = config.path(config.state_dir)
                shutil.copytree(state, root / "open")
                for site in SITES:
                    folder = fed.plan.site_folder(site) / "state"
                    skip = shutil.ignore_patterns("health.sock")
                    shutil.copytree(folder, root / f"open-{site}", ignore=skip)

            fed.on_send("va", UploadEnd, stop, skip=1, late=True)
            await fed.run()
        settings(fed)
    if not finished:
        state = fed.plan.coordinator_folder / "state"
        shutil.rmtree(state)
        (root / "open").rename(state)
        for site in SITES:
            folder = fed.plan.site_folder(site) / "state"
            shutil.rmtree(folder)
            (root / f"open-{site}").rename(folder)
    return fed


def what_it_tells(config: CoordinatorConfig) -> tuple[object, ...]:
    """Return all that a start reads; it raises if anything is damaged."""
    state = config.path(config.state_dir)
    History(state)
    store = open_store(default_url(state), config.federation, state / MARK_NAME)
    try:
        runs = read_runs(store, config.federation, roster_of(config))
        objects = ObjectStore(state / "objects")
        for run in runs:
            for address in objects_of(store, run):
                objects.check(address)
            for node, ydig, size in run.spooled():
                path = Spool(state / "spool").path(run.open_header or b"", node)
                found = Spool.digest_of(path, size)
                if found != ydig:
                    raise FedError("STATE_DAMAGED", f"{path}")
        return (
            [run.state for run in runs],
            [run.facts for run in runs],
            store.epochs(),
            store.studies(),
        )
    finally:
        store.close()


def flip(path: Path, rng: random.Random) -> bytes:
    good = path.read_bytes()
    at = rng.randrange(len(good))
    path.write_bytes(good[:at] + bytes([good[at] ^ (1 + rng.randrange(255))]) + good[at + 1 :])
    return good


def refused(work: Callable[[], object]) -> FedError | None:
    try:
        work()
    except FedError as failure:
        return failure
    return None


@pytest.mark.fault("F39")
@pytest.mark.parametrize("finished", [True, False])
async def test_a_flipped_byte_in_the_coordinator_s_state_is_found_or_changes_nothing(
    tmp_path: Path, *, finished: bool
) -> None:
    fed = await kept(tmp_path / "fed", finished=finished)
    config = settings(fed)
    state = config.path(config.state_dir)
    state.rename(tmp_path / "good")
    good = tmp_path / "good"
    shutil.copytree(good, state)
    truth = what_it_tells(config)
    runs = truth[0]
    assert isinstance(runs, list)
    names = [
        path.relative_to(good)
        for path in sorted(good.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name not in {"lock", "address"}
    ]
    kinds = {name.parts[0] for name in names}
    assert {"coordinator.db", "objects", "owner.json", MARK_NAME} <= kinds
    assert finished or {"coordinator.db-wal", "spool"} <= kinds
    rng = random.Random(39)  # noqa: S311 - which byte
    found = 0
    count = trials(change=40, nightly=3000, release=10_000)
    weights = [8 if name.name.startswith("coordinator.db") else 1 for name in names]
    for _ in range(count):
        shutil.rmtree(state)
        shutil.copytree(good, state)
        (name,) = rng.choices(names, weights)
        flip(state / name, rng)
        failure = refused(lambda: what_it_tells(config))
        if failure is None:
            if name.name != "owner.json" and name.parts[0] not in {"objects", "spool"}:
                assert what_it_tells(config) == truth, name
            continue
        found += 1
        # An object is named by its digest, everything in the database by the database.
        assert name.name.removesuffix("-wal").removesuffix("-shm") in failure.detail or (
            name.parts[0] in failure.detail or "coordinator.db" in failure.detail
        ), (name, failure)
    assert found > count // 4
    record("F39", trials=count, failures=0, refused=found)


@pytest.mark.fault("F39")
async def test_verify_names_what_is_damaged_and_says_what_is_good(tmp_path: Path) -> None:
    fed = await kept(tmp_path / "fed", finished=True)
    config = settings(fed)
    state = config.path(config.state_dir)
    assert [part for part in verify(config, OWNER) if part.trouble] == []
    victim = max((state / "objects").iterdir(), key=lambda path: path.stat().st_size)
    before = victim.read_bytes()
    victim.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    (bad,) = [part for part in verify(config, OWNER) if part.trouble]
    assert bad.name == f"objects/{victim.name}"
    victim.write_bytes(before)
    database = sqlite3.connect(state / "coordinator.db")
    database.execute("UPDATE facts SET body = CAST(body || ' ' AS BLOB) WHERE seq = 1")
    database.commit()
    database.close()
    bad_names = {part.name for part in verify(config, OWNER) if part.trouble}
    assert "runs" in bad_names


@pytest.mark.fault("F39")
async def test_the_newest_part_of_the_write_ahead_log_is_not_lost_silently(tmp_path: Path) -> None:
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
@pytest.mark.parametrize("finished", [True, False])
async def test_a_flipped_byte_in_a_hospital_s_state_is_found(
    tmp_path: Path, *, finished: bool
) -> None:
    fed = await kept(tmp_path / "fed", finished=finished)
    root = fed.plan.site_folder("va") / "state"
    state_folder.mark(root, Owner("hospital", NAME, "va"))
    assert [part for part in verify_all(fed) if part.trouble] == []
    names = [
        path
        for part in ("sessions", "decisions", "releases", "own", "ledger")
        for path in (root / part).rglob("*")
        if path.is_file()
    ]
    assert {path.parent.name for path in names} >= {"sessions", "decisions"}
    rng = random.Random(3)  # noqa: S311 - which byte
    count = trials(change=100, nightly=3000, release=10_000)
    missed = []
    for _ in range(count):
        path = rng.choice(names)
        before = path.read_bytes()
        good = flip(path, rng)
        if path.suffix == ".json" and _same(before, path.read_bytes()):
            path.write_bytes(good)
            continue
        if not any(part.trouble for part in verify_all(fed)):
            missed.append((path.name, before, path.read_bytes()))
        path.write_bytes(good)
    assert missed == []
    record("F39", trials=count, failures=0)


def verify_all(fed: Federation) -> list[Part]:
    folder = fed.plan.site_folder("va")
    config = NodeConfig.read(folder / "node.yaml")
    return verify_node(folder / "state", None, config.path(config.tls.ca))


def _same(one: bytes, other: bytes) -> bool:
    """Whether a flipped byte changed nothing that is read: white space between two values."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.fault("F39")
@pytest.mark.parametrize("what", ["model", "upload"])
async def test_a_coordinator_does_not_start_on_a_damaged_file_and_names_it(
    tmp_path: Path, what: str
) -> None:
    fed = await kept(tmp_path / "fed", finished=False)
    state = settings(fed).path(settings(fed).state_dir)
    runs = what_it_tells(settings(fed))[0]
    assert isinstance(runs, list)
    victim = state / "objects" / runs[0].model.object_sha256.hex()
    if what == "upload":
        victim = next(path for path in (state / "spool").rglob("*") if path.is_file())
    before = victim.read_bytes()
    victim.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(StateError, match=victim.name):
        fed.start_coordinator()
    assert {path.name for path in state.iterdir()} >= {"coordinator.db"}


@pytest.mark.fault("F39")
async def test_an_upload_that_changes_on_the_disk_is_never_summed(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=2) as fed:

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
