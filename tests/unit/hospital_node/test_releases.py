"""A release at the hospital: what is kept, and that nothing wrong ever is."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.certificates import Role
from common.clock import SystemClock
from common.entropy import OsEntropy
from common.errors import ConnectError, DataError, FedError
from common.identity import load_identity
from common.ids import ConfigHash, RunId, Sha256
from common.layouts import model_schema
from common.logs import make_log
from common.manifest import (
    CHAIN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    STATISTICS_FILE,
    STUDY_FILE,
    FileEntry,
)
from common.messages import DownloadChunk, ReleaseNotice
from common.secagg.header import RoundKind
from common.study import config_hash
from common.vectors import ParameterSchema
from hospital_node.backoff import Backoff
from hospital_node.personal_state import OwnTensors
from hospital_node.releases import MAX_SMALL_BYTES, ReleaseKeeper, ReleaseTrust
from hospital_node.session import LinkSlot
from hospital_node.store import NodeStore
from hospital_node.transfer import Road
from hospital_node.worker import Worker
from tests.release_factory import Authority, Release, entry, release, study

FEDERATION = "heart"
RUN = RunId("small-study-1")
HASH = ConfigHash(config_hash(study()))


@dataclass
class FakeLink:
    """Serves a release's files by address; `breaks` are byte counts where a stream ends."""

    files: Mapping[str, bytes]
    breaks: list[int] = field(default_factory=list)
    asked: list[Sha256] = field(default_factory=list)
    size_told: int | None = None

    async def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        self.asked.append(sha256)
        data = next(d for d in self.files.values() if hashlib.sha256(d).digest() == sha256)
        end = self.breaks.pop(0) if self.breaks else len(data)
        if offset < end:
            yield DownloadChunk(offset, self.size_told or len(data), data[offset:end])
        if end < len(data):
            raise ConnectError("UNREACHABLE", "cut")


@dataclass
class FakeWork:
    """An accepted study whose report can fail."""

    failure: FedError | None = None
    reports: int = 0
    kinds: tuple[RoundKind, ...] = (RoundKind.STATISTICS, RoundKind.TRAIN)

    @property
    def terms(self) -> SimpleNamespace:
        rounds = [SimpleNamespace(kind=kind) for kind in self.kinds]
        return SimpleNamespace(expect=SimpleNamespace(rounds=rounds))

    def model_schema(self) -> ParameterSchema:
        return model_schema(study())

    def report(self, model: Path, own: OwnTensors) -> Mapping[str, object]:
        assert model.stat().st_size
        self.reports += 1
        if self.failure is not None:
            raise self.failure
        return {"auroc": 0.5}


async def _no_sleep(_seconds: float) -> None:
    return


class Hospital:
    """A hospital's state directory with a keeper that is connected to `link`."""

    def __init__(self, folder: Path, authority: Authority, link: FakeLink) -> None:
        self.words = io.StringIO()
        self.store = NodeStore.open(folder / "state", OsEntropy(), None)
        self.link, self.work = link, FakeWork()
        coordinator = load_identity(
            authority.issue(Role.COORDINATOR, "main"), now_unix=SystemClock().unix()
        )
        slot = LinkSlot()
        slot.fill(link)  # type: ignore[arg-type] # of a link, only `download` is used
        self.keeper = ReleaseKeeper(
            self.store,
            ReleaseTrust(coordinator.ca_der, FEDERATION),
            Road(slot, _no_sleep, lambda: Backoff(lambda: 0.0)),
            Worker(),
            make_log(self.words, clock=SystemClock()),
        )

    @property
    def folder(self) -> Path:
        return self.store.release_directory(RUN)

    def left(self) -> list[str]:
        """Everything under `releases/`, finished or not."""
        return sorted(path.name for path in self.folder.parent.iterdir())

    async def accept(self, notice: ReleaseNotice, of: ConfigHash = HASH) -> bytes:
        async def open_work() -> FakeWork:
            return self.work

        receipt = await self.keeper.accept(notice, of, open_work)  # type: ignore[arg-type]
        assert receipt.run_id == notice.run_id
        return bytes(receipt.manifest_sha256)

    async def refuses(self, notice: ReleaseNotice, name: str, of: ConfigHash = HASH) -> FedError:
        """Demand this refusal, and that nothing is kept or left lying about."""
        with pytest.raises(FedError) as caught:
            await self.accept(notice, of)
        assert caught.value.name == name, caught.value
        assert self.left() == []
        assert self.work.reports == 0
        return caught.value


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def made() -> Release:
    return release()


@pytest.fixture
def hospital(tmp_path: Path, authority: Authority, made: Release) -> Hospital:
    return Hospital(tmp_path, authority, FakeLink(made.files))


@pytest.fixture
def signed(authority: Authority) -> Callable[[Release], ReleaseNotice]:
    return lambda made: made.signed(authority.issue(Role.COORDINATOR, "main"))


Sign = Callable[[Release], ReleaseNotice]


async def test_a_right_release_is_kept_whole_and_reported_here(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    notice = signed(made)
    assert await hospital.accept(notice) == hashlib.sha256(notice.manifest).digest()
    assert hospital.left() == [RUN]
    for name, data in made.files.items():
        assert (hospital.folder / name).read_bytes() == data
    assert (hospital.folder / MANIFEST_FILE).read_bytes() == notice.manifest
    assert (hospital.folder / SIGNATURE_FILE).read_bytes() == notice.signature
    assert (hospital.folder / CHAIN_FILE).read_bytes().startswith(b"-----BEGIN CERT")
    report = json.loads((hospital.store.root / "reports" / f"{RUN}.json").read_bytes())
    assert (report["run_id"], report["metrics"]) == (RUN, {"auroc": 0.5})


async def test_the_same_release_again_gets_the_same_receipt_and_no_second_download(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    notice = signed(made)
    first = await hospital.accept(notice)
    asked = len(hospital.link.asked)
    assert await hospital.accept(notice) == first
    assert (len(hospital.link.asked), hospital.work.reports) == (asked, 1)


@pytest.mark.fault("F64")
async def test_another_release_of_a_run_that_has_one_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    await hospital.accept(signed(made))
    kept = (hospital.folder / MANIFEST_FILE).read_bytes()
    second = Release(made.files, made.manifest.model_copy(update={"software": "another"}))
    with pytest.raises(FedError) as caught:
        await hospital.accept(signed(second))
    assert caught.value.name == "MODEL_INVALID"
    assert (hospital.folder / MANIFEST_FILE).read_bytes() == kept


async def test_a_model_that_lies_here_from_the_rounds_is_not_fetched_again(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    held = hospital.store.model_path(Sha256(bytes.fromhex(made.manifest.model_sha256)))
    held.write_bytes(made.files[MODEL_FILE])
    await hospital.accept(signed(made))
    assert hashlib.sha256(made.files[MODEL_FILE]).digest() not in hospital.link.asked
    assert (hospital.folder / MODEL_FILE).read_bytes() == made.files[MODEL_FILE]


async def test_a_model_here_that_was_altered_is_fetched_anew(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    held = hospital.store.model_path(Sha256(bytes.fromhex(made.manifest.model_sha256)))
    held.write_bytes(made.files[MODEL_FILE][:-4] + b"\0\0\0\0")
    await hospital.accept(signed(made))
    assert (hospital.folder / MODEL_FILE).read_bytes() == made.files[MODEL_FILE]


async def test_a_broken_download_goes_on_where_it_broke_off(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    hospital.link.breaks = [100, 250]
    await hospital.accept(signed(made))
    assert (hospital.folder / MODEL_FILE).read_bytes() == made.files[MODEL_FILE]


async def test_a_failing_report_costs_the_report_only(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    hospital.work.failure = DataError("DATA_EMPTY", "no test rows here")
    await hospital.accept(signed(made))
    assert hospital.left() == [RUN]
    assert "DATA_EMPTY" in hospital.words.getvalue()


# --- wrong signatures ---------------------------------------------------------------------------


async def test_a_signature_with_one_bit_changed_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    notice = signed(made)
    bad = notice.signature[:-1] + bytes([notice.signature[-1] ^ 1])
    await hospital.refuses(replace(notice, signature=bad), "MANIFEST_SIGNATURE")
    assert not hospital.link.asked


async def test_a_manifest_changed_after_it_was_signed_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    notice = signed(made)
    changed = notice.manifest.replace(b'"colluders": 1', b'"colluders": 9')
    assert changed != notice.manifest
    await hospital.refuses(replace(notice, manifest=changed), "MANIFEST_SIGNATURE")


async def test_a_hospital_cannot_sign_a_release(
    hospital: Hospital, made: Release, authority: Authority
) -> None:
    await hospital.refuses(made.signed(authority.issue(Role.HOSPITAL, "va")), "MANIFEST_SIGNATURE")


async def test_a_coordinator_of_another_ca_is_refused(
    hospital: Hospital, made: Release, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    await hospital.refuses(made.signed(other.issue(Role.COORDINATOR, "main")), "MANIFEST_SIGNATURE")


async def test_no_chain_at_all_is_refused(hospital: Hospital, made: Release, signed: Sign) -> None:
    await hospital.refuses(replace(signed(made), cert_chain=()), "MANIFEST_SIGNATURE")


async def test_a_signature_made_before_the_certificate_was_valid_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    early = made.manifest.model_copy(update={"signed_at": made.manifest.signed_at - 86_400})
    await hospital.refuses(signed(Release(made.files, early)), "MANIFEST_SIGNATURE")


# --- right signatures under a wrong manifest ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"run": "another-run-1"}, "not that of small-study-1"),
        ({"federation": "lung"}, "not that of small-study-1"),
        ({"run": "../../etc"}, "not that of small-study-1"),
    ],
)
async def test_a_manifest_of_another_run_or_federation_is_refused(
    hospital: Hospital, made: Release, signed: Sign, change: dict[str, Any], why: str
) -> None:
    other = Release(made.files, made.manifest.model_copy(update=change))
    notice = replace(signed(other), run_id=RUN)
    assert why in (await hospital.refuses(notice, "MODEL_INVALID")).detail


@pytest.mark.fault("F67")
async def test_a_release_of_another_study_than_the_one_accepted_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    await hospital.refuses(signed(made), "MODEL_INVALID", ConfigHash(b"\7" * 32))
    assert not hospital.link.asked


@pytest.mark.parametrize(
    "name", ["../node.key", "/etc/passwd", "sub/model.safetensors", "tls.key", "", "."]
)
async def test_a_file_name_that_is_not_one_of_the_three_is_refused(
    hospital: Hospital, made: Release, signed: Sign, name: str
) -> None:
    odd = FileEntry.model_construct(
        name=name,  # type: ignore[arg-type]
        sha256="0" * 64,
        size=1,
    )
    files = (*made.manifest.files, odd)
    notice = signed(Release(made.files, made.manifest.model_copy(update={"files": files})))
    await hospital.refuses(notice, "MODEL_INVALID")
    assert not hospital.link.asked


@pytest.mark.parametrize("name", [MODEL_FILE, STUDY_FILE])
async def test_a_release_without_a_model_or_its_study_is_refused(
    hospital: Hospital, made: Release, signed: Sign, name: str
) -> None:
    files = tuple(each for each in made.manifest.files if each.name != name)
    notice = signed(Release(made.files, made.manifest.model_copy(update={"files": files})))
    await hospital.refuses(notice, "MODEL_INVALID")


COUNTED = b'{"schema": "fedcare.statistics/v1"}'


def counted(made: Release, *more: str) -> Release:
    """Return the release of a statistics study, with further files of the model's."""
    files = {name: made.files[name] for name in (STUDY_FILE, *more)} | {STATISTICS_FILE: COUNTED}
    change = {
        "files": tuple(entry(name, data) for name, data in files.items()),
        "model_sha256": hashlib.sha256(COUNTED).hexdigest(),
    }
    return Release(files, made.manifest.model_copy(update=change))


async def test_a_release_of_counts_is_kept_whole(
    made: Release, signed: Sign, tmp_path: Path, authority: Authority
) -> None:
    release = counted(made)
    hospital = Hospital(tmp_path, authority, FakeLink(release.files))
    hospital.work.kinds = (RoundKind.STATISTICS,)
    await hospital.accept(signed(release))
    assert (hospital.folder / STATISTICS_FILE).read_bytes() == COUNTED
    assert hospital.work.reports == 0


async def test_counts_of_a_study_with_a_model_are_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    await hospital.refuses(signed(counted(made)), "MODEL_INVALID")
    assert not hospital.link.asked


@pytest.mark.parametrize("wrong", ["model_sha256", "files"])
async def test_counts_that_are_not_what_the_chain_or_the_study_names_are_refused(
    hospital: Hospital, made: Release, signed: Sign, wrong: str
) -> None:
    hospital.work.kinds = (RoundKind.STATISTICS,)
    release = counted(made, "preprocessing.json") if wrong == "files" else counted(made)
    change = {"model_sha256": "0" * 64} if wrong == "model_sha256" else {}
    manifest = release.manifest.model_copy(update=change)
    await hospital.refuses(signed(Release(release.files, manifest)), "MODEL_INVALID")
    assert not hospital.link.asked


async def test_a_file_that_is_named_twice_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    files = (*made.manifest.files, made.manifest.files[0])
    notice = signed(Release(made.files, made.manifest.model_copy(update={"files": files})))
    await hospital.refuses(notice, "MODEL_INVALID")


async def test_a_small_file_that_is_announced_too_large_is_not_fetched(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    files = tuple(
        each.model_copy(update={"size": MAX_SMALL_BYTES + 1}) if each.name == "study.json" else each
        for each in made.manifest.files
    )
    notice = signed(Release(made.files, made.manifest.model_copy(update={"files": files})))
    assert "over the cap" in (await hospital.refuses(notice, "MODEL_INVALID")).detail
    assert hashlib.sha256(made.files["study.json"]).digest() not in hospital.link.asked


async def test_a_manifest_of_another_schema_version_says_which_one_is_read(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    notice = signed(made)
    other = notice.manifest.replace(b"fedcare.model/v1", b"fedcare.model/v9")
    refusal = await hospital.refuses(replace(notice, manifest=other), "MODEL_INVALID")
    assert "fedcare.model/v1" in refusal.detail
    assert "version of fedcare" in refusal.fix


@pytest.mark.parametrize("manifest", [b"", b"\xff\x00", b"[]", b"{}", b"[" * 10_000])
async def test_bytes_that_are_no_manifest_are_refused(
    hospital: Hospital, made: Release, signed: Sign, manifest: bytes
) -> None:
    await hospital.refuses(replace(signed(made), manifest=manifest), "MODEL_INVALID")


# --- right manifests above wrong files ----------------------------------------------------------


def _other_model(made: Release, data: bytes) -> Release:
    """A release whose manifest honestly lists a model that is not the rounds' one."""
    files = tuple(
        entry(MODEL_FILE, data) if each.name == MODEL_FILE else each for each in made.manifest.files
    )
    manifest = made.manifest.model_copy(update={"files": files})
    return Release({**made.files, MODEL_FILE: data}, manifest)


@pytest.mark.parametrize(
    ("alter", "name"),
    [
        (lambda data: data[:-5], "MODEL_HASH"),
        (lambda data: data + b"\0", "MODEL_HASH"),
        (lambda data: b"x" + data[1:], "MODEL_HASH"),
        (lambda data: data[:-4] + b"\0\0\0\0", "MODEL_INVALID"),
        (lambda data: data[:-4] + b"\0\0\xc0\x7f", "MODEL_RANGE"),
    ],
    ids=["truncated", "too long", "another header", "another value", "not a number"],
)
@pytest.mark.fault("F67")
async def test_a_model_that_is_not_the_one_the_rounds_made_is_refused(
    tmp_path: Path,
    authority: Authority,
    signed: Sign,
    alter: Callable[[bytes], bytes],
    name: str,
) -> None:
    made = release()
    other = _other_model(made, alter(made.files[MODEL_FILE]))
    await Hospital(tmp_path, authority, FakeLink(other.files)).refuses(signed(other), name)


async def test_a_small_file_that_comes_with_another_size_is_refused(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    held = hospital.store.model_path(Sha256(bytes.fromhex(made.manifest.model_sha256)))
    held.write_bytes(made.files[MODEL_FILE])
    files = tuple(
        each.model_copy(update={"size": each.size - 1}) if each.name == "study.json" else each
        for each in made.manifest.files
    )
    hospital.link.size_told = 1 << 40
    notice = signed(Release(made.files, made.manifest.model_copy(update={"files": files})))
    with pytest.raises(FedError) as caught:
        await hospital.accept(notice)
    # The bytes have the right digest, so only what was announced differs.
    assert caught.value.name == "MODEL_INVALID"
    assert hospital.left() == []


# --- the disk -----------------------------------------------------------------------------------


async def test_a_full_disk_is_said_and_leaves_nothing_then_the_next_attempt_succeeds(
    hospital: Hospital, made: Release, signed: Sign, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        refusal = await hospital.refuses(signed(made), "DISK")
    assert "No space left" in refusal.detail
    await hospital.accept(signed(made))
    assert hospital.left() == [RUN]


async def test_what_a_crash_left_half_written_is_replaced(
    hospital: Hospital, made: Release, signed: Sign
) -> None:
    part = hospital.folder.with_name(f"{RUN}.part")
    part.mkdir()
    (part / MODEL_FILE).write_bytes(b"rubbish")
    (part / "stray").write_bytes(b"rubbish")
    await hospital.accept(signed(made))
    assert hospital.left() == [RUN]
    assert not (hospital.folder / "stray").exists()
