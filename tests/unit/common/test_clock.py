"""Clocks that are set."""

from __future__ import annotations

import pytest

from common.clock import ClockWatch, ManualClock


@pytest.mark.fault("F26")
@pytest.mark.parametrize("by", [-3600.0, 7200.0, -2.5])
def test_a_clock_that_is_set_is_told_once_and_time_that_passes_is_not(by: float) -> None:
    clock = ManualClock()
    watch = ClockWatch(clock)
    clock.advance(86_400.0)
    assert watch.jumped() == 0.0
    clock.epoch += by
    clock.advance(10.0)
    assert watch.jumped() == pytest.approx(by)
    assert watch.jumped() == 0.0


def test_a_clock_that_a_daemon_corrects_is_not_called_set() -> None:
    clock = ManualClock()
    watch = ClockWatch(clock)
    for _ in range(100):
        clock.advance(10.0)
        clock.epoch += 0.5
        assert watch.jumped() == 0.0
