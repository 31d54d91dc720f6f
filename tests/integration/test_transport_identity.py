"""Mutual TLS on loopback: who gets through to a handler, who does not, and what each is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from common.certificates import Role
from common.clock import ManualClock, SystemClock
from common.errors import ConfigError, ConnectError, FedError, IdentityError, RoundError
from common.identity import Identity, load_identity
from common.ids import NodeId
from common.transport.identity import PeerIdentity, check_tls, peer_identity
from common.transport.interceptors import CallFailure, Guard, caller
from common.transport.options import MAX_MESSAGE_BYTES
from common.transport.status import from_rpc, remote_errors
from common.transport.tls import bind, channel, server, server_credentials
from tests.certificate_factory import (
    CLIENT,
    FEDERATION,
    RIGHT,
    SERVER,
    WRONG_LEAVES,
    Authority,
    Key,
    Spec,
    Wrong,
    key_pem,
    make,
    new_ca,
    pem,
    write_identity,
)

NOW = SystemClock().unix()
CA = new_ca(now=NOW)
OTHER = new_ca(now=NOW)
HOSPITALS = frozenset({Role.HOSPITAL})
SECRET = "/var/lib/fedcare/secret.db"  # noqa: S105 - a path that must not travel

HANDSHAKE = {
    "expired",
    "not yet valid",
    "of another CA",
    "signed by itself",
    "server certificate as client",
    "key usage without signing",
}
"""The wrong leaves that TLS itself refuses; all others are the guard's to refuse."""


# ---------------------------------------------------------------- handlers under test


async def _unary(_request: bytes, _context: object) -> bytes:
    return caller().node_id.encode()


async def _down(_request: bytes, _context: object) -> AsyncIterator[bytes]:
    for _ in range(2):
        yield caller().node_id.encode()


async def _up(requests: AsyncIterator[bytes], _context: object) -> bytes:
    return b"".join([message async for message in requests]) + caller().id.encode()


async def _both(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
    async for message in requests:
        yield message + caller().id.encode()


async def _writing(requests: AsyncIterator[bytes], context: Any) -> None:  # noqa: ANN401
    async for message in requests:
        await context.write(message + caller().id.encode())


async def _forever(_request: bytes, _context: object) -> AsyncIterator[bytes]:
    yield b"open"
    await asyncio.Event().wait()


async def _broken(_request: bytes, _context: object) -> bytes:
    raise ValueError(SECRET)


async def _refusing(_request: bytes, _context: object) -> bytes:
    raise RoundError("NOT_FOUND", "no run r-1")


async def _private(_request: bytes, _context: object) -> bytes:
    raise FedError("STATE_DAMAGED", SECRET)


def _strict(data: bytes) -> bytes:
    if data == b"bad":
        raise ValueError(SECRET)
    return data


METHODS: dict[str, Any] = {
    "Unary": grpc.unary_unary_rpc_method_handler(_unary),
    "Down": grpc.unary_stream_rpc_method_handler(_down),
    "Up": grpc.stream_unary_rpc_method_handler(_up),
    "Both": grpc.stream_stream_rpc_method_handler(_both),
    "Writing": grpc.stream_stream_rpc_method_handler(_writing),
    "Forever": grpc.unary_stream_rpc_method_handler(_forever),
    "Broken": grpc.unary_unary_rpc_method_handler(_broken),
    "Refusing": grpc.unary_unary_rpc_method_handler(_refusing),
    "Private": grpc.unary_unary_rpc_method_handler(_private),
    "Strict": grpc.unary_unary_rpc_method_handler(_unary, request_deserializer=_strict),
    "StrictBoth": grpc.stream_stream_rpc_method_handler(_both, request_deserializer=_strict),
    "NotListed": grpc.unary_unary_rpc_method_handler(_unary),
    "ForOperators": grpc.unary_unary_rpc_method_handler(_unary),
}
TABLE = {f"/test.Test/{name}": HOSPITALS for name in METHODS if name != "NotListed"}
TABLE["/test.Test/ForOperators"] = frozenset({Role.OPERATOR})


@dataclass
class Running:
    """A coordinator under test, and what its guard reported."""

    address: str
    failures: list[CallFailure] = field(default_factory=list)


def identity(folder: Path, spec: Spec, signer: Authority = CA) -> Identity:
    certificate = make(spec, signer, NOW)
    return load_identity(write_identity(folder, certificate, spec.key, signer), now_unix=NOW)


@pytest.fixture
def coordinator(tmp_path: Path) -> Identity:
    return identity(
        tmp_path / "coordinator",
        Spec(
            uris=(f"spiffe://{FEDERATION}/coordinator/main",),
            dns=("localhost",),
            purposes=(SERVER, CLIENT),
        ),
    )


@pytest.fixture
def hospital(tmp_path: Path) -> Identity:
    return identity(tmp_path / "hospital", Spec())


@contextlib.asynccontextmanager
async def serving(
    coordinator: Identity,
    clock: ManualClock | SystemClock | None = None,
    admit: Callable[[PeerIdentity], None] = lambda _: None,
) -> AsyncIterator[Running]:
    failures: list[CallFailure] = []
    guard = Guard(
        federation=FEDERATION,
        methods=TABLE,
        clock=clock or SystemClock(),
        admit=admit,
        report=failures.append,
    )
    listener = server([guard])
    listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", METHODS),))
    port = bind(listener, "127.0.0.1:0", server_credentials(coordinator))
    await listener.start()
    try:
        yield Running(f"localhost:{port}", failures)
    finally:
        await listener.stop(0)


@pytest.fixture
async def running(coordinator: Identity) -> AsyncIterator[Running]:
    async with serving(coordinator) as served:
        yield served


def open_channel(address: str, who: Identity, proxy: str | None = None) -> Any:  # noqa: ANN401
    """Dial as the product does; `Any`, because these calls go without serialisers."""
    return channel(address, who, proxy)


async def call(dialled: Any, method: str = "Unary", request: bytes = b"") -> bytes:  # noqa: ANN401
    """Make one unary call and close the channel."""
    async with dialled:
        answer: bytes = await dialled.unary_unary(f"/test.Test/{method}")(request, timeout=20)
        return answer


async def refused(dialled: grpc.aio.Channel, address: str, method: str = "Unary") -> FedError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(dialled, method)
    return from_rpc(failed.value, address=address)


def dial_with(address: str, certificate: bytes | None, key: Key | None) -> grpc.aio.Channel:
    """Dial with any certificate, right or wrong, past our own checks."""
    credentials = grpc.ssl_channel_credentials(
        pem(CA.certificate), None if key is None else key_pem(key), certificate
    )
    return grpc.aio.secure_channel(address, credentials)


async def read_to_the_end(stream: Any) -> tuple[list[bytes], grpc.aio.AioRpcError]:  # noqa: ANN401
    """Return what a failing stream gave before its error, and the error."""
    got: list[bytes] = []
    try:
        async for message in stream:
            got.append(message)  # noqa: PERF401 - kept even though the stream fails
    except grpc.aio.AioRpcError as error:
        return got, error
    pytest.fail("the stream ended well")


async def messages(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


# ---------------------------------------------------------------- the right one


async def test_all_four_kinds_of_handler_see_the_identity(
    running: Running, hospital: Identity
) -> None:
    async with open_channel(running.address, hospital) as dialled:
        unary = await dialled.unary_unary("/test.Test/Unary")(b"")
        down = [m async for m in dialled.unary_stream("/test.Test/Down")(b"")]
        up = await dialled.stream_unary("/test.Test/Up")(messages(b"1", b"2"))
        both = [m async for m in dialled.stream_stream("/test.Test/Both")(messages(b"1", b"2"))]
        writing = [m async for m in dialled.stream_stream("/test.Test/Writing")(messages(b"1"))]
    assert unary == RIGHT.encode()
    assert down == [RIGHT.encode()] * 2
    assert up == b"12cleveland"
    assert both == [b"1cleveland", b"2cleveland"]
    assert writing == [b"1cleveland"]
    assert running.failures == []


async def test_two_hospitals_at_once_are_never_confused(
    running: Running, hospital: Identity, tmp_path: Path
) -> None:
    uri = f"spiffe://{FEDERATION}/hospital/va"
    second = identity(tmp_path / "va", Spec(uris=(uri,)))
    async with (
        open_channel(running.address, hospital) as one,
        open_channel(running.address, second) as two,
    ):
        calls = [c.unary_unary("/test.Test/Unary")(b"") for _ in range(8) for c in (one, two)]
        answers = await asyncio.gather(*calls)
    assert answers == [RIGHT.encode(), uri.encode()] * 8


# ---------------------------------------------------------------- the wrong ones


@pytest.mark.parametrize("wrong", WRONG_LEAVES, ids=lambda w: w.name)
async def test_every_wrong_certificate_is_refused(running: Running, wrong: Wrong) -> None:
    certificate, key = wrong.make(CA, OTHER, NOW)
    error = await refused(dial_with(running.address, pem(certificate), key), running.address)
    assert error.kind.exit_code == 2
    if wrong.name in HANDSHAKE:
        assert error.name == "TLS_REFUSED"
        assert running.failures == []
    else:
        assert error.name in {"IDENTITY", "CERT_INVALID"}
        assert [failure.error.name for failure in running.failures] == [error.name]


async def test_no_certificate_is_refused(running: Running) -> None:
    error = await refused(dial_with(running.address, None, None), running.address)
    assert error.name == "TLS_REFUSED"


async def test_plaintext_is_refused(running: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await call(grpc.aio.insecure_channel(running.address))
    assert running.failures == []


async def test_a_wrong_role_is_refused_and_told_which_is_right(
    running: Running, hospital: Identity
) -> None:
    error = await refused(channel(running.address, hospital), running.address, "ForOperators")
    assert error.name == "ROLE_DENIED"
    assert error.detail.endswith("it is for operator")
    peer = running.failures[0].peer
    assert peer is not None
    assert peer.node_id == RIGHT


@pytest.mark.parametrize("method", ["NotListed", "Unknown"])
async def test_a_method_that_is_not_in_the_table_is_refused(
    running: Running, hospital: Identity, method: str
) -> None:
    error = await refused(channel(running.address, hospital), running.address, method)
    assert error.name == "ROLE_DENIED"


async def test_a_stranger_learns_nothing_about_methods(running: Running) -> None:
    wrong = next(w for w in WRONG_LEAVES if w.name == "two URIs")
    certificate, key = wrong.make(CA, OTHER, NOW)
    names = set()
    for method in ("Unary", "ForOperators", "Unknown"):
        dialled = dial_with(running.address, pem(certificate), key)
        names.add((await refused(dialled, running.address, method)).name)
    assert names == {"IDENTITY"}


async def test_admission_can_turn_a_known_hospital_away(
    coordinator: Identity, hospital: Identity
) -> None:
    def revoked(peer: PeerIdentity) -> None:
        raise IdentityError("CERT_INVALID", f"{peer.node_id} was revoked")

    async with serving(coordinator, admit=revoked) as running:
        error = await refused(channel(running.address, hospital), running.address)
    assert error.detail == f"{RIGHT} was revoked"


# ---------------------------------------------------------------- dates


async def test_a_stream_ends_with_its_certificate(
    coordinator: Identity, hospital: Identity
) -> None:
    # The guard's clock stands 0.2 s before the second after notAfter.
    clock = ManualClock(epoch=hospital.leaf.not_after + 0.8)
    async with (
        serving(coordinator, clock) as running,
        open_channel(running.address, hospital) as dialled,
    ):
        stream = dialled.unary_stream("/test.Test/Forever")(b"", timeout=30)
        got, failed = await read_to_the_end(stream)
    assert got == [b"open"]
    error = from_rpc(failed, address=running.address)
    assert error.name == "CERT_INVALID"
    assert "expired during the call" in error.detail


async def test_a_live_connection_gets_no_new_call_after_its_certificate_ended(
    coordinator: Identity, hospital: Identity
) -> None:
    clock = ManualClock(epoch=NOW)
    async with (
        serving(coordinator, clock) as running,
        open_channel(running.address, hospital) as dialled,
    ):
        assert await dialled.unary_unary("/test.Test/Unary")(b"") == RIGHT.encode()
        clock.advance(hospital.leaf.not_after - NOW + 1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await dialled.unary_unary("/test.Test/Unary")(b"")
    assert from_rpc(failed.value, address=running.address).name == "CERT_INVALID"


async def test_an_own_expired_certificate_is_blamed_before_dialling(hospital: Identity) -> None:
    clock = ManualClock(epoch=hospital.leaf.not_after + 7200)
    with (
        pytest.raises(IdentityError, match="expired 2 h ago"),
        remote_errors("localhost:1", hospital, clock),
    ):
        pytest.fail("the block must not run")


async def test_a_handshake_refused_for_our_own_dates_says_so(
    running: Running, hospital: Identity
) -> None:
    wrong = next(w for w in WRONG_LEAVES if w.name == "expired")
    certificate, key = wrong.make(CA, OTHER, NOW)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(dial_with(running.address, pem(certificate), key))
    ours = replace(hospital, leaf=replace(hospital.leaf, not_after=int(NOW) - 3600))
    error = from_rpc(failed.value, address=running.address, identity=ours, now_unix=NOW)
    assert error.name == "CERT_INVALID"


# ---------------------------------------------------------------- errors over the wire


async def test_an_unexpected_exception_travels_as_an_incident_number_only(
    running: Running, hospital: Identity
) -> None:
    async with open_channel(running.address, hospital) as dialled:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await dialled.unary_unary("/test.Test/Broken")(b"")
    everything = f"{failed.value!r} {failed.value.trailing_metadata()!r}"
    assert SECRET not in everything
    assert "ValueError" not in everything
    assert "Traceback" not in everything
    failure = running.failures[0]
    assert isinstance(failure.cause, ValueError)
    assert failure.incident is not None
    error = from_rpc(failed.value, address=running.address)
    assert (error.code, error.detail) == ("FC-9001", f"incident {failure.incident}")


async def test_an_expected_error_travels_with_code_and_detail(
    running: Running, hospital: Identity
) -> None:
    error = await refused(channel(running.address, hospital), running.address, "Refusing")
    assert isinstance(error, RoundError)
    assert (error.code, error.detail) == ("FC-6004", "no run r-1")


async def test_a_detail_about_the_coordinators_files_stays_there(
    running: Running, hospital: Identity
) -> None:
    error = await refused(channel(running.address, hospital), running.address, "Private")
    assert error.code == "FC-7001"
    assert SECRET not in error.detail


async def test_unparsable_messages_are_invalid_arguments_in_single_calls_and_streams(
    running: Running, hospital: Identity
) -> None:
    async with open_channel(running.address, hospital) as dialled:
        with pytest.raises(grpc.aio.AioRpcError) as single:
            await dialled.unary_unary("/test.Test/Strict")(b"bad")
        stream = dialled.stream_stream("/test.Test/StrictBoth")(messages(b"good", b"bad"))
        got, streamed = await read_to_the_end(stream)
    assert got == [b"goodcleveland"]
    for failed in (single.value, streamed):
        assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert from_rpc(failed, address=running.address).name == "BAD_MESSAGE"
        assert SECRET not in repr(failed)


async def test_messages_over_the_cap_are_refused_by_both_ends(
    running: Running, hospital: Identity
) -> None:
    big = b"x" * (MAX_MESSAGE_BYTES + 1)
    async with open_channel(running.address, hospital) as capped:
        with pytest.raises(grpc.aio.AioRpcError) as sender:
            await capped.unary_unary("/test.Test/Unary")(big)
    assert from_rpc(sender.value, address=running.address).name == "BAD_MESSAGE"
    uncapped = dial_with(running.address, hospital.certificate_pem, hospital._key)
    with pytest.raises(grpc.aio.AioRpcError) as receiver:
        await call(uncapped, request=big)
    assert receiver.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


# ---------------------------------------------------------------- the dialling side


@pytest.mark.parametrize(
    ("spec", "signer", "words"),
    [
        (Spec(dns=("localhost",), purposes=(SERVER, CLIENT)), OTHER, "not of the pinned CA"),
        (Spec(dns=("localhost",)), CA, "not a coordinator's"),
        (Spec(dns=("elsewhere",), purposes=(SERVER, CLIENT)), CA, "the name dialled"),
        (
            Spec(
                dns=("localhost",),
                purposes=(SERVER, CLIENT),
                begins=timedelta(days=-2),
                ends=timedelta(days=-1),
            ),
            CA,
            "expired by this machine's clock",
        ),
    ],
    ids=["another CA", "a hospital's certificate", "another name", "expired"],
)
async def test_a_wrong_coordinator_is_refused_with_the_reason(
    hospital: Identity, spec: Spec, signer: Authority, words: str
) -> None:
    listener = grpc.aio.server()
    certificate = make(spec, signer, NOW)
    port = listener.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key_pem(spec.key), pem(certificate))])
    )
    await listener.start()
    error = await refused(channel(f"localhost:{port}", hospital), "there")
    await listener.stop(0)
    assert error.name == "TLS_REFUSED"
    assert words in error.detail


async def test_a_coordinator_that_is_not_there_is_unreachable(hospital: Identity) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        error = await refused(channel(address, hospital), address)
    assert (error.name, error.detail) == ("UNREACHABLE", f"{address}: connection refused")


async def test_a_server_without_tls_is_named_as_such(hospital: Identity) -> None:
    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        error = await refused(channel(f"127.0.0.1:{port}", hospital), "there")
    assert (error.name, error.detail) == ("TLS_REFUSED", "there: the other end does not speak TLS")


async def test_a_taken_port_is_an_error_of_its_own(running: Running, coordinator: Identity) -> None:
    port = running.address.rpartition(":")[2]
    with pytest.raises(ConnectError) as taken:
        bind(server([]), f"127.0.0.1:{port}", server_credentials(coordinator))
    assert taken.value.name == "PORT_IN_USE"


def test_only_a_coordinator_listens(hospital: Identity) -> None:
    with pytest.raises(IdentityError):
        server_credentials(hospital)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "host:70000", "a b:1", ":1"])
def test_malformed_addresses_are_refused(address: str, hospital: Identity) -> None:
    with pytest.raises(ConfigError):
        channel(address, hospital)


@pytest.mark.parametrize("proxy", ["", "proxy", "https://proxy:1", "socks5://proxy:1", "http://p"])
def test_malformed_proxies_are_refused(proxy: str, hospital: Identity) -> None:
    with pytest.raises(ConfigError):
        channel("example.org:443", hospital, proxy)


# ---------------------------------------------------------------- proxies


@contextlib.contextmanager
def connect_proxy() -> Iterator[tuple[str, list[bytes]]]:
    """Run a CONNECT proxy that leads every name to loopback; yields its URL and requests."""
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                seen.append(head.split(b"\r\n")[0])
                port = int(head.split(b" ")[1].rpartition(b":")[2])
                target = socket.create_connection(("127.0.0.1", port))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for pair in ((client, target), (target, client)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.close()


async def test_a_nodes_proxy_setting_tunnels_with_connect(
    running: Running, hospital: Identity
) -> None:
    with connect_proxy() as (url, seen):
        assert await call(channel(running.address, hospital, url)) == RIGHT.encode()
    assert seen == [f"CONNECT {running.address} HTTP/1.1".encode()]


async def test_the_environments_proxy_is_used_except_for_loopback(
    coordinator: Identity,
    hospital: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("grpc_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    remote = identity(
        tmp_path / "remote",
        Spec(
            uris=(f"spiffe://{FEDERATION}/coordinator/main",),
            dns=("coordinator.example.org", "localhost"),
            purposes=(SERVER, CLIENT),
        ),
    )
    with connect_proxy() as (url, seen):
        monkeypatch.setenv("https_proxy", url)
        async with serving(remote) as running:
            port = running.address.rpartition(":")[2]
            assert await call(channel(running.address, hospital)) == RIGHT.encode()
            assert seen == []
            far = f"coordinator.example.org:{port}"
            assert await call(channel(far, hospital)) == RIGHT.encode()
            assert seen == [f"CONNECT {far} HTTP/1.1".encode()]


# ---------------------------------------------------------------- TLS versions


_SERVER_PROGRAM = """
import asyncio, sys
from pathlib import Path
if sys.argv[2] == "ours":
    import common
import grpc, grpc.aio
from common.certificates import Role
from common.clock import SystemClock
from common.identity import load_identity
from common.transport.interceptors import Guard
from common.transport.tls import server_credentials

async def handler(request, context):
    print("HANDLER REACHED", flush=True)
    return b"in"

async def main(folder):
    clock = SystemClock()
    me = load_identity(Path(folder), now_unix=clock.unix())
    guard = Guard(federation=me.federation, methods={"/test.Test/Unary": frozenset(Role)},
                  clock=clock, report=lambda f: print("REFUSED", f.error.name, flush=True))
    listener = grpc.aio.server(interceptors=[guard])
    listener.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "test.Test", {"Unary": grpc.unary_unary_rpc_method_handler(handler)}),))
    credentials = server_credentials(me)
    port = listener.add_secure_port("127.0.0.1:0", credentials)
    await listener.start()
    print(port, flush=True)
    await listener.wait_for_termination()

asyncio.run(main(sys.argv[1]))
"""


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def raw_call(port: int, folder: Path, version: ssl.TLSVersion) -> tuple[str | None, bytes]:
    """Make one unary call with the standard library's TLS; return version and answer."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    headers = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": b"/test.Test/Unary",
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": b"application/grpc",
    }
    block = b"".join(
        b"\x00" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in headers.items()
    )
    request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    request += _frame(1, 4, 1, block) + _frame(0, 1, 1, b"\x00\x00\x00\x00\x00")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(request)
        answer = b""
        while b"grpc-status" not in answer:
            data = secure.recv(65536)
            if not data:
                break
            answer += data
        return secure.version(), answer


@contextlib.contextmanager
def foreign_server(folder: Path, mode: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Serve in a process of its own: gRPC reads its cipher list while it is imported."""
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER_PROGRAM, str(folder), mode],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={k: v for k, v in os.environ.items() if k != "GRPC_SSL_CIPHER_SUITES"},
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process
        finally:
            process.kill()


def test_a_tls_12_call_is_refused_before_any_handler(
    coordinator: Identity, hospital: Identity, tmp_path: Path
) -> None:
    with foreign_server(tmp_path / "coordinator", "grpc first") as (port, process):
        version, answer = raw_call(port, tmp_path / "hospital", ssl.TLSVersion.TLSv1_2)
        assert process.stdout is not None
        assert version == "TLSv1.2"  # grpcio lets it through: this is the guard's work
        assert b"FC-2004" in answer
        assert process.stdout.readline() == "REFUSED TLS_VERSION\n"
        version, answer = raw_call(port, tmp_path / "hospital", ssl.TLSVersion.TLSv1_3)
        assert version == "TLSv1.3"
        assert process.stdout.readline() == "HANDLER REACHED\n"


def test_our_credentials_do_not_even_shake_hands_below_tls_13(
    coordinator: Identity, hospital: Identity, tmp_path: Path
) -> None:
    with foreign_server(tmp_path / "coordinator", "ours") as (port, _process):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            raw_call(port, tmp_path / "hospital", ssl.TLSVersion.TLSv1_2)
        version, answer = raw_call(port, tmp_path / "hospital", ssl.TLSVersion.TLSv1_3)
    assert version == "TLSv1.3"
    assert b"grpc-status" in answer


# ---------------------------------------------------------------- reading the peer


@dataclass
class FakeCall:
    facts: dict[str, list[bytes]]

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.facts


@pytest.mark.parametrize(
    "versions", [[], [b"TLSv1.2"], [b""], [b"TLSv1.3", b"TLSv1.2"], [b"tlsv1.3"]]
)
def test_anything_but_one_exact_tls_13_is_refused(versions: list[bytes]) -> None:
    with pytest.raises(IdentityError) as low:
        check_tls(FakeCall({"ssl_tls_version": versions}))
    assert low.value.name == "TLS_VERSION"


def test_the_identity_comes_from_the_certificate_and_nothing_else(hospital: Identity) -> None:
    facts = {
        "x509_pem_cert": [hospital.certificate_pem],
        "x509_common_name": [b"spiffe://heart/operator/root"],
        "x509_subject_alternative_name": [b"spiffe://heart/operator/root"],
        "peer_spiffe_id": [b"spiffe://heart/operator/root"],
    }
    peer = peer_identity(FakeCall(facts), federation=FEDERATION, now_unix=NOW)
    assert peer == PeerIdentity(
        FEDERATION, Role.HOSPITAL, "cleveland", NodeId(RIGHT), hospital.leaf.not_after
    )


def test_a_call_without_a_certificate_has_no_identity() -> None:
    with pytest.raises(IdentityError):
        peer_identity(FakeCall({}), federation=FEDERATION, now_unix=NOW)


def test_caller_outside_a_handler_is_our_bug() -> None:
    with pytest.raises(FedError) as bug:
        caller()
    assert bug.value.code == "FC-9001"
