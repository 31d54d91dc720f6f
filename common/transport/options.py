"""Every gRPC setting of this product, one row each: value, unit and reason.

The numbers follow from faults that were tried (F17, F21, F43,
F48, F51 to F53). All three keepalive numbers are needed together: without
`http2.ping_timeout_ms` a frozen peer was noticed only after a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
SECOND_MS: Final = 1000

MAX_MESSAGE_BYTES: Final = 2 * MIB
"""Largest message either side accepts or sends; bulk chunks are at most 1 MiB."""


class Side(Flag):
    """Where a setting applies."""

    CHANNEL = auto()
    SERVER = auto()
    BOTH = CHANNEL | SERVER


@dataclass(frozen=True, slots=True)
class Option:
    """One gRPC channel argument with the reason for its value."""

    name: str
    value: int
    side: Side
    why: str


OPTIONS: Final = (
    Option(
        "grpc.max_receive_message_length",
        MAX_MESSAGE_BYTES,
        Side.BOTH,
        "each open stream may hold one message: a ceiling of gigabytes is a memory hole",
    ),
    Option(
        "grpc.max_send_message_length",
        MAX_MESSAGE_BYTES,
        Side.BOTH,
        "the sender learns of a too large message, not only the receiver",
    ),
    Option(
        "grpc.max_metadata_size", 8 * KIB, Side.BOTH, "soft limit of headers; ours are under 1 KiB"
    ),
    Option(
        "grpc.absolute_max_metadata_size",
        8 * KIB,
        Side.BOTH,
        "hard limit; between the two gRPC refuses by chance, so they are equal",
    ),
    Option(
        "grpc.keepalive_time_ms",
        20 * SECOND_MS,
        Side.BOTH,
        "with the two timeouts below: 30 s to notice a dead link or a frozen peer",
    ),
    Option(
        "grpc.keepalive_timeout_ms", 10 * SECOND_MS, Side.BOTH, "unacknowledged bytes: link is dead"
    ),
    Option(
        "grpc.http2.ping_timeout_ms",
        10 * SECOND_MS,
        Side.BOTH,
        "unanswered ping: peer is frozen, even though its kernel acknowledges",
    ),
    Option(
        "grpc.keepalive_permit_without_calls",
        1,
        Side.BOTH,
        "a connection between two calls is watched too",
    ),
    Option(
        "grpc.http2.max_pings_without_data", 0, Side.BOTH, "no limit: sessions are mostly silent"
    ),
    Option(
        "grpc.http2.min_ping_interval_without_data_ms",
        10 * SECOND_MS,
        Side.SERVER,
        "half the clients' interval; else honest pings are answered 'too many pings'",
    ),
    Option(
        "grpc.server_handshake_timeout_ms",
        10 * SECOND_MS,
        Side.SERVER,
        "a connection that never finishes TLS is closed (default: 120 s)",
    ),
    Option(
        "grpc.max_connection_idle_ms",
        300 * SECOND_MS,
        Side.SERVER,
        "a connection without calls is closed",
    ),
    Option(
        "grpc.max_connection_age_ms",
        3600 * SECOND_MS,
        Side.SERVER,
        "certificates and roots are looked at anew every hour (gRPC adds 10 % jitter)",
    ),
    Option(
        "grpc.max_connection_age_grace_ms",
        30 * SECOND_MS,
        Side.SERVER,
        "running calls end within this; streams resume",
    ),
    Option(
        "grpc.max_concurrent_streams",
        16,
        Side.SERVER,
        "per connection; a node needs three. Before the first answer gRPC does not know the "
        "limit: calls beyond it in the first instant fail as UNREACHABLE",
    ),
    Option(
        "grpc.so_reuseport",
        0,
        Side.SERVER,
        "else a second coordinator on the same port starts and steals half the calls",
    ),
    Option(
        "grpc.http2.bdp_probe",
        0,
        Side.BOTH,
        "probing grows buffers per stream: 4 bulk streams took 330 MB, without it 117 MB",
    ),
    Option(
        "grpc.http2.lookahead_bytes",
        MIB,
        Side.BOTH,
        "one chunk ahead per stream; keeps bulk at line rate with bounded memory",
    ),
    Option(
        "grpc.enable_retries",
        0,
        Side.CHANNEL,
        "what is sent again is decided by the protocol, which knows what it means",
    ),
    Option(
        "grpc.service_config_disable_resolution",
        1,
        Side.CHANNEL,
        "no setting of ours is taken from a DNS record",
    ),
    Option(
        "grpc.initial_reconnect_backoff_ms",
        200,
        Side.CHANNEL,
        "nodes started together with their coordinator connect within a second",
    ),
    Option(
        "grpc.min_reconnect_backoff_ms",
        10 * SECOND_MS,
        Side.CHANNEL,
        "gRPC's name for the time one connection attempt may take",
    ),
    Option(
        "grpc.max_reconnect_backoff_ms",
        15 * SECOND_MS,
        Side.CHANNEL,
        "a node is back soon after an outage (gRPC adds jitter)",
    ),
)


def channel_options() -> list[tuple[str, int]]:
    """Return the settings of the dialling side, for `grpc.aio.secure_channel`."""
    return [(row.name, row.value) for row in OPTIONS if Side.CHANNEL in row.side]


def server_options() -> list[tuple[str, int]]:
    """Return the settings of the listening side, for `grpc.aio.server`."""
    return [(row.name, row.value) for row in OPTIONS if Side.SERVER in row.side]
