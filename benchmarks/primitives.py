# ruff: noqa: INP001 - a script, not a package
"""Speeds of the primitives on one core: `python benchmarks/primitives.py [WORDS]`.

The best of three runs each, on buffers that are reused as the drivers reuse theirs.
Section 14 of the protocol states what is expected: keystream 8 GB/s, masks at least
0.7 G words/s, Shamir for 64 members below 0.02 s, noise 13 to 26 M samples/s and never
below 10 M. A sigma_loc is z Delta_int / sqrt(h): 2,897 is z = 1 and 46,341 z = 16 at
Delta_int = 4,096, h = 2; 4 and 524,288 are the least and the largest there may be.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from common.entropy import OsEntropy
from common.privacy.clipping import integer_sum, secret_uniforms
from common.privacy.noise import NoiseStream, NoiseTable
from common.quantise import Coding, VectorEncoder
from common.secagg.header import Rounding, quant_bound
from common.secagg.keys import CoefficientSeed, EdgeSeed, SelfSeed
from common.secagg.masking import MaskPlan
from common.secagg.prg import Keystream
from common.secagg.shamir import share_secrets
from common.secret import Secret
from common.vectors import ParameterSchema, TensorSpec, TensorType
from coordinator.aggregate import mean_step

CHUNK_WORDS = 1 << 18
"""1 MiB of 32-bit words, as uploads are cut."""

ENTROPY = OsEntropy()
SIGMAS = (4.0, 500.0, 2897.0, 46341.0, 524288.0)


def best(work: Callable[[], object]) -> float:
    """Return the least seconds of three runs."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def by_chunks(words: int, step: Callable[[np.ndarray, int], object]) -> Callable[[], None]:
    """Return a run of `step` over a vector, one reused chunk at a time."""
    buffer = np.empty(CHUNK_WORDS, np.uint32)

    def run() -> None:
        for start in range(0, words, CHUNK_WORDS):
            step(buffer[: min(CHUNK_WORDS, words - start)], start)

    return run


def keystream(words: int) -> str:
    """Measure AES-256-CTR alone."""
    stream = Keystream.of_mask(Secret(ENTROPY.take(32)), 32)
    seconds = best(by_chunks(words, stream.words_into))
    return f"{4 * words / seconds / 1e9:6.2f} GB/s"


def masks(words: int, n: int) -> str:
    """Measure all masks of one node among n."""
    edges = tuple((EdgeSeed.fresh(ENTROPY), 1 if k % 2 else -1) for k in range(n - 1))
    plan = MaskPlan(SelfSeed.fresh(ENTROPY), edges, 32)  # type: ignore[arg-type]
    seconds = best(by_chunks(words, plan.stream().apply))
    return f"{n * words / seconds / 1e9:6.2f} G words/s, {seconds:.3f} s"


def quantise(words: int, rounding: Rounding) -> str:
    """Measure floats to words, weighted."""
    schema = ParameterSchema((TensorSpec("w", TensorType.FLOAT32, (words - 1,)),))
    update = np.sin(np.arange(words - 1, dtype=np.float32))
    coding = Coding(quant_bound(4, 32), 32, rounding, CoefficientSeed.fresh(ENTROPY))
    encoder = VectorEncoder(schema, update, ranges=(1.5,), coding=coding, u=0.75)
    return f"{best(by_chunks(words, encoder.fill)):6.3f} s"


def new_model(words: int) -> str:
    """Measure the server step on opened words, in the blocks that the coordinator opens."""
    values, total = np.zeros(CHUNK_WORDS, np.float32), np.ones(CHUNK_WORDS, np.int32)

    def step(chunk: np.ndarray, _start: int) -> None:
        model = values[: chunk.size].astype(np.float64)
        model += mean_step(total[: chunk.size], 0.5, 1000.0)
        model.astype("<f4")

    return f"{best(by_chunks(words, step)):6.3f} s"


def shamir(n: int) -> str:
    """Measure one node's shares for n members with the default colluders."""
    secrets = [(f"h{k}", Secret(ENTROPY.take(32))) for k in range(n)]
    seed = CoefficientSeed.fresh(ENTROPY)
    return f"{best(lambda: share_secrets(secrets, seed, n // 4 + 1, range(1, n))):6.4f} s"


def noise(words: int, sigma: float) -> str:
    """Measure discrete Gaussian draws, and the making of their table."""
    start = time.perf_counter()
    table = NoiseTable(sigma)
    built = time.perf_counter() - start
    stream = NoiseStream(table, CoefficientSeed.fresh(ENTROPY))
    buffer = np.zeros(CHUNK_WORDS, np.int64)

    def run() -> None:
        for place in range(0, words, CHUNK_WORDS):
            stream.add_to(buffer[: min(CHUNK_WORDS, words - place)], place)

    return f"{words / best(run) / 1e6:6.1f} M samples/s, table {built:.3f} s"


def clip(rows: int, width: int) -> str:
    """Measure clipping and rounding of rows that are all longer than the clip."""
    update = np.sin(np.arange(rows * width, dtype=np.float32)).reshape(rows, width)
    uniforms = secret_uniforms(ENTROPY)
    seconds = best(lambda: integer_sum(update, 1.0, 4 * 5000, uniforms))
    return f"{1e9 * seconds / update.size:6.1f} ns a value"


def main(words: int) -> None:
    """Print the table."""
    rows: dict[str, Callable[[], str]] = {
        "keystream": lambda: keystream(words),
        "masks, n=4": lambda: masks(words, 4),
        "masks, n=16": lambda: masks(words, 16),
        "quantise, even": lambda: quantise(words, Rounding.EVEN),
        "quantise, stochastic": lambda: quantise(words, Rounding.STOCHASTIC),
        "new model": lambda: new_model(words),
        "Shamir, n=64": lambda: shamir(64),
        **{f"noise, sigma {s:g}": partial(noise, words, s) for s in SIGMAS},
        "clip, one vector": lambda: clip(1, words),
        "clip, 256 patients": lambda: clip(256, 5633),
    }
    sys.stdout.write(f"{words:,} words of 32 bits\n")
    for name, measure in rows.items():
        sys.stdout.write(f"{name:22s}{measure()}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 25_000_000)
