"""What makes a simulated run cheap, and changes nothing that it shows.

A simulated process loses nothing that the kernel has, so flushing is left out (lost writes
have an instrument of their own). The files of the federation are parsed once, and a study's
noise and a signature over the same bytes are checked once: the same input gives the same
answer. Chunks, and the pattern that fits them, are small, so that a small upload has several.
A coordinator that starts again knows the SQL that an earlier one has made. What outlives a run
is kept out of the garbage collector's rounds.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any, Final

import sqlalchemy as sql

from common import config
from common.documents import parse_yaml
from common.ids import NodeId
from common.models import vector
from common.secagg import coordinator_round, keys, node_round, session
from coordinator import service, spool, store
from hospital_node import contribution, receive
from hospital_node.private import second_accountant
from tests.faults.plan import CHUNK_BYTES


@lru_cache(maxsize=4096)
def _verified(public: bytes, signature: bytes, data: bytes, refusal: str, who: NodeId) -> None:
    keys.verify_session_signature(public, signature, data, refusal=refusal, who=who)


def _verify(public: bytes, signature: bytes, data: bytes, *, refusal: str, who: NodeId) -> None:
    _verified(public, signature, data, refusal, who)  # one that is refused is tried every time


@cache
def _dialect() -> sql.Dialect:
    return sql.create_engine("sqlite://").dialect


_statements: Final[dict[Any, Any]] = {}


def _open_engine(url: str) -> sql.Engine:
    engine = _own_engine(url)
    engine.dialect = _dialect()
    return engine.execution_options(compiled_cache=_statements)


_own_engine: Final = store.open_engine
_INSTEAD: Final[tuple[tuple[Any, str, Any], ...]] = (
    (os, "fsync", lambda fd: None),
    (os, "fdatasync", lambda fd: None),
    (config, "parse_yaml", lru_cache(maxsize=256)(parse_yaml)),
    (second_accountant, "check", lru_cache(maxsize=16)(second_accountant.check)),
    *((where, "verify_session_signature", _verify)
      for where in (coordinator_round, node_round, session)),
    *((where, "CHUNK_BYTES", CHUNK_BYTES) for where in (service, spool, contribution, receive)),
    (vector, "PERIOD", CHUNK_BYTES // 8),
    (store, "open_engine", _open_engine),
)  # fmt: skip


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
