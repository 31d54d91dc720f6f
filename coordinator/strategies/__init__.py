"""What the coordinator makes of an opened mean update, by the study's strategy.

    rules = tensor_rules(study, schema, survivors=3, members=4)
    step = rules[tensor].step(mean, moments)

A rule takes the weighted mean of the hospitals' updates and what earlier rounds left behind
(moments), and returns what is added to the model. Rules are pure, work value by value, and
so give the same on any split of a tensor into blocks. What hospitals do differently is in
`hospital_node.strategies`.
"""

from coordinator.strategies.adaptive import Adagrad, Adam, Yogi
from coordinator.strategies.averaging import Mean, Momentum
from coordinator.strategies.choose import moment_count, tensor_rules
from coordinator.strategies.rule import ServerRule

__all__ = [
    "Adagrad", "Adam", "Mean", "Momentum", "ServerRule", "Yogi", "moment_count", "tensor_rules",
]  # fmt: skip
