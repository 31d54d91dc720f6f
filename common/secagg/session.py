"""An epoch's set-up, as both ends check it (section 3.3).

    advert   body rebuilt field by field, signed by the certificate, valid now
    roster   every member's advert; its hash makes the session id
    kem      smaller id -> larger id, signed with the session key
    confirm  all pair keys are durable

Whoever is shown another roster gets another session id, hence other masks: nothing
adds up. The coordinator runs the same checks as the nodes, so that a faulty advert
costs its sender the epoch and nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from common.errors import Refusal
from common.ids import DIGEST_BYTES, ConfigHash, Epoch, NodeId, SessionId
from common.secagg.keys import (
    KEY_BYTES,
    MLKEM_CIPHERTEXT_BYTES,
    MLKEM_PUBLIC_BYTES,
    Suite,
    check_public_keys,
    verify_certificate_signature,
    verify_session_signature,
)
from common.secagg.messages import Confirm, Kem, KeyAdvert
from common.secagg.params import EPOCH_SECONDS
from common.secagg.transcript import (
    advert_body,
    confirm_statement,
    kem_statement,
    roster_hash,
    session_id,
    sort_ids,
)

CLOCK_SKEW_S: Final = 300
"""How far ahead a peer's clock may be when its advert begins to be valid."""


class Trust(Protocol):
    """Who may take part: the pinned CA and the pinned list of members."""

    def verify_chain(
        self, chain_der: Sequence[bytes], node_id: NodeId, now_unix: int
    ) -> CertificatePublicKeyTypes:
        """Return the certificate's key, or raise Refusal CERT_CHAIN or NOT_MEMBER."""
        ...


class Signer(Protocol):
    """The hospital's certificate and its key, which may sit in hardware."""

    @property
    def node_id(self) -> NodeId:
        """The certificate's name."""
        ...

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Return the certificate key's signature."""
        ...


@dataclass(frozen=True, slots=True)
class EpochTerms:
    """What all adverts of one epoch have in common."""

    federation: str
    task: str
    epoch: Epoch
    config_hash: ConfigHash
    suite: Suite


def body_of(advert: KeyAdvert) -> bytes:
    """Return what an advert's signature covers."""
    return advert_body(
        federation=advert.federation,
        task=advert.task,
        epoch=advert.epoch,
        node=advert.id,
        x25519_pub=advert.x25519_pub,
        mlkem_pub=advert.mlkem_pub,
        ed25519_pub=advert.ed25519_pub,
        config_hash=advert.config_hash,
        not_before=advert.not_before,
        not_after=advert.not_after,
    )


def check_advert(advert: KeyAdvert, terms: EpochTerms, trust: Trust, now_unix: int) -> None:
    """Return if an advert belongs to the epoch and its member signed it.

    Raises:
        Refusal: CONFIG_HASH, EPOCH_OLD (federation, task, epoch or validity),
            KEY_ADVERT (key sizes), CERT_CHAIN, NOT_MEMBER, ADVERT_SIG, or ZERO_DH or KEM
            (keys that nobody can use).
    """
    if advert.config_hash != terms.config_hash:
        raise Refusal("CONFIG_HASH", f"{advert.id} advertised for another study")
    named = (advert.federation, advert.task, advert.epoch)
    if named != (terms.federation, terms.task, terms.epoch):
        raise Refusal("EPOCH_OLD", f"{advert.id} advertised for another epoch or task")
    _check_validity(advert, now_unix)
    mlkem_bytes = MLKEM_PUBLIC_BYTES if terms.suite is Suite.HYBRID else 0
    sizes = tuple(map(len, (advert.x25519_pub, advert.mlkem_pub, advert.ed25519_pub)))
    if sizes != (KEY_BYTES, mlkem_bytes, KEY_BYTES):
        raise Refusal("KEY_ADVERT", f"{advert.id} sent keys of the wrong size or suite")
    key = trust.verify_chain(advert.cert_chain, advert.id, now_unix)
    verify_certificate_signature(key, advert.sig, body_of(advert))
    check_public_keys(advert.x25519_pub, advert.mlkem_pub)


def _check_validity(advert: KeyAdvert, now_unix: int) -> None:
    if not advert.not_before - CLOCK_SKEW_S <= now_unix <= advert.not_after:
        raise Refusal("EPOCH_OLD", f"the advert of {advert.id} is not valid now")
    if advert.not_after - advert.not_before > EPOCH_SECONDS:
        raise Refusal("EPOCH_OLD", f"the advert of {advert.id} is valid for more than 7 days")


def check_distinct(adverts: Sequence[KeyAdvert]) -> None:
    """Refuse a roster in which an id or a public key stands twice.

    Raises:
        Refusal: ADVERT_DUP.
    """
    columns = (
        [advert.id for advert in adverts],
        [advert.x25519_pub for advert in adverts],
        [advert.ed25519_pub for advert in adverts],
        [advert.mlkem_pub for advert in adverts if advert.mlkem_pub],
    )
    if any(len(set(column)) != len(column) for column in columns):
        raise Refusal("ADVERT_DUP", "an id or a public key stands twice in the roster")


def session_of(adverts: Sequence[KeyAdvert], terms: EpochTerms) -> SessionId:
    """Return the id of the session that these adverts make."""
    roster = roster_hash({advert.id: body_of(advert) for advert in adverts})
    return session_id(terms.federation, terms.task, terms.epoch, terms.config_hash, roster)


def larger_ids(node: NodeId, members: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the members `node` encapsulates to, sorted."""
    return sort_ids(other for other in members if other.encode() > node.encode())


def smaller_ids(node: NodeId, members: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return the members that encapsulate to `node`, sorted."""
    return sort_ids(other for other in members if other.encode() < node.encode())


def check_ciphertext(
    session: SessionId, sender: NodeId, key: bytes, to: NodeId, ct: bytes, sig: bytes
) -> None:
    """Return if `sender`'s session key `key` signed the ciphertext for `to`.

    Raises:
        Refusal: KEM.
    """
    if len(ct) != MLKEM_CIPHERTEXT_BYTES:
        raise Refusal("KEM", f"the ciphertext of {sender} has {len(ct)} bytes, not 1088")
    data = kem_statement(session, sender, to, ct)
    verify_session_signature(key, sig, data, refusal="KEM", who=sender)


def check_kem(kem: Kem, session: SessionId, keys: Mapping[NodeId, bytes]) -> None:
    """Return if a Kem has one well signed ciphertext for each larger id, and no other.

    `keys`: session keys of the roster by id.

    Raises:
        Refusal: KEM.
    """
    due = larger_ids(kem.sender, tuple(keys))
    if sort_ids(item.to for item in kem.items) != due:
        raise Refusal("KEM", f"{kem.sender} did not encapsulate to each larger id once")
    for item in kem.items:
        check_ciphertext(session, kem.sender, keys[kem.sender], item.to, item.ct, item.sig)


def check_confirm(confirm: Confirm, session: SessionId, sender: NodeId, key: bytes) -> None:
    """Return if `sender` confirmed this session.

    Raises:
        Refusal: KEY_ADVERT.
    """
    if len(confirm.session_id) != DIGEST_BYTES or confirm.session_id != session:
        raise Refusal("KEY_ADVERT", f"{sender} confirmed another session")
    data = confirm_statement(session)
    verify_session_signature(key, confirm.sig, data, refusal="KEY_ADVERT", who=sender)
