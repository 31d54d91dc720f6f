"""Tables that differ in one patient differ in that patient only, whatever a study draws from them.

A guarantee for one patient counts how far that patient's own contribution reaches. It says
nothing if the patient decides which others are trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.study import RandomSplit, Study, parse_study
from hospital_node.data.load import load
from hospital_node.data.split import drawn_alone
from tests.private_study import private_text

ROWS = 60


def drawing(*, keyed: bool, mode: str = "patient-distributed") -> Study:
    """A study that draws test patients at random and drops rows without an age."""
    text = private_text(mode=mode)
    text = text.replace("scale: 10}", "scale: 10, impute: drop-row}")
    key = "\npatient_key: pid" if keyed else ""
    return parse_study(text.replace("split: {test: 0}", "split: {test: 0.3, seed: 3}" + key))


def table() -> list[str]:
    """Two rows a patient; every age is somebody's own."""
    return [f"{20 + k},{k % 3 == 0:d},p{k // 2}" for k in range(ROWS)]


def parts(folder: Path, study: Study, rows: list[str]) -> dict[float, tuple[str, int]]:
    """Return each row's part and its patient's number, by its age."""
    file = folder / "t.csv"
    file.write_text("\n".join(["age,sick,pid", *rows, ""]))
    data = load(study, file)
    found = {}
    for name in ("train", "test"):
        part = getattr(data, name)
        for age, number in zip(part.values[:, 0].tolist(), part.patient.tolist(), strict=True):
            found[age] = (name, number)
    return found


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("changed", ["{age},1,p{who}", ",0,p{who}"], ids=["label", "missing"])
def test_a_record_that_changes_moves_nobody_else(
    tmp_path: Path, changed: str, *, keyed: bool
) -> None:
    study, rows = drawing(keyed=keyed), table()
    before = parts(tmp_path, study, rows)
    assert {part for part, _ in before.values()} == {"train", "test"}
    for place in (0, 1, 31):
        age = float(20 + place)
        other = changed.format(age=20 + place, who=place // 2)
        after = parts(tmp_path, study, [*rows[:place], other, *rows[place + 1 :]])
        own = {one for one in before if one == age}
        assert {a: after[a] for a in after.keys() - own} == {
            a: before[a] for a in before.keys() - own
        }


def test_with_a_key_a_patient_who_comes_or_goes_moves_nobody_else(tmp_path: Path) -> None:
    study, rows = drawing(keyed=True), table()
    before = parts(tmp_path, study, rows)
    for gone in (0, 7, 29):
        after = parts(tmp_path, study, [row for row in rows if not row.endswith(f"p{gone}")])
        assert len(after) == ROWS - 2
        assert after == {age: before[age] for age in after}


def test_a_patient_is_drawn_with_the_chance_that_the_study_states() -> None:
    numbers = np.arange(20_000)
    shares = [drawn_alone(numbers, 0.3, seed).mean() for seed in (0, 1)]
    assert all(abs(share - 0.3) < 0.02 for share in shares)  # six standard deviations
    assert not np.array_equal(drawn_alone(numbers, 0.3, 0), drawn_alone(numbers, 0.3, 1))
    assert not drawn_alone(numbers, 0.0, 0).any()


def test_with_patients_protected_labels_do_not_steer_the_split() -> None:
    split = drawing(keyed=False).split
    assert isinstance(split, RandomSplit)
    assert not split.stratify
    for mode in ("patient-distributed", "hospital"):
        text = private_text(mode=mode).replace("{test: 0}", "{test: 0.3, stratify: true}")
        if mode == "hospital":
            assert getattr(parse_study(text).split, "stratify", False)
            continue
        with pytest.raises(ConfigError, match=r"split.stratify is true, which lets one patient"):
            parse_study(text)
