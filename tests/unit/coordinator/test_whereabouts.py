"""A coordinator is found well on its own machine, whatever name its certificate carries."""

from __future__ import annotations

import errno
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.certificates import Role
from common.clock import SystemClock
from common.errors import ExitCode, IdentityError, StateError
from common.identity import load_identity
from common.pki import create_ca, issue
from common.transport.ask import WHOLE
from common.transport.health import HealthServicer, add_health
from common.transport.tls import bind, server, server_credentials
from coordinator import app
from coordinator.config import CoordinatorConfig
from coordinator.own import name_to_expect
from coordinator.whereabouts import ADDRESS_FILE, ask_health

FILE = """
schema: fedcare.coordinator/v1
federation: heart
listen: "0.0.0.0:8443"
members: [north, south]
state_dir: state
tls: {certificate: OWN/tls.crt, key: OWN/tls.key, ca: OWN/ca.crt}
"""
NOW = SystemClock().unix()


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    create_ca(tmp_path / "pki", "heart", now_unix=NOW)
    return tmp_path / "pki"


def configured(ca: Path, *hosts: str) -> CoordinatorConfig:
    own = ca.parent / hosts[0].replace(":", "-")
    issue(ca, Role.COORDINATOR, "main", now_unix=NOW, hosts=hosts, out=own)
    file = ca.parent / f"{own.name}.yaml"
    file.write_text(FILE.replace("OWN", own.name))
    return CoordinatorConfig.read(file)


@asynccontextmanager
async def serving(config: CoordinatorConfig) -> AsyncIterator[str]:
    """A health service with that certificate, and the mark of a serving coordinator."""
    identity = load_identity(config.path(config.tls.certificate).parent, now_unix=NOW)
    listener = server([])
    add_health(HealthServicer({WHOLE: lambda: True}), listener)
    port = bind(listener, "127.0.0.1:0", server_credentials(identity))
    await listener.start()
    state = config.path(config.state_dir)
    state.mkdir(exist_ok=True)
    (state / ADDRESS_FILE).write_text(f"0.0.0.0:{port}\n")
    yield f"127.0.0.1:{port}"
    await listener.stop(0)


@pytest.mark.parametrize(
    "hosts",
    [("coordinator.example.org",), ("127.0.0.1", "localhost"), ("192.0.2.7",), ("2001:db8::7",)],
    ids=["a name", "loopback", "an address", "an IPv6 address"],
)
async def test_it_is_well_whatever_name_its_peers_dial(ca: Path, hosts: tuple[str, ...]) -> None:
    config = configured(ca, *hosts)
    async with serving(config) as address:
        assert (await ask_health(config)).exit_code is ExitCode.OK
        wanted = None if "127.0.0.1" in hosts else hosts[0]
        assert name_to_expect(config, address) == wanted


async def test_a_certificate_of_another_name_is_still_refused(ca: Path) -> None:
    config = configured(ca, "coordinator.example.org")
    async with serving(configured(ca, "another.example.org")):
        with pytest.raises(IdentityError, match="does not carry the name") as failed:
            await ask_health(config)
    assert failed.value.name == "TLS_REFUSED"


async def test_a_disk_that_became_read_only_is_what_the_end_is_about(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(*_: object) -> None:
        raise StateError("DISK", "coordinator.db: Read-only file system")

    def refused(self: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr("common.confinement.confine", lambda *_: None)
    monkeypatch.setattr(app, "capture_libraries", lambda _: None)
    monkeypatch.setattr(app, "_serve_state", failed)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(StateError, match=r"coordinator\.db"):
        await app.serve(configured(ca, "coordinator.example.org"), io.StringIO())
