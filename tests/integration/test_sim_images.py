"""A network learns from hospitals' images without one of them leaving."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from common.site import Site, load_site
from common.study import parse_study
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.pictures import STUDY, shapes, write_png


def sites_of(folder: Path, images: int) -> list[Site]:
    sites = []
    for seed, name in enumerate(("north", "east", "west")):
        section = write_png(folder / name, *shapes(images, seed))
        manifest = folder / name / "site.yaml"
        manifest.write_text(f"schema: fedcare.site/v1\nid: {name}\ndata: [{section}]\n")
        sites.append(load_site(manifest))
    return sites


@pytest.mark.slow
def test_three_hospitals_learn_discs_from_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    sites = sites_of(tmp_path, 40)
    result = simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic())
    auroc = result.comparison.federated.pooled["auroc"]
    assert auroc is not None
    assert auroc > 0.9


@pytest.mark.slow
def test_a_study_of_images_that_asks_for_personal_models_has_one_at_every_hospital(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    asked = STUDY + "personal: {enabled: true, candidates: [federated, recalibrated, own]}\n"
    asked = asked.replace("channels: [8, 16]", "channels: [2]")
    result = simulate(parse_study(asked), sites_of(tmp_path, 24), LineDisplay(), time.monotonic())
    found = result.comparison.personal
    assert found is not None
    assert set(found.chosen) == {"north", "east", "west"}
    assert all("held-out training patients" in why for why in found.why.values())
