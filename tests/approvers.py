"""People who approve studies, for tests: a key each, made from the name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from common.approval import Statement, Word, sign
from common.approval_keys import key_text
from common.ids import ConfigHash
from hospital_node.approval.records import FOLDER, file_name

DAY: Final = 86_400
WEBER, ITO, ROSSI = "dr-weber", "dr-ito", "dr-rossi"


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(name: str) -> str:
    return key_text(key_of(name).public_key().public_bytes_raw())


def section(*names: str, quorum: int = 1, expires: str = "90d") -> str:
    """Return `require.approval` of a policy, on one line."""
    people = ", ".join(f'{{name: {name}, key: "{public(name)}"}}' for name in names)
    return f"approval: {{quorum: {quorum}, expires: {expires}, approvers: [{people}]}}"


def key_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pem"
    pem = key_of(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return path


class Office:
    """Where a hospital's people sign: statements become files as the commands write them."""

    def __init__(self, state_dir: Path, site: str, federation: str, digest: ConfigHash) -> None:
        self.folder = state_dir / FOLDER
        self.site, self.federation, self.digest = site, federation, digest

    def statement(
        self,
        name: str,
        word: Word,
        now: float,
        *,
        days: float = 90,
        digest: ConfigHash | None = None,
        site: str | None = None,
    ) -> Statement:
        return Statement(
            site=site or self.site,
            federation=self.federation,
            config_hash=digest or self.digest,
            name=name,
            word=word,
            reason="" if word is Word.GRANT else "the data were not cleared",
            time=int(now),
            expires=int(now + days * DAY) if word is Word.GRANT else 0,
        )

    def say(self, name: str, word: Word, now: float, *, days: float = 90) -> Path:
        """Have a person say a word."""
        made = self.statement(name, word, now, days=days)
        return self.keep(made, sign(made, key_of(name)))

    def keep(self, made: Statement, raw: bytes, name: str | None = None) -> Path:
        """Write a record's bytes under the statement's name, or another one."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self.folder / (name or file_name(made))
        path.write_bytes(raw)
        return path
