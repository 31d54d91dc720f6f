"""Settings that every test shares."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# No test depends on how fast the machine is; a failure prints how to replay it.
settings.register_profile(
    "fedcare", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fedcare")
