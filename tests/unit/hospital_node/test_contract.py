"""A table that does not fit the study is refused by place, and never by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, DataError, FedError
from common.study import Study
from hospital_node.data.load import SiteData, load
from tests.learning import study

TWO = """
  - {name: age, type: float, range: [18, 110], missing: [0, -9], impute: mean}
  - {name: sex, type: category, levels: ["0", "1"], missing: ["u"], impute: most-frequent}
"""
CELL = "77777"


def read(tmp_path: Path, text: str, terms: Study, **renamed: str) -> SiteData:
    file = tmp_path / "site.csv"
    file.write_text(text, encoding="utf-8")
    return load(terms, file, renamed)


def no_test_rows(features: str = TWO, target: str = "{type: binary, name: sick}") -> Study:
    return study(features, target=target, more="split: {test: 0}")


GOOD = "age,sex,sick\n40,0,0\n50.5,1,1\n"


def test_cells_become_numbers_and_level_indices(tmp_path: Path) -> None:
    train = read(tmp_path, GOOD, no_test_rows()).train
    assert train.values.tolist() == [[40.0, 0.0], [50.5, 1.0]]
    assert train.target.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("cell", ["", " ", "0", "0.0", "-9", "-9.00", " 0 "])
def test_empty_cells_and_missing_codes_are_missing_in_any_spelling(
    tmp_path: Path, cell: str
) -> None:
    train = read(tmp_path, GOOD + f"{cell},1,0\n", no_test_rows()).train
    assert np.isnan(train.values[2, 0])


@pytest.mark.parametrize(("cell", "level"), [("1", 1), ("1.0", 1), ("01", 1), ("0.00", 0)])
def test_a_level_that_is_a_number_matches_every_spelling(
    tmp_path: Path, cell: str, level: int
) -> None:
    assert read(tmp_path, GOOD + f"30,{cell},0\n", no_test_rows()).train.values[2, 1] == level


def test_a_missing_code_of_a_category_is_missing(tmp_path: Path) -> None:
    assert np.isnan(read(tmp_path, GOOD + "30,u,0\n", no_test_rows()).train.values[2, 1])


@pytest.mark.parametrize(
    "cell", ["x" + CELL, "7,7777", "nan", "inf", "-inf", "1_000", "0x41", "1e999", CELL, "١٢"]
)
def test_a_bad_number_is_refused_by_file_column_and_row_without_its_value(
    tmp_path: Path, cell: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, GOOD + f'"{cell}",1,0\n', no_test_rows())
    assert "DATA_VALUE" in str(caught.value)
    assert "site.csv, column 'age', row 3" in caught.value.detail
    assert cell not in str(caught.value)


@pytest.mark.parametrize("cell", [CELL, "male"])
def test_a_level_outside_the_studys_is_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(DataError, match="column 'sex', row 3: is not one of the levels") as caught:
        read(tmp_path, GOOD + f"50,{cell},0\n", no_test_rows())
    assert cell not in str(caught.value)


def test_the_number_of_wrong_rows_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: .* \(and further rows\)"):
        read(tmp_path, GOOD + "x,1,0\nx,1,0\ny,0,1\n", no_test_rows())


def test_a_whole_number_is_asked_for(tmp_path: Path) -> None:
    terms = no_test_rows("\n  - {name: n, type: int}")
    with pytest.raises(DataError, match="row 2: is not a whole number"):
        read(tmp_path, "n,sick\n3.0,0\n3.5,1\n", terms)


def test_a_number_beyond_all_bounds_needs_a_range(tmp_path: Path) -> None:
    terms = no_test_rows("\n  - {name: n, type: float}")
    with pytest.raises(DataError, match="features without a range"):
        read(tmp_path, "n,sick\n3.0,0\n1e12,1\n", terms)


def test_a_missing_value_without_imputation_is_refused(tmp_path: Path) -> None:
    terms = no_test_rows("\n  - {name: n, type: float}")
    with pytest.raises(DataError, match="column 'n', row 2: is missing"):
        read(tmp_path, "n,sick\n3.0,0\n,1\n", terms)


def test_drop_row_leaves_out_the_row_before_the_split(tmp_path: Path) -> None:
    terms = no_test_rows("\n  - {name: n, type: float, impute: drop-row}")
    train = read(tmp_path, "n,sick\n3,0\n,1\n5,1\n", terms).train
    assert train.values[:, 0].tolist() == [3.0, 5.0]
    assert train.target.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("label", ["", "yes", "nan"])
def test_a_bad_label_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"DATA_LABEL.*column 'sick', row 3"):
        read(tmp_path, GOOD + f"50,1,{label}\n", no_test_rows())


def test_a_label_outside_the_levels_of_a_multiclass_target_is_refused(tmp_path: Path) -> None:
    terms = no_test_rows(target="{type: multiclass, name: sick, levels: [a, b, c]}")
    rows = "age,sex,sick\n40,0,a\n50,1,c\n"
    assert read(tmp_path, rows, terms).train.target.tolist() == [0.0, 2.0]
    with pytest.raises(DataError, match=r"DATA_LABEL.*row 3"):
        read(tmp_path, rows + "50,1,d\n", terms)


def test_rules_for_positive_labels(tmp_path: Path) -> None:
    above = no_test_rows(target="{type: binary, name: sick, positive: '> 0'}")
    train = read(tmp_path, "age,sex,sick\n40,0,0\n50,1,3\n60,1,1.0\n", above).train
    assert train.target.tolist() == [0.0, 1.0, 1.0]
    words = no_test_rows(target="""{type: binary, name: sick, positive: 'in ["ill", "worse"]'}""")
    train = read(tmp_path, "age,sex,sick\n40,0,well\n50,1,ill\n60,1,worse\n", words).train
    assert train.target.tolist() == [0.0, 1.0, 1.0]


def test_a_split_column_decides_and_empty_rows_are_not_even_read(tmp_path: Path) -> None:
    terms = study(TWO, more="split: {column: part}")
    text = "age,sex,sick,part\n40,0,0,train\nx,x,x,\n50,1,1,test\n60,1,0,train\n30,0,1,validation\n"
    data = read(tmp_path, text, terms)
    assert data.train.values[:, 0].tolist() == [40.0, 60.0]
    assert (data.test.rows, data.validation.rows) == (1, 1)
    with pytest.raises(DataError, match="column 'part', row 1"):
        read(tmp_path, "age,sex,sick,part\n40,0,0,tset\n", terms)


def test_one_patients_rows_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    terms = study(TWO, more="patient_key: pid\nsplit: {test: 0.4, seed: 1}")
    rows = "".join(f"{20 + k},{k % 2},{k % 2},p{k // 3}\n" for k in range(60))
    data = read(tmp_path, "age,sex,sick,pid\n" + rows, terms)
    assert data.train.rows + data.test.rows == 60
    assert not set(data.train.patient.tolist()) & set(data.test.patient.tolist())
    assert data.test.rows == 3 * 8


@pytest.mark.parametrize("renamed", [{"sick": "diagnosis"}, {}])
def test_the_manifest_renames_columns(tmp_path: Path, renamed: dict[str, str]) -> None:
    text = GOOD.replace("sick", renamed.get("sick", "sick"))
    assert read(tmp_path, text, no_test_rows(), **renamed).train.rows == 2


def test_an_absent_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'sick'; did you mean 'sicck'"):
        read(tmp_path, GOOD.replace("sick", "sicck"), no_test_rows())
    with pytest.raises(DataError, match=r"no column 'ill' \(for 'sick'\)"):
        read(tmp_path, GOOD, no_test_rows(), sick="ill")


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'age' twice"):
        read(tmp_path, "age,age,sex,sick\n40,41,0,0\n", no_test_rows())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "DATA_EMPTY"),
        ("\n", "DATA_EMPTY"),
        ("age,sex,sick\n", "DATA_EMPTY"),
        ("age,sex,sick\n\n\n", "FILE_SYNTAX"),
        ("age,sex,sick\n40,0,0\n50,1,1,9\n", "FILE_SYNTAX"),
        ("age;sex;sick\n40;0;0\n", "DATA_COLUMN"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(FedError) as caught:
        read(tmp_path, text, no_test_rows())
    assert caught.value.name == name
    assert "site.csv" in caught.value.detail


@pytest.mark.parametrize("line", ["1,5,40,0,0", "40,0", "x,40,0,0,", '"a,b",c,40,0,0'])
def test_a_row_of_another_width_is_refused_even_where_the_columns_read_look_right(
    tmp_path: Path, line: str
) -> None:
    """A decimal comma moves the cells behind it; the note is a column nobody reads."""
    text = f"note,age,sex,sick\nn,40,0,0\n\n{line}\nn,50,1,1\n"
    with pytest.raises(ConfigError, match=r"row 3: [0-9] cells, the header has 4") as caught:
        read(tmp_path, text, no_test_rows())
    assert caught.value.name == "FILE_SYNTAX"


def test_bytes_that_are_no_text_are_refused_without_a_value(tmp_path: Path) -> None:
    file = tmp_path / "site.csv"
    file.write_bytes(b"age,sex,sick\n40,0,0\n\xff\xfe" + CELL.encode() + b",0,1\n")
    with pytest.raises(ConfigError, match="FILE_SYNTAX") as caught:
        load(no_test_rows(), file)
    assert CELL not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FILE_MISSING") as caught:
        load(no_test_rows(), tmp_path / "gone.csv")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_of_unused_rows_only_is_empty(tmp_path: Path) -> None:
    terms = study(TWO, more="split: {column: part}")
    with pytest.raises(DataError, match="DATA_EMPTY"):
        read(tmp_path, "age,sex,sick,part\n40,0,0,\n", terms)
    with pytest.raises(DataError, match="no training row"):
        read(tmp_path, "age,sex,sick,part\n40,0,0,test\n", terms)


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD + "\n\n", no_test_rows()).train.rows == 2


def test_a_quoted_cell_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = '\ufeff"age","sex","sick"\r\n"40","0","0"\r\n50,1,1\r\n'
    assert read(tmp_path, text, no_test_rows()).train.rows == 2


def test_a_statistics_study_needs_no_labels_and_uses_every_row(tmp_path: Path) -> None:
    from common.study import parse_study

    terms = parse_study(
        "schema: fedcare.study/v1\nid: stat-study\nkind: statistics\npurpose: research\n"
        "dataset: t\nowner: {name: n, organisation: o}\n"
        "features: [{name: age, type: float, range: [18, 110]}]\n"
    )
    data = read(tmp_path, "age\n40\n50\n60\n", terms)
    assert (data.train.rows, data.test.rows) == (3, 0)
