"""FedError <-> gRPC status, both directions, and what a broken call really means.

Over the wire an error is its catalogue code in the trailing metadata plus one public
line. Details that may name paths, tables or another machine's insides stay at home:
such an error travels as its catalogue sentence only (fault F90).

On the dialling side gRPC says little: a wrong certificate, a wrong clock and a dead
port look much alike. `from_rpc` first believes a code of ours, then looks at our own
certificate and clock, then at the handshake's reason, and only then says UNREACHABLE.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from common.clock import Clock
from common.errors import (
    BY_CODE,
    ConfigError,
    ConnectError,
    DataError,
    ErrorKind,
    FedError,
    IdentityError,
    InternalError,
    PolicyRefusal,
    Refusal,
    RoundError,
    StateError,
)

if TYPE_CHECKING:  # a health command need not load what reads certificates
    from common.identity import Identity

CODE_KEY: Final = "fedcare-code"
DETAIL_KEY: Final = "fedcare-detail-bin"
RETRY_KEY: Final = "fedcare-retry-ms"
"""A whole number of milliseconds; only there where the caller should wait so long."""
MAX_DETAIL_BYTES: Final = 512

Trailer = tuple[tuple[str, str | bytes], ...]

_PRIVATE: Final = frozenset(
    {
        "FILE_MISSING",
        "OUTPUT_EXISTS",
        "NOT_INSTALLED",
        "PORT_IN_USE",
        "KEY_PERMISSIONS",
        "STATE_DAMAGED",
        "STATE_LOCKED",
        "DISK",
    }
)
"""Errors whose detail names this machine's own files or ports."""

_BY_CLOCK: Final = "by this machine's clock"

_HANDSHAKE: Final = (
    # What the TLS library prints, in the order of looking; what a person should read.
    ("WRONG_VERSION_NUMBER", "the other end does not speak TLS"),
    ("Hostname Verification", "the certificate there does not carry the name dialled"),
    ("unsupported certificate purpose", "the certificate there is not a coordinator's"),
    ("CERTIFICATE_EXPIRED", "the other end says that this machine's certificate has expired"),
    ("certificate has expired", "the certificate there has expired by this machine's clock"),
    (
        "certificate is not yet valid",
        "the certificate there is not yet valid by this machine's clock",
    ),
    ("ALERT_UNKNOWN_CA", "the other end does not trust the CA of this machine's certificate"),
    ("CERTIFICATE_REQUIRED", "the other end wants a certificate and got none"),
    ("_ALERT_", "the other end refused this machine's certificate"),
    ("CERTIFICATE_VERIFY_FAILED", "the certificate there is not of the pinned CA"),
    ("NO_SHARED_CIPHER", "the two ends share no TLS 1.3 cipher suite"),
    ("UNSUPPORTED_PROTOCOL", "the other end offers no TLS 1.3"),
    ("handshake", "no reason was given"),
)

_BROKE_OFF: Final = "Handshake read failed ("
"""The other end went away before our side of the handshake was done, without an alert."""

_AT_SETUP: Final = "last error: UNAVAILABLE"
"""The other end closed the connection when our side of the handshake was done. A TLS 1.3
server judges our certificate then, and gRPC passes its alert on as this; a coordinator that
stops or dies at that moment gives the same."""

_LIKELY_REFUSED: Final = (
    "it closed the connection at set-up, so it likely refuses this machine's certificate"
)

_SOCKET: Final = (
    ("Connection refused", "connection refused"),
    ("Could not contact DNS", "the name cannot be resolved: no name server answers"),
    ("errors resolving", "the name cannot be resolved"),
    ("DNS resolution failed", "the name cannot be resolved"),
    ("Domain name not found", "the name cannot be resolved"),
    ("No route to host", "no route to the host"),
    ("Network is unreachable", "the network is unreachable"),
    ("proxy", "the proxy did not open the way"),
    ("imeout", "no answer in time"),
)
"""What gRPC says of a connection that was never there; what a person should read."""

_PLAIN: Final = {
    # Statuses that came without a code of ours: from gRPC itself or a foreign server.
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE",
    grpc.StatusCode.UNAUTHENTICATED: "IDENTITY",
    grpc.StatusCode.PERMISSION_DENIED: "ROLE_DENIED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "BUSY",
    grpc.StatusCode.UNIMPLEMENTED: "BAD_MESSAGE",
    grpc.StatusCode.INVALID_ARGUMENT: "BAD_MESSAGE",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
}


def public_detail(error: FedError) -> str:
    """Return the line about `error` that another machine may read."""
    if error.name in _PRIVATE or isinstance(error, DataError | InternalError):
        return error.kind.meaning
    return error.detail


def to_status(error: FedError, detail: str | None = None) -> tuple[grpc.StatusCode, str, Trailer]:
    """Return status code, status text and trailing metadata for an error.

    `detail` replaces the public detail (the guard puts an incident's number there).
    """
    text = clean(public_detail(error) if detail is None else detail)
    code = grpc.StatusCode[error.kind.status.value]
    trailer: Trailer = ((CODE_KEY, error.code), (DETAIL_KEY, text.encode()))
    if error.retry_s > 0:
        trailer += ((RETRY_KEY, str(math.ceil(error.retry_s * 1000))),)
    return code, f"{error.code} {error.name}", trailer


def clean(text: str) -> str:
    """Return printable text on one line, at most `MAX_DETAIL_BYTES` in UTF-8 (F83)."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return printable.encode()[:MAX_DETAIL_BYTES].decode("utf-8", "ignore")


def make_error(kind: ErrorKind, detail: str) -> FedError:
    """Return the member of the error tree that a catalogue row belongs to."""
    thousand = kind.code[3:5]
    family: type[FedError]
    match thousand[0]:
        case "1":
            family = DataError if thousand == "11" else ConfigError
        case "2":
            family = ConnectError if kind.name in {"UNREACHABLE", "PORT_IN_USE"} else IdentityError
        case "3" | "4":
            family = Refusal
        case "5":
            family = PolicyRefusal
        case "6":
            family = RoundError
        case "7":
            family = StateError
        case _:
            return InternalError(detail)
    return family(kind.name, detail)


def from_rpc(
    error: grpc.aio.AioRpcError,
    *,
    address: str,
    identity: Identity | None = None,
    now_unix: float | None = None,
    doubt: bool = False,
) -> FedError:
    """Return the FedError that a failed call means to this side.

    `identity` and `now_unix` let a failed connection be blamed on our own certificate
    or clock where that is the reason. The peer's text is cleaned and capped. `doubt`: one
    that was closed at set-up is not called a refusal (see `closed_at_setup`).
    """
    told = _told(error)
    if told is not None:
        return told
    details = error.details() or ""
    status = error.code()
    if status is grpc.StatusCode.UNAVAILABLE:
        return _unavailable(_text(error), address, identity, now_unix, doubt=doubt)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and (
        "message larger" in details or "metadata size" in details
    ):
        return Refusal("BAD_MESSAGE", f"{address}: a message or its headers are over the size cap")
    name = _PLAIN.get(status)
    if name is None:
        return ConnectError("UNREACHABLE", f"{address}: the call broke off ({status.name})")
    return make_error(_kind(name), f"{address}: {clean(details)[:200] or status.name}")


def _told(error: grpc.aio.AioRpcError) -> FedError | None:
    """Return the error that the far side named by our own code, if it did."""
    trailer = {str(key): value for key, value in (error.trailing_metadata() or ())}
    code = trailer.get(CODE_KEY)
    kind = BY_CODE.get(code) if isinstance(code, str) else None
    if kind is None:
        return None
    detail = trailer.get(DETAIL_KEY, b"")
    text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
    found = make_error(kind, clean(text) or kind.meaning)
    found.retry_s = _seconds(trailer.get(RETRY_KEY))
    return found


def _seconds(told: object) -> float:
    """Return the delay that a peer asks for, in seconds; 0 for none or for what is no number."""
    if not isinstance(told, str) or not re.fullmatch("[0-9]{1,9}", told):
        return 0.0
    return int(told) / 1000


def closed_at_setup(error: grpc.aio.AioRpcError) -> bool:
    """Whether the far side may have refused our certificate, or have stopped just then.

    Who dials again sees which: one that refuses does the same the next time.
    """
    unavailable = error.code() is grpc.StatusCode.UNAVAILABLE and _told(error) is None
    return unavailable and _at_setup(_text(error))


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.details() or ''} {error.debug_error_string() or ''}"


def _at_setup(text: str) -> bool:
    clear = (_BROKE_OFF, *(mark for mark, _ in (*_HANDSHAKE, *_SOCKET)))
    return _AT_SETUP in text and not any(mark in text for mark in clear)


def _unavailable(
    text: str, address: str, identity: Identity | None, now_unix: float | None, *, doubt: bool
) -> FedError:
    reason = next((words for mark, words in _HANDSHAKE if mark in text), None)
    if reason is None and not doubt and _at_setup(text):
        reason = _LIKELY_REFUSED
    if reason is None:
        return ConnectError(
            "UNREACHABLE", f"{address}: {_socket_reason(text)}{_via(text, address)}"
        )
    if identity is not None and now_unix is not None:
        ours = diagnose(identity, now_unix)
        if ours is not None:
            return ours
    if reason.endswith(_BY_CLOCK):
        from common.identity import OutOfDates  # not for the health commands: reads certificates

        fix = "Compare this machine's clock with the coordinator's, and set the one that is wrong."
        return OutOfDates("TLS_REFUSED", f"{address}: {reason}", fix=fix)
    return IdentityError("TLS_REFUSED", f"{address}: {reason}")


def _socket_reason(text: str) -> str:
    for mark, words in _SOCKET:
        if mark in text:
            return words
    return "the connection was lost"


_TRIED: Final = re.compile(r"ipv[46]:(\[[0-9a-fA-F:.%]{2,60}\]|[0-9.]{7,15}):([0-9]{1,5})")


def _via(text: str, address: str) -> str:
    """Name the proxy if it is the one that was not reached: another port was tried."""
    tried = _TRIED.search(text)
    if tried is None or tried[2] == address.rpartition(":")[2]:
        return ""
    return f" (dialling the proxy {tried[1]}:{tried[2]})"


def diagnose(identity: Identity, now_unix: float) -> FedError | None:
    """Return what is wrong with our own certificate or clock, or None.

    For use before dialling and after a refused handshake.
    """
    try:
        identity.check_dates(now_unix)
    except IdentityError as error:
        return error
    return None


def _kind(name: str) -> ErrorKind:
    return FedError(name, "").kind


@contextmanager
def remote_errors(address: str, identity: Identity, clock: Clock) -> Iterator[None]:
    """Turn gRPC's errors inside the block into FedErrors, and dial with good dates only.

    Raises:
        FedError: see `from_rpc`; CLOCK_OFF or CERT_INVALID before the block starts.
    """
    identity.check_dates(clock.unix())
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, address=address, identity=identity, now_unix=clock.unix()) from None
