"""Losses of counts and of times to an event, each a mean that gradient steps make smaller.

    poisson    mean over rows of e^eta - y eta               (the constant log y! left out)
    cox        mean over events of log(sum of e^eta over the risk set) - eta

(Cox 1972; ties as Breslow 1974.) A risk set is who of the batch was still seen at the
event's time, so a hospital's rows are compared with each other only; a batch without an
event has loss 0 and moves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def poisson(eta: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of counts; `eta` [rows] are log rates."""
    return (torch.exp(eta) - target * eta).mean()


def cox(eta: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log partial likelihood; `eta` [rows] are log hazards.

    `target` [rows, 2]: time, and 1 where the event came then.
    """
    time, event = target[:, 0], target[:, 1] > 0
    if not bool(event.any()):
        return (eta * 0.0).sum()
    order = torch.argsort(time, descending=True, stable=True)
    time, event, eta = time[order], event[order], eta[order]
    # The last row of each time sees everybody of that time in its risk set.
    reach = torch.logcumsumexp(eta, 0)
    last = torch.searchsorted(-time, -time, right=True) - 1
    return (reach[last] - eta)[event].mean()
