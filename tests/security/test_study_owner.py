"""Nobody makes a study in another's name: not the coordinator, not a hospital, not a colleague."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from common.certificates import MANIFEST_PREFIX, STUDY_PREFIX, verify_study
from common.errors import Refusal
from tests.certificate_factory import FEDERATION, NOW, Authority, Spec, make, new_ca

CA, OTHER = new_ca(), new_ca()
HASH = bytes(range(32))
OWNER = Spec(uris=(f"spiffe://{FEDERATION}/researcher/uni-x",))


def _verify(
    spec: Spec, *, signer: Authority = CA, prefix: bytes = STUDY_PREFIX, signed: bytes = HASH
) -> None:
    assert isinstance(spec.key, ec.EllipticCurvePrivateKey)
    signature = spec.key.sign(prefix + signed, ec.ECDSA(hashes.SHA256()))
    chain = (make(spec, signer).public_bytes(Encoding.DER),)
    verify_study(
        HASH, "uni-x", signature, chain, ca_der=(CA.der,), federation=FEDERATION, now_unix=int(NOW)
    )


def test_the_owner_may() -> None:
    _verify(OWNER)


@pytest.mark.parametrize(
    "uri",
    [
        f"spiffe://{FEDERATION}/researcher/uni-y",
        f"spiffe://{FEDERATION}/coordinator/uni-x",
        f"spiffe://{FEDERATION}/hospital/uni-x",
        f"spiffe://{FEDERATION}/operator/uni-x",
        "spiffe://elsewhere/researcher/uni-x",
    ],
)
def test_nobody_else_may(uri: str) -> None:
    with pytest.raises(Refusal, match="OWNER_SIGNATURE"):
        _verify(replace(OWNER, uris=(uri,)))


def test_a_certificate_of_another_ca_or_out_of_date_does_not_count() -> None:
    with pytest.raises(Refusal, match="OWNER_SIGNATURE"):
        _verify(OWNER, signer=OTHER)
    with pytest.raises(Refusal, match="OWNER_SIGNATURE"):
        _verify(replace(OWNER, begins=timedelta(days=-9), ends=timedelta(days=-1)))


def test_a_signature_over_something_else_does_not_count() -> None:
    with pytest.raises(Refusal, match="OWNER_SIGNATURE"):
        _verify(OWNER, signed=bytes(32))
    with pytest.raises(Refusal, match="OWNER_SIGNATURE"):
        _verify(OWNER, prefix=MANIFEST_PREFIX)
