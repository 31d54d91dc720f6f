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
    event = target[:, 1] > 0
    if not bool(event.any()):
        return (eta * 0.0).sum()
    order = _latest_first(target)
    return _against_risk_set(eta[order], target[order, 0])[event[order]].mean()


def cox_rows(eta: Tensor, target: Tensor) -> Tensor:
    """Return each row's part of the negative log partial likelihood, 0 of a censored row."""
    order = _latest_first(target)
    found = torch.empty_like(eta)
    found[order] = _against_risk_set(eta[order], target[order, 0])
    return torch.where(target[:, 1] > 0, found, 0.0)


def _latest_first(target: Tensor) -> Tensor:
    return torch.argsort(target[:, 0], descending=True, stable=True)


def _against_risk_set(eta: Tensor, time: Tensor) -> Tensor:
    """Return log(sum of e^eta over the row's risk set) - eta of rows whose times fall."""
    # The last row of each time sees everybody of that time in its risk set.
    reach = torch.logcumsumexp(eta, 0)
    last = torch.searchsorted(-time, -time, right=True) - 1
    return reach[last] - eta
