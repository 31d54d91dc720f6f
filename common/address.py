"""Addresses as they stand in files: `host:port`, and whether a host is this machine itself."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from common.errors import ConfigError

_ADDRESS: Final = re.compile(
    r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253}):(?P<port>[0-9]{1,5})"
)


def split_address(address: str) -> tuple[str, int]:
    """Return host (IPv6 without brackets) and port of `host:port`.

    Raises:
        ConfigError: BAD_VALUE.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 <= int(found["port"]) <= 65535:  # noqa: PLR2004 - ports
        raise ConfigError(
            "BAD_VALUE", f"{address[:120]!a} is not host:port, for example 127.0.0.1:8443"
        )
    return found["host"].strip("[]"), int(found["port"])


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
