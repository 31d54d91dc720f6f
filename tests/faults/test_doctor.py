"""Whatever a run waits for, the doctor tells from the store alone: what, whose, and what to do."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import yaml

from common.ids import hospital_id
from common.secagg.messages import KeyAdvert, Refused, RoundStart, UploadEnd
from coordinator import doctor
from coordinator.app import lock_state
from coordinator.doctor import Findings, examine, text_of
from tests.faults.record import record
from tests.faults.test_backup import OWNER, settings
from tests.federation import NAME, Federation


def finding(fed: Federation) -> Findings:
    (found,) = examine(settings(fed), OWNER, None)
    return found


def _members(fed: Federation) -> int:
    session = fed.state.session
    return 0 if session is None else len(session.members)


def _uploads(fed: Federation) -> int:
    current = fed.state.round
    return 0 if current is None else len(current.uploads)


def says(found: Findings, *words: str) -> None:
    text = text_of(found)
    for word in words:
        assert word in text, (word, text)


def next_of(found: Findings, word: str) -> str:
    """Return the one piece of advice that has a word in it."""
    (line,) = [line for line in found.advice if word in line]
    return line


async def test_too_few_hospitals_then_their_keys_then_an_upload_and_whose(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=2, setup="60s") as fed:
        for site in ("va", "hungarian"):
            await fed.kill(site)
        await fed.submit()
        await fed.until(lambda: len(fed.state.accepted) == 2)
        found = finding(fed)
        says(found, "2 of 4 hospitals accepted", "waits for hungarian, va: decision")
        assert next_of(found, "have to accept").endswith("2 have; ask hungarian, va.")

        fed.on_send("hungarian", KeyAdvert, fed.kill)
        fed.on_send("va", UploadEnd, fed.kill)
        fed.start("hungarian")
        await fed.until(lambda: "hungarian" not in fed.nodes)
        await fed.until(lambda: _members(fed) >= 2)
        found = finding(fed)
        says(found, "is set up: the hospitals make their keys", "hungarian: keys, since")
        assert found.until is not None
        assert found.since is not None
        assert found.until - found.since == 60.0
        assert "node status" in next_of(found, "hungarian")

        fed.start("hungarian")
        fed.start("va")
        await fed.until(lambda: _uploads(fed) >= 3)
        found = finding(fed)
        says(found, "round 1 (train) is running: 3 have given their upload", "waits for va: upload")
        assert found.until is not None
        assert "it is over: goes on without them" in next_of(found, "va: `fedcare node status`")
    record("F20", trials=3, failures=0)


async def test_refused_rounds_and_whether_anybody_serves(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fed", rounds=1, deadline="60s") as fed:

        async def refuse(site: str) -> None:
            assert fed.service is not None
            assert fed.state.round is not None
            said = Refused(fed.state.round.hd, "BUDGET", "the round would pass its limit")
            await fed.service.receive(hospital_id(NAME, site), "pattern", said)
            await fed.kill(site)

        for site in ("va", "hungarian"):
            fed.on_send(site, RoundStart, refuse)
        await fed.submit()
        await fed.until(lambda: any(not one.opened for one in fed.state.history))
        found = finding(fed)
        assert found.voided[0].reason == "NOT_ENOUGH"
        says(found, "voided: round 1 (train), NOT_ENOUGH", "readiness, since")
        assert next_of(found, "the store does not know").startswith("A round opens once 3 of")
        assert "protocol.refused" in next_of(found, "fedcare explain NOT_ENOUGH")
        assert {line["code"] for line in fed.told("protocol.refused")} == {"BUDGET"}
        assert "fedcare coordinator serve" in next_of(found, "No coordinator serves")
        with lock_state(settings(fed).path(settings(fed).state_dir)) as lock:
            found = finding(fed)
            assert found.served
            assert not [line for line in found.advice if "No coordinator serves" in line]
            fcntl.flock(lock, fcntl.LOCK_UN)


async def test_who_refused_the_study_and_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Federation(tmp_path / "fed", rounds=1)
    policy = fed.plan.site_folder("va") / "policy.yaml"
    tree = yaml.safe_load(policy.read_text())
    tree["allow"]["datasets"] = ["other"]
    policy.write_text(yaml.safe_dump(tree))
    async with fed:
        await fed.kill("hungarian")
        await fed.submit()
        await fed.until(lambda: len(fed.state.decisions) == 3)
        found = finding(fed)
        assert [one.partition(":")[0] for one in found.refused] == ["va"]
        assert "datasets" in found.refused[0]
        assert "changes its policy" in next_of(found, "va has refused")
        assert not found.full
        monkeypatch.setattr(doctor, "free_bytes", lambda _: 0)
        assert "Free space" in next_of(finding(fed), "The disk is full")
