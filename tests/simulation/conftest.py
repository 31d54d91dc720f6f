"""What every simulation shares: crashes of processes, not of machines; short waits."""

from __future__ import annotations

import os

import pytest

from common.secagg import coordinator_step


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it handed to the kernel: flushing is not needed."""
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: None)
    monkeypatch.setattr(coordinator_step, "LEAST_WAIT_S", 0.2)
