"""A bundle is believed only as far as the pinned key's signature reaches."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common import bundle_check
from common.bundle import (
    LIST_FILE,
    MAX_LIST,
    SBOM_FILE,
    SIGNATURE_FILE,
    load_pinned_key,
    load_signing_key,
    make_key,
    parse_contents,
)
from common.bundle_check import facts, verify
from common.cli import main
from common.errors import FedError
from common.ustar import MAX_SIZE, MTIME
from tests import bundle_factory as make
from tests.bundle_factory import ALPHA, BETA, IMAGE, KEY, OTHER_KEY, SCRIPT, TOP, Member

PUBLIC = KEY.public_key()
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make.good_files(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def bundle(files: Files, tmp_path: Path) -> Path:
    return written(tmp_path, make.archive_of(make.members_of(files)))


def written(folder: Path, archive: bytes) -> Path:
    path = folder / "bundle.tar"
    path.write_bytes(archive)
    return path


def refusal(bundle: Path, tmp_path: Path) -> FedError:
    """The error that a bundle is refused with; nothing may have been unpacked."""
    target = tmp_path / "unpacked"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FedError) as caught:
        verify(bundle, PUBLIC, None if bundle.is_dir() else target)
    assert sorted(tmp_path.iterdir()) == before
    return caught.value


# ---------------------------------------------------------------- what is good


def test_a_good_bundle_verifies_packed_and_unpacked(
    files: Files, bundle: Path, tmp_path: Path
) -> None:
    assert verify(bundle, PUBLIC) == make.contents_of(files)
    assert verify(make.folder_of(tmp_path / "folder", files), PUBLIC) == make.contents_of(files)


def test_unpacking_gives_every_file_with_its_bytes_and_executable_bit(
    files: Files, bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "unpacked"
    verify(bundle, PUBLIC, target)
    for path, data in files.items():
        assert (target / path).read_bytes() == data
        mode = stat.S_IMODE((target / path).stat().st_mode)
        assert mode == (0o755 if path == SCRIPT else 0o644)
    assert verify(target, PUBLIC) == make.contents_of(files)


def test_any_tar_program_reads_the_archive(files: Files, bundle: Path) -> None:
    with tarfile.open(bundle) as archive:
        assert [item.name for item in archive][:2] == [
            f"{TOP}/{LIST_FILE}",
            f"{TOP}/{SIGNATURE_FILE}",
        ]
        assert {item.name for item in archive} >= {f"{TOP}/{path}" for path in files}
        assert {(item.mtime, item.uid, item.gid) for item in archive} == {(MTIME, 0, 0)}


def test_verifying_needs_the_standard_library_and_cryptography_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import common.bundle_check;"
        "tops = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(*sorted(tops - set(sys.stdlib_module_names) - {'common'}))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import site; site.main(); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= {"cryptography", "_cffi_backend", "_openssl"}


# ---------------------------------------------------------------- tampered archives

Tamper = Callable[[Files], Files]


def without(path: str) -> Tamper:
    return lambda files: {name: data for name, data in files.items() if name != path}


def flipped(path: str) -> Tamper:
    def change(files: Files) -> Files:
        data = bytearray(files[path])
        data[len(data) // 2] ^= 1
        return {**files, path: bytes(data)}

    return change


def plus(path: str, data: bytes) -> Tamper:
    return lambda files: {**files, path: files.get(path, b"") + data}


TAMPERED = {
    "a byte of a wheel": (flipped(ALPHA), ALPHA, "was changed"),
    "a byte of our wheel": (flipped(make.PRODUCT), make.PRODUCT, "was changed"),
    "a byte of an image": (flipped(IMAGE), IMAGE, "was changed"),
    "a byte of the sbom": (flipped(SBOM_FILE), SBOM_FILE, "was changed"),
    "a byte of a source": (flipped(SCRIPT), SCRIPT, "was changed"),
    "a wheel removed": (without(BETA), BETA, "is missing"),
    "a file added": (plus("source/evil.py", b"x"), "source/evil.py", "is not on the signed list"),
    "a wheel longer": (plus(ALPHA, b"x"), ALPHA, "bytes, the signed list says"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_archive_is_refused_by_the_files_name(
    case: str, files: Files, tmp_path: Path
) -> None:
    tamper, path, words = TAMPERED[case]
    members = make.members_of(tamper(files), make.contents_of(files))
    error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
    assert error.name == "BUNDLE_DAMAGED"
    assert path in error.detail
    assert words in error.detail


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_folder_is_refused_by_the_files_name(
    case: str, files: Files, tmp_path: Path
) -> None:
    tamper, path, words = TAMPERED[case]
    folder = make.folder_of(tmp_path / "folder", files)
    changed = tamper(files)
    for name in files.keys() | changed.keys():
        (folder / name).unlink(missing_ok=True)
        if name in changed:
            (folder / name).write_bytes(changed[name])
    error = refusal(folder, tmp_path)
    assert error.name == "BUNDLE_DAMAGED"
    assert path in error.detail
    assert words in error.detail


def test_two_files_exchanged_are_refused(files: Files, tmp_path: Path) -> None:
    data = {**files, "source/a": b"1", "source/b": b"2"}
    swapped = {**data, "source/a": b"2", "source/b": b"1"}
    members = make.members_of(swapped, make.contents_of(data))
    error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
    assert error.name == "BUNDLE_DAMAGED"
    assert "source/a" in error.detail


def test_another_key_than_the_pinned_one_is_refused(bundle: Path) -> None:
    with pytest.raises(FedError) as caught:
        verify(bundle, OTHER_KEY.public_key())
    assert caught.value.name == "BUNDLE_SIGNATURE"


def test_a_signature_without_the_prefix_is_refused(files: Files, tmp_path: Path) -> None:
    raw = make.contents_of(files).to_json()
    members = make.signed(raw, KEY.sign(raw)) + make.members_of(files)[2:]
    error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
    assert error.name == "BUNDLE_SIGNATURE"


def test_a_changed_list_is_refused_before_any_file_is_read(files: Files, tmp_path: Path) -> None:
    signature = make.members_of(files)[1]
    evil = {**files, "source/evil.py": b"x"}
    members = [make.members_of(evil)[0], signature, *make.members_of(evil)[2:]]
    error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
    assert error.name == "BUNDLE_SIGNATURE"


def test_an_archive_cut_anywhere_is_refused(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    for length in [*range(0, len(whole), 331), len(whole) - 512, len(whole) - 1]:
        bundle.write_bytes(whole[:length])
        error = refusal(bundle, tmp_path)
        assert error.name in {"BUNDLE_DAMAGED", "BUNDLE_FORM"}, length


def test_a_bit_flipped_anywhere_is_refused(bundle: Path, tmp_path: Path) -> None:
    whole = bundle.read_bytes()
    for place in range(0, len(whole), 23):  # 23 and 512 share no factor: every offset of a block
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        bundle.write_bytes(changed)
        error = refusal(bundle, tmp_path)
        assert error.name.startswith("BUNDLE_"), place


# ---------------------------------------------------------------- hostile archives


def odd(path: str, kind: bytes, target: str = "/etc/passwd") -> Member:
    info = tarfile.TarInfo(f"{TOP}/{path}")
    info.type, info.linkname, info.mtime = kind, target, MTIME
    return info.tobuf(tarfile.USTAR_FORMAT), b""


def named(name: str, data: bytes = b"x") -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT), data


def with_field(**fields: object) -> Member:
    info = tarfile.TarInfo(f"{TOP}/source/odd")
    info.size, info.mtime, info.mode = 1, MTIME, 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.USTAR_FORMAT), b"x"


def extended() -> Member:
    info = tarfile.TarInfo(f"{TOP}/source/odd")
    info.size, info.pax_headers = 1, {"path": "/etc/cron.d/evil"}
    return info.tobuf(tarfile.PAX_FORMAT), b"x"


HOSTILE = {
    "a symbolic link": (odd("source/link", tarfile.SYMTYPE), "a symbolic link"),
    "a hard link": (odd("source/link", tarfile.LNKTYPE), "a hard link"),
    "a character device": (odd("source/null", tarfile.CHRTYPE), "a device"),
    "a block device": (odd("source/disk", tarfile.BLKTYPE), "a device"),
    "a pipe": (odd("source/pipe", tarfile.FIFOTYPE), "a pipe"),
    "a folder": (odd("source/folder", tarfile.DIRTYPE), "a folder"),
    "an extended header": (extended(), "an extended header"),
    "an absolute path": (named("/etc/passwd"), "its name is absolute"),
    "a path upward": (named(f"{TOP}/../evil"), "leads out of the bundle"),
    "a path upward deep": (named(f"{TOP}/source/../../../evil"), "leads out of the bundle"),
    "a dot": (named(f"{TOP}/./evil"), "leads out of the bundle"),
    "an empty part": (named(f"{TOP}//evil"), "a character or an empty part"),
    "a line end in a name": (named(f"{TOP}/a\nb"), "a character or an empty part"),
    "an escape in a name": (named(f"{TOP}/a\x1b[2Jb"), "a character or an empty part"),
    "a backslash": (named(f"{TOP}/..\\evil"), "a character or an empty part"),
    "another top folder": (named("elsewhere/evil"), "lies outside"),
    "no folder": (named("evil"), "lies outside"),
    "a name twice": (named(f"{TOP}/{ALPHA}"), "stands twice"),
    "the list twice": (named(f"{TOP}/{LIST_FILE}"), "stands twice"),
    "an owner": (with_field(uid=1), "a header of another form"),
    "another time": (with_field(mtime=0), "a header of another form"),
    "set-user-id": (with_field(mode=0o4755), "a header of another form"),
    "a user's name": (with_field(uname="root"), "a header of another form"),
}


@pytest.mark.parametrize("place", ["behind", "in front"])
@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_bundle_holds_is_refused_wherever_it_stands(
    case: str, place: str, files: Files, tmp_path: Path
) -> None:
    hostile, words = HOSTILE[case]
    good = make.members_of(files)
    members = [*good, hostile] if place == "behind" else [hostile, *good]
    error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
    if place == "behind":
        assert words in error.detail
    assert error.name == "BUNDLE_FORM"
    assert error.detail.isprintable()


def huge(path: str, size: int) -> bytes:
    info = tarfile.TarInfo(f"{TOP}/{path}")
    info.size, info.mtime, info.mode = size, MTIME, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def test_a_list_of_a_huge_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for size in (MAX_LIST + 1, MAX_SIZE):
        error = refusal(written(tmp_path, huge(LIST_FILE, size)), tmp_path)
        assert error.name == "BUNDLE_FORM"
        assert str(size) in error.detail


def test_a_file_of_a_huge_size_is_refused_by_its_header(files: Files, tmp_path: Path) -> None:
    archive = make.archive_of(make.members_of(files)[:2], end=b"") + huge(ALPHA, MAX_SIZE)
    error = refusal(written(tmp_path, archive), tmp_path)
    assert error.name == "BUNDLE_DAMAGED"
    assert str(MAX_SIZE) in error.detail


def test_a_size_written_in_another_way_is_refused(files: Files, tmp_path: Path) -> None:
    for field in (
        b"\x80" + bytes(10) + b"\x01",
        b"-0000000001\0",
        b" 0000000001\0",
        b"0_000000001\0",
    ):
        head = bytearray(named(f"{TOP}/source/odd")[0])
        head[124:136] = field
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        members = [*make.members_of(files), (bytes(head), b"x")]
        error = refusal(written(tmp_path, make.archive_of(members)), tmp_path)
        assert error.name == "BUNDLE_FORM", field


def test_bytes_behind_the_end_or_between_files_are_refused(files: Files, tmp_path: Path) -> None:
    members = make.members_of(files)
    behind = make.archive_of(members) + b"\0"
    assert refusal(written(tmp_path, behind), tmp_path).name == "BUNDLE_FORM"
    between = bytearray(make.archive_of(members))
    between[512 + len(members[0][1])] = 1
    assert refusal(written(tmp_path, bytes(between)), tmp_path).name == "BUNDLE_FORM"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", bytes(2048), b"\x1f\x8b" + bytes(600)])
def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    assert refusal(written(tmp_path, data), tmp_path).name in {"BUNDLE_FORM", "BUNDLE_DAMAGED"}


def test_a_pipe_in_the_place_of_a_bundle_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "bundle.tar")
    assert refusal(tmp_path / "bundle.tar", tmp_path).name == "FILE_MISSING"


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "pipe", "link as list"])
def test_a_folder_with_something_else_than_files_is_refused(
    kind: str, files: Files, tmp_path: Path
) -> None:
    folder = make.folder_of(tmp_path / "folder", files)
    match kind:
        case "link to a file":
            (folder / "source" / "link").symlink_to("README.md")
        case "link to a folder":
            (folder / "link").symlink_to("source")
        case "pipe":
            os.mkfifo(folder / "source" / "pipe")
        case _:
            (folder / LIST_FILE).rename(tmp_path / "elsewhere")
            (folder / LIST_FILE).symlink_to(tmp_path / "elsewhere")
    error = refusal(folder, tmp_path)
    words = {"pipe": "is no plain file", "link as list": "symbolic links"}
    assert error.name == ("BUNDLE_DAMAGED" if kind == "link as list" else "BUNDLE_FORM")
    assert words.get(kind, "is a symbolic link") in error.detail


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = refusal(tmp_path / "empty", tmp_path)
    assert LIST_FILE in error.detail


# ---------------------------------------------------------------- lists, signed and yet wrong

ENTRY = {"path": "a", "sha256": "0" * 64, "size": 1, "executable": False}
BAD_LISTS: dict[str, dict[str, object]] = {
    "an unknown key": {"more": 1},
    "a missing key": {"commit": None},
    "a version that is a path": {"version": "../x"},
    "a time in words": {"created": "yesterday"},
    "dirty as text": {"dirty": "no"},
    "files as text": {"files": "all"},
    "an entry with a key more": {"files": [{"path": "a", "sha256": "0" * 64, "size": 0}]},
    "a size below zero": {"files": [{**ENTRY, "size": -1}]},
    "a size that is a truth": {"files": [{**ENTRY, "size": True}]},
    "no digest": {"files": [{**ENTRY, "sha256": "0"}]},
    "a path upward": {"files": [{**ENTRY, "path": "../a"}]},
    "an absolute path": {"files": [{**ENTRY, "path": "/a"}]},
    "a path that is a number": {"files": [{**ENTRY, "path": 1}]},
    "the list itself": {"files": [{**ENTRY, "path": LIST_FILE}]},
    "a file twice": {"files": [ENTRY, ENTRY]},
    "not in order": {"files": [{**ENTRY, "path": "b"}, ENTRY]},
    "a file below a file": {"files": [ENTRY, {**ENTRY, "path": "a/b"}]},
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_a_malformed_list_is_refused_although_it_is_signed(
    case: str, files: Files, tmp_path: Path
) -> None:
    raw = make.changed_list(make.contents_of(files), **BAD_LISTS[case])
    error = refusal(written(tmp_path, make.archive_of(make.signed(raw))), tmp_path)
    assert error.name == "BUNDLE_FORM"


def test_a_list_of_another_version_is_refused_by_name(files: Files, tmp_path: Path) -> None:
    raw = make.changed_list(make.contents_of(files), schema="fedcare.bundle/v2")
    error = refusal(written(tmp_path, make.archive_of(make.signed(raw))), tmp_path)
    assert error.name == "SCHEMA_VERSION"


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"a":1,"a":2}', b"[" * 100_000, b"\xff"])
def test_a_list_that_is_not_json_is_refused(raw: bytes, tmp_path: Path) -> None:
    error = refusal(written(tmp_path, make.archive_of(make.signed(raw))), tmp_path)
    assert error.name == "BUNDLE_FORM"


def test_a_list_reads_back_as_it_was_written(files: Files) -> None:
    contents = make.contents_of(files)
    assert parse_contents(contents.to_json()) == contents


# ---------------------------------------------------------------- the bill of materials


def resigned(files: Files, tmp_path: Path, sbom: object) -> Path:
    """A bundle with another bill of materials, signed by the right key."""
    changed = {**files, SBOM_FILE: json.dumps(sbom).encode()}
    return written(tmp_path, make.archive_of(make.members_of(changed)))


def test_a_bill_that_does_not_match_the_wheels_is_refused_although_signed(
    files: Files, tmp_path: Path
) -> None:
    good = json.loads(files[SBOM_FILE])

    def component(name: str) -> dict[str, object]:
        found: dict[str, object] = next(c for c in good["components"] if c["name"] == name)
        return found

    def others(name: str) -> list[object]:
        return [c for c in good["components"] if c["name"] != name]

    alpha, beta = component("alpha-one"), component("beta")
    digest = [{"alg": "SHA-256", "content": "0" * 64}]
    wrong = {
        "another SHA-256": [*others("beta"), {**beta, "hashes": digest}],
        "another SHA-256 ": [*others("beta"), {**beta, "hashes": []}],
        "does not name": others("beta"),
        "twice": [*good["components"], alpha],
        "calls": [*others("beta"), {**beta, "version": "2.1", "purl": "pkg:pypi/beta@2.1"}],
        "calls ": [*others("beta"), {**beta, "purl": "pkg:pypi/gamma@2.0%2Bcpu"}],
        "which is not there": [
            *good["components"],
            {**alpha, "properties": [{"name": "fedcare:file", "value": "images/more.tar"}]},
        ],
    }
    for words, components in wrong.items():
        error = refusal(resigned(files, tmp_path, {**good, "components": components}), tmp_path)
        assert error.name == "BUNDLE_SBOM"
        assert words.strip() in error.detail
    assert verify(resigned(files, tmp_path, good), PUBLIC)


@pytest.mark.parametrize("sbom", [[], {}, {"metadata": 1}, {"metadata": {"component": {}}}, 1])
def test_a_bill_that_is_none_is_refused(sbom: object, files: Files, tmp_path: Path) -> None:
    assert refusal(resigned(files, tmp_path, sbom), tmp_path).name == "BUNDLE_FORM"


def test_a_bundle_without_a_bill_is_refused(files: Files, tmp_path: Path) -> None:
    members = make.members_of(without(SBOM_FILE)(files))
    assert refusal(written(tmp_path, make.archive_of(members)), tmp_path).name == "BUNDLE_FORM"


# ---------------------------------------------------------------- unpacking


@pytest.mark.parametrize("what", ["file", "folder", "dangling link"])
def test_nothing_is_unpacked_over_what_is_there(what: str, bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if what == "file":
        target.write_bytes(b"mine")
    elif what == "folder":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FedError) as caught:
        verify(bundle, PUBLIC, target)
    assert caught.value.name == "OUTPUT_EXISTS"


def test_a_file_exchanged_between_verifying_and_unpacking_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bundle_check._extract

    def exchange(*args: object) -> None:
        data = bytearray(bundle.read_bytes())
        data[data.index(b"read me")] ^= 1
        with bundle.open("r+b") as file:
            file.write(data)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bundle_check, "_extract", exchange)
    error = refusal(bundle, tmp_path)
    assert error.name == "BUNDLE_DAMAGED"
    assert "source/README.md" in error.detail


def test_a_folder_is_not_unpacked_again(files: Files, tmp_path: Path) -> None:
    folder = make.folder_of(tmp_path / "folder", files)
    with pytest.raises(FedError) as caught:
        verify(folder, PUBLIC, tmp_path / "target")
    assert caught.value.name == "BAD_ARGUMENT"


# ---------------------------------------------------------------- keys


def test_a_new_key_is_private_and_its_public_half_verifies(tmp_path: Path) -> None:
    public, digest = make_key(tmp_path / "release.pem")
    assert stat.S_IMODE((tmp_path / "release.pem").stat().st_mode) == 0o600
    key = load_signing_key(tmp_path / "release.pem")
    assert load_pinned_key(public).public_bytes_raw() == key.public_key().public_bytes_raw()
    assert len(digest) == 64


@pytest.mark.timeout(20)
def test_a_pipe_named_as_the_key_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "release.pub")
    with pytest.raises(FedError, match="is not a file"):
        load_pinned_key(tmp_path / "release.pub")


@pytest.mark.parametrize("there", ["release.pem", "release.pub"])
def test_a_key_is_never_overwritten(there: str, tmp_path: Path) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(FedError) as caught:
        make_key(tmp_path / "release.pem")
    assert caught.value.name == "OUTPUT_EXISTS"
    assert [path.name for path in tmp_path.iterdir()] == [there]


def test_a_signing_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    make_key(tmp_path / "release.pem")
    (tmp_path / "release.pem").chmod(0o640)
    with pytest.raises(FedError) as caught:
        load_signing_key(tmp_path / "release.pem")
    assert caught.value.name == "KEY_PERMISSIONS"


def test_keys_of_another_kind_are_refused(tmp_path: Path) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "ec.pem", tmp_path / "ec.pub"
    private.write_bytes(curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(
        curve.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    own, _ = make_key(tmp_path / "release.pem")
    for load, path in (
        (load_signing_key, private),
        (load_pinned_key, public),
        (load_pinned_key, tmp_path / "release.pem"),
    ):
        with pytest.raises(FedError) as caught:
            load(path)
        assert caught.value.name == "BUNDLE_KEY"
    own.chmod(0o600)
    with pytest.raises(FedError) as caught:
        load_signing_key(own)
    assert caught.value.name == "BUNDLE_KEY"


# ---------------------------------------------------------------- commands


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, object]]:
    code = main(["bundle", *map(str, args), "--json"])
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return code, answer


def test_the_commands_make_a_key_verify_unpack_and_show(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pinned = tmp_path / "pinned.pub"
    pinned.write_bytes(PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    target = tmp_path / "out"
    code, answer = run(capsys, "verify", bundle, "--key", pinned, "--extract", target)
    assert (code, answer["ok"]) == (0, True)
    assert (target / SCRIPT).exists()
    code, answer = run(capsys, "show", bundle)
    data = answer["data"]
    assert isinstance(data, dict)
    assert data["licences"] == {"MIT": 1, "Apache-2.0": 1, "BSD License": 1}
    assert (data["wheels"], data["images"]) == (3, [IMAGE])
    assert data["signature_checked"] is False
    assert run(capsys, "show", target, "--key", pinned)[0] == 0
    assert run(capsys, "key", tmp_path / "own.pem")[0] == 0
    code, answer = run(capsys, "verify", bundle, "--key", tmp_path / "own.pub")
    assert code == 4
    error = answer["error"]
    assert isinstance(error, dict)
    assert error["code"] == "FC-7201"


def test_showing_checks_what_it_shows(files: Files, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FedError) as caught:
        facts(bundle, OTHER_KEY.public_key())
    assert caught.value.name == "BUNDLE_SIGNATURE"
    changed = flipped("licences/INDEX.tsv")(files)
    members = make.members_of(changed, make.contents_of(files))
    with pytest.raises(FedError) as caught:
        facts(written(tmp_path, make.archive_of(members)), PUBLIC)
    assert caught.value.name == "BUNDLE_DAMAGED"
