"""Rules that only a hospital's own rows can answer: each refusal, and what it never tells."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import CATALOGUE, FedError, Refusal
from common.features import Table
from common.logs import make_log
from common.study import Study, parse_study
from hospital_node.data.load import SiteData
from hospital_node.disclosure import shown_figures
from hospital_node.row_rules import check_cells, check_delta, check_ring
from tests.security.refusals import OPEN, PRIVATE, changed, judged
from tests.study_texts import altered

WHERE = "policy.yaml:7"
TABLE = {"true_positive": 27, "false_positive": 9, "false_negative": 3, "true_negative": 21}
LARGE = {"true_positive": 20, "false_positive": 10, "false_negative": 10, "true_negative": 20}


def rows(count: int, patients: int | None = None) -> Table:
    number = np.arange(count, dtype=np.int64) % (patients or max(count, 1))
    return Table(np.zeros((count, 1)), np.zeros(count), number)


def data(train: Table, test: Table) -> SiteData:
    return SiteData(train, test, rows(0))


# --- the smallest cell ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test", "part"),
    [
        (rows(9), rows(10), "train"),
        (rows(10), rows(9), "test"),
        (rows(10), rows(1), "test"),
        (rows(40, patients=9), rows(10), "train"),
    ],
)
def test_a_part_with_fewer_patients_than_the_smallest_cell_is_refused(
    train: Table, test: Table, part: str
) -> None:
    with pytest.raises(FedError) as caught:
        check_cells(parse_study(OPEN), data(train, test), 10, WHERE)
    assert caught.value.name == "POLICY_MIN_CELL"
    assert f"the {part} rows" in caught.value.detail
    assert caught.value.detail.startswith("policy.yaml:7: release.min_cell is 10")
    assert "9" not in caught.value.detail


@pytest.mark.parametrize(("train", "test"), [(rows(10), rows(10)), (rows(10), rows(0))])
def test_enough_patients_or_no_test_rows_pass(train: Table, test: Table) -> None:
    check_cells(parse_study(OPEN), data(train, test), 10, WHERE)


def test_a_noised_sum_over_few_patients_passes() -> None:
    check_cells(parse_study(PRIVATE), data(rows(3), rows(3)), 10, WHERE)


EXACT = altered(OPEN, "strategy: {name: fedavg}", "strategy: {name: newton}")


@pytest.mark.parametrize(("levels", "least"), [(2, 6), (7, 16)])
def test_an_exact_regression_needs_two_patients_for_each_coefficient(
    levels: int, least: int
) -> None:
    """One number, `levels` - 1 indicators and the intercept."""
    names = ", ".join(f'"{level}"' for level in range(levels))
    sort = f", {{name: sort, type: category, levels: [{names}]}}]"
    study = parse_study(altered(EXACT, "range: [0, 120]}]", "range: [0, 120]}" + sort))
    check_cells(study, data(rows(least), rows(0)), 1, WHERE)
    check_cells(study, data(rows(0), rows(0)), 1, WHERE)  # adds zeros
    for train in (rows(least - 1), rows(least * 2, patients=least - 1)):
        with pytest.raises(FedError) as caught:
            check_cells(study, data(train, rows(0)), 1, WHERE)
        assert caught.value.name == "POLICY_MIN_CELL"
        assert str(least - 1) not in caught.value.detail


def test_what_leaves_holds_no_count_of_the_hospital(tmp_path: Path) -> None:
    table = "age,sick\n" + "".join(f"{20 + n},{n % 2}\n" for n in range(13))
    (objection,) = judged(tmp_path, OPEN, table=table)
    assert objection.code == "POLICY_MIN_CELL"
    for count in (13, 9, 4):
        assert f" {count} " not in objection.detail


@pytest.mark.parametrize(
    ("figures", "shown"),
    [
        ({"rows": 9, "positives": 4, "auroc": 0.9, "accuracy": 1.0}, {"rows": "<10"}),
        ({"rows": 0, "mse": None}, {"rows": "<10"}),
        ({"rows": 30, "positives": 10, "auroc": 0.9}, {"rows": 30, "positives": 10, "auroc": 0.9}),
        ({"rows": 30, "positives": 9, "auroc": 0.9},
         {"rows": 30, "positives": "<10", "auroc": None}),
        ({"rows": 30, "positives": 21, "auroc": 0.9},
         {"rows": 30, "positives": ">20", "auroc": None}),
        ({"rows": 12, "mse": 1.5}, {"rows": 12, "mse": 1.5}),
        ({"rows": 60, "positives": 30, "auroc": 0.9, **TABLE, "sensitivity": 0.9, "npv_low": 0.8},
         {"rows": 60, "positives": 30, "auroc": 0.9}),
        ({"rows": 60, "positives": 30, **LARGE, "ppv": 0.7},
         {"rows": 60, "positives": 30, **LARGE, "ppv": 0.7}),
        ({"rows": 30, "events": None, "c_index": None},
         {"rows": 30, "events": "<10", "c_index": None}),
        ({"rows": 30, "events": None, "c_index": 0.7},
         {"rows": 30, "events": ">20", "c_index": 0.7}),
    ],
)  # fmt: skip
def test_a_local_report_withholds_small_counts(
    figures: dict[str, float | None], shown: dict[str, object]
) -> None:
    assert shown_figures(figures, 10) == shown


# --- delta ------------------------------------------------------------------------------------


def delta_check(delta: float, patients: int, mode: str = "") -> tuple[str, list[str]]:
    """Return the refusal's detail, or what the log was told."""
    study = parse_study(changed(PRIVATE, ("delta: 1.0e-4", f"delta: {delta}")))
    if mode == "hospital":
        study = hospital_mode(delta)
    words = io.StringIO()
    try:
        check_delta(study, data(rows(patients), rows(0)), 4, make_log(words, form="json"))
    except Refusal as refusal:
        return str(refusal), []
    return "", [json.loads(line)["meaning"] for line in words.getvalue().splitlines()]


def hospital_mode(delta: float) -> Study:
    return parse_study(
        OPEN.replace(
            "privacy: {secure_aggregation: {colluders: 1, suite: hybrid}}\n",
            "privacy: {secure_aggregation: {colluders: 1}, dp: {mode: hospital, epsilon: 2, "
            f"delta: {delta}, clip: 1.0}}}}\n",
        )
    )


@pytest.mark.parametrize(("delta", "patients"), [(0.01, 100), (0.01, 101), (0.02, 50)])
def test_a_delta_of_1_over_n_is_refused_with_what_to_change(delta: float, patients: int) -> None:
    said, _ = delta_check(delta, patients)
    assert said.startswith(f"FC-3022 DP_WEAK: privacy.dp.delta {delta:g} is at least 1/n")
    assert str(patients) not in said.removeprefix("FC-3022").replace(f"{delta:g}", "")


@pytest.mark.parametrize(("figures", "refused"), [(", evaluation_epsilon: 0.2", True), ("", False)])
def test_patients_whose_scores_are_counted_are_among_the_n(figures: str, *, refused: bool) -> None:
    """50 train and 50 others test; figures that are not paid for count nobody."""
    study = parse_study(changed(PRIVATE, ("delta: 1.0e-4", f"delta: 0.01{figures}")))
    test = rows(50)
    parts = data(rows(50), replace(test, patient=test.patient + 50))
    log = make_log(io.StringIO(), form="json")
    if refused:
        with pytest.raises(Refusal, match="DP_WEAK"):
            check_delta(study, parts, 4, log)
    else:
        check_delta(study, parts, 4, log)


def test_a_delta_between_a_tenth_of_that_and_that_is_warned_about() -> None:
    said, warned = delta_check(0.0099, 100)
    assert not said
    assert warned == [
        "privacy.dp.delta 0.0099 is above 1/(10 n) for this hospital's patients; ask for less"
    ]
    assert delta_check(0.001, 100) == ("", [])


def test_by_hospital_n_is_the_roster() -> None:
    said, warned = delta_check(0.09, 5, mode="hospital")
    assert (said, len(warned)) == ("", 1), "0.09 lies between 1/40 and 1/4"
    assert delta_check(0.01, 5, mode="hospital") == ("", [])


# --- the ring ---------------------------------------------------------------------------------


def test_noise_that_fits_few_hospitals_but_not_the_roster_is_refused_at_the_hospital() -> None:
    study = parse_study(changed(PRIVATE, ("epsilon: 1.0", "epsilon: 1.0, noise_multiplier: 130")))
    check_ring(study, 4)
    with pytest.raises(Refusal) as caught:
        check_ring(study, 400)
    assert caught.value.name in ("OVERFLOW_BOUND", "DP_WEAK")
    assert "max_patients" in caught.value.fix


# --- who is a patient -------------------------------------------------------------------------

IDS = "age,sick,HEADING\n" + "".join(f"{20 + n / 2},{n % 2},p{n // 2}\n" for n in range(80))


def asked(
    folder: Path, table: str, manifest: str = "", key: str = "null", base: str = PRIVATE
) -> list[str]:
    """Return the codes of the real desk's objections."""
    study = changed(base, ("patient_key: null", f"patient_key: {key}"))
    return [one.code for one in judged(folder, study, table=table, manifest=manifest)]


@pytest.mark.parametrize("heading", ["pid", "Patient", "PATIENT_ID", "patientid", "mrn", "MRN"])
def test_a_repeating_identifier_without_a_patient_key_is_refused(
    tmp_path: Path, heading: str
) -> None:
    table = IDS.replace("HEADING", heading)
    assert asked(tmp_path, table) == ["PATIENT_KEY"]


def test_the_same_study_with_the_patient_key_is_accepted(tmp_path: Path) -> None:
    assert asked(tmp_path, IDS.replace("HEADING", "pid"), key="pid") == []


def test_a_key_that_splits_patients_is_refused(tmp_path: Path) -> None:
    head, *lines = IDS.replace("HEADING", "pid").splitlines()
    table = "\n".join([f"{head},visit", *(f"{line},v{n}" for n, line in enumerate(lines)), ""])
    assert asked(tmp_path, table, key="visit") == ["PATIENT_KEY"]


def test_a_column_of_another_name_counts_where_the_manifest_says_so(tmp_path: Path) -> None:
    table = IDS.replace("HEADING", "bed")
    assert asked(tmp_path, table) == []
    assert asked(tmp_path, table, manifest=", patient: bed") == ["PATIENT_KEY"]
    assert asked(tmp_path, table, manifest=", patient: bed", key="bed") == []


def test_the_hospitals_word_that_each_row_is_a_patient_counts(tmp_path: Path) -> None:
    table = IDS.replace("HEADING", "pid")
    assert asked(tmp_path, table, manifest=", patient: null") == []


def test_an_identifier_that_never_repeats_is_none(tmp_path: Path) -> None:
    table = "age,sick,pid\n" + "".join(f"{20 + n / 2},{n % 2},p{n}\n" for n in range(80))
    assert asked(tmp_path, table) == []


WIDE = "age,sick,sex,stage,ward\n" + "".join(
    f"{20 + n / 2},{n % 2},{n // 2 % 2},{n // 4 % 4},{n % 5}\n" for n in range(80)
)


@pytest.mark.parametrize(("copies", "codes"), [(4, []), (5, ["PATIENT_KEY"])])
def test_many_rows_that_are_copies_count_as_repeating(
    tmp_path: Path, copies: int, codes: list[str]
) -> None:
    table = WIDE + WIDE.splitlines(keepends=True)[1] * copies
    assert asked(tmp_path, table) == codes


def test_rows_of_three_visits_that_show_no_change_count_as_repeating(tmp_path: Path) -> None:
    head, *lines = WIDE.splitlines(keepends=True)
    assert asked(tmp_path, head + "".join(lines[:30] * 3)) == ["PATIENT_KEY"]


def test_patients_who_look_alike_in_few_coarse_columns_are_no_copies(tmp_path: Path) -> None:
    """Whatever 240 ages to a tenth of a year and what follows from them have in common."""
    ages = np.random.default_rng(3).normal(60, 10, 240)
    for more in ("", ",sex"):
        cells = (f"{age:.1f},{int(age > 60)}{',' + str(n % 2) if more else ''}\n"
                 for n, age in enumerate(ages))  # fmt: skip
        table = f"age,sick{more}\n" + "".join(cells)
        assert len(set(table.splitlines())) < 0.95 * 240
        assert asked(tmp_path, table) == []


def test_without_differential_privacy_rows_may_repeat(tmp_path: Path) -> None:
    assert asked(tmp_path, IDS.replace("HEADING", "pid"), base=OPEN) == []


def test_what_leaves_names_no_column_of_the_hospital(tmp_path: Path) -> None:
    table = IDS.replace("HEADING", "mrn")
    (objection,) = judged(tmp_path, PRIVATE, table=table)
    assert objection.detail == CATALOGUE["PATIENT_KEY"].meaning
