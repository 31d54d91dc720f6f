"""A proximal term: local training that is held near a given model.

FedProx (Li et al. 2020, equation 2) has hospital k find roughly the least

    h_k(w; w^t) = F_k(w) + mu/2 ||w - w^t||^2

and Ditto (Li et al. 2021, algorithm 1) does the same for its personal model, with lambda.
The term's gradient mu (w - w^t) could be added to F_k's, but a step of it overshoots as
soon as lr mu > 1. The term is quadratic, so its own step is taken exactly instead, after
the optimiser's (forward-backward splitting):

    w <- w - lr grad F_k(w);    w <- (w + lr mu w^t) / (1 + lr mu)

Both have the same fixed points and agree to first order in lr mu; this one is stable for
every mu, and as mu grows w stays at w^t. With Adam it is decoupled from the moments, like
AdamW's weight decay (Loshchilov and Hutter 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hospital_node.train import Hooks


def held_near(centre: nn.Module, strength: float, lr: float) -> Hooks:
    """Return what pulls each parameter towards `centre`'s; running statistics are left alone.

    `centre`'s parameters are copied; `strength` is mu or lambda, `lr` the learning rate.
    """
    at = [value.detach().clone() for value in centre.parameters()]
    weight = lr * strength

    def after(module: nn.Module) -> None:
        pull(module, at, weight)

    return Hooks(after=after)


def pull(module: nn.Module, centre: Sequence[Tensor], weight: float) -> None:
    """Take the proximal step `w <- (w + weight * centre) / (1 + weight)` in place."""
    share = weight / (1.0 + weight)
    with torch.no_grad():
        for parameter, at in zip(module.parameters(), centre, strict=True):
            parameter.lerp_(at, share)
