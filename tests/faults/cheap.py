"""What makes a simulated run cheap, and changes nothing that it shows.

A simulated process loses nothing that the kernel has, so flushing is left out (lost writes
have an instrument of their own). The files of the federation are parsed once, and a study's
noise is checked once: the same text gives the same answer. What outlives a run is kept out of
the garbage collector's rounds.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, Final

from common import config
from common.documents import parse_yaml
from hospital_node.private import second_accountant

_INSTEAD: Final[tuple[tuple[Any, str, Any], ...]] = (
    (os, "fsync", lambda fd: None),
    (os, "fdatasync", lambda fd: None),
    (config, "parse_yaml", lru_cache(maxsize=256)(parse_yaml)),
    (second_accountant, "check", lru_cache(maxsize=16)(second_accountant.check)),
)


@contextmanager
def cheap() -> Iterator[None]:
    """Make the runs inside the block cheap; afterwards all is as it was."""
    before = [getattr(where, name) for where, name, _ in _INSTEAD]
    for where, name, instead in _INSTEAD:
        setattr(where, name, instead)
    try:
        yield
    finally:
        for (where, name, _), found in zip(_INSTEAD, before, strict=True):
            setattr(where, name, found)


@cache
def settle() -> None:
    """After the first run: what is there now stays, and is not looked at again."""
    gc.collect()
    gc.freeze()
