"""What all fault tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import forked
from tests.faults import record
from tests.faults.budget import VARIABLE, Budget, budget


@pytest.fixture(autouse=True)
def timed() -> None:
    """A figure's seconds are its own test's."""
    record.begin()


@pytest.fixture(scope="module", autouse=True)
def forks(request: pytest.FixtureRequest) -> Iterator[None]:
    """The services of a module that has a `ZYGOTE` are its forks, and log lines of JSON."""
    zygote = getattr(request.module, "ZYGOTE", None)
    if zygote is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(zygote, patch)
        patch.setenv("LOG_FORMAT", "json")
        yield
    zygote.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the long trials to the budgets that have time for them."""
    if budget() is not Budget.CHANGE:
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason=f"{VARIABLE}=nightly runs it"))
