"""What a person says to a study, signed (docs/protocol.md, section 10.8).

    statement = Statement("cleveland", "heart-network", digest, "dr-weber", Word.GRANT, ...)
    raw = sign(statement, key)            # one file in the node's state directory
    parse(raw)                            # a claim
    verify(parse(raw), public)            # what the person said

A statement is about one study by its hash, at one hospital of one federation. It is never
changed: who thinks otherwise later signs another one.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.encoding import enc
from common.errors import PolicyRefusal
from common.ids import ConfigHash
from common.reason import MOST_REASON
from common.text import check_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMA: Final = "fedcare.approval/v1"
LABEL: Final = "fedcare/approval/1"
"""Stands first in what is signed, so that no other signature of the key fits."""

MOST_BYTES: Final = 8 << 10
SIGNATURE_BYTES: Final = 64
MOST_TIME: Final = 253_402_300_799
"""In Unix seconds: the end of the year 9999."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HEX: Final = re.compile(r"[0-9a-f]+")
_TEXTS: Final = ("site", "federation", "name", "decision", "reason", "signature", "study")
_KEYS: Final = frozenset({"schema", "time", "expires", *_TEXTS})


class Word(StrEnum):
    """What a person may say."""

    GRANT = "grant"
    DENY = "deny"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Statement:
    """One person's word on one study; `time` and `expires` are Unix seconds.

    Only a grant expires: of the other two `expires` is 0. They need a `reason`.
    """

    site: str
    federation: str
    config_hash: ConfigHash
    name: str
    word: Word
    reason: str
    time: int
    expires: int

    def encoded(self) -> bytes:
        """Return the bytes that are signed."""
        return enc(
            LABEL,
            self.site,
            self.federation,
            bytes(self.config_hash),
            self.name,
            self.word.value,
            self.reason,
            self.time,
            self.expires,
        )


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A statement and its Ed25519 signature; nothing is believed before `verify`."""

    statement: Statement
    signature: bytes


def sign(statement: Statement, key: Ed25519PrivateKey) -> bytes:
    """Return the signed statement as it is kept: a JSON object."""
    body = {
        "schema": SCHEMA,
        "site": statement.site,
        "federation": statement.federation,
        "study": f"sha256:{statement.config_hash.hex()}",
        "name": statement.name,
        "decision": statement.word.value,
        "reason": statement.reason,
        "time": statement.time,
        "expires": statement.expires,
        "signature": key.sign(statement.encoded()).hex(),
    }
    return (json.dumps(body, indent=1, ensure_ascii=True) + "\n").encode("ascii")


def parse(raw: bytes) -> SignedStatement:
    """Return what a record claims.

    Raises:
        PolicyRefusal: APPROVAL_RECORD, it is no record of this version.
    """
    if len(raw) > MOST_BYTES:
        raise _bad(f"is over {MOST_BYTES} bytes long")
    try:
        tree = json.loads(raw.decode("ascii"), object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        raise _bad("is not a JSON object") from None
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA or tree.keys() != _KEYS:
        raise _bad(f"is not of the form {SCHEMA}")
    if not all(isinstance(tree[key], str) for key in _TEXTS):
        raise _bad("has a text that is none")
    statement = Statement(
        site=tree["site"],
        federation=tree["federation"],
        config_hash=ConfigHash(_bytes(tree["study"].removeprefix("sha256:"), 32, "study")),
        name=tree["name"],
        word=_word(tree["decision"]),
        reason=tree["reason"],
        time=_moment(tree["time"], "time"),
        expires=_moment(tree["expires"], "expires"),
    )
    check(statement)
    return SignedStatement(statement, _bytes(tree["signature"], SIGNATURE_BYTES, "signature"))


def verify(signed: SignedStatement, public: bytes) -> None:
    """Return if the key of 32 bytes signed the statement.

    Raises:
        PolicyRefusal: APPROVAL_KEY.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(public)
        key.verify(signed.signature, signed.statement.encoded())
    except (InvalidSignature, ValueError):
        name = signed.statement.name
        detail = f"is not signed by the key that the policy gives to {name}"
        raise PolicyRefusal("APPROVAL_KEY", detail) from None


def check(statement: Statement) -> None:
    """Refuse a statement that says too little, too much or in no order.

    Raises:
        PolicyRefusal: APPROVAL_RECORD.
    """
    if not _NAME.fullmatch(statement.name):
        raise _bad("names nobody")
    if len(statement.reason) > MOST_REASON or not _readable(statement.reason):
        raise _bad(f"has a reason that is no line of at most {MOST_REASON} characters")
    if statement.word is Word.GRANT:
        if statement.expires <= statement.time:
            raise _bad("expires before it was given")
    elif statement.expires or not statement.reason.strip():
        raise _bad(f"is a {statement.word.value} without a reason, or one that expires")


def _readable(text: str) -> bool:
    try:
        return check_text(text) == text
    except ValueError:
        return False


def _bad(why: str) -> PolicyRefusal:
    return PolicyRefusal("APPROVAL_RECORD", why)


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(items)) != len(items):
        raise ValueError("a key stands twice")
    return dict(items)


def _word(text: str) -> Word:
    try:
        return Word(text)
    except ValueError:
        raise _bad("says neither grant nor deny nor withdraw") from None


def _moment(value: object, key: str) -> int:
    if type(value) is not int or not 0 <= value <= MOST_TIME:
        raise _bad(f"has no {key} in Unix seconds")
    return value


def _bytes(text: str, size: int, key: str) -> bytes:
    if len(text) != 2 * size or not _HEX.fullmatch(text):
        raise _bad(f"has no {key} of {size} bytes")
    return bytes.fromhex(text)
