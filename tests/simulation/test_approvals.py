"""Approval from the command line to the model's card: a whole federation, and people who decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.cli import main
from common.secagg.messages import Ready
from common.views import RunPhase
from researcher.release import card_text, verify
from tests.approvers import ITO, ROSSI, WEBER, key_file, section
from tests.federation import Federation, names

SITE = "va"


class Consortium(Federation):
    """One hospital's policy names people; `node approvals` is called as they would call it."""

    def __init__(self, root: Path, *people: str, quorum: int = 1, rounds: int = 3) -> None:
        # Long enough that the others wait for what the hospital says after a break.
        super().__init__(root, rounds=rounds, gather="20s")
        self.node = self.plan.site_folder(SITE) / "node.yaml"
        self.people = root
        policy = self.plan.site_folder(SITE) / "policy.yaml"
        text = policy.read_text("utf-8")
        head, _, tail = text.partition("require:\n")
        assert tail, text
        rule = section(*people, quorum=quorum)
        policy.write_text(f"{head}require:\n  {rule}\n{tail}", encoding="utf-8")

    def call(self, *words: str) -> int:
        return main(["node", "approvals", *words, "--config", str(self.node)])

    def say(self, word: str, name: str, study: str = "pattern") -> int:
        reason = [] if word == "grant" else ["--reason", "the data were not cleared"]
        key = str(key_file(self.people, name))
        return self.call(word, study, "--as", name, "--key", key, *reason)

    async def heed(self) -> None:
        """The next heartbeat of the hospital's node, which here lasts ten seconds."""
        self.nodes[SITE]._tick()

    def site(self) -> Any:  # noqa: ANN401 - a SiteView
        assert self.service is not None
        assert self.run_id is not None
        return next(one for one in self.service.run(self.run_id).sites if one.site == SITE)


async def test_a_hospital_waits_for_two_of_three_people_and_then_takes_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Consortium(tmp_path / "f", WEBER, ITO, ROSSI, quorum=2) as fed:
        await fed.submit()
        await fed.until(lambda: fed.site().state == "waiting")
        assert fed.site().people == (WEBER, ITO, ROSSI)
        assert fed.say("grant", WEBER) == 0
        await fed.heed()
        await fed.until(lambda: fed.site().people == (ITO, ROSSI))
        assert fed.say("grant", ROSSI) == 0
        await fed.heed()
        run = await fed.finish()
        fed.check(run)
        assert all(SITE in names(record.survivors) for record in run.history)
        said = capsys.readouterr().out
        assert "approved; needed: 2 of 3; until" in said
        assert fed.count("study.waiting", site=SITE) >= 1
        assert fed.count("study.approved", site=SITE) == 1


async def test_a_denial_and_its_reason_reach_the_researcher_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    async with Consortium(tmp_path / "f", WEBER) as fed:
        await fed.submit()
        await fed.until(lambda: fed.site().state == "waiting")
        assert fed.say("deny", WEBER) == 0
        await fed.heed()
        await fed.until(lambda: fed.site().state == "refused")
        assert "APPROVAL_DENIED" in fed.site().objection
        assert "the data were not cleared" in fed.site().objection
        run = await fed.finish()
        fed.check(run)
        assert all(SITE not in names(record.survivors) for record in run.history)


async def test_a_withdrawal_with_the_coordinator_cut_off_holds_and_stands_on_the_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Consortium(tmp_path / "f", WEBER, rounds=4) as fed:
        offered: list[int] = []

        async def withdraw(site: str) -> None:
            """Between two rounds the connection breaks; a person withdraws; the node restarts."""
            await fed.cut(site)
            fed.later(restart())

        async def restart() -> None:
            await fed.stop(SITE)
            assert fed.say("withdraw", WEBER) == 0  # nobody serves and nobody listens
            offered.append(fed.count("round.training", site=SITE))
            fed.start(SITE)

        await fed.submit()
        await fed.until(lambda: fed.site().state == "waiting")
        assert fed.say("grant", WEBER) == 0
        fed.on_send(SITE, Ready, withdraw, skip=2)
        await fed.heed()
        run = await fed.finish()
        fed.check(run)
        took_part = [SITE in names(record.survivors) for record in run.history if record.opened]
        assert fed.count("round.training", site=SITE) == offered[0]
        assert fed.site().state == "withdrawn"

        release = fed.plan.site_folder("cleveland") / "state" / "releases" / run.run_id
        model = verify(release, fed.plan.folder / "pki" / "ca.crt")
        assert took_part == [True, True, False, False]
        entry = next(one for one in model.manifest.participation if one.site == SITE)
        assert (entry.first, entry.last, entry.rounds) == (1, 2, 2)
        assert entry.withdrawn is not None
        assert entry.withdrawn.after_round == 2
        assert "va in" in (text := card_text(model.manifest, model.study))
        assert "WITHDRAWN after round" in text
        assert "cleared" not in (release / "manifest.json").read_text()
        assert "cleared" not in fed.words.getvalue()  # the reason stays in the hospital's folder
        capsys.readouterr()
        assert fed.call("show", run.run_id) == 0
        assert "dr-weber: withdrawn on" in capsys.readouterr().out


async def test_the_commands_work_while_the_node_serves_and_say_what_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Consortium(tmp_path / "f", WEBER) as fed:
        await fed.submit()
        await fed.until(lambda: fed.site().state == "waiting")
        assert fed.call("list", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)["data"]["studies"]
        assert (row["study"], row["approval"]["state"]) == ("pattern", "waiting")
        assert row["approval"]["waiting_for"] == [WEBER]
        await fed.stop(SITE)
        assert fed.say("grant", WEBER, row["hash"]) == 0  # by its hash, and with no node at all
        fed.start(SITE)
        run = await fed.finish()
        assert run.phase is RunPhase.FINISHED
