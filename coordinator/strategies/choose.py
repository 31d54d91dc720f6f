"""Which rule the coordinator follows for each tensor of a study's model."""

from __future__ import annotations

from typing import Final

from common.model_file import is_control
from common.models import is_statistic
from common.study import FedAdagrad, FedAdam, FedAvgM, FedYogi, Scaffold, Study
from common.vectors import ParameterSchema
from coordinator.strategies.adaptive import Adagrad, Adam, Yogi
from coordinator.strategies.averaging import Mean, Momentum
from coordinator.strategies.rule import ServerRule

_PLAIN: Final = Mean()


def tensor_rules(
    study: Study, schema: ParameterSchema, *, survivors: int, hospitals: int
) -> tuple[ServerRule, ...]:
    """Return the rule of each tensor of `schema`, in order.

    Running statistics of normalisation are averaged whatever the strategy: no gradient leads
    to them, and an optimiser's step could make a variance negative. `survivors` of the
    `hospitals` that take part in the run are in the sum.
    """
    weights = _rule(study)
    controls = Mean(survivors / hospitals)
    return tuple(
        controls if is_control(tensor.name) else _PLAIN if is_statistic(tensor.name) else weights
        for tensor in schema.tensors
    )


def moment_count(rules: tuple[ServerRule, ...]) -> int:
    """Return how many numbers are kept for each value of the model: 0, 1 or 2."""
    return max((len(rule.first) for rule in rules), default=0)


def _rule(study: Study) -> ServerRule:
    match study.federation.strategy:
        case FedAvgM(server_lr=lr, momentum=momentum):
            return Momentum(lr, momentum)
        case FedAdam(server_lr=lr, beta1=beta1, beta2=beta2, tau=tau):
            return Adam(lr, beta1, tau, beta2)
        case FedYogi(server_lr=lr, beta1=beta1, beta2=beta2, tau=tau):
            return Yogi(lr, beta1, tau, beta2)
        case FedAdagrad(server_lr=lr, beta1=beta1, tau=tau):
            return Adagrad(lr, beta1, tau)
        case Scaffold(server_lr=lr):
            return Mean(lr)
        case _:
            return _PLAIN
