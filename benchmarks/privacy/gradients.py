"""From a gradient back to the records: closed form where there is one, else optimisation.

A linear layer's gradient is the sum over records of (signal that came back) x (record), and
its bias gradient the sum of the signals alone:

* one record: their quotient is the record (Geiping et al. 2020, proposition 3.1);
* several records, ReLU behind the layer: the gradient is a product of a sparse matrix of
  signals and the records, and the sparsity gives the factors away exactly as long as there
  are fewer records than columns (Dimitrov et al. 2024, "SPEAR");
* otherwise records are sought whose gradient is the given one (Zhu, Liu and Han 2019),
  labels included, by L-BFGS from random starts.

Nothing is known to the attacker but the model, the number of records, and each column's
public centre and spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.privacy.bounds import Floats

_ZERO: Final = 0.002
"""An entry this small against the largest counts as the zero of an inactive unit."""

_ALIVE: Final = 1e-4
"""A unit with a smaller share of the largest gradient is inactive for every record."""

_SURPLUS: Final = 3
"""Zeros beyond those that the sampling forces, for a direction to count as a record's."""

_SAME: Final = 1 - 1e-5
_MIXED: Final = 0.003
_AGREEMENT: Final = 0.95
_SINGULAR: Final = 1e-9
_BLOCK: Final = 4096
_MOST_BLOCKS: Final = 25
_MOST_DIRECTIONS: Final = 200
_STARTS: Final = 2
_STEPS: Final = 150
_MOST_SOUGHT: Final = 64


@dataclass(frozen=True, slots=True)
class Network:
    """A perceptron's tensors, weight and bias of each layer in turn, float64."""

    tensors: tuple[Floats, ...]

    @classmethod
    def of(cls, flat: Floats, widths: Sequence[int]) -> Network:
        """Cut a flat vector in layout order into the tensors of layers of these widths."""
        found, at = [], 0
        for inputs, outputs in pairwise(widths):
            for shape in ((outputs, inputs), (outputs,)):
                size = int(np.prod(shape))
                found.append(flat[at : at + size].astype(np.float64).reshape(shape))
                at += size
        return cls(tuple(found))


def invert(
    model: Network, gradient: Network, records: int, spread: tuple[Floats, Floats], seed: int
) -> Floats:
    """Return candidate records [some, columns] for a mean gradient over `records` records."""
    weight, bias = gradient.tensors[:2]
    if records == 1 or len(model.tensors) == 2:  # noqa: PLR2004 - one layer: logistic
        return quotients(weight, bias)[:1]
    if records < weight.shape[1] + 1:
        exact = by_sparsity(model, gradient, records, seed)
        if exact is not None:
            return exact
    if records > _MOST_SOUGHT:
        return quotients(weight, bias)
    return by_search(model, gradient, records, spread, seed)


def quotients(weight: Floats, bias: Floats) -> Floats:
    """Return each unit's weight gradient over its bias gradient, the surest unit first."""
    order = np.argsort(-np.abs(bias))
    order = order[np.abs(bias[order]) > 0]
    found: Floats = weight[order] / bias[order, np.newaxis]
    return found


# --- sparsity ------------------------------------------------------------------------------------


def by_sparsity(model: Network, gradient: Network, records: int, seed: int) -> Floats | None:
    """Return the records exactly, or None where no such factors were found.

    `gradient = signals^T [records | 1]`. Its singular vectors give the factors up to an
    invertible matrix; a column of that matrix is known from the units that are inactive for
    one record: their rows are orthogonal to it.
    """
    whole = np.column_stack(gradient.tensors[:2])
    left, sizes, right = np.linalg.svd(whole, full_matrices=False)
    rows = left[:, :records] * sizes[:records]
    lengths = np.linalg.norm(rows, axis=1)
    alive = lengths > lengths.max() * _ALIVE
    if alive.sum() < records or sizes[records - 1] <= sizes[0] * _SINGULAR:
        return None
    unit = rows[alive] / lengths[alive, np.newaxis]
    known = np.empty((0, records))
    rng = np.random.default_rng(seed)
    for _ in range(_MOST_BLOCKS):
        known = _distinct(np.concatenate([known, _sparse(unit, records, rng)]), unit)
        chosen = _independent(known, records)
        found = _records(chosen, right[:records])
        if found is not None and _agrees(model, found, chosen, unit, alive):
            return found
    return None


def _silent(unit: Floats, directions: Floats) -> NDArray[np.bool_]:
    """Return which units [directions, units] are inactive for the record of a direction."""
    values = np.abs(directions @ unit.T)
    found: NDArray[np.bool_] = values < _ZERO * values.max(axis=1, keepdims=True)
    return found


def _sparse(unit: Floats, records: int, rng: np.random.Generator) -> Floats:
    """Return directions orthogonal to more units than the records - 1 that were drawn."""
    picked = rng.random((_BLOCK, len(unit))).argpartition(records - 1)[:, : records - 1]
    null = np.linalg.svd(unit[picked], full_matrices=True)[2][:, -1, :]
    found: Floats = null[_silent(unit, null).sum(axis=1) >= records - 1 + _SURPLUS]
    return found


def _distinct(directions: Floats, unit: Floats) -> Floats:
    """Return the different ones of these directions, refined, the sparsest first."""
    order = np.argsort(-_silent(unit, directions).sum(axis=1), kind="stable")
    left = directions[order]
    found: list[Floats] = []
    while len(left) and len(found) < _MOST_DIRECTIONS:
        agreed = unit[_silent(unit, left[:1])[0]]
        q = np.linalg.svd(agreed, full_matrices=True)[2][-1] if len(agreed) else left[0]
        found.append(q)
        left = left[1:]
        left = left[np.abs(left @ q) < _SAME]
    ready = np.array(found).reshape(len(found), unit.shape[1])
    sparse = _silent(unit, ready).sum(axis=1)
    sparsest: Floats = ready[np.argsort(-sparse, kind="stable")]
    return sparsest


def _independent(directions: Floats, records: int) -> Floats:
    """Return the first so many that are no mixtures of those before.

    A mixture of two records' directions is orthogonal to the units inactive for both, so it
    is sparse as well, but less so than either.
    """
    basis = np.empty((0, records))
    found = []
    for q in directions:
        rest = q - (q @ basis.T) @ basis
        length = float(np.linalg.norm(rest))
        if length > _MIXED:
            found.append(q)
            basis = np.concatenate([basis, rest[np.newaxis] / length])
    return np.array(found).reshape(len(found), records)


def _records(directions: Floats, right: Floats) -> Floats | None:
    """Return the records that these directions stand for; their column of ones sets the scale."""
    if len(directions) < len(right) or np.linalg.cond(directions) > 1 / _SINGULAR:
        return None
    rows = np.linalg.solve(directions.T, right)
    found: Floats = rows[:, :-1] / rows[:, -1:]
    return found if np.isfinite(found).all() else None


def _agrees(
    model: Network, found: Floats, known: Floats, unit: Floats, alive: NDArray[np.bool_]
) -> bool:
    """Whether the records make inactive the units that their directions call so."""
    weight, bias = model.tensors[:2]
    off = (found @ weight.T + bias)[:, alive] <= 0
    return bool((off == _silent(unit, known)).mean() > _AGREEMENT)


# --- search --------------------------------------------------------------------------------------


def by_search(
    model: Network, gradient: Network, records: int, spread: tuple[Floats, Floats], seed: int
) -> Floats:
    """Return records whose gradient is the closest to the given one that was found."""
    centre, scale = (torch.from_numpy(part) for part in spread)
    wanted = [torch.from_numpy(part) for part in gradient.tensors]
    weights = [torch.from_numpy(part) for part in model.tensors]
    size = sum(float((part**2).sum()) for part in wanted)
    source = torch.Generator().manual_seed(seed)
    best, best_loss = torch.zeros(records, len(centre), dtype=torch.float64), float("inf")
    for _ in range(_STARTS):
        shape = (records, len(centre) + 1)
        free = torch.randn(shape, generator=source, dtype=torch.float64).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [free], max_iter=_STEPS, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure(free: Tensor = free, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            found = _gradient(weights, free[:, :-1] * scale + centre, torch.sigmoid(free[:, -1]))
            loss = torch.stack(
                [((a - b) ** 2).sum() for a, b in zip(found, wanted, strict=True)]
            ).sum()
            loss = loss / size
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        last = float(closure().detach())
        if last < best_loss:
            best, best_loss = free.detach()[:, :-1] * scale + centre, last
    found: Floats = best.numpy()
    return found


def _gradient(weights: list[Tensor], records: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the mean cross-entropy's gradient in closed form, itself differentiable."""
    signals, masks = [records], []
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        out = signals[-1] @ weight.T + bias
        masks.append((out > 0).to(out.dtype))
        signals.append(torch.relu(out))
    score = signals[-1] @ weights[-2].T + weights[-1]
    back = (torch.sigmoid(score) - labels.unsqueeze(1)) / len(records)
    found: list[Tensor] = []
    for layer in range(len(weights) // 2 - 1, -1, -1):
        found = [back.T @ signals[layer], back.sum(dim=0), *found]
        if layer:
            back = (back @ weights[2 * layer]) * masks[layer - 1]
    return found
