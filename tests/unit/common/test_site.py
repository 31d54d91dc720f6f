"""The site manifest: where data lies, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError, DataError
from common.site import load_site, load_sites, read_site
from common.site_tables import CsvTable
from tests.study_texts import altered

SITE = """\
schema: fedcare.site/v1
id: cleveland
data:
  - {name: heart, kind: csv, path: cleveland.csv, columns: {num: diagnosis}}
"""


def write(folder: Path, text: str = SITE, name: str = "site.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cleveland.csv").touch()
    path = folder / name
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_manifests_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "hospital")
    monkeypatch.chdir(tmp_path)
    site = load_site(path.relative_to(tmp_path))
    table = site.table("heart")
    assert isinstance(table, CsvTable)
    assert table.path == str(tmp_path / "hospital" / "cleveland.csv")


def test_an_absolute_path_is_the_hospitals_own_business(tmp_path: Path) -> None:
    elsewhere = tmp_path / "data.csv"
    elsewhere.touch()
    site = load_site(write(tmp_path / "h", altered(SITE, "cleveland.csv", str(elsewhere))))
    table = site.table("heart")
    assert isinstance(table, CsvTable)
    assert table.path == str(elsewhere)


def test_a_studys_column_is_looked_up_under_the_hospitals_heading(tmp_path: Path) -> None:
    table = load_site(write(tmp_path)).table("heart")
    assert (table.column("num"), table.column("age")) == ("diagnosis", "age")


def test_the_renaming_cannot_be_changed(tmp_path: Path) -> None:
    table = load_site(write(tmp_path)).table("heart")
    assert isinstance(table, CsvTable)
    with pytest.raises(TypeError):
        table.columns["num"] = "age"  # type: ignore[index]


def test_a_data_set_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data set 'hart'; did you mean 'heart'\?"):
        load_site(write(tmp_path)).table("hart")


def test_lines_are_kept(tmp_path: Path) -> None:
    source = read_site(write(tmp_path)).source
    assert source.where("data", 0, "path").endswith("site.yaml:4")


@pytest.mark.parametrize(
    ("old", "new", "name", "words"),
    [
        ("site/v1", "site/v2", "SCHEMA_VERSION", "fedcare.site/v1"),
        ("path: cleveland.csv", "file: cleveland.csv", "UNKNOWN_KEY", "site.yaml:4: unknown key"),
        ("path: cleveland.csv", "path: nope.csv", "FILE_MISSING", "site.yaml:4: data[0].path"),
        ("path: cleveland.csv", "path: .", "FILE_MISSING", "is not a file"),
        ("path: cleveland.csv", "path: 3", "BAD_VALUE", "must be text"),
        ("path: cleveland.csv", 'path: "a\\0b"', "BAD_VALUE", "U+0000"),
        ("kind: csv", "kind: cvs", "BAD_VALUE", "must be csv, parquet"),
        ("id: cleveland", "id: Cleveland!", "BAD_VALUE", "id must be 1 to 63"),
        ("{num: diagnosis}", "{num: d, age: d}", "DUPLICATE_KEY", "data[0].columns.age is the"),
        ("{num: diagnosis}", "[num]", "BAD_VALUE", "must be keys and values"),
        ("{num: diagnosis}", "{num: 3}", "BAD_VALUE", "data[0].columns.num must be text"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, name: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_site(write(tmp_path, altered(SITE, old, new)))
    assert caught.value.name == name
    assert words in caught.value.detail


def test_a_manifest_without_tables_is_refused(tmp_path: Path) -> None:
    text = "schema: fedcare.site/v1\nid: a\ndata: []\n"
    with pytest.raises(ConfigError, match="at least 1"):
        load_site(write(tmp_path, text))


def test_two_tables_of_one_name_are_refused(tmp_path: Path) -> None:
    text = SITE + SITE.splitlines()[-1] + "\n"
    with pytest.raises(ConfigError, match=r"site.yaml:5: data\[1\].name is 'heart'") as caught:
        load_site(write(tmp_path, text))
    assert caught.value.name == "DUPLICATE_KEY"


@pytest.mark.parametrize("how", ["same", "symlink", "hard link"])
def test_one_file_under_two_names_would_have_two_budgets(tmp_path: Path, how: str) -> None:
    write(tmp_path)
    file, other = tmp_path / "cleveland.csv", tmp_path / "other.csv"
    match how:
        case "same":
            other = tmp_path / ".." / tmp_path.name / "cleveland.csv"
        case "symlink":
            other.symlink_to(file)
        case _:
            other.hardlink_to(file)
    text = SITE + f"  - {{name: lungs, kind: csv, path: {other}}}\n"
    says = r"site.yaml:5: data\[1\].path .* two privacy budgets"
    with pytest.raises(ConfigError, match=says) as caught:
        load_site(write(tmp_path, text))
    assert caught.value.name == "DUPLICATE_KEY"


def test_two_hospitals_of_one_id_are_refused(tmp_path: Path) -> None:
    one, two = write(tmp_path, name="one.yaml"), write(tmp_path, name="two.yaml")
    with pytest.raises(ConfigError, match=r"two.yaml:2: id 'cleveland' is the id of .*one.yaml:2"):
        load_sites([one, two])


def test_several_hospitals_come_in_the_order_given(tmp_path: Path) -> None:
    one = write(tmp_path, altered(SITE, "id: cleveland", "id: z"), "one.yaml")
    two = write(tmp_path, altered(SITE, "id: cleveland", "id: a"), "two.yaml")
    assert [site.id for site in load_sites([one, two])] == ["z", "a"]
