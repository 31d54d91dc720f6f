"""The one form of tar that a bundle has: plain files, one after the other, nothing else.

A tar archive can hold links, devices, names of any length, headers that change later
headers, and the same name twice; whoever unpacks one from outside has to refuse all that.
So a bundle's archive is POSIX ustar with regular files only, and every header is exactly
the 512 bytes that `header` makes of a name, a size and the executable bit. The reader makes
the header anew and compares: what differs in any bit is refused, so there is no second way
to say something, and no field that is read but not checked.

Names are relative, `/` between parts, each part of letters, digits and `._+@~-`; no part is
`.` or `..`. The archive ends with two blocks of zeros and holds nothing after them.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from common.errors import StateError
from common.text import show

BLOCK: Final = 512
CHUNK: Final = 1 << 20
END: Final = bytes(2 * BLOCK)

MAX_NAME: Final = 240
MAX_SIZE: Final = 8**11 - 1
"""The largest size that the header's eleven octal digits hold: 8 GiB less one byte."""

MTIME: Final = 946_684_800
"""All files carry this time, 2000-01-01T00:00:00Z: archives of equal files are equal."""

_PART = re.compile(r"[A-Za-z0-9._+@~-]{1,100}", re.ASCII)
_KINDS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a pipe",
    b"L": "a GNU long name",
    b"K": "a GNU long name",
    b"S": "a sparse file",
    b"x": "an extended header",
    b"g": "an extended header",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive; `offset` is where its bytes begin."""

    name: str
    size: int
    executable: bool
    offset: int


def bad_name(name: str) -> str | None:
    """Return what is wrong with a file's name, or None."""
    if not 0 < len(name) <= MAX_NAME:
        return f"its name has {len(name)} characters, 1 to {MAX_NAME} are allowed"
    if name.startswith("/"):
        return "its name is absolute"
    parts = name.split("/")
    if any(part in {".", ".."} for part in parts):
        return "its name leads out of the bundle"
    if not all(_PART.fullmatch(part) for part in parts):
        return "its name holds a character or an empty part that no name here has"
    return None


def header(name: str, size: int, *, executable: bool) -> bytes:
    """Return the header of one file.

    Raises:
        ValueError: the name does not fit into ustar, or the size is too large.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if executable else 0o644
    info.mtime = MTIME
    if size > MAX_SIZE:
        raise ValueError(f"{size} bytes are too many")
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def padding(size: int) -> int:
    """Return how many zeros follow a file of `size` bytes."""
    return -size % BLOCK


def members(archive: BinaryIO, label: str) -> Iterator[Member]:
    """Yield each file of an archive; its bytes are the caller's to read, or not.

    The archive is read from its beginning, and each next header is looked for where the
    last file ends, wherever the caller left the position.

    Raises:
        StateError: BUNDLE_FORM for any header that `header` would not make, a name that
            stands twice, or anything after the end; BUNDLE_DAMAGED where the archive ends
            too early.
    """
    seen: set[str] = set()
    offset = 0
    while True:
        archive.seek(offset)
        block = _exactly(archive, BLOCK, label)
        if not any(block):
            break
        member = _parse(block, offset + BLOCK, label)
        if member.name in seen:
            raise StateError("BUNDLE_FORM", f"{label}: {show(member.name)} stands twice")
        seen.add(member.name)
        yield member
        end = member.offset + member.size
        archive.seek(end)
        if any(_exactly(archive, padding(member.size), label)):
            raise StateError("BUNDLE_FORM", f"{label}: bytes hidden behind {show(member.name)}")
        offset = end + padding(member.size)
    if any(_exactly(archive, BLOCK, label)) or archive.read(1):
        raise StateError("BUNDLE_FORM", f"{label}: there is more after the archive's end")


def _parse(block: bytes, offset: int, label: str) -> Member:
    try:
        prefix, last = _text(block[345:500]), _text(block[:100])
        size = int(block[124:135], 8)
        mode = int(block[100:107], 8)
    except ValueError:
        raise StateError(
            "BUNDLE_FORM", f"{label}: no file's header at byte {offset - BLOCK}"
        ) from None
    name = f"{prefix}/{last}" if prefix else last
    kind = block[156:157]
    if kind != b"0":
        what = _KINDS.get(kind, "of an unknown kind")
        raise StateError("BUNDLE_FORM", f"{label}: {show(name)} is {what}, not a plain file")
    wrong = bad_name(name)
    if wrong:
        raise StateError("BUNDLE_FORM", f"{label}: {show(name)}: {wrong}")
    executable = bool(mode & 0o100)
    if size < 0 or block != header(name, size, executable=executable):
        raise StateError("BUNDLE_FORM", f"{label}: {show(name)} has a header of another form")
    return Member(name, size, executable, offset)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii")


def _exactly(archive: BinaryIO, size: int, label: str) -> bytes:
    data = archive.read(size)
    if len(data) != size:
        raise StateError("BUNDLE_DAMAGED", f"{label}: it ends too early, at byte {archive.tell()}")
    return data
