"""The bundle's bill of materials, CycloneDX 1.6.

Every wheel is a component with its digest, licence and place in the bundle; so is every
image. The base image is named and marked as not brought along. Dependencies are those that
the wheels' own metadata states for this platform. Equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.bundle_check import SBOM_PATH_PROPERTY
from deploy.bundle.licences import UNKNOWN, Licence
from deploy.bundle.wheels import metadata, needs

EXTRAS: Final = ("", "node", "train", "demo")
"""What of our own wheel the bundle installs: all but the developers' tools."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the bundle: where it lies here, where there, and what is known of it."""

    local: Path
    path: str
    sha256: str
    licence: Licence


@dataclass(frozen=True, slots=True)
class Image:
    """A container image of the bundle; `name` is `repository:tag`."""

    name: str
    path: str
    sha256: str
    image_id: str


def bill(
    product: Wheel,
    wheels: Sequence[Wheel],
    images: Sequence[Image],
    base_image: str,
    created: datetime,
) -> bytes:
    """Return sbom.cdx.json; `product` is our own wheel."""
    bom = Bom(serial_number=_serial([product, *wheels], images, base_image))
    bom.metadata.timestamp = created
    root = _wheel_component(product, ComponentType.APPLICATION)
    bom.metadata.component = root
    components = {wheel.licence.name: _wheel_component(wheel) for wheel in wheels}
    base = _base_component(base_image)
    for component in (*components.values(), *map(_image_component, images), base):
        bom.components.add(component)
    bom.register_dependency(root, [*_needed(product, components, EXTRAS), base])
    for wheel in wheels:
        bom.register_dependency(components[wheel.licence.name], _needed(wheel, components))
    return (JsonV1Dot6(bom).output_as_string(indent=1) + "\n").encode()


def _serial(wheels: Sequence[Wheel], images: Sequence[Image], base_image: str) -> uuid.UUID:
    """Return a number that is new for new contents and the same for the same."""
    digests = sorted([*(wheel.sha256 for wheel in wheels), *(image.sha256 for image in images)])
    seed = hashlib.sha256("\n".join([*digests, base_image]).encode()).hexdigest()
    return uuid.uuid5(uuid.NAMESPACE_URL, f"urn:fedcare:bundle:{seed}")


def _wheel_component(wheel: Wheel, kind: ComponentType = ComponentType.LIBRARY) -> Component:
    name, version = wheel.licence.name, wheel.licence.version
    stated = wheel.licence.licence
    return Component(
        type=kind,
        name=name,
        version=version,
        bom_ref=f"pypi:{name}",
        purl=PackageURL("pypi", None, name, version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
        licenses=[LicenseFactory().make_from_string(stated)] if stated != UNKNOWN else [],
        properties=[Property(name=SBOM_PATH_PROPERTY, value=wheel.path)],
    )


def _image_component(image: Image) -> Component:
    repository, _, tag = image.name.rpartition(":")
    return Component(
        type=ComponentType.CONTAINER,
        name=repository,
        version=tag,
        bom_ref=f"image:{image.name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=image.sha256)],
        properties=[
            Property(name=SBOM_PATH_PROPERTY, value=image.path),
            Property(name="fedcare:image-id", value=image.image_id),
        ],
    )


def _base_component(name: str) -> Component:
    repository, _, tag = name.rpartition(":")
    return Component(
        type=ComponentType.CONTAINER,
        name=repository or name,
        version=tag if repository else None,
        bom_ref=f"base:{name}",
        description="The base image that images are built from; it is not in the bundle.",
        properties=[Property(name="fedcare:included", value="false")],
    )


def _needed(
    wheel: Wheel, components: dict[str, Component], extras: Sequence[str] = ("",)
) -> list[Component]:
    """Return what a wheel requires of what is in the bundle, each once."""
    names = {
        canonicalize_name(Requirement(line).name) for line in needs(metadata(wheel.local), extras)
    }
    return [components[name] for name in sorted(names) if name in components]
