"""`fedcare study plan`: the numbers of a run before it runs, and who would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.cli import main
from common.entropy import OsEntropy
from common.errors import Refusal
from common.ids import hospital_id
from common.privacy.accountant import epsilon
from common.privacy.noise import NoiseStream, NoiseTable
from common.secagg.dp import DpMode, DpPlan
from common.secagg.keys import CoefficientSeed
from common.study import load_study
from common.study_privacy import study_cost
from coordinator.aggregate import noised_mean
from hospital_node.private import second_accountant
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import NodeStore
from researcher import plan as planning
from researcher.demo import run_demo
from researcher.progress import display
from researcher.sim import simulate
from researcher.studies import require_agreed_epsilon, shipped
from tests.node_world import World
from tests.policy_texts import POLICY
from tests.private_study import header_of, private_study, private_text

Capture = pytest.CaptureFixture[str]
DP = "  dp: {epsilon_total: 4.0, epsilon_per_study: 2.0}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(private_text())
    return path


def policy_file(folder: Path, text: str = POLICY, dp: str = DP) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text.replace("release:", dp + "release:"))
    return path


def planned(capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["study", "plan", *words, "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["ok"], out
    return code, out["data"]


# --- privacy ----------------------------------------------------------------------------------


def test_epsilon_is_what_the_ledgers_will_charge_with_the_estimate_beside_it(
    file: Path, capsys: Capture
) -> None:
    code, data = planned(capsys, str(file))
    study = load_study(file)
    assert code == 0
    assert data["epsilon_charged"] == epsilon(study_cost(study), 1e-5).epsilon
    assert data["epsilon_charged_again"] == pytest.approx(data["epsilon_charged"], rel=0.01)
    assert 0 < data["epsilon_estimate"] < data["epsilon_charged"] <= data["epsilon_stated"]
    assert (data["steps"], data["rounds"], data["delta"]) == (4, 4, 1e-5)
    assert main(["study", "plan", str(file)]) == 0
    text = capsys.readouterr().out
    assert f"charged    epsilon {data['epsilon_charged']:.4f} at delta 1e-05" in text
    assert "never charged" in text


def test_the_shipped_private_study_has_the_numbers_of_the_privacy_page(capsys: Capture) -> None:
    """docs/privacy.md: z 15.6686, each hospital 15.6686 C / 2, the mean 0.032 C."""
    folder = Path(planning.__file__).resolve().parents[1] / "studies"
    _, data = planned(capsys, str(folder / "heart-disease-private.yaml"), "--sites", "4")
    noise = data["noise"]
    assert noise["noise_multiplier"] == 15.6686
    assert noise["sigma_loc"] == pytest.approx(15.6686 * noise["delta_int"] / 2)
    assert noise["mean_sd_of_clip"] == pytest.approx(15.6686 / 486, rel=1e-6)
    assert noise["step_sd"] == pytest.approx(2.0 * 0.4 * 15.6686 / 486, rel=1e-6)


@pytest.mark.parametrize("mode", ["patient-distributed", "hospital"])
def test_the_error_is_that_of_noise_really_drawn_and_really_applied(mode: str) -> None:
    """Four hospitals' noise from the sampler, through the coordinator's own server step."""
    study = private_study(mode=mode)
    made = planning.make_plan(study, policies=(), nodes=(), sites=4)
    assert made.noise is not None
    terms = made.noise.terms
    total = np.zeros(100_000, np.int64)
    for site in range(4):
        stream = NoiseStream(NoiseTable.of(terms.sigma_loc), CoefficientSeed(bytes([site]) * 32))
        stream.add_to(total, 0)
    count, lr = (4, 1.0) if mode == "hospital" else (40, 1.0)
    step = noised_mean(terms, count, lr)(0, total)
    assert float(np.std(step)) == pytest.approx(made.noise.step_sd, rel=0.02)


def test_more_hospitals_than_the_fewest_add_more_noise_than_needed() -> None:
    """Section 9.1: sqrt(n / h) too much if nobody drops out."""
    few, many = (
        planning.make_plan(private_study(), policies=(), nodes=(), sites=sites).noise
        for sites in (3, 12)
    )
    assert few is not None
    assert many is not None
    assert few.terms.sigma_loc == many.terms.sigma_loc
    assert many.mean_sd == pytest.approx(2 * few.mean_sd)


def test_local_noise_is_full_noise_at_each_hospital() -> None:
    """sigma_loc = z Delta_int: one pooled step's noise is sqrt(n) larger than shared noise."""
    terms = DpPlan(DpMode.HOSPITAL, 2.0, 0.5, 4096, 0.0, 0).terms(4)
    shared = planning.shared_noise(terms, 4, 400.0)
    alone = DpPlan(DpMode.HOSPITAL, 4.0, 0.5, 4096, 0.0, 0).terms(4)  # sigma_loc = z Delta_int
    local = planning.local_noise(alone, 4, 400.0)
    assert shared == pytest.approx(2.0 * 0.5 / 400.0)
    assert local == pytest.approx(2.0 * shared)


def test_without_noise_it_says_that_nothing_is_promised(capsys: Capture, file: Path) -> None:
    lines = private_text().splitlines()
    file.write_text("\n".join(line for line in lines if "mode:" not in line) + "\n")
    code, data = planned(capsys, str(file))
    assert code == 0
    assert (data["mode"], data["noise"], data["epsilon_charged"]) == ("none", None, None)
    main(["study", "plan", str(file)])
    assert "no epsilon is charged and none is promised" in capsys.readouterr().out


def test_terms_that_every_hospital_would_refuse_are_refused_here(
    file: Path, capsys: Capture
) -> None:
    """s_min - c below 2: nobody shares the noise. The study itself states no colluders."""
    text = private_text().replace("colluders: 1, ", "")
    file.write_text(text)
    assert main(["study", "plan", str(file), "--sites", "12"]) == 1
    assert "FC-3022 DP_WEAK" in capsys.readouterr().err


# --- bytes ------------------------------------------------------------------------------------


async def test_bytes_are_those_that_really_travel(tmp_path: Path) -> None:
    world = World(tmp_path, size=5000, rounds=1)
    world.start_all()
    await world.finish()
    (train,) = planning.make_plan(world.study, policies=(), nodes=(), sites=4).traffic
    assert {len(spool) for spool in world.coordinator.spools.values()} == {train.upload}
    assert {len(file) for file in world.coordinator.objects.values()} == {train.download}
    assert train.rounds == world.study.federation.rounds


def test_all_rounds_of_all_hospitals_are_added_up(capsys: Capture, file: Path) -> None:
    _, data = planned(capsys, str(file), "--sites", "5")
    (train,) = data["traffic"]
    one = train["rounds"] * (train["upload_bytes"] + train["download_bytes"])
    assert (data["bytes_per_site"], data["bytes_in_all"]) == (one, 5 * one)


# --- who would refuse -------------------------------------------------------------------------


def test_a_policy_that_allows_it_accepts_and_says_how_many_more_fit(
    file: Path, capsys: Capture
) -> None:
    policy = policy_file(file.parent)
    code, data = planned(capsys, str(file), "--policy", str(policy))
    assert code == 0
    (verdict,) = data["hospitals"]
    assert (verdict["site"], verdict["accepts"], verdict["ledger_read"]) == (
        "cleveland",
        True,
        False,
    )
    assert data["sites"] == 4  # as many as the policy's members
    main(["study", "plan", str(file), "--policy", str(policy)])
    assert "such studies fit into what is left" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "code", "rule"),
    [
        ("purposes: [research]", "purposes: [audit]", "POLICY_PURPOSE", "allow.purposes"),
        (
            "epsilon_per_study: 2.0",
            "epsilon_per_study: 0.5",
            "POLICY_DP",
            "require.dp.epsilon_per_study",
        ),
        ("epsilon_total: 4.0", "epsilon_total: 0.5", "POLICY_DP", "require.dp.epsilon_total"),
    ],
)
def test_a_policy_that_forbids_it_is_named_with_rule_file_and_line(
    file: Path, capsys: Capture, old: str, new: str, code: str, rule: str
) -> None:
    policy = policy_file(file.parent, POLICY.replace(old, new), DP.replace(old, new))
    exit_code, data = planned(capsys, str(file), "--policy", str(policy))
    assert exit_code == 1
    (reason,) = data["hospitals"][0]["reasons"]
    assert (reason["code"], reason["rule"]) == (code, rule)
    assert reason["where"].startswith("policy.yaml:")
    assert main(["study", "plan", str(file), "--policy", str(policy)]) == 1
    text = capsys.readouterr().out
    assert "cleveland: REFUSES" in text
    assert f"  {code}: " in text


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A hospital that has spent most of its budget on another study."""
    policy_file(tmp_path, dp="  dp: {epsilon_total: 2.0, epsilon_per_study: 2.0}\n")
    path = tmp_path / "node.yaml"
    path.write_text("schema: fedcare.node/v1\nsite: null\n")
    own = hospital_id("heart-network", "cleveland")
    with NodeStore.open(tmp_path / "state", OsEntropy()) as store:
        books = Books(store, own, Limits(2.0, 2.0, 1e-5), OsEntropy(), lambda: 1)
        earlier = private_study("study-z", epsilon=1.9)
        books.admit(earlier, accepted=False)
        for r in range(1, 5):
            books.charge(earlier, header_of(earlier, r))
    return path


def test_a_nodes_ledger_is_read_and_left_alone(file: Path, node: Path, capsys: Capture) -> None:
    ledger = node.parent / "state" / "ledger"
    before = {path: path.read_bytes() for path in ledger.iterdir()}
    code, data = planned(capsys, str(file), "--node", str(node))
    assert code == 1
    (reason,) = data["hospitals"][0]["reasons"]
    assert (reason["code"], reason["rule"]) == ("BUDGET", "require.dp.epsilon_total")
    assert "epsilon 1.9000 is spent, this costs 1.0000" in reason["text"]
    assert data["hospitals"][0]["ledger_read"] is True
    assert {path: path.read_bytes() for path in ledger.iterdir()} == before


def test_a_nodes_damaged_ledger_is_a_reason(file: Path, node: Path, capsys: Capture) -> None:
    (node.parent / "state" / "ledger" / "heart.jsonl").unlink()
    code, data = planned(capsys, str(file), "--node", str(node))
    assert code == 1
    assert data["hospitals"][0]["reasons"][0]["code"] == "LEDGER_LOST"


def test_wrong_files_are_one_line(file: Path, capsys: Capture, tmp_path: Path) -> None:
    assert main(["study", "plan", str(file), "--policy", str(tmp_path / "none.yaml")]) == 4
    assert "FC-1001" in capsys.readouterr().err
    assert main(["study", "plan", str(file), "--sites", "1"]) == 4


# --- two accountants --------------------------------------------------------------------------


def test_plan_sim_and_demo_refuse_a_study_on_which_two_accountants_disagree(
    file: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_accountant, "charged_again", lambda *_: 1.5)
    assert main(["study", "plan", str(file)]) == 5
    assert "FC-1106 ACCOUNTANT" in capsys.readouterr().err
    private, out = shipped("heart-disease-private"), tmp_path / "out"
    sites: list[Any] = [SimpleNamespace(id=name) for name in ("a", "b", "c", "d")]
    with display("test") as screen:
        with pytest.raises(Refusal, match="ledger's accountant charges"):
            simulate(private, sites, screen, 0.0)
        with pytest.raises(Refusal, match="ledger's accountant charges"):
            run_demo(out, private, screen, 0.0)
    assert not out.exists()
    require_agreed_epsilon(shipped("heart-disease"))
