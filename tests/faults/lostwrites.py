"""The lost-write layer: what a power cut leaves of a folder (instrument I7).

    disk = Disk(folder, log)                # what lies there now is durable
    start a process with disk.environment()
    ... it is killed ...
    disk.power_cut(Cut.ALL)                 # the folder is as the platter would have it

`kill -9` alone does not test a flush: the kernel still writes what it holds. `lostwrites.c`,
loaded into the process, copies a file's content when it is flushed and a folder's entries
when that is; `image` puts a tree together from those copies alone. Nothing else counts: an
entry is there if its folder was flushed with it, and a file holds what it held when it was
flushed itself, or nothing.

`Cut.SOME` keeps a random part of what was not flushed: each entry, and each page of 4 KiB,
by itself. A file that was only renamed is under one of its two names at least.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import stat
import struct
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeAlias

PAGE: Final = 4096
_SOURCE: Final = Path(__file__).with_suffix(".c")


class Cut(StrEnum):
    """How much of what was never flushed a power cut takes."""

    ALL = "all"
    SOME = "some"


def can_build() -> bool:
    """Whether this machine has what the library is compiled with."""
    return shutil.which("gcc") is not None


def build(folder: Path) -> Path:
    """Compile the library into `folder`."""
    library = folder / "lostwrites.so"
    flags = ("-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC")
    command = ["gcc", *flags, "-o", str(library), str(_SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


# --- what was flushed -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder: `kind` is f, d or - (socket, link); `id` names the inode."""

    kind: str
    id: str


Entries: TypeAlias = dict[str, Entry]
Image: TypeAlias = dict[str, "bytes | Image"]
"""A tree as a power cut leaves it: files with their bytes, folders with their images."""


class Disk:
    """What is durable of everything below `root`; `log` is a folder elsewhere."""

    def __init__(self, root: Path, log: Path, library: Path) -> None:
        self.root = root.resolve()
        self.log = log
        self.library = library
        for part in ("content", "folder", "poison", "before"):
            (log / part).mkdir(parents=True, exist_ok=True)
        self.settle(self.root)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables that have a process watched."""
        return {
            "LD_PRELOAD": str(self.library),
            "LOSTWRITES_ROOT": str(self.root),
            "LOSTWRITES_LOG": str(self.log),
            **more,
        }

    def flushed(self) -> list[tuple[str, str]]:
        """Return what was flushed so far: `file`, `folder`, `failed` or `killed`, and the path."""
        path = self.log / "flushes"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]

    def settle(self, folder: Path) -> None:
        """Take all that lies in `folder` now for durable, and its own entries."""
        entries = _entries(folder)
        self._keep_entries(folder, entries)
        for name, entry in entries.items():
            if entry.kind == "d":
                self.settle(folder / name)
            elif entry.kind == "f":
                self._path("content", entry.id).write_bytes((folder / name).read_bytes())

    def image(self, folder: Path, cut: Cut = Cut.ALL, seed: int = 0) -> Image:
        """Return what of `folder` is left if the power goes now."""
        rng = random.Random(seed)  # noqa: S311 - which pages survive, no secret
        return self._folder(folder, _id(folder), rng if cut is Cut.SOME else None)

    def restore(self, folder: Path, image: Image) -> None:
        """Put the image in the place of what lies in `folder`; all of it is durable then."""
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        _write(folder, image)
        self.settle(folder)

    def power_cut(self, cut: Cut = Cut.ALL, seed: int = 0, folder: Path | None = None) -> None:
        """Leave of `folder` (all without one) what a power cut would; nobody writes there now."""
        where = self.root if folder is None else folder
        self.restore(where, self.image(where, cut, seed))

    # --- one folder, one file ---------------------------------------------------------------

    def _folder(self, path: Path | None, id_: str, rng: random.Random | None) -> Image:
        """`path` is where the folder lies now, None if it has gone since it was flushed."""
        durable = self._durable_entries(id_)
        now = {} if path is None else _entries(path)
        entries = durable if rng is None else _some(durable, now, rng)
        found: Image = {}
        for name, entry in sorted(entries.items()):
            here = None if path is None or now.get(name) != entry else path / name
            if here is None and path is not None:  # renamed since
                here = next((path / n for n, other in now.items() if other == entry), None)
            if entry.kind == "d":
                found[name] = self._folder(here, entry.id, rng)
            elif entry.kind == "f":
                found[name] = self._file(here, entry.id, rng)
        return found

    def _file(self, path: Path | None, id_: str, rng: random.Random | None) -> bytes:
        durable = self._durable(id_)
        if path is None or rng is None:
            return durable
        return _some_pages(durable, path.read_bytes(), rng)

    def _durable(self, id_: str) -> bytes:
        content = self._read("content", id_)
        if not self._path("poison", id_).exists():
            return content
        pages = zip(*map(_pages, (content, self._read("poison", id_))), strict=False)
        lost = {number for number, (page, other) in enumerate(pages) if page == other}
        former = _pages(self._read("before", id_))
        kept = [
            (former[number] if number < len(former) else b"").ljust(len(page), b"\0")[: len(page)]
            if number in lost
            else page
            for number, page in enumerate(_pages(content))
        ]
        return b"".join(kept)

    def _durable_entries(self, id_: str) -> Entries:
        lines = self._read("folder", id_).decode().splitlines()
        parts = [line.split(" ", 2) for line in lines]
        return {name: Entry(kind, inode) for kind, inode, name in parts}

    def _keep_entries(self, folder: Path, entries: Entries) -> None:
        lines = [f"{entry.kind} {entry.id} {name}\n" for name, entry in entries.items()]
        self._path("folder", _id(folder)).write_text("".join(lines), "utf-8")

    def _read(self, part: str, id_: str) -> bytes:
        path = self._path(part, id_)
        return path.read_bytes() if path.exists() else b""

    def _path(self, part: str, id_: str) -> Path:
        return self.log / part / id_


# --- reading what lies there ------------------------------------------------------------------

_AT_FDCWD: Final = -100
_SYMLINK_NOFOLLOW: Final = 0x100
_INO_AND_BIRTH: Final = 0x100 | 0x800
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _id(path: Path) -> str:
    """Return the inode's number and time of birth, as `lostwrites.c` writes them."""
    facts = ctypes.create_string_buffer(256)
    failed = _LIBC.statx(
        _AT_FDCWD, os.fsencode(path), _SYMLINK_NOFOLLOW, _INO_AND_BIRTH, ctypes.byref(facts)
    )
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    (inode,) = struct.unpack_from("<Q", facts, 32)
    seconds, nanoseconds = struct.unpack_from("<qI", facts, 80)
    return f"{inode}-{seconds}.{nanoseconds:09}"


def _entries(folder: Path) -> Entries:
    found = {}
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        kind = "d" if stat.S_ISDIR(mode) else "f" if stat.S_ISREG(mode) else "-"
        found[path.name] = Entry(kind, _id(path))
    return found


def _write(folder: Path, image: Image) -> None:
    for name, content in image.items():
        if isinstance(content, dict):
            (folder / name).mkdir(mode=0o700)
            _write(folder / name, content)
        else:
            (folder / name).touch(mode=0o600)
            (folder / name).write_bytes(content)


# --- what survives by chance --------------------------------------------------------------------


def _some(durable: Entries, now: Entries, rng: random.Random) -> Entries:
    """Take each name's entry from one of both; an inode that has a name in both keeps one."""
    found = {}
    for name in sorted({*durable, *now}):
        entry = rng.choice((durable, now)).get(name)
        if entry is not None:
            found[name] = entry
    both = {entry.id for entry in durable.values()} & {entry.id for entry in now.values()}
    lost = both - {entry.id for entry in found.values()}
    return found | {name: entry for name, entry in durable.items() if entry.id in lost}


def _some_pages(durable: bytes, now: bytes, rng: random.Random) -> bytes:
    """Take each page that differs from one of both, and the length from one of both."""
    size = len(rng.choice((durable, now)))
    pages = []
    for start in range(0, size, PAGE):
        former = durable[start : start + PAGE].ljust(PAGE, b"\0")
        latter = now[start : start + PAGE].ljust(PAGE, b"\0")
        pages.append(rng.choice((former, latter)))
    return b"".join(pages)[:size]


def _pages(content: bytes) -> list[bytes]:
    return [content[start : start + PAGE] for start in range(0, len(content), PAGE)]
