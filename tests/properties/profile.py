"""How hypothesis runs here: the same examples every time, a bounded number, no clock."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings


def bounded(examples: int, *, shrink: bool = True) -> settings:
    """Return settings for that many examples; a failure is shrunk unless told not to."""
    phases = [Phase.explicit, Phase.generate]
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[*phases, Phase.shrink] if shrink else phases,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
