"""The report says which model each hospital ended with and why, whatever the study predicts."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from researcher.comparison import Assessment, Comparison
from researcher.personal import PersonalFigures, rows, section

SITES = ("north", "east & co")
WHY = {
    "north": "Smallest log-loss for held-out training patients: 0.4100 against 0.5000 of own.",
    "east & co": "The released model is kept: <too few> patients to compare on.",
}
CHOSEN = {"north": "fine-tuned", "east & co": "federated"}


def judged(name: str, first: float, second: float | None) -> Assessment:
    by_site: dict[str, dict[str, float | None]] = {
        "north": {name: first},
        "east & co": {name: second},
    }
    return Assessment(pooled={name: first}, by_site=by_site)


def comparison(name: str, *, personal: bool = True) -> Comparison:
    own = PersonalFigures(dict(CHOSEN), dict(WHY), judged(name, 0.91, None))
    return Comparison(
        federated=judged(name, 0.82, 0.5),
        local_only=judged(name, 0.73, 0.4),
        at_home={},
        elsewhere={},
        centralised=judged(name, 0.8, 0.8),
        scores={},
        personal=own if personal else None,
    )


class Words(HTMLParser):
    """The text of cells and list items, and which tags were opened and closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[list[str]] = []
        self.reasons: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag == "td":
            self.cells[-1].append("")
        elif tag == "li":
            self.reasons.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1][-1] += data
        elif self.open and self.open[-1] == "li":
            self.reasons[-1] += data


@pytest.mark.parametrize("name", ["auroc", "c_index", "accuracy", "log_loss", "r2"])
def test_every_hospital_is_named_with_its_model_its_reason_and_three_figures(name: str) -> None:
    page = Words(section(comparison(name)))
    assert page.open == []
    assert page.reasons == [f"{site}: {WHY[site]}" for site in SITES]
    shown = [row for row in page.cells if row]
    assert shown == [
        ["north", "fine-tuned", "0.910", "0.820", "0.730"],
        ["east & co", "federated", "\N{EN DASH}", "0.500", "0.400"],
        ["mean of hospitals", "", "0.910", "0.660", "0.565"],
    ]


def test_a_figure_that_has_no_title_leaves_the_reasons() -> None:
    page = Words(section(comparison("brier")))
    assert page.reasons == [f"{site}: {WHY[site]}" for site in SITES]
    assert [row[0] for row in page.cells if row] == [*SITES, "mean of hospitals"]


def test_without_personal_models_there_is_no_section_and_no_row() -> None:
    assert section(comparison("auroc", personal=False)) == ""
    assert rows(comparison("auroc", personal=False), "auroc") == []
