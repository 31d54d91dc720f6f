"""Key agreement, ratchet and signatures: both ends agree, everything else differs."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from common.encoding import extract
from common.entropy import CountingEntropy
from common.errors import InternalError, Refusal
from common.ids import HeaderDigest, NodeId, SessionId
from common.secagg import keys
from common.secagg.keys import (
    AgreementKeys,
    ChainKey,
    EdgeSeed,
    KemSecret,
    PairKey,
    SelfSeed,
    SessionKey,
    Suite,
    chain0,
    encapsulate,
    pair_prk,
    verify_certificate_signature,
    verify_session_signature,
)
from common.secret import Secret

ENTROPY = CountingEntropy(b"keys")
LO, HI = NodeId("h1"), NodeId("h2")
SESSION = SessionId(b"\x01" * 32)
HD = HeaderDigest(b"\x02" * 32)
CHAIN = ChainKey(b"\x03" * 32)


def pair(suite: Suite) -> tuple[AgreementKeys, AgreementKeys]:
    return AgreementKeys.generate(suite, ENTROPY), AgreementKeys.generate(suite, ENTROPY)


def test_both_ends_of_a_hybrid_pair_get_one_chain() -> None:
    one, other = pair(Suite.HYBRID)
    ct, kem = encapsulate(other.mlkem_public())
    assert len(ct) == keys.MLKEM_CIPHERTEXT_BYTES
    low = pair_prk(SESSION, one.exchange(other.x25519_public()), kem, ct)
    high = pair_prk(SESSION, other.exchange(one.x25519_public()), other.decapsulate(ct), ct)
    assert low == high
    assert chain0(low, LO, HI) == chain0(high, HI, LO)


def test_a_hybrid_prk_hashes_both_secrets_and_the_ciphertext() -> None:
    made = pair_prk(SESSION, Secret(b"\x0a" * 32), KemSecret(b"\x0b" * 32), b"ct")
    ikm = b"\x0a" * 32 + b"\x0b" * 32 + hashlib.sha256(b"ct").digest()
    assert len(ikm) == 96
    assert made.reveal() == extract(SESSION, ikm)


def test_a_classical_prk_hashes_the_dh_result_alone() -> None:
    one, other = pair(Suite.CLASSICAL)
    shared = one.exchange(other.x25519_public())
    assert pair_prk(SESSION, shared, None, b"").reveal() == extract(SESSION, shared.reveal())
    assert one.mlkem_public() == b""
    assert one.suite is Suite.CLASSICAL


def test_a_kem_secret_without_its_ciphertext_is_a_bug() -> None:
    with pytest.raises(InternalError):
        pair_prk(SESSION, Secret(bytes(32)), None, b"ct")
    with pytest.raises(InternalError):
        pair_prk(SESSION, Secret(bytes(32)), KemSecret(bytes(32)), b"")


def test_other_sessions_and_pairs_have_other_chains() -> None:
    prk = PairKey(b"\x05" * 32)
    assert chain0(prk, LO, HI) != chain0(prk, LO, NodeId("h3"))
    other = pair_prk(SessionId(b"\x09" * 32), Secret(b"\x0a" * 32), None, b"")
    assert other != pair_prk(SESSION, Secret(b"\x0a" * 32), None, b"")


LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("public", LOW_ORDER)
def test_public_keys_of_low_order_are_refused(public: bytes) -> None:
    own = AgreementKeys.generate(Suite.CLASSICAL, ENTROPY)
    with pytest.raises(Refusal, match="ZERO_DH"):
        own.exchange(public)


def test_an_all_zero_result_is_refused_even_if_the_library_gave_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        @staticmethod
        def from_private_bytes(_: bytes) -> Broken:
            return Broken()

        @staticmethod
        def exchange(_: object) -> bytes:
            return bytes(32)

    peer = AgreementKeys.generate(Suite.CLASSICAL, ENTROPY).x25519_public()
    own = AgreementKeys.generate(Suite.CLASSICAL, ENTROPY)
    monkeypatch.setattr(keys, "X25519PrivateKey", Broken)
    with pytest.raises(Refusal, match="ZERO_DH"):
        own.exchange(peer)


def test_malformed_peer_keys_and_ciphertexts_are_refused() -> None:
    own = AgreementKeys.generate(Suite.HYBRID, ENTROPY)
    with pytest.raises(Refusal, match="KEY_ADVERT"):
        own.exchange(bytes(31))
    for public in (b"", bytes(1183), b"\xff" * 1184):
        with pytest.raises(Refusal, match="KEM"):
            encapsulate(public)
    for ct in (b"", bytes(1087), bytes(1089)):
        with pytest.raises(Refusal, match="KEM"):
            own.decapsulate(ct)
    with pytest.raises(Refusal, match="classical"):
        AgreementKeys.generate(Suite.CLASSICAL, ENTROPY).decapsulate(bytes(1088))


def test_an_altered_ciphertext_gives_another_secret() -> None:
    own = AgreementKeys.generate(Suite.HYBRID, ENTROPY)
    ct, kem = encapsulate(own.mlkem_public())
    assert own.decapsulate(ct) == kem
    assert own.decapsulate(bytes((ct[0] ^ 1,)) + ct[1:]) != kem


def test_agreement_keys_can_be_stored_and_read_back() -> None:
    own = AgreementKeys.generate(Suite.HYBRID, ENTROPY)
    assert own.mlkem is not None
    again = AgreementKeys(Secret(own.x25519.reveal()), Secret(own.mlkem.reveal()))
    assert again.x25519_public() == own.x25519_public()
    assert again.mlkem_public() == own.mlkem_public()
    assert len(own.mlkem_public()) == keys.MLKEM_PUBLIC_BYTES


def test_x25519_reproduces_rfc_7748_section_5_2() -> None:
    scalar = "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"
    point = "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
    shared = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert AgreementKeys(Secret(bytes.fromhex(scalar)), None).exchange(
        bytes.fromhex(point)
    ).reveal() == bytes.fromhex(shared)


def test_fresh_keys_come_from_the_entropy_argument() -> None:
    one, other = (AgreementKeys.generate(Suite.HYBRID, CountingEntropy(b"x")) for _ in "ab")
    assert one == other
    assert AgreementKeys.generate(Suite.HYBRID, CountingEntropy(b"y")) != one
    assert SelfSeed.fresh(CountingEntropy(b"x")) == SelfSeed.fresh(CountingEntropy(b"x"))


# --- round keys ----------------------------------------------------------------------------


def test_the_ratchet_goes_step_by_step_and_never_back() -> None:
    third = keys.ratchet(keys.ratchet(CHAIN))
    assert keys.ratchet_to(CHAIN, 1, 3) == third
    assert keys.ratchet_to(third, 3, 3) == third
    with pytest.raises(InternalError):
        keys.ratchet_to(third, 3, 2)


def test_no_two_purposes_of_a_round_share_a_key() -> None:
    made = [
        CHAIN,
        keys.ratchet(CHAIN),
        keys.edge_seed(CHAIN, HD),
        keys.edge_seed(CHAIN, HeaderDigest(b"\x08" * 32)),
        keys.share_key(CHAIN, HD, LO, HI),
        keys.share_key(CHAIN, HD, HI, LO),
        keys.share_key(CHAIN, HeaderDigest(b"\x08" * 32), LO, HI),
    ]
    assert len({secret.reveal() for secret in made}) == len(made)


def test_self_commits_bind_header_node_and_seed() -> None:
    seed = SelfSeed(b"\x05" * 32)
    made = {
        keys.self_commit(HD, LO, seed),
        keys.self_commit(HD, HI, seed),
        keys.self_commit(HeaderDigest(b"\x08" * 32), LO, seed),
        keys.self_commit(HD, LO, SelfSeed(b"\x06" * 32)),
    }
    assert len(made) == 4


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_another_length_do_not_exist(size: int) -> None:
    for kind in (PairKey, ChainKey, EdgeSeed, SelfSeed, keys.ShareKey, keys.CoefficientSeed):
        with pytest.raises(InternalError):
            kind(bytes(size))


def test_secrets_neither_print_nor_pickle() -> None:
    own = AgreementKeys.generate(Suite.HYBRID, ENTROPY)
    session = SessionKey.generate(ENTROPY)
    for thing, secret in (
        (own, own.x25519),
        (session, session.seed),
        (CHAIN, CHAIN),
        (SelfSeed(b"\x41" * 32), Secret(b"\x41" * 32)),
    ):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert secret.reveal().hex() not in text
            assert repr(secret.reveal())[2:-1] not in text
        with pytest.raises(TypeError):
            pickle.dumps(thing)


# --- signatures ----------------------------------------------------------------------------


def test_session_signatures_verify_and_only_for_their_key_and_bytes() -> None:
    key, other = SessionKey.generate(ENTROPY), SessionKey.generate(ENTROPY)
    sig = key.sign(b"data")
    verify_session_signature(key.public(), sig, b"data", refusal="COMMIT_SIG", who=LO)
    wrongs = (
        (other.public(), sig, b"data"),
        (key.public(), sig, b"date"),
        (key.public(), sig[:-1] + bytes((sig[-1] ^ 1,)), b"data"),
        (key.public(), sig[:-1], b"data"),
        (key.public(), b"", b"data"),
        (key.public()[:-1], sig, b"data"),
        (b"", sig, b"data"),
    )
    for public, signature, data in wrongs:
        with pytest.raises(Refusal, match=r"COMMIT_SIG.*h1"):
            verify_session_signature(public, signature, data, refusal="COMMIT_SIG", who=LO)


def test_certificate_signatures_are_ed25519_or_ecdsa_p256() -> None:
    first = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    verify_certificate_signature(first.public_key(), first.sign(b"body"), b"body")
    second = ec.generate_private_key(ec.SECP256R1())
    sig = second.sign(b"body", ec.ECDSA(hashes.SHA256()))
    verify_certificate_signature(second.public_key(), sig, b"body")
    for public, bad in (
        (first.public_key(), sig),
        (second.public_key(), first.sign(b"body")),
        (second.public_key(), second.sign(b"body", ec.ECDSA(hashes.SHA512()))),
        (second.public_key(), b""),
    ):
        with pytest.raises(Refusal, match="ADVERT_SIG"):
            verify_certificate_signature(public, bad, b"body")
    with pytest.raises(Refusal, match="ADVERT_SIG"):
        verify_certificate_signature(second.public_key(), sig, b"other")


def test_certificates_with_other_keys_are_refused_though_they_verify() -> None:
    wide = ec.generate_private_key(ec.SECP384R1())
    sig = wide.sign(b"body", ec.ECDSA(hashes.SHA256()))
    with pytest.raises(Refusal, match="neither"):
        verify_certificate_signature(wide.public_key(), sig, b"body")
    old = rsa.generate_private_key(65537, 2048)
    with pytest.raises(Refusal, match="neither"):
        verify_certificate_signature(old.public_key(), b"", b"body")
