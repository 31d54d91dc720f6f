"""Statistics studies through whole federations: in one process, and over mutual TLS."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import FedError
from common.manifest import STATISTICS_FILE
from common.site import Site, load_site
from common.statistics_file import NumberEntry, StatisticsFile
from common.study import canonical_json
from common.views import RunPhase
from researcher import table_one
from researcher.client import Client
from researcher.local import SitePlan
from researcher.progress import LineDisplay
from researcher.release import pull, read_released, read_statistics, verify
from researcher.sim import simulate, simulate_statistics
from researcher.statistics_page import write_all
from tests import statistics_study as world
from tests.federation import OWNER, SITES
from tests.integration.test_federation_mtls import OverTls


def frames() -> dict[str, pd.DataFrame]:
    return {site: world.patients(150, seed) for seed, site in enumerate(SITES)}


def write(frame: pd.DataFrame, path: Path) -> Path:
    levels = {0.0: "a", 1.0: "b", 2.0: "c"}
    frame.assign(arm=frame.arm.map(levels)).to_csv(path, index=False, float_format="%.17g")
    return path


def check(found: StatisticsFile, pooled: pd.DataFrame) -> None:
    assert found.columns[0].n == len(pooled)
    age = found.features[0]
    assert isinstance(age, NumberEntry)
    assert age.present[0] == pooled.age.notna().sum()
    assert age.mean[0] == pytest.approx(pooled.age.mean(), rel=1e-9)
    assert age.sd[0] == pytest.approx(pooled.age.std(), rel=1e-9)
    assert age.quantiles[1].values[0] == np.quantile(  # noqa: PD011
        pooled.age.dropna(), 0.5, method="inverted_cdf"
    )
    assert found.survival is not None
    assert found.survival.pooled is not None


@pytest.mark.slow
def test_a_simulation_gives_the_pooled_rows_figures(tmp_path: Path) -> None:
    sites: list[Site] = []
    for name, frame in frames().items():
        write(frame, tmp_path / f"{name}.csv")
        manifest = tmp_path / f"{name}.yaml"
        manifest.write_text(
            f"schema: fedcare.site/v1\nid: {name}\n"
            f"data: [{{name: heart, kind: csv, path: {name}.csv}}]\n"
        )
        sites.append(load_site(manifest))
    result = simulate_statistics(world.study(), sites, LineDisplay(), time.monotonic())
    check(result.found, pd.concat(frames().values()))
    assert result.data["rounds"] == 1
    assert StatisticsFile.from_json(result.found.to_json()) == result.found
    text = table_one.text(result.found)
    assert "all (n = 600)" in text
    assert "log-rank, stratified by hospital" in text
    folder = write_all(world.study(), result.found, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == {
        "statistics.html", "statistics.json", "table1.md",
    }  # fmt: skip
    page = (folder / "statistics.html").read_text()
    assert page.count("<svg") == 3
    with pytest.raises(FedError, match="no model to compare"):
        simulate(world.study(), sites, LineDisplay(), time.monotonic())


async def test_a_release_over_mutual_tls_verifies_and_an_altered_one_does_not(
    tmp_path: Path,
) -> None:
    clinics = [
        SitePlan(name, write(frame, tmp_path / f"{name}.csv"), in_place=True)
        for name, frame in frames().items()
    ]
    text = world.TEXT.replace("uni-x", OWNER)
    async with (
        OverTls(tmp_path / "f", clinics=clinics, study=text) as fed,
        Client(fed.address, fed.owner) as client,
    ):
        submitted = await client.submit(canonical_json(fed.study), "request-1")
        fed.run_id = submitted.run_id
        views = [view async for view in client.watch(submitted.run_id)]
        assert views[-1].state is RunPhase.FINISHED, views[-1].reason
        assert len(fed.state.receipts) == len(SITES)
        ca = fed.plan.researcher_folder / "ca.crt"
        release = await pull(client, submitted.run_id, tmp_path / "release", ca)
        found = await read_released(client, submitted.run_id, ca, read_statistics)
        kept = list((fed.plan.folder).rglob(STATISTICS_FILE))
    assert release.manifest.model_sha256 == release.manifest.file(STATISTICS_FILE).sha256
    assert release.manifest.rounds[-1].model_sha256 == release.manifest.model_sha256
    assert len(kept) == len(SITES)  # every hospital keeps what was published
    check(found, pd.concat(frames().values()))
    file = release.folder / STATISTICS_FILE
    file.write_bytes(file.read_bytes().replace(b'"n": 600', b'"n": 601'))
    with pytest.raises(FedError, match="altered"):
        verify(release.folder, ca)
