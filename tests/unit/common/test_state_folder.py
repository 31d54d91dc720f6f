"""Whose a state directory is: compared before anything in it is opened, written once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from common import state_folder
from common.errors import FedError, StateError
from common.state_folder import Owner, disk_errors, fatal_disk_errors

VA = Owner("hospital", "heart-network", "va")
NAMES = frozenset({"owner.json", "lock", "part"})


def nobody(_: Path) -> Owner | None:
    return None


def refused(path: Path, owner: Owner = VA, adopt: state_folder.Adopt = nobody) -> FedError:
    with pytest.raises(FedError) as caught:
        state_folder.check(path, owner, NAMES, adopt)
    return caught.value


def test_a_folder_that_is_not_there_or_empty_is_anybodys(tmp_path: Path) -> None:
    state_folder.check(tmp_path / "none", VA, NAMES, nobody)
    assert not (tmp_path / "none").exists()
    (tmp_path / "lost+found").mkdir()
    state_folder.check(tmp_path, VA, NAMES, nobody)


def test_a_marker_is_written_once_and_read_again(tmp_path: Path) -> None:
    state_folder.mark(tmp_path, VA)
    text = (tmp_path / "owner.json").read_text()
    assert (tmp_path / "owner.json").stat().st_mode & 0o777 == 0o600
    state_folder.mark(tmp_path, Owner("hospital", "heart-network", "other"))
    assert (tmp_path / "owner.json").read_text() == text
    state_folder.check(tmp_path, VA, NAMES, nobody)


@pytest.mark.parametrize(
    "other",
    [
        Owner("coordinator", "heart-network", "va"),
        Owner("hospital", "lung-network", "va"),
        Owner("hospital", "heart-network", "cleveland"),
    ],
)
def test_role_federation_and_id_all_have_to_be_the_same(tmp_path: Path, other: Owner) -> None:
    state_folder.mark(tmp_path, other)
    error = refused(tmp_path)
    assert (error.name, str(other) in error.detail, str(VA) in error.detail) == (
        "STATE_FOREIGN", True, True,
    )  # fmt: skip


def test_state_without_a_marker_is_taken_if_it_says_itself_whose_it_is(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    state_folder.check(tmp_path, VA, NAMES, lambda _: VA)
    other = Owner("hospital", "heart-network", "cleveland")
    assert refused(tmp_path, adopt=lambda _: other).name == "STATE_FOREIGN"


def test_a_marker_that_was_never_finished_is_none(tmp_path: Path) -> None:
    (tmp_path / ".owner.json").write_text("{")
    state_folder.check(tmp_path, VA, NAMES, nobody)
    state_folder.mark(tmp_path, VA)
    assert [path.name for path in tmp_path.iterdir()] == ["owner.json"]


def test_a_folder_that_holds_something_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "le\x1btters").write_text("x")
    error = refused(tmp_path)
    assert error.name == "STATE_FOREIGN"
    assert "'le\\x1btters'" in error.detail


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_full_disk_says_how_much_is_free_and_where(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="DISK") as caught, disk_errors(tmp_path / "x"):
        full(tmp_path / "x")
    assert caught.value.detail.endswith(f" are free in {tmp_path}")


def test_another_disk_error_does_not(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught, disk_errors(tmp_path / "x"):
        raise OSError(errno.EACCES, "Permission denied")
    assert caught.value.detail == f"{tmp_path / 'x'}: Permission denied"


def test_a_disk_error_that_ends_the_process_names_the_state_folder_once(tmp_path: Path) -> None:
    with pytest.raises(StateError) as caught, fatal_disk_errors(tmp_path):
        raise StateError("DISK", "spool: No space left on device")
    assert f"free in {tmp_path}" in caught.value.detail
    with pytest.raises(StateError) as caught, fatal_disk_errors(tmp_path), disk_errors(tmp_path):
        full(tmp_path)
    assert caught.value.detail.count("are free in") == 1
    with pytest.raises(StateError) as caught, fatal_disk_errors(tmp_path):
        full(tmp_path / "objects")
    assert caught.value.name == "DISK"
    with pytest.raises(OSError, match="taken"), fatal_disk_errors(tmp_path):
        raise OSError(errno.EADDRINUSE, "taken")
    with pytest.raises(StateError) as caught, fatal_disk_errors(tmp_path):
        raise StateError("STATE_DAMAGED", "it is")
    assert caught.value.detail == "it is"
