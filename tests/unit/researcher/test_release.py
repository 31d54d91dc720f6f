from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common import statistics_result
from common.errors import ConfigError, FedError, StateError
from common.ids import Sha256
from common.layouts import result_schema
from common.manifest import Manifest, ParticipationEntry, WithdrawnEntry, chained
from common.messages import DownloadChunk
from common.pki import Role
from common.statistics_file import StatisticsFile
from common.study import Study, canonical_json, config_hash
from researcher.release import card_data, card_text, pull, read_card, verify
from tests import release_factory as factory
from tests import statistics_study
from tests.release_factory import Authority, MemorySource, Release


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def coordinator(authority: Authority) -> Path:
    return authority.issue(Role.COORDINATOR, "main")


@pytest.fixture
def folder(tmp_path: Path, coordinator: Path) -> Path:
    factory.release().write(tmp_path / "model", coordinator)
    return tmp_path / "model"


def rewrite(release: Release, **changes: object) -> Release:
    return Release(release.files, release.manifest.model_copy(update=changes))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- verify ---------------------------------------------------------------------------------


def test_a_genuine_model_verifies_with_the_ca_alone(folder: Path, authority: Authority) -> None:
    model = verify(folder, authority.ca)
    assert model.signer == "spiffe://heart/coordinator/main"
    assert model.study == factory.study()


@pytest.mark.parametrize("name", ["coefficients", "evaluation"])
def test_figures_that_nobody_signed_are_refused(
    folder: Path, authority: Authority, name: str
) -> None:
    """They would be shown as the run's result."""
    (folder / f"{name}.json").write_text(f'{{"schema": "fedcare.{name}/v1"}}')
    with pytest.raises(StateError, match="not one of the manifest's files") as caught:
        verify(folder, authority.ca)
    assert caught.value.name == "MODEL_INVALID"


def counted(of: Study, found: StatisticsFile) -> Release:
    """Return the release of a statistics study, as its coordinator would make it."""
    made, data = factory.release(), found.to_json()
    files = {"statistics.json": data, "study.json": canonical_json(of)}
    digest = hashlib.sha256(data).hexdigest()
    changes = {
        "study": made.manifest.study.model_copy(
            update={
                "id": of.id,
                "title": of.title,
                "owner": of.owner.organisation,
                "config_hash": config_hash(of).hex(),
            }
        ),
        "files": tuple(factory.entry(name, content) for name, content in files.items()),
        "rounds": factory.rounds(digest),
        "model_sha256": digest,
        "layout_sha256": result_schema(of).layout_sha256.hex(),
    }
    return rewrite(Release(files, made.manifest), **changes)


def test_counts_verify_only_as_those_of_their_study_and_their_rounds(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    of = statistics_study.study()
    frames = [statistics_study.patients(40, 1)]
    found = statistics_result.published(of, statistics_study.summed(of, frames))
    good = counted(of, found)
    wrong = {
        "not the file that the rounds end in": rewrite(
            good, model_sha256="0" * 64, rounds=factory.rounds("0" * 64)
        ),
        "of another study": counted(of, found.model_copy(update={"study": "another"})),
        "not the one the study implies": rewrite(good, layout_sha256="0" * 64),
    }
    good.write(tmp_path / "good", coordinator)
    assert verify(tmp_path / "good", authority.ca).study == of
    for place, (why, release) in enumerate(wrong.items()):
        release.write(tmp_path / str(place), coordinator)
        with pytest.raises(StateError, match=why):
            verify(tmp_path / str(place), authority.ca)


def test_another_ca_of_the_same_federation_does_not_verify_it(folder: Path, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(StateError, match="pinned CA") as caught:
        verify(folder, other.ca)
    assert caught.value.name == "MANIFEST_SIGNATURE"
    assert caught.value.kind.exit_code == 4


@pytest.mark.parametrize("name", ["model.safetensors", "study.json", "preprocessing.json"])
def test_one_changed_bit_in_any_file_is_noticed(
    folder: Path, authority: Authority, name: str
) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(StateError, match=name) as caught:
        verify(folder, authority.ca)
    assert caught.value.name == "MODEL_INVALID"


@pytest.mark.parametrize("name", ["model.safetensors", "study.json", "preprocessing.json"])
def test_a_truncated_file_is_noticed(folder: Path, authority: Authority, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    with pytest.raises(StateError, match="bytes; the manifest says"):
        verify(folder, authority.ca)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "study.json", "preprocessing.json", "manifest.json",
        "manifest.sig", "chain.pem",
    ],
)  # fmt: skip
def test_a_missing_file_is_named(folder: Path, authority: Authority, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FedError, match=name):
        verify(folder, authority.ca)


def test_every_changed_byte_of_the_manifest_is_noticed(folder: Path, authority: Authority) -> None:
    raw = (folder / "manifest.json").read_bytes()
    for place in range(0, len(raw), 97):
        changed = bytearray(raw)
        changed[place] ^= 4
        (folder / "manifest.json").write_bytes(changed)
        with pytest.raises(StateError):
            verify(folder, authority.ca)


PART = tuple(ParticipationEntry(site=site, first=1, last=3, rounds=3) for site in factory.SITES)
GONE = WithdrawnEntry(after_round=3, at=1_700_000_000)


def with_part(place: int, **changes: object) -> tuple[ParticipationEntry, ...]:
    """Return everybody's part, one of them altered."""
    entry = PART[place].model_copy(update=changes)
    return (*PART[:place], entry, *PART[place + 1 :])


def test_a_withdrawal_stands_on_the_verified_card(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    made = rewrite(factory.release(), participation=with_part(1, withdrawn=GONE))
    made.write(tmp_path / "m", coordinator)
    model = verify(tmp_path / "m", authority.ca)
    text = card_text(model.manifest, model.study)
    assert "hungarian in 3 of them, 1 to 3; WITHDRAWN after round 3 on 2023-11-14" in text
    assert "cleveland in" not in text  # nothing to tell of who was there all the time
    entries = card_data(model.manifest)["participation"]
    assert isinstance(entries, list)
    assert entries[1]["withdrawn"] == {"after_round": 3, "at": 1_700_000_000}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (PART[:2], "leaves a hospital's part out"),
        ((PART[1], PART[0], PART[2]), "leaves a hospital's part out"),
        (with_part(0, first=2), "rounds of cleveland are not those of the chain"),
        (with_part(0, last=2), "rounds of cleveland are not those of the chain"),
        (with_part(2, rounds=2), "rounds of va are not those of the chain"),
        (
            with_part(2, withdrawn=WithdrawnEntry(after_round=4, at=1)),
            "withdrawal of va is out of order",
        ),
        (
            with_part(2, withdrawn=WithdrawnEntry(after_round=1, at=10**11)),
            "withdrawal of va is out of order",
        ),
    ],
)
def test_a_part_that_the_chain_of_rounds_denies_is_refused(
    tmp_path: Path,
    authority: Authority,
    coordinator: Path,
    part: tuple[ParticipationEntry, ...],
    words: str,
) -> None:
    rewrite(factory.release(), participation=part).write(tmp_path / "m", coordinator)
    with pytest.raises(StateError, match=words) as caught:
        verify(tmp_path / "m", authority.ca)
    assert caught.value.name == "MODEL_INVALID"


def test_a_hospitals_signature_is_not_a_coordinators(tmp_path: Path, authority: Authority) -> None:
    hospital = authority.issue(Role.HOSPITAL, "va")
    factory.release().write(tmp_path / "forged", hospital)
    with pytest.raises(StateError, match="is not a coordinator"):
        verify(tmp_path / "forged", authority.ca)


def test_a_certificate_that_was_not_yet_valid_when_it_signed_is_refused(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    release = factory.release()
    early = rewrite(release, signed_at=release.manifest.signed_at - 86_400)
    early.write(tmp_path / "early", coordinator)
    with pytest.raises(StateError, match="valid only from"):
        verify(tmp_path / "early", authority.ca)


def _other_study(release: Release) -> Release:
    text = release.files["study.json"].replace(b"A small study", b"Another study")
    files = {**release.files, "study.json": text}
    entries = tuple(factory.entry(name, data) for name, data in files.items())
    return Release(files, release.manifest.model_copy(update={"files": entries}))


def _other_model(release: Release) -> Release:
    data = bytearray(release.files["model.safetensors"])
    data[-1] ^= 1  # another finite number: everything but model_sha256 fits
    files = {**release.files, "model.safetensors": bytes(data)}
    entries = tuple(factory.entry(name, content) for name, content in files.items())
    return Release(files, release.manifest.model_copy(update={"files": entries}))


def _other_constants(release: Release) -> Release:
    text = release.files["preprocessing.json"].replace(b"50.0", b"51.0")
    files = {**release.files, "preprocessing.json": text}
    entries = tuple(factory.entry(name, content) for name, content in files.items())
    return Release(files, release.manifest.model_copy(update={"files": entries}))


def _nan(release: Release) -> Release:
    data = release.files["model.safetensors"][:-4] + b"\x00\x00\xc0\x7f"
    files = {**release.files, "model.safetensors": data}
    entries = tuple(factory.entry(name, content) for name, content in files.items())
    return Release(files, release.manifest.model_copy(update={"files": entries}))


def _without(name: str) -> Callable[[Release], Release]:
    def drop(release: Release) -> Release:
        kept = tuple(entry for entry in release.manifest.files if entry.name != name)
        return rewrite(release, files=kept)

    return drop


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (_other_study, "not the study"),
        (_other_model, "not the model"),
        (_other_constants, "differs from the model's constants"),
        (_nan, "not finite"),
        (lambda r: rewrite(r, layout_sha256="0" * 64), "layout"),
        (lambda r: rewrite(r, sites=("cleveland", "hungarian")), "not those of its rounds"),
        (lambda r: rewrite(r, rounds=factory.rounds("1" * 64)), "does not end in this model"),
        (
            lambda r: rewrite(
                r,
                rounds=factory.rounds(r.manifest.model_sha256, ("cleveland", "va")),
                sites=("cleveland", "va"),
            ),
            "fewer sites",
        ),
        (_without("preprocessing.json"), "names no preprocessing.json"),
        (_without("model.safetensors"), "names no model.safetensors"),
        (_without("study.json"), "names no study.json"),
    ],
)
def test_even_a_coordinators_signature_does_not_make_a_contradiction_valid(
    tmp_path: Path,
    authority: Authority,
    coordinator: Path,
    lie: Callable[[Release], Release],
    said: str,
) -> None:
    lie(factory.release()).write(tmp_path / "lie", coordinator)
    with pytest.raises(StateError, match=said):
        verify(tmp_path / "lie", authority.ca)


def test_a_round_left_out_of_the_chain_is_noticed(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    release = factory.release()
    shortened = release.manifest.rounds[1:]
    rewrite(release, rounds=shortened).write(tmp_path / "short", coordinator)
    with pytest.raises(StateError, match="chain of rounds is broken"):
        verify(tmp_path / "short", authority.ca)
    assert list(chained(shortened)) != [entry.chain for entry in shortened]


def test_a_ca_file_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "ca.crt"
    wrong.write_text("not a certificate")
    with pytest.raises(FedError, match="not a PEM certificate"):
        verify(folder, wrong)


# --- pull -------------------------------------------------------------------------------------


def source(coordinator: Path, release: Release | None = None) -> MemorySource:
    chosen = release or factory.release()
    return MemorySource(chosen.signed(coordinator), chosen.files, piece=37)


async def test_a_pulled_model_is_whole_verified_and_alone(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    out = tmp_path / "out" / "model"
    model = await pull(source(coordinator), "small-study-1", out, authority.ca)
    assert model.folder == out
    assert verify(out, authority.ca).manifest == model.manifest
    assert names(out) == {
        "manifest.json", "manifest.sig", "chain.pem",
        "model.safetensors", "preprocessing.json", "study.json",
    }  # fmt: skip
    assert names(out.parent) == {"model"}


async def test_a_broken_pull_leaves_nothing_there_and_goes_on_where_it_broke(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    out = tmp_path / "out"
    steady = source(coordinator)

    class Breaking(MemorySource):
        async def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
            async for number, piece in _numbered(steady.download(sha256, offset)):
                if number == 2:
                    raise FedError("UNREACHABLE", "gone")
                yield piece

    with pytest.raises(FedError, match="gone"):
        await pull(Breaking(steady.notice, steady.files), "r", out, authority.ca)
    assert not out.exists()
    again = source(coordinator)
    await pull(again, "r", out, authority.ca)
    assert 74 in again.offsets  # two pieces of 37 bytes were already here
    assert verify(out, authority.ca)


async def _numbered(
    pieces: AsyncIterator[DownloadChunk],
) -> AsyncIterator[tuple[int, DownloadChunk]]:
    number = 0
    async for piece in pieces:
        yield number, piece
        number += 1


async def test_a_release_that_does_not_verify_is_not_installed(
    tmp_path: Path, authority: Authority
) -> None:
    forged = source(authority.issue(Role.HOSPITAL, "va"))
    out = tmp_path / "out"
    with pytest.raises(StateError):
        await pull(forged, "r", out, authority.ca)
    assert names(tmp_path) == {"authority"}


async def test_bytes_of_another_digest_are_refused(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    release = factory.release()
    notice = release.signed(coordinator)

    class Lying(MemorySource):
        async def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
            async for piece in MemorySource.download(self, sha256, offset):
                yield type(piece)(piece.offset, piece.total, bytes(len(piece.data)))

    with pytest.raises(StateError, match="another SHA-256"):
        await pull(Lying(notice, release.files), "r", tmp_path / "out", authority.ca)
    assert not (tmp_path / "out").exists()


async def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, authority: Authority, coordinator: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        await pull(source(coordinator), "r", out, authority.ca)
    assert caught.value.name == "OUTPUT_EXISTS"
    assert (out / "mine.txt").read_text() == "mine"


# --- show --------------------------------------------------------------------------------------


def test_the_card_says_what_matters_and_escapes_what_others_wrote(folder: Path) -> None:
    manifest, study = read_card(folder)
    text = card_text(manifest, study)
    for words in ("A small study", "cleveland, hungarian, va", "auroc 0.9", "Sums only."):
        assert words in text
    hostile = manifest.model_copy(update={"software": "x\x1b[31m"})
    assert "\x1b" not in card_text(hostile, study)


def test_a_card_of_another_schema_version_is_refused(folder: Path) -> None:
    body = json.loads((folder / "manifest.json").read_bytes())
    body["schema"] = "fedcare.model/v9"
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(StateError, match=r"fedcare\.model/v1"):
        read_card(folder)
    with pytest.raises(StateError):
        Manifest.from_json(b"{")
