"""Certificates: what `pki` makes, what `load_identity` and `ChainTrust` accept and refuse."""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from common.certificates import (
    MAX_CERTIFICATE_BYTES,
    parse_certificate,
    parse_spiffe,
    read_leaf,
    to_der,
    verify_chain,
)
from common.errors import ConfigError, FedError, IdentityError, Refusal, StateError
from common.ids import NodeId
from common.pki import (
    ChainTrust,
    Role,
    create_ca,
    describe,
    issue,
    load_identity,
    sign_manifest,
    verify_manifest,
    verify_signature,
)
from tests.certificate_factory import (
    FEDERATION,
    NOW,
    RIGHT,
    WRONG_LEAVES,
    Authority,
    Spec,
    Wrong,
    make,
    new_ca,
    write_identity,
)

CA = new_ca()
OTHER = new_ca()  # same name, another key
MEMBERS = frozenset({NodeId(RIGHT), NodeId(f"spiffe://{FEDERATION}/hospital/va")})
TRUST = ChainTrust((CA.der,), MEMBERS, FEDERATION)
DAY = 86400


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    folder = tmp_path / "pki"
    create_ca(folder, FEDERATION, now_unix=NOW)
    return folder


# ---------------------------------------------------------------- the roster's trust


@pytest.mark.parametrize("wrong", WRONG_LEAVES, ids=lambda w: w.name)
def test_chain_trust_refuses_every_certificate_of_the_wrong_list(wrong: Wrong) -> None:
    certificate, _ = wrong.make(CA, OTHER)
    with pytest.raises(Refusal) as refused:
        TRUST.verify_chain([to_der(certificate)], NodeId(RIGHT), NOW)
    assert refused.value.name == "CERT_CHAIN"


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()]
)
def test_chain_trust_returns_the_key_of_a_right_certificate(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
) -> None:
    certificate = make(Spec(key=key), CA)
    assert TRUST.verify_chain([to_der(certificate)], NodeId(RIGHT), NOW) == key.public_key()


def test_a_verifying_chain_of_an_unlisted_hospital_is_not_a_member() -> None:
    uri = f"spiffe://{FEDERATION}/hospital/stranger"
    chain = [to_der(make(Spec(uris=(uri,)), CA))]
    with pytest.raises(Refusal) as refused:
        TRUST.verify_chain(chain, NodeId(uri), NOW)
    assert refused.value.name == "NOT_MEMBER"


def test_a_member_cannot_present_another_members_chain() -> None:
    chain = [to_der(make(Spec(), CA))]
    with pytest.raises(Refusal) as refused:
        TRUST.verify_chain(chain, NodeId(f"spiffe://{FEDERATION}/hospital/va"), NOW)
    assert refused.value.name == "CERT_CHAIN"


@pytest.mark.parametrize("role", [r for r in Role if r is not Role.HOSPITAL])
def test_only_hospitals_are_members_even_when_listed(role: Role) -> None:
    uri = NodeId(f"spiffe://{FEDERATION}/{role}/cleveland")
    trust = replace(TRUST, members=MEMBERS | {uri})
    with pytest.raises(Refusal) as refused:
        trust.verify_chain([to_der(make(Spec(uris=(uri,)), CA))], uri, NOW)
    assert refused.value.name == "CERT_CHAIN"


def test_the_pinned_ca_itself_is_no_member() -> None:
    with pytest.raises(Refusal):
        TRUST.verify_chain([CA.der], NodeId(RIGHT), NOW)


def test_a_leaf_cannot_sign_another_leaf() -> None:
    spec = Spec()
    assert isinstance(spec.key, ec.EllipticCurvePrivateKey)
    parent = make(spec, CA)
    child = make(Spec(uris=(f"spiffe://{FEDERATION}/hospital/va",)), Authority(parent, spec.key))
    with pytest.raises(Refusal):
        TRUST.verify_chain(
            [to_der(child), to_der(parent)], NodeId(f"spiffe://{FEDERATION}/hospital/va"), NOW
        )


@pytest.mark.parametrize(
    "chain",
    [[], [b""], [b"\x30\x82"], [b"x" * 100_000], [b"-----BEGIN CERTIFICATE-----"], [CA.der] * 4],
    ids=["empty", "no bytes", "cut", "huge", "PEM", "too long"],
)
def test_malformed_chains_are_refused_in_words(chain: list[bytes]) -> None:
    with pytest.raises(Refusal) as refused:
        TRUST.verify_chain(chain, NodeId(RIGHT), NOW)
    assert refused.value.name == "CERT_CHAIN"


def long_certificate(names: int) -> bytes:
    """Return the DER of a leaf that the CA signed, about 70 bytes longer for each name."""
    return to_der(make(Spec(dns=[f"{place:060d}.example" for place in range(names)]), CA))


def test_a_chains_certificate_over_8_kib_is_refused_whoever_signed_it() -> None:
    good, long = long_certificate(100), long_certificate(120)
    assert 7000 < len(good) <= MAX_CERTIFICATE_BYTES < len(long)
    assert to_der(verify_chain([good], (CA.der,), NOW)) == good
    for chain, anchors in (([long], (CA.der,)), ([good, long], (CA.der,)), ([good], (long,))):
        with pytest.raises(IdentityError, match="at most 8 KiB") as refused:
            verify_chain(chain, anchors, NOW)
        assert refused.value.name == "CERT_INVALID"


def test_a_chain_holds_no_pem() -> None:
    certificate = make(Spec(), CA)
    assert verify_chain([to_der(certificate)], (CA.der,), NOW) == certificate
    with pytest.raises(IdentityError, match="DER certificates"):
        verify_chain([certificate.public_bytes(Encoding.PEM)], (CA.der,), NOW)


def test_a_certificate_alone_may_be_pem_but_not_over_the_cap() -> None:
    good, long = long_certificate(100), long_certificate(240)
    assert len(long) > 2 * MAX_CERTIFICATE_BYTES
    pem = x509.load_der_x509_certificate(good).public_bytes(Encoding.PEM)
    assert len(pem) > MAX_CERTIFICATE_BYTES
    assert to_der(parse_certificate(pem)) == to_der(parse_certificate(good)) == good
    with pytest.raises(IdentityError, match="over the cap") as refused:
        parse_certificate(long)
    assert refused.value.name == "CERT_INVALID"


def test_no_flipped_bit_changes_what_a_verifying_certificate_says_or_crashes() -> None:
    certificate = make(Spec(), CA)
    good = to_der(certificate)
    verified = 0
    for position in range(8 * len(good)):
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        try:
            TRUST.verify_chain([bytes(bad)], NodeId(RIGHT), NOW)
        except Refusal:
            pass
        else:
            # Only the count of unused bits around the signature, which is not signed.
            said = x509.load_der_x509_certificate(bytes(bad)).tbs_certificate_bytes
            assert said == certificate.tbs_certificate_bytes
            verified += 1
        with contextlib.suppress(IdentityError):
            # Without the signature's protection: any answer, but no other exception.
            read_leaf(parse_certificate(bytes(bad)))
    assert verified < 8


BY_CONTENT = [
    wrong
    for wrong in WRONG_LEAVES
    if wrong.name not in {"expired", "not yet valid", "of another CA", "signed by itself"}
]


@pytest.mark.parametrize("wrong", BY_CONTENT, ids=lambda w: w.name)
def test_a_leafs_contents_are_judged_without_the_chain_too(wrong: Wrong) -> None:
    # This is all that stands between a certificate that TLS let through and a handler.
    certificate, _ = wrong.make(CA, OTHER)
    with pytest.raises(IdentityError):
        read_leaf(certificate, federation=FEDERATION)


def test_a_coordinator_has_one_uri_as_well() -> None:
    uris = [f"spiffe://{FEDERATION}/coordinator/{name}" for name in ("main", "second")]
    with pytest.raises(IdentityError):
        read_leaf(make(Spec(uris=uris, dns=("example.org",)), CA))


def test_validity_holds_on_both_ends_inclusive() -> None:
    chain = [to_der(make(Spec(begins=timedelta(0), ends=timedelta(days=1)), CA))]
    for inside in (NOW, NOW + DAY):
        TRUST.verify_chain(chain, NodeId(RIGHT), inside)
    for outside in (NOW - 1, NOW + DAY + 1):
        with pytest.raises(Refusal):
            TRUST.verify_chain(chain, NodeId(RIGHT), outside)


@given(st.text(max_size=80))
def test_only_texts_that_round_trip_are_names(text: str) -> None:
    try:
        parsed = parse_spiffe(text)
    except IdentityError:
        return
    assert parsed.uri == text


def test_a_coordinators_leaf_may_carry_names_to_dial() -> None:
    uri = f"spiffe://{FEDERATION}/coordinator/main"
    leaf = read_leaf(make(Spec(uris=(uri,), dns=("example.org",)), CA), federation=FEDERATION)
    assert leaf.spiffe.role is Role.COORDINATOR


# ---------------------------------------------------------------- signatures


def test_a_signature_verifies_under_the_chains_key_and_not_when_altered(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    identity = load_identity(pki / "hospital-cleveland", now_unix=NOW)
    trust = ChainTrust(identity.ca_der, MEMBERS, FEDERATION)
    key = trust.verify_chain(identity.chain, identity.node_id, NOW)
    signature = identity.sign(b"advert")
    verify_signature(key, signature, b"advert")
    for bad_signature, bad_data in (
        (signature, b"advers"),
        (signature[:-1], b"advert"),
        (b"", b""),
    ):
        with pytest.raises(InvalidSignature):
            verify_signature(key, bad_signature, bad_data)


def test_a_manifest_verifies_after_its_signers_certificate_ran_out(pki: Path) -> None:
    issue(pki, Role.COORDINATOR, "main", now_unix=NOW, hosts=["localhost"], days=1)
    signer = load_identity(pki / "coordinator-main", now_unix=NOW)
    signature = sign_manifest(signer, b"manifest")

    def verify(data: bytes = b"manifest", federation: str = FEDERATION, at: int = NOW) -> str:
        return verify_manifest(
            data, signature, signer.chain, ca_der=signer.ca_der, federation=federation, signed_at=at
        ).uri

    assert verify() == f"spiffe://{FEDERATION}/coordinator/main"
    wrong: tuple[dict[str, Any], ...] = (
        {"data": b"manifesto"},
        {"federation": "lung"},
        {"at": NOW + 2 * DAY},
    )
    for change in wrong:
        with pytest.raises(StateError) as refused:
            verify(**change)
        assert refused.value.name == "MANIFEST_SIGNATURE"


def test_only_a_coordinator_signs_models(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    hospital = load_identity(pki / "hospital-cleveland", now_unix=NOW)
    with pytest.raises(IdentityError):
        sign_manifest(hospital, b"manifest")
    forged = hospital.sign(b"fedcare/manifest/v1\x00manifest")
    with pytest.raises(StateError):
        verify_manifest(
            b"manifest",
            forged,
            hospital.chain,
            ca_der=hospital.ca_der,
            federation=FEDERATION,
            signed_at=NOW,
        )


def test_a_signature_for_another_purpose_is_no_manifest_signature(pki: Path) -> None:
    issue(pki, Role.COORDINATOR, "main", now_unix=NOW, hosts=["localhost"])
    signer = load_identity(pki / "coordinator-main", now_unix=NOW)
    with pytest.raises(StateError):
        verify_manifest(
            b"manifest",
            signer.sign(b"manifest"),
            signer.chain,
            ca_der=signer.ca_der,
            federation=FEDERATION,
            signed_at=NOW,
        )


# ---------------------------------------------------------------- making and loading


@pytest.mark.parametrize("role", list(Role))
def test_an_issued_leaf_loads_names_itself_and_lasts_90_days(pki: Path, role: Role) -> None:
    hosts = ["localhost", "127.0.0.1"] if role is Role.COORDINATOR else []
    issue(pki, role, "one", now_unix=NOW, hosts=hosts)
    identity = load_identity(pki / f"{role}-one", now_unix=NOW)
    assert identity.node_id == f"spiffe://{FEDERATION}/{role}/one"
    assert identity.leaf.not_after == NOW + 90 * DAY
    assert identity.ca_sha256 == {describe(pki / "ca.crt")[0].sha256}
    certificate = verify_chain(identity.chain, identity.ca_der, NOW)
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes) is (role is Role.COORDINATOR)


def test_keys_are_0600_and_folders_0700(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    modes = {
        str(p.relative_to(pki.parent)): p.stat().st_mode & 0o777 for p in pki.parent.rglob("*")
    }
    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert modes["pki"] == modes["pki/hospital-cleveland"] == 0o700
    assert set(modes) == {
        "pki",
        "pki/ca.crt",
        "pki/ca.key",
        "pki/hospital-cleveland",
        "pki/hospital-cleveland/ca.crt",
        "pki/hospital-cleveland/tls.crt",
        "pki/hospital-cleveland/tls.key",
    }


def test_nothing_is_overwritten_without_force_and_nothing_deleted_with_it(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    old = (pki / "hospital-cleveland/tls.key").read_bytes()
    with pytest.raises(ConfigError, match="already holds"):
        issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    with pytest.raises(ConfigError, match="already holds"):
        create_ca(pki, FEDERATION, now_unix=NOW)
    assert (pki / "hospital-cleveland/tls.key").read_bytes() == old
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW, force=True)
    assert (pki / "hospital-cleveland/tls.key").read_bytes() != old
    aside = next(pki.glob("hospital-cleveland.replaced-*"))
    assert (aside / "tls.key").read_bytes() == old


def test_a_failed_write_leaves_nothing(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    before = sorted(pki.iterdir())
    with pytest.raises(FedError) as refused:
        issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    assert refused.value.name == "DISK"
    assert sorted(pki.iterdir()) == before


@pytest.mark.parametrize(
    ("role", "name", "hosts", "days", "expected"),
    [
        (Role.HOSPITAL, "Cleveland", [], 90, "BAD_VALUE"),
        (Role.HOSPITAL, "../x", [], 90, "BAD_VALUE"),
        (Role.HOSPITAL, "a", ["localhost"], 90, "BAD_VALUE"),
        (Role.COORDINATOR, "a", [], 90, "BAD_VALUE"),
        (Role.COORDINATOR, "a", ["no host"], 90, "BAD_VALUE"),
        (Role.HOSPITAL, "a", [], 0, "BAD_VALUE"),
        (Role.HOSPITAL, "a", [], 826, "BAD_VALUE"),
    ],
)
def test_wrong_requests_are_refused_and_write_nothing(
    pki: Path, role: Role, name: str, hosts: list[str], days: int, expected: str
) -> None:
    before = sorted(pki.rglob("*"))
    with pytest.raises(FedError) as refused:
        issue(pki, role, name, now_unix=NOW, hosts=hosts, days=days)
    assert refused.value.name == expected
    assert sorted(pki.rglob("*")) == before


def test_a_leaf_never_outlives_its_ca(pki: Path) -> None:
    with pytest.raises(IdentityError) as refused:
        issue(pki, Role.HOSPITAL, "a", now_unix=NOW + 3600 * DAY)
    assert refused.value.name == "CERT_INVALID"


@pytest.mark.parametrize("wrong", WRONG_LEAVES, ids=lambda w: w.name)
def test_no_wrong_certificate_loads(wrong: Wrong, tmp_path: Path) -> None:
    certificate, key = wrong.make(CA, OTHER)
    folder = write_identity(tmp_path / "id", certificate, key, CA)
    if wrong.name == "another federation":
        # Right in itself; it is the coordinator's guard that knows the federation.
        assert load_identity(folder, now_unix=NOW).federation == "lung"
        return
    with pytest.raises(IdentityError) as refused:
        load_identity(folder, now_unix=NOW)
    assert refused.value.name in {"CERT_INVALID", "IDENTITY", "CLOCK_OFF"}
    assert refused.value.kind.exit_code == 2


def test_dates_are_explained_by_this_machines_clock(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    folder = pki / "hospital-cleveland"
    with pytest.raises(IdentityError) as behind:
        load_identity(folder, now_unix=NOW - 2 * 3600 - 300)
    assert behind.value.name == "CLOCK_OFF"
    assert "2 h behind" in behind.value.detail
    with pytest.raises(IdentityError) as ahead:
        load_identity(folder, now_unix=NOW + 90 * DAY + 7200)
    assert ahead.value.name == "CERT_INVALID"
    assert "expired 2 h ago by this machine's clock" in ahead.value.detail


@pytest.mark.parametrize("now_unix", [10**12, 1 << 60, (1 << 63) - 1, 1 << 63])
def test_a_time_that_no_calendar_has_verifies_nothing(now_unix: int) -> None:
    """As a coordinator may tell it, which a hospital judges an owner's certificate by."""
    certificate = make(Spec(), CA)
    with pytest.raises(IdentityError, match="expired"):
        verify_chain([to_der(certificate)], [CA.der], now_unix)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_reach_is_refused(pki: Path, mode: int) -> None:
    issue(pki, Role.HOSPITAL, "cleveland", now_unix=NOW)
    (pki / "hospital-cleveland/tls.key").chmod(mode)
    with pytest.raises(IdentityError) as refused:
        load_identity(pki / "hospital-cleveland", now_unix=NOW)
    assert refused.value.name == "KEY_PERMISSIONS"


def test_a_key_of_another_certificate_is_refused(pki: Path) -> None:
    for name in ("a", "b"):
        issue(pki, Role.HOSPITAL, name, now_unix=NOW)
    with pytest.raises(IdentityError) as refused:
        load_identity(pki / "hospital-a", key=pki / "hospital-b/tls.key", now_unix=NOW)
    assert "not the key of the certificate" in refused.value.detail


def test_a_foreign_ca_file_is_refused(pki: Path, tmp_path: Path) -> None:
    issue(pki, Role.HOSPITAL, "a", now_unix=NOW)
    create_ca(tmp_path / "other", FEDERATION, now_unix=NOW)
    with pytest.raises(IdentityError) as refused:
        load_identity(pki / "hospital-a", ca=tmp_path / "other/ca.crt", now_unix=NOW)
    assert refused.value.name == "CERT_INVALID"


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize(("content", "expected"), [(None, "FILE_MISSING"), (b"x", "CERT_INVALID")])
def test_missing_and_damaged_files_are_named(
    pki: Path, name: str, content: bytes | None, expected: str
) -> None:
    issue(pki, Role.HOSPITAL, "a", now_unix=NOW)
    path = pki / "hospital-a" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(FedError) as refused:
        load_identity(pki / "hospital-a", now_unix=NOW)
    assert refused.value.name == expected
    assert name in refused.value.detail


def test_an_identity_neither_prints_nor_pickles_its_key(pki: Path) -> None:
    issue(pki, Role.HOSPITAL, "a", now_unix=NOW)
    identity = load_identity(pki / "hospital-a", now_unix=NOW)
    secret = identity.key_pem().reveal().decode().splitlines()[1]
    assert secret not in repr(identity) + repr(identity.key_pem())
    with pytest.raises(TypeError):
        pickle.dumps(identity)


def test_show_escapes_what_could_forge_a_line(tmp_path: Path) -> None:
    certificate = make(Spec(uris=("spiffe://heart/x\n2026 ok",), common_name="a\nb"), CA)
    folder = write_identity(tmp_path / "id", certificate, Spec().key, CA)
    facts = describe(folder / "tls.crt")[0]
    assert facts.spiffe is None
    assert "\n" not in "".join([*facts.names, facts.issuer])
