"""`fedcare node verify`: what in a node's state directory is good, and what is not; it only reads.

Sealed records have to open, decisions, orders and own tensors to fit their checksums, ledgers
their chains and heads, and every file of a release the manifest that the hospital verified
when it took it. Models and masked vectors are left out: each is held against its digest
whenever it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common import state_folder
from common.certificates import to_der, verify_manifest
from common.entropy import OsEntropy
from common.errors import FedError
from common.identity import load_certificates
from common.ids import RunId
from common.manifest import CHAIN_FILE, MANIFEST_FILE, SIGNATURE_FILE, Manifest
from common.secagg.node_state import decode_state
from hospital_node.orders import orders
from hospital_node.personal_state import NAMES, OwnTensors
from hospital_node.sealing import Vault, load_key
from hospital_node.store import KEY_NAME, open_session, stored_decision


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was verified; `trouble` is empty if it is good."""

    name: str
    trouble: str = ""


def verify(root: Path, key_file: Path | None, ca: Path) -> list[Part]:
    """Return every part of a node's state, good or not; the node may run.

    `ca` are the consortium's certificates, which released models are signed under.

    Raises:
        ConfigError, IdentityError, StateError: the sealing key cannot be read.
    """
    vault = Vault(load_key(key_file or root / KEY_NAME), OsEntropy())
    anchors = [to_der(one) for one in load_certificates(ca)]
    parts = list(_parts(root, vault))
    owner = state_folder.owner_of(root) if not parts[0].trouble else None
    if owner is not None:
        for folder in sorted((root / "releases").glob("*")):
            parts += _release(folder, anchors, owner.federation)
    return parts


def _part(name: str, work: Callable[[], object]) -> Part:
    try:
        work()
    except FedError as failure:
        return Part(name, failure.detail)
    return Part(name)


def _parts(root: Path, vault: Vault) -> Iterator[Part]:
    yield _part(state_folder.MARKER, lambda: state_folder.owner_of(root))
    for path in sorted((root / "sessions").glob("*.sealed")):
        yield _part(f"sessions/{path.name}", lambda path=path: _session(path, vault))  # type: ignore[misc]
    for path in sorted((root / "ledger").glob("*.sealed")):
        name = path.name.removesuffix(".sealed")
        yield _part(
            f"ledger/{path.name}",
            lambda path=path, name=name: vault.open(  # type: ignore[misc]
                f"ledger/{name}", path.read_bytes(), str(path)
            ),
        )
    for path in sorted((root / "decisions").glob("*.json")):
        yield _part(f"decisions/{path.name}", lambda path=path: stored_decision(path))  # type: ignore[misc]
    yield _part("orders", lambda: orders(root))
    for path in sorted((root / "own").glob("*.f32")):
        yield _part(f"own/{path.name}", lambda path=path: _own(path))  # type: ignore[misc]


def _session(path: Path, vault: Vault) -> None:
    decode_state(open_session(path, path.name.removesuffix(".sealed"), vault).state)


def _own(path: Path) -> None:
    name = next((name for name in NAMES if path.name.endswith(f".{name}.f32")), "")
    OwnTensors(path.parent, RunId(path.name.removesuffix(f".{name}.f32"))).get(name)


def _release(folder: Path, anchors: list[bytes], federation: str) -> Iterator[Part]:
    where = f"releases/{folder.name}"
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.from_json(raw)
        chain = [to_der(one) for one in load_certificates(folder / CHAIN_FILE)]
        signature = (folder / SIGNATURE_FILE).read_bytes()
        at = manifest.signed_at
        verify_manifest(raw, signature, chain, ca_der=anchors, federation=federation, signed_at=at)
    except (FedError, OSError, ValueError) as failure:
        yield Part(f"{where}/{MANIFEST_FILE}", str(failure))
        return
    yield Part(f"{where}/{MANIFEST_FILE}")
    for entry in manifest.files:
        path = folder / entry.name
        if path.is_file():
            with path.open("rb") as file:
                good = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
            yield Part(f"{where}/{entry.name}", "" if good else "is not the manifest's")
