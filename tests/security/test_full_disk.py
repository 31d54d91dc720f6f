"""A disk that fills up while an upload comes in: said by name, and no byte is taken for another."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from common.errors import StateError
from common.ids import Sha256
from coordinator.spool import SpoolFile

pwrite = os.pwrite


def test_a_disk_that_takes_a_part_is_given_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 4
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[:100], at))
    file = SpoolFile(tmp_path / "h1", len(data))
    file.append(0, data)
    assert file.finish(Sha256(hashlib.sha256(data).digest()))
    assert (tmp_path / "h1").read_bytes() == data


def test_a_full_disk_is_named_and_the_chunk_can_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = SpoolFile(tmp_path / "h1", 4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StateError) as found:
            file.append(0, b"abcd")
    assert found.value.name == "DISK"
    assert file.next_chunk == 0
    file.append(0, b"abcd")
    assert file.complete
