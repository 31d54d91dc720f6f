"""A whole federation on this machine: its folders, and its processes.

    DIR/pki/                     the consortium's CA
    DIR/coordinator/             coordinator.yaml, its certificate, its state
    DIR/sites/<site>/            node.yaml, policy.yaml, site.yaml, its certificate and key,
                                 its own table and nobody else's, its state
    DIR/researcher/              the study owner's certificate
    DIR/logs/<process>.log

Everything is what an operator and hospitals would write by hand and start by
`fedcare coordinator serve` and `fedcare node serve`: real processes, mutual TLS, no mode
of their own. Used by `demo` and `bench`; `sim` uses the folders with a memory transport.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from common.certificates import Role
from common.clock import Clock, SystemClock
from common.config import format_duration
from common.documents import dump_yaml
from common.errors import ConfigError, RoundError
from common.pki import create_ca, issue
from common.policy import PUBLIC_WEIGHTS, RINGS, STATISTICS, PrivacyRules
from common.study import Study
from researcher.processes import FEDCARE, Children, Program

LOOPBACK: Final = "127.0.0.1"
_TWO: Final = 2
_LEAF_DAYS: Final = 2
_LOW_PORT, _HIGH_PORT = 20_000, 32_000
"""Below the ports that the kernel hands out: a node that dials before the coordinator
listens could otherwise be connected to itself."""

_POLL_S: Final = 0.02
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """One hospital: its name and its table (None for a study without data).

    `columns` maps the study's names to the table's own, `patient` is empty or holds the key
    `patient`, as a site manifest does. The table is copied into the hospital's folder unless
    `in_place`. `section` is a whole table of a manifest instead, of any kind, where it lies.
    """

    name: str
    table: Path | None = None
    in_place: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    patient: Mapping[str, str | None] = field(default_factory=dict)
    section: Mapping[str, Any] | None = None

    @property
    def has_data(self) -> bool:
        """Whether the hospital has a table at all."""
        return self.table is not None or self.section is not None


@dataclass(frozen=True, slots=True)
class FederationPlan:
    """What is to be built: for one study, with the policies that allow just that study's kind."""

    folder: Path
    federation: str
    study: Study
    sites: Sequence[SitePlan]
    timing: Mapping[str, str] = field(default_factory=dict)
    min_cell: int = 10
    """Smallest cell of the hospitals' policies; 1 where no hospital is behind the tables."""

    def site_folder(self, site: str) -> Path:
        """Return a hospital's own folder."""
        return self.folder / "sites" / site

    @property
    def coordinator_folder(self) -> Path:
        """Return the coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def researcher_folder(self) -> Path:
        """Return the folder of the researcher's certificate."""
        return self.folder / "researcher"


# --- folders ------------------------------------------------------------------------------------


def build(plan: FederationPlan, address: str, clock: Clock | None = None) -> None:
    """Write every file of a federation into `plan.folder`, which holds none of them yet.

    Raises:
        ConfigError: OUTPUT_EXISTS, or a site's name or table that cannot be.
        StateError: DISK.
    """
    if len(plan.sites) < _TWO:
        raise ConfigError("BAD_ARGUMENT", "a federation has at least two hospitals")
    now = (clock or SystemClock()).unix()
    pki = plan.folder / "pki"
    ca = create_ca(pki, plan.federation, now_unix=now)
    issue(
        pki,
        Role.COORDINATOR,
        "coordinator",
        now_unix=now,
        hosts=(LOOPBACK, "localhost"),
        days=_LEAF_DAYS,
        out=plan.coordinator_folder,
    )
    issue(
        pki,
        Role.RESEARCHER,
        plan.study.owner.organisation,
        now_unix=now,
        days=_LEAF_DAYS,
        out=plan.researcher_folder,
    )
    write(plan.coordinator_folder / "coordinator.yaml", coordinator_file(plan, address))
    for site in plan.sites:
        folder = plan.site_folder(site.name)
        issue(pki, Role.HOSPITAL, site.name, now_unix=now, days=_LEAF_DAYS, out=folder)
        _build_site(plan, site, folder, ca.sha256, address)


def _build_site(
    plan: FederationPlan, site: SitePlan, folder: Path, ca_sha256: str, address: str
) -> None:
    write(folder / "policy.yaml", policy_file(plan, site.name, ca_sha256, address))
    if site.section is not None:
        entry = {**site.section, "name": plan.study.dataset}
        manifest = {"schema": "fedcare.site/v1", "id": site.name, "data": [entry]}
        write(folder / "site.yaml", manifest)
    elif site.table is not None:
        path = site.table.absolute()
        if not site.in_place:
            path = Path(shutil.copyfile(site.table, folder / f"{site.name}.csv").name)
        manifest = site_file(site.name, plan.study.dataset, str(path), site.columns, site.patient)
        write(folder / "site.yaml", manifest)
    write(folder / "node.yaml", node_file(has_table=site.has_data))


def site_file(
    site: str,
    dataset: str,
    path: str,
    columns: Mapping[str, str] | None = None,
    patient: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return a hospital's manifest of one table."""
    table: dict[str, Any] = {"name": dataset, "kind": "csv", "path": path}
    table |= {"columns": dict(columns or {}), **(patient or {})}
    return {"schema": "fedcare.site/v1", "id": site, "data": [table]}


def node_file(*, has_table: bool) -> dict[str, Any]:
    """Return a node's own file."""
    return {"schema": "fedcare.node/v1", "site": "site.yaml" if has_table else None}


def coordinator_file(plan: FederationPlan, address: str) -> dict[str, Any]:
    """Return the coordinator's own file."""
    timing = {"timing": dict(plan.timing)} if plan.timing else {}
    return {
        "schema": "fedcare.coordinator/v1",
        "federation": plan.federation,
        "listen": address,
        "http": None,  # several may run on one machine
        "state_dir": "state",
        "members": sorted(site.name for site in plan.sites),
        **timing,
    }


def policy_file(plan: FederationPlan, site: str, ca_sha256: str, address: str) -> dict[str, Any]:
    """Return the policy of a hospital that allows this study's kind and owner, no more."""
    study, count = plan.study, len(plan.sites)
    weights = study.federation.weight_rule
    two = _TWO in (count, study.federation.min_sites)
    require: dict[str, Any] = {
        "min_cohort": min(3, study.federation.min_sites),
        "min_sites": study.federation.min_sites,
        "colluders": study.colluders(count),
        "dp": _privacy_rules(study),
    }
    if two:
        require["allow_two_party"] = True
    return {
        "schema": "fedcare.policy/v1",
        "site": site,
        "federation": {
            "id": plan.federation,
            "ca_sha256": ca_sha256,
            "members": sorted(entry.name for entry in plan.sites),
        },
        "coordinator": {"address": address},
        "allow": {
            "purposes": [study.purpose],
            "owners": [study.owner.organisation],
            "datasets": [study.dataset],
            "model_kinds": [STATISTICS if study.kind == "statistics" else study.model.kind],
            "strategies": [study.federation.strategy.name],
            "weights": [PUBLIC_WEIGHTS if weights == "public" else weights],
            "ring_bits": sorted({*RINGS, study.federation.upload_bits}),
        },
        "require": require,
        "release": {"site_metrics": study.evaluate.site_metrics, "min_cell": plan.min_cell},
        "limits": _limits(study),
    }


def _limits(study: Study) -> dict[str, Any]:
    """Return limits that are no narrower than the study needs."""
    from common.layouts import result_schema
    from common.policy_limits import ResourceLimits
    from hospital_node.consent_limits import upload_bytes

    usual, train = ResourceLimits(), study.train
    return {
        "parameters": max(usual.parameters, result_schema(study).parameters),
        "upload_bytes": max(usual.upload_bytes, upload_bytes(study)),
        "rounds": max(usual.rounds, study.federation.rounds),
        "local_steps": max(usual.local_steps, train.local_steps or 0),
        "local_epochs": max(usual.local_epochs, train.local_epochs or 0),
        "round_deadline": format_duration(
            max(usual.round_deadline, study.federation.round_deadline)
        ),
    }


def _privacy_rules(study: Study) -> dict[str, Any]:
    """Allow the privacy terms of this study, and in all what a policy allows by default."""
    terms, usual = study.privacy.dp, PrivacyRules()
    if not terms.on:
        return {"modes": [terms.mode]}
    return {
        "modes": [terms.mode],
        "epsilon_per_study": terms.epsilon,
        "epsilon_total": max(usual.epsilon_total, terms.epsilon or 0.0),
        "delta": terms.delta,
        "max_clip": terms.clip,
    }


def write(path: Path, data: Mapping[str, Any]) -> None:
    """Write a YAML file for people to read."""
    path.write_text(dump_yaml(data), encoding="utf-8")


def free_address() -> str:
    """Return a loopback address whose port nobody uses now.

    Raises:
        RoundError: no free port was found.
    """
    for _ in range(200):
        port = _LOW_PORT + secrets.randbelow(_HIGH_PORT - _LOW_PORT)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
        return f"{LOOPBACK}:{port}"
    raise RoundError("RUN_FAILED", "no free loopback port was found")


# --- processes -----------------------------------------------------------------------------------


class LocalFederation:
    """The running processes of a plan; leaving the context stops all of them.

    `build` has written the folders. `programs` names a hospital's program where it is not
    `fedcare node serve` (a bench's hospital that always drops out).
    """

    def __init__(
        self, plan: FederationPlan, address: str, programs: Mapping[str, Program] | None = None
    ) -> None:
        self.plan = plan
        self.address = address
        self.children = Children(plan.folder / "logs")
        self._programs = programs or {}

    async def __aenter__(self) -> Self:
        await self.children.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.children.__aexit__(kind, error, trace)

    async def start(self) -> None:
        """Start the coordinator and, as soon as it listens, every hospital.

        A hospital that dials before would be right to back off, and be late.

        Raises:
            RoundError: RUN_FAILED, a process died; DEADLINE, it did not listen in time.
        """
        folder = self.plan.coordinator_folder
        serve = ["coordinator", "serve", "--config", "coordinator.yaml"]
        await self.children.start("coordinator", serve, folder)
        async with self.children.guard():
            await self._listening(folder / "state" / "address")
        for site in self.plan.sites:
            await self.children.start(
                site.name,
                ["node", "serve", "--config", "node.yaml"],
                self.plan.site_folder(site.name),
                self._programs.get(site.name, FEDCARE),
            )

    async def _listening(self, mark: Path) -> None:
        try:
            async with asyncio.timeout(_START_S):
                while not await asyncio.to_thread(mark.exists):  # noqa: ASYNC110 - a file
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise RoundError(
                "DEADLINE", f"the coordinator did not listen on {self.address} in {_START_S:g} s"
            ) from None
