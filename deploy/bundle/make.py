"""Makes a bundle: `make bundle SIGNING_KEY=release.pem [IMAGES="name:tag .."] [DIRTY=1]`.

The steps: read the tree, build our wheel, save the images, take out the licences, write the
bill of materials, list all with their digests, sign the list, write the archive, and verify
that as a hospital would. Nothing is signed by a key that was not given. The same commit, wheel
house and key give the same bytes; only images differ from one `docker save` to the next.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from packaging.utils import canonicalize_name

from common import bundle as form
from common.bundle_check import verify
from common.errors import FedError
from common.ustar import CHUNK, END, MAX_SIZE, bad_name, header, padding
from deploy.bundle import images, licences, sbom, wheels
from deploy.bundle.failure import Failure
from deploy.bundle.locks import ROOT, base_image, pins
from deploy.bundle.source import Tree, build_wheel, read_tree


@dataclass(slots=True)
class Collection:
    """What goes into the bundle: path there, to file here and whether it is executable."""

    work: Path
    files: dict[str, tuple[Path, bool]] = field(default_factory=dict)

    def add(self, path: str, local: Path, *, executable: bool = False) -> None:
        """Take in a file.

        Raises:
            Failure: its name or size fits no bundle.
        """
        wrong = bad_name(path)
        if wrong is None and local.stat().st_size > MAX_SIZE:
            wrong = f"it is larger than {MAX_SIZE} bytes"
        if wrong is None and path in self.files:
            wrong = "it stands there twice"
        if wrong:
            raise Failure(f"{path}: {wrong}")
        self.files[path] = (local, executable)

    def write(self, path: str, data: bytes) -> None:
        """Take in a file that is made here."""
        local = self.work / "made" / path
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(data)
        self.add(path, local)

    def entries(self) -> list[form.FileEntry]:
        """Return the files in order, with their digests."""
        return [
            form.FileEntry(path, wheels.sha256_of(local), local.stat().st_size, executable)
            for path, (local, executable) in sorted(self.files.items())
        ]


def make(
    tree: Tree,
    house: Path,
    key: Ed25519PrivateKey,
    out: Path,
    image_names: Sequence[str] = (),
) -> Path:
    """Make the archive in the folder `out`; return its path.

    Raises:
        Failure: something that belongs into it is not there.
        FedError: the result does not verify.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=out) as name:
        collection = Collection(Path(name))
        _fill(collection, tree, house, image_names)
        entries = collection.entries()
        sums = "".join(f"{entry.sha256}  {entry.path}\n" for entry in entries)
        collection.write(form.SUMS_FILE, sums.encode())
        contents = form.Contents(
            version=tree.version,
            commit=tree.commit,
            dirty=tree.dirty,
            created=f"{tree.created:%Y-%m-%dT%H:%M:%SZ}",
            platform=_platform(),
            base_image=base_image(),
            signer=form.fingerprint(key.public_key()),
            files=tuple(collection.entries()),
        )
        staged = Path(name) / "bundle.tar"
        with staged.open("wb") as archive:
            _write(archive, contents, key, collection)
            archive.flush()
            os.fsync(archive.fileno())
        verify(staged, key.public_key())
        return staged.replace(out / f"{contents.name}.tar")


def _platform() -> str:
    machine = os.uname().machine
    return f"cp{sys.version_info[0]}{sys.version_info[1]}-{sys.platform}_{machine}"


def _fill(collection: Collection, tree: Tree, house: Path, image_names: Sequence[str]) -> None:
    for name, executable in tree.files.items():
        collection.add(f"source/{name}", tree.root / name, executable=executable)
    product = _wheel(build_wheel(tree, collection.work), "dist/")
    house_wheels = [_wheel(path, form.WHEELHOUSE) for path in sorted(house.glob("*.whl"))]
    saved = [images.save(name, collection.work) for name in image_names]
    for wheel in (product, *house_wheels):
        collection.add(wheel.path, wheel.local)
        for text, data in wheel.licence.texts.items():
            collection.write(f"{wheel.licence.folder}/{text}", data)
    for image, local in saved:
        collection.add(image.path, local)
    every = [product.licence, *(wheel.licence for wheel in house_wheels)]
    collection.write(form.LICENCES_FILE, licences.index(every))
    listed = [image for image, _ in saved]
    bill = sbom.bill(product, house_wheels, listed, base_image(), tree.created)
    collection.write(form.SBOM_FILE, bill)


def _wheel(local: Path, folder: str) -> sbom.Wheel:
    digest = wheels.sha256_of(local)
    return sbom.Wheel(local, f"{folder}{local.name}", digest, licences.licence_of(local))


# --- the archive -------------------------------------------------------------------------


def _write(
    archive: BinaryIO, contents: form.Contents, key: Ed25519PrivateKey, collection: Collection
) -> None:
    """Write the list, the signature, then the files in the list's order."""
    raw = contents.to_json()
    for name, data in ((form.LIST_FILE, raw), (form.SIGNATURE_FILE, form.sign(key, raw))):
        archive.write(header(f"{contents.name}/{name}", len(data), executable=False))
        archive.write(data + bytes(padding(len(data))))
    for entry in contents.files:
        name = f"{contents.name}/{entry.path}"
        archive.write(header(name, entry.size, executable=entry.executable))
        for data in _chunks(collection.files[entry.path][0]):
            archive.write(data)
        archive.write(bytes(padding(entry.size)))
    archive.write(END)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data


# --- from the command line ---------------------------------------------------------------

NO_KEY: Final = (
    "SIGNING_KEY is missing: a bundle is signed by the consortium's release key, or not made.\n"
    "  make bundle SIGNING_KEY=release.pem      (`fedcare bundle key release.pem` makes one)"
)


def _checked_house(house: Path) -> None:
    """Refuse a wheel house that is not exactly what the locks say."""
    wanted = pins()
    there = set()
    for path in sorted(house.glob("*.whl")):
        wrong = wheels.wrong_with(path, wanted)
        if wrong:
            raise Failure(f"deploy/wheelhouse/{path.name}: {wrong}; run `make wheelhouse`")
        there.add(canonicalize_name(path.name.split("-")[0]))
    missing = sorted(set(wanted) - there)
    if missing:
        raise Failure(f"deploy/wheelhouse has no {missing[0]}; run `make wheelhouse`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a bundle; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bundle")
    parser.add_argument("--key", default="", help="the release key, Ed25519 in PEM, mode 0600")
    parser.add_argument("--images", default="", help="images of the engine to bring along")
    parser.add_argument("--dirty", default="", help="1: allow a tree with changes")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="where to write")
    options = parser.parse_args(arguments)
    try:
        if not options.key:
            raise Failure(NO_KEY)  # noqa: TRY301 - the one place that prints failures
        key = form.load_signing_key(Path(options.key))
        tree = read_tree(ROOT, dirty_allowed=options.dirty == "1")
        _checked_house(wheels.HOUSE)
        path = make(tree, wheels.HOUSE, key, options.out, options.images.split())
    except Failure as failure:
        sys.stderr.write(f"bundle: {failure}\n")
        return 1
    except FedError as error:
        sys.stderr.write(f"error {error}\nfix: {error.fix}\n")
        return int(error.kind.exit_code)
    size = path.stat().st_size / 1e6
    sys.stdout.write(f"{path}  {size:.0f} MB\nsigned by {form.fingerprint(key.public_key())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
