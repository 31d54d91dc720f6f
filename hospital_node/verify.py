"""`fedcare node verify`: what in a node's state directory is good, and what is not; it only reads.

Every durable thing is read whole as the node itself reads it: sealed records have to open and
hold what they should, ledgers to fit their chains, heads and anchors, masked vectors the
digest that the session promised, models their names, decisions, orders, reports and own tensors
their checksums, what people signed their keys, releases the manifest that the hospital verified
when it took them. The node may run meanwhile: what is gone by the time it is read is passed
over. Nobody's values are told. Left out are `status.json`, `last-contact.json` and `lock`, which
no round relies on, and downloads that are not whole yet, which are checked when they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from common import state_folder
from common.approval import parse
from common.certificates import read_leaf, to_der, verify_manifest
from common.entropy import OsEntropy
from common.errors import ConfigError, FedError, PolicyRefusal, StateError
from common.identity import load_certificates
from common.ids import RunId, hospital_id
from common.layouts import model_schema
from common.manifest import CHAIN_FILE, MANIFEST_FILE, SIGNATURE_FILE, Manifest
from common.policy import Policy, load_policy
from common.secagg.node_state import OpenRound, Phase, Upload, decode_state
from common.state_folder import Owner
from common.study import study_from_canonical
from common.vectors import ParameterSchema
from common.verified import Part
from hospital_node import files
from hospital_node.approval.records import ApprovalFolder, Rejected, file_name
from hospital_node.checkpoints import CheckpointFolder
from hospital_node.config import NodeConfig
from hospital_node.contribution import digest_of
from hospital_node.ledger import look
from hospital_node.orders import older_of, order_of
from hospital_node.personal import artefact
from hospital_node.personal_state import OwnTensors
from hospital_node.private.books import agreed_datasets, anchor_of
from hospital_node.receive import digest_of_file
from hospital_node.sealing import Vault, load_key
from hospital_node.store import (
    KEY_NAME,
    ROLLED_BACK,
    DecisionRecord,
    StoreReader,
    check_report,
    open_session,
    stored_decision,
)

_HEAD, _SEALED = ".head.sealed", ".sealed"

_EMPTY: Final = (
    "Start with an empty state directory, `ledger/` kept aside and put into it (RUNBOOK, 'Keep,"
    " and do not keep'); nothing is repaired."
)
FIXES: Final = {
    "models": "Remove the file: the model is fetched again.",
    "spool": "Remove the file: this hospital leaves that round and is in the next.",
    "checkpoints": "Remove the file: training begins from the round's model.",
    "personal": "Remove the folder and start the node: it makes the model anew.",
    "releases": "Remove the folder; `fedcare verify` tells whether a copy of the release is good.",
    "reports": "Remove the file; the figures can be computed again from the release.",
    "approvals": "Move the file away; whoever signed it signs again.",
    "orders": "Move the file away and keep it: it was a person's order.",
    "ledger": "Put the hospital's own newest ledger back (RUNBOOK, 'A privacy ledger is refused').",
    ROLLED_BACK: "Remove the file and start the node: it is told again.",
}
"""What to do about a damaged part, by the first word of its name; else `_EMPTY`."""


_KEY_FIXES: Final = {
    "FILE_MISSING": "Give the file back, or to this user: chown it, mode 0600. Only if the key is"
    " lost for good, so is all that it sealed: start with an empty state directory (RUNBOOK, 'Keep,"
    " and do not keep').",
    "KEY_PERMISSIONS": "chmod 600 the file, if nobody else can have read it.",
    "STATE_DAMAGED": "Put the hospital's own key file back. Only if it is lost for good: start with"
    " an empty state directory (RUNBOOK, 'Keep, and do not keep').",
}
"""What to do about a sealing key that could not be read, by why."""


def _bad(name: str, trouble: str) -> Part:
    return Part(name, trouble, FIXES.get(name.partition("/")[0], _EMPTY))


def verify(config: NodeConfig) -> list[Part]:
    """Return every part of a node's state, good or not; the node may run.

    Raises:
        ConfigError, IdentityError: there is no state, or no certificate of node or CA.
        StateError: STATE_ACCESS, this user may not read it, which is no damage.
    """
    look_at = _Look(config)
    if not look_at.root.is_dir():
        raise ConfigError("FILE_MISSING", f"{look_at.root} is not there")
    if not os.access(look_at.root, os.R_OK | os.X_OK):
        raise StateError(
            "STATE_ACCESS",
            f"{look_at.root} cannot be read by this user",
            fix="Run the command as the user that the node runs as.",
        )
    return list(look_at.parts())


def _damaged(what: str) -> StateError:
    return StateError("STATE_DAMAGED", what)


@dataclass(slots=True)
class _Look:
    """One look at a state directory; later parts use what earlier ones told."""

    config: NodeConfig
    root: Path = field(init=False)
    key_file: Path = field(init=False)
    owner: Owner = field(init=False)
    vault: Vault | None = None
    decisions: list[DecisionRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.config
        self.root = config.path(config.state_dir)
        key = config.sealing_key
        self.key_file = self.root / KEY_NAME if key is None else config.path(key)
        leaf = read_leaf(load_certificates(config.path(config.tls.certificate))[0])
        self.owner = Owner(leaf.spiffe.role, leaf.spiffe.federation, leaf.spiffe.id)

    def parts(self) -> Iterator[Part]:
        yield from self._part(state_folder.MARKER, self._check_owner)
        yield self._key()
        yield from self._each("decisions", "*.json", self._decision)
        if self.vault is not None:
            yield from self._each("sessions", f"*{_SEALED}", partial(self._session, self.vault))
            yield from self._each("ledger", f"*{_SEALED}", partial(self._sealed, self.vault))
            yield from self._each("spool", "*.y", partial(self._vector, self.vault))
            yield from self._missing_vectors(self.vault)
            folder = CheckpointFolder(self.root / "checkpoints", self.vault)
            yield from self._each("checkpoints", f"*{_SEALED}", folder.check)
            yield from self._ledgers()
        yield from self._each("models", "*.safetensors", partial(_model, self._layouts()))
        for pattern in ("*.f32", "*.staged"):
            yield from self._each("own", pattern, _own)
        yield from self._each("orders", "*.json", order_of)
        yield from self._each("", ROLLED_BACK, older_of)
        yield from self._each("reports", "*.json", check_report)
        yield from self._each("personal", "*", _personal)
        yield from self._approvals()
        yield from self._releases()

    # --- how ------------------------------------------------------------------------------

    def _part(self, name: str, work: Callable[[], object]) -> Iterator[Part]:
        """Yield how one thing is, and nothing if it is gone meanwhile."""
        try:
            work()
        except FileNotFoundError:
            return
        except FedError as failure:
            yield _bad(name, failure.detail)
        except OSError as failure:
            yield _bad(name, failure.strerror or str(failure))
        except (ValueError, LookupError, TypeError):  # of bytes that are no text, no number, ...
            yield _bad(name, "is not what the node wrote")
        else:
            yield Part(name)

    def _each(self, folder: str, pattern: str, work: Callable[[Path], object]) -> Iterator[Part]:
        for path in sorted((self.root / folder).glob(pattern)):
            if not path.name.endswith(files.TEMPORARY):
                name = str(path.relative_to(self.root))
                for part in self._part(name, partial(work, path)):
                    # It may have been put in order, or away, since.
                    yield from [part] if not part.trouble else self._part(name, partial(work, path))

    # --- what -----------------------------------------------------------------------------

    def _check_owner(self) -> None:
        found = state_folder.owner_of(self.root)
        if found != self.owner:
            what = "is not there" if found is None else f"says {found}; this node is {self.owner}"
            raise _damaged(what)

    def _key(self) -> Part:
        try:
            self.vault = Vault(load_key(self.key_file), OsEntropy())
        except FedError as failure:
            trouble = f"{failure.detail}; nothing that it sealed was looked at"
            return Part(self.key_file.name, trouble, _KEY_FIXES[failure.name])
        return Part(self.key_file.name)

    def _decision(self, path: Path) -> None:
        self.decisions.append(stored_decision(path))

    def _session(self, vault: Vault, path: Path) -> None:
        decode_state(open_session(path, path.name.removesuffix(_SEALED), vault).state)

    def _sealed(self, vault: Vault, path: Path) -> None:
        name = path.name.removesuffix(_SEALED)
        vault.open(f"ledger/{name}", path.read_bytes(), str(path))

    def _vector(self, vault: Vault, path: Path) -> None:
        """Compare with what the round's session promised; nothing did of a round that is over."""
        for current, upload in self._promised(vault):
            if current.hd.hex() == path.stem and digest_of(path) != upload.ydig:
                raise _damaged("is not the masked vector that was promised")

    def _missing_vectors(self, vault: Vault) -> Iterator[Part]:
        """Name the vectors that are still to be sent, or to be sent again, and are not there."""
        for current, _ in self._promised(vault):
            path = self.root / "spool" / f"{current.hd.hex()}.y"
            if current.phase not in (Phase.UPLOADING, Phase.UPLOADED) or path.exists():
                continue
            if any(one.hd == current.hd for one, _ in self._promised(vault)):  # not over meanwhile
                fix = "Look after the disk: this hospital leaves that round and is in the next."
                trouble = "is not there, and the open round's session promised it"
                yield Part(str(path.relative_to(self.root)), trouble, fix)

    def _promised(self, vault: Vault) -> Iterator[tuple[OpenRound, Upload]]:
        """Yield the open rounds whose masked vector was made."""
        for session in sorted((self.root / "sessions").glob(f"*{_SEALED}")):
            try:
                record = open_session(session, session.name.removesuffix(_SEALED), vault)
                live = decode_state(record.state).session
            except (FedError, OSError, ValueError, LookupError, TypeError):  # named by itself
                continue
            current = None if live is None else live.open
            if current is not None and current.upload is not None:
                yield current, current.upload

    def _ledgers(self) -> Iterator[Part]:
        config, folder = self.config, self.root / "ledger"
        anchors = None if config.ledger_anchor is None else config.path(config.ledger_anchor)
        reader = StoreReader(self.root, OsEntropy(), self.key_file)
        agreed = agreed_datasets(self.decisions)
        names = {path.name.removesuffix(".jsonl") for path in folder.glob("*.jsonl")}
        names |= {path.name.removesuffix(_HEAD) for path in folder.glob(f"*{_HEAD}")}
        for name in sorted(names | agreed):
            node = hospital_id(self.owner.federation, self.owner.id)
            anchor = anchor_of(anchors, node, name, reader)
            begun = name not in agreed
            yield from self._part(
                f"ledger/{name}.jsonl",
                partial(look, folder, node, name, reader, anchor, begun=begun),
            )

    def _layouts(self) -> list[ParameterSchema]:
        """Return the layout of every study's model that was ever offered here."""
        texts = {record.study for record in self.decisions if record.study and record.accepted}
        return [model_schema(study_from_canonical(text)) for text in sorted(texts)]

    def _approvals(self) -> Iterator[Part]:
        if not any((self.root / "approvals").glob("*")):
            return
        try:
            policy = load_policy(self.config.path(self.config.policy)).value
            found = _approval_folder(self.root, policy).read()
        except FedError as failure:
            yield _bad("approvals", failure.detail)
            return
        yield from (Part(f"approvals/{file_name(one)}") for one in found.statements)
        for one in found.rejected:
            path = self.root / "approvals" / one.file
            yield from self._part(f"approvals/{one.file}", partial(_rejected, path, one))

    def _releases(self) -> Iterator[Part]:
        anchors = [to_der(one) for one in load_certificates(self.config.path(self.config.tls.ca))]
        for folder in sorted((self.root / "releases").glob("*")):
            if folder.is_dir() and not folder.name.endswith(files.TEMPORARY):
                yield from self._release(folder, anchors)

    def _release(self, folder: Path, anchors: list[bytes]) -> Iterator[Part]:
        where = f"releases/{folder.name}"
        known: list[Manifest] = []

        def check() -> None:
            known.append(_manifest(folder, anchors, self.owner.federation))

        yield from self._part(f"{where}/{MANIFEST_FILE}", check)
        for entry in known[0].files if known else ():
            name = f"{where}/{entry.name}"
            yield from self._part(name, partial(_released, folder / entry.name, entry.sha256))


def _manifest(folder: Path, anchors: list[bytes], federation: str) -> Manifest:
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.from_json(raw)
        chain = [to_der(one) for one in load_certificates(folder / CHAIN_FILE)]
        signature = (folder / SIGNATURE_FILE).read_bytes()
    except FileNotFoundError as failure:
        raise _damaged(f"{failure.filename} is not there") from None
    at = manifest.signed_at
    verify_manifest(raw, signature, chain, ca_der=anchors, federation=federation, signed_at=at)
    return manifest


def _released(path: Path, sha256: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _damaged("is not there") from None
    if found != sha256:
        raise _damaged("is not the manifest's")


def _model(layouts: list[ParameterSchema], path: Path) -> None:
    if all((digest_of_file(path, one) or b"").hex() != path.stem for one in layouts):
        path.stat()  # not gone meanwhile
        raise _damaged("is no model, by its name, of a study that was accepted here")


def _own(path: Path) -> None:
    OwnTensors(path.parent, RunId(path.name.partition(".")[0])).check(path)


def _personal(folder: Path) -> None:
    if folder.is_dir():
        artefact.load(folder)


def _approval_folder(root: Path, policy: Policy) -> ApprovalFolder:
    federation = policy.federation.id
    return ApprovalFolder(root, policy.site, federation, policy.require.approval)


def _rejected(path: Path, one: Rejected) -> None:
    """Raise what is wrong; the word of a person who is not named any more is no damage."""
    named = one.refusal.name != "APPROVAL_PERSON"
    if named or file_name(parse(path.read_bytes()).statement) != path.name:
        raise PolicyRefusal(one.refusal.name, one.refusal.detail)
