"""One process of several that take a hospital's training steps together.

    torchrun --standalone --nproc-per-node 2 -m hospital_node.distributed FOLDER cpu

Every process holds all rows and the same parameters, and goes through the same batches. Of a
batch of b rows process k of n takes every n-th row, from the k-th on, and the gradients of
the shares are added up, each weighted with its rows:

    g = sum over k of (b_k / b) g_k                           g_k: mean over the share

which is the gradient of the whole batch, also where the rows do not divide evenly (the mean
over processes that DistributedDataParallel takes is not). Each process then does the
optimiser's step and the strategy's part by itself, on equal numbers. So every strategy works
whose loss is a mean over rows. Sums are added in another order than one process adds them:
results agree to float32 rounding, not to the bit.

`hospital_node.launcher` starts the processes and reads what they leave in FOLDER.
"""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call

from hospital_node import exchange
from hospital_node.checkpoints import Keeper, PlainSlot, kept
from hospital_node.train import MeanLoss, gradient


def main(folder: Path, kind: str, every_s: float | None = None, how: str = "") -> int:
    """Train the round that lies in `folder`; the first process writes what came of it.

    `every_s`: how often it leaves how far it is; `how` the processes train, which that is for.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        gradient.set(partial(add_shares, rank, world, device))
        with kept(_keeper(folder, rank, every_s, how)):
            done = exchange.read_task(folder).train()
    except Exception as failure:  # noqa: BLE001 - told to the node, which knows what to do with it
        exchange.write_failure(folder, rank, failure)
        return 1
    if rank == 0:
        exchange.write_result(folder, done)
    dist.destroy_process_group()
    return 0


def _keeper(folder: Path, rank: int, every_s: float | None, how: str) -> Keeper | None:
    """Return what keeps checkpoints; all processes begin from the same, the first one writes."""
    if every_s is None:
        return None
    return Keeper(PlainSlot(folder, rank == 0), every_s if rank == 0 else float("inf"), how)


def add_shares(
    rank: int, world: int, device: torch.device, module: nn.Module, mean: MeanLoss, *rows: Tensor
) -> None:
    """Leave a batch's gradient in the module, of which this process computes a share.

    The module stays where it is; its parameters are copied to `device` for each step.
    """
    part = [values[rank::world].to(device) for values in rows]
    named = {
        name: value.detach().to(device).requires_grad_()
        for name, value in module.named_parameters()
    }
    sizes = [value.numel() for value in named.values()]
    flat = torch.zeros(sum(sizes), device=device)
    if len(part[0]) > 0:
        share = mean(functional_call(module, named, (part[0],)), *part[1:])
        found = torch.autograd.grad(share, list(named.values()))
        flat = torch.cat([one.reshape(-1) for one in found]) * (len(part[0]) / len(rows[0]))
    dist.all_reduce(flat)
    for parameter, whole in zip(module.parameters(), torch.split(flat.cpu(), sizes), strict=True):
        parameter.grad = whole.view_as(parameter)


def _end_with_node() -> None:
    """Wait until nobody holds the other end of standard input: the node ended, or gave up."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:  # one machine
        threading.Thread(target=_end_with_node, daemon=True).start()
    place, device_kind, *rest = sys.argv[1:]
    sys.exit(main(Path(place), device_kind, *((float(rest[0]), rest[1]) if rest else ())))
