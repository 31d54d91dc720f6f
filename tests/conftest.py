"""Settings that every test shares."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No test depends on how fast the machine is; a failure prints how to replay it.
settings.register_profile(
    "fedcare", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fedcare")


@pytest.fixture(autouse=True)
def root_logger_as_it_was() -> Iterator[None]:
    """A service that a test ran here sends libraries' warnings to a stream that is gone."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
