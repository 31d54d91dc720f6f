"""The candidates for a hospital's personal model, fitted to some of its rows.

Every candidate is a flat weight vector of the study's layout, so that all are stored,
applied and explained in one way. Fine-tuning and Ditto take at least as many steps as the
federation's rounds did; fine-tuning is also looked at after a half, a quarter, ... of them.
Deterministic: the order of the rows follows from the study's seed and the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import Refusal
from common.features import Encoded
from common.models import layout
from common.study import Ditto, Study
from hospital_node.baselines import local_only
from hospital_node.evaluate import predict
from hospital_node.models import build, flatten
from hospital_node.train import loss, make_deterministic

Weights: TypeAlias = NDArray[np.float32]

LEAST_PASSES: Final = 20
"""Fine-tuning goes over the rows at least so often."""

HALVINGS: Final = 5
PULLS: Final = (0.1, 1.0)
"""Ditto's lambda, where the study's strategy states none."""

RIDGE: Final = 1.0
_NEWTON_STEPS: Final = 25
_LEAST_STEP: Final = 1e-6
_CLIP: Final = 1e-12


def fit(
    study: Study, site: str, data: Encoded, federated: Weights, family: str
) -> dict[str, Weights]:
    """Return the models of one family of candidates, by setting ("" where there is none).

    Raises:
        Refusal: INPUT_NAN, training gave a value that is not finite.
    """
    match family:
        case "federated":
            return {"": federated}
        case "recalibrated":
            return {"": recalibrated(study, data, federated)}
        case "fine-tuned":
            return _fine_tuned(study, site, data, federated)
        case "ditto":
            return {
                f"lambda {pull:g}": _follow(study, site, data, federated, (), pull)[-1][1]
                for pull in _pulls(study)
            }
        case _:
            return {"": local_only(study, {site: data})[site]}


def platt(logits: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, float]:
    """Return (a, b): `a + b logit` is the better calibrated logit (Platt 1999).

    Fitted by Newton's method with a ridge that holds (a, b) near (0, 1), so that a class
    of few or no patients moves it little. Platt's targets keep probabilities off 0 and 1.
    """
    sick = float(target.sum())
    high, low = (sick + 1) / (sick + 2), 1 / (len(target) - sick + 2)
    goal = np.where(target > 0, high, low)
    design = np.stack([np.ones_like(logits), logits], axis=1)
    ridge, centre = np.array([0.1 * RIDGE, RIDGE]), np.array([0.0, 1.0])

    def cost(at: NDArray[np.float64]) -> float:
        z = design @ at
        return float((np.logaddexp(0, z) - goal * z).sum() + ridge @ (at - centre) ** 2 / 2)

    at = centre.copy()
    for _ in range(_NEWTON_STEPS):
        p = np.exp(-np.logaddexp(0, -design @ at))
        gradient = design.T @ (p - goal) + ridge * (at - centre)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > _LEAST_STEP and cost(at - size * step) > cost(at):
            size /= 2  # far from the minimum a whole step can lead away from it
        at = at - size * step
    return float(at[0]), float(at[1])


def logit(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log odds, finite."""
    p = np.clip(probabilities, _CLIP, 1 - _CLIP)
    odds: NDArray[np.float64] = np.log(p / (1 - p))
    return odds


def recalibrated(study: Study, data: Encoded, federated: Weights) -> Weights:
    """Return the released model whose output is shifted and stretched to fit the rows.

    The map goes into the last layer. Several classes and other targets than a number and
    yes or no have none: then the model is returned as it is.
    """
    target = data.target.astype(np.float64)
    match study.target.type:
        case "binary":
            a, b = platt(logit(predict(study, federated, data.features)), target)
        case "continuous":
            found = predict(study, federated, data.features)
            spread = found - found.mean()
            b = float((spread @ target + RIDGE) / (spread @ spread + RIDGE))
            a = float(target.mean() - b * found.mean())
        case _:
            return federated
    schema = layout(study)
    values = {name: view.copy() for name, view in schema.views(federated).items()}
    last = max(int(name.split(".")[1]) for name in values if name.startswith("layers."))
    values[f"layers.{last}.weight"] *= np.float32(b)
    bias = values[f"layers.{last}.bias"]
    bias[:] = np.float32(b) * bias + np.float32(a)
    return schema.flatten(values)


def _fine_tuned(study: Study, site: str, data: Encoded, federated: Weights) -> dict[str, Weights]:
    whole = steps(study, data.rows)
    marks = [max(1, whole >> halving) for halving in range(HALVINGS, -1, -1)]
    found = _follow(study, site, data, federated, tuple(marks[:-1]), 0.0)
    names = [f"1/{1 << halving} of the steps" for halving in range(HALVINGS, 0, -1)]
    return {
        name: found[marks.index(mark)][1]
        for name, mark in zip([*names, "all steps"], marks, strict=True)
    }


def steps(study: Study, rows: int) -> int:
    """Return the steps of the longest fit: those of the federation's rounds, or more."""
    per_pass = -(-rows // study.train.batch)
    of_round = study.train.local_steps or per_pass * (study.train.local_epochs or 1)
    return max(study.federation.rounds * of_round, LEAST_PASSES * per_pass)


def _pulls(study: Study) -> tuple[float, ...]:
    strategy = study.federation.strategy
    return (strategy.lambda_,) if isinstance(strategy, Ditto) else PULLS


def _follow(
    study: Study,
    site: str,
    data: Encoded,
    start: Weights,
    marks: tuple[int, ...],
    pull: float,
) -> list[tuple[int, Weights]]:
    """Train on from `start`; return the weights after each mark and after the last step.

    `pull / 2` times the squared distance from `start` is added to the loss: after each of
    the optimiser's steps the weights take the step of that term, implicitly, so that no
    pull is too strong for the rate.
    """
    make_deterministic()
    module, schema = build(study, start), layout(study)
    features, target = torch.from_numpy(data.features), torch.from_numpy(data.target)
    optimiser = torch.optim.SGD(
        module.parameters(), study.train.lr, weight_decay=study.train.weight_decay
    )
    anchors = [parameter.detach().clone() for parameter in module.parameters()]
    whole, found = steps(study, data.rows), []
    stay = study.train.lr * pull / (1 + study.train.lr * pull)
    for step, batch in enumerate(_batches(study, site, data.rows, whole), start=1):
        optimiser.zero_grad()
        loss(study, module(features[batch]), target[batch]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if pull > 0:
            with torch.no_grad():
                for parameter, anchor in zip(module.parameters(), anchors, strict=True):
                    parameter.lerp_(anchor, stay)
        found += [(step, flatten(module, schema))] * (marks.count(step) + (step == whole))
    if not all(np.isfinite(weights).all() for _, weights in found):
        raise Refusal("INPUT_NAN", "training a personal model gave a value that is not finite")
    return found


def _batches(study: Study, site: str, rows: int, count: int) -> Iterator[torch.Tensor]:
    text = f"{study.id}/{study.seed}/{site}/personal"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    rng = np.random.Generator(np.random.PCG64(seed))
    while count > 0:
        order = torch.from_numpy(rng.permutation(rows))
        for start in range(0, rows, study.train.batch):
            if count == 0:
                return
            yield order[start : start + study.train.batch]
            count -= 1
