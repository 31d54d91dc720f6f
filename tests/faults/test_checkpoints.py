"""A node killed in training goes on from its last checkpoint, and nothing in the result shows it.

The oracle is the undisturbed training: update, loss and what stays at the hospital, to the bit.
"""

from __future__ import annotations

import errno
import io
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common import failpoints
from common.clock import ManualClock
from common.entropy import OsEntropy
from common.errors import RoundError, StateError
from common.features import Encoded
from common.ids import HeaderDigest
from common.logs import make_log
from common.secret import Secret
from hospital_node import checkpoints
from hospital_node.checkpoints import CheckpointFolder, Keeper, SealedSlot, kept
from hospital_node.config import Training
from hospital_node.exchange import TrainingTask
from hospital_node.going_on import asked
from hospital_node.launcher import Launcher
from hospital_node.sealing import KEY_BYTES, Vault
from tests.faults.budget import trials
from tests.faults.record import record, record_drawn
from tests.faults.training import ADAM, STUDIES, Died, Memory, Run, bits, steps_of, task_of
from tests.learning import study

HD = HeaderDigest(b"h" * 32)
OTHER = HeaderDigest(b"o" * 32)


# --- F09: killed in training ---------------------------------------------------------------------


@pytest.mark.fault("F09")
@pytest.mark.parametrize("name", STUDIES)
def test_training_killed_at_any_step_ends_in_the_same_bits(name: str) -> None:
    task = task_of(STUDIES[name])
    alone, whole = bits(task.train()), steps_of(task)
    rng = np.random.default_rng(len(name))
    wasted, done = 0, trials(change=6, nightly=60, release=200)
    for _ in range(done):
        slot, left = Memory(), whole
        for _ in range(2):  # killed twice on its way
            step = int(rng.integers(1, left)) if left > 1 else 0
            with pytest.raises(Died):
                Run(step).train(task, slot, 1.0)
            left -= step
        last = Run()
        assert bits(last.train(task, slot, 1.0)) == alone
        wasted += last.taken - left
        assert set(slot.said) == {"resumed"}
    assert wasted == 0, "a checkpoint after each step leaves nothing to be trained twice"
    record_drawn("F09", trials=done, failures=0, steps_trained_twice=wasted)


@pytest.mark.fault("F09")
def test_what_is_trained_twice_is_less_than_lies_between_two_checkpoints() -> None:
    task = task_of(STUDIES["ditto and adam"])
    alone, whole = bits(task.train()), steps_of(task)
    every, wasted = whole // 6, []
    for step in range(1, whole):
        slot, last = Memory(), Run()
        with pytest.raises(Died):
            Run(step).train(task, slot, every)
        assert bits(last.train(task, slot, every)) == alone
        assert 0 <= last.taken - (whole - step) < every
        wasted.append(last.taken - (whole - step))
        assert slot.content is not None
    record(
        "F09", trials=len(wasted), failures=0, checkpoint_interval_of_round_share=every / whole,
        round_trained_twice_max_share=max(wasted) / whole,
        round_trained_twice_on_average_share=float(np.mean(wasted)) / whole,
    )  # fmt: skip


@pytest.mark.fault("F09")
def test_a_quick_round_writes_nothing_and_a_slow_disk_is_asked_less_often() -> None:
    task, slot = task_of(STUDIES["sgd"]), Memory()
    Run().train(task, slot, 60.0)
    assert slot.content is None
    clock, saved = ManualClock(), []

    @dataclass
    class Slow(Memory):
        def save(self, content: bytes) -> None:
            clock.advance(3.0)
            saved.append(clock.monotonic())

    keeper = Keeper(Slow(), 10.0, now=clock.monotonic)
    keeper.begin(lambda: b"o" * 32, lambda _: True)
    for _ in range(2000):
        clock.advance(1.0)
        if keeper.due():
            keeper.save(1, {})
    assert saved[0] == 13.0
    assert all(b - a >= 3.0 / checkpoints.SHARE for a, b in pairwise(saved))
    assert 3.0 * len(saved) <= 2 * checkpoints.SHARE * clock.monotonic()


WIDE = "{kind: mlp, hidden: [1000, 985]}"
"""A million parameters."""


@pytest.mark.nightly
@pytest.mark.fault("F09")
@pytest.mark.timeout(600)
def test_what_checkpoints_cost_is_measured(folder: CheckpointFolder) -> None:
    """Four seconds of training and more, once without and once with a checkpoint each second."""
    task = task_of(
        study(model=WIDE, train="{optimiser: adam, lr: 0.01, batch: 64, local_steps: 250}")
    )
    task = replace(task, data=task_of(STUDIES["sgd"], rows=2_000).data)
    written = 0

    @dataclass(frozen=True)
    class Counting(SealedSlot):
        def save(self, content: bytes) -> None:
            nonlocal written
            written += 1
            super().save(content)

    def seconds(every_s: float | None) -> tuple[float, float]:
        folder.drop(HD)
        folder.want(HD)
        slot = Counting(folder, HD, make_log(io.StringIO()))
        wall, cpu = time.monotonic(), time.process_time()
        with kept(None if every_s is None else Keeper(slot, every_s)):
            task.train()
        return time.monotonic() - wall, time.process_time() - cpu

    seconds(None)
    pairs = [(seconds(None), seconds(1.0)) for _ in range(5)]
    figures = {
        f"{name}_{unit}_s": round(float(np.median([pair[with_][place] for pair in pairs])), 3)
        for with_, name in enumerate(("without", "with"))
        for place, unit in enumerate(("wall", "cpu"))
    }
    record(
        "F09", trials=5, failures=0, checkpoints_per_training=written / 5, interval_s=1.0, **figures
    )


# --- F40: what lies there is not what was written -------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path, Vault(Secret(b"k" * KEY_BYTES), OsEntropy()))


def half_trained(folder: CheckpointFolder, hd: HeaderDigest, task: TrainingTask, step: int) -> None:
    folder.want(hd)
    with pytest.raises(Died):
        Run(step).train(task, SealedSlot(folder, hd, make_log(io.StringIO())), 1.0)


@pytest.mark.fault("F40")
@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "foreign header", "other key"])
def test_a_checkpoint_that_does_not_open_is_ignored_and_said(
    folder: CheckpointFolder, tmp_path: Path, damage: str
) -> None:
    task, other = task_of(STUDIES["adam"]), task_of(STUDIES["adam"], rows=97)
    alone, whole = bits(task.train()), steps_of(task)
    half_trained(folder, HD, task, whole // 2)
    path, rng = folder.path(HD), np.random.default_rng(1)
    good = path.read_bytes()
    sealed = folder
    cases = 1 if damage != "flipped" else trials(change=30, nightly=500, release=2000)
    for _ in range(cases):
        bad = bytearray(good)
        match damage:
            case "flipped":
                bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
            case "truncated":
                del bad[int(rng.integers(len(bad))) :]
            case "empty":
                bad.clear()
            case "foreign header":
                half_trained(folder, OTHER, other, 3)
                bad = bytearray(folder.path(OTHER).read_bytes())
            case _:
                sealed = CheckpointFolder(tmp_path, Vault(Secret(b"x" * KEY_BYTES), OsEntropy()))
        path.write_bytes(bad)
        with pytest.raises(StateError, match="STATE_DAMAGED"):
            sealed.load(HD)
    words, run = io.StringIO(), Run()
    found = run.train(task, SealedSlot(sealed, HD, make_log(words)), float("inf"))
    assert (bits(found), run.taken) == (alone, whole)
    assert "checkpoint.ignored" in words.getvalue()
    (record_drawn if damage == "flipped" else record)("F40", trials=cases, failures=0)


@pytest.mark.fault("F40")
@pytest.mark.parametrize(
    "change",
    ["rows", "a label", "order of rows", "seed", "learning rate", "model", "software", "processes"],
)
def test_a_checkpoint_of_something_else_is_not_gone_on_from(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, slot = task_of(STUDIES["adam"]), Memory()
    with pytest.raises(Died):
        Run(9).train(task, slot, 1.0)
    how = "1"
    match change:
        case "rows":
            task = task_of(STUDIES["adam"], rows=84)
        case "a label":
            task.data.target[5] = 1 - task.data.target[5]
        case "order of rows":
            turned = Encoded(task.data.features[::-1].copy(), task.data.target[::-1].copy())
            task = replace(task, data=turned)
        case "seed":
            task = replace(task, site="south")
        case "learning rate":
            terms = task.study.train.model_copy(update={"lr": 0.02})
            task = replace(task, study=task.study.model_copy(update={"train": terms}))
        case "model":
            task = task_of(study(train=ADAM))
        case "software":
            monkeypatch.setattr("hospital_node.snapshot.VERSION", "0.0.0")
        case _:
            how = "2 cpu"
    alone, run = bits(task.train()), Run()
    with kept(Keeper(slot, float("inf"), how, now=run.clock.monotonic)), asked(run):
        assert bits(task.train()) == alone
    assert run.taken + 1 == steps_of(task)
    assert [said.partition(":")[0] for said in slot.said] == ["ignored"]


@pytest.mark.fault("F40")
def test_a_state_of_another_shape_is_not_put_into_a_module() -> None:
    task, slot = task_of(STUDIES["adam"]), Memory()
    with pytest.raises(Died):
        Run(9).train(task, slot, 1.0)
    assert slot.content is not None
    [progress] = checkpoints._unpack(slot.content)
    names = sorted(progress.arrays)
    for name in names[:2], names[-3:-1]:
        for wider in (True, False):
            arrays = progress.arrays | {
                one: np.append(progress.arrays[one], np.float32(0))
                if wider
                else progress.arrays[one].astype(np.float64)
                for one in name
            }
            forged = replace(progress, arrays=arrays)
            damaged = Memory(checkpoints._pack([forged]))
            assert Run().train(task, damaged, float("inf")).delta.any()
            assert damaged.said[0].startswith("ignored")
    for content in (b"", b"x" * 100, slot.content[:-5], b"\xff" * 8 + slot.content[8:]):
        damaged = Memory(content)
        Run().train(task, damaged, float("inf"))
        assert damaged.said[0].startswith("ignored")


# --- what lies on disk, and for how long ----------------------------------------------------------


@pytest.mark.fault("F40")
def test_a_checkpoint_is_sealed_and_only_its_owner_reads_it(folder: CheckpointFolder) -> None:
    task = task_of(STUDIES["sgd"])
    half_trained(folder, HD, task, 5)
    content = folder.load(HD)
    assert content is not None
    [progress] = checkpoints._unpack(content)
    weights = progress.arrays["model/layers.0.weight"].tobytes()
    assert weights in content
    assert weights not in folder.path(HD).read_bytes()
    assert folder.path(HD).stat().st_mode & 0o777 == 0o600


@pytest.mark.fault("F09")
def test_a_state_that_is_too_large_is_said_once_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, slot = task_of(STUDIES["adam"]), Memory()
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 100)
    assert bits(Run().train(task, slot, 1.0)) == bits(task.train())
    assert slot.content is None
    assert len(slot.said) == 1
    assert "the most is 100" in slot.said[0]


@pytest.mark.fault("F09")
def test_no_checkpoint_outlives_its_round(folder: CheckpointFolder) -> None:
    task = task_of(STUDIES["sgd"])
    half_trained(folder, HD, task, 5)
    half_trained(folder, OTHER, task, 5)
    folder.keep(frozenset({HD}))
    assert folder.path(HD).exists()
    assert not folder.path(OTHER).exists()
    folder.drop(HD)
    folder.save(HD, b"written by a step that was under way when the round ended")
    assert not folder.path(HD).exists()


@pytest.mark.fault("F37")
def test_a_full_disk_costs_the_checkpoint_and_not_the_round(
    folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, words = task_of(STUDIES["adam"]), io.StringIO()
    alone = bits(task.train())
    half_trained(folder, HD, task, 3)
    before = folder.path(HD).read_bytes()

    def full(_: str) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    failpoints.install(full)
    try:
        done = Run().train(task, SealedSlot(folder, HD, make_log(words)), 1.0)
    finally:
        failpoints.install(None)
    assert bits(done) == alone
    assert words.getvalue().count("checkpoint.ignored") == 1, "it is tried once a round"
    assert folder.path(HD).read_bytes() == before
    assert len(list(folder.path(HD).parent.iterdir())) == 1, "and nothing half written stays"


# --- several processes ----------------------------------------------------------------------------

LONG = study(
    model="{kind: mlp, hidden: [7]}",
    train="{optimiser: adam, lr: 0.01, batch: 9, local_steps: 400}",
    federation="{weights: equal, rounds: 3, strategy: {name: ditto, lambda: 0.5}}",
)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.fault("F09")
@pytest.mark.timeout(600)
def test_training_of_several_processes_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    # Checkpoints from the first step on: hundreds of steps are left when one is seen here.
    two = Launcher(Training(processes=2, limit_s=240.0, checkpoint_s=0.001), tmp_path)
    task, slot = task_of(LONG), Memory()
    alone = bits(two.train(task, lambda: False))
    ends = time.monotonic() + 240

    def reached() -> int:
        stored = [] if slot.content is None else checkpoints._unpack(slot.content)
        return sum(one.steps for one in stored)

    def died() -> bool:
        assert time.monotonic() < ends
        return reached() > 20

    with kept(Keeper(slot, 0.001)), pytest.raises(RoundError, match="RUN_CANCELLED"):
        two.train(task, died)
    killed_at = reached()
    assert killed_at < 800
    with kept(Keeper(slot, 0.001)):
        assert bits(two.train(task, lambda: False)) == alone
    assert slot.said[0] == "resumed"
    record("F09", trials=1, failures=0, steps_before_the_kill=killed_at)
