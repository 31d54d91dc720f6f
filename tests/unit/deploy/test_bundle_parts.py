"""The parts of a bundle: bill of materials, licences, and the tree it is made from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from common.ustar import bad_name
from deploy.bundle import images, licences
from deploy.bundle import make as maker
from deploy.bundle.failure import Failure
from deploy.bundle.source import read_tree
from deploy.bundle.wheels import metadata
from tests import bundle_factory as make
from tests.bundle_factory import ALPHA, BETA, IMAGE, WHEELS, sha256, wheel_bytes


def sbom(folder: Path) -> bytes:
    return make.sbom_of(folder, WHEELS, {IMAGE: b"an image"})


# ---------------------------------------------------------------- the bill of materials


def test_the_bill_is_valid_cyclonedx_1_6(tmp_path: Path) -> None:
    text = sbom(tmp_path).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"type": "library"', '"type": "shelf"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_the_bill_names_every_wheel_with_purl_digest_licence_and_place(tmp_path: Path) -> None:
    body = json.loads(sbom(tmp_path))
    product = body["metadata"]["component"]
    assert (product["name"], product["type"], product["version"]) == (
        "fedcare",
        "application",
        "0.1.0",
    )
    found = {part["name"]: part for part in body["components"]}
    for name, path in (("alpha-one", ALPHA), ("beta", BETA)):
        assert found[name]["hashes"] == [{"alg": "SHA-256", "content": sha256(WHEELS[path])}]
        assert {"name": "fedcare:file", "value": path} in found[name]["properties"]
    assert found["beta"]["purl"] == "pkg:pypi/beta@2.0%2Bcpu"
    assert found["alpha-one"]["licenses"] == [{"license": {"id": "MIT"}}]
    assert found["beta"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert found["python"]["type"] == "container"
    assert found["python"]["version"] == "3.11-slim-bookworm"
    assert {"name": "fedcare:included", "value": "false"} in found["python"]["properties"]
    assert found["fedcare/node"]["hashes"][0]["content"] == sha256(b"an image")


def test_the_bill_states_what_needs_what(tmp_path: Path) -> None:
    body = json.loads(sbom(tmp_path))
    graph = {row["ref"]: set(row.get("dependsOn", [])) for row in body["dependencies"]}
    base = f"base:{make.BASE_IMAGE}"
    assert graph["pypi:fedcare"] == {"pypi:alpha-one", "pypi:beta", base}
    assert graph["pypi:alpha-one"] == {"pypi:beta"}
    assert graph["pypi:beta"] == set()


def test_equal_wheels_give_an_equal_bill_and_other_wheels_another_number(tmp_path: Path) -> None:
    first = sbom(tmp_path)
    assert first == sbom(tmp_path)
    other = make.sbom_of(tmp_path, {**WHEELS, BETA: wheel_bytes("beta", "2.1")}, {})
    assert json.loads(first)["serialNumber"] != json.loads(other)["serialNumber"]


# ---------------------------------------------------------------- licences


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        (["License-Expression: Apache-2.0 OR MIT", "License: something"], "Apache-2.0 OR MIT"),
        (["Classifier: License :: OSI Approved :: MIT License"], "MIT"),
        (["License: 3-Clause BSD License"], "3-Clause BSD License"),
        (["License: BSD", "Classifier: License :: OSI Approved :: BSD License"], "BSD"),
        (["License: Copyright (c) somebody", "        and much more"], "not stated"),
        (["Classifier: License :: OSI Approved :: BSD License"], "BSD License"),
        ([], "not stated"),
    ],
)
def test_a_licence_is_read_wherever_the_wheel_states_it(
    lines: list[str], licence: str, tmp_path: Path
) -> None:
    wheel = tmp_path / "alpha-1-py3-none-any.whl"
    wheel.write_bytes(wheel_bytes("alpha", "1", *lines))
    assert licences.stated(metadata(wheel)) == licence


def test_licence_texts_are_taken_out_under_names_a_bundle_may_hold(tmp_path: Path) -> None:
    wheel = tmp_path / "alpha-1-py3-none-any.whl"
    texts = {
        "licenses/LICENSE": b"1",
        "licenses/third party/LICENSE (MIT).txt": b"2",
        "LICENSE": b"3",
        "licenses/../NOTICE": b"4",
        "RECORD": b"no",
        "license.py": b"no",
    }
    wheel.write_bytes(wheel_bytes("alpha", "1", files=texts))
    found = licences.texts_of(wheel)
    assert sorted(found.values()) == [b"1", b"2", b"3", b"4"]
    assert "third_party/LICENSE__MIT_.txt" in found
    assert all(bad_name(name) is None for name in found)
    assert all(".." not in name for name in found)


def test_the_index_lists_a_wheel_that_brings_no_text(tmp_path: Path) -> None:
    rows = [make.known(tmp_path, path, data).licence for path, data in WHEELS.items()]
    lines = licences.index(rows).decode().splitlines()
    assert lines[0] == "name\tversion\tlicence\ttexts"
    assert "beta\t2.0+cpu\tBSD License\t0" in lines
    assert "alpha-one\t1.0\tMIT\t1" in lines


# ---------------------------------------------------------------- the tree


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", ".")
    commit(root)
    return root


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True)  # noqa: S607


def commit(root: Path) -> None:
    git(root, "commit", "-q", "-m", "x", "--no-gpg-sign")


def test_a_clean_checkout_is_its_tracked_files(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("not tracked")
    tree = read_tree(checkout, dirty_allowed=False)
    assert tree.files == {"pyproject.toml": False, "run": True}
    assert (tree.version, tree.dirty, len(tree.commit)) == ("1.2.3", False, 40)


def test_a_checkout_with_changes_is_refused_or_says_so(checkout: Path) -> None:
    (checkout / "run").write_text("changed")
    with pytest.raises(Failure, match="run differs from commit"):
        read_tree(checkout, dirty_allowed=False)
    assert read_tree(checkout, dirty_allowed=True).dirty


def test_a_link_in_the_tree_is_refused(checkout: Path) -> None:
    (checkout / "link").symlink_to("run")
    git(checkout, "add", "link")
    commit(checkout)
    with pytest.raises(Failure, match="link is a link"):
        read_tree(checkout, dirty_allowed=False)


def test_what_is_no_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(Failure, match="git rev-parse"):
        read_tree(tmp_path, dirty_allowed=False)


# ---------------------------------------------------------------- the maker


def test_nothing_is_made_without_a_key_or_with_one_that_others_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maker.main(["--out", str(tmp_path / "out")]) == 1
    assert "SIGNING_KEY is missing" in capsys.readouterr().err
    key = tmp_path / "release.pem"
    key.write_text("x")
    key.chmod(0o644)
    assert maker.main(["--key", str(key), "--out", str(tmp_path / "out")]) == 4
    assert "FC-2008" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_house_that_is_not_the_locks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="has no absl-py; run `make wheelhouse`"):
        maker._checked_house(tmp_path)
    (tmp_path / "alpha-1-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(Failure, match="in no lock"):
        maker._checked_house(tmp_path)


def test_a_file_that_no_bundle_may_hold_stops_the_maker(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    collection = maker.Collection(tmp_path)
    collection.add("source/a", tmp_path / "a")
    for path in ("source/a", "../a", "/a", "source/a b", "x" * 300):
        with pytest.raises(Failure):
            collection.add(path, tmp_path / "a")


def test_an_image_without_a_tag_or_an_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Failure, match="has no tag"):
        images.save("registry.example.org:5000/node", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="docker is not installed"):
        images.save("node:1", tmp_path)
