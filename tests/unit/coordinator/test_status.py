"""`coordinator status`: one screen that says what every run and hospital waits for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.ids import RunId, SiteName, StudyId
from common.views import RoundView, RunPhase, RunView, SiteView, StatusView, WaitView
from common.wire_operations import decode_status, encode_status
from coordinator.status import data_of, screen

NOW = 1_800_000_000.0
"""08:00:00 UTC."""

SITES = ("cleveland", "hungarian", "switzerland", "va")


def site(name: str, state: str, waiting_for: str, *, connected: bool = True) -> SiteView:
    return SiteView(SiteName(name), connected, state, waiting_for, "")


def ended(number: int, *dropped: str, state: str = "CLOSED", reason: str = "") -> RoundView:
    survivors = tuple(SiteName(name) for name in SITES if name not in dropped)
    out = tuple(SiteName(name) for name in dropped)
    return RoundView(number, "train", state, survivors, out, 4.25, reason, bytes(32), b"")


RUN = RunView(
    run_id=RunId("heart-disease-b59be6c3"),
    study_id=StudyId("heart-disease"),
    state=RunPhase.RUNNING,
    round=6,
    rounds=17,
    sites=(
        *(site(name, "uploaded", "other hospitals") for name in SITES[:3]),
        site("va", "away", "its connection", connected=False),
    ),
    history=(
        *(ended(number) for number in (1, 2, 3, 4)),
        ended(5, state="ABORTED", reason="NOT_ENOUGH"),
        ended(5, "va"),
        ended(6, "va", "hungarian"),
    ),
    pooled=(),
    model_sha256="",
    reason="",
    seconds=400.0,
    seconds_to_first_round=9.0,
    kind="train",
    open_s=72.0,
    wait=WaitView((SiteName("va"),), "upload", 72.0, 48.0, "goes on without them"),
)
LINKS = (
    *(replace(one, since_s=3725.0) for one in RUN.sites[:3]),
    replace(RUN.sites[3], since_s=40.0),
)
STATUS = StatusView("heart-network", "0.1.0", LINKS, (RUN,), 3735.0)

SCREEN = """\
federation heart-network, fedcare 0.1.0, up 1h02m, 3 of 4 hospitals connected

heart-disease-b59be6c3
  running, round 7 of 17 (train) open for 1m12s
  waits for va
    upload, for 1m12s, until 08:00:48 UTC (in 48s)
    then: goes on without them

  hospital     link      doing     waits for
  cleveland    up 1h02m  uploaded  other hospitals
  hungarian    up 1h02m  uploaded  other hospitals
  switzerland  up 1h02m  uploaded  other hospitals
  va           away 40s  away      its connection

  round  kind   ended               took   dropped
  6      train  closed              4.2 s  va, hungarian
  5      train  closed              4.2 s  va
  5      train  voided, NOT_ENOUGH  4.2 s  -"""


def test_a_run_of_four_hospitals_is_one_screen_that_says_it_all() -> None:
    assert screen(STATUS, NOW) == SCREEN


def longest(name: str) -> SiteName:
    return SiteName((name + "-" + "x" * 63)[:63])


def test_the_screen_keeps_to_80_columns_and_24_lines_whatever_names_and_words_there_are() -> None:
    sites = tuple(
        replace(one, site=longest(one.site), objection="no \x1b[31m" * 100) for one in RUN.sites
    )
    wait = WaitView(tuple(one.site for one in sites), "decision", 9e5, None, "word " * 100)
    run = replace(RUN, run_id=RunId("r" * 57), sites=sites, wait=wait)
    text = screen(replace(STATUS, federation="f" * 63, sites=sites, runs=(run,)), NOW)
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"open_s": None}, "running, round 7 of 17 (train) is next"),
        ({"paused": True, "open_s": None}, "paused, round 7 of 17 (train) is next"),
        ({"open_s": None, "kind": "", "state": RunPhase.RELEASING}, "releasing for 6m40s"),
        ({"wait": None}, "waits for nobody"),
        (
            {"wait": WaitView((SiteName("va"),), "connection", 5.0, None, "it is tried again")},
            "connection, for 5s, until they come",
        ),
    ],
)
def test_each_state_of_a_run_is_named(change: dict[str, object], words: str) -> None:
    assert words in screen(replace(STATUS, runs=(replace(RUN, **change),)), NOW)  # type: ignore[arg-type]


def test_without_a_run_the_links_are_shown() -> None:
    never = SiteView(SiteName("new"), False, "away", "its connection", "")  # noqa: FBT003
    text = screen(replace(STATUS, sites=(*LINKS, never), runs=()), NOW)
    assert "no run is open" in text
    assert "va           away 40s" in text
    assert "new          never seen" in text


def test_the_data_for_scripts_holds_all_that_the_screen_shows() -> None:
    data = json.loads(json.dumps(data_of(STATUS)))
    assert data["sites"][3] == {"site": "va", "connected": False, "since_seconds": 40.0}
    (run,) = data["runs"]
    assert (run["round"], run["rounds"], run["kind"], run["open_seconds"]) == (6, 17, "train", 72.0)
    assert run["wait"] == {
        "waiting_for": ["va"],
        "what": "upload",
        "since_seconds": 72.0,
        "left_seconds": 48.0,
        "then": "goes on without them",
    }
    assert [entry["number"] for entry in run["last_rounds"]] == [6, 5, 5]
    assert run["last_rounds"][2]["reason"] == "NOT_ENOUGH"


def test_what_is_absent_stays_absent_over_the_wire() -> None:
    bare = replace(RUN, open_s=None, wait=None, kind="")
    seen = decode_status(encode_status(replace(STATUS, runs=(RUN, bare))))
    assert seen.runs[0] == RUN
    assert seen.runs[1] == bare
    assert seen.sites == LINKS
    endless = replace(RUN, wait=replace(RUN.wait, left_s=None))  # type: ignore[type-var]
    assert decode_status(encode_status(replace(STATUS, runs=(endless,)))).runs == (endless,)
