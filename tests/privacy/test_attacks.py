"""The attacks of benchmarks/privacy work where nothing protects, and fail where something does.

Small runs of the scripts: real federations of four hospitals, whose coordinator keeps what
it sees.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.privacy import hearts
from benchmarks.privacy.__main__ import _PLACE, PAGE, SCRIPTS
from benchmarks.privacy.differencing import Case, attempt
from benchmarks.privacy.gradients import Network, by_sparsity
from benchmarks.privacy.inversion import study_of, views
from benchmarks.privacy.membership import Models, auroc, likelihood_ratios, true_rate
from common.models import initial, layer_widths
from hospital_node.models.perceptron import build
from hospital_node.private.gradients import patient_gradients


def test_every_record_comes_back_from_a_gradient_in_the_clear() -> None:
    study = study_of("mlp 64-64", "none", 1)
    data = hearts.encode(study, hearts.complete_rows()["cleveland"][:6])
    model = initial(study)
    blocks = patient_gradients(study, build(study, model), data.features, data.target, np.arange(6))
    mean = np.concatenate(list(blocks)).astype(np.float64).mean(axis=0)
    widths = layer_widths(study)
    found = by_sparsity(
        Network.of(model.astype(np.float64), widths), Network.of(mean, widths), 6, seed=0
    )
    assert found is not None
    distances = np.abs(found[:, np.newaxis] - data.features[np.newaxis]).max(axis=2)
    assert (distances.min(axis=0) < 0.02).all()


def test_what_a_coordinator_holds_gives_no_record_that_a_vector_in_the_clear_gives() -> None:
    recovered: dict[str, list[float]] = {}
    for view, result in views("mlp 64-64", batch=1, seed=0):
        recovered.setdefault(view, []).append(float((result.cosines > 0.95).mean()))
        assert view != "masked" or result.errors.mean() > 0.8
    assert recovered["in the clear"] == [1.0, 1.0]
    assert recovered["masked"] == [0.0, 0.0]
    assert recovered["with shared DP"] == recovered["with local DP"] == [0.0]


def test_differencing_works_on_altered_models_without_differential_privacy() -> None:
    outcome, error, cosine = attempt(Case("usual", "logistic", "none"), "altered by 1e-6")[3:6]
    assert outcome == "went through"
    assert isinstance(error, float)
    assert error < 1e-4
    assert cosine == pytest.approx(1.0)


def test_a_study_with_differential_privacy_does_not_run_twice() -> None:
    case = Case("usual", "logistic", "patient-distributed", rounds=2)
    assert attempt(case, "altered by 1e-6")[3] == "refused: BUDGET"


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.48, 0.52), (3.0, 0.95, 1.0)])
def test_the_membership_attack_sees_what_members_margins_show(
    shift: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(5)
    member = rng.random((40, 500)) < 0.5
    own = rng.normal(0, 5, 500)  # patients differ among themselves more than by membership
    margins = own + rng.normal(size=member.shape) + shift * member
    scores = likelihood_ratios(Models(margins, member, np.zeros(40)))
    assert low <= auroc(scores[member], scores[~member]) <= high
    if shift:
        assert true_rate(scores[member], scores[~member]) > 0.5


def test_the_page_has_a_figure_in_every_place() -> None:
    page = PAGE.read_text(encoding="utf-8")
    places = list(_PLACE.finditer(page))
    assert {place[2].split("-")[0] for place in places} >= {*SCRIPTS, "runs"}
    for place in places:
        assert place[0].count("\n|") >= 3, place[2]
