"""An approval is one signed statement, and whatever is not exactly that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.approval import MOST_BYTES, Statement, Word, parse, sign, verify
from common.approval_keys import SMALL_ORDER, approver_key, key_bytes, key_text
from common.errors import PolicyRefusal
from common.ids import ConfigHash

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
GRANT = Statement(
    site="cleveland",
    federation="heart-network",
    config_hash=ConfigHash(bytes([1]) * 32),
    name="dr-weber",
    word=Word.GRANT,
    reason="",
    time=1_800_000_000,
    expires=1_807_776_000,
)
DENY = replace(GRANT, word=Word.DENY, reason="no vote of the ethics board", expires=0)

ENCODED = (
    "00000012666564636172652f617070726f76616c2f31"  # "fedcare/approval/1"
    "00000009636c6576656c616e64"
    "0000000d68656172742d6e6574776f726b"
    "00000020" + "01" * 32 + "0000000864722d7765626572"
    "000000056772616e74"
    "00000000"
    "00000008000000006b49d200"
    "00000008000000006bc07900"
)
"""Written by hand from docs/protocol.md, section 10.8."""


def test_what_is_signed_is_the_encoding_of_the_page() -> None:
    assert GRANT.encoded().hex() == ENCODED
    signature = json.loads(sign(GRANT, KEY))["signature"]
    KEY.public_key().verify(bytes.fromhex(signature), bytes.fromhex(ENCODED))


def test_the_vector_of_the_page_is_ours() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text("utf-8")
    section = page[page.index("### 10.8") : page.index("## 11. ")]
    assert f"| SHA-256 of the statement | `{sha256(GRANT.encoded()).hexdigest()}` |" in section
    assert f"| Ed25519 | `{KEY.sign(GRANT.encoded()).hex()}` |" in section


@pytest.mark.parametrize("statement", [GRANT, DENY, replace(DENY, word=Word.WITHDRAW)])
def test_a_statement_is_read_as_it_was_signed(statement: Statement) -> None:
    found = parse(sign(statement, KEY))
    assert found.statement == statement
    verify(found, KEY.public_key().public_bytes_raw())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("site", "hungarian"),
        ("federation", "other"),
        ("config_hash", ConfigHash(bytes(32))),
        ("name", "dr-ito"),
        ("time", GRANT.time + 1),
        ("expires", GRANT.expires + 1),
        ("reason", "because"),
    ],
)
def test_a_signature_binds_every_field(field: str, value: Any) -> None:  # noqa: ANN401
    found = parse(sign(GRANT, KEY))
    altered = replace(found, statement=replace(found.statement, **{field: value}))
    with pytest.raises(PolicyRefusal) as caught:
        verify(altered, KEY.public_key().public_bytes_raw())
    assert caught.value.name == "APPROVAL_KEY"


def test_a_denial_is_not_taken_for_a_grant() -> None:
    found = parse(sign(DENY, KEY))
    altered = replace(found, statement=replace(DENY, word=Word.GRANT))
    with pytest.raises(PolicyRefusal, match="not signed by the key"):
        verify(altered, KEY.public_key().public_bytes_raw())


def _with(**fields: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {**body, **fields}


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (_with(schema="fedcare.approval/v2"), "not of the form"),
        (_with(more=1), "not of the form"),
        (lambda body: {k: body[k] for k in body if k != "time"}, "not of the form"),
        (_with(study="sha256:12"), "no study of 32 bytes"),
        (_with(study="sha256:" + "AB" * 32), "no study of 32 bytes"),
        (_with(site=3), "a text that is none"),
        (_with(decision="allow"), "neither grant nor deny"),
        (_with(time=-1), "no time in Unix seconds"),
        (_with(time=1.5), "no time in Unix seconds"),
        (_with(time=True), "no time in Unix seconds"),
        (_with(expires=10**12), "no expires in Unix seconds"),
        (_with(expires=1), "expires before it was given"),
        (_with(name="Dr Weber"), "names nobody"),
        (_with(reason="a\nb"), "no line of at most"),
        (_with(reason="x" * 501), "no line of at most"),
        (_with(decision="deny", expires=0), "without a reason"),
        (_with(decision="withdraw", reason="r"), "one that expires"),
        (_with(signature="00" * 63), "no signature of 64 bytes"),
    ],
)
def test_a_malformed_record_is_refused_before_its_signature_matters(
    alter: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    body = alter(json.loads(sign(GRANT, KEY)))
    with pytest.raises(PolicyRefusal, match=words) as caught:
        parse(json.dumps(body).encode())
    assert caught.value.name == "APPROVAL_RECORD"


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b"\xff", b"[" * 5000, b" " * (MOST_BYTES + 1), b'{"a":1,"a":2}'],
    ids=["empty", "list", "cut", "binary", "deep", "long", "twice"],
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        parse(raw)
    assert caught.value.name == "APPROVAL_RECORD"


# --- keys --------------------------------------------------------------------------------

_P = 2**255 - 19
_D = -121_665 * pow(121_666, _P - 2, _P) % _P


def _add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    k = _D * a[0] * b[0] * a[1] * b[1] % _P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + k, _P - 2, _P)
    return x % _P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - k, _P - 2, _P) % _P


def _x(y: int) -> int:
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    root = pow(square, (_P + 3) // 8, _P)
    if (root * root - square) % _P:
        root = root * pow(2, (_P - 1) // 4, _P) % _P
    assert (root * root - square) % _P == 0, "no point of the curve"
    return root


def test_the_refused_keys_are_the_points_whose_order_divides_eight() -> None:
    for y in SMALL_ORDER:
        point = _x(y % _P), y % _P
        for _ in range(3):
            point = _add(point, point)
        assert point == (0, 1)
    assert len({y % _P for y in SMALL_ORDER}) == 5  # y of the identity, 2, two of 4, four of 8


@pytest.mark.parametrize("y", sorted(SMALL_ORDER))
@pytest.mark.parametrize("sign_bit", [0, 1])
def test_a_key_under_which_anybody_can_sign_is_refused(y: int, sign_bit: int) -> None:
    text = key_text((y | sign_bit << 255).to_bytes(32, "little"))
    with pytest.raises(ValueError, match="anybody can sign"):
        approver_key(text)


@pytest.mark.parametrize("text", ["", "ab" * 32, "ed25519:" + "AB" * 32, "ed25519:abc", "rsa:1"])
def test_a_malformed_key_says_how_one_is_made(text: str) -> None:
    with pytest.raises(ValueError, match="`fedcare node approvals key FILE` makes one"):
        approver_key(text)


def test_a_real_key_is_taken() -> None:
    raw = KEY.public_key().public_bytes_raw()
    assert key_bytes(approver_key(key_text(raw))) == raw
