"""The candidates for a hospital's personal model, fitted to some of its rows.

Every candidate is a flat weight vector of everything the study's model has (`full_layout`),
so that all are stored, applied and explained in one way. For an exact regression `ditto` is
the exact minimum of the penalised loss, `own` the exact fit with at least a small ridge, and
there is no `fine-tuned`: stopping early has no meaning where nothing is done in steps.

Fine-tuning and Ditto take at least as many of the study's optimiser's steps as the
federation's rounds did; fine-tuning is also looked at after a half, a quarter, ... of them.
Deterministic: the order of the rows follows from the study's seed and the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn

from common.errors import Refusal
from common.features import Encoded
from common.layouts import is_exact
from common.models import full_layout, is_norm, split_own, with_own
from common.regression.sums import Sums, sums_of
from common.study import Ditto, FedBn, Newton, Study
from hospital_node.baselines import local_only
from hospital_node.evaluate import predict
from hospital_node.going_on import go_on
from hospital_node.models import build, flatten
from hospital_node.personal_state import DITTO, FEDBN, Own
from hospital_node.strategies.prox import held_near
from hospital_node.train import Hooks, take_steps

Weights: TypeAlias = NDArray[np.float32]

LEAST_PASSES: Final = 20
"""Fine-tuning goes over the rows at least so often."""

HALVINGS: Final = 5
PULLS: Final = (0.1, 1.0)
"""Ditto's lambda, where the study's strategy states none."""

OWN_RIDGE: Final = 0.1
"""Least ridge of an exact fit to the hospital's own rows: a tenth of a patient's worth."""

RIDGE: Final = 1.0
_NEWTON_STEPS: Final = 25
_LEAST_STEP: Final = 1e-6
_CLIP: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Start:
    """Where fits begin, each in `full_layout`.

    `released`: the shared tensors as they are, normalisation as it starts. `mine`: the same
    with normalisation of the hospital's; equal where the strategy is another than fedbn.
    `ditto`: where Ditto's fit begins, which is held near `mine`.
    """

    released: Weights
    mine: Weights
    ditto: Weights


def start(
    study: Study, site: str, data: Encoded, federated: Weights, own: Own | None = None
) -> Start:
    """Return where fits to these rows begin; `federated` is in `layout`.

    `own` is what the run kept at this hospital, fitted to all of its training rows. Without
    it, for a comparison on some of them, normalisation is fitted to the given rows alone.

    Raises:
        Refusal: INPUT_NAN.
    """
    released, kept = with_own(study, federated), own or {}
    mine = released
    if FEDBN in kept:
        mine = with_own(study, federated, kept[FEDBN])
    elif isinstance(study.federation.strategy, FedBn):
        fitted = _follow(study, site, data, released, (), frozen=not_norm)[-1][1]
        mine = with_own(study, federated, split_own(study, fitted)[1])
    return Start(released, mine, kept.get(DITTO, mine))


def families(study: Study) -> tuple[str, ...]:
    """Return the study's candidates that its model and strategy have, and that are fitted."""
    strategy, missing = study.federation.strategy, {"averaged"}
    if not isinstance(strategy, FedBn):
        missing.add("fedbn")
    if is_exact(study):
        missing.add("fine-tuned")
    if study.target.type not in ("binary", "continuous") or study.model.kind == "poisson":
        missing.add("recalibrated")
    found = tuple(name for name in study.personal.candidates if name not in missing)
    return found or ("federated",)


def fit(study: Study, site: str, data: Encoded, at: Start, family: str) -> dict[str, Weights]:
    """Return the models of one family of candidates, by setting ("" where there is none).

    Raises:
        Refusal: INPUT_NAN, training gave a value that is not finite.
    """
    match family:
        case "federated":
            return {"": at.released}
        case "fedbn":
            return {"": at.mine}
        case "recalibrated":
            return {"": recalibrated(study, data, at.mine)}
        case "fine-tuned":
            return _fine_tuned(study, site, data, at.mine)
        case "ditto":
            return {
                f"lambda {pull:g}": _ditto(study, site, data, at, pull) for pull in _pulls(study)
            }
        case _:
            return {"": _own(study, site, data)}


def _own(study: Study, site: str, data: Encoded) -> Weights:
    if is_exact(study):
        return _checked(local_only(_ridged(study), {site: data})[site])
    return local_only(study, {site: data})[site]


def _ridged(study: Study) -> Study:
    """Return an exact regression whose fit to few rows, perhaps of one class, stays finite."""
    strategy = study.federation.strategy
    ridge = max(strategy.ridge, OWN_RIDGE) if isinstance(strategy, Newton) else OWN_RIDGE
    terms = strategy.model_copy(update={"ridge": ridge})
    rounds = max(study.federation.rounds, _NEWTON_STEPS)
    federation = study.federation.model_copy(update={"strategy": terms, "rounds": rounds})
    return study.model_copy(update={"federation": federation})


def _ditto(study: Study, site: str, data: Encoded, at: Start, pull: float) -> Weights:
    if is_exact(study):
        return exact_near(study, data, at.mine, pull * data.rows)
    return _follow(study, site, data, at.ditto, (), pull, at.mine)[-1][1]


def exact_near(study: Study, data: Encoded, centre: Weights, ridge: float) -> Weights:
    """Return the least of -l(theta) + ridge / 2 ||theta - centre||^2, by Newton's method.

    The penalised log-likelihood is concave; a step that lowers it is halved.
    """
    columns, target = data.features.astype(np.float64), data.target.astype(np.float64)
    home = centre.astype(np.float64)

    def sums(theta: NDArray[np.float64]) -> tuple[float, Sums]:
        found = sums_of(study, columns, target, theta)
        away = theta - home
        return found.log_likelihood - ridge * float(away @ away) / 2, found

    at, (height, found) = home, sums(home)
    for _ in range(_NEWTON_STEPS):
        go_on()
        gradient = found.gradient - ridge * (at - home)
        step = np.linalg.solve(found.hessian + ridge * np.eye(len(at)), gradient)
        size = 1.0
        tried, seen = sums(at + step)
        while size > _LEAST_STEP and not tried >= height:
            size /= 2
            tried, seen = sums(at + size * step)
        if not tried > height:
            break
        at, height, found = at + size * step, tried, seen
    return _checked(at.astype(np.float32))


def _checked(weights: Weights) -> Weights:
    if not np.isfinite(weights).all():
        raise Refusal("INPUT_NAN", "fitting a personal model gave a value that is not finite")
    return weights


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
    schema = full_layout(study)
    values = {name: view.copy() for name, view in schema.views(federated).items()}
    last = max(int(name.split(".")[1]) for name in values if name.startswith("layers."))
    values[f"layers.{last}.weight"] *= np.float32(b)
    bias = values[f"layers.{last}.bias"]
    bias[:] = np.float32(b) * bias + np.float32(a)
    return schema.flatten(values)


def _fine_tuned(study: Study, site: str, data: Encoded, federated: Weights) -> dict[str, Weights]:
    whole = steps(study, data.rows)
    marks = [max(1, whole >> halving) for halving in range(HALVINGS, -1, -1)]
    found = _follow(study, site, data, federated, tuple(marks[:-1]))
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
    begin: Weights,
    marks: tuple[int, ...],
    pull: float = 0.0,
    centre: Weights | None = None,
    frozen: Callable[[str], bool] | None = None,
) -> list[tuple[int, Weights]]:
    """Train on from `begin`; return the weights after each mark and after the last step.

    `pull / 2` times the squared distance from `centre` is added to the loss
    (`hospital_node.strategies.prox`). Parameters whose name `frozen` knows stay as they are.
    """
    module, schema = build(study, begin), full_layout(study)
    near = held_near(build(study, begin if centre is None else centre), pull, study.train.lr)
    whole, found = steps(study, data.rows), list[tuple[int, Weights]]()
    taken = 0

    def after(trained: nn.Module) -> None:
        nonlocal taken
        taken += 1
        if pull > 0 and near.after is not None:
            near.after(trained)
        wanted = marks.count(taken) + (taken == whole)
        if wanted:
            found.extend([(taken, flatten(trained, schema))] * wanted)

    for name, parameter in module.named_parameters():
        parameter.requires_grad_(frozen is None or not frozen(name))
    terms = study.train.model_copy(update={"local_steps": whole, "local_epochs": None})
    take_steps(study, module, data, _seed(study, site), Hooks(after=after), terms)
    for _, weights in found:
        _checked(weights)
    return found


def not_norm(name: str) -> bool:
    """Whether a parameter is none of a normalisation layer."""
    return not is_norm(name)


def _seed(study: Study, site: str) -> int:
    text = f"{study.id}/{study.seed}/{site}/personal"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
