"""The settings that follow from the faults, read back from what the services are made with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Final

import grpc.aio
import pytest

from common.clock import SystemClock
from common.errors import ConnectError
from common.identity import Identity, load_identity
from common.messages import CHUNK_BYTES
from common.site import MAX_SITES
from common.transport.health import HealthServicer
from common.transport.identity import ACCEPTED_TLS
from common.transport.interceptors import CALLS_OF_ONE_PEER, Guard
from coordinator import app
from coordinator.config import CoordinatorConfig, Timing
from coordinator.servicer import AggregationServicer
from coordinator.store import default_url, open_store
from hospital_node import session
from hospital_node.backoff import LONGEST_S
from hospital_node.grpc_link import READY_S, GrpcDialler
from researcher.local import FederationPlan, SitePlan, build
from tests.faults.network import study_of
from tests.faults.record import record
from tests.federation import NAME, SITES

KIB, MIB, SECOND = 1024, 1024**2, 1000

BOTH: Final = {
    "grpc.max_receive_message_length": 2 * MIB,
    "grpc.max_send_message_length": 2 * MIB,
    "grpc.keepalive_time_ms": 20 * SECOND,
    "grpc.keepalive_timeout_ms": 10 * SECOND,
    "grpc.http2.ping_timeout_ms": 10 * SECOND,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_metadata_size": 8 * KIB,
    "grpc.absolute_max_metadata_size": 8 * KIB,
    "grpc.http2.bdp_probe": 0,
    "grpc.http2.lookahead_bytes": MIB,
}
SERVER: Final = {
    "grpc.http2.min_ping_interval_without_data_ms": 10 * SECOND,
    "grpc.server_handshake_timeout_ms": 10 * SECOND,
    "grpc.max_connection_age_ms": 3600 * SECOND,
    "grpc.max_connection_age_grace_ms": 30 * SECOND,
    "grpc.max_connection_idle_ms": 300 * SECOND,
    "grpc.max_concurrent_streams": 16,
    "grpc.so_reuseport": 0,
}
CHANNEL: Final = {"grpc.enable_retries": 0, "grpc.service_config_disable_resolution": 1}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FederationPlan:
    root = tmp_path_factory.mktemp("settings") / "f"
    study = study_of(size=8, rounds=1, deadline="60s")
    found = FederationPlan(root, NAME, study, [SitePlan(site) for site in SITES])
    build(found, "127.0.0.1:1")
    return found


def identity(folder: Path) -> Identity:
    return load_identity(folder, now_unix=SystemClock().unix())


def watched(patch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    """Return what a maker of gRPC's is called with from now on."""
    original, calls = getattr(grpc.aio, name), list[dict[str, Any]]()

    def made(*args: object, **named: object) -> object:
        calls.append(inspect.signature(original).bind(*args, **named).arguments)
        return original(*args, **named)

    patch.setattr(grpc.aio, name, made)
    return calls


@pytest.mark.fault("F17")
@pytest.mark.fault("F21")
async def test_the_coordinator_listens_with_the_settings_of_the_fault_table(
    plan: FederationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CoordinatorConfig.read(plan.coordinator_folder / "coordinator.yaml")
    calls, own = watched(monkeypatch, "server"), identity(plan.coordinator_folder)
    none: Any = None
    app._listener(config, none, HealthServicer({}), own, SystemClock(), none)
    (made,) = calls
    assert dict(made["options"]).items() >= (BOTH | SERVER).items()
    assert not dict(made["options"]).keys() & CHANNEL.keys()
    assert isinstance(made["interceptors"][0], Guard), "the guard is in front of everything"
    assert made["maximum_concurrent_rpcs"] == 16 * len(SITES) + 64 + 8
    assert inspect.isasyncgenfunction(AggregationServicer.Session), "no thread a stream"
    record("F17", trials=1, failures=0, settings_read_back=len(BOTH | SERVER))


@pytest.mark.fault("F17")
@pytest.mark.fault("F21")
async def test_a_node_dials_with_the_settings_of_the_fault_table(
    plan: FederationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = watched(monkeypatch, "secure_channel")
    dial = GrpcDialler("127.0.0.1:1", identity(plan.site_folder("va")), None, SystemClock())
    with pytest.raises(ConnectError):
        await dial()
    for made in calls:
        assert dict(made["options"]).items() >= (BOTH | CHANNEL).items()
        assert not dict(made["options"]).keys() & SERVER.keys()
    assert len(calls) == 2, "for control messages, and for what is bulky"


@pytest.mark.fault("F21")
def test_silence_is_noticed_as_soon_as_a_dead_link() -> None:
    """Three heartbeats of 10 s, and 20 s + 10 s of gRPC's own pings."""
    beat_s = Timing().heartbeat
    assert session.SILENT_BEATS * beat_s == 30.0
    assert BOTH["grpc.keepalive_time_ms"] + BOTH["grpc.http2.ping_timeout_ms"] == 30 * SECOND
    assert beat_s >= session.WELCOME_S
    assert READY_S <= 30.0


def test_numbers_that_belong_together() -> None:
    assert CHUNK_BYTES == MIB, "tensors travel in chunks of at most 1 MiB"
    assert SERVER["grpc.max_concurrent_streams"] == CALLS_OF_ONE_PEER
    assert frozenset({b"TLSv1.3"}) == ACCEPTED_TLS
    assert LONGEST_S == 300.0, "at most every few minutes"
    arrivals = CoordinatorConfig.model_fields["arrivals_per_s"].default
    assert MAX_SITES / arrivals <= 30.0, "all are let in before the longest wait is over"


def test_the_store_is_durable_by_its_settings(tmp_path: Path) -> None:
    store = open_store(default_url(tmp_path))
    try:
        with store._engine.connect() as db:
            found = {
                name: db.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous")
            }
    finally:
        store.close()
    assert found == {"journal_mode": "wal", "synchronous": 2}
