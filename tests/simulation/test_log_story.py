"""The coordinator's log tells a run: about ten lines a round, and every hospital by its name.

A hospital that vanishes, hangs or comes back in the middle of a round is named, with what
the round does now and what it has done in the end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from common.ids import hospital_id
from common.messages import Hello
from common.secagg.messages import Certificate, Commit, Propose, RoundStart, UploadEnd
from tests.federation import NAME, SITES, Federation

ROUND = ["round.opened", *["upload.finished"] * 4]
ROUND += ["round.proposed", "round.certified", "round.summed", "round.closed"]
SHARED = {"time", "level", "event", "study", "run"}


def of_round(fed: Federation, number: int) -> list[dict[str, Any]]:
    return [line for line in fed.told() if line.get("round") == number]


def without_seconds(line: dict[str, Any]) -> dict[str, Any]:
    assert line.pop("seconds", 0.0) >= 0
    return {name: value for name, value in line.items() if name not in SHARED}


async def test_a_round_is_nine_lines_that_name_every_hospital(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", rounds=2) as fed:
        run = await fed.run()
        for number in (1, 2):
            lines = of_round(fed, number)
            assert [line["event"] for line in lines] == ROUND
            assert {(line["study"], line["run"]) for line in lines} == {("pattern", run.run_id)}
            assert {line["level"] for line in lines} == {"info"}
        opened, *uploads, proposed, certified, summed, closed = map(
            without_seconds, of_round(fed, 2)
        )
        assert opened == {
            "round": 2, "kind": "train", "of": 2, "cohort": list(SITES),
            "quorum": 3, "needs": 3, "deadline_s": 60.0,
        }  # fmt: skip
        assert sorted(line["site"] for line in uploads) == list(SITES)
        assert {tuple(line) for line in uploads} == {("round", "site", "bytes")}
        assert {line["bytes"] for line in uploads} == {1204}
        assert proposed == {"round": 2, "survivors": 4}
        assert certified == {"round": 2, "signed": 3}
        assert summed == {"round": 2}
        assert closed == {"round": 2, "kind": "train", "survivors": 4}


async def test_what_stands_around_the_rounds_is_told_once(tmp_path: Path) -> None:
    async with Federation(tmp_path / "f", rounds=1) as fed:
        await fed.run()
        around = [line["event"] for line in fed.told() if "round" not in line]
        assert sorted(set(around)) == sorted(
            {
                "link.connected", "model.published", "run.finished", "run.started",
                "session.opened", "session.ready", "study.accepted", "study.submitted",
            }
        )  # fmt: skip
        assert len(around) == 6 + 2 * 4  # a connection and a decision of each hospital


async def test_a_hospital_killed_in_training_is_named_and_so_is_what_the_round_does(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", rounds=1, deadline="1s") as fed:
        fed.on_send("switzerland", RoundStart, fed.kill)
        await fed.run()
        (lost,) = fed.told("link.lost")
        assert (lost["level"], lost["site"], lost["round"]) == ("warning", "switzerland", 1)
        assert lost["what"] == "upload"
        assert lost["until"] > lost["time"][:19]
        assert lost["then"] == "goes on without it if 3 of the other 3 uploads come"
        (proposed,) = fed.told("round.proposed")
        assert (proposed["survivors"], proposed["dropped"]) == (3, ["switzerland"])
        (closed,) = fed.told("round.closed")
        assert (closed["survivors"], closed["dropped"]) == (3, ["switzerland"])


async def test_a_hospital_lost_after_its_upload_is_in_the_sum_and_its_seeds_are_recovered(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", rounds=1, deadline="20s") as fed:
        fed.on_send("switzerland", Certificate, fed.kill)
        await fed.run()
        (lost,) = fed.told("link.lost")
        assert (lost["what"], lost["then"]) == (
            "release",
            "its seeds are recovered from the others",
        )
        (recovering,) = fed.told("round.recovering")
        assert (recovering["waiting_for"], recovering["level"]) == (["switzerland"], "warning")
        (closed,) = fed.told("round.closed")
        assert closed["survivors"] == 4
        assert "dropped" not in closed


async def test_a_hospital_that_comes_back_is_one_line_with_how_long_it_was_away(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", rounds=1) as fed:

        async def hang_up(site: str) -> None:
            await fed.cut(site)

        fed.on_send("va", UploadEnd, hang_up)
        await fed.run()
        before = fed.told("link.connected")[:4]
        assert sorted(line["site"] for line in before) == list(SITES)
        assert not any("away_s" in line or "then" in line for line in before)
        (back,) = fed.told("link.connected")[4:]
        assert (back["site"], back["round"], back["what"]) == ("va", 1, "upload")
        assert back["then"] == "it takes part again; its upload is waited for"
        assert 0 < back["away_s"] < 10
        assert "dropped" not in fed.told("round.closed")[0]


async def test_a_hospital_that_hangs_is_silent_then_lost_and_waited_for_by_name(
    tmp_path: Path,
) -> None:
    """`docker pause`: the connection stays up, and nothing comes any more."""
    async with Federation(tmp_path / "f", rounds=1) as fed:
        assert fed.service is not None
        fed.service._heartbeat_s = 0.1
        watching = asyncio.create_task(fed.service.watch_over())

        async def never(*_: object) -> None:
            await asyncio.sleep(60)

        async def hang(site: str) -> None:
            fed.links[site].send = never  # type: ignore[method-assign,assignment]

        fed.on_send("va", RoundStart, hang)
        fed.on_send("va", UploadEnd, never)
        await fed.run()
        watching.cancel()
        (lost,) = [line for line in fed.told("link.lost") if line["site"] == "va"][:1]
        assert (lost["reason"], lost["what"]) == ("silent for 0.3 s", "upload")
        assert lost["round"] == 1
        assert lost["then"]


async def test_a_stream_that_was_silent_before_its_hello_is_no_reason_of_a_later_one(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f") as fed:
        await fed.run()
        assert fed.service is not None
        service, node = fed.service, hospital_id(NAME, "va")
        await fed.kill("va")
        await fed.until(lambda: node not in service.connected)
        silent = service.connect(node)
        service._heartbeat_s = 0.05
        watching = asyncio.create_task(service.watch_over())
        await fed.until(lambda: node in service._silent)
        service.disconnect(silent)
        watching.cancel()
        later = service.connect(node)
        await service.receive(node, "", Hello("fedcare", 1, ()))
        service.disconnect(later)
        assert "reason" not in fed.told("link.lost")[-1]


@pytest.mark.fault("F35")
@pytest.mark.parametrize(("pause_s", "level"), [(0.0, "warning"), (0.2, "info")])
async def test_a_stream_that_takes_anothers_place_is_told_with_where_both_came_from(
    tmp_path: Path, pause_s: float, level: str
) -> None:
    """A warning only if the former was alive: a network that came back is no alarm."""
    async with Federation(tmp_path / "f") as fed:
        await fed.run()
        assert fed.service is not None
        service, node = fed.service, hospital_id(NAME, "va")
        await fed.kill("va")
        await fed.until(lambda: node not in service.connected)
        service._heartbeat_s = 0.1
        former = service.connect(node, "10.0.0.1")
        await service.receive(node, "", Hello("fedcare", 1, ()))
        await asyncio.sleep(pause_s)
        newer = service.connect(node, "10.0.0.2")
        assert not fed.told("link.replaced"), "its holder has not spoken yet"
        await service.receive(node, "", Hello("fedcare", 1, ()))
        (line,) = fed.told("link.replaced")
        assert (line["level"], line["site"]) == (level, "va")
        assert (line["was"], line["at"]) == ("10.0.0.1", "10.0.0.2")
        assert former.closed
        service.disconnect(former)
        assert node in service.connected
        service.disconnect(newer)


async def test_two_that_vanish_void_the_round_and_the_pause_says_whom_it_waits_for(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path / "f", rounds=1, deadline="1s") as fed:
        for site in ("hungarian", "va"):
            fed.on_send(site, Propose if site == "va" else Commit, fed.kill)
        await fed.submit()
        await fed.until(lambda: bool(fed.state.history))
        (voided,) = fed.told("round.voided")
        assert (voided["level"], voided["reason"]) == ("warning", "NOT_ENOUGH")
        await fed.restart_coordinator()  # the epoch is over, and two are not enough for another
        for site in ("hungarian", "va"):
            fed.start(site)
        await fed.finish()
        assert fed.told("state.recovered")[0]["phase"]


@pytest.mark.parametrize("secret", ["loss", "weight", "samples", "count", "auroc"])
async def test_no_line_of_the_coordinator_tells_a_figure_of_one_hospital(
    tmp_path: Path, secret: str
) -> None:
    """Of one hospital it says that its vector came, how long it is (the same for all), and when."""
    async with Federation(tmp_path / "f", rounds=1) as fed:
        await fed.run()
        lines = [line for line in fed.told() if "site" in line]
        assert not any(secret in name for line in lines for name in line)
