"""Hospitals that arrive all at once are let in so many a second (fault F30)."""

from __future__ import annotations

import random
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import Refusal, RoundError
from common.ids import NodeId
from coordinator import servicer
from coordinator.admission import MOST_ASKED_S, OWN_BURST, Arrivals

_names = count()


def turn(arrivals: Arrivals, who: str | None = None) -> float | None:
    """Return None if it is let in, else the seconds after which it may come back."""
    try:
        arrivals.admit(who or f"site-{next(_names)}")
    except RoundError as refused:
        return refused.retry_s
    return None


def test_a_seconds_worth_is_let_in_at_once_and_the_rest_get_turns() -> None:
    clock = ManualClock()
    arrivals = Arrivals(4, clock)
    assert [turn(arrivals) for _ in range(8)] == [None] * 4 + [0.25, 0.5, 0.75, 1.0]
    clock.advance(0.25)
    assert turn(arrivals) is None
    assert turn(arrivals) == 1.0, "the turns that were given stay given"
    clock.advance(60.0)
    assert [turn(arrivals) for _ in range(5)] == [None] * 4 + [0.25]


def test_nobody_is_sent_away_for_longer_than_half_a_minute() -> None:
    arrivals = Arrivals(1, ManualClock())
    assert max(turn(arrivals) or 0.0 for _ in range(512)) == MOST_ASKED_S


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(2, 200), st.randoms(use_true_random=False))
def test_in_no_second_more_than_two_seconds_worth_come_in_and_all_do(
    per_s: int, crowd: int, chance: random.Random
) -> None:
    clock, came = ManualClock(), list[float]()
    arrivals = Arrivals(per_s, clock)
    waiting = [(chance.random(), n) for n in range(crowd)]
    while waiting:
        waiting.sort(reverse=True)
        at, who = waiting.pop()
        clock.now = at
        asked = turn(arrivals, f"site-{who}")
        if asked is None:
            came.append(at)
        else:
            waiting.append((at + asked * (1 + chance.random() / 2), who))
    assert len(came) == crowd
    assert all(sum(at <= one < at + 1.0 for one in came) <= 2 * per_s + 1 for at in came)
    assert came[-1] < 3.0 + max(4.0 * crowd / per_s, 2.0)


def test_a_hospital_that_comes_again_and_again_takes_nobodys_turn() -> None:
    clock = ManualClock()
    arrivals = Arrivals(20, clock)
    mine = [turn(arrivals, "va") for _ in range(1000)]
    assert mine[:OWN_BURST] == [None] * OWN_BURST
    assert set(mine[OWN_BURST:]) == {1.0}
    assert [turn(arrivals) for _ in range(20 - OWN_BURST)] == [None] * (20 - OWN_BURST)
    assert turn(arrivals) == pytest.approx(0.05), "the first turn is still to be had"
    clock.advance(1.0)
    assert turn(arrivals, "va") is None


def test_a_hospital_that_does_not_wait_for_its_turn_puts_nobody_elses_off() -> None:
    clock = ManualClock()
    arrivals = Arrivals(20, clock)
    assert [turn(arrivals) for _ in range(20)] == [None] * 20
    assert all(turn(arrivals, "va") == pytest.approx(0.05) for _ in range(1000))
    assert turn(arrivals) == pytest.approx(0.1), "one turn was taken, not a thousand"


async def test_a_hospital_that_is_no_member_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Members:
        def check_member(self, node: NodeId) -> None:
            raise Refusal("NOT_MEMBER", f"{node} is none")

    arrivals, service, context = Arrivals(4, ManualClock()), Members(), object()
    stranger = SimpleNamespace(node_id="spiffe://fed/hospital/stranger")
    monkeypatch.setattr(servicer, "caller", lambda: stranger)
    desk: Any = servicer.AggregationServicer(service, arrivals)  # type: ignore[arg-type]
    for _ in range(8):
        with pytest.raises(Refusal, match="is none"):
            await anext(desk.Session(None, context))
    assert [turn(arrivals) for _ in range(4)] == [None] * 4
