"""A backup of a coordinator that serves is one moment of it, proves itself, and can be restored."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from common import failpoints, state_folder
from common.clock import SystemClock
from common.errors import ConfigError, FedError, StateError
from common.identity import load_identity
from common.secagg.messages import Commit, Ready, UploadEnd
from common.state_folder import Owner
from common.views import RunPhase
from coordinator import backup as module
from coordinator.backup import Made, make_backup, roster_of
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.history import History, Loss
from coordinator.restore import read_backup, restore
from coordinator.store import STATE_NAMES, default_url, open_store
from coordinator.stored_runs import KnownRun, read_runs
from tests.faults.budget import trials
from tests.faults.record import record, record_drawn
from tests.federation import NAME, Federation

OWNER = Owner("coordinator", NAME, "coordinator")


def nothing(name: str, done: int, total: int) -> None:
    del name, done, total


def settings(fed: Federation) -> CoordinatorConfig:
    config = CoordinatorConfig.read(fed.plan.coordinator_folder / "coordinator.yaml")
    state_folder.mark(config.path(config.state_dir), OWNER)
    return config


def back_up(fed: Federation, target: Path) -> Made:
    config = settings(fed)
    identity = load_identity(fed.plan.coordinator_folder, now_unix=SystemClock().unix())
    return make_backup(config, identity, target, int(SystemClock().unix()), nothing)


def known(config: CoordinatorConfig, state: Path) -> list[KnownRun]:
    store = open_store(default_url(state), config.federation, state / MARK_NAME)
    try:
        return read_runs(store, config.federation, roster_of(config))
    finally:
        store.close()


async def finished(root: Path) -> Federation:
    """Return a federation whose run is over, its coordinator's store closed."""
    async with Federation(root, rounds=1) as fed:
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED
    settings(fed)
    return fed


@pytest.mark.fault("F40a")
async def test_backups_of_a_serving_coordinator_are_moments_of_it(tmp_path: Path) -> None:
    made: list[Path] = []
    async with Federation(tmp_path / "fed", rounds=2) as fed:

        async def take(_: str) -> None:
            target = tmp_path / (f"backup-{len(made)}" + (".tar" if len(made) % 2 else ""))
            back_up(fed, target)
            made.append(target)

        for kind, skip in ((Ready, 0), (UploadEnd, 0), (Commit, 0), (UploadEnd, 1), (Commit, 1)):
            for site in ("cleveland", "va"):
                fed.on_send(site, kind, take, skip=skip, late=True)
        run = await fed.run()
        fed.check(run)
    config = settings(fed)
    (whole,) = known(config, config.path(config.state_dir))
    lengths = []
    for number, target in enumerate(made):
        into = tmp_path / f"restored-{number}"
        restore(config, target, into, nothing)
        state_folder.check(into, OWNER, STATE_NAMES, lambda _: None)
        (then,) = known(config, into)
        count = then.journal.length
        lengths.append(count)
        assert then.state.history == whole.state.history[: len(then.state.history)]
        for node, ydig, size in then.spooled():
            del node, ydig
            assert size > 0
    assert len(made) >= 8
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    record("F40a", trials=len(made), failures=0, facts_in_the_last=lengths[-1])


@pytest.mark.fault("F39")
@pytest.mark.parametrize("suffix", ["", ".tar"])
async def test_a_flipped_byte_in_a_backup_is_found_and_nothing_is_restored(
    tmp_path: Path, suffix: str
) -> None:
    fed = await finished(tmp_path / "fed")
    config = settings(fed)
    target = tmp_path / f"copy{suffix}"
    back_up(fed, target)
    rng = random.Random(6)  # noqa: S311 - which byte
    files = [target] if suffix else [path for path in target.rglob("*") if path.is_file()]
    count = trials(change=60, nightly=500, release=1500)
    for number in range(count):
        path = files[number % len(files)]
        at = rng.randrange(path.stat().st_size)
        good = path.read_bytes()
        path.write_bytes(good[:at] + bytes([good[at] ^ (1 + rng.randrange(255))]) + good[at + 1 :])
        into = tmp_path / "into"
        found = refusal(config, target, into)
        if found is None:  # a line's end in a PEM file means nothing
            assert path.name == "chain.pem" or (suffix and b"CERTIFICATE" in good)
            shutil.rmtree(into)
        else:
            name = "manifest" if path.name in {"manifest.sig", "chain.pem"} else path.name
            assert name in found.detail, (found, path)
            assert list(into.iterdir()) == []
        path.write_bytes(good)
    record_drawn("F39", trials=count, failures=0)


@pytest.mark.fault("F39")
async def test_a_flipped_byte_in_what_a_manifest_says_it_is_names_the_manifest(
    tmp_path: Path,
) -> None:
    fed = await finished(tmp_path / "fed")
    back_up(fed, tmp_path / "copy")
    manifest = tmp_path / "copy" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"fedcare.", b"fedcare\x7f", 1))
    found = refusal(settings(fed), tmp_path / "copy", tmp_path / "into")
    assert found is not None
    assert found.name == "SCHEMA_VERSION"
    assert "manifest.json" in found.detail


def refusal(config: CoordinatorConfig, backup: Path, into: Path) -> FedError | None:
    try:
        restore(config, backup, into, nothing)
    except FedError as found:
        return found
    return None


async def test_a_released_run_is_there_after_a_restore(tmp_path: Path) -> None:
    fed = await finished(tmp_path / "fed")
    config = settings(fed)
    History(config.path(config.state_dir)).accept(Loss(5.0, "a disk is gone", ("r-1",)))
    made = back_up(fed, tmp_path / "copy")
    assert {"coordinator.db", "history.json", "owner.json"} < {file.name for file in made.files}
    into = tmp_path / "state"
    into.mkdir()  # an empty folder, as a volume is
    assert restore(config, tmp_path / "copy", into, nothing).body == made.body
    assert History(into).lost == {"r-1"}, "hospitals that tell of it are let in as before"
    (run,) = known(config, into)
    assert run.state.phase is RunPhase.FINISHED
    store = open_store(default_url(into), config.federation, into / MARK_NAME)
    for address in module.objects_of(store, run):
        assert (into / "objects" / address.hex()).is_file()
    store.close()


async def test_a_restore_refuses_what_is_not_empty_and_what_is_no_backup(tmp_path: Path) -> None:
    fed = await finished(tmp_path / "fed")
    config = settings(fed)
    back_up(fed, tmp_path / "copy")
    with pytest.raises(ConfigError) as refused:
        restore(config, tmp_path / "copy", config.path(config.state_dir), nothing)
    assert refused.value.name == "OUTPUT_EXISTS"
    with pytest.raises(ConfigError) as there:
        back_up(fed, tmp_path / "copy")
    assert there.value.name == "OUTPUT_EXISTS"
    with pytest.raises(ConfigError):
        restore(config, tmp_path / "nowhere", tmp_path / "a", nothing)
    (tmp_path / "copy" / "extra").write_text("x")
    with pytest.raises(StateError, match="extra"):
        restore(config, tmp_path / "copy", tmp_path / "b", nothing)
    (tmp_path / "copy" / "extra").unlink()
    other = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    (tmp_path / "copy" / "manifest.json").write_text(json.dumps({**other, "transactions": 1}))
    ca = config.path(config.tls.ca)
    with pytest.raises(StateError, match="does not verify"):
        read_backup(tmp_path / "copy", ca=ca, federation=NAME, tell=nothing)


@pytest.mark.parametrize(
    "point", ["backup.before_write", "backup.before_rename", "restore.before_write"]
)
async def test_a_disk_that_is_full_leaves_no_half_of_a_copy(tmp_path: Path, point: str) -> None:
    fed = await finished(tmp_path / "fed")
    config = settings(fed)
    if point.startswith("restore"):
        back_up(fed, tmp_path / "copy")

    def attempt() -> None:
        if point.startswith("restore"):
            restore(config, tmp_path / "copy", tmp_path / "into", nothing)
        else:
            back_up(fed, tmp_path / "copy.tar")

    def full(name: str) -> bool:
        if name == point:
            raise OSError(28, "No space left on device")
        return True

    failpoints.install(full)
    try:
        with pytest.raises(StateError) as refused:
            attempt()
    finally:
        failpoints.install(None)
    assert refused.value.name == "DISK"
    assert set(listing(tmp_path)) <= {"fed", "copy", "into"}
    assert not (tmp_path / "into").exists() or listing(tmp_path / "into") == []


def listing(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_what_a_killed_restore_leaves_is_no_state(tmp_path: Path) -> None:
    fed = await finished(tmp_path / "fed")
    config = settings(fed)
    back_up(fed, tmp_path / "copy")

    class Killed(BaseException):
        pass

    def kill(name: str) -> bool:
        if name == "restore.before_rename":
            raise Killed
        return True

    failpoints.install(kill)
    try:
        with pytest.raises(Killed):
            restore(config, tmp_path / "copy", tmp_path / "into", nothing)
    finally:
        failpoints.install(None)
    with pytest.raises(StateError) as refused:
        state_folder.check(tmp_path / "into", OWNER, STATE_NAMES, lambda _: None)
    assert refused.value.name == "STATE_FOREIGN"
