"""What the coordinator counts, from the log and from its runs, and whom it waits for."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import BY_CODE, Refusal
from common.events import Event
from common.exposition import OTHER, ROUND_KINDS, Kind, Metric, code_of
from common.logs import EventLog, make_log
from common.pulse import Pulse
from coordinator.metrics import RUN_STATES, TABLE, CoordinatorMetrics, Picture, take_picture
from hospital_node import metrics as node_metrics
from tests.federation import Federation

MEMBERS = ("cleveland", "va")
RUNBOOK = Path(__file__).parents[3] / "deploy" / "RUNBOOK.md"


@pytest.fixture
def metrics() -> CoordinatorMetrics:
    return CoordinatorMetrics(MEMBERS)


@pytest.fixture
def log(metrics: CoordinatorMetrics) -> EventLog:
    return make_log(io.StringIO(), observe=metrics.observe)


def sample(text: str, series: str) -> float | None:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found[1])


def test_rounds_are_counted_by_kind_and_outcome(metrics: CoordinatorMetrics, log: EventLog) -> None:
    log.info(Event.ROUND_CLOSED, kind="train", seconds=0.3, dropped=("va",))
    log.info(Event.ROUND_CLOSED, kind="train", seconds=2, dropped=())
    log.warning(Event.ROUND_VOIDED, kind="evaluate", seconds=600.0, dropped=())
    text = metrics.text()
    assert sample(text, 'fedcare_rounds_total{kind="train",outcome="closed"}') == 2
    assert sample(text, 'fedcare_rounds_total{kind="evaluate",outcome="voided"}') == 1
    assert sample(text, 'fedcare_rounds_total{kind="statistics",outcome="voided"}') == 0
    assert sample(text, 'fedcare_round_duration_seconds_count{kind="train"}') == 2
    assert sample(text, 'fedcare_round_duration_seconds_bucket{kind="train",le="0.5"}') == 1
    assert sample(text, 'fedcare_round_duration_seconds_sum{kind="train"}') == 2.3
    assert sample(text, 'fedcare_round_duration_seconds_count{kind="evaluate"}') == 0
    assert sample(text, 'fedcare_round_dropouts_total{site="va"}') == 1
    assert sample(text, 'fedcare_round_dropouts_total{site="cleveland"}') == 0


def test_refusals_are_counted_by_the_codes_of_the_catalogue(
    metrics: CoordinatorMetrics, log: EventLog
) -> None:
    log.failure(Event.CALL_REFUSED, Refusal("NOT_MEMBER", "no"), peer="x")
    log.failure(Event.PROTOCOL_REFUSED, Refusal("CLOSED", "no"), site="va")
    log.warning(Event.PROTOCOL_REFUSED, site="va", code="CLOSED", detail="as a node names it")
    text = metrics.text()
    assert sample(text, 'fedcare_calls_refused_total{code="FC-3002"}') == 1
    assert sample(text, 'fedcare_protocol_refusals_total{code="FC-3034"}') == 2


def test_no_word_of_a_peer_becomes_a_label(metrics: CoordinatorMetrics, log: EventLog) -> None:
    for number in range(50):
        log.warning(Event.PROTOCOL_REFUSED, site="va", code=f'x"}}{number}', detail="")
        log.warning(Event.CALL_REFUSED, code=number, peer=f"peer{number}")
        log.info(Event.ROUND_CLOSED, kind=f"k{number}", seconds=1.0, dropped=(f"site{number}",))
    text = metrics.text()
    assert sample(text, f'fedcare_protocol_refusals_total{{code="{OTHER}"}}') == 50
    assert sample(text, f'fedcare_calls_refused_total{{code="{OTHER}"}}') == 50
    assert sample(text, f'fedcare_rounds_total{{kind="{OTHER}",outcome="closed"}}') == 50
    values = set(re.findall(r'="([^"]*)"', text))
    assert not {value for value in values if value.startswith(("x", "k", "site", "peer"))}
    assert set(re.findall(r'site="([^"]*)"', text)) == set(MEMBERS)


def test_a_code_is_one_of_the_catalogue_or_other() -> None:
    assert code_of("FC-3034") == code_of("CLOSED") == "FC-3034"
    assert {code_of(code) for code in BY_CODE} == set(BY_CODE)
    assert code_of("FC-0000") == code_of(None) == code_of(["FC-3034"]) == OTHER


def test_lines_left_out_of_the_log_are_counted(metrics: CoordinatorMetrics, log: EventLog) -> None:
    log.warning(Event.LOG_SUPPRESSED, of="call.refused", peer="x", lines=41)
    assert sample(metrics.text(), "fedcare_log_lines_suppressed_total") == 41


def test_a_published_model_is_counted(metrics: CoordinatorMetrics, log: EventLog) -> None:
    log.info(Event.MODEL_PUBLISHED, manifest="ab")
    assert sample(metrics.text(), "fedcare_models_published_total") == 1


def test_gauges_are_read_from_the_latest_picture(
    metrics: CoordinatorMetrics, tmp_path: Path
) -> None:
    clock = ManualClock()
    seen = Picture("", frozenset({"va"}), dict.fromkeys(RUN_STATES, 2), 3.5, 9.0, 1, 100, 200)
    metrics.read(Pulse(lambda: seen, clock), tmp_path, 1_900_000_000)
    text = metrics.text()
    assert sample(text, 'fedcare_hospital_connected{site="va"}') == 1
    assert sample(text, 'fedcare_hospital_connected{site="cleveland"}') == 0
    assert all(sample(text, f'fedcare_runs{{state="{name}"}}') == 2 for name in RUN_STATES)
    assert sample(text, "fedcare_round_open_seconds") == 3.5
    assert sample(text, "fedcare_round_deadline_seconds") == 9
    assert sample(text, "fedcare_hospitals_waited_for") == 1
    assert sample(text, "fedcare_upload_bytes_total") == 100
    assert sample(text, "fedcare_download_bytes_total") == 200
    assert sample(text, "fedcare_certificate_expiry_timestamp_seconds") == 1_900_000_000
    assert "# TYPE fedcare_upload_bytes_total counter" in text


# --- a picture of real runs ----------------------------------------------------------------


async def test_a_picture_follows_a_run_from_offer_to_end(tmp_path: Path) -> None:
    pictures: list[Picture] = []
    async with Federation(tmp_path) as fed:

        async def watch() -> None:
            while fed.service is not None:
                pictures.append(take_picture(fed.service, "", fed.clock.monotonic()))
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        await fed.run()
        await asyncio.sleep(0.05)
        watching.cancel()
    assert all(sum(picture.runs.values()) <= 1 for picture in pictures)
    names = [name for p in pictures for name, count in p.runs.items() if count]
    assert {"enrolling", "running", "finished"} >= set(names)
    assert names[-1] == "finished"
    in_round = [picture for picture in pictures if picture.open_s > 0]
    assert in_round
    assert all(0 < picture.left_s <= 60 for picture in in_round)
    assert any(picture.waited_for == 4 for picture in pictures)
    last = pictures[-1]
    assert (last.open_s, last.left_s, last.waited_for) == (0, 0, 0)
    assert last.connected == {"cleveland", "hungarian", "switzerland", "va"}
    assert last.bytes_up > 0
    assert last.bytes_down > 0


async def test_a_run_without_enough_hospitals_is_paused_and_waits_for_those_away(
    tmp_path: Path,
) -> None:
    async with Federation(tmp_path, rounds=200, deadline="3s") as fed:
        await fed.submit()
        await fed.until(lambda: fed.state.position >= 2)
        for site in ("va", "switzerland"):
            await fed.kill(site)
        assert fed.service is not None
        service = fed.service

        def paused() -> bool:
            seen = take_picture(service, "", fed.clock.monotonic())
            return seen.runs["paused"] == 1 and seen.waited_for == 2

        await fed.until(paused)
        seen = take_picture(service, "", fed.clock.monotonic())
        assert seen.connected == {"cleveland", "hungarian"}


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*TABLE, *node_metrics.TABLE], ids=lambda metric: metric.name)
def test_names_follow_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"fedcare_[a-z_]+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    if metric.kind is Kind.HISTOGRAM:
        assert metric.name.endswith("_seconds")
    assert not re.search(r"(loss|count|sample|row|patient|auroc|accuracy)", metric.name)


def rows_of_the_runbook() -> Iterator[tuple[str, ...]]:
    text = RUNBOOK.read_text(encoding="utf-8")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `fedcare_"):
            yield tuple(cells)


def test_the_runbooks_table_is_the_codes() -> None:
    def row(metric: Metric, who: str) -> tuple[str, ...]:
        labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
        return f"`{metric.name}{labels}`", who, metric.kind.value, metric.meaning

    both = set(TABLE) & set(node_metrics.TABLE)
    expected = [row(m, "both" if m in both else "coordinator") for m in TABLE]
    expected += [row(m, "node") for m in node_metrics.TABLE if m not in both]
    assert list(rows_of_the_runbook()) == expected


def test_the_kinds_of_rounds_are_those_of_a_run() -> None:
    from common.layouts import round_kinds
    from common.study import load_study

    study = load_study(Path(__file__).parents[3] / "studies" / "heart-disease.yaml")
    assert {kind.value for kind in round_kinds(study)} <= set(ROUND_KINDS)
