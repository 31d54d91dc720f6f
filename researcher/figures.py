"""Figures with their intervals, as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_ENDS = ("_low", "_high")

TITLES: Final[Mapping[str, str]] = {
    "auroc": "AUROC",
    "auprc": "AUPRC (average precision)",
    "c_index": "C-index",
    "brier": "Brier score",
    "log_loss": "log-loss",
    "calibration_slope": "calibration slope (1 is best)",
    "calibration_intercept": "calibration intercept (0 is best)",
    "observed_expected": "observed / expected",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "mse": "mean squared error",
}
"""What papers call a figure."""


def with_interval(figures: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """Return `0.812 (0.760 to 0.850)` of a figure; a dash where it has no value."""
    value, low, high = (figures.get(key) for key in (name, *(name + end for end in _ENDS)))
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def names_of(figures: Iterable[str]) -> list[str]:
    """Return the figures' names without the ends of their intervals, those with titles first."""
    order = {name: place for place, name in enumerate(TITLES)}
    names = [name for name in figures if not name.endswith(_ENDS)]
    return sorted(names, key=lambda name: order.get(name, len(order)))


def listed(figures: Mapping[str, float]) -> str:
    """Return all figures in one line, each with its interval behind it."""
    return ", ".join(
        f"{name} {with_interval(figures, name)}"
        if f"{name}_low" in figures
        else f"{name} {figures[name]:.4g}"
        for name in names_of(figures)
    )
