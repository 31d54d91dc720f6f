"""The shared pieces of the fault tests: what they record, and how much they do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import record
from tests.faults.budget import VARIABLE, budget, trials


def test_a_result_is_one_line_with_the_test_that_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "new" / "results.jsonl")
    record.record("F03", trials=50, failures=0, recovery_p99_s=1.25)
    record.record_drawn("F04", trials=7, failures=1)
    one, two = map(json.loads, (tmp_path / "new" / "results.jsonl").read_text().splitlines())
    assert (one["schema"], one["fault"]) == ("fedcare.fault/1", "F03")
    assert (one["trials"], one["failures"]) == (50, 0)
    assert one["figures"] == {"recovery_p99_s": 1.25}
    assert one["test"].endswith("test_a_result_is_one_line_with_the_test_that_gave_it")
    assert 0.0 <= one["seconds"] < 60.0
    assert (two["fault"], two["failures"], two["figures"]) == ("F04", 1, {})
    assert (one["drawn"], two["drawn"]) == (False, True)


@pytest.mark.parametrize(
    ("said", "count"), [("", 1), ("change", 1), ("nightly", 2), ("release", 3)]
)
def test_the_environment_says_how_much_is_done(
    said: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, said)
    assert trials(change=1, nightly=2, release=3) == count


def test_a_budget_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "weekly")
    with pytest.raises(ValueError, match="weekly"):
        budget()
