"""A network learns from hospitals' images without one of them leaving."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from common.site import load_site
from common.study import parse_study
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.pictures import STUDY, shapes, write_png


@pytest.mark.slow
def test_three_hospitals_learn_discs_from_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    sites = []
    for seed, name in enumerate(("north", "east", "west")):
        section = write_png(tmp_path / name, *shapes(40, seed))
        manifest = tmp_path / name / "site.yaml"
        manifest.write_text(f"schema: fedcare.site/v1\nid: {name}\ndata: [{section}]\n")
        sites.append(load_site(manifest))
    result = simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic())
    auroc = result.comparison.federated.pooled["auroc"]
    assert auroc is not None
    assert auroc > 0.9
