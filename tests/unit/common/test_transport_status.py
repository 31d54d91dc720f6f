"""Errors over the wire and back, and the table of gRPC settings."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BY_CODE, CATALOGUE, ErrorKind, FedError, RoundError
from common.identity import OutOfDates
from common.transport.options import OPTIONS, Side, channel_options, server_options
from common.transport.status import (
    CODE_KEY,
    DETAIL_KEY,
    MAX_DETAIL_BYTES,
    RETRY_KEY,
    clean,
    from_rpc,
    make_error,
    public_detail,
    to_status,
)


def received(error: FedError) -> FedError:
    """Send an error over an imagined wire."""
    code, text, trailer = to_status(error)
    return from_rpc(AioRpcError(code, Metadata(), Metadata(*trailer), text), address="there")


@pytest.mark.parametrize("kind", CATALOGUE.values(), ids=lambda kind: kind.name)
def test_every_row_of_the_catalogue_survives_the_wire(kind: ErrorKind) -> None:
    sent = make_error(kind, "run r-1")
    got = received(sent)
    assert (got.code, type(got)) == (sent.code, type(sent))
    assert got.detail == public_detail(sent)


def test_a_delay_that_is_asked_for_travels_rounded_up() -> None:
    assert received(RoundError("BUSY", "later", retry_s=1.2345)).retry_s == 1.235
    assert received(RoundError("BUSY", "later")).retry_s == 0.0


@pytest.mark.parametrize("told", ["", "-1", "1e9", "10000000000", "1.5", "\u0661"])
def test_a_delay_that_is_no_number_is_none(told: str) -> None:
    code, text, trailer = to_status(RoundError("BUSY", "later"))
    told_more = Metadata(*trailer, (RETRY_KEY, told))
    found = from_rpc(AioRpcError(code, Metadata(), told_more, text), address="there")
    assert found.retry_s == 0.0


@given(st.text(max_size=2000))
def test_no_detail_breaks_a_line_or_the_cap(detail: str) -> None:
    text = clean(detail + "\ud800\n")
    assert text.isprintable()
    assert len(text.encode()) <= MAX_DETAIL_BYTES


@pytest.mark.parametrize(
    "name", ["STATE_DAMAGED", "FILE_MISSING", "DISK", "DATA_VALUE", "INTERNAL"]
)
def test_details_about_ones_own_files_do_not_travel(name: str) -> None:
    sent = make_error(CATALOGUE[name], "/var/lib/fedcare/secret")
    _, text, trailer = to_status(sent)
    assert "secret" not in text + repr(trailer)


@pytest.mark.parametrize("code", ["FC-0000", "", "fc-2001", "FC-2001\n"])
def test_a_foreign_servers_code_is_not_believed(code: str) -> None:
    assert code not in BY_CODE
    trailer = Metadata((CODE_KEY, code), (DETAIL_KEY, b"x"))
    error = AioRpcError(grpc.StatusCode.NOT_FOUND, Metadata(), trailer, "no\x1b[31m")
    got = from_rpc(error, address="there")
    assert got.name == "NOT_FOUND"
    assert got.detail.isprintable()


@pytest.mark.parametrize(
    ("status", "details", "name"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", "DEADLINE"),
        (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer", "UNREACHABLE"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "UNREACHABLE"),
        (grpc.StatusCode.UNAVAILABLE, "x last error: UNAVAILABLE: y: Socket closed", "TLS_REFUSED"),
        (
            grpc.StatusCode.UNAVAILABLE,
            "x last error: UNAVAILABLE: y: Handshake read failed (Socket closed)",
            "UNREACHABLE",
        ),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", "BUSY"),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", "BAD_MESSAGE"),
        (grpc.StatusCode.UNKNOWN, "Stream removed", "UNREACHABLE"),
        (grpc.StatusCode.INTERNAL, "", "UNREACHABLE"),
    ],
)
def test_statuses_without_a_code_of_ours_are_read_as_well(
    status: grpc.StatusCode, details: str, name: str
) -> None:
    error = AioRpcError(status, Metadata(), Metadata(), details)
    assert from_rpc(error, address="there").name == name


@pytest.mark.parametrize("mark", ["certificate has expired", "certificate is not yet valid"])
def test_a_handshake_that_failed_by_our_clock_is_told_from_others(mark: str) -> None:
    """What is known of the clock may explain it (`hospital_node.last_contact`)."""
    details = f"Peer certificate verification: handshake failed: {mark}"
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details)
    found = from_rpc(error, address="there")
    assert isinstance(found, OutOfDates)
    assert (found.name, found.by_s) == ("TLS_REFUSED", 0.0)
    assert found.detail.endswith("by this machine's clock")


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("Could not contact DNS servers", "the name cannot be resolved: no name server answers"),
        ("Domain name not found", "the name cannot be resolved"),
        ("something new", "the name cannot be resolved"),
    ],
)
def test_a_name_that_is_not_found_is_called_so(why: str, words: str) -> None:
    details = f"errors resolving c.test:1: [field:hostname lookup error:lookup failed: {why}]"
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details)
    assert from_rpc(error, address="c.test:1").detail == f"c.test:1: {words}"


def test_every_setting_has_one_row_and_a_reason() -> None:
    assert len({row.name for row in OPTIONS}) == len(OPTIONS)
    assert all(row.why and row.side & Side.BOTH for row in OPTIONS)


def test_keepalive_notices_a_dead_peer_before_the_server_calls_it_a_flood() -> None:
    options = dict(server_options())
    client = dict(channel_options())
    least = options["grpc.http2.min_ping_interval_without_data_ms"]
    assert client["grpc.keepalive_time_ms"] >= 2 * least
