"""Personal models of studies whose strategy keeps tensors at the hospital, or fits exactly."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from common.models import full_layout, with_own
from common.site import Site
from common.study import Study, parse_study
from hospital_node.personal import artefact, make
from hospital_node.personal.choose import Choice, Rows, choose
from hospital_node.personal.fits import Weights
from hospital_node.personal_state import DITTO, FEDBN, Own
from researcher.progress import LineDisplay
from researcher.sim import SimResult, simulate
from tests.integration.test_sim import STUDY, write_site

MLP = "{kind: mlp, hidden: [4], norm: batch}"
PLAIN = "{kind: logistic}"

Seen = dict[str, tuple[Own, Weights, Choice]]


def strategy(text: str, model: str = PLAIN, candidates: str = "") -> Study:
    found = STUDY.replace("{rounds: 2,", f"{{strategy: {text}, rounds: 3,").replace(PLAIN, model)
    return parse_study(found + (f"personal: {{candidates: {candidates}}}\n" if candidates else ""))


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [write_site(tmp_path, name, seed) for seed, name in enumerate(("north", "east", "west"))]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Seen:
    """Per hospital: what the run kept there, the released weights, what it chose.

    Every personal model is read back from the disk and must be the chosen one to the bit.
    """
    found: Seen = {}

    def spy(study: Study, site: str, rows: Rows, federated: Weights, own: Own | None) -> Choice:
        choice = choose(study, site, rows, federated, own)
        found[site] = (own or {}, federated, choice)
        return choice

    original = artefact.save

    def save(folder: Path, *rest: object) -> None:
        original(folder, *rest)  # type: ignore[arg-type]
        kept = artefact.load(folder)
        weights = kept.model()[1]
        assert weights.size == full_layout(kept.study).parameters
        assert weights.tobytes() == found[kept.record["site"]][2].weights.tobytes()

    monkeypatch.setattr(make, "choose", spy)
    monkeypatch.setattr(artefact, "save", save)
    return found


def run(study: Study, sites: list[Site]) -> SimResult:
    return simulate(study, sites, LineDisplay(), time.monotonic())


def test_with_fedbn_a_hospital_keeps_its_normalisation_in_its_own_model(
    sites: list[Site], seen: Seen
) -> None:
    study = strategy("{name: fedbn}", MLP, "[fedbn]")
    found = run(study, sites).comparison.personal
    assert found is not None
    assert set(found.chosen.values()) == {"fedbn"}
    for own, released, choice in seen.values():
        assert np.array_equal(choice.weights, with_own(study, released, own[FEDBN]))
        assert not np.array_equal(choice.weights, with_own(study, released))


def test_with_fedbn_all_candidates_are_compared(sites: list[Site], seen: Seen) -> None:
    found = run(strategy("{name: fedbn}", MLP), sites).comparison.personal
    assert found is not None
    assert len(seen) == 3
    for _, _, choice in seen.values():
        names = {"federated", "fedbn", "recalibrated", "fine-tuned", "ditto", "own"}
        assert set(choice.figures) == names


def test_dittos_model_of_the_run_is_where_the_final_fit_begins_and_no_comparison(
    sites: list[Site], seen: Seen
) -> None:
    study = strategy("{name: ditto, lambda: 0.5}", candidates="[ditto]")
    run(study, sites)
    for own, _, choice in seen.values():
        assert set(own) == {DITTO}
        assert choice.setting == "lambda 0.5"
        # It is strongly convex: wherever it began it ends by the same minimum.
        assert float(np.linalg.norm(choice.weights - own[DITTO])) < 1.0


def test_an_exact_regression_has_candidates_that_are_exact(sites: list[Site], seen: Seen) -> None:
    found = run(strategy("{name: newton}"), sites).comparison.personal
    assert found is not None
    for _, _, choice in seen.values():
        fitted = {"federated", "recalibrated", "ditto", "own"}
        assert fitted <= set(choice.figures) <= {*fitted, "averaged"}
