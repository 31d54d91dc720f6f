"""Stored adverts, signed by a test CA's leaves, under the real chain check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import ChainTrust
from common.errors import Refusal
from common.ids import ConfigHash, Epoch, NodeId
from common.secagg.keys import Suite, verify_certificate_signature
from common.secagg.messages import KeyAdvert
from common.secagg.session import EpochTerms, body_of, check_advert, session_of
from common.secagg.transcript import roster_hash
from tests.vectors import inputs
from tests.vectors.stored import load, unhex

STORED = load("advert.json")
NOW = inputs.NOT_BEFORE + 100
TERMS = EpochTerms(
    inputs.FEDERATION,
    inputs.TASK,
    Epoch(STORED["epoch"]),
    ConfigHash(inputs.CONFIG_HASH),
    Suite.HYBRID,
)


def advert(name: str, one: dict[str, Any]) -> KeyAdvert:
    return KeyAdvert(
        id=NodeId(name),
        federation=STORED["federation"],
        task=STORED["task"],
        epoch=Epoch(STORED["epoch"]),
        x25519_pub=unhex(one["x25519_pub"]),
        mlkem_pub=unhex(one["mlkem_pub"]),
        ed25519_pub=unhex(one["ed25519_pub"]),
        config_hash=ConfigHash(unhex(STORED["config_hash"])),
        not_before=STORED["not_before"],
        not_after=STORED["not_after"],
        cert_chain=tuple(unhex(der) for der in one["cert_chain"]),
        sig=unhex(one["sig"]),
    )


ADVERTS = {name: advert(name, one) for name, one in STORED["adverts"].items()}
FIRST = ADVERTS[inputs.node("a")]


def trust(ca: str = "ca", members: str = "abc") -> ChainTrust:
    pinned = unhex(STORED["ca"])
    if ca != "ca":
        pinned = inputs.authority(ca)[1].public_bytes(Encoding.DER)
    listed = frozenset(NodeId(inputs.node(site)) for site in members)
    return ChainTrust((pinned,), listed, inputs.FEDERATION)


def refusal(given: KeyAdvert, against: ChainTrust, now: int = NOW) -> str:
    with pytest.raises(Refusal) as refused:
        check_advert(given, TERMS, against, now)
    return refused.value.name


def test_bodies_roster_and_session_are_the_stored_ones() -> None:
    for name, one in STORED["adverts"].items():
        assert body_of(ADVERTS[name]).hex() == one["body"]
    bodies = {i: body_of(one) for i, one in ADVERTS.items()}
    assert (
        roster_hash({NodeId(i): body for i, body in bodies.items()}).hex()
        == (STORED["roster_hash"])
    )
    for order in (1, -1):
        made = session_of(tuple(ADVERTS.values())[::order], TERMS)
        assert made.hex() == STORED["session_id"]


def test_every_stored_advert_is_accepted() -> None:
    for one in ADVERTS.values():
        check_advert(one, TERMS, trust(), NOW)


def test_an_ed25519_certificate_key_signs_adverts_too() -> None:
    one = STORED["ed25519"]["advert"]
    key = x509.load_der_x509_certificate(unhex(one["cert_chain"][0])).public_key()
    verify_certificate_signature(key, unhex(one["sig"]), body_of(FIRST))
    with pytest.raises(Refusal) as refused:
        verify_certificate_signature(key, FIRST.sig, body_of(FIRST))
    assert refused.value.name == "ADVERT_SIG"


def test_an_ed25519_certificate_is_refused_as_neither_tls_nor_path_validation_takes_it() -> None:
    name = inputs.node("a")
    pinned = unhex(STORED["ed25519"]["ca"])
    pins = ChainTrust((pinned,), frozenset((NodeId(name),)), inputs.FEDERATION)
    with pytest.raises(Refusal) as refused:
        check_advert(advert(name, STORED["ed25519"]["advert"]), TERMS, pins, NOW)
    assert refused.value.name == "CERT_CHAIN"


def test_another_ca_or_a_member_not_pinned_is_refused() -> None:
    assert refusal(FIRST, trust(ca="other")) == "CERT_CHAIN"
    assert refusal(FIRST, trust(members="bc")) == "NOT_MEMBER"


@pytest.mark.parametrize(
    "leaf",
    [
        {"ca": "other"},
        {"expired": True},
        {"signing": False},
    ],
    ids=["another CA", "expired", "no digital signature usage"],
)
def test_a_certificate_that_does_not_hold_is_refused(leaf: dict[str, Any]) -> None:
    key, der = inputs.leaf("a", **leaf)
    assert inputs.certificate_signature(key, body_of(FIRST)) == FIRST.sig
    assert refusal(replace(FIRST, cert_chain=(der,)), trust()) == "CERT_CHAIN"


def test_another_members_certificate_is_refused() -> None:
    _, der = inputs.leaf("b")
    assert refusal(replace(FIRST, cert_chain=(der,)), trust()) in {"CERT_CHAIN", "NOT_MEMBER"}
    key, _ = inputs.leaf("b")
    forged = replace(FIRST, sig=inputs.certificate_signature(key, body_of(FIRST)))
    assert refusal(forged, trust()) == "ADVERT_SIG"


@pytest.mark.parametrize("field", ["x25519_pub", "mlkem_pub", "ed25519_pub", "sig"])
def test_a_flipped_bit_in_an_advert_is_refused(field: str) -> None:
    value = bytearray(getattr(FIRST, field))
    value[len(value) // 2] ^= 4
    changed: dict[str, Any] = {field: bytes(value)}
    assert refusal(replace(FIRST, **changed), trust()) == "ADVERT_SIG"


def test_a_flipped_bit_in_the_certificate_is_refused() -> None:
    der = FIRST.cert_chain[0]
    for place in range(0, len(der), 37):
        bad = bytearray(der)
        bad[place] ^= 1
        assert refusal(replace(FIRST, cert_chain=(bytes(bad),)), trust()) in {
            "CERT_CHAIN",
            "NOT_MEMBER",
            "ADVERT_SIG",
        }
