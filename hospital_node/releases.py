"""A released model comes to the hospital: verified, kept, tried on its own test rows.

Nothing is kept that did not verify: the manifest's signature by a coordinator of the
pinned CA, then the model's digest. The folder appears under its final name only when
every file in it is on the disk, so a crash leaves a whole release or none; the receipt
goes out last. What the model scores here is written to `reports/` and stays there.

    releases/<run>/manifest.json  manifest.sig  chain.pem  model.safetensors  ...
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.certificates import verify_manifest, verify_study
from common.errors import FedError, StateError
from common.events import Event
from common.ids import ConfigHash, RunId, Sha256
from common.logs import EventLog
from common.manifest import (
    CHAIN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    STATISTICS_FILE,
    STUDY_FILE,
    FileEntry,
    Manifest,
)
from common.messages import ReleaseNotice, ReleaseReceipt, StudyOffer
from common.secagg.header import RoundKind
from hospital_node import files, transfer
from hospital_node.receive import ModelReceiver, digest_of_file
from hospital_node.site_report import page
from hospital_node.store import NodeStore
from hospital_node.work import Work
from hospital_node.worker import Worker

MAX_SMALL_BYTES: Final = 4 << 20
"""Size cap of a release's files beside the model."""


@dataclass(frozen=True, slots=True)
class ReleaseTrust:
    """The CA that others' signatures have to lead to, and the federation they are of."""

    ca_der: tuple[bytes, ...]
    federation: str

    def verify(self, notice: ReleaseNotice) -> Manifest:
        """Return the manifest of a notice whose signature is a coordinator's.

        The bytes are parsed before the signature is checked, because the date at which
        the signer is judged stands in them; nothing is done with them before it is.

        Raises:
            StateError: MODEL_INVALID, no manifest or of another run or federation;
                MANIFEST_SIGNATURE.
        """
        manifest = Manifest.from_json(notice.manifest)
        verify_manifest(
            notice.manifest,
            notice.signature,
            notice.cert_chain,
            ca_der=self.ca_der,
            federation=self.federation,
            signed_at=manifest.signed_at,
        )
        if (manifest.run, manifest.federation) != (notice.run_id, self.federation):
            raise StateError("MODEL_INVALID", f"the manifest is not that of {notice.run_id}")
        return manifest

    def verify_owner(self, offer: StudyOffer, now_unix: int) -> None:
        """Return if the owner that an offered study names has signed it.

        Raises:
            Refusal: OWNER_SIGNATURE.
            ValueError, KeyError, TypeError: the study names no owner.
        """
        verify_study(
            offer.config_hash,
            json.loads(offer.study)["owner"]["organisation"],
            offer.signature,
            offer.cert_chain,
            ca_der=self.ca_der,
            federation=self.federation,
            now_unix=now_unix,
        )


def _check_counted(manifest: Manifest, work: Work) -> None:
    """Refuse a file of counts for a study with a model, or one that the chain does not name.

    Raises:
        StateError: MODEL_INVALID.
    """
    counts_only = all(one.kind is RoundKind.STATISTICS for one in work.terms.expect.rounds)
    files = {*(entry.name for entry in manifest.files)}
    named = manifest.file(STATISTICS_FILE).sha256 == manifest.model_sha256
    if not counts_only or not named or files != {STATISTICS_FILE, STUDY_FILE}:
        raise StateError(
            "MODEL_INVALID", f"the release of {manifest.run} is not what its study publishes"
        )


OpenWork = Callable[[], Awaitable[Work]]


class ReleaseKeeper:
    """See the module."""

    def __init__(
        self,
        store: NodeStore,
        trust: ReleaseTrust,
        road: transfer.Road,
        worker: Worker,
        log: EventLog,
    ) -> None:
        self._store = store
        self._trust = trust
        self._road = road
        self._worker = worker
        self._log = log

    async def accept(
        self, notice: ReleaseNotice, config_hash: ConfigHash, open_work: OpenWork
    ) -> ReleaseReceipt:
        """Verify and keep a release, report on it, and return the receipt.

        The same release again gets the same receipt.

        Raises:
            StateError: MANIFEST_SIGNATURE, MODEL_INVALID (not of the run's study), DISK.
            Refusal: MODEL_HASH or MODEL_RANGE, the model is not the manifest's.
        """
        receipt = ReleaseReceipt(notice.run_id, Sha256(hashlib.sha256(notice.manifest).digest()))
        folder = self._store.release_directory(notice.run_id)
        if self._kept(folder, notice.manifest):
            return receipt
        manifest = self._trust.verify(notice)
        if manifest.study.config_hash != config_hash.hex():
            raise StateError("MODEL_INVALID", f"the release of {notice.run_id} is of another study")
        names = [entry.name for entry in manifest.files]
        result = STATISTICS_FILE if STATISTICS_FILE in names else MODEL_FILE
        if not {*names} >= {result, STUDY_FILE} or len({*names}) < len(names):
            raise StateError(
                "MODEL_INVALID", f"the release of {notice.run_id} lacks a file or has one twice"
            )
        work = await open_work()
        if result == STATISTICS_FILE:
            _check_counted(manifest, work)
        await self._keep(folder, notice, manifest, work)
        if result == MODEL_FILE:
            await self._report(notice.run_id, folder / MODEL_FILE, manifest, work)
        self._log.bind(run=notice.run_id).info(
            Event.MODEL_ACCEPTED, model_sha256=manifest.model_sha256
        )
        return receipt

    def _kept(self, folder: Path, manifest: bytes) -> bool:
        try:
            kept = (folder / MANIFEST_FILE).read_bytes()
        except OSError:
            return False
        if kept != manifest:
            raise StateError("MODEL_INVALID", f"{folder.name}: another release is kept already")
        return True

    async def _keep(
        self, folder: Path, notice: ReleaseNotice, manifest: Manifest, work: Work
    ) -> None:
        part = folder.with_name(folder.name + files.TEMPORARY)
        with files.disk_errors(part):
            if part.exists():
                shutil.rmtree(part)
        files.make_directory(part)
        try:
            await self._fill(part, notice, manifest, work)
        except BaseException:  # also when the node is told to stop
            shutil.rmtree(part, ignore_errors=True)
            raise
        with files.disk_errors(folder):
            part.rename(folder)
        files.sync_directory(folder.parent)

    async def _fill(
        self, part: Path, notice: ReleaseNotice, manifest: Manifest, work: Work
    ) -> None:
        for entry in manifest.files:
            if entry.name == MODEL_FILE:
                await self._model(part / MODEL_FILE, manifest, entry, work)
            else:
                files.replace(part / entry.name, await self._small(entry))
        files.replace(part / MANIFEST_FILE, notice.manifest)
        files.replace(part / SIGNATURE_FILE, notice.signature)
        pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in notice.cert_chain)
        files.replace(part / CHAIN_FILE, pem.encode())

    async def _small(self, entry: FileEntry) -> bytes:
        if entry.size > MAX_SMALL_BYTES:
            raise StateError("MODEL_INVALID", f"{entry.name} of {entry.size} bytes is over the cap")
        address = Sha256(bytes.fromhex(entry.sha256))
        return await transfer.download_small(self._road, address, entry.size)

    async def _model(self, path: Path, manifest: Manifest, entry: FileEntry, work: Work) -> None:
        """Put the model at `path`, durably: from the shelf if it lies there, else fetched."""
        schema = work.model_schema()
        wanted = Sha256(bytes.fromhex(manifest.model_sha256))
        held = self._store.model_path(wanted)
        if held.exists():
            with files.disk_errors(path):
                await asyncio.to_thread(shutil.copyfile, held, path)
        # The copy is read, not what it was made of.
        if await asyncio.to_thread(digest_of_file, path, schema) != wanted:
            address = Sha256(bytes.fromhex(entry.sha256))
            with ModelReceiver(path, schema) as receiver:
                found = await transfer.download(self._road, address, receiver)
            if found != wanted:
                raise StateError("MODEL_INVALID", "the released model is not the manifest's")
        await asyncio.to_thread(files.sync_file, path)

    async def _report(self, run_id: RunId, model: Path, manifest: Manifest, work: Work) -> None:
        """Write the local metrics; a failure is logged and costs only the report."""
        own = self._store.own(run_id)
        try:
            metrics = await self._worker.run(lambda: work.report(model, own))
        except FedError as failure:
            self._log.bind(run=run_id).failure(Event.MODEL_ACCEPTED, failure)
            return
        report = {
            "run_id": run_id,
            "model_sha256": manifest.model_sha256,
            "metrics": dict(metrics),
        }
        made = page(run_id, manifest.model_sha256, metrics) if metrics else ""
        self._store.save_report(run_id, report, made)
