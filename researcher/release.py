"""A released model on disk: fetched whole, verified against the pinned CA, shown.

    DIR/manifest.json  manifest.sig  chain.pem      what the coordinator signed
    DIR/model.safetensors  study.json  preprocessing.json

`verify` believes nothing but the CA it is given. Its steps, in order:

1. the manifest is well-formed and its chain of rounds unbroken;
2. its signature is a coordinator's of the CA, whose certificate was valid when it signed;
3. each file has the size and SHA-256 that the manifest states;
4. the study is canonical and its hash the one that every hospital accepted;
5. the model has the study's layout, finite values, and the protocol's `model_sha256`; of a
   statistics study: `statistics.json` is well-formed, of this study, and `model_sha256` its
   digest;
6. the constants of preprocessing are those inside the model;
7. the last training round of the chain made this model, every round had enough sites, and
   what the manifest says of each hospital's part is what the chain says.

`pull` writes into a folder beside the wanted one, goes on where an earlier attempt broke
off, verifies, and renames: `DIR` appears complete and verified, or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from common.certificates import to_der, verify_manifest
from common.errors import ConfigError, FedError, StateError
from common.identity import load_certificates
from common.ids import Sha256
from common.layouts import has_constants, model_schema, split_model
from common.manifest import (
    CHAIN_FILE,
    COEFFICIENTS_FILE,
    EVALUATION_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PREPROCESSING_FILE,
    SIGNATURE_FILE,
    STATISTICS_FILE,
    STUDY_FILE,
    FileEntry,
    Manifest,
    PrivacyEntry,
)
from common.study import Study, config_hash, study_from_canonical
from researcher.coefficients import read_coefficients
from researcher.evaluation_file import read_evaluation
from researcher.figures import listed

if TYPE_CHECKING:
    from common.messages import DownloadChunk, ReleaseNotice
    from common.statistics_file import StatisticsFile
    from researcher.comparison import Weights

_MAX_SMALL: Final = 1 << 20
MAX_STATISTICS: Final = 4 << 20
_PIECE: Final = 1 << 20

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class VerifiedModel:
    """A release whose every part was checked; `signer` is the coordinator's whole name."""

    folder: Path
    manifest: Manifest
    study: Study
    signer: str


class Source(Protocol):
    """Where a release comes from; `researcher.client.Client` is one."""

    async def release(self, run_id: str) -> ReleaseNotice:
        """Return the signed manifest of a run's model."""
        ...

    def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
        """Yield a stored object's bytes from an offset on."""
        ...


# --- verifying --------------------------------------------------------------------------------


def verify(folder: Path, ca: Path) -> VerifiedModel:
    """Check a release against a pinned CA; see the module for the steps.

    Raises:
        StateError: MODEL_INVALID or MANIFEST_SIGNATURE, saying what does not fit.
        FedError: FILE_MISSING; CERT_INVALID, `ca` is not a certificate.
    """
    anchors = tuple(to_der(certificate) for certificate in load_certificates(ca))
    if not folder.is_dir():
        raise ConfigError("FILE_MISSING", f"{folder} is not a folder")
    raw = _small(folder / MANIFEST_FILE)
    manifest = Manifest.from_json(raw)
    signer = verify_manifest(
        raw,
        _small(folder / SIGNATURE_FILE),
        _chain(folder / CHAIN_FILE),
        ca_der=anchors,
        federation=manifest.federation,
        signed_at=manifest.signed_at,
    )
    for entry in manifest.files:
        _check_file(folder / entry.name, entry)
    listed_files = {entry.name for entry in manifest.files}
    for name in {COEFFICIENTS_FILE, EVALUATION_FILE} - listed_files:
        if (folder / name).exists():
            raise StateError("MODEL_INVALID", f"{folder / name} is not one of the manifest's files")
    study = _check_study(folder, manifest)
    if study.kind == "statistics":
        _check_statistics(folder, manifest, study)
    else:
        _check_model(folder, manifest, study)
    _check_rounds(manifest)
    read_coefficients(folder)
    read_evaluation(folder)
    return VerifiedModel(folder, manifest, study, signer.uri)


def _chain(path: Path) -> list[bytes]:
    _small(path)
    try:
        return [to_der(certificate) for certificate in load_certificates(path)]
    except FedError as error:
        raise StateError("MANIFEST_SIGNATURE", error.detail) from None


def _small(path: Path, most: int = _MAX_SMALL) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{path}: {error.strerror}") from None
    if len(data) > most:
        raise StateError("MODEL_INVALID", f"{path} is over {most} bytes long")
    return data


def _check_file(path: Path, entry: FileEntry) -> None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise StateError(
                "MODEL_INVALID", f"{path} has {size} bytes; the manifest says {entry.size}"
            )
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{path}: {error.strerror}") from None
    if found != entry.sha256:
        raise StateError("MODEL_INVALID", f"{path} was altered: its SHA-256 is not the manifest's")


def _check_study(folder: Path, manifest: Manifest) -> Study:
    path = folder / STUDY_FILE
    manifest.file(STUDY_FILE)
    try:
        study = study_from_canonical(_small(path), str(path))
    except ConfigError as error:
        raise StateError("MODEL_INVALID", error.detail) from None
    stated = manifest.study
    if config_hash(study).hex() != stated.config_hash:
        raise StateError("MODEL_INVALID", f"{path} is not the study that the manifest names")
    if (stated.id, stated.title, stated.owner) != (study.id, study.title, study.owner.organisation):
        raise StateError("MODEL_INVALID", f"{folder / MANIFEST_FILE} misnames its study")
    return study


def _check_model(folder: Path, manifest: Manifest, study: Study) -> None:
    from hospital_node.receive import digest_of_file

    path = folder / MODEL_FILE
    schema = model_schema(study)
    manifest.file(MODEL_FILE)
    if schema.layout_sha256.hex() != manifest.layout_sha256:
        raise StateError("MODEL_INVALID", f"{path}: the layout is not the one the study implies")
    digest = digest_of_file(path, schema)
    if digest is None:
        raise StateError("MODEL_INVALID", f"{path} is not of the study's layout, or not finite")
    if digest.hex() != manifest.model_sha256:
        raise StateError("MODEL_INVALID", f"{path} is not the model that the manifest names")
    if has_constants(study):
        manifest.file(PREPROCESSING_FILE)
        constants = split_model(study, read_weights(folder, study))[0]
        if constants.to_json().encode() != _small(folder / PREPROCESSING_FILE):
            raise StateError(
                "MODEL_INVALID", f"{folder / PREPROCESSING_FILE} differs from the model's constants"
            )


def _check_statistics(folder: Path, manifest: Manifest, study: Study) -> None:
    from common.layouts import result_schema

    entry = manifest.file(STATISTICS_FILE)
    path = folder / STATISTICS_FILE
    if result_schema(study).layout_sha256.hex() != manifest.layout_sha256:
        raise StateError("MODEL_INVALID", f"{path}: the layout is not the one the study implies")
    if entry.sha256 != manifest.model_sha256:
        raise StateError("MODEL_INVALID", f"{path} is not the file that the rounds end in")
    found = read_statistics(folder)
    if (found.study, found.config_hash) != (study.id, manifest.study.config_hash):
        raise StateError("MODEL_INVALID", f"{path} is of another study")


def read_statistics(folder: Path) -> StatisticsFile:
    """Return what a statistics study published, from a folder whose files were checked.

    Raises:
        StateError: MODEL_INVALID. ConfigError: FILE_MISSING.
    """
    from common.statistics_file import StatisticsFile

    return StatisticsFile.from_json(_small(folder / STATISTICS_FILE, most=MAX_STATISTICS))


def _check_rounds(manifest: Manifest) -> None:
    made = [entry.model_sha256 for entry in manifest.rounds if entry.model_sha256]
    if not made or made[-1] != manifest.model_sha256:
        raise StateError("MODEL_INVALID", "the chain of rounds does not end in this model")
    took_part = {site for entry in manifest.rounds for site in entry.survivors}
    if took_part != set(manifest.sites):
        raise StateError("MODEL_INVALID", "the manifest's sites are not those of its rounds")
    for entry in manifest.rounds:
        if len(entry.survivors) < manifest.privacy.min_sites:
            raise StateError(
                "MODEL_INVALID", f"round {entry.position} had fewer sites than the study allows"
            )

    _check_participation(manifest)


def _check_participation(manifest: Manifest) -> None:
    """Hold each hospital's rounds and withdrawal against the chain of rounds.

    A release of a version that did not write them down says nothing about them.
    """
    stated = manifest.participation
    if not stated:
        return
    if tuple(entry.site for entry in stated) != manifest.sites:
        raise StateError("MODEL_INVALID", "the manifest leaves a hospital's part out")
    end = max(entry.position for entry in manifest.rounds)
    for entry in stated:
        part = [one.position for one in manifest.rounds if entry.site in one.survivors]
        if (part[0], part[-1], len(part)) != (entry.first, entry.last, entry.rounds):
            raise StateError(
                "MODEL_INVALID", f"the rounds of {entry.site} are not those of the chain"
            )
        left = entry.withdrawn
        if left is not None and (left.after_round > end or left.at > manifest.signed_at):
            raise StateError("MODEL_INVALID", f"the withdrawal of {entry.site} is out of order")


def read_weights(folder: Path, study: Study) -> Weights:
    """Return the whole flat model, constants first, of a folder whose model was checked.

    Raises:
        StateError: MODEL_INVALID, the file is not of the study's layout.
    """
    from hospital_node.receive import read_model

    schema = model_schema(study)
    return schema.flat(read_model(folder / MODEL_FILE, schema))


# --- pulling ----------------------------------------------------------------------------------


async def pull(client: Source, run_id: str, out: Path, ca: Path) -> VerifiedModel:
    """Fetch a run's release into `out`, which must be absent or empty, and verify it.

    Raises:
        ConfigError: OUTPUT_EXISTS. StateError: DISK, MODEL_INVALID, MANIFEST_SIGNATURE.
        FedError: as `researcher.client.Client`.
    """
    out = require_empty(out)
    notice = await client.release(run_id)
    manifest = Manifest.from_json(notice.manifest)
    part = out.with_name(f".{out.name}.{manifest.model_sha256[:16]}.part")
    with _disk(part):
        part.mkdir(parents=True, exist_ok=True)
        _write_signed(part, notice)
    for entry in manifest.files:
        await _fetch(client, part / entry.name, entry)
    try:
        verified = verify(part, ca)
    except FedError:
        # What does not verify is of no use for a later attempt.
        shutil.rmtree(part, ignore_errors=True)
        raise
    with _disk(out):
        _sync(part)
        part.rename(out)  # replaces an empty folder
        _sync(out.parent)
    return VerifiedModel(out, verified.manifest, verified.study, verified.signer)


async def read_released(
    client: Source, run_id: str, ca: Path, read: Callable[[Path], Found]
) -> Found:
    """Fetch a run's release, verify it, and return what `read` finds in it; keep nothing.

    Raises:
        FedError: as `pull` and `read`.
    """
    with tempfile.TemporaryDirectory(prefix="fedcare-run-") as folder:
        release = await pull(client, run_id, Path(folder) / "release", ca)
        return read(release.folder)


def require_empty(folder: Path) -> Path:
    """Return the absolute path of a folder that is absent or empty.

    Raises:
        ConfigError: OUTPUT_EXISTS; FILE_MISSING, it cannot be read.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError("OUTPUT_EXISTS", f"{folder} already holds something")
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{folder}: {error.strerror}") from None
    return folder.absolute()


def _write_signed(part: Path, notice: ReleaseNotice) -> None:
    from common.certificates import parse_certificate
    from common.identity import to_pem

    chain = b"".join(to_pem(parse_certificate(der)) for der in notice.cert_chain)
    for name, data in (
        (MANIFEST_FILE, notice.manifest),
        (SIGNATURE_FILE, notice.signature),
        (CHAIN_FILE, chain),
    ):
        with (part / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


async def _fetch(client: Source, path: Path, entry: FileEntry) -> None:
    """Download one file of a release, going on behind what an earlier attempt left."""
    if _complete(path, entry):
        return
    part = path.with_name(f"{path.name}.{entry.sha256[:16]}.part")
    with _disk(part), part.open("ab") as file:
        if file.tell() > entry.size:
            file.truncate(0)
        offset = file.tell()
        if offset < entry.size:
            address = Sha256(bytes.fromhex(entry.sha256))
            async for piece in client.download(address, offset):
                if piece.total != entry.size:
                    raise StateError(
                        "MODEL_INVALID",
                        f"{entry.name} has {piece.total} bytes; the manifest says {entry.size}",
                    )
                file.write(piece.data)
        file.flush()
        os.fsync(file.fileno())
    if not _complete(part, entry):
        part.unlink(missing_ok=True)
        raise StateError("MODEL_INVALID", f"{entry.name} came with another SHA-256 than stated")
    with _disk(path):
        part.rename(path)


def _complete(path: Path, entry: FileEntry) -> bool:
    try:
        _check_file(path, entry)
    except FedError:
        return False
    return True


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError("DISK", f"{path}: {error.strerror}") from None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- showing ----------------------------------------------------------------------------------


def card_data(manifest: Manifest) -> dict[str, object]:
    """Return a manifest for an envelope, without the rounds' digests."""
    return {
        "run_id": manifest.run,
        "federation": manifest.federation,
        "study": manifest.study.model_dump(mode="json"),
        "sites": list(manifest.sites),
        "participation": [entry.model_dump(mode="json") for entry in manifest.participation],
        "rounds": len(manifest.rounds),
        "model_sha256": manifest.model_sha256,
        "signed_at": manifest.signed_at,
        "metrics": dict(manifest.metrics),
        "privacy": manifest.privacy.model_dump(mode="json"),
        "files": [entry.model_dump(mode="json") for entry in manifest.files],
        "software": manifest.software,
    }


def card_text(manifest: Manifest, study: Study) -> str:
    """Return a model card for people."""
    from common.tables import table
    from common.text import escape

    signed = _moment(manifest.signed_at)
    files = [(entry.name, str(entry.size), entry.sha256) for entry in manifest.files]
    figures = listed(dict(sorted(manifest.metrics.items())))
    source = "from a noised sum" if "noise_sd" in manifest.metrics else "from masked sums"
    features = ", ".join(escape(feature.name) for feature in study.features)
    privacy = manifest.privacy
    how = f"secure aggregation with suite {privacy.suite}, up to {privacy.colluders} colluding"
    lines = [
        f"model      {escape(study.title) or study.id}",
        f"study      {study.id}, hash sha256:{manifest.study.config_hash}",
        f"owner      {escape(study.owner.name)}, {escape(study.owner.organisation)}",
        f"purpose    {escape(study.purpose)}",
        f"kind       {_kind(study)}",
        f"features   {features}",
        f"hospitals  {', '.join(manifest.sites)} ({escape(manifest.federation)})",
        f"rounds     {len(manifest.rounds)}, run {escape(manifest.run)}",
        *_part_lines(manifest),
        f"signed     {signed}, software {escape(manifest.software)}",
        f"pooled     {escape(figures) or 'none'} ({source})",
        f"privacy    {how}; differential privacy: {_promise(privacy)}",
        f"           {escape(privacy.statement)}",
        f"sha256     {manifest.model_sha256}",
        "",
        table(("file", "bytes", "sha256"), files, right=frozenset({1})),
    ]
    return "\n".join(lines)


def _kind(study: Study) -> str:
    if study.kind == "statistics":
        return "statistics, no model"
    return f"{study.model.kind}, target {study.target.type}"


def _promise(privacy: PrivacyEntry) -> str:
    if privacy.epsilon is None or privacy.delta is None:
        return privacy.dp
    return f"{privacy.dp}, epsilon {privacy.epsilon:g} at delta {privacy.delta:g}"


def _part_lines(manifest: Manifest) -> list[str]:
    """Return a line for each hospital that was not in every round, or withdrew."""
    lines = []
    for entry in manifest.participation:
        left = entry.withdrawn
        if entry.rounds == len(manifest.rounds) and left is None:
            continue
        words = f"{entry.site} in {entry.rounds} of them, {entry.first} to {entry.last}"
        if left is not None:
            words += f"; WITHDRAWN after round {left.after_round} on {_moment(left.at)}"
        lines.append(f"           {words}")
    return lines


def _moment(unix: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def read_card(folder: Path) -> tuple[Manifest, Study]:
    """Return manifest and study of a folder, without believing them.

    Raises:
        FedError: FILE_MISSING; StateError MODEL_INVALID.
    """
    manifest = Manifest.from_json(_small(folder / MANIFEST_FILE))
    return manifest, _check_study(folder, manifest)
