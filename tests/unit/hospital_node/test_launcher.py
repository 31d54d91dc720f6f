"""Training in several processes: the update of one process, and every way to lose it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common import models
from common.errors import ConfigError, FedError, PolicyRefusal, Refusal, RoundError
from common.features import Encoded
from common.study import Study, parse_study
from hospital_node import exchange
from hospital_node.config import NodeConfig, Training
from hospital_node.exchange import TrainingTask
from hospital_node.launcher import Launcher
from hospital_node.strategies import LocalRound, Received, local_round
from tests.learning import study
from tests.private_study import private_study

ROWS = 83
"""Neither it nor the batch of 9 divides by two."""


def rows_of(count: int = ROWS) -> Encoded:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(count, 6)).astype(np.float32)
    return Encoded(features, (features[:, 0] > 0).astype(np.float32))


def terms(
    strategy: str = "{name: fedavg}", model: str = "{kind: mlp, hidden: [7]}", **more: str
) -> Study:
    federation = f"{{weights: equal, rounds: 3, strategy: {strategy}}}"
    train = more.pop("train", "{lr: 0.1, batch: 9, local_epochs: 2}")
    return study(model=model, train=train, federation=federation, **more)


def task_of(given: Study, data: Encoded | None = None) -> TrainingTask:
    start = models.initial(given) + np.float32(0.05)
    received = Received(start)
    if given.federation.strategy.name == "scaffold":
        control = np.linspace(-0.1, 0.1, start.size).astype(np.float32)
        limits = [1.0] * len(models.layout(given).tensors)
        received = Received(start, control, limits)
    rows = rows_of() if data is None else data
    return TrainingTask(given, rows, received, {}, "north", 2, "cpu")


def alone(task: TrainingTask) -> LocalRound:
    return local_round(
        task.study, task.data, task.received, task.kept, site=task.site, round_no=task.round_no
    )


def never() -> bool:
    return False


@pytest.fixture
def two(tmp_path: Path) -> Launcher:
    return Launcher(Training(processes=2, limit_s=60.0), tmp_path)


@pytest.mark.parametrize(
    ("strategy", "train"),
    [
        ("{name: scaffold}", "{lr: 0.1, batch: 9, local_epochs: 2}"),
        ("{name: ditto, lambda: 0.5}", "{optimiser: adam, lr: 0.01, batch: 9, local_steps: 19}"),
    ],
)
def test_two_processes_give_the_update_of_one(two: Launcher, strategy: str, train: str) -> None:
    """83 rows by 9: the last batch of a pass is of 2, and every full one is uneven."""
    task = task_of(terms(strategy, train=train))
    expected, found = alone(task), two.local_round(task, never)
    assert np.abs(expected.delta).max() > 0.01
    np.testing.assert_allclose(found.delta, expected.delta, atol=1e-5)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert found.own.keys() == expected.own.keys() != set()
    for name, values in expected.own.items():
        np.testing.assert_allclose(found.own[name], values, atol=1e-5)
    assert list(two.root.iterdir()) == []


def test_a_batch_smaller_than_the_processes_leaves_some_without_a_row(tmp_path: Path) -> None:
    """FedProx, several classes; two agents that meet, as on two machines."""
    script = tmp_path / "on_all.py"
    script.write_text(
        "import subprocess, sys\n"
        "both = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]\n"
        "sys.exit(max(one.wait() for one in both))\n"
    )
    folder = tmp_path / "shared"
    folder.mkdir()
    training = Training(
        machines=2, prefix=(sys.executable, str(script)), rendezvous="127.0.0.1:29477",
        folder=str(folder), limit_s=60.0,
    )  # fmt: skip
    given = terms("{name: fedprox, mu: 0.3}", train="{lr: 0.1, batch: 1, local_steps: 9}")
    task = task_of(given)
    found = Launcher(training, folder).local_round(task, never)
    np.testing.assert_allclose(found.delta, alone(task).delta, atol=1e-5)


def children_in(root: Path) -> list[int]:
    """The processes that train in a folder below `root`, torchrun's own left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            mine = any(word.startswith(f"{root}/training-") for word in words)
            if mine and "torch.distributed.run" not in words:
                found.append(int(path.parent.name))
    return found


def in_background(call: Callable[[], object]) -> tuple[threading.Thread, list[FedError]]:
    failures: list[FedError] = []

    def run() -> None:
        try:
            call()
        except FedError as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, failures


def wait_for_children(root: Path) -> list[int]:
    for _ in range(600):
        found = children_in(root)
        if len(found) == 2:
            return found
        time.sleep(0.05)
    raise AssertionError("no training processes")


ENDLESS = "{lr: 0.0001, batch: 1, local_steps: 1000000}"


def test_a_killed_process_is_reported_and_nothing_stays(two: Launcher) -> None:
    task = task_of(terms(train=ENDLESS))
    thread, failures = in_background(lambda: two.local_round(task, never))
    children = wait_for_children(two.root)
    assert all((path.stat().st_mode & 0o777) == 0o700 for path in two.root.iterdir())
    os.kill(children[1], signal.SIGKILL)
    thread.join(50)
    assert [failure.name for failure in failures] == ["TRAINING_LOST"]
    assert "a training process ended early" in failures[0].detail
    assert children_in(two.root) == []
    assert list(two.root.iterdir()) == []


def test_processes_that_take_too_long_or_are_no_longer_wanted_are_ended(two: Launcher) -> None:
    task = task_of(terms(train=ENDLESS))
    thread, failures = in_background(
        lambda: replace(two, training=Training(processes=2, limit_s=0.5)).local_round(task, never)
    )
    thread.join(50)
    wanted = threading.Event()
    second, more = in_background(lambda: two.local_round(task, wanted.is_set))
    wait_for_children(two.root)
    wanted.set()
    second.join(50)
    assert [failure.name for failure in failures + more] == ["TRAINING_LOST", "RUN_CANCELLED"]
    assert "longer than 0.5 s" in failures[0].detail
    assert children_in(two.root) == []


def test_what_the_processes_meet_is_raised_as_if_the_node_had_trained(two: Launcher) -> None:
    broken = rows_of()
    broken.features[3, 2] = np.inf
    with pytest.raises(Refusal, match="INPUT_NAN"):
        two.local_round(task_of(terms(), broken), never)


def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    training = Training(
        machines=2, prefix=("/no/such/srun",), rendezvous="a:1", folder=str(tmp_path)
    )
    with pytest.raises(RoundError, match="training did not start: No such file"):
        Launcher(training, tmp_path).local_round(task_of(terms()), never)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], NodeConfig]:
    def read(training: str) -> NodeConfig:
        path = tmp_path / "node.yaml"
        path.write_text(f"schema: fedcare.node/v1\ntraining: {training}\n")
        return NodeConfig.read(path)

    return read


def test_the_node_trains_by_itself_unless_its_file_asks(
    config: Callable[[str], NodeConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Launcher.of(config("{}")) is None
    asked = Launcher.of(config("{processes: 2}"))
    assert asked is not None
    assert asked.root == tmp_path / "state"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on cuda, but this machine shows 1 GPUs"):
        Launcher.of(config("{processes: 2, device: cuda}"))
    assert Launcher.of(config("{device: cuda}")) is not None


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ("{machines: 2}", "prefix, rendezvous and folder"),
        ("{prefix: [srun]}", "for several machines"),
        ("{processes: 0}", "training.processes"),
        ("{machines: 2, prefix: [srun], folder: f, rendezvous: nowhere}", "host:port"),
    ],
)
def test_a_wrong_training_section_is_named(
    config: Callable[[str], NodeConfig], training: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        config(training)


def unsplit() -> Iterator[tuple[Study, str]]:
    yield terms(model="{kind: mlp, hidden: [4], norm: batch}"), "batch normalisation"
    yield private_study(), "differential privacy"
    yield terms(train="{imbalance: weighted}"), "imbalance"
    survival = parse_study(
        "schema: fedcare.study/v1\nid: small-study\npurpose: research\ndataset: t\n"
        "owner: {name: n, organisation: o}\n"
        "features: [{name: age, type: float, range: [0, 99], impute: mean}]\n"
        "target: {type: survival, time: days, event: died}\nmodel: {kind: cox}\n"
        "federation: {rounds: 3, weights: equal}\nseed: 1\n"
    )
    yield survival, "Cox loss"


def test_what_does_not_split_is_refused_and_says_why(two: Launcher) -> None:
    for given, why in unsplit():
        with pytest.raises(PolicyRefusal, match=f"over 2 processes: .*{why}") as refusal:
            two.check(given)
        assert refusal.value.name == "POLICY_PROCESSES"
    two.check(terms(model="{kind: mlp, hidden: [4], norm: layer}"))
    two.check(terms(model="{kind: logistic}"))


def test_a_task_comes_back_as_it_was_written(tmp_path: Path) -> None:
    task = replace(task_of(terms("{name: scaffold}")), kept={"scaffold.control": np.ones(3, "f4")})
    exchange.write_task(tmp_path, task)
    found = exchange.read_task(tmp_path)
    assert (found.study, found.site, found.round_no) == (task.study, "north", 2)
    assert list(found.received.limits) == list(task.received.limits)
    for mine, back in (
        (task.data.features, found.data.features),
        (task.data.target, found.data.target),
        (task.received.weights, found.received.weights),
        (task.received.control, found.received.control),
        (task.kept["scaffold.control"], found.kept["scaffold.control"]),
    ):
        assert np.array_equal(mine, back)
        assert mine.shape == back.shape
