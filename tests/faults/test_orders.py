"""A run that waits for a set that never comes back: the doctor says so, and people may lift it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.clock import SystemClock
from common.entropy import OsEntropy
from common.errors import Refusal, RoundError, StateError
from common.ids import RunId, site_name
from common.secagg.messages import Propose
from common.secagg.node_state import decode_state
from common.views import RunPhase
from coordinator.doctor import Findings, examine, text_of
from hospital_node import orders as node_orders
from hospital_node.store import NodeStore
from tests.faults.test_backup import OWNER, settings
from tests.faults.test_old_backup import given_orders
from tests.federation import Federation


def finding(fed: Federation) -> Findings:
    (found,) = examine(settings(fed), OWNER, None)
    return found


def ready(fed: Federation) -> int:
    """Return how many are here and could take part in a round, as long as none is open."""
    waiting = fed.state.round
    if waiting is None or waiting.header is not None:
        return 0
    return len({node for node, _ in waiting.ready} & fed.state.connected)


async def test_a_set_that_never_comes_back_is_lifted_by_people_on_both_sides(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed", rounds=2, deadline="20s") as fed:
        # Two sign, two are gone: fewer than the quorum, so the round is voided.
        fed.on_send("va", Propose, fed.kill)
        fed.on_send("hungarian", Propose, fed.kill)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.agreed))
        fed.start("hungarian")
        await fed.until(lambda: ready(fed) == 3)
        found = finding(fed)
        waited = found.agreed
        assert waited is not None
        assert waited.sites == ("cleveland", "hungarian", "switzerland", "va")
        assert waited.signed
        assert set(waited.signed) <= {"cleveland", "switzerland"}
        assert set(waited.signed) | set(waited.unknown) == set(waited.sites)
        assert found.state == "running"
        assert found.round == 0
        assert [record.reason for record in found.voided] == ["NOT_ENOUGH"]
        (line,) = [line for line in found.advice if "unlock" in line]
        signed = ", ".join(waited.signed)
        order = f"at {signed} say `fedcare node unlock pattern --set {waited.code} "
        assert order in line
        assert found.since is not None
        assert abs(found.since - SystemClock().unix()) < 60
        text = text_of(found)
        for word in ("va", "voided", f"10.4) {waited.code}", "disk:", "next:"):
            assert word in text
        await fed.kill_coordinator()
        async with given_orders(fed) as held:
            with pytest.raises(RoundError):
                held.unlock(RunId("nothing"), "x")
            assert fed.run_id is not None
            assert held.unlock(fed.run_id, "va has left the consortium") == waited
        lifted = finding(fed).agreed
        assert lifted == replace(waited, lifted=True), "hospitals still have to be told"
        async with given_orders(fed) as held:
            with pytest.raises(RoundError):
                held.unlock(fed.run_id, "twice")
        for site in ("cleveland", "switzerland"):
            await _unlock_at(fed, site, waited.code)
        fed.start_coordinator()
        run = await fed.finish()
        fed.check(run)
        assert {site_name(node) for node in run.history[-1].survivors} == {
            "cleveland",
            "hungarian",
            "switzerland",
        }
        assert fed.count("loss.accepted", site="cleveland") == 1
        (over,) = examine(settings(fed), OWNER, fed.run_id)
        assert over.state == RunPhase.FINISHED.value
        assert over.advice[0].startswith("Nothing")


async def _unlock_at(fed: Federation, site: str, code: str) -> None:
    """Give the order at a hospital that runs, and start it again."""
    state = fed.plan.site_folder(site) / "state"
    with pytest.raises(StateError) as locked:
        NodeStore.open(state, OsEntropy())
    assert locked.value.name == "STATE_LOCKED"
    fed.nodes[site].stop()
    await fed.serving[site]
    with NodeStore.open(state, OsEntropy()) as store:
        before = _remembered(store)
        node_orders.unlock(store, "pattern", code, "va has left", SystemClock())
        assert len(_remembered(store)) == len(before) - 96
        with pytest.raises(RoundError):
            node_orders.unlock(store, "another", code, "x", SystemClock())
    (order,) = node_orders.orders(state)
    assert (order.what, order.task, order.reason) == ("unlock", "pattern", "va has left")
    fed.start(site)


def _remembered(store: NodeStore) -> bytes:
    record = store.load_session("pattern")
    assert record is not None
    return decode_state(record.state).rerun.records


async def test_the_doctor_says_who_owes_an_upload_and_until_when(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=1) as fed:
        seen: list[Findings] = []

        async def look(_: str) -> None:
            seen.append(finding(fed))

        fed.on_send("va", Propose, look)
        await fed.run()
    (found,) = seen
    assert found.what == "commit"
    assert "va" in found.waiting_for
    assert found.until is None


async def test_the_commands_answer_with_one_envelope(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Federation(tmp_path / "fed", rounds=1) as fed:
        await fed.run()
    settings(fed)
    folder = fed.plan.coordinator_folder
    config = ["--config", str(folder / "coordinator.yaml")]
    copy, into = str(tmp_path / "copy.tar"), str(tmp_path / "state")

    def ask(*words: str) -> tuple[int, dict[str, Any]]:
        code = main([*words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    code, made = ask("coordinator", "backup", copy, *config)
    assert code == 0
    assert made["data"]["database"] == "sqlite"
    code, restored = ask("coordinator", "restore", copy, "--into", into, *config)
    assert code == 0
    assert restored["data"]["manifest_sha256"] == made["data"]["manifest_sha256"]
    code, _ = ask("coordinator", "restore", copy, "--into", into, *config)
    assert code != 0
    code, good = ask("coordinator", "verify", *config)
    assert code == 0
    assert good["data"]["damaged"] == {}
    code, found = ask("doctor", "pattern", *config)
    assert code == 0
    assert found["data"]["runs"][0]["state"] == "finished"
    code, _ = ask("coordinator", "accept-loss", "--reason", "none is lost", *config)
    assert code != 0
    site = ["--config", str(fed.plan.site_folder("va") / "node.yaml")]
    code, _ = ask("node", "verify", *site)
    assert code == 0
    # All its sums were opened: none may be forgotten, whatever code anybody names.
    with NodeStore.open(fed.plan.site_folder("va") / "state", OsEntropy()) as store:
        record = store.load_session("pattern")
        assert record is not None
        last = decode_state(record.state).rerun.last_code
    for named in (last, "0123456789abcdef", "no code"):
        code, _ = ask("node", "unlock", "pattern", "--set", named, "--reason", "a test", *site)
        assert code != 0
    code, listed = ask("node", "orders", *site)
    assert listed["data"] == {"orders": []}


@pytest.mark.fault("F70")
async def test_a_hospital_that_did_not_sign_the_set_forgets_none_that_was_opened(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "fed", rounds=3, deadline="20s", gather="60s") as fed:
        await fed.until(lambda: fed.service is not None and len(fed.service._tasks_with_keys) == 4)
        # Round 1 opens with everybody. In round 2 two vanish with their Propose unread.
        fed.on_send("va", Propose, fed.kill, skip=1)
        fed.on_send("hungarian", Propose, fed.kill, skip=1)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.agreed))
        waited = finding(fed).agreed
        assert waited is not None
        assert "hungarian" in waited.unknown
        codes = {site: _code_at(fed, site) for site in ("hungarian", "va")}
        for site, last in codes.items():
            assert last != waited.code
            with NodeStore.open(fed.plan.site_folder(site) / "state", OsEntropy()) as store:
                before = _remembered(store)
                with pytest.raises(RoundError, match="did not sign") as refused:
                    node_orders.unlock(store, "pattern", waited.code, "x", SystemClock())
                assert refused.value.name == "NOT_FOUND"
                # Nor on the word of somebody who knows the code of the set before.
                with pytest.raises(Refusal, match="was opened") as opened:
                    node_orders.unlock(store, "pattern", last, "x", SystemClock())
                assert opened.value.name == "RERUN"
                assert _remembered(store) == before
                assert not node_orders.orders(store.root)


def _code_at(fed: Federation, site: str) -> str:
    with NodeStore.open(fed.plan.site_folder(site) / "state", OsEntropy()) as store:
        record = store.load_session("pattern")
        assert record is not None
        return decode_state(record.state).rerun.last_code
