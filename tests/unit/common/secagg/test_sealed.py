"""A sealed bundle opens at one helper, for one sender, under one header."""

from __future__ import annotations

import pytest

from common.encoding import enc
from common.entropy import CountingEntropy
from common.errors import Refusal
from common.ids import HeaderDigest, NodeId
from common.secagg.keys import ChainKey, ShareKey, share_key
from common.secagg.sealed import NONCE_BYTES, OVERHEAD_BYTES, Sealed, open_sealed, seal
from common.secret import Secret

HD, OTHER_HD = HeaderDigest(b"\x01" * 32), HeaderDigest(b"\x02" * 32)
H1, H2, H3 = NodeId("h1"), NodeId("h2"), NodeId("h3")
CHAIN = ChainKey(b"\x03" * 32)
KEY = share_key(CHAIN, HD, H1, H2)
SHARES = Secret(b"\x07" * 66)
ENTROPY = CountingEntropy(b"nonce")
SEALED = seal(KEY, HD, H1, H2, SHARES, ENTROPY)


def test_what_is_sealed_opens() -> None:
    assert open_sealed(KEY, HD, H1, H2, SEALED) == SHARES
    assert len(SEALED.nonce) == NONCE_BYTES
    assert len(SEALED.ct) == len(SHARES) + OVERHEAD_BYTES


def test_the_nonce_is_fresh_for_every_bundle() -> None:
    again = seal(KEY, HD, H1, H2, SHARES, ENTROPY)
    assert again.nonce != SEALED.nonce
    assert again.ct != SEALED.ct


@pytest.mark.parametrize(
    ("hd", "sender", "helper"),
    [(OTHER_HD, H1, H2), (HD, H3, H2), (HD, H1, H3), (HD, H2, H1)],
)
def test_another_header_sender_helper_or_direction_does_not_open(
    hd: HeaderDigest, sender: NodeId, helper: NodeId
) -> None:
    with pytest.raises(Refusal, match="SHARE_OPEN"):
        open_sealed(KEY, hd, sender, helper, SEALED)


def test_keys_of_the_two_directions_differ() -> None:
    with pytest.raises(Refusal, match="SHARE_OPEN"):
        open_sealed(share_key(CHAIN, HD, H2, H1), HD, H1, H2, SEALED)


@pytest.mark.parametrize("place", [0, 30, -1])
def test_one_altered_bit_does_not_open(place: int) -> None:
    ct = bytearray(SEALED.ct)
    ct[place] ^= 1
    with pytest.raises(Refusal, match="SHARE_OPEN"):
        open_sealed(KEY, HD, H1, H2, Sealed(SEALED.nonce, bytes(ct)))


@pytest.mark.parametrize(
    "broken",
    [
        Sealed(SEALED.nonce, b""),
        Sealed(SEALED.nonce, SEALED.ct[:15]),
        Sealed(SEALED.nonce, SEALED.ct[:-1]),
        Sealed(b"", SEALED.ct),
        Sealed(SEALED.nonce[:-1], SEALED.ct),
        Sealed(bytes(NONCE_BYTES), SEALED.ct),
        Sealed(bytes(200), SEALED.ct),
    ],
)
def test_truncated_messages_are_refused_not_errors(broken: Sealed) -> None:
    with pytest.raises(Refusal, match="SHARE_OPEN"):
        open_sealed(KEY, HD, H1, H2, broken)


def test_the_additional_data_is_header_sender_helper() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    plain = AESGCM(KEY.reveal()).decrypt(SEALED.nonce, SEALED.ct, enc(HD, H1, H2))
    assert Secret(plain) == SHARES


def test_the_refusal_names_the_sender_and_no_bytes() -> None:
    with pytest.raises(Refusal) as refusal:
        open_sealed(ShareKey(bytes(32)), HD, H1, H2, SEALED)
    assert refusal.value.detail == "the sealed shares of h1 do not open"
