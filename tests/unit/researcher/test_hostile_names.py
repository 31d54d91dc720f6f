"""Names are a stranger's: no page runs, no table breaks and no terminal obeys what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common import statistics_result
from common.statistics_file import StatisticsFile
from common.study import Study
from hospital_node import site_report
from researcher import medical_report, statistics_page, table_one
from researcher.comparison import Figures, SubgroupFigures
from tests import statistics_study as world
from tests.unit.researcher.test_report import comparison

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def study() -> Study:
    text = world.TEXT.replace("id: first-table", f'id: first-table\ntitle: "{SCRIPT}"')
    for old, new in (("lab", "lab<b>|"), ("arm", "arm<b>|"), ("sex", "sex<b>|")):
        text = text.replace(f"name: {old},", f'name: "{new}",')
    text = text.replace("group_by: arm", 'group_by: "arm<b>|"').replace("[[sex,", '[["sex<b>|",')
    text = text.replace("unit: mg/dL", f'unit: "{SCRIPT}|"')
    return world.study(text.replace("levels: [a, b, c]", f'levels: ["{SCRIPT}", "b|b", "c&"]'))


@pytest.fixture(scope="module")
def found(study: Study) -> StatisticsFile:
    frames = [world.patients(rows, rows) for rows in (200, 150, 100)]
    return statistics_result.published(study, world.summed(study, frames))


def test_a_page_of_statistics_holds_names_as_text(study: Study, found: StatisticsFile) -> None:
    page = statistics_page.html(study, found)
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "default-src 'none'" in page


def test_markdown_tables_keep_their_columns(found: StatisticsFile) -> None:
    made = table_one.markdown(found)
    assert "<script" not in made
    assert "<b>" not in made
    wide = [line.replace("\\|", "").count("|") for line in made.splitlines() if line[:1] == "|"]
    first = 1 + 1 + len(found.columns)
    assert set(wide[:12]) == {first}


def test_a_hospitals_own_page_holds_names_as_text() -> None:
    figures = {SCRIPT: 0.5, "auroc": SCRIPT, "auroc_low": 0.4, "auroc_high": SCRIPT}
    page = site_report.page(SCRIPT, SCRIPT, figures)
    assert page.count("&lt;script&gt;") >= 6
    assert "<script" not in page


def test_the_reports_table_of_subgroups_holds_labels_as_text() -> None:
    figures: Figures = {"auroc": 0.7, "rows": 90.0, "positives": 40.0}
    cells = (SubgroupFigures(SCRIPT, "b|b", figures), SubgroupFigures("sex", SCRIPT, None))
    made = medical_report._subgroups(
        replace(comparison(), subgroups=cells), ("all hospitals", figures)
    )
    assert made.count("&lt;script&gt;") >= 4  # in the plot and in the table
    assert "<script" not in made
