from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from common.errors import ConfigError
from common.ids import RunId, SiteName, StudyId
from common.medical import wilson
from common.multiclass import exact
from common.views import RoundView, RunPhase, RunView, SiteView
from researcher import plots
from researcher.comparison import Assessment, Comparison, Figures, Scored, assess
from researcher.progress import LineDisplay, LiveDisplay
from researcher.report import MEAN, ReportFacts, comparison_rows, html
from researcher.show import run_data, run_text
from researcher.sim_cli import by_level
from researcher.staging import staged
from tests import release_factory as factory
from tests.learning import study

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}


def scored(seed: int, rows: int = 60, *, one_class: bool = False) -> Scored:
    rng = np.random.Generator(np.random.PCG64(seed))
    target = np.ones(rows) if one_class else (rng.random(rows) < 0.5).astype(np.float64)
    noise = rng.normal(0.0, 1.0, rows)
    return Scored(1 / (1 + np.exp(-(2 * target - 1 + noise))), target)


def comparison(*, one_class: bool = False) -> Comparison:
    scores = {
        "cleveland": scored(1),
        "hungarian": scored(2),
        "va": scored(3, one_class=one_class),
    }
    federated = assess(factory.study(), scores)
    local = assess(factory.study(), {site: scored(9 + n) for n, site in enumerate(scores)})
    return Comparison(
        federated=federated,
        local_only=local,
        at_home=local.pooled,
        elsewhere=dict.fromkeys(scores, federated.by_site["cleveland"]),
        centralised=federated,
        scores=scores,
    )


def round_view(number: int, kind: str = "train", state: str = "CLOSED") -> RoundView:
    sites = [SiteName(site) for site in factory.SITES]
    return RoundView(
        number, kind, state, tuple(sites[:2]), (sites[2],), 0.25, "too few", bytes(32), bytes(32)
    )


def run_view(state: RunPhase = RunPhase.FINISHED) -> RunView:
    history = (
        round_view(1, "statistics"),
        round_view(2, state="ABORTED"),
        round_view(2),
        round_view(3, "evaluate"),
    )
    site = SiteView(SiteName("va"), True, "training", "its update", "")  # noqa: FBT003
    return RunView(
        RunId("run-1"), StudyId("small-study"), state, 3, 3, (site,), history,
        (("auroc", 0.9),), "ab" * 32, "", 12.5, 3.5,
    )  # fmt: skip


def facts(found: Comparison) -> ReportFacts:
    data = {"tls": "1.3", "seconds_to_first_round": 3.5, "seconds": 12.5}
    return ReportFacts(
        factory.study(), run_view(), factory.release().manifest, found, data,
        "Data by <somebody>, CC BY 4.0.", 1_800_000_000.0,
    )  # fmt: skip


class Checker(HTMLParser):
    """Notes what a browser would fetch or run, and whether the tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.svgs += tag == "svg"
        if tag in ("script", "iframe", "object", "embed", "link", "img"):
            self.outside.append(tag)
        for name, value in attrs:
            inside = (value or "").startswith(("#", "http://www.w3.org/"))
            if name in ("src", "href", "xlink:href") and not inside:
                self.outside.append(f"{name}={value}")
            if name.startswith("on"):
                self.outside.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li", "td", "th", "tr") and self.open and self.open[-1] != tag:
            return
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return html(facts(comparison()))


def test_the_page_needs_no_other_file_and_runs_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.outside == []
    assert checker.open == []
    assert checker.svgs == 8
    assert "url(http" not in page
    assert "@import" not in page


def test_the_page_states_the_limits_and_the_attribution(page: str) -> None:
    for words in (
        "no differential privacy was applied",
        "Data by &lt;somebody&gt;, CC BY 4.0.",
        "conspires with 1 of the 3 hospitals",
        "model verify",
        factory.release().manifest.model_sha256,
    ):
        assert words in page


def test_two_hospitals_are_told_that_they_see_each_other() -> None:
    found = comparison()
    two = dict(list(found.scores.items())[:2])
    text = html(facts(replace(found, scores=two)))
    assert "each can compute the other's update" in text


def test_a_hospital_with_one_class_has_a_dash_and_no_nan() -> None:
    found = comparison(one_class=True)
    assert found.federated.by_site["va"]["auroc"] is None
    text = html(facts(found))
    assert "one class only" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert comparison_rows(found)[2][:3] == ("va", "60", "-")


def test_the_mean_of_hospitals_passes_over_those_without_a_value() -> None:
    figures: dict[str, Figures] = {"a": {"auroc": 0.5}, "b": {"auroc": None}, "c": {"auroc": 0.7}}
    assert Assessment({"auroc": 0.1}, figures).mean_of_sites == {"auroc": pytest.approx(0.6)}
    rows = comparison_rows(comparison())
    assert [row[0] for row in rows[-2:]] == [MEAN, "all test patients"]


def test_a_titles_markup_stays_text() -> None:
    study = factory.study().model_copy(update={"title": "<script>x</script>"})
    text = html(replace(facts(comparison()), study=study))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_metrics_are_those_of_scikit_learn_over_all_rows() -> None:
    found = comparison()
    rows = plots.together(found.scores)
    auroc = roc_auc_score(rows.target, rows.predictions)
    assert found.federated.pooled["auroc"] == pytest.approx(auroc)
    assert found.federated.pooled["rows"] == 180


def test_the_roc_curve_is_that_of_scikit_learn_also_with_ties() -> None:
    rows = scored(5)
    tied = Scored(np.round(rows.predictions, 1), rows.target)
    points = plots.roc_points(tied)
    false, true, _ = roc_curve(tied.target, tied.predictions, drop_intermediate=False)
    assert points is not None
    np.testing.assert_allclose(points[0], false)
    np.testing.assert_allclose(points[1], true)
    assert plots.roc_points(scored(5, one_class=True)) is None


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 10)[0] == 0.0
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)


def test_calibration_bins_hold_every_row_once() -> None:
    rows = scored(6, rows=61)
    bins = plots.calibration_bins(rows.predictions, rows.target)
    assert sum(entry[4] for entry in bins) == 61
    assert sum(entry[1] * entry[4] for entry in bins) == pytest.approx(rows.target.sum())
    assert len(plots.calibration_bins(rows.predictions[:3], rows.target[:3])) == 1


def test_a_void_round_is_counted_once_in_the_timeline() -> None:
    history = run_view().history
    assert plots._labels(history) == ["sums", "1", "1", "test"]
    assert "void" in plots.timeline(history, factory.SITES)


# --- what is shown of runs --------------------------------------------------------------------


def test_a_run_is_shown_whole_and_serialises() -> None:
    text = run_text(run_view())
    for words in ("finished", "statistics", "ABORTED", "too few", "auroc 0.9"):
        assert words in text
    data = json.loads(json.dumps(run_data(run_view()), allow_nan=False))
    assert data["state"] == "finished"
    assert data["history"][2]["dropped"] == ["va"]
    assert data["metrics"] == {"pooled": {"auroc": 0.9}}


def test_plain_progress_is_a_line_a_change_and_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    screen = LineDisplay()
    with screen:
        screen.step("starting")
        screen.show(run_view(RunPhase.RUNNING))
        screen.show(run_view(RunPhase.RUNNING))
        objecting = SiteView(SiteName("va"), True, "refused", "", "no \x1b[31m")  # noqa: FBT003
        screen.show(replace(run_view(), sites=(objecting,)))
    out = capsys.readouterr().out
    assert out.count("round 2 of 3 (train) CLOSED") == 1
    assert out.count("run run-1 running") == 1
    assert "refused: no" in out
    assert "\x1b" not in out


def test_the_live_picture_has_a_row_for_each_hospital_and_a_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LiveDisplay("demo") as screen:
        screen.step("starting")
        screen.show(run_view(RunPhase.RUNNING))
    out = capsys.readouterr().out
    assert "va" in out
    assert "training" in out
    assert "round 3 of 3" in out


# --- result folders -----------------------------------------------------------------------------


KNOWN = frozenset({"report.json", "model"})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_result_replaces_only_a_previous_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for text in ("first", "second"):
        with staged(out, "report.json", KNOWN) as staging:
            (staging.work / "report.json").write_text(text)
            assert not (out / "report.json").exists() or text == "second"
    assert (out / "report.json").read_text() == "second"
    assert names(tmp_path) == {"out"}


def test_a_failure_leaves_the_previous_result_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged(out, "report.json", KNOWN) as staging:
        (staging.work / "report.json").write_text("good")

    def fail() -> None:
        with staged(out, "report.json", KNOWN) as staging:
            (staging.work / "report.json").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (out / "report.json").read_text() == "good"
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("found", [{"mine.txt"}, {"report.json", "mine.txt"}, {"model"}])
def test_a_folder_with_anything_else_in_it_is_refused(tmp_path: Path, found: set[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in found:
        (out / name).write_text("x")
    with pytest.raises(ConfigError) as caught, staged(out, "report.json", KNOWN):
        raise AssertionError("entered")
    assert caught.value.name == "OUTPUT_EXISTS"
    assert names(out) == found


def test_an_empty_folder_may_be_filled_and_a_file_may_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with staged(tmp_path / "empty", "report.json", KNOWN) as staging:
        (staging.work / "report.json").write_text("x")
    assert names(tmp_path / "empty") == {"report.json"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError), staged(tmp_path / "file", "report.json", KNOWN):
        raise AssertionError("entered")


def test_a_simulation_prints_each_level_against_the_rest() -> None:
    levels = ("benign", "doubtful", "malignant")
    terms = study(target=f"{{type: multiclass, name: kind, levels: [{', '.join(levels)}]}}")
    rng = np.random.default_rng(1)
    p, y = rng.dirichlet(np.ones(3), 90), rng.integers(0, 3, 90).astype(np.float64)
    found = replace(comparison(), by_level=exact(terms, p, y))
    text = "\n".join(by_level(found))
    assert all(f"said {level}" in text for level in levels)
    assert text.count("malignant") == 3  # its figures, its row and its column
    assert by_level(comparison()) == []
    body = json.loads(json.dumps(found.metrics()))
    assert np.array(body["confusion"]).sum() == 90
