"""Training in several processes: the update of one process, and every way to lose it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
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
from common.errors import ConfigError, FedError, PolicyRefusal, RoundError
from common.features import Encoded
from common.study import Study, parse_study
from hospital_node.config import NodeConfig, Training
from hospital_node.exchange import TrainingTask
from hospital_node.launcher import Launcher
from hospital_node.strategies import Received
from tests.learning import study
from tests.pictures import STUDY as PICTURES
from tests.private_study import private_study

MARK = 1234567.25
"""A value of a row that nothing may repeat."""

ENDLESS = "{lr: 0.0001, batch: 1, local_steps: 1000000}"


def terms(
    strategy: str = "{name: fedavg}", model: str = "{kind: mlp, hidden: [7]}", **more: str
) -> Study:
    federation = f"{{weights: equal, rounds: 3, strategy: {strategy}}}"
    return study(model=model, federation=federation, **more)


def task_of(given: Study) -> TrainingTask:
    """83 rows: neither they nor a batch of 9 divide by two, and the last batch is of 2."""
    rng = np.random.default_rng(2)
    features = rng.normal(size=(83, 6)).astype(np.float32)
    data = Encoded(features, (features[:, 0] > 0.5).astype(np.float32))
    start = models.initial(given) + np.float32(0.05)
    received = Received(start)
    if given.federation.strategy.name == "scaffold":
        control = np.linspace(-0.1, 0.1, start.size).astype(np.float32)
        received = Received(start, control, [1.0] * len(models.layout(given).tensors))
    return TrainingTask(given, data, received, {}, "north")


def never() -> bool:
    return False


@pytest.fixture
def two(tmp_path: Path) -> Launcher:
    return Launcher(Training(processes=2, limit_s=100.0), tmp_path)


def agree(launcher: Launcher, task: TrainingTask) -> None:
    """Train in processes, and hold what comes of it to what the node itself finds."""
    expected, found = task.train(), launcher.train(task, never)
    assert np.abs(expected.delta).max() > 0.01
    np.testing.assert_allclose(found.delta, expected.delta, atol=1e-5)
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert found.own.keys() == expected.own.keys() != set()
    for name, values in expected.own.items():
        np.testing.assert_allclose(found.own[name], values, atol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_update_of_one(two: Launcher) -> None:
    train = "{lr: 0.1, batch: 9, local_epochs: 2, imbalance: weighted}"
    agree(two, task_of(terms("{name: scaffold}", train=train)))
    assert list(two.root.iterdir()) == []


@pytest.mark.slow
def test_two_machines_give_the_update_of_one(tmp_path: Path) -> None:
    """Two agents that meet, as on two machines; a batch leaves one of them without a row."""
    script = tmp_path / "on_all.py"
    script.write_text(
        "import subprocess, sys\n"
        "both = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]\n"
        "sys.exit(max(one.wait() for one in both))\n"
    )
    folder = tmp_path / "shared"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    training = Training(
        machines=2, prefix=(sys.executable, str(script)), rendezvous=f"127.0.0.1:{port}",
        folder=str(folder), limit_s=100.0,
    )  # fmt: skip
    train = "{optimiser: adam, lr: 0.01, batch: 1, local_steps: 19}"
    agree(Launcher(training, folder), task_of(terms("{name: ditto, lambda: 0.5}", train=train)))


# --- ways to lose it --------------------------------------------------------------------------


def running(root: Path, *, agents: bool = True) -> list[int]:
    """The processes that work in a folder below `root`, torchrun's own if `agents`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            mine = any(word.startswith(f"{root}/training-") for word in words)
            if mine and (agents or "torch.distributed.run" not in words):
                found.append(int(path.parent.name))
    return found


def wait_until(reached: Callable[[], bool]) -> None:
    for _ in range(1200):
        if reached():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def wait_for_processes(root: Path) -> list[int]:
    wait_until(lambda: len(running(root, agents=False)) == 2)
    return running(root, agents=False)


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


@pytest.mark.slow
def test_a_killed_process_is_reported_and_nothing_stays(two: Launcher) -> None:
    thread, failures = in_background(lambda: two.train(task_of(terms(train=ENDLESS)), never))
    processes = wait_for_processes(two.root)
    assert all((path.stat().st_mode & 0o777) == 0o700 for path in two.root.iterdir())
    os.kill(processes[1], signal.SIGKILL)
    thread.join(50)
    assert [failure.name for failure in failures] == ["TRAINING_LOST"]
    assert "a training process ended early" in failures[0].detail
    assert running(two.root) == []
    assert list(two.root.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("agent", [False, True])
def test_a_killed_node_or_agent_takes_its_training_along(tmp_path: Path, *, agent: bool) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.unit.hospital_node import test_launcher as t\n"
        "two = t.Launcher(t.Training(processes=2), Path(sys.argv[1]))\n"
        "two.train(t.task_of(t.terms(train=t.ENDLESS)), t.never)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as node:
        processes = wait_for_processes(tmp_path)
        found = set(running(tmp_path)) - set(processes)
        assert len(found) == 1
        os.kill(found.pop() if agent else node.pid, signal.SIGKILL)
    wait_until(lambda: running(tmp_path) == [])


@pytest.mark.slow
def test_processes_that_take_too_long_or_are_no_longer_wanted_are_ended(two: Launcher) -> None:
    task = task_of(terms(train=ENDLESS))
    short = replace(two, training=Training(processes=2, limit_s=0.5))
    with pytest.raises(RoundError, match=r"TRAINING_LOST: training took longer than 0\.5 s"):
        short.train(task, never)
    wanted = threading.Event()
    thread, failures = in_background(lambda: two.train(task, wanted.is_set))
    wait_for_processes(two.root)
    wanted.set()
    thread.join(50)
    assert [failure.name for failure in failures] == ["RUN_CANCELLED"]
    assert running(two.root) == []


def test_a_row_that_a_process_prints_goes_nowhere(
    two: Launcher, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = f"import sys; print({MARK}); print({MARK}, file=sys.stderr); sys.exit({MARK})"
    monkeypatch.setattr(Launcher, "command", lambda *_, **__: [sys.executable, "-c", words])
    with pytest.raises(RoundError) as failure:
        two.train(task_of(terms()), never)
    assert str(failure.value).endswith("TRAINING_LOST: a training process ended early (1)")
    assert capfd.readouterr() == ("", "")
    assert list(two.root.iterdir()) == []


def test_a_launcher_that_is_not_there_is_named(tmp_path: Path) -> None:
    training = Training(
        machines=2, prefix=("/no/such/srun",), rendezvous="a:1", folder=str(tmp_path)
    )
    with pytest.raises(RoundError, match="training did not start: No such file"):
        Launcher(training, tmp_path).train(task_of(terms()), never)


# --- what the node's file asks for ------------------------------------------------------------


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
    yield parse_study(PICTURES.replace("norm: group", "norm: batch")), "batch normalisation"
    yield private_study(), "differential privacy"
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
        with pytest.raises(
            PolicyRefusal, match=rf"over processes \(2 on cpu\): .*{why}"
        ) as refusal:
            two.check(given)
        assert refusal.value.name == "POLICY_PROCESSES"
    for model in ("{kind: mlp, hidden: [4], norm: layer}", "{kind: logistic}"):
        two.check(terms(model=model))
    two.check(parse_study(PICTURES))
    two.check(terms("{name: newton}", "{kind: logistic}"))
