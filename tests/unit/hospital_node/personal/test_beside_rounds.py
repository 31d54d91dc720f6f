"""A round and a personal model in two threads at once: each gets the bits that it gets alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from common.features import Encoded
from common.models import initial
from common.regression.sums import sums_of
from common.study import Study
from hospital_node.personal.choose import Rows, choose
from hospital_node.strategies import Received, local_round
from tests.learning import study

ROWS, COLUMNS = 90, 20
FEATURES = "".join(f"\n  - {{name: x{k}, type: float}}" for k in range(COLUMNS))
TRAIN = "{lr: 0.05, batch: 30, local_steps: 30}"
ADAM = "{optimiser: adam, lr: 0.01, batch: 45, local_epochs: 5}"
BATCH = "{kind: mlp, hidden: [16, 8], norm: batch}"

STUDIES: dict[str, Callable[[], Study]] = {
    "logistic": lambda: study(FEATURES, train=TRAIN, federation="{rounds: 2}"),
    "batch normalisation": lambda: study(
        FEATURES, model=BATCH, train=ADAM, federation="{strategy: {name: fedbn}, rounds: 2}"
    ),
    "ditto": lambda: study(
        FEATURES, model="{kind: mlp, hidden: [8]}", train=TRAIN,
        federation="{strategy: {name: ditto, lambda: 0.5}, rounds: 2}",
    ),
    "exact": lambda: study(FEATURES, federation="{strategy: {name: newton}, rounds: 4}"),
}  # fmt: skip


def rows_of(seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    sick = (x[:, 0] + rng.logistic(0, 1, ROWS) > 0).astype(np.float32)
    none = Encoded(np.empty((0, COLUMNS), np.float32), np.empty(0, np.float32))
    return Rows(Encoded(x, sick), np.arange(ROWS), none)


def of_round(asked: Study, data: Encoded, model: NDArray[np.float32]) -> bytes:
    """Return everything that a round computes at a hospital."""
    if asked.federation.strategy.name == "newton":
        columns, target = data.features.astype(np.float64), data.target.astype(np.float64)
        found = sums_of(asked, columns, target, model.astype(np.float64))
        return found.hessian.tobytes() + found.gradient.tobytes()
    done = local_round(asked, data, Received(model), {}, site="north")
    own = b"".join(values.tobytes() for _, values in sorted(done.own.items()))
    return done.delta.tobytes() + np.float64(done.loss).tobytes() + own


def of_personal(asked: Study, rows: Rows) -> bytes:
    found = choose(asked, "north", rows, initial(asked))
    figures = [(name, one.loss, one.se, one.setting) for name, one in found.figures.items()]
    return found.weights.tobytes() + repr((found.calibration, figures)).encode()


def both_at_once(asked: Study) -> tuple[list[bytes], list[bytes]]:
    """Compute rounds until a personal model is made, and personal models until then."""
    rows, other, model = rows_of(1), rows_of(2).train, initial(asked)
    ready, done = threading.Barrier(2), threading.Event()
    personal: list[bytes] = []

    def make() -> None:
        ready.wait()
        personal.append(of_personal(asked, rows))
        done.set()

    thread = threading.Thread(target=make)
    thread.start()
    ready.wait()
    rounds = [of_round(asked, other, model)]
    while not done.is_set():
        rounds.append(of_round(asked, other, model))
    thread.join()
    return rounds, personal


def disagreement(name: str) -> str:
    """Return what differs from the same work alone, empty if nothing does."""
    asked = STUDIES[name]()
    rounds, personal = both_at_once(asked)  # first of all, as in a process that has just begun
    alone = of_round(asked, rows_of(2).train, initial(asked))
    if len({*rounds, alone}) > 1:
        return f"a round of {name}"
    if personal[0] != of_personal(asked, rows_of(1)):
        return f"a personal model of {name}"
    return ""


@pytest.mark.parametrize("name", STUDIES)
def test_a_round_beside_a_personal_model_gives_the_same_bits(name: str) -> None:
    assert disagreement(name) == ""


def test_so_it_is_in_the_first_moment_of_a_process_with_all_cores_its_own() -> None:
    """A node that was killed in a round has both to do as soon as it starts again."""
    call = "runpy.run_path(sys.argv[1])['disagreement']('logistic')"
    script = f"import runpy, sys; sys.exit({call} or None)"
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    free = {key: value for key, value in os.environ.items() if key not in limits}
    found = subprocess.run(
        [sys.executable, "-c", script, __file__],
        env={**free, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
