"""Figures with their intervals, as text for people."""

from __future__ import annotations

from collections.abc import Mapping

_ENDS = ("_low", "_high")


def with_interval(figures: Mapping[str, float | None], name: str, digits: int = 3) -> str:
    """Return `0.812 (0.760 to 0.850)` of a figure; a dash where it has no value."""
    value, low, high = (figures.get(key) for key in (name, *(name + end for end in _ENDS)))
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def listed(figures: Mapping[str, float]) -> str:
    """Return all figures in one line, each with its interval behind it."""
    names = [name for name in figures if not name.endswith(_ENDS)]
    return ", ".join(
        f"{name} {with_interval(figures, name)}"
        if f"{name}_low" in figures
        else f"{name} {figures[name]:.4g}"
        for name in names
    )
