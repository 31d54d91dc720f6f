"""The report says what was recorded, and the page says what the report says."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests.faults.campaign import Found
from tests.faults.catalogue import FAULTS, KILLS, POSTGRESQL, TESTS
from tests.faults.parts import PAGE, PICTURE, ROOT, Origin, Part, keep, left, marked, seed_parts
from tests.faults.picture import picture, rows_of
from tests.faults.report import merged, read, report_of
from tests.faults.table import figures_of, table_of, with_table

ORIGIN = Origin("0.1.0", "abc", "2026-11-26", 2, "x86_64", "Linux", "3.11.7")
WAITING = {"F65", "F68"}
"""They need a log that shows when it was rewritten."""
_NUMBER = re.compile(r"F\d\da?")
_MARK = re.compile(r'mark\.fault\("(\w+)"\)')
LATER = replace(ORIGIN, commit="def", date="2026-11-27")


def result(
    fault: str, trials: int, failures: int = 0, *, drawn: bool = False, **figures: float
) -> dict[str, Any]:
    return {
        "fault": fault, "trials": trials, "failures": failures, "drawn": drawn, "figures": figures,
        "seconds": 1.0, "test": "tests/faults/test_a.py::test_a[1]",
    }  # fmt: skip


def outcome(fault: str, test: str, said: str) -> dict[str, Any]:
    return {"faults": [fault], "test": test, "outcome": said, "why": "no " + fault,
            "seconds": 2.0}  # fmt: skip


def part(name: str, *results: dict[str, Any], outcomes: tuple[dict[str, Any], ...] = ()) -> Part:
    return {
        "part": name, "origin": asdict(ORIGIN), "budget": "change", "seconds": 1,
        "results": list(results), "outcomes": list(outcomes),
    }  # fmt: skip


def entries(*results: dict[str, Any], outcomes: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    found = report_of([part("tests", *results, outcomes=outcomes)])
    return {entry["fault"]: entry for entry in found["faults"]}


def test_none_of_n_is_told_with_its_bound_and_never_as_never() -> None:
    (entry,) = entries(result("F03", 600, drawn=True)).values()
    assert (entry["trials"], entry["failures"], entry["bound_95"]) == (600, 0, 0.005)


def test_cases_that_were_gone_through_one_by_one_bound_nothing() -> None:
    (entry,) = entries(result("F03", 600)).values()
    assert (entry["trials"], entry["drawn"], entry["bound_95"]) == (600, 0, None)
    (both,) = report_of([part(TESTS, result("F03", 600)), part(KILLS, result("F03", 30))])["faults"]
    assert (both["trials"], both["drawn"], both["bound_95"]) == (630, 30, 0.1)


def test_a_fault_that_failed_has_no_such_bound() -> None:
    (entry,) = entries(result("F03", 600, drawn=True), result("F03", 10, 1)).values()
    assert (entry["trials"], entry["failures"], entry["bound_95"]) == (610, 1, None)


def test_counts_add_up_and_of_times_the_longest_is_told() -> None:
    one = result("F01", 5, lost=0, killed=2, recovery_s=1.5)
    two = result("F01", 5, lost=0, killed=3, recovery_s=0.5)
    figures = entries(one, two)["F01"]["figures"]
    assert figures == {"lost": 0, "killed": 5, "recovery_s": 1.5}


def test_the_runs_of_one_campaign_count_once_on_the_row_of_the_other_store() -> None:
    results = (result("F01", 5, runs=40), result("F02", 7, runs=40))
    (entry,) = report_of([part(POSTGRESQL, *results)])["faults"]
    assert (entry["trials"], entry["figures"]["runs"]) == (12, 40)
    two = (result("F01", 5, runs=40), {**result("F01", 7, runs=3), "test": "another"})
    assert entries(*two)["F01"]["figures"]["runs"] == 43


def test_percentiles_are_those_of_most_trials_and_the_longest_is_the_longest_of_all() -> None:
    many = result("F01", 50, recovery_p50_s=0.2, recovery_p99_s=0.5, recovery_max_s=0.6)
    few = result("F01", 2, recovery_p50_s=0.9, recovery_p99_s=0.9, recovery_max_s=0.9)
    for order in (many, few), (few, many):
        figures = entries(*order)["F01"]["figures"]
        assert list(figures.values()) == [0.2, 0.5, 0.9]


def test_a_test_that_recorded_nothing_is_one_trial_and_one_that_was_skipped_none() -> None:
    found = entries(
        result("F64", 10),
        outcomes=(
            outcome("F64", "tests/faults/test_a.py::test_a[1]", "passed"),
            outcome("F64", "tests/unit/test_b.py::test_b", "passed"),
            outcome("F66", "tests/unit/test_b.py::test_c", "failed"),
            outcome("F67", "tests/unit/test_b.py::test_d", "skipped"),
        ),
    )
    assert found["F64"]["trials"] == 11
    assert (found["F66"]["trials"], found["F66"]["failures"]) == (1, 1)
    assert (found["F67"]["trials"], found["F67"]["bound_95"]) == (0, None)
    assert found["F67"]["skipped"] == {"tests/unit/test_b.py::test_d": "no F67"}


def test_a_test_that_failed_behind_its_figure_counts_once() -> None:
    failed = outcome("F64", "tests/faults/test_a.py::test_a[1]", "failed")
    assert entries(result("F64", 10), outcomes=(failed,))["F64"]["failures"] == 1
    assert entries(result("F64", 10, 2), outcomes=(failed,))["F64"]["failures"] == 2


def test_a_part_that_was_run_again_takes_its_own_place_and_no_other() -> None:
    whole = report_of([part(KILLS, result("F03", 5)), part(TESTS, result("F03", 1))])
    again = merged(whole, [part(KILLS, result("F03", 100, 2))])
    (entry,) = again["faults"]
    assert (entry["trials"], entry["failures"]) == (101, 2)
    assert sorted(one["part"] for one in again["parts"]) == [KILLS, TESTS]


def test_kills_on_postgresql_have_a_row_of_their_own() -> None:
    both = [part(KILLS, result("F03", 5)), part(POSTGRESQL, result("F03", 7), result("F04", 2))]
    found = {entry["fault"]: entry["trials"] for entry in report_of(both)["faults"]}
    assert found == {"F03": 5, POSTGRESQL: 9}


def found(seed: int, problem: str | None = None) -> Found:
    return Found(seed, problem, virtual_s=10.0, deaths=1, voided=0)


def test_seeds_go_on_where_they_were_stopped(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    assert left(range(6), file) == list(range(6))
    keep([found(0), found(1)], ORIGIN, 1.0, file)
    keep([found(2)], ORIGIN, 1.0, file)
    assert left(range(6), file) == [3, 4, 5]


def test_a_seed_that_failed_is_run_again_and_told_of_the_code_that_ran_it_last(
    tmp_path: Path,
) -> None:
    file = tmp_path / "seeds.jsonl"
    keep([found(0), found(1, "lost"), found(2)], ORIGIN, 1.0, file)
    assert left(range(4), file) == [1, 3]
    keep([found(1), found(3)], LATER, 1.0, file)
    first, second = seed_parts("change", file)
    assert (first["origin"]["commit"], first["seeds"]) == ("abc", [(0, 0), (2, 2)])
    assert (second["origin"]["commit"], second["seeds"]) == ("def", [(1, 1), (3, 3)])
    (entry,) = report_of([first, second])["faults"]
    assert (entry["trials"], entry["failures"]) == (4, 0)


def test_a_seed_that_fails_is_a_failure_of_the_report(tmp_path: Path) -> None:
    file = tmp_path / "seeds.jsonl"
    keep([found(0), found(1, "lost")], ORIGIN, 1.0, file)
    (one,) = seed_parts("change", file)
    assert one["failed"] == {1: "lost"}
    (entry,) = report_of([one])["faults"]
    assert (entry["trials"], entry["failures"], entry["bound_95"]) == (2, 1, None)


def test_figures_have_units_and_percentiles_stand_together() -> None:
    figures = {"recovery_p50_s": 0.25, "recovery_p99_s": 1.5, "recovery_max_s": 2.0, "lost": 0,
               "refused_share": 1.0, "resent_bytes": 4096, "left_bytes": 17923.0,
               "grown_mb": 4.656, "let_in_per_s": 20.0, "slower_times": 1.5}  # fmt: skip
    assert list(figures_of(figures)) == [
        "recovery 0.25 / 1.5 / 2 s (p50 / p99 / max)", "lost 0", "refused 100 %",
        "resent 4,096 bytes", "left 17,923 bytes", "grown 4.66 MB", "let in 20 a second",
        "slower 1.5 times",
    ]  # fmt: skip


def test_a_fault_that_was_not_tried_has_no_row() -> None:
    skipped = outcome("F23", "tests/faults/test_a.py::test_of_the_kernel", "skipped")
    table = table_of(report_of([part(TESTS, result("F01", 3), outcomes=(skipped,))]))
    assert "| F01 |" in table
    assert "| F23 |" not in table
    assert "Left out (no F23): `test_of_the_kernel`." in table


def test_the_picture_has_a_line_for_each_fault_that_was_timed() -> None:
    timed = result("F03", 5, recovery_p50_s=0.5, recovery_p99_s=2.5, recovery_max_s=6.0)
    whole = report_of([part(KILLS, timed, result("F04", 5))])
    rows = rows_of(whole)
    assert [(kind, values) for _, kind, values in rows] == [("recovery", (0.5, 2.5, 6.0))]
    drawn = picture(rows)
    assert "F03 coordinator killed between" in drawn
    assert "0.50 / 2.50 / 6.00 s" in drawn
    assert f"(img/{PICTURE.name})" in table_of(whole)
    assert "img/" not in table_of(report_of([part(KILLS, result("F04", 5))]))


def test_every_fault_has_a_test_that_is_named_after_it() -> None:
    texts = [(ROOT / file).read_text() for file in marked()]
    named = {fault for text in texts for fault in _MARK.findall(text)}
    assert named == {fault for fault in FAULTS if _NUMBER.fullmatch(fault)} - WAITING


def test_the_page_tells_the_report_that_is_there() -> None:
    report, page = read(), PAGE.read_text()
    assert with_table(page, report) == page
    assert {entry["fault"] for entry in report["faults"]} <= FAULTS.keys()
    assert all(entry["failures"] == 0 for entry in report["faults"])
