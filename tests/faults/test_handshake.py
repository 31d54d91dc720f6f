"""A coordinator that dies in a handshake is away, not one that refuses this hospital."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from common.certificates import Role
from common.clock import SystemClock
from common.errors import FedError
from common.identity import Identity, load_identity
from common.pki import create_ca, issue
from common.transport.tls import bind, server, server_credentials
from hospital_node.grpc_link import GrpcDialler
from tests.faults.budget import trials
from tests.faults.proxy import Proxy
from tests.faults.record import record

AT_SETUP = 6_000
"""More bytes, both ways, than pass before a call begins."""


@dataclass(frozen=True)
class Place:
    """A coordinator's port, and the identities of one consortium."""

    folder: Path
    address: str
    coordinator: Identity
    hospital: Identity


def identity(folder: Path, role: Role, name: str, pki: str = "pki") -> Identity:
    now, out = time.time(), folder / f"{pki}-{name}"
    hosts = ("127.0.0.1",) if role is Role.COORDINATOR else ()
    issue(folder / pki, role, name, now_unix=now, hosts=hosts, out=out)
    return load_identity(out, now_unix=now)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    create_ca(tmp_path / "pki", "heart", now_unix=time.time())
    coordinator = identity(tmp_path, Role.COORDINATOR, "coordinator")
    listener = server([])
    port = bind(listener, "127.0.0.1:0", server_credentials(coordinator))
    await listener.start()
    hospital = identity(tmp_path, Role.HOSPITAL, "cleveland")
    yield Place(tmp_path, f"127.0.0.1:{port}", coordinator, hospital)
    await listener.stop(0)


async def said(dialler: GrpcDialler) -> str:
    """Return what a dial ended with; a server without services ends each sooner or later."""
    try:
        link = await dialler()
    except FedError as failure:
        return failure.name
    await link.close()
    return ""


@pytest.mark.fault("F01")
@pytest.mark.fault("F28")
@pytest.mark.parametrize("orderly", [True, False], ids=["closed", "reset"])
async def test_a_coordinator_that_dies_anywhere_in_a_handshake_is_unreachable(
    place: Place, *, orderly: bool
) -> None:
    step = trials(change=211, nightly=17, release=3)
    found = []
    async with Proxy(place.address) as proxy:
        proxy.truncate = orderly
        for cut in range(1, AT_SETUP, step):
            proxy.cut_after = lambda cut=cut: cut  # type: ignore[misc]
            dialler = GrpcDialler(proxy.address, place.hospital, None, SystemClock())
            found.append(await said(dialler))
    assert set(found) <= {"UNREACHABLE", "", "BAD_MESSAGE"}
    assert found.count("UNREACHABLE") > len(found) / 4
    record("F01", trials=len(found), failures=0)


async def test_a_coordinator_that_refuses_a_hospital_is_named_as_such(place: Place) -> None:
    """It does so at every dial; one that was away in between is asked twice again."""
    create_ca(place.folder / "other", "heart", now_unix=time.time())
    other = identity(place.folder, Role.HOSPITAL, "va", "other")
    key = place.coordinator.key_pem().reveal()
    listener = grpc.aio.server()
    port = listener.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(key, place.coordinator.certificate_pem)], other.ca_pem, require_client_auth=True
        ),
    )
    await listener.start()
    async with Proxy(f"127.0.0.1:{port}") as proxy:
        dialler = GrpcDialler(proxy.address, place.hospital, None, SystemClock())
        first = [await said(dialler) for _ in range(3)]
        proxy.target = place.address
        there = await said(dialler)
        proxy.target = f"127.0.0.1:{port}"
        again = [await said(dialler) for _ in range(2)]
    await listener.stop(0)
    assert first == ["UNREACHABLE", "TLS_REFUSED", "TLS_REFUSED"]
    assert there != "TLS_REFUSED"
    assert again == ["UNREACHABLE", "TLS_REFUSED"]
