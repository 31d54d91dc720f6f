"""Who is calling: read from the authenticated connection, and from nothing else.

No field of a message, header or file takes part (promise P7). The peer's certificate
was verified by TLS against the pinned CA; what TLS does not check is checked here:
the version, the usage, exactly one well-formed URI name, the federation and, on every
call, the dates, because a connection may outlive its certificate (fault F44).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from common.certificates import Leaf, Role, parse_certificate, read_leaf
from common.errors import IdentityError
from common.ids import NodeId

ACCEPTED_TLS: Final = frozenset({b"TLSv1.3"})


class AuthenticatedCall(Protocol):
    """The part of a gRPC server context that the identity is read from."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what the transport's security layer established."""
        ...


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """An authenticated peer. `not_after`: last Unix second of its certificate."""

    federation: str
    role: Role
    id: str
    node_id: NodeId
    not_after: int


def check_tls(call: AuthenticatedCall) -> None:
    """Refuse a call over anything but TLS 1.3.

    Raises:
        IdentityError: TLS_VERSION, also where no TLS is in use at all.
    """
    versions = list(call.auth_context().get("ssl_tls_version", ()))
    if len(versions) != 1 or versions[0] not in ACCEPTED_TLS:
        shown = ", ".join(v[:16].decode("ascii", "replace") for v in versions) or "no TLS"
        raise IdentityError("TLS_VERSION", f"the connection negotiated {shown}; needed is TLS 1.3")


def peer_identity(call: AuthenticatedCall, *, federation: str, now_unix: float) -> PeerIdentity:
    """Return the caller that the peer's certificate names.

    Raises:
        IdentityError: IDENTITY or CERT_INVALID; no certificate, a malformed or foreign
            one, or one outside its dates now.
    """
    certificates = list(call.auth_context().get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise IdentityError("IDENTITY", "the peer presented no certificate")
    leaf = _leaf_of(certificates[0], federation)
    if not leaf.not_before <= int(now_unix) <= leaf.not_after:
        raise IdentityError(
            "CERT_INVALID", f"the certificate of {leaf.spiffe} is outside its dates"
        )
    return PeerIdentity(
        federation=leaf.spiffe.federation,
        role=leaf.spiffe.role,
        id=leaf.spiffe.id,
        node_id=NodeId(leaf.spiffe.uri),
        not_after=leaf.not_after,
    )


@lru_cache(maxsize=1024)
def _leaf_of(pem: bytes, federation: str) -> Leaf:
    """Parse once per certificate, not per call; refusals are not cached."""
    return read_leaf(parse_certificate(pem), federation=federation)
