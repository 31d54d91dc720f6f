"""The node's state directory: what it must still know after `kill -9`.

    owner.json               whose the directory is (`common.state_folder`)
    lock                     held while a process uses the directory
    node.key                 the sealing key (unless the site keeps it elsewhere)
    sessions/<task>.sealed   the protocol's state, sealed: the only file with secrets
    decisions/<run>.json     the hospital's word on a study, with the study itself
    models/<hex>.safetensors the last models received, by `model_sha256`
    spool/<hd>.y             the masked vector of the open round
    checkpoints/<hd>.sealed  how far its training is, sealed (`hospital_node.checkpoints`)
    ledger/                  privacy ledgers, their sealed heads, lists of patients
    approvals/               what people said to studies, signed (`hospital_node.approval`)
    own/                     tensors of its own, by run (`hospital_node.personal_state`)
    personal/<run>/          the hospital's own models (`hospital_node.personal`)
    releases/<run>/          verified releases;   reports/<run>.json  local metrics
    orders/                  what people ordered (`hospital_node.orders`); rolled-back.json
    last-contact.json        the coordinator's time of day (`hospital_node.last_contact`)
    status.json              what `fedcare node status` shows; never read back

Durable on return: sessions, decisions, own tensors, spooled vectors (`hospital_node.contribution`)
and releases. Not flushed: models, because each is a copy that is checked against its
digest before use and fetched again if it was lost, the last contact and the status. A record
that does not open stops the node with STATE_DAMAGED; nothing is made anew in its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from common import state_folder
from common.entropy import Entropy
from common.errors import InternalError, StateError
from common.ids import ConfigHash, HeaderDigest, RunId, Sha256
from common.messages import Objection
from common.secret import Secret
from common.state_folder import Owner
from hospital_node import files, last_contact
from hospital_node.checkpoints import CheckpointFolder
from hospital_node.personal_state import OwnTensors
from hospital_node.sealing import Vault, create_key, load_key

KEY_NAME: Final = "node.key"
ROLLED_BACK: Final = "rolled-back.json"
"""What the coordinator has seen of this node and its state does not know."""

MODELS_KEPT: Final = 2
"""Models kept per task: the current one and the one before."""

_PARTS: Final = (
    "sessions",
    "decisions",
    "models",
    "spool",
    "checkpoints",
    "releases",
    "reports",
    "ledger",
    "approvals",
    "own",
    "personal",
    "orders",
)
STATE_NAMES: Final = frozenset(
    {
        state_folder.MARKER, ROLLED_BACK, f"{ROLLED_BACK}{files.TEMPORARY}",
        KEY_NAME, f"{KEY_NAME}{files.TEMPORARY}", "lock", "health.sock",
        "status.json", f"status.json{files.TEMPORARY}",
        last_contact.NAME, f"{last_contact.NAME}{files.TEMPORARY}", *_PARTS,
    }
)  # fmt: skip
"""What a node keeps in its state directory."""

_LOCK_PAUSES_S: Final = (0.05, 0.05, 0.1)
"""A health check that looks whether a node runs holds the lock for an instant itself."""

_SEALED: Final = ".sealed"
_DECISION: Final = "fedcare.node-decision/2"
_WITHOUT_CHECKSUM: Final = "fedcare.node-decision/1"
"""What former versions wrote; read as it is."""

_REPORT: Final = "fedcare.site-report/2"
_OLD_REPORT: Final = "fedcare.site-report/1"

_RUN_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One task's protocol state (`encode_state`) and the run it serves."""

    run_id: RunId
    state: bytes

    def __repr__(self) -> str:
        return f"SessionRecord(run_id={self.run_id!r}, state of {len(self.state)} bytes)"


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """What the hospital said to one offer; `study` is the canonical JSON it judged."""

    run_id: RunId
    config_hash: ConfigHash
    study: bytes
    accepted: bool
    objections: tuple[Objection, ...]
    decided_at: int
    """Unix seconds."""
    ended: str = ""
    """The run's final state, once it has one."""


class NodeStore:
    """One process's hold on a state directory; a context manager. Blocking calls."""

    def __init__(self, root: Path, vault: Vault, lock: int) -> None:
        self.root = root
        self.checkpoints = CheckpointFolder(root / "checkpoints", vault)
        self._vault = vault
        self._lock = lock

    # --- opening ----------------------------------------------------------------------

    @classmethod
    def open(cls, root: Path, entropy: Entropy, key_file: Path | None = None) -> NodeStore:
        """Lock and check a state directory; make it at the first start.

        `key_file` names a sealing key kept elsewhere; it must exist.

        Raises:
            StateError: STATE_LOCKED, another process holds it; STATE_DAMAGED, a sealed
                record does not open or its key is gone; STATE_ACCESS; DISK.
            ConfigError, IdentityError: see `hospital_node.sealing.load_key`.
        """
        state_folder.make(root)
        lock = _lock(root)
        try:
            for part in _PARTS:
                files.make_directory(root / part)
                # A broken download goes on where it stopped; a command may be writing.
                if part not in ("models", "approvals"):
                    files.sweep(root / part)
            files.sweep(root)
            state_folder.take_over(root, [root / part for part in _PARTS])
            store = cls(root, Vault(_key(root, key_file, entropy), entropy), lock)
            for task in store.tasks():
                store.load_session(task)
        except BaseException:
            os.close(lock)
            raise
        return store

    def close(self) -> None:
        """Release the directory; may be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sessions: sealed, the only secrets on disk -------------------------------------

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks with stored state, sorted."""
        stored = (self.root / "sessions").glob(f"*{_SEALED}")
        return tuple(sorted(path.name.removesuffix(_SEALED) for path in stored))

    def save_session(self, task: str, record: SessionRecord) -> None:
        """Make a task's state durable, in place of its former one.

        Raises:
            StateError: DISK; the former state stands.
        """
        run = record.run_id.encode()
        plain = len(run).to_bytes(_RUN_BYTES, "big") + run + record.state
        files.replace(self._session(task), self._vault.seal(f"session/{task}", plain))

    def load_session(self, task: str) -> SessionRecord | None:
        """Return a task's state, None if it has none.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        path = self._session(task)
        return open_session(path, task, self._vault) if path.exists() else None

    def _session(self, task: str) -> Path:
        return self.root / "sessions" / f"{task}{_SEALED}"

    # --- what else is sealed: heads of ledgers, lists of patients ---------------------------

    @property
    def ledgers(self) -> Path:
        """Return the folder of the privacy ledgers (`hospital_node.ledger`)."""
        return self.root / "ledger"

    def save_sealed(self, name: str, plain: bytes) -> None:
        """Make a small sealed record durable, in place of its former one.

        Raises:
            StateError: DISK; the former record stands.
        """
        sealed = self._vault.seal(f"ledger/{name}", plain)
        files.replace(self.ledgers / f"{name}{_SEALED}", sealed)

    def load_sealed(self, name: str) -> bytes | None:
        """Return a small sealed record, None if there is none.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        return _load_sealed(self.ledgers, self._vault, name)

    def tag(self, purpose: str, content: bytes) -> bytes:
        """Return 32 bytes that say that who holds this directory's sealing key wrote `content`."""
        return self._vault.tag(purpose, content)

    # --- decisions ----------------------------------------------------------------------

    def save_decision(self, record: DecisionRecord) -> None:
        """Make the hospital's word on a run durable.

        Raises:
            StateError: DISK.
        """
        value: dict[str, object] = {
            "schema": _DECISION,
            "run_id": record.run_id,
            "config_hash": record.config_hash.hex(),
            "study": record.study.decode("ascii"),
            "accepted": record.accepted,
            "objections": [[o.code, o.detail] for o in record.objections],
            "decided_at": record.decided_at,
            "ended": record.ended,
        }
        value["sha256"] = _checksum(value)
        files.replace(self.root / "decisions" / f"{record.run_id}.json", _json(value))

    def decisions(self) -> tuple[DecisionRecord, ...]:
        """Return every decision, oldest first.

        Raises:
            StateError: STATE_DAMAGED, naming the file.
        """
        return stored_decisions(self.root)

    # --- models and masked vectors --------------------------------------------------------

    def model_path(self, model: Sha256) -> Path:
        """Where a received model lies, or would."""
        return self.root / "models" / f"{model.hex()}.safetensors"

    def spool_path(self, hd: HeaderDigest) -> Path:
        """Where the masked vector of a round lies, or would."""
        return self.root / "spool" / f"{hd.hex()}.y"

    def drop_spool(self, hd: HeaderDigest) -> None:
        """Remove a round's masked vector if there is one (it is not secret).

        Raises:
            StateError: DISK.
        """
        files.remove(self.spool_path(hd))

    def keep_spools(self, rounds: frozenset[HeaderDigest]) -> None:
        """Remove every masked vector of a round that is not open any more.

        Raises:
            StateError: DISK.
        """
        names = {self.spool_path(hd).name for hd in rounds}
        for path in (self.root / "spool").iterdir():
            if path.name not in names:
                files.remove(path)

    def drop_models(self, models: tuple[Sha256, ...]) -> None:
        """Remove models that no task needs any more.

        Raises:
            StateError: DISK.
        """
        for model in models:
            files.remove(self.model_path(model))

    def models(self) -> tuple[Sha256, ...]:
        """Return the models on disk, oldest first; nothing is known about their contents."""
        paths = (self.root / "models").glob("*.safetensors")
        found = sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
        return tuple(Sha256(bytes.fromhex(path.stem)) for path in found)

    def partial_models(self) -> tuple[Sha256, ...]:
        """Return the models of which a part is on disk, oldest first."""
        suffix = f".safetensors{files.TEMPORARY}"
        paths = (self.root / "models").glob(f"*{suffix}")
        found = sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))
        return tuple(Sha256(bytes.fromhex(path.name.removesuffix(suffix))) for path in found)

    def drop_partial_models(self, models: tuple[Sha256, ...]) -> None:
        """Remove what came of models that nobody fetches any more.

        Raises:
            StateError: DISK.
        """
        for model in models:
            path = self.model_path(model)
            files.remove(path.with_name(path.name + files.TEMPORARY))

    # --- tensors of the hospital's own --------------------------------------------------------

    def own(self, run_id: RunId) -> OwnTensors:
        """Return what a run keeps at this hospital from round to round."""
        return OwnTensors(self.root / "own", run_id)

    # --- releases, reports, status --------------------------------------------------------

    def release_directory(self, run_id: RunId) -> Path:
        """Where a run's verified release lies."""
        return self.root / "releases" / run_id

    def personal_directory(self, run_id: RunId) -> Path:
        """Where the hospital's own model of a run lies, or would."""
        return self.root / "personal" / run_id

    def save_report(self, run_id: RunId, report: Mapping[str, object], page: str) -> None:
        """Keep a run's local metrics, and their page if it has one; they never leave the hospital.

        Raises:
            StateError: DISK.
        """
        path = self.root / "reports" / f"{run_id}.json"
        value: dict[str, object] = {"schema": _REPORT, **report}
        if page:
            files.replace(path.with_suffix(".html"), page.encode())
            value["page_sha256"] = hashlib.sha256(page.encode()).hexdigest()
        files.replace(path, _json({**value, "sha256": _checksum(value)}))

    def write_status(self, status: Mapping[str, object]) -> None:
        """Replace the status file, atomically but without waiting for the disk.

        Raises:
            StateError: DISK.
        """
        path = self.root / "status.json"
        temporary = path.with_name(path.name + files.TEMPORARY)
        with files.disk_errors(path):
            temporary.write_bytes(_json(status))
            temporary.replace(path)


def check_report(path: Path) -> None:
    """Hold a run's local metrics and their page against the checksums in them.

    Raises:
        StateError: STATE_DAMAGED, naming what is not what the node wrote.
        OSError: a file cannot be read.
    """
    try:
        tree = json.loads(path.read_bytes())
        digest = tree.pop("sha256", None)
        # A former version wrote none.
        good = digest == (None if tree["schema"] == _OLD_REPORT else _checksum(tree))
        page = tree.get("page_sha256")
    except (ValueError, KeyError, AttributeError, RecursionError):
        good, page = False, None
    if not good:
        raise StateError("STATE_DAMAGED", f"{path} is not what the node wrote")
    html = path.with_suffix(".html")
    if page is not None and hashlib.sha256(html.read_bytes()).hexdigest() != page:
        raise StateError("STATE_DAMAGED", f"{html} is not what the node wrote")


def stored_decisions(root: Path) -> tuple[DecisionRecord, ...]:
    """Return every decision in a state directory, oldest first; for commands too, beside a node.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    found = (stored_decision(path) for path in (root / "decisions").glob("*.json"))
    return tuple(sorted(found, key=lambda record: (record.decided_at, record.run_id)))


class StoreReader:
    """The ledgers of a state directory that a serving node may hold; writes nothing.

    Raises:
        ConfigError, IdentityError, StateError: see `hospital_node.sealing.load_key`.
    """

    def __init__(self, root: Path, entropy: Entropy, key_file: Path | None = None) -> None:
        self.ledgers = root / "ledger"
        self._root = root
        self._vault = Vault(load_key(key_file or root / KEY_NAME), entropy)

    def load_sealed(self, name: str) -> bytes | None:
        """See `NodeStore`."""
        return _load_sealed(self.ledgers, self._vault, name)

    def save_sealed(self, name: str, plain: bytes) -> None:
        """Refuse: a reader is not who writes here."""
        raise InternalError(f"{name}: {len(plain)} bytes for a directory that is only read")

    def tag(self, purpose: str, content: bytes) -> bytes:
        """See `NodeStore`."""
        return self._vault.tag(purpose, content)

    def decisions(self) -> tuple[DecisionRecord, ...]:
        """See `NodeStore`."""
        return stored_decisions(self._root)


def open_own(root: Path, owner: Owner, entropy: Entropy, key_file: Path | None = None) -> NodeStore:
    """Open a state directory that is `owner`'s, or has been nobody's; see `NodeStore.open`.

    Raises:
        StateError: STATE_FOREIGN, it is another's: nothing in it was opened or changed.
        FedError: as `NodeStore.open`.
    """
    state_folder.check(root, owner, STATE_NAMES, _former_owner)
    store = NodeStore.open(root, entropy, key_file)
    try:
        state_folder.mark(root, owner)
    except BaseException:
        store.close()
        raise
    return store


def open_session(path: Path, task: str, vault: Vault) -> SessionRecord:
    """Return a task's state.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    plain = vault.open(f"session/{task}", _read(path) or b"", str(path))
    end = _RUN_BYTES + int.from_bytes(plain[:_RUN_BYTES], "big")
    return SessionRecord(RunId(plain[_RUN_BYTES:end].decode()), plain[end:])


def is_locked(root: Path) -> bool:
    """Whether a process uses the state directory just now."""
    try:
        handle = os.open(root / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)


def _lock(root: Path) -> int:
    with files.disk_errors(root / "lock"):
        handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.FILE_MODE)
    for pause in (*_LOCK_PAUSES_S, None):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if pause is not None:
                time.sleep(pause)
        else:
            return handle
    os.close(handle)
    raise StateError("STATE_LOCKED", f"{root} is in use by another node process")


def _former_owner(root: Path) -> Owner | None:
    """Say whose the state of a version before `owner.json` is, by its status file.

    Raises:
        StateError: STATE_FOREIGN, it holds a hospital's word or work, and nothing says whose.
    """
    try:
        status = json.loads((root / "status.json").read_bytes())
        return Owner("hospital", str(status["federation"]), str(status["site"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    for part in ("sessions", "decisions", "releases", "reports"):
        if (root / part).is_dir() and any((root / part).iterdir()):
            raise StateError(
                "STATE_FOREIGN",
                f"{root} holds {part} of a node, and neither {state_folder.MARKER} nor"
                " status.json says of which",
            )
    return None


def _key(root: Path, key_file: Path | None, entropy: Entropy) -> Secret:
    if key_file is not None:
        return load_key(key_file)
    path = root / KEY_NAME
    if path.exists():
        return load_key(path)
    if any(root.glob(f"*/*{_SEALED}")):
        raise StateError(
            "STATE_DAMAGED", f"{path} is gone, and the sealed records of {root} need it"
        )
    return create_key(path, entropy)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise StateError("STATE_DAMAGED", f"{path}: {failure.strerror}") from failure


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _load_sealed(folder: Path, vault: Vault, name: str) -> bytes | None:
    path = folder / f"{name}{_SEALED}"
    sealed = _read(path)
    return None if sealed is None else vault.open(f"ledger/{name}", sealed, str(path))


def _checksum(tree: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode("ascii")).hexdigest()


def stored_decision(path: Path) -> DecisionRecord:
    """Return the decision in a file.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    try:
        tree = json.loads(path.read_bytes())
        checksum = tree.pop("sha256", None)
        wanted = None if tree["schema"] == _WITHOUT_CHECKSUM else _checksum(tree)
        if checksum != wanted:
            raise ValueError("it is not what the node wrote")  # noqa: TRY301
        known = tree["schema"] in (_DECISION, _WITHOUT_CHECKSUM)
        if not known or tree["run_id"] != path.stem:
            raise ValueError("it is of another schema or run")  # noqa: TRY301
        return DecisionRecord(
            run_id=RunId(tree["run_id"]),
            config_hash=ConfigHash(bytes.fromhex(tree["config_hash"])),
            study=tree["study"].encode("ascii"),
            accepted=tree["accepted"] is True,
            objections=tuple(
                Objection(str(code), str(detail)) for code, detail in tree["objections"]
            ),
            decided_at=int(tree["decided_at"]),
            ended=str(tree["ended"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise StateError("STATE_DAMAGED", f"{path} is not a decision: {failure}") from failure
