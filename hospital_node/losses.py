"""What training makes small for numbers, counts and survival; each is at least 0.

mean loss of a number    (y - z)^2
of a count               y log(y / exp z) - (y - exp z), half the Poisson deviance
of survival              negative Cox partial log-likelihood per event, ties by Breslow
"""

from __future__ import annotations

import torch
from torch import Tensor


def poisson_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Return half the mean Poisson deviance of rates exp(outputs); gradients as of the NLL."""
    return (torch.xlogy(target, target) - target * outputs - target + outputs.exp()).mean()


def cox_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the negative partial log-likelihood of a batch, divided by its events.

    `outputs` log hazards [rows], `target` [rows, 2] times and events. Risk sets are those
    of the batch: rows whose time is not below the event's (Cox 1975; ties as in Breslow
    1974). A batch without an event gives 0, and gradients of 0.
    """
    event = target[:, 1] > 0
    if not bool(event.any()):
        return outputs.sum() * 0.0
    order = torch.argsort(target[:, 0], descending=True, stable=True)
    falling, risk, hit = -target[order, 0], outputs[order], event[order]
    last = torch.searchsorted(falling.contiguous(), falling.contiguous(), right=True) - 1
    at_risk = torch.logcumsumexp(risk, 0)[last]
    return (at_risk - risk)[hit].mean()
