"""Trainings that die at a step and go on from a checkpoint: what tests/faults say of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from common import models
from common.clock import ManualClock
from common.errors import StateError
from common.features import Encoded
from common.study import Study
from hospital_node import checkpoints
from hospital_node.checkpoints import Keeper, kept
from hospital_node.exchange import TrainingTask
from hospital_node.going_on import asked
from hospital_node.strategies import LocalRound, Received
from tests.learning import study

NETWORK = "{kind: mlp, hidden: [5, 4], norm: batch}"
ADAM = "{optimiser: adam, lr: 0.01, batch: 9, local_epochs: 2, imbalance: resampled}"
STUDIES = {
    "sgd": study(train="{lr: 0.1, batch: 9, local_steps: 17, imbalance: weighted}"),
    "adam": study(model=NETWORK, train=ADAM),
    **{
        name: study(model=NETWORK, federation=f"{{weights: equal, rounds: 3, strategy: {terms}}}")
        for name, terms in {
            "fedprox": "{name: fedprox, mu: 0.5}",
            "fedbn": "{name: fedbn}",
            "ditto": "{name: ditto, lambda: 0.5}",
        }.items()
    },
    "ditto and adam": study(
        model=NETWORK,
        train=ADAM,
        federation="{weights: equal, rounds: 3, strategy: {name: ditto, lambda: 0.5}}",
    ),
    "scaffold": study(federation="{weights: equal, rounds: 3, strategy: {name: scaffold}}"),
}


def task_of(given: Study, rows: int = 83) -> TrainingTask:
    """Rows that no batch divides; SCAFFOLD's control variate where it is the strategy."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(rows, models.layout(given).tensors[0].shape[-1]))
    data = Encoded(features.astype(np.float32), (features[:, 0] > 0.5).astype(np.float32))
    start = models.initial(given) + np.float32(0.05)
    received = Received(start)
    if given.federation.strategy.name == "scaffold":
        control = np.linspace(-0.1, 0.1, start.size).astype(np.float32)
        received = Received(start, control, [1.0] * len(models.layout(given).tensors))
    return TrainingTask(given, data, received, {}, "north")


def bits(done: LocalRound) -> object:
    own = sorted((name, values.tobytes()) for name, values in done.own.items())
    return done.delta.tobytes(), done.loss, own


@dataclass
class Memory:
    """A slot that outlives the process, and what it was told."""

    content: bytes | None = None
    said: list[str] = field(default_factory=list)

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content = content

    def resumed(self) -> None:
        self.said.append("resumed")

    def ignored(self, why: StateError | str) -> None:
        self.said.append(f"ignored: {why}")


class Died(BaseException):
    """The process is gone: nothing behind it runs."""


@dataclass
class Run:
    """Counts the steps that a training takes, a second each, and dies before number `dies`."""

    dies: int | None = None
    taken: int = -1
    clock: ManualClock = field(default_factory=ManualClock)

    def __call__(self) -> None:
        self.taken += 1
        self.clock.advance(1.0)
        if self.taken == self.dies:
            raise Died

    def train(self, task: TrainingTask, slot: checkpoints.Slot, every_s: float) -> LocalRound:
        """Train with checkpoints; the clock stands still while they are written."""
        with kept(Keeper(slot, every_s, now=self.clock.monotonic)), asked(self):
            done = task.train()
        self.taken += 1
        return done


def steps_of(task: TrainingTask) -> int:
    run = Run()
    run.train(task, Memory(), float("inf"))
    return run.taken
