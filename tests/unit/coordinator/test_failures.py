"""What kept the coordinator from writing is on record, and the record takes no room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from coordinator.failures import FAILURES_NAME, SLOT_BYTES, SLOTS, Failures, recorded


def test_entries_are_read_back_in_their_order_after_a_restart(tmp_path: Path) -> None:
    Failures(tmp_path).note("full", "coordinator.db: no room", 10.0)
    Failures(tmp_path).note("room", "after 3.0 s", 13.0)
    found = [(one.number, one.unix, one.what, one.detail) for one in recorded(tmp_path)]
    assert found == [(0, 10.0, "full", "coordinator.db: no room"), (1, 13.0, "room", "after 3.0 s")]


def test_the_file_never_grows_and_keeps_the_last_entries(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    blocks = (tmp_path / FAILURES_NAME).stat().st_blocks
    for number in range(3 * SLOTS + 5):
        failures.note("full", f'"\\\n\0 Wörter {number} ' + "x" * 1000, float(number))
    facts = (tmp_path / FAILURES_NAME).stat()
    assert facts.st_size == SLOTS * SLOT_BYTES
    assert facts.st_blocks == blocks
    assert [one.number for one in recorded(tmp_path)] == [*range(2 * SLOTS + 5, 3 * SLOTS + 5)]


def test_an_entry_that_a_power_cut_tore_is_passed_over(tmp_path: Path) -> None:
    failures = Failures(tmp_path)
    for what in ("full", "room"):
        failures.note(what, "x", 1.0)
    content = bytearray((tmp_path / FAILURES_NAME).read_bytes())
    content[SLOT_BYTES + 5 : SLOT_BYTES + 60] = bytes(55)
    (tmp_path / FAILURES_NAME).write_bytes(content)
    assert [one.what for one in recorded(tmp_path)] == ["full"]


def test_an_entry_that_cannot_be_written_keeps_nobody_from_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = Failures(tmp_path)

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    failures.note("stopped", "x", 1.0)
    Failures().note("stopped", "x", 1.0)


def test_where_nothing_was_recorded_there_is_nothing(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []
    Failures(tmp_path)
    assert recorded(tmp_path) == []
