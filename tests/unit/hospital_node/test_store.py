"""The state directory: sealed, locked, atomic, and never silently made anew."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from common.entropy import CountingEntropy, OsEntropy
from common.errors import ConfigError, IdentityError, StateError
from common.ids import ConfigHash, HeaderDigest, RunId, Sha256
from common.messages import Objection
from common.secret import Secret
from hospital_node import files
from hospital_node.sealing import Vault, create_key, load_key
from hospital_node.store import DecisionRecord, NodeStore, SessionRecord, is_locked

PLANTED = b"planted-secret-0123456789abcdef!"
RECORD = SessionRecord(RunId("run-1"), PLANTED)


def _open(root: Path) -> NodeStore:
    return NodeStore.open(root, OsEntropy())


def test_a_session_comes_back_after_a_restart_and_its_secret_is_not_on_the_disk(
    tmp_path: Path,
) -> None:
    with _open(tmp_path / "state") as store:
        store.save_session("heart", RECORD)
        store.save_session("lungs", RECORD)
    with _open(tmp_path / "state") as store:
        assert store.tasks() == ("heart", "lungs")
        assert store.load_session("heart") == RECORD
        assert store.load_session("other") is None
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            assert PLANTED not in path.read_bytes()


def test_directories_are_0700_and_files_0600(tmp_path: Path) -> None:
    with _open(tmp_path / "state") as store:
        store.save_session("heart", RECORD)
    for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path


def test_a_second_process_is_refused_by_name_and_admitted_after_the_first(tmp_path: Path) -> None:
    root = tmp_path / "state"
    with _open(root):
        assert is_locked(root)
        with pytest.raises(StateError, match="in use") as caught:
            _open(root)
        assert caught.value.name == "STATE_LOCKED"
    assert not is_locked(root)
    _open(root).close()


def test_a_health_check_at_the_moment_of_the_start_does_not_stop_a_node(tmp_path: Path) -> None:
    root = tmp_path / "state"
    _open(root).close()
    handle = os.open(root / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as `is_locked` does while it looks
    looked = threading.Timer(0.02, os.close, [handle])
    looked.start()
    _open(root).close()
    looked.join()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap"])
def test_a_damaged_sealed_record_is_named_and_refused(tmp_path: Path, damage: str) -> None:
    root = tmp_path / "state"
    with _open(root) as store:
        store.save_session("heart", RECORD)
        store.save_session("lungs", RECORD)
    path = root / "sessions" / "heart.sealed"
    content = path.read_bytes()
    other = (root / "sessions" / "lungs.sealed").read_bytes()
    changed = {
        "flip": content[:20] + bytes([content[20] ^ 1]) + content[21:],
        "truncate": content[:-1],
        "empty": b"",
        "swap": other,
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(StateError, match=r"heart\.sealed") as caught:
        _open(root)
    assert caught.value.name == "STATE_DAMAGED"
    assert path.read_bytes() == changed
    assert not is_locked(root), "a refused start leaves no lock"


def test_a_lost_sealing_key_is_never_replaced_while_records_need_it(tmp_path: Path) -> None:
    root = tmp_path / "state"
    with _open(root) as store:
        store.save_session("heart", RECORD)
    (root / "node.key").unlink()
    with pytest.raises(StateError, match=r"node\.key") as caught:
        _open(root)
    assert caught.value.name == "STATE_DAMAGED"
    assert not (root / "node.key").exists()


def test_a_sealing_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "k", OsEntropy())
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(IdentityError) as caught:
        load_key(tmp_path / "k")
    assert caught.value.name == "KEY_PERMISSIONS"


def test_a_named_sealing_key_must_exist_and_have_32_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        NodeStore.open(tmp_path / "a", OsEntropy(), tmp_path / "none")
    (tmp_path / "short").write_bytes(b"x" * 31)
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(StateError):
        NodeStore.open(tmp_path / "b", OsEntropy(), tmp_path / "short")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    first = create_key(tmp_path / "k", OsEntropy())
    with pytest.raises(StateError):
        create_key(tmp_path / "k", OsEntropy())
    assert load_key(tmp_path / "k") == first


def test_each_seal_takes_a_fresh_nonce_and_binds_its_purpose() -> None:
    vault = Vault(Secret(b"k" * 32), CountingEntropy(b"n"))
    one, two = vault.seal("a", b"x"), vault.seal("a", b"x")
    assert one[4:16] != two[4:16]
    assert vault.open("a", one, "f") == b"x"
    with pytest.raises(StateError):
        vault.open("b", one, "f")


def test_a_failed_write_leaves_the_former_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(tmp_path / "state") as store:
        store.save_session("heart", RECORD)

        def full(_handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space") as caught:
            store.save_session("heart", SessionRecord(RunId("run-2"), b"new"))
        assert caught.value.name == "DISK"
        assert store.load_session("heart") == RECORD


def test_a_write_syncs_the_file_before_the_rename_and_the_directory_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(handle: int) -> None:
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112
        fsync(handle)

    def noted_rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    files.replace(tmp_path / "f", b"x")
    assert steps == ["file", "rename", "directory"]


def test_what_a_crash_left_half_written_is_swept_but_a_download_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "state"
    _open(root).close()
    (root / "sessions" / "heart.sealed.part").write_bytes(b"half")
    (root / "releases" / "run-1.part").mkdir()
    (root / "models" / "aa.safetensors.part").write_bytes(b"half")
    _open(root).close()
    assert not list((root / "sessions").iterdir())
    assert not list((root / "releases").iterdir())
    assert [path.name for path in (root / "models").iterdir()] == ["aa.safetensors.part"]


def test_decisions_come_back_whole_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    root = tmp_path / "state"
    record = DecisionRecord(
        RunId("run-1"),
        ConfigHash(b"\1" * 32),
        b'{"id":"x"}',
        accepted=False,
        objections=(Objection("POLICY_PURPOSE", "policy.yaml:9: no"),),
        decided_at=17,
    )
    with _open(root) as store:
        store.save_decision(record)
        assert store.decisions() == (record,)
        (root / "decisions" / "run-1.json").write_text("{}")
        with pytest.raises(StateError, match=r"run-1\.json"):
            store.decisions()


def test_spools_of_rounds_that_are_not_open_are_removed(tmp_path: Path) -> None:
    with _open(tmp_path / "state") as store:
        kept, gone = HeaderDigest(b"\1" * 32), HeaderDigest(b"\2" * 32)
        for hd in (kept, gone):
            store.spool_path(hd).write_bytes(b"y")
        store.keep_spools(frozenset({kept}))
        assert store.spool_path(kept).exists()
        assert not store.spool_path(gone).exists()


def test_models_are_listed_oldest_first(tmp_path: Path) -> None:
    with _open(tmp_path / "state") as store:
        for place, name in enumerate((b"\3", b"\1", b"\2")):
            path = store.model_path(Sha256(name * 32))
            path.write_bytes(b"m")
            os.utime(path, ns=(place, place))
        assert [model[:1] for model in store.models()] == [b"\3", b"\1", b"\2"]
