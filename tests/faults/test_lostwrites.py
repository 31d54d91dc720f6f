"""The lost-write layer itself: it takes what was not flushed, and nothing else.

Programs of a few lines run under it, Python's files and SQLite; each is killed where the
case says, and what the folder holds after the cut is compared with what must be left.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import lostwrites
from tests.faults.lostwrites import PAGE, Cut, Disk

pytestmark = pytest.mark.skipif(
    not lostwrites.can_build(), reason="needs gcc: apt-get install gcc libc6-dev"
)

_DIE = "os.kill(os.getpid(), 9)"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lostwrites.build(tmp_path_factory.mktemp("lostwrites"))


Run = Callable[..., None]


@pytest.fixture
def disk(tmp_path: Path, library: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_bytes(b"old")
    return Disk(tmp_path / "disk", tmp_path / "log", library)


def run(disk: Disk, program: str, **more: str) -> None:
    """Run lines of Python in the disk's folder; they end by SIGKILL."""
    program = f"import os, sqlite3\n{program}\n{_DIE}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        cwd=disk.root, env={**os.environ, **disk.environment(**more)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


WRITE = """
def write(name, data, flags=os.O_WRONLY | os.O_CREAT):
    handle = os.open(name, flags, 0o600)
    os.write(handle, data)
    return handle
def flush_folder(name="."):
    os.fsync(os.open(name, os.O_RDONLY))
"""


@pytest.mark.parametrize(
    ("program", "left"),
    [
        ("write('new', b'x')", None),
        ("os.fsync(write('new', b'x'))", None),
        ("write('new', b'x'); flush_folder()", b""),
        ("os.fsync(write('new', b'x')); flush_folder()", b"x"),
        ("os.fdatasync(write('new', b'x')); flush_folder()", b"x"),
        ("h = write('new', b'x'); os.fsync(h); os.write(h, b'y'); flush_folder()", b"x"),
        ("os.mkdir('sub'); os.fsync(write('sub/f', b'x')); flush_folder('sub')", None),
        ("os.fsync(write('p', b'x')); os.rename('p', 'new'); flush_folder()", b"x"),
        ("h = write('new', b'x'); flush_folder(); open('new', 'w'); os.fsync(h)", b""),
    ],
)
def test_what_was_not_flushed_is_gone(disk: Disk, program: str, left: bytes | None) -> None:
    run(disk, WRITE + program)
    disk.power_cut()
    new = disk.root / "new"
    assert (new.read_bytes() if new.exists() else None) == left
    assert (disk.root / "old").read_bytes() == b"old"
    assert not (disk.root / "sub").exists()


@pytest.mark.parametrize(
    ("flush", "left"), [("", b"old"), ("flush_folder()", b"new")], ids=["unflushed", "flushed"]
)
def test_a_rename_without_a_flush_of_its_folder_is_undone(
    disk: Disk, flush: str, left: bytes
) -> None:
    run(disk, f"{WRITE}\nos.fsync(write('p', b'new')); os.rename('p', 'old'); {flush}")
    disk.power_cut()
    assert (disk.root / "old").read_bytes() == left
    assert not (disk.root / "p").exists()


def test_a_removal_without_a_flush_of_its_folder_is_undone(disk: Disk) -> None:
    run(disk, "os.unlink('old')")
    disk.power_cut()
    assert (disk.root / "old").read_bytes() == b"old"


def test_a_number_that_is_used_again_is_another_file(disk: Disk) -> None:
    """A file in the place of one that was flushed and removed has nothing durable."""
    run(disk, f"{WRITE}\nfor n in range(50):\n os.fsync(write('a', b'durable'))\n os.unlink('a')"
              "\nwrite('new', b'x'); flush_folder()")  # fmt: skip
    disk.power_cut()
    assert (disk.root / "new").read_bytes() == b""


def test_a_second_cut_finds_what_the_first_left(disk: Disk) -> None:
    run(disk, f"{WRITE}\nos.fsync(write('new', b'x')); flush_folder()")
    disk.power_cut()
    run(disk, f"{WRITE}\nwrite('new', b'changed')")
    disk.power_cut()
    assert (disk.root / "new").read_bytes() == b"x"


def test_some_pages_and_entries_survive_by_chance(disk: Disk) -> None:
    """All four outcomes occur, and a page is whole: the former one or the latter."""
    run(disk, f"{WRITE}\nos.fsync(write('big', b'a' * {4 * PAGE})); flush_folder()\n"
              f"write('big', b'b' * {4 * PAGE}); write('new', b'x')")  # fmt: skip
    seen = set()
    for seed in range(40):
        image = disk.image(disk.root, Cut.SOME, seed)
        big = image["big"]
        assert isinstance(big, bytes)
        pages = [big[at : at + PAGE] for at in range(0, len(big), PAGE)]
        assert {page for page in pages if page not in (b"a" * PAGE, b"b" * PAGE)} == set()
        seen.add((b"a" * PAGE in pages, b"b" * PAGE in pages, image.get("new")))
    assert {new for *_, new in seen} == {None, b"", b"\0", b"x"}
    assert (True, True) in {(a, b) for a, b, _ in seen}
    assert disk.image(disk.root, Cut.SOME, 3) == disk.image(disk.root, Cut.SOME, 3)


def test_a_renamed_file_never_loses_both_names(disk: Disk) -> None:
    run(disk, "os.rename('old', 'new')")
    images = [disk.image(disk.root, Cut.SOME, seed) for seed in range(40)]
    assert all(b"old" in image.values() for image in images)
    assert {tuple(sorted(image)) for image in images} == {("old",), ("new",), ("new", "old")}


def test_a_process_dies_before_the_flush_that_is_named(disk: Disk) -> None:
    flush = "os.fsync(write(name, b'x')); flush_folder()"
    run(disk, f"{WRITE}\nfor name in 'ab':\n {flush}\nos._exit(3)", LOSTWRITES_KILL="4")
    disk.power_cut()
    assert [path.name for path in disk.root.iterdir() if path.name in "ab"] == ["a"]
    assert disk.flushed()[-1][0] == "killed"


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ("", b"\0"),
        ("os.pwrite(h, b'y', 0)", b"y"),
        ("os.ftruncate(h, 0); os.pwrite(h, b'x', 0)", b"x"),
    ],
    ids=["only flushed again", "written anew", "cut and written again"],
)
def test_a_flush_after_one_that_failed_does_not_bring_the_pages_back(
    disk: Disk, between: str, left: bytes
) -> None:
    program = f"""{WRITE}
h = write('new', b'x', os.O_RDWR | os.O_CREAT)
try: os.fsync(h)
except OSError: pass
{between}
os.fsync(h); flush_folder()"""
    run(disk, program, LOSTWRITES_FAIL="1")
    disk.power_cut()
    assert (disk.root / "new").read_bytes() == left


# --- SQLite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("journal", "synchronous", "kept"),
    [
        ("WAL", "FULL", True),
        ("WAL", "OFF", False),
        ("DELETE", "EXTRA", True),
        ("DELETE", "FULL", False),
        ("DELETE", "OFF", False),
    ],
)
def test_sqlite_keeps_a_commit_if_it_flushes(
    disk: Disk, journal: str, synchronous: str, kept: bool
) -> None:
    """Python's sqlite3 flushes by libc, where the layer sees it: journal, log and folder.

    With a rollback journal FULL does not flush the journal's removal, as SQLite's own pages
    say: the commit is rolled back.
    """
    program = """
db = sqlite3.connect('t.db', isolation_level=None)
db.execute('PRAGMA journal_mode=' + journal)
db.execute('PRAGMA synchronous=' + synchronous)
db.execute('create table t (x)')
db.execute('insert into t values (7)')"""
    run(disk, f"journal, synchronous = {journal!r}, {synchronous!r}{program}")
    disk.power_cut()
    assert _row(disk.root / "t.db") == (7 if kept else None)
    suffix = {"WAL": "-wal", "DELETE": "-journal"}[journal]
    seen = any(path.endswith(suffix) for _, path in disk.flushed())
    assert seen is (synchronous != "OFF")


def test_sqlite_with_normal_flushes_loses_a_commit_of_its_log(disk: Disk) -> None:
    """`synchronous=NORMAL` in WAL mode: whole after a power cut, and older."""
    run(
        disk,
        """
db = sqlite3.connect('t.db', isolation_level=None)
db.execute('PRAGMA journal_mode=WAL')
db.execute('PRAGMA synchronous=FULL')
db.execute('create table t (x)')
db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
db.execute('PRAGMA synchronous=NORMAL')
db.execute('insert into t values (7)')""",
    )
    disk.power_cut()
    assert _row(disk.root / "t.db") is None


def _row(path: Path) -> int | None:
    with sqlite3.connect(path) as db:
        try:
            row = db.execute("select x from t").fetchone()
        except sqlite3.OperationalError:
            row = None
    db.close()
    return None if row is None else int(row[0])
