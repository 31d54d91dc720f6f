"""`run watch --no-wait` ends with exit code 6 where only people are waited for, and only there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from common.cli import main
from common.ids import RunId, SiteName, StudyId
from common.views import RunPhase, RunView, SiteView, WaitView
from researcher import run_cli
from researcher.progress import LineDisplay

SITE = SiteView(
    site=SiteName("va"),
    connected=True,
    state="waiting",
    waiting_for="approval by dr-weber",
    objection="",
    people=("dr-weber",),
)
WAITS = RunView(
    run_id=RunId("study-1"),
    study_id=StudyId("study"),
    state=RunPhase.ENROLLING,
    round=0,
    rounds=3,
    sites=(SITE,),
    history=(),
    pooled=(),
    model_sha256="",
    reason="",
    seconds=1.0,
    seconds_to_first_round=0.0,
    wait=WaitView((SITE.site,), "approval", 60.0, None, "the run begins"),
)
DONE = replace(WAITS, state=RunPhase.FINISHED, wait=None, sites=(replace(SITE, people=()),))


class FakeClient:
    async def watch(self, run: str) -> AsyncIterator[RunView]:
        assert run == "study-1"
        yield WAITS
        yield DONE


class FakeConnection:
    def __init__(self, *_: object) -> None: ...

    def ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401
        async def ask() -> Any:  # noqa: ANN401
            return await question(FakeClient())

        return asyncio.run(ask())


@pytest.mark.parametrize(("more", "code"), [((), 0), (("--no-wait",), 6)])
def test_people_are_waited_for_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    code: int,
) -> None:
    monkeypatch.setattr(run_cli, "Connection", FakeConnection)
    words = ["run", "watch", "study-1", "--coordinator", "here:1", "--tls", ".", "--json", *more]
    assert main(words) == code
    out, err = capsys.readouterr()
    data = json.loads(out)["data"]
    assert data["waiting_for_people"] == (code == 6)
    assert data["sites"][0]["people"] == (["dr-weber"] if code else [])
    assert "hospital va waits for approval by dr-weber" in err


def test_a_hospital_outside_its_hours_waits_and_has_not_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    objection = "POLICY_HOURS: the next window opens at 20:00 (policy.yaml:16: hours)"
    site = replace(SITE, people=(), objection=objection)
    LineDisplay().show(replace(WAITS, sites=(site,)))
    said = capsys.readouterr().out
    assert f"hospital va waits: {objection}" in said
    assert "refused" not in said
