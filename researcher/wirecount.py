"""Bytes on the wire between processes and a server, from the kernel's own socket counters.

Linux keeps for every TCP socket the bytes and segments that went through it (`struct
tcp_info`, the source of `ss -i`). A netlink dump of the sockets that named processes hold
to one remote port gives them exactly, without touching the traffic: no relay, no capture,
nothing else on the machine counted. What is counted is the TCP payload (TLS and HTTP/2
included) plus 52 bytes a segment for the IPv4 and TCP headers with timestamps; on loopback
segments are up to 64 KiB, so the headers are about 0.1 %.

Sockets are counted while they exist, so take a reading before they close.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEADER_BYTES: Final = 52
"""IPv4 header and TCP header with timestamps."""

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DUMP: Final = 0x301
_DONE: Final = 3
_ERROR: Final = 2
_TCP_INFO_EXTENSION: Final = 2
_ALL_STATES: Final = 0xFFFFFFFF
_NETLINK_HEADER: Final = struct.Struct("=IHHII")
_DIAG_MESSAGE: Final = 72
_REMOTE_PORT_AT: Final = 6
_INODE_AT: Final = 68
_BYTES_ACKED_AT: Final = 120
_SEGMENTS_AT: Final = 136


@dataclass(frozen=True, slots=True)
class WireCount:
    """What the processes' sockets carried so far, headers included."""

    sent: int
    received: int
    sockets: int


def count(port: int, pids: Iterable[int]) -> WireCount | None:
    """Return the totals of the processes' TCP sockets to a remote port.

    gRPC may carry IPv4 on sockets of either family, so both are looked at.

    None where the kernel gives no answer, or no such socket is open.
    """
    sent = received = sockets = 0
    inodes = {inode for pid in pids for inode in _socket_inodes(pid)}
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for acked, got, out, back in _tcp_infos(family, port, inodes):
                sent += acked + HEADER_BYTES * out
                received += got + HEADER_BYTES * back
                sockets += 1
    except (OSError, struct.error):
        return None
    return WireCount(sent, received, sockets) if sockets else None


def _socket_inodes(pid: int) -> Iterator[int]:
    """Yield the inode of every socket that a process holds."""
    try:
        handles = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return
    for handle in handles:
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield int(target[8:-1])


def _tcp_infos(
    family: int, port: int, inodes: AbstractSet[int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (bytes acknowledged, bytes received, segments out, segments in) per socket."""
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, _TCP_INFO_EXTENSION, 0,
                          _ALL_STATES) + bytes(48)  # fmt: skip
    size = _NETLINK_HEADER.size + len(request)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as channel:
        channel.settimeout(5.0)
        channel.send(_NETLINK_HEADER.pack(size, _BY_FAMILY, _DUMP, 1, 0) + request)
        while True:
            data = channel.recv(1 << 18)
            while data:
                length, kind, _flags, _seq, _pid = _NETLINK_HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _NETLINK_HEADER.size:
                    raise OSError("the kernel refused the socket dump")
                found = _matching(data[_NETLINK_HEADER.size : length], port, inodes)
                if found is not None:
                    yield found
                data = data[(length + 3) & ~3 :]


def _matching(
    message: bytes, port: int, inodes: AbstractSet[int]
) -> tuple[int, int, int, int] | None:
    """Read one socket's `tcp_info`, if it is wanted (inet_diag_msg, then attributes)."""
    (remote,) = struct.unpack_from(">H", message, _REMOTE_PORT_AT)
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    if remote != port or inode not in inodes:
        return None
    at = _DIAG_MESSAGE
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if length < 4:  # noqa: PLR2004 - an attribute's own header
            return None
        info = message[at + 4 : at + length]
        if kind == _TCP_INFO_EXTENSION and len(info) >= _SEGMENTS_AT + 8:
            acked, received = struct.unpack_from("=QQ", info, _BYTES_ACKED_AT)
            out, back = struct.unpack_from("=II", info, _SEGMENTS_AT)
            return acked, received, out, back
        at += (length + 3) & ~3
    return None
