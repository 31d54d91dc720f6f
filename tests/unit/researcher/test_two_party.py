"""A run of two hospitals says what each learns of the other."""

from __future__ import annotations

from dataclasses import replace

from researcher.show import run_text
from tests.wire_samples import RUN_VIEW

WORDS = "each can compute the other's update"


def test_a_run_of_two_hospitals_says_that_each_can_compute_the_others_update() -> None:
    site = RUN_VIEW.sites[0]
    assert WORDS in run_text(replace(RUN_VIEW, sites=(site, site), history=()))
    assert WORDS not in run_text(replace(RUN_VIEW, sites=(site, site, site), history=()))
