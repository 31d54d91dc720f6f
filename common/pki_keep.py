"""Brings a federation's certificates up to date: `fedcare pki keep PLAN.yaml`.

    schema: fedcare.pki/v1
    federation: heart-network
    ca: ca                       # the CA's folder; made if it is empty
    days: 90                     # life of a leaf
    ca_days: 3650
    identities:
      - {role: coordinator, id: main, out: coordinator, hosts: [coordinator.example.org]}
      - {role: hospital, id: cleveland, out: cleveland}

Paths are relative to the plan's folder. The order of things:

1. Everything is looked at and every refusal made before anything is written. Refused is
   what this command did not put there: another CA's certificate, another name, a file it
   does not know. It never deletes and never takes anybody else's place.
2. The CA is made if there is none, and complete before the first leaf.
3. An identity is issued if absent; issued again once half of its life is over, when the
   plan's hosts changed, or when its files do not fit together; otherwise kept as it is.

Files are replaced inside their folders, which may be mount points. A crash between two
renames leaves a key beside an older certificate: case 3, healed by the next run. With
nothing to do it neither writes nor needs `ca.key`, which may then lie elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from pydantic import Field, PrivateAttr, model_validator

from common.certificates import Role, read_leaf, stamp, to_der
from common.config import Section, Text, load, problem
from common.errors import ConfigError, IdentityError, StateError
from common.identity import check_match, load_certificates, load_key
from common.install import lock, make_folder, replace_files, temporary
from common.pki import (
    CA_DAYS,
    CA_FILE,
    CA_KEY,
    CERTIFICATE_FILE,
    KEY_FILE,
    LEAF_DAYS,
    MAX_LEAF_DAYS,
    Authority,
    Made,
    ca_federation,
    host_names,
    load_ca,
    make_ca,
    make_leaf,
)
from common.site import SiteId

SCHEMA: Final = "fedcare.pki/v1"

_IDENTITY: Final = (CERTIFICATE_FILE, KEY_FILE, CA_FILE)
_FILE_SYSTEM: Final = "lost+found"
"""What an empty volume may hold."""

_DAY: Final = timedelta(days=1)


# --- the plan ---------------------------------------------------------------------------


class PlannedIdentity(Section):
    """One machine's or person's certificate: `out` is its folder."""

    role: Literal["hospital", "coordinator", "operator", "researcher"]
    id: SiteId
    out: Annotated[Text, Field(min_length=1, max_length=1024)]
    hosts: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def dialled(self) -> Self:
        """Refuse names to dial where none belong, and a coordinator without one."""
        try:
            host_names(Role(self.role), self.hosts)
        except ConfigError as error:
            raise problem(f"cannot be: {error.detail}", "hosts") from None
        return self

    @property
    def label(self) -> str:
        """How lines about it begin."""
        return f"{self.role} {self.id}"


class PkiPlan(Section):
    """All certificates of one federation."""

    schema_: Annotated[Literal["fedcare.pki/v1"], Field(alias="schema")]
    federation: SiteId
    ca: Annotated[Text, Field(min_length=1, max_length=1024)]
    days: Annotated[int, Field(ge=1, le=MAX_LEAF_DAYS)] = LEAF_DAYS
    ca_days: Annotated[int, Field(ge=MAX_LEAF_DAYS, le=100 * 365)] = CA_DAYS
    identities: Annotated[tuple[PlannedIdentity, ...], Field(min_length=1)]
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def once(self) -> Self:
        """Refuse one name, or one folder, for two identities."""
        names, folders = set(), {os.path.normpath(self.ca)}
        for place, entry in enumerate(self.identities):
            folder = os.path.normpath(entry.out)
            if entry.label in names:
                raise problem(
                    f"names {entry.label} twice", "identities", place, name="DUPLICATE_KEY"
                )
            if folder in folders:
                raise problem(
                    "is another's folder too", "identities", place, "out", name="DUPLICATE_KEY"
                )
            names.add(entry.label)
            folders.add(folder)
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Load the plan at `path`.

        Raises:
            ConfigError: see `common.config.load`.
        """
        return load(path, cls, SCHEMA).value.at(path.parent)

    def at(self, folder: Path) -> Self:
        """Return the plan with its paths relative to `folder`."""
        found = self.model_copy()
        found._folder = folder  # noqa: SLF001 - of this very class; no key of the file
        return found

    @property
    def ca_folder(self) -> Path:
        """Where `ca.crt` and `ca.key` lie."""
        return self._folder / self.ca

    def folder(self, entry: PlannedIdentity) -> Path:
        """Return an identity's folder."""
        return self._folder / entry.out


# --- what there is, and what is to be done ------------------------------------------------


class Action(StrEnum):
    """What becomes of a certificate."""

    ISSUED = "issued"
    RENEWED = "renewed"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Finding:
    """One certificate: what becomes of it and why; `ends` is None until it is made."""

    label: str
    folder: Path
    action: Action
    why: str = ""
    ends: datetime | None = None

    def days_left(self, now_unix: float) -> int | None:
        """Return the whole days that are left of it."""
        if self.ends is None:
            return None
        return (self.ends - datetime.fromtimestamp(now_unix, UTC)) // _DAY


@dataclass(frozen=True, slots=True)
class Report:
    """The CA first, then the identities in the plan's order."""

    ca: Finding
    identities: tuple[Finding, ...]

    @property
    def all(self) -> tuple[Finding, ...]:
        """Every finding."""
        return (self.ca, *self.identities)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return all(finding.action is Action.KEPT for finding in self.all)


def keep(plan: PkiPlan, *, now_unix: float, dry_run: bool = False) -> Report:
    """Bring the certificates of `plan` up to date; with `dry_run` only say what would be.

    Raises:
        FedError: OUTPUT_EXISTS, a folder holds what is not this plan's; FILE_MISSING,
            KEY_PERMISSIONS, CERT_INVALID or CLOCK_OFF for files there are; STATE_LOCKED,
            another run is at work; DISK. Nothing was changed, but for DISK.
    """
    report = _look(plan, now_unix)
    if dry_run or report.idle:
        return report
    make_folder(plan.ca_folder)
    with _locked(plan.ca_folder):
        report = _look(plan, now_unix)
        return _act(plan, report, now_unix)


def _look(plan: PkiPlan, now_unix: float) -> Report:
    ca = _find_ca(plan.ca_folder, plan.federation)
    action = Action.ISSUED if ca is None else Action.KEPT
    ends = None if ca is None else ca.not_valid_after_utc
    found = Finding(f"CA of {plan.federation}", plan.ca_folder, action, ends=ends)
    now = datetime.fromtimestamp(now_unix, UTC)
    return Report(found, tuple(_find(plan, entry, ca, now) for entry in plan.identities))


def _find_ca(folder: Path, federation: str) -> x509.Certificate | None:
    names = _names(folder, (CA_FILE, CA_KEY))
    if CA_FILE not in names:
        if strangers := names - {CA_KEY}:
            raise _strangers(folder, strangers, "is to hold a CA")
        return None
    ca = load_certificates(folder / CA_FILE)[0]
    if (found := ca_federation(ca)) != federation:
        raise _refused(
            folder,
            f"holds the CA of federation {found}, not of {federation}",
            "Name this CA's federation in the plan, or another folder for the CA.",
        )
    return ca


def _find(
    plan: PkiPlan, entry: PlannedIdentity, ca: x509.Certificate | None, now: datetime
) -> Finding:
    folder = plan.folder(entry)
    names = _names(folder, _IDENTITY)
    if strangers := names - set(_IDENTITY):
        raise _strangers(folder, strangers, f"is for the certificate of {entry.label}")
    if not names:
        return Finding(entry.label, folder, Action.ISSUED)
    if ca is None:
        raise _refused(
            folder,
            f"holds files of an earlier CA, but {plan.ca_folder} holds none",
            f"Put the CA back into {plan.ca_folder}, or empty {folder} for new certificates.",
        )
    _check_pinned(folder, names, ca)
    if CERTIFICATE_FILE not in names:
        return Finding(entry.label, folder, Action.RENEWED, f"{CERTIFICATE_FILE} was missing")
    certificate = _own_certificate(plan, entry, ca)
    why = _reason_to_renew(folder, names, certificate, entry, now)
    action = Action.RENEWED if why else Action.KEPT
    return Finding(entry.label, folder, action, why, certificate.not_valid_after_utc)


def _check_pinned(folder: Path, names: set[str], ca: x509.Certificate) -> None:
    if CA_FILE not in names:
        return
    pinned = load_certificates(folder / CA_FILE)
    if [to_der(anchor) for anchor in pinned] != [to_der(ca)]:
        raise _foreign(folder, CA_FILE)


def _foreign(folder: Path, name: str) -> ConfigError:
    return _refused(
        folder,
        f"holds a {name} of another CA",
        f"Put that CA into the plan's `ca` folder, or empty {folder} for a new certificate.",
    )


def _own_certificate(
    plan: PkiPlan, entry: PlannedIdentity, ca: x509.Certificate
) -> x509.Certificate:
    """Return the certificate that is there, if it is this plan's to replace."""
    folder = plan.folder(entry)
    certificate = load_certificates(folder / CERTIFICATE_FILE)[0]
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        raise _foreign(folder, CERTIFICATE_FILE) from None
    try:
        found = read_leaf(certificate).spiffe
    except IdentityError as error:
        raise _refused(folder, f"holds a {CERTIFICATE_FILE} that is odd: {error.detail}") from None
    if (found.federation, found.role, found.id) != (plan.federation, entry.role, entry.id):
        raise _refused(folder, f"holds the certificate of {found}, not of {entry.label}")
    return certificate


def _reason_to_renew(
    folder: Path,
    names: set[str],
    certificate: x509.Certificate,
    entry: PlannedIdentity,
    now: datetime,
) -> str:
    """Return why an identity of ours has to be issued again; empty: it need not."""
    if missing := sorted(set(_IDENTITY) - names):
        return f"{missing[0]} was missing"
    key = load_key(folder / KEY_FILE)
    try:
        check_match(certificate, key, folder / KEY_FILE)
    except IdentityError:
        return "its key was another certificate's"
    if _dialled(certificate) != set(host_names(Role(entry.role), entry.hosts)):
        return "the plan's hosts changed"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise IdentityError(
            "CLOCK_OFF",
            f"{folder / CERTIFICATE_FILE} begins only at {stamp(begin)}",
            fix="Set this machine's clock. If it is right now, and was ahead when this was made,"
            f" empty {folder} for a new certificate.",
        )
    if now > end:
        return f"it expired at {stamp(end)}"
    return "past half its life" if end - now <= (end - begin) / 2 else ""


def _dialled(certificate: x509.Certificate) -> set[x509.GeneralName]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {name for name in names if not isinstance(name, x509.UniformResourceIdentifier)}


# --- folders ------------------------------------------------------------------------------


def _names(folder: Path, own: tuple[str, ...]) -> set[str]:
    """Return what a folder holds, without our own unfinished files; nothing if it is absent."""
    unfinished = {temporary(name) for name in own}
    try:
        return {entry.name for entry in folder.iterdir()} - unfinished - {_FILE_SYSTEM}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise ConfigError("FILE_MISSING", f"{folder}: {error.strerror}") from None


def _strangers(folder: Path, names: set[str], purpose: str) -> ConfigError:
    listed = ", ".join(ascii(name)[1:-1] for name in sorted(names)[:5])
    return _refused(
        folder,
        f"{purpose}, but holds {listed}",
        "Move what does not belong there away, or name another folder in the plan.",
    )


def _refused(folder: Path, what: str, fix: str | None = None) -> ConfigError:
    return ConfigError(
        "OUTPUT_EXISTS",
        f"{folder} {what}",
        fix=fix or f"Name another folder in the plan, or empty {folder} for a new certificate.",
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the CA's folder against another run of this command."""
    handle = lock(folder)
    if handle is None:
        raise StateError("STATE_LOCKED", f"another `pki keep` is at work in {folder}")
    try:
        yield
    finally:
        os.close(handle)


# --- doing it -----------------------------------------------------------------------------


def _act(plan: PkiPlan, report: Report, now_unix: float) -> Report:
    """Make everything in memory first: what cannot be made leaves the disk as it was."""
    ca, authority = _authority(plan, report.ca, now_unix)
    made = {
        entry.label: make_leaf(
            authority,
            Role(entry.role),
            entry.id,
            hosts=entry.hosts,
            days=plan.days,
            now_unix=now_unix,
        )
        for entry, found in zip(plan.identities, report.identities, strict=True)
        if found.action is not Action.KEPT
    }
    if ca is not None:
        replace_files(plan.ca_folder, ca.files)
    return Report(
        replace(report.ca, ends=authority.certificate.not_valid_after_utc),
        tuple(_installed(found, made) for found in report.identities),
    )


def _authority(plan: PkiPlan, found: Finding, now_unix: float) -> tuple[Made | None, Authority]:
    """Return the CA to sign with, and its files if they have still to be written."""
    if found.action is Action.KEPT:
        return None, load_ca(plan.ca_folder)
    path = plan.ca_folder / CA_KEY
    # A key alone is what a crash in the first run leaves; nothing was signed with it yet.
    key = load_key(path) if path.exists() else None
    made = make_ca(plan.federation, now_unix=now_unix, days=plan.ca_days, key=key)
    return made, made.authority


def _installed(found: Finding, made: Mapping[str, Made]) -> Finding:
    if found.action is Action.KEPT:
        return found
    new = made[found.label]
    make_folder(found.folder)
    replace_files(found.folder, new.files)
    return replace(found, ends=new.certificate.not_valid_after_utc)


# --- telling ------------------------------------------------------------------------------


def report_line(found: Finding, now_unix: float) -> str:
    """Return one line about a certificate."""
    left = found.days_left(now_unix)
    words = f"{found.label}  {found.action}"
    if found.why:
        words += f" ({found.why})"
    if left is not None:
        words += f", {left} days left"
    return f"{words}  {found.folder}"


def report_data(report: Report, now_unix: float) -> dict[str, object]:
    """Return a report for an envelope."""
    ca, *identities = [
        {
            "name": found.label,
            "folder": str(found.folder),
            "action": found.action.value,
            "why": found.why,
            "not_after": None if found.ends is None else stamp(found.ends),
            "days_left": found.days_left(now_unix),
        }
        for found in report.all
    ]
    return {"ca": ca, "identities": identities}
