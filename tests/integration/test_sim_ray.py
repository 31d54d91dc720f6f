"""`fedcare sim --engine ray`: hospitals in other processes, the same model to the last bit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from common.errors import ConfigError, FedError
from common.site import Site
from common.study import parse_study
from researcher import engines
from researcher.engines import engine_of, local_engine
from researcher.progress import LineDisplay
from researcher.sim import simulate
from tests.integration.test_sim import STUDY, write_site


@pytest.fixture
def sites(tmp_path: Path) -> list[Site]:
    return [write_site(tmp_path, name, seed) for seed, name in enumerate(("north", "east", "west"))]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_over_ray_a_seed_gives_the_model_that_it_gives_in_one_process(sites: list[Site]) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: make install has it")
    study = parse_study(STUDY)
    alone = simulate(study, sites, LineDisplay(), time.monotonic())
    over_ray = simulate(study, sites, LineDisplay(), time.monotonic(), engine_of("ray"))
    for what in ("model_sha256", "metrics", "over_the_wire"):
        assert over_ray.data[what] == alone.data[what]


def test_an_unknown_engine_and_one_that_is_not_installed_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engine_of("local") is local_engine
    with pytest.raises(ConfigError, match="local or ray, not spark"):
        engine_of("spark")
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="NOT_INSTALLED"):
        engine_of("ray")


def test_a_hospital_that_ends_by_itself_ends_the_simulation(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ends:
        async def run(self) -> None:
            return

        def stop(self) -> None:
            return

    monkeypatch.setattr(engines, "build_node", lambda *_args, **_more: Ends())
    with pytest.raises(FedError, match="ended by itself"):
        simulate(parse_study(STUDY), sites, LineDisplay(), time.monotonic())
