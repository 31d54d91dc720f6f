"""Shares on their way to a helper, through a coordinator that must not read them.

AES-256-GCM under a key of one header and one direction; the additional data names
header, sender and helper, so that a sealed bundle opens in one place only (4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.encoding import enc
from common.entropy import Entropy
from common.errors import Refusal
from common.ids import HeaderDigest, NodeId
from common.secagg.keys import ShareKey
from common.secret import Secret

NONCE_BYTES: Final = 12
OVERHEAD_BYTES: Final = 16
"""The GCM tag at the end of `ct`."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What travels: a 96-bit random nonce and the ciphertext with its tag."""

    nonce: bytes
    ct: bytes


def seal(
    key: ShareKey,
    hd: HeaderDigest,
    sender: NodeId,
    helper: NodeId,
    shares: Secret,
    entropy: Entropy,
) -> Sealed:
    """Return `shares` sealed from `sender` to `helper` for the header `hd`."""
    nonce = entropy.take(NONCE_BYTES)
    ct = AESGCM(key.reveal()).encrypt(nonce, shares.reveal(), enc(hd, sender, helper))
    return Sealed(nonce, ct)


def open_sealed(
    key: ShareKey, hd: HeaderDigest, sender: NodeId, helper: NodeId, sealed: Sealed
) -> Secret:
    """Return the shares that `sender` sealed to `helper` for the header `hd`.

    Raises:
        Refusal: SHARE_OPEN, altered, or sealed for another header, sender or helper.
    """
    try:
        plain = AESGCM(key.reveal()).decrypt(sealed.nonce, sealed.ct, enc(hd, sender, helper))
    except (InvalidTag, ValueError):
        raise Refusal("SHARE_OPEN", f"the sealed shares of {sender} do not open") from None
    return Secret(plain)
