"""When a node is well, and that its HTTP port is for its own machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.clock import ManualClock
from common.errors import ConfigError, StateError
from common.events import Event
from common.exposition import ROUND_KINDS
from common.transport.ask import LINK, WHOLE
from hospital_node.config import NodeConfig
from hospital_node.health import Standing
from hospital_node.metrics import NodeMetrics
from hospital_node.picture import Picture, not_ready
from tests.federation import Federation

WELL = Picture(connected=True, stopping=False, writes=True, attempts=3, accepted=1, refused=0)


async def test_a_node_is_well_while_its_store_takes_writes(tmp_path: Path) -> None:
    async with Federation(tmp_path) as fed:
        node = fed.nodes["va"]
        await fed.until(lambda: node.connected)
        standing = Standing(node, ManualClock())
        whole, link = (standing.health._services[name] for name in (WHOLE, LINK))
        assert whole()
        assert link()

        def full(status: object) -> None:
            raise StateError("DISK", "status.json: No space left on device")

        store = node._parts.store
        usual = store.write_status
        store.write_status = full  # type: ignore[method-assign]
        await fed.until(lambda: not whole())
        assert link()
        standing.pulse.beat()
        assert not_ready(standing.pulse.last) == "the state directory takes no writes"
        store.write_status = usual  # type: ignore[method-assign]
        await fed.until(whole)

        await fed.cut("va")
        await fed.until(lambda: not link())
        assert whole(), "a node without its coordinator dials again by itself"

        node.stop()
        assert not whole()
        standing.pulse.beat()
        assert not_ready(standing.pulse.last) == "stopping"


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (WELL, ""),
        (replace(WELL, connected=False), "not connected, 3 attempts"),
        (replace(WELL, writes=False), "the state directory takes no writes"),
    ],
)
def test_a_node_is_ready_when_it_is_connected_and_can_write(seen: Picture, why: str) -> None:
    assert not_ready(seen) == why


def config(folder: Path, http: str) -> NodeConfig:
    path = folder / "node.yaml"
    path.write_text(f"schema: fedcare.node/v1\nhttp: {http}\n", encoding="utf-8")
    return NodeConfig.read(path)


@pytest.mark.parametrize("http", ['"127.0.0.1:8081"', '"[::1]:8081"', '"localhost:0"', "null"])
def test_loopback_or_nothing(tmp_path: Path, http: str) -> None:
    assert config(tmp_path, http).http == (None if http == "null" else http.strip('"'))


@pytest.mark.parametrize(
    ("http", "words"),
    [
        ('"0.0.0.0:8081"', "a node listens on no network"),
        ('"10.0.0.7:8081"', "a node listens on no network"),
        ('"hospital.example:8081"', "a node listens on no network"),
        ('"127.0.0.1"', "must be host:port"),
        ('"127.0.0.1:99999"', "must be host:port"),
        ("8081", "must be text"),
    ],
)
def test_a_node_listens_on_no_network(tmp_path: Path, http: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        config(tmp_path, http)
    assert "node.yaml:2: http " in refused.value.detail


def test_rounds_of_a_node_are_counted_once_and_by_closed_names() -> None:
    metrics = NodeMetrics()

    def say(event: Event, **fields: object) -> None:
        metrics.observe(event, "info", fields)

    say(Event.UPLOAD_STARTED, kind="train", trained_s=1.5)
    say(Event.UPLOAD_STARTED)  # of a round whose input an earlier process made
    say(Event.ROUND_CLOSED, kind="train", status="opened")
    for status in ("aborted", "timeout", "superseded", "left"):
        say(Event.ROUND_CLOSED, kind="evaluate", status=status)
    say(Event.PROTOCOL_REFUSED, kind="statistics", code="FC-3015")
    say(Event.PROTOCOL_REFUSED, kind=None, code="FC-3027")  # of a step, not of a header
    say(Event.ROUND_CLOSED, kind='x"}', status="y")
    text = metrics.text()
    for line in (
        'fedcare_node_rounds_total{kind="train",outcome="opened"} 1.0',
        'fedcare_node_rounds_total{kind="evaluate",outcome="voided"} 4.0',
        'fedcare_node_rounds_total{kind="statistics",outcome="refused"} 1.0',
        'fedcare_node_rounds_total{kind="other",outcome="voided"} 1.0',
        'fedcare_node_training_duration_seconds_sum{kind="train"} 1.5',
        'fedcare_node_training_duration_seconds_count{kind="train"} 1.0',
    ):
        assert line in text.splitlines()
    assert text.count("fedcare_node_rounds_total{") == 3 * len(ROUND_KINDS) + 1
