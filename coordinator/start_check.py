"""What a coordinator reads whole before it serves: the files that its open runs go on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import RoundError, StateError
from common.events import Event
from common.ids import NodeId, Sha256, site_name
from coordinator.driver import Workshop
from coordinator.spool import Spool
from coordinator.stored_runs import KnownRun


def check_files(runs: Sequence[KnownRun], shop: Workshop) -> None:
    """Hold the latest model of every open run, and the uploads its round counts, against the facts.

    A model that is missing, or an upload, is told and met again where it is needed: there the
    round is voided. Damaged bytes are never used, and somebody has to look at the disk.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    for run in runs:
        if run.state.phase.final:
            continue
        addresses = () if run.state.model is None else run.state.model.addresses
        for address in addresses:
            try:
                shop.objects.check(address)
            except RoundError as missing:
                raise StateError("STATE_DAMAGED", missing.detail) from missing
        for node, ydig, size in run.spooled():
            _check_upload(run, node, ydig, size, shop)


def _check_upload(run: KnownRun, node: NodeId, ydig: Sha256, size: int, shop: Workshop) -> None:
    hd = run.open_header
    if hd is None:
        return
    wrong = upload_trouble(shop.spool, hd, node, ydig, size)
    if wrong is None:
        return
    path, what = wrong
    failure = StateError(
        "STATE_DAMAGED",
        f"{path} {what}",
        fix="Look after the disk; then remove this file: the round is voided and tried again.",
    )
    if path.exists():
        raise failure
    log = shop.log.bind(study=run.stored.study_id, run=run.stored.run_id)
    log.failure(Event.STATE_FAILED, failure, site=site_name(node))


def upload_trouble(
    spool: Spool, hd: bytes, node: NodeId, ydig: Sha256, size: int
) -> tuple[Path, str] | None:
    """Return the file of a counted upload and what is wrong with it, None if nothing is."""
    path = spool.path(hd, node)
    found = spool.digest_of(path, size)
    if found == ydig:
        return None
    return path, "is not there" if found is None else "is not what was received"
