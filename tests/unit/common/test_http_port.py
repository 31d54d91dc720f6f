"""The HTTP port: three pages, small limits, and nothing of a request comes back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from common.clock import ManualClock
from common.errors import ConfigError, ConnectError
from common.http_port import HttpPort, Limits, Page, pages_of
from common.pulse import Pulse

LIMITS = Limits(request_bytes=2048, seconds=1.0, connections=4, linger_s=0.2)


def broken() -> Page:
    raise ValueError("a row of a patient")


@dataclass
class Service:
    """What a port shows in these tests."""

    clock: ManualClock = field(default_factory=ManualClock)
    why: str = ""

    def __post_init__(self) -> None:
        self.pulse = Pulse(lambda: self.why, self.clock)

    def pages(self) -> dict[str, object]:
        return {**pages_of(self.pulse, str, lambda: "fedcare_x 1\n"), "/broken": broken}


@contextmanager
def listening(service: Service, limits: Limits = LIMITS) -> Iterator[tuple[str, int]]:
    bugs: list[Exception] = []
    port = HttpPort("127.0.0.1:0", service.pages(), bugs.append, limits)  # type: ignore[arg-type]
    host, number = port.open().split(":")
    try:
        yield host, int(number)
    finally:
        port.close()
        assert [type(bug) for bug in bugs] in ([], [ValueError])
        assert "http" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def place(service: Service) -> Iterator[tuple[str, int]]:
    with listening(service) as found:
        yield found


def say(place: tuple[str, int], data: bytes) -> bytes:
    """Send bytes and return all that comes back until the end."""
    with socket.create_connection(place, timeout=5) as link:
        link.sendall(data)
        answer = b""
        while piece := link.recv(65536):
            answer += piece
        return answer


def ask(place: tuple[str, int], target: str, method: str = "GET") -> tuple[int, bytes, str]:
    """Return status, body and head of one request."""
    answer = say(place, f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body, head.decode()


def test_the_three_pages(service: Service, place: tuple[str, int]) -> None:
    assert ask(place, "/healthz")[:2] == (200, b"ok\n")
    assert ask(place, "/readyz")[:2] == (200, b"ready\n")
    status, body, head = ask(place, "/metrics?x=1")
    assert (status, body) == (200, b"fedcare_x 1\n")
    assert "text/plain; version=0.0.4" in head
    service.why = "not connected, 3 attempts"
    service.pulse.beat()
    assert ask(place, "/readyz")[:2] == (503, b"not connected, 3 attempts\n")
    assert ask(place, "/healthz")[0] == 200


def test_an_event_loop_that_stands_still_is_neither_healthy_nor_ready(
    service: Service, place: tuple[str, int]
) -> None:
    service.clock.now += 9
    assert ask(place, "/healthz")[0] == 200
    service.clock.now += 2
    for page in ("/healthz", "/readyz"):
        assert ask(place, page)[:2] == (503, b"the event loop has not moved for 11 s\n")
    assert ask(place, "/metrics")[0] == 200
    service.pulse.beat()
    assert ask(place, "/healthz")[0] == 200


async def test_the_beat_stops_when_the_loop_is_blocked() -> None:
    class Real(ManualClock):
        def monotonic(self) -> float:
            return time.monotonic()

    service = Service(Real())
    service.pulse = Pulse(lambda: "", service.clock, every_s=0.02, stuck_s=0.3)
    beat = asyncio.create_task(service.pulse.keep())
    with listening(service) as place:
        await asyncio.sleep(0.5)
        assert (await asyncio.to_thread(ask, place, "/healthz"))[0] == 200
        seen: list[int] = []
        late = threading.Timer(0.6, lambda: seen.append(ask(place, "/healthz")[0]))
        late.start()
        time.sleep(0.9)  # noqa: ASYNC251 - the fault itself
        late.join()
        assert seen == [503]
        await asyncio.sleep(0.1)
        assert (await asyncio.to_thread(ask, place, "/healthz"))[0] == 200
    beat.cancel()


def test_head_has_no_body_and_every_answer_closes(place: tuple[str, int]) -> None:
    status, body, head = ask(place, "/healthz", "HEAD")
    assert (status, body) == (200, b"")
    assert "Content-Length: 3" in head
    assert "Connection: close" in head


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "X"])
def test_other_methods_are_not_allowed(place: tuple[str, int], method: str) -> None:
    status, body, head = ask(place, "/metrics", method)
    assert (status, body) == (405, b"GET and HEAD only\n")
    assert "Allow: GET, HEAD" in head


def test_a_refused_body_does_not_cost_the_answer(place: tuple[str, int]) -> None:
    body = b"x" * 100_000
    answer = say(place, b"POST /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("target", ["/", "/metrics/", "/../etc/passwd", "/healthz%00", "//healthz"])
def test_other_paths_are_not_found(place: tuple[str, int], target: str) -> None:
    status, body, _ = ask(place, target)
    assert status == 404
    assert body == b"here are /healthz, /readyz, /metrics, /broken\n"


@pytest.mark.parametrize(
    "line",
    [
        b"GET /he\x1b[31malthz HTTP/1.1",
        b"GET /healthz\r HTTP/1.1",
        b"GET /heal thz HTTP/1.1",
        b"GET /\xff\xfe HTTP/1.1",
        b"GET /healthz HTTP/2.0",
        b"GET /healthz",
        b"get /healthz HTTP/1.1",
        b"GET http://elsewhere/healthz HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"",
    ],
)
def test_malformed_requests_are_refused_and_not_repeated(
    place: tuple[str, int], line: bytes
) -> None:
    answer = say(place, line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b"not a request of HTTP/1.1\n")


def test_huge_headers_are_refused_with_bounded_memory(place: tuple[str, int]) -> None:
    answer = say(place, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 4000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


def test_headers_that_come_slowly_are_cut_off(place: tuple[str, int]) -> None:
    began = time.monotonic()
    with socket.create_connection(place, timeout=5) as link:
        link.sendall(b"GET /healthz HTTP/1.1\r\n")
        try:
            while time.monotonic() - began < 4:
                link.sendall(b"X: y\r\n")
                time.sleep(0.1)
        except OSError:
            pass
    assert 0.9 < time.monotonic() - began < 3


def test_many_silent_connections_do_not_keep_a_probe_out(place: tuple[str, int]) -> None:
    silent = [socket.create_connection(place, timeout=5) for _ in range(30)]
    try:
        began = time.monotonic()
        assert ask(place, "/healthz")[0] == 200
        for link in silent[: -LIMITS.connections]:
            link.settimeout(0.5)
            with contextlib.suppress(ConnectionResetError):
                assert link.recv(1) == b"", "the oldest are shown out"
        assert time.monotonic() - began < 0.9  # not by waiting until they are too slow
    finally:
        for link in silent:
            link.close()


def test_a_page_that_cannot_be_made_is_an_error_without_words(place: tuple[str, int]) -> None:
    status, body, _ = ask(place, "/broken")
    assert status == 500
    assert b"patient" not in body


def test_a_port_that_is_taken_is_named_with_its_key_and_the_fix(place: tuple[str, int]) -> None:
    with pytest.raises(ConnectError, match=rf"http: 127\.0\.0\.1:{place[1]} is taken") as failed:
        HttpPort(f"127.0.0.1:{place[1]}", {}, lambda _: None).open()
    assert failed.value.name == "PORT_IN_USE"
    assert "`http`" in failed.value.fix


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"http: 192\.0\.2\.1:8080 is not an address"):
        HttpPort("192.0.2.1:8080", {}, lambda _: None).open()


@pytest.mark.timeout(20)
def test_a_port_that_cannot_begin_says_so_and_does_not_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("common.http_port.asyncio.start_server", refused)
    port = HttpPort("127.0.0.1:0", service.pages(), lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Too many open files"):
        port.open()
    port.close()
