"""Identities become credentials, channels and servers: mutual TLS, 1.3 only.

grpcio offers no minimum TLS version. Two layers make up for it:

1. `common/__init__.py` leaves gRPC no usable TLS 1.2 cipher suite, so an older
   handshake fails on both ends. It works where `common` is imported before grpc,
   which is so in every program of ours.
2. The first interceptor reads the negotiated version of each call and refuses
   below 1.3 before any handler (`common.transport.interceptors`). This is the
   promise; the first layer also covers the dialling side, where grpcio shows no
   negotiated version.

A proxy: gRPC takes `grpc_proxy`, `https_proxy`, `http_proxy` and `no_proxy` from the
environment and tunnels with CONNECT; a channel's own setting comes first. TLS runs
inside the tunnel, so a proxy sees host name, port and volume, never content, and a
proxy that opens TLS is refused like any wrong certificate. Loopback is always dialled
directly, whatever the environment says.

Rotation's seam: `server_credentials` takes a `reload`, asked at each handshake.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Callable, Sequence
from typing import Final

import grpc
import grpc.aio

from common.address import is_loopback, split_address
from common.errors import ConfigError, ConnectError, IdentityError
from common.identity import Identity
from common.pki import Role
from common.transport.ask import expecting
from common.transport.options import channel_options, server_options

DIRECT: Final = "direct"
"""Value of a proxy setting that switches the environment's proxy off."""

_PROXY = re.compile(r"http://(?:[^\s@/]{1,200}@)?[A-Za-z0-9.\[\]:_-]{1,253}:[0-9]{1,5}/?")


def channel_credentials(identity: Identity) -> grpc.ChannelCredentials:
    """Return client credentials: our certificate, and only the pinned CA trusted."""
    return grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem,
        private_key=identity.key_pem().reveal(),
        certificate_chain=identity.certificate_pem,
    )


def server_credentials(
    identity: Identity, reload: Callable[[], Identity | None] | None = None
) -> grpc.ServerCredentials:
    """Return server credentials that require a client certificate of the pinned CA.

    `reload` is asked at each handshake and returns a new identity or None for "no
    change"; it must be quick and must not raise.

    Raises:
        IdentityError: ROLE_DENIED, the identity is not a coordinator's.
    """
    if identity.role is not Role.COORDINATOR:
        raise IdentityError("ROLE_DENIED", f"{identity.spiffe} may not listen for others")

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        renewed = reload() if reload is not None else None
        return None if renewed is None else _server_configuration(renewed)

    return grpc.dynamic_ssl_server_credentials(
        _server_configuration(identity),
        fetch,  # type: ignore[arg-type] # the stub forgets that None means "no change"
        require_client_authentication=True,
    )


def _server_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem().reveal(), identity.certificate_pem)],
        root_certificates=identity.ca_pem,
    )


def channel(
    address: str,
    identity: Identity,
    proxy: str | None = None,
    name: str | None = None,
    *,
    apart: bool = False,
) -> grpc.aio.Channel:
    """Return a channel to `host:port` with every setting of `options`.

    `proxy` is `http://[user:password@]host:port`, `direct` for none, or None for the
    environment's. `name` is what the certificate there has to carry if not the host.
    `apart`: on a TCP connection of its own, which gRPC would else share between channels.
    Nothing is dialled yet; check `identity.check_dates` first.

    Raises:
        ConfigError: BAD_VALUE for a malformed address or proxy.
    """
    host, _port = split_address(address)
    options: list[tuple[str, int | str]] = [
        *channel_options(),
        *_proxy_options(host, proxy),
        *expecting(name),
        *([("grpc.use_local_subchannel_pool", 1)] if apart else []),
    ]
    return grpc.aio.secure_channel(address, channel_credentials(identity), options=options)


def _proxy_options(host: str, proxy: str | None) -> list[tuple[str, int | str]]:
    if proxy == DIRECT or (proxy is None and is_loopback(host)):
        return [("grpc.enable_http_proxy", 0)]
    if proxy is None:
        return []
    if not _PROXY.fullmatch(proxy):
        # The text is not shown: it may hold a password.
        raise ConfigError(
            "BAD_VALUE", "the proxy is not of the form http://[user:password@]host:port"
        )
    return [("grpc.http_proxy", proxy)]


def server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], *, concurrent_calls: int | None = None
) -> grpc.aio.Server:
    """Return an asyncio server with every setting of `options` and no port yet.

    `interceptors` start with the `Guard`. `concurrent_calls` bounds all open calls
    together (a session and a bulk stream a hospital, and room for people and health).
    """
    return grpc.aio.server(
        interceptors=interceptors,
        options=server_options(),
        maximum_concurrent_rpcs=concurrent_calls,
    )


def bind(listener: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Bind `host:port` and return the port (port 0: one that is free).

    Raises:
        ConfigError: BAD_VALUE, the address is malformed or not this machine's.
        ConnectError: PORT_IN_USE, taken, or not allowed for this user.
    """
    host, port = split_address(address)
    _check_bindable(host, port)
    try:
        bound = listener.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise ConnectError("PORT_IN_USE", f"cannot listen on {address}")
    return bound


def _check_bindable(host: str, port: int) -> None:
    """Try the address with a plain socket: gRPC does not say why binding failed."""
    try:
        family, kind, proto, _name, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConnectError("PORT_IN_USE", f"{host}:{port} is taken") from None
        if error.errno == errno.EACCES:
            raise ConnectError(
                "PORT_IN_USE",
                f"this user may not listen on {host}:{port}",
                fix="Choose a port above 1023.",
            ) from None
        raise ConfigError("BAD_VALUE", f"{host}:{port} is not an address of this machine") from None
