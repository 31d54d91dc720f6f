"""Every statement that is signed and every list that is hashed (sections 3.3 and 4).

A statement is `enc(P||label, items...)`: built field by field here by the signer and
again, from its own copy of the fields, by each verifier. Ids are sorted as the
protocol sorts them, by their UTF-8 bytes, whatever order the caller has them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NewType

from common.encoding import Item, Label, hash_label, statement
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, SessionId, Sha256
from common.secagg.keys import EdgeTag, SelfCommit

RosterHash = NewType("RosterHash", bytes)
SetHash = NewType("SetHash", bytes)
DigestsHash = NewType("DigestsHash", bytes)
TagsHash = NewType("TagsHash", bytes)


def sort_ids(ids: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Return ids in the protocol's order: by their bytes."""
    return tuple(sorted(ids, key=str.encode))


def _pairs(table: Mapping[NodeId, bytes]) -> list[Item]:
    items: list[Item] = []
    for node in sort_ids(table):
        items += (node, bytes(table[node]))
    return items


def advert_body(  # noqa: PLR0913 - the fields of the statement, in its order
    *,
    federation: str,
    task: str,
    epoch: Epoch,
    node: NodeId,
    x25519_pub: bytes,
    mlkem_pub: bytes,
    ed25519_pub: bytes,
    config_hash: ConfigHash,
    not_before: int,
    not_after: int,
) -> bytes:
    """Return the body of a KeyAdvert, signed with the certificate's key.

    `mlkem_pub` is empty in the classical suite; times are Unix seconds.
    """
    return statement(
        Label.ADVERT,
        federation,
        task,
        epoch,
        node,
        x25519_pub,
        mlkem_pub,
        ed25519_pub,
        config_hash,
        not_before,
        not_after,
    )


def roster_hash(bodies: Mapping[NodeId, bytes]) -> RosterHash:
    """Return the hash of all advert bodies, sorted by id."""
    return RosterHash(hash_label(Label.ROSTER, *(bodies[node] for node in sort_ids(bodies))))


def session_id(
    federation: str, task: str, epoch: Epoch, config_hash: ConfigHash, roster: RosterHash
) -> SessionId:
    """Return the id that every pair key of the epoch is bound to, 32 bytes."""
    return SessionId(hash_label(Label.SESSION, federation, task, epoch, config_hash, roster))


def kem_statement(session: SessionId, sender: NodeId, to: NodeId, ct: bytes) -> bytes:
    """Return what the encapsulating (smaller) id signs with its session key."""
    return statement(Label.KEM, session, sender, to, ct)


def confirm_statement(session: SessionId) -> bytes:
    """Return what a node signs once all its pair keys are durable."""
    return statement(Label.CONFIRM, session)


def tags_hash(tags: Mapping[NodeId, EdgeTag]) -> TagsHash:
    """Return the hash of a node's edge tags, sorted by the other end."""
    return TagsHash(hash_label(Label.TAGS, *_pairs(tags)))


def upload_statement(
    hd: HeaderDigest, node: NodeId, ydig: Sha256, commit: SelfCommit, tags: TagsHash
) -> bytes:
    """Return what a node signs at the end of its upload."""
    return statement(Label.UPLOAD, hd, node, ydig, commit, tags)


def set_hash(ids: Iterable[NodeId]) -> SetHash:
    """Return the hash of a survivor set."""
    return SetHash(hash_label(Label.SET, *sort_ids(ids)))


def digests_hash(digests: Mapping[NodeId, Sha256]) -> DigestsHash:
    """Return the hash of the survivors' upload digests."""
    return DigestsHash(hash_label(Label.DIGESTS, *_pairs(digests)))


def commit_statement(hd: HeaderDigest, digests: Mapping[NodeId, Sha256]) -> bytes:
    """Return `st`: what a survivor signs to be bound to exactly this set and its uploads."""
    return statement(Label.COMMIT, hd, set_hash(digests), digests_hash(digests))
