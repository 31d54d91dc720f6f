"""What all fault tests share."""

from __future__ import annotations

import pytest

from tests.faults import record
from tests.faults.budget import VARIABLE, Budget, budget


@pytest.fixture(autouse=True)
def timed() -> None:
    """A figure's seconds are its own test's."""
    record.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long trials to the budgets that have time for them."""
    if budget() is not Budget.CHANGE:
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason=f"{VARIABLE}=nightly runs it"))
