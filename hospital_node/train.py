"""One round of local training: a model vector in, the change it asks for out.

Deterministic: the order of the rows follows from the study's seed, the site and the
round, torch runs on one thread with deterministic algorithms. The optimiser starts
afresh each round, so that a hospital that missed rounds trains like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Concatenate, Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import DataError, Refusal
from common.features import Encoded
from common.models import LOSS_LIMIT, full_layout, split_own
from common.study import Study, Train
from hospital_node import checkpoints, losses
from hospital_node.going_on import go_on
from hospital_node.imbalance import balanced_order, class_weights, focal
from hospital_node.models import build, flatten
from hospital_node.snapshot import fits, made_of, put_back, snapshot


@dataclass(frozen=True, slots=True)
class Update:
    """What a hospital's training found.

    `delta` float32 [d]: trained minus received model, in layout order. `loss`: mean loss
    of the *received* model over the training rows, at most `LOSS_LIMIT`. `steps` taken.
    """

    delta: NDArray[np.float32]
    loss: float
    steps: int


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a strategy does at every local step (`hospital_node.strategies`).

    `gradients` may change the gradients before the optimiser's step, `after` the
    parameters after it. In a round they keep nothing from one step to the next: a checkpoint
    (`hospital_node.checkpoints`) does not know of it.
    """

    gradients: Callable[[nn.Module], None] | None = None
    after: Callable[[nn.Module], None] | None = None


PLAIN: Final = Hooks()

MeanLoss: TypeAlias = Callable[..., Tensor]
"""The mean loss over some rows: of outputs, targets and (`weighted`) the rows' weights."""

Gradient: TypeAlias = Callable[Concatenate[nn.Module, MeanLoss, ...], None]
"""Leaves a batch's gradient in the module; behind the loss come its features, targets, weights."""


def _whole(module: nn.Module, mean: MeanLoss, features: Tensor, *rest: Tensor) -> None:
    mean(module(features), *rest).backward()  # type: ignore[no-untyped-call]


gradient: Final[ContextVar[Gradient]] = ContextVar("gradient", default=_whole)
"""Where each step takes its gradient from; `hospital_node.distributed` puts another here."""


def train(
    study: Study,
    data: Encoded,
    model: NDArray[np.float32],
    *,
    site: str,
    hooks: Hooks = PLAIN,
) -> Update:
    """Train the received flat `model` on one hospital's rows for one round.

    `model` is in `layout`, or in `full_layout` where the hospital's own tensors are part of
    it; the update has its form.

    Raises:
        DataError: DATA_EMPTY, there is no training row; DATA_LABEL, a count is below 0.
        Refusal: INPUT_NAN, training led to a value that is not finite.
    """
    if data.rows == 0:
        raise DataError("DATA_EMPTY", f"{site} has no training row")
    if study.model.kind == "poisson" and (data.target < 0).any():
        raise DataError("DATA_LABEL", f"{site} has a count below 0, which a Poisson model cannot")
    module = build(study, model)
    first_loss = mean_loss(study, module, data)
    steps = take_steps(study, module, data, order_seed(study, site, model), hooks)
    full = flatten(module, full_layout(study))
    trained = full if full.size == model.size else split_own(study, full)[0]
    delta = trained - model
    if not (np.isfinite(delta).all() and np.isfinite(first_loss)):
        raise Refusal("INPUT_NAN", "training gave a value that is not finite")
    return Update(delta, min(first_loss, LOSS_LIMIT), steps)


def mean_loss(study: Study, module: nn.Module, data: Encoded) -> float:
    """Return the loss over all rows, each normalised as in prediction."""
    make_deterministic()
    module.eval()
    with torch.no_grad():
        outputs = module(torch.from_numpy(data.features))
        return float(loss(study, outputs, torch.from_numpy(data.target)))


def take_steps(
    study: Study,
    module: nn.Module,
    data: Encoded,
    seed: int,
    hooks: Hooks = PLAIN,
    terms: Train | None = None,
) -> int:
    """Train the module in place over the batches that `seed` draws; return their number.

    `terms` are the study's unless others are given. Interruptible before each step. Goes on
    from a checkpoint, and leaves some, where `hospital_node.checkpoints` is asked to.
    """
    make_deterministic()
    terms = study.train if terms is None else terms
    optimiser, keeper = _optimiser(terms, module), checkpoints.here()
    steps = 0
    if keeper is not None:
        steps = _resumed(keeper, module, optimiser, partial(made_of, study, data, seed, terms))
    module.train()
    labels = data.target if terms.imbalance == "resampled" else None
    take = _stepper(study, module, data, hooks, terms, optimiser)
    for batch in islice(_batches(terms, data.rows, seed, labels), steps, None):
        go_on()
        take(batch)
        steps += 1
        if keeper is not None and keeper.due():
            keeper.save(steps, snapshot(module, optimiser))
    if keeper is not None:
        keeper.end(steps, snapshot(module))
    return steps


def _stepper(
    study: Study,
    module: nn.Module,
    data: Encoded,
    hooks: Hooks,
    terms: Train,
    optimiser: torch.optim.Optimizer,
) -> Callable[[Tensor], None]:
    """Return what takes one step on the rows of a batch."""
    rows = [torch.from_numpy(data.features), torch.from_numpy(data.target)]
    if terms.imbalance == "weighted":
        rows.append(class_weights(rows[1]))
    mean, parameters = partial(_training_loss, study, terms), list(module.parameters())
    take = gradient.get()

    def step(batch: Tensor) -> None:
        for parameter in parameters:
            parameter.grad = None  # the optimiser's zero_grad, without its profiling
        take(module, mean, *(values[batch] for values in rows))
        if hooks.gradients is not None:
            hooks.gradients(module)
        optimiser.step()
        if hooks.after is not None:
            hooks.after(module)

    return step


def _resumed(
    keeper: checkpoints.Keeper,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    of: Callable[[str], bytes],
) -> int:
    """Put back what an earlier process had, if there is anything; return how far it got."""
    found = keeper.begin(partial(of, keeper.how), partial(fits, module, optimiser))
    if found is None:
        return 0
    put_back(module, optimiser, found.arrays)
    return found.steps


def make_deterministic() -> None:
    """One thread and deterministic algorithms: equal input gives equal bits."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)


def _training_loss(
    study: Study, terms: Train, outputs: Tensor, target: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the mean loss under `train.imbalance`; rows weigh as `weights` says, if given."""
    if weights is None and terms.imbalance != "focal":
        return loss(study, outputs, target)
    if study.target.type == "binary":
        rows = nn.functional.binary_cross_entropy_with_logits(
            outputs[:, 0], target, reduction="none"
        )
    else:
        rows = nn.functional.cross_entropy(outputs, target.long(), reduction="none")
    return (focal(rows) if weights is None else weights * rows).mean()


def loss(study: Study, outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss: cross-entropy in nats, the squared error of a number, or `losses`'."""
    if study.model.kind == "poisson":
        return losses.poisson(outputs[:, 0], target)
    match study.target.type:
        case "survival":
            return losses.cox(outputs[:, 0], target)
        case "binary":
            return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], target)
        case "multiclass":
            return nn.functional.cross_entropy(outputs, target.long())
        case _:
            return nn.functional.mse_loss(outputs[:, 0], target)


def _optimiser(terms: Train, module: nn.Module) -> torch.optim.Optimizer:
    if terms.optimiser == "adam":
        return torch.optim.Adam(module.parameters(), terms.lr, weight_decay=terms.weight_decay)
    return torch.optim.SGD(module.parameters(), terms.lr, weight_decay=terms.weight_decay)


def order_seed(study: Study, site: str, model: NDArray[np.float32]) -> int:
    """Return what the order of a hospital's rows follows from, where it starts from `model`.

    Not from the round's number: a round that is voided and opened again asks for the same
    update, so what went wrong in between leaves no trace in the result.
    """
    digest = hashlib.sha256(f"{study.id}/{study.seed}/{site}/".encode())
    digest.update(np.ascontiguousarray(model, "<f4").data)
    return int.from_bytes(digest.digest()[:8], "big")


def _batches(
    terms: Train, rows: int, seed: int, labels: NDArray[np.float32] | None = None
) -> Iterator[Tensor]:
    """Yield row numbers of each batch: shuffled passes, the last batch of a pass shorter.

    A round is `local_epochs` passes, or `local_steps` batches over as many passes as needed.
    With `labels` each pass draws its classes equally often.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    per_pass = -(-rows // terms.batch)
    steps = terms.local_steps or per_pass * (terms.local_epochs or 1)
    while steps > 0:
        order = torch.from_numpy(
            rng.permutation(rows) if labels is None else balanced_order(labels, rng)
        )
        for start in range(0, rows, terms.batch):
            if steps == 0:
                return
            yield order[start : start + terms.batch]
            steps -= 1
