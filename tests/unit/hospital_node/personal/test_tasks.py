"""Whatever a study predicts, every hospital ends with a model, never worse than its own alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.features import Encoded
from common.models import initial
from common.study import Study
from hospital_node.baselines import local_only
from hospital_node.evaluate import predict
from hospital_node.personal.choose import Rows, choose, folds, row_losses
from tests.learning import study

COLUMNS = 3
FEATURES = "".join(f"\n  - {{name: x{k}, type: float}}" for k in range(COLUMNS))
SMALL = "{lr: 0.1, batch: 32, local_steps: 3}"
ROUNDS = "{rounds: 2}"
NEWTON = "{strategy: {name: newton}, rounds: 10}"
SURVIVAL = "{type: survival, time: t, event: e}"
NUMBER = "{type: continuous, name: y}"

Draw = Callable[[np.random.Generator, NDArray[np.float64]], NDArray[np.float64]]


def yes_or_no(rng: np.random.Generator, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return (z + rng.logistic(0, 1, len(z)) > 0).astype(np.float64)


def one_of_three(rng: np.random.Generator, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.digitize(z + rng.normal(0, 1, len(z)), [-0.7, 0.7]).astype(np.float64)


def number(rng: np.random.Generator, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return z + rng.normal(0, 0.5, len(z))


def count(rng: np.random.Generator, z: NDArray[np.float64]) -> NDArray[np.float64]:
    return rng.poisson(np.exp(np.clip(z, -2, 2))).astype(np.float64)


def time_to_event(rng: np.random.Generator, z: NDArray[np.float64]) -> NDArray[np.float64]:
    time, end = rng.exponential(np.exp(-z)), rng.exponential(2, len(z))
    return np.column_stack([np.minimum(time, end), time <= end])


@dataclass(frozen=True)
class Task:
    target: str
    model: str
    draw: Draw
    federation: str = ROUNDS

    def study(self, candidates: str = "") -> Study:
        return study(
            FEATURES,
            target=self.target,
            model=self.model,
            train=SMALL,
            federation=self.federation,
            more=f"personal: {{candidates: [{candidates}]}}" if candidates else "",
        )


TASKS = {
    "binary": Task("{type: binary, name: y}", "{kind: logistic}", yes_or_no),
    "binary, exact": Task("{type: binary, name: y}", "{kind: logistic}", yes_or_no, NEWTON),
    "multiclass": Task(
        "{type: multiclass, name: y, levels: [a, b, c]}", "{kind: mlp, hidden: [4]}", one_of_three
    ),
    "number": Task(NUMBER, "{kind: linear}", number),
    "number, network": Task(NUMBER, "{kind: mlp, hidden: [4], norm: layer}", number),
    "count": Task(NUMBER, "{kind: poisson}", count),
    "survival": Task(SURVIVAL, "{kind: cox}", time_to_event),
    "survival, exact": Task(SURVIVAL, "{kind: cox}", time_to_event, NEWTON),
    "survival, network": Task(SURVIVAL, "{kind: mlp, hidden: [4]}", time_to_event),
    "survival, fedbn": Task(
        SURVIVAL,
        "{kind: mlp, hidden: [4], norm: batch}",
        time_to_event,
        "{strategy: {name: fedbn}, rounds: 2}",
    ),
}


def drawn(task: Task, seed: int, rows: int = 60, slope: float = 1.0) -> Encoded:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (rows, COLUMNS))
    return Encoded(x.astype(np.float32), task.draw(rng, slope * x[:, 0]).astype(np.float32))


def nothing(like: Encoded) -> Encoded:
    return Encoded(like.features[:0], like.target[:0])


def mean_loss(asked: Study, weights: NDArray[np.float32], data: Encoded) -> float:
    found = predict(asked, weights, data.features)
    return float(row_losses(asked, found, data.target.astype(np.float64)).mean())


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1000),
    away=st.floats(-1, 1),
    candidates=st.sampled_from(["", "federated, own"]),
)
@example(seed=1, away=-3.0, candidates="federated, own")
def test_on_the_validation_part_the_choice_is_never_worse_than_the_hospital_alone(
    name: str, seed: int, away: float, candidates: str
) -> None:
    task = TASKS[name]
    asked, train, fresh = task.study(candidates), drawn(task, seed), drawn(task, seed + 1, rows=40)
    released = initial(asked) + np.float32(away)
    found = choose(asked, "north", Rows(train, np.arange(60), fresh), released)
    alone = mean_loss(asked, local_only(asked, {"north": train})["north"], fresh)
    of_exact = found.figures["own"].loss  # an exact fit has a ridge that `local_only` has not
    own = of_exact if task.federation == NEWTON else alone
    assert mean_loss(asked, found.weights, fresh) <= own + 1e-6
    assert found.figures["own"].loss == pytest.approx(own, abs=1e-6)
    assert np.isfinite(found.weights).all()


@pytest.mark.parametrize("name", TASKS)
def test_every_candidate_of_the_task_is_compared_and_the_reason_names_the_measure(
    name: str,
) -> None:
    task = TASKS[name]
    asked, train = task.study(), drawn(task, 3)
    found = choose(asked, "north", Rows(train, np.arange(60), nothing(train)), initial(asked))
    wanted = {"federated", "ditto", "own"}
    wanted |= set() if task.federation == NEWTON else {"fine-tuned"}
    wanted |= {"fedbn"} if "fedbn" in name else set()
    wanted |= {"recalibrated"} if name.startswith(("binary", "number")) else set()
    assert wanted <= set(found.figures)
    measures = {"number": "squared error", "count": "squared error"}
    measures["survival"] = "negative log partial likelihood"
    measure = measures.get(name.split(",", maxsplit=1)[0], "log-loss")
    assert measure in found.why.lower()


def test_of_a_time_to_an_event_a_row_is_compared_with_unseen_rows_alone() -> None:
    task = TASKS["survival"]
    asked, train = task.study(), drawn(task, 4)
    rows = Rows(train, np.arange(60), nothing(train))
    found, losses = choose(asked, "north", rows, initial(asked)), []
    fold = folds(asked, "north", rows)
    for k in range(5):
        seen = Encoded(train.features[fold != k], train.target[fold != k])
        weights = local_only(asked, {"north": seen})["north"]
        time, event = train.target[fold == k].T
        eta = train.features[fold == k].astype(np.float64) @ weights
        for row, at in enumerate(time):
            part = np.log(np.exp(eta[time >= at]).sum()) - eta[row]
            losses.append(part if event[row] else 0.0)
    assert found.figures["own"].loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_events_are_spread_over_the_folds() -> None:
    task = TASKS["survival"]
    train = drawn(task, 5)
    fold = folds(task.study(), "north", Rows(train, np.arange(60), nothing(train)))
    events = [int(train.target[fold == k, 1].sum()) for k in range(5)]
    assert max(events) - min(events) <= 1


def test_few_events_keep_the_released_model_and_say_so() -> None:
    task = TASKS["survival"]
    asked, train = task.study(), drawn(task, 6)
    few = train.target * np.array([1, 0], np.float32)
    few[:9, 1] = 1
    rows = Rows(Encoded(train.features, few), np.arange(60), nothing(train))
    found = choose(asked, "north", rows, initial(asked) + np.float32(1))
    assert (found.family, found.figures) == ("federated", {})
    assert "too few events" in found.why
