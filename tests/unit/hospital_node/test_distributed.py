"""One of several training processes: its share of a batch, and what it hands over."""

from __future__ import annotations

import socket
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common import models
from common.errors import DataError, FedError, Refusal, RoundError
from common.features import Encoded
from common.models import full_layout
from common.study import Study, parse_study
from hospital_node import distributed, exchange, train
from hospital_node.exchange import TrainingTask
from hospital_node.models import build
from hospital_node.strategies import LocalRound, Received
from hospital_node.train import MeanLoss, take_steps
from tests.learning import study
from tests.pictures import SIDE
from tests.pictures import STUDY as PICTURES

MARK = 1234567.25
"""A value of a row that nothing may repeat."""

MLP = "{kind: mlp, hidden: [5], norm: layer}"
STUDIES = {
    "binary": study(model=MLP),
    "weighted": study(model=MLP, train="{batch: 8, imbalance: weighted}"),
    "resampled": study(model=MLP, train="{batch: 8, imbalance: resampled}"),
    "focal": study(model=MLP, train="{batch: 8, imbalance: focal}"),
    "multiclass": study(model=MLP, target="{type: multiclass, name: y, levels: [a, b, c]}"),
    "linear": study(model="{kind: linear}", target="{type: continuous, name: y}"),
    "poisson": study(model="{kind: poisson}", target="{type: continuous, name: y}"),
    "cnn": parse_study(PICTURES),
}


def rows_of(terms: Study, count: int) -> Encoded:
    rng = np.random.default_rng(count)
    width = SIDE * SIDE if terms.model.kind == "cnn" else full_layout(terms).tensors[0].shape[1]
    features = rng.normal(size=(count, width)).astype(np.float32)
    return Encoded(features, (np.arange(count) % 5 == 0).astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(sorted(STUDIES)), count=st.integers(1, 30), world=st.integers(1, 9))
def test_the_shares_of_all_processes_add_up_to_the_gradient_of_the_batch(
    kind: str, count: int, world: int
) -> None:
    """Over the batches that training takes: uneven ones, and smaller ones than the processes."""
    terms, seen = STUDIES[kind], []

    def compare(module: nn.Module, mean: MeanLoss, *rows: Tensor) -> None:
        total = [torch.zeros_like(one) for one in module.parameters()]
        for rank in range(world):
            distributed.add_shares(rank, world, torch.device("cpu"), module, mean, *rows)
            for place, parameter in enumerate(module.parameters()):
                assert parameter.grad is not None
                total[place] += parameter.grad
        module.zero_grad()
        mean(module(rows[0]), *rows[1:]).backward()  # type: ignore[no-untyped-call]
        for one, parameter in zip(total, module.parameters(), strict=True):
            torch.testing.assert_close(one, parameter.grad, atol=1e-6, rtol=1e-4)
        seen.append(len(rows[0]))

    def run() -> None:
        train.gradient.set(compare)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("torch.distributed.all_reduce", lambda _: None)
            take_steps(terms, build(terms, models.initial(terms)), rows_of(terms, count), 1)

    copy_context().run(run)
    assert sum(seen) >= min(count, terms.train.batch)


# --- what lies in the folder ------------------------------------------------------------------


def task_of(count: int = 9) -> TrainingTask:
    terms = STUDIES["binary"]
    return TrainingTask(terms, rows_of(terms, count), Received(models.initial(terms)), {}, "north")


def test_a_task_comes_back_as_it_was_written(tmp_path: Path) -> None:
    task = task_of()
    data = Encoded(np.asfortranarray(task.data.features), task.data.target[::-1])
    received = Received(task.received.weights, np.arange(3, dtype=np.float32), [0.1, 1.5])
    task = replace(task, data=data, received=received, kept={"scaffold.control": np.ones(3, "f4")})
    exchange.write_task(tmp_path, task)
    found = exchange.read_task(tmp_path)
    assert (found.study, found.site) == (task.study, "north")
    assert found.received.limits == [0.1, 1.5]
    for mine, back in (
        (task.data.features, found.data.features),
        (task.data.target, found.data.target),
        (task.received.weights, found.received.weights),
        (task.received.control, found.received.control),
        (task.kept["scaffold.control"], found.kept["scaffold.control"]),
    ):
        np.testing.assert_array_equal(mine, back)


@pytest.fixture
def only_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables by which torchrun tells a process that it is the only one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(port))


def outcome(folder: Path, task: TrainingTask) -> LocalRound:
    """What the node makes of a process that ran over the task."""
    exchange.write_task(folder, task)
    try:
        return exchange.read_result(folder, copy_context().run(distributed.main, folder, "cpu"))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("only_process")
def test_one_process_finds_what_the_node_finds_to_the_bit(tmp_path: Path) -> None:
    task = task_of()
    found, expected = outcome(tmp_path, task), task.train()
    assert found.delta.tobytes() == expected.delta.tobytes()
    assert found.loss == expected.loss


@pytest.mark.usefixtures("only_process")
def test_what_a_process_meets_is_raised_as_if_the_node_had_trained(tmp_path: Path) -> None:
    task = task_of()
    task.data.features[3, 2] = np.inf
    for number, wrong in enumerate((task, task_of(0))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises((Refusal, DataError)) as here:
            wrong.train()
        with pytest.raises(type(here.value)) as there:
            outcome(tmp_path / str(number), wrong)
        assert str(there.value) == str(here.value)


@pytest.mark.usefixtures("only_process")
def test_a_failure_that_nobody_foresaw_is_told_by_its_kind_without_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(task: TrainingTask) -> LocalRound:
        raise ValueError(f"cannot train on {task.data.features}")

    monkeypatch.setattr(TrainingTask, "train", fail)
    task = task_of()
    task.data.features[0] = MARK
    with pytest.raises(RoundError, match=r"TRAINING_LOST: a training process failed: ValueError$"):
        outcome(tmp_path, task)
    assert str(MARK)[:6] not in (tmp_path / "failed.json").read_text()
    assert capfd.readouterr() == ("", "")


def test_processes_that_leave_no_word_are_named(tmp_path: Path) -> None:
    with pytest.raises(FedError, match=r"TRAINING_LOST: a training process ended early \(-9\)"):
        exchange.read_result(tmp_path, -9)
