"""Statements carry every field once, in order, whatever order the caller has them in."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from common.encoding import PREFIX, enc
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, SessionId, Sha256
from common.secagg import transcript
from common.secagg.keys import EdgeTag, SelfCommit
from common.secagg.transcript import RosterHash, TagsHash

A, B, C = NodeId("Z"), NodeId("a"), NodeId("é")  # sorted by bytes, not by a locale
HD = HeaderDigest(b"\x01" * 32)
SESSION = SessionId(b"\x02" * 32)
CONFIG = ConfigHash(b"\x03" * 32)
ADVERT: dict[str, Any] = {
    "federation": "fed",
    "task": "task",
    "epoch": Epoch(3),
    "node": A,
    "x25519_pub": b"x" * 32,
    "mlkem_pub": b"m" * 1184,
    "ed25519_pub": b"e" * 32,
    "config_hash": CONFIG,
    "not_before": 10,
    "not_after": 20,
}


def signed(label: str, *items: str | bytes | int) -> bytes:
    return enc(PREFIX + label.encode(), *items)


def hashed(label: str, *items: str | bytes | int) -> bytes:
    return hashlib.sha256(signed(label, *items)).digest()


def test_the_advert_body_is_the_fields_in_order() -> None:
    fields = ("fed", "task", 3, A, b"x" * 32, b"m" * 1184, b"e" * 32, CONFIG, 10, 20)
    assert transcript.advert_body(**ADVERT) == signed("advert", *fields)


@pytest.mark.parametrize("field", list(ADVERT))
def test_every_field_of_an_advert_is_signed(field: str) -> None:
    value = ADVERT[field]
    other = value + (1 if isinstance(value, int) else value[:1])
    assert transcript.advert_body(**(ADVERT | {field: other})) != transcript.advert_body(**ADVERT)


def test_the_roster_and_session_hash_all_bodies_sorted_by_id() -> None:
    bodies = {C: b"3", A: b"1", B: b"2"}
    roster = transcript.roster_hash(bodies)
    assert roster == hashed("roster", b"1", b"2", b"3")
    made = transcript.session_id("fed", "task", Epoch(3), CONFIG, roster)
    assert made == hashed("session", "fed", "task", 3, CONFIG, roster)
    other = RosterHash(transcript.roster_hash(bodies | {B: b"x"}))
    assert transcript.session_id("fed", "task", Epoch(3), CONFIG, other) != made


def test_kem_and_confirm_name_the_session() -> None:
    assert transcript.kem_statement(SESSION, A, B, b"ct") == signed("kem", SESSION, A, B, b"ct")
    assert transcript.confirm_statement(SESSION) == signed("confirm", SESSION)


def test_the_upload_statement_binds_digest_commitment_and_tags() -> None:
    tags = transcript.tags_hash({C: EdgeTag(b"c" * 16), B: EdgeTag(b"b" * 16)})
    assert tags == hashed("tags", B, b"b" * 16, C, b"c" * 16)
    ydig, commit = Sha256(b"y" * 32), SelfCommit(b"s" * 32)
    made = transcript.upload_statement(HD, A, ydig, commit, tags)
    assert made == signed("upload", HD, A, ydig, commit, tags)
    assert made != transcript.upload_statement(HD, A, ydig, commit, TagsHash(b"t" * 32))


def test_a_commit_binds_header_set_and_digests() -> None:
    digests = {C: Sha256(b"3" * 32), A: Sha256(b"1" * 32)}
    one = hashed("set", A, C)
    two = hashed("digests", A, b"1" * 32, C, b"3" * 32)
    assert transcript.set_hash([C, A]) == one
    assert transcript.digests_hash(digests) == two
    made = transcript.commit_statement(HD, digests)
    assert made == signed("commit", HD, one, two)
    reverse = dict(reversed(digests.items()))
    assert transcript.commit_statement(HD, reverse) == made
    assert transcript.commit_statement(HD, digests | {B: Sha256(b"2" * 32)}) != made
    assert transcript.commit_statement(HD, digests | {C: Sha256(b"4" * 32)}) != made


def test_ids_are_sorted_by_their_bytes() -> None:
    assert transcript.sort_ids([C, B, A]) == (A, B, C)
