"""The encoding is injective and closed; hashes and keys follow RFC 5869 and the labels."""

from __future__ import annotations

import hashlib
import math
from typing import cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from common.encoding import (
    MAX_INTEGER,
    PREFIX,
    Item,
    Label,
    enc,
    expand,
    expand_info,
    extract,
    hash_label,
    statement,
)
from common.errors import InternalError, Refusal

ITEMS = st.lists(st.one_of(st.binary(max_size=9), st.text(max_size=5)), max_size=5)


def test_each_item_is_its_length_and_its_bytes() -> None:
    assert enc("é") == b"\x00\x00\x00\x02\xc3\xa9"
    assert enc(b"") == b"\x00\x00\x00\x00"
    assert enc(258) == b"\x00\x00\x00\x08" + b"\x00" * 6 + b"\x01\x02"
    assert enc(1.0) == b"\x00\x00\x00\x08\x3f\xf0" + b"\x00" * 6
    assert enc() == b""
    assert enc("a", b"b") == enc("a") + enc(b"b")


def test_integers_reach_from_zero_to_the_largest_of_eight_bytes() -> None:
    assert enc(0)[4:] == bytes(8)
    assert enc(MAX_INTEGER)[4:] == b"\xff" * 8


@pytest.mark.parametrize("item", [-1, MAX_INTEGER + 1, math.nan, math.inf, -math.inf])
def test_numbers_without_an_encoding_are_refused(item: float) -> None:
    with pytest.raises(Refusal, match="BAD_MESSAGE"):
        enc(item)


@pytest.mark.parametrize("item", [True, None, ("a",), bytearray(b"a")])
def test_other_types_are_our_bug_not_a_guess(item: object) -> None:
    with pytest.raises(InternalError):
        enc(cast("Item", item))


@given(ITEMS, ITEMS)
def test_different_lists_never_share_their_bytes(one: list[Item], other: list[Item]) -> None:
    plain = [[x.encode() if isinstance(x, str) else x for x in part] for part in (one, other)]
    assert (enc(*one) == enc(*other)) == (plain[0] == plain[1])


def test_minus_zero_and_zero_differ() -> None:
    assert enc(0.0) != enc(-0.0)


def test_a_statement_starts_with_product_protocol_version_and_purpose() -> None:
    assert statement(Label.COMMIT, b"x") == enc(PREFIX + b"commit", b"x")
    assert hash_label(Label.SET) == hashlib.sha256(enc("fedcare/secagg/1/set")).digest()


def test_a_purpose_that_is_not_listed_cannot_be_used() -> None:
    with pytest.raises(InternalError):
        statement(cast("Label", "commit"))
    with pytest.raises(ValueError, match="other"):
        Label("other")


def test_labels_are_those_of_the_specification_once_each() -> None:
    listed = "advert kem confirm upload commit roster session layout header group set digests"
    listed += " tags self-commit chain0 chain edge edge-tag share mask poly round noise noise-tie"
    assert [label.value for label in Label] == listed.split(" ")


@pytest.mark.parametrize("length", [1, 16, 32, 33, 64, 8160])
def test_expand_is_hkdf_expand_of_the_statement(length: int) -> None:
    key = bytes(range(32))
    info = statement(Label.POLY, "self", 3)
    theirs = HKDFExpand(hashes.SHA256(), length, info).derive(key)
    assert expand(key, Label.POLY, "self", 3, length=length) == theirs


@pytest.mark.parametrize("length", [0, 8161])
def test_expand_refuses_lengths_outside_rfc_5869(length: int) -> None:
    with pytest.raises(InternalError):
        expand_info(bytes(32), b"", length)


def test_extract_reproduces_rfc_5869_test_case_1() -> None:
    salt = bytes.fromhex("000102030405060708090a0b0c")
    prk = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert extract(salt, b"\x0b" * 22).hex() == prk


def test_one_key_gives_unrelated_keys_for_two_purposes() -> None:
    made = {expand(bytes(32), label) for label in Label}
    assert len(made) == len(Label)
