"""A hospital that keeps a copy of what it puts in, for `bench --dp`.

With noise nobody can compute a round's sum again from names: it holds secret noise and
secret rounding. So the node of a bench writes each finished `v_i`, unmasked, beside its
own file, and the bench adds those files up when the timing is over. A real node never
does: this program is not `fedcare node serve`, and a bench has nobody's data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Final

import numpy as np

from common.secagg.header import Header
from common.secagg.keys import CoefficientSeed
from common.secagg.ring import Words, word_dtype
from hospital_node.contribution import WordSource
from hospital_node.personal_state import OwnTensors
from hospital_node.work import Work
from researcher.bench_node import WrappedWork, serve_wrapped

FOLDER: Final = "put-in"
_BLOCK_WORDS: Final = 1 << 18


class RecordingSource:
    """A `v_i` whose words go to a file as they are asked for; see `WordSource`."""

    def __init__(self, source: WordSource, out: IO[bytes]) -> None:
        self.words = source.words
        self._source = source
        self._out = out

    def fill(self, out: Words, word_offset: int) -> None:
        """See `WordSource`."""
        self._source.fill(out, word_offset)
        self._out.write(out.data)
        if word_offset + out.size == self.words:
            self._out.close()


class RecordingWork(WrappedWork):
    """Everything as the real work; its inputs are kept in `folder`, by header."""

    def __init__(self, work: Work, folder: Path) -> None:
        super().__init__(work)
        self._folder = folder

    def make(
        self,
        header: Header,
        model: Path | None,
        seed: CoefficientSeed,
        abandoned: Callable[[], bool],
        own: OwnTensors,
    ) -> WordSource:
        """Make the real input and keep a copy of it."""
        source = self._work.make(header, model, seed, abandoned, own)
        self._folder.mkdir(exist_ok=True)
        path = self._folder / header.digest().hex()
        return RecordingSource(source, path.open("wb", buffering=0))


def main(arguments: Sequence[str]) -> int:
    """Serve the node whose file is the last argument, as `fedcare node serve` does."""
    return serve_wrapped(
        arguments, lambda folder: lambda work: RecordingWork(work, folder / FOLDER)
    )


def recorded_sum(sites: Iterable[Path], header: str, words: int, ring_bits: int) -> str | None:
    """Return the SHA-256 of the ring sum of what the sites put in, None if a copy is not whole.

    `sites` are the folders of the round's survivors, `header` its digest in hex.
    """
    dtype = word_dtype(ring_bits)
    files = [site / FOLDER / header for site in sites]
    if not all(file.is_file() and file.stat().st_size == words * dtype.itemsize for file in files):
        return None
    copies = [np.memmap(file, dtype, mode="r") for file in files]
    digest = hashlib.sha256()
    for start in range(0, words, _BLOCK_WORDS):
        total = np.zeros(min(_BLOCK_WORDS, words - start), dtype)
        for copy in copies:
            total += copy[start : start + _BLOCK_WORDS]
        digest.update(total.data)
    return digest.hexdigest()
