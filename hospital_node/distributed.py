"""One process of several that take a hospital's training steps together.

    torchrun --standalone --nproc-per-node 2 -m hospital_node.distributed FOLDER

Every process holds all rows and the same parameters, and goes through the same batches. Of a
batch of b rows process k of n takes every n-th row, from the k-th on, and the gradients of
the shares are added up, each weighted with its rows:

    g = sum over k of (b_k / b) g_k                           g_k: mean over the share

which is the gradient of the whole batch, also where the rows do not divide evenly (the mean
over processes that DistributedDataParallel takes is not). Each process then does the
optimiser's step and the strategy's part by itself, on equal numbers. So every strategy works
whose loss is a mean over rows. Sums are added in another order than one process adds them:
results agree to float32 rounding, not to the bit.

`hospital_node.launcher` writes the folder, starts the processes and reads what they leave.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from common.errors import FedError, InternalError
from common.study import Study
from hospital_node import exchange
from hospital_node.strategies import local_round
from hospital_node.train import loss, sharing

_PR_SET_PDEATHSIG: Final = 1


def main(folder: Path) -> int:
    """Train the round that lies in `folder`; the first process writes what came of it."""
    _end_with_parent()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    task = exchange.read_task(folder)
    device = torch.device("cpu")
    if task.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with sharing(gradient_of_shares(rank, world, device)):
            done = local_round(
                task.study, task.data, task.received, task.kept,
                site=task.site, round_no=task.round_no,
            )  # fmt: skip
    except Exception as failure:  # noqa: BLE001 - told to the node, which knows what to do with it
        if rank == 0:
            known = failure if isinstance(failure, FedError) else None
            exchange.write_failure(folder, known or InternalError(type(failure).__name__))
        return 1
    if rank == 0:
        exchange.write_result(folder, done)
    dist.destroy_process_group()
    return 0


def gradient_of_shares(
    rank: int, world: int, device: torch.device
) -> Callable[[Study, nn.Module, Tensor, Tensor], None]:
    """Return what leaves a batch's gradient in the module, of which `rank` computes a share.

    The module stays where it is; its parameters are copied to `device` for each step.
    """

    def gradient(study: Study, module: nn.Module, features: Tensor, target: Tensor) -> None:
        own = slice(rank, None, world)
        part, labels = features[own].to(device), target[own].to(device)
        named = {
            name: value.detach().to(device).requires_grad_()
            for name, value in module.named_parameters()
        }
        flat = torch.zeros(sum(value.numel() for value in named.values()), device=device)
        if len(part) > 0:
            mean = loss(study, functional_call(module, named, (part,)), labels)
            found = torch.autograd.grad(mean, list(named.values()))
            flat = torch.cat([one.reshape(-1) for one in found]) * (len(part) / len(features))
        dist.all_reduce(flat)
        _leave(module, flat.to("cpu"))

    return gradient


def _leave(module: nn.Module, flat: Tensor) -> None:
    """Leave a flat gradient where the optimiser looks for it."""
    start = 0
    for parameter in module.parameters():
        end = start + parameter.numel()
        parameter.grad = flat[start:end].view_as(parameter)
        start = end


def _end_with_parent() -> None:
    """Have the kernel end this process with torchrun, which gives it a session of its own."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
