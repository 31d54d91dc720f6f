"""`python -m benchmarks.accuracy`: measure an entry, or write the page of all of them."""

# ruff: noqa: T201 - a command, and its table is its output

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from benchmarks.accuracy import frame, heart, page, tcga
from benchmarks.accuracy.entries import ENTRIES

_REAL: Final = {"heart": heart.select, "tcga": tcga.select}
"""How the terms of each real data set were chosen."""

_FOLDERS: Final = {"heart": 1, "tcga": 1, "narrow": 2}
"""How many folders of original files an entry reads."""


def main() -> None:
    """Read the command line and do as it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("what", choices=[*ENTRIES, "page"])
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        help="folder of the original files, for real sets; narrow: heart's, then tcga's",
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--select", action="store_true", help="heart, tcga: how the terms were chosen"
    )
    parser.add_argument("--repeats", type=int, default=3, help="heart, tcga: repeats of the folds")
    given = parser.parse_args()
    if given.what == "page":
        page.write_page([_stored(parser, name) for name in ENTRIES])
        return
    wanted = _FOLDERS.get(given.what, 0)
    if len(given.data) != wanted:
        parser.error(f"{given.what} needs {wanted} of --data, folders of original files")
    if wanted == 1:
        (given.data,) = given.data
    if given.select:
        if given.what not in _REAL:
            parser.error(f"{given.what} has nothing to select")
        _REAL[given.what](given.data, given.repeats)
        return
    entry = ENTRIES[given.what](given)
    print(page.section(entry))
    print(f"kept in {entry.save().relative_to(frame.ROOT)}")


def _stored(parser: argparse.ArgumentParser, name: str) -> frame.Entry:
    try:
        return frame.Entry.load(name)
    except OSError:
        parser.error(f"{name} has not been measured: python -m benchmarks.accuracy {name}")


if __name__ == "__main__":
    main()
