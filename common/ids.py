"""The nouns of the protocol as distinct types, so that two ids cannot be swapped."""

from __future__ import annotations

import re
from typing import Final, NewType

from common.errors import IdentityError

NodeId = NewType("NodeId", str)
"""A hospital, by its certificate's whole URI: `spiffe://<federation>/hospital/<site>`."""

SiteName = NewType("SiteName", str)
"""The last segment of a `NodeId`; how people call a hospital."""

StudyId = NewType("StudyId", str)
RunId = NewType("RunId", str)

SessionId = NewType("SessionId", bytes)
"""32 bytes, section 3.3 of the protocol."""

HeaderDigest = NewType("HeaderDigest", bytes)
"""`hd`, 32 bytes: the digest that binds every number of one round."""

Sha256 = NewType("Sha256", bytes)
"""32 bytes: a plain SHA-256 digest."""

ConfigHash = NewType("ConfigHash", bytes)
"""32 bytes: SHA-256 of a study's canonical form; what hospitals approve."""

RoundNo = NewType("RoundNo", int)
Epoch = NewType("Epoch", int)

DIGEST_BYTES: Final = 32
NAME_PATTERN: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
"""Federations, sites and roles' ids: one narrow alphabet everywhere (a DNS label)."""

_NAME = re.compile(NAME_PATTERN)


def check_name(value: str, what: str) -> str:
    """Return `value` if it is a lower-case DNS label.

    Raises:
        IdentityError: it is not; `what` says what it should have named.
    """
    if not _NAME.fullmatch(value):
        raise IdentityError(
            "IDENTITY",
            f"{what} {value[:80]!r} is not 1 to 63 of a-z, 0-9 and inner hyphens",
        )
    return value


def hospital_id(federation: str, site: str) -> NodeId:
    """Return the node id of a site: its certificate's only URI SAN."""
    return NodeId(
        f"spiffe://{check_name(federation, 'federation')}/hospital/{check_name(site, 'site')}"
    )


def site_name(node: NodeId) -> SiteName:
    """Return the site's short name, for people and logs."""
    return SiteName(node.rsplit("/", 1)[-1])
