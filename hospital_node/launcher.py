"""Local training in several processes: `training` of the node's file, by torchrun.

    launcher = Launcher.of(config)              None: the node trains by itself
    done = launcher.train(task, abandoned)

The rows go to the processes as files of a private folder (`hospital_node.exchange`), which
goes when the round is over; a crash's folder goes at the next start. Processes that die, or
take longer than they may, cost the hospital the round and nothing else: all of them are
ended, and the reason is named. On one machine they end with the node, however that went.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from common.errors import ConfigError, PolicyRefusal, RoundError
from common.layouts import is_exact
from common.state_folder import disk_errors
from common.study import CnnModel, MlpModel, Study, VectorModel
from hospital_node import checkpoints
from hospital_node.config import NodeConfig, Training
from hospital_node.files import TEMPORARY

if TYPE_CHECKING:
    from hospital_node.exchange import TrainingTask
    from hospital_node.strategies import LocalRound

_LOOK_S: Final = 0.05
_GRACE_S: Final = 5.0
"""How long torchrun, or `prefix`, has to end what it started before it is killed."""


@dataclass(frozen=True, slots=True)
class Launcher:
    """Starts a round's processes; `root` is where their private folders are made."""

    training: Training
    root: Path

    @classmethod
    def of(cls, config: NodeConfig) -> Self | None:
        """Return the launcher that the node's file asks for, if any.

        Raises:
            ConfigError: BAD_VALUE, this machine has fewer GPUs than processes.
        """
        training = config.training
        if not training.launched:
            return None
        if training.device == "cuda":
            _check_gpus(training.processes)
        return cls(training, config.path(training.folder or config.state_dir))

    def check(self, study: Study) -> None:
        """Refuse a study whose training does not split over processes.

        Raises:
            PolicyRefusal: POLICY_PROCESSES.
        """
        why, training = _unsplit(study), self.training
        if why is not None:
            where = f"{training.everywhere} on {training.device}"
            raise PolicyRefusal(
                "POLICY_PROCESSES", f"this hospital trains over processes ({where}): {why}"
            )

    def train(self, task: TrainingTask, abandoned: Callable[[], bool]) -> LocalRound:
        """Train one round; see `TrainingTask.train`. Blocking.

        Raises:
            DataError, Refusal: as if the node trained. StateError: DISK.
            RoundError: TRAINING_LOST; RUN_CANCELLED, `abandoned` said so.
        """
        from hospital_node import exchange

        keeper = checkpoints.here()
        with disk_errors(self.root):
            folder = Path(tempfile.mkdtemp(prefix="training-", suffix=TEMPORARY, dir=self.root))
        try:
            with disk_errors(folder):
                exchange.write_task(folder, task)
            return exchange.read_result(folder, self._run(folder, abandoned, keeper))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def command(self, folder: Path, *, kept: bool = False) -> list[str]:
        """Return what starts the processes of this machine, or with `prefix` of all.

        `kept`: they leave checkpoints.
        """
        training = self.training
        where = ["--standalone", "--local-addr=127.0.0.1"]
        if training.machines > 1:
            where = [
                f"--nnodes={training.machines}", "--rdzv-backend=c10d",
                f"--rdzv-endpoint={training.rendezvous}", f"--rdzv-id={folder.name}",
            ]  # fmt: skip
        return [
            *training.prefix, sys.executable, "-m", "torch.distributed.run", *where,
            f"--nproc-per-node={training.processes}", "--max-restarts=0",
            "-m", "hospital_node.distributed", str(folder), training.device,
            *((repr(training.checkpoint_s), self.how) if kept else ()),
        ]  # fmt: skip

    @property
    def how(self) -> str:
        """What the bits of a result follow from, besides its input."""
        return f"{self.training.everywhere} {self.training.device}"

    def _run(
        self, folder: Path, abandoned: Callable[[], bool], keeper: checkpoints.Keeper | None
    ) -> int:
        """Run torchrun to its end; return its exit code."""
        limit = self.training.limit_s
        ends = time.monotonic() + limit
        slot = None if keeper is None else checkpoints.Handed(keeper.slot, folder)
        if slot is not None:
            slot.give()
        process = self._start(folder, kept=slot is not None)
        try:
            while process.poll() is None:
                if slot is not None:
                    slot.take()
                if abandoned():
                    raise RoundError("RUN_CANCELLED", "the round ended during training")
                if time.monotonic() > ends:
                    raise RoundError("TRAINING_LOST", f"training took longer than {limit:g} s")
                time.sleep(_LOOK_S)
            if slot is not None:
                slot.take()
            return process.returncode
        finally:
            _end(process)

    def _start(self, folder: Path, *, kept: bool) -> subprocess.Popen[bytes]:
        """Start torchrun, with this process' import path and no other.

        What the processes print is not kept: a traceback may show a row.
        """
        variables = {
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS refuses to be deterministic
        }
        if self.training.machines == 1:
            variables |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        try:
            return subprocess.Popen(  # noqa: S603 - the command is of the hospital's own file
                self.command(folder, kept=kept),
                cwd=folder,
                env=variables,
                stdin=subprocess.PIPE,  # nothing is written: it closes when the node ends
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as failure:
            said = f"training did not start: {failure.strerror}"
            raise RoundError("TRAINING_LOST", said) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what still runs: politely, so that `prefix` ends all of its own; then at once."""
    with process:  # closes its input, so that what torchrun left behind ends, and waits for it
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _unsplit(study: Study) -> str | None:
    """Return why a study's training needs one process; None: it does not, or nothing is trained."""
    if study.kind == "statistics" or isinstance(study.model, VectorModel) or is_exact(study):
        return None
    if study.privacy.dp.on:
        return "differential privacy draws patients and noise once for a hospital"
    if study.target.type == "survival":
        return "a Cox loss compares the rows of a batch with each other"
    if isinstance(study.model, MlpModel | CnnModel) and study.model.norm == "batch":
        return "batch normalisation takes its mean over the whole batch"
    return None


def _check_gpus(processes: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < processes:
        raise ConfigError(
            "BAD_VALUE",
            f"training: {processes} processes on cuda, but this machine shows {found} GPUs",
            fix="Lower training.processes, or make the GPUs visible to the node.",
        )
