"""The coordinator's own file, `fedcare.coordinator/v1`.

    schema: fedcare.coordinator/v1
    federation: heart-network
    listen: "0.0.0.0:8443"
    state_dir: state
    tls: {certificate: tls.crt, key: tls.key, ca: ca.crt}
    members: [cleveland, hungarian, switzerland, va]

Paths are relative to the file's own folder. Nothing below `coordinator/app.py` reads a
file or the environment for a setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr

from common.config import Seconds, Section, load, no_repeats
from common.site import MAX_SITES, SiteId
from common.text import show

SCHEMA: Final = "fedcare.coordinator/v1"

_DATABASES: Final = ("sqlite", "postgresql")


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004
        raise ValueError(f'must be host:port, such as "0.0.0.0:8443", not {show(value)}')
    return value


def _database(value: str) -> str:
    """Refuse what is no database URL; the text is not shown, it may hold a password."""
    kind = value.partition("://")[0].partition("+")[0]
    if "://" not in value or kind not in _DATABASES:
        raise ValueError(f"must be a URL of {' or '.join(_DATABASES)}, such as sqlite:////srv/x.db")
    return value


Wait = Annotated[Seconds, Field(gt=0)]


class TlsFiles(Section):
    """PEM files: the coordinator's certificate, its key (mode 0600), the consortium's CA."""

    certificate: str = "tls.crt"
    key: str = "tls.key"
    ca: str = "ca.crt"


class Timing(Section):
    """Durations that are nobody's privacy and every operator's taste.

    `enrolment_grace`: how long hospitals that have not decided yet are waited for once
    enough have accepted. `setup`: how long an epoch's key exchange may take. `gather`:
    how long a round waits for a hospital that is not ready, once enough are.
    `release`: how long the end of a run waits for hospitals to verify the model.
    """

    enrolment_grace: Seconds = 20.0
    setup: Wait = 30.0
    gather: Seconds = 2.0
    release: Seconds = 30.0
    heartbeat: Wait = 10.0


class CoordinatorConfig(Section):
    """Everything the coordinator is told; all durations in seconds."""

    schema_: Annotated[Literal["fedcare.coordinator/v1"], Field(alias="schema")]
    federation: SiteId
    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:8443"
    http: Annotated[str, AfterValidator(_address)] | None = "127.0.0.1:8080"
    """Where health and metrics are served in plain text; null: nowhere."""
    state_dir: str = "state"
    store: Annotated[str, AfterValidator(_database)] | None = None
    """Database URL; the embedded one in the state directory unless given."""
    tls: TlsFiles = TlsFiles()
    members: Annotated[
        tuple[SiteId, ...], Field(min_length=2, max_length=MAX_SITES), AfterValidator(no_repeats)
    ]
    """The hospitals that may connect; at most `MAX_SITES`, whose reason stands with it."""
    timing: Timing = Timing()
    bulk_streams: Annotated[int, Field(ge=1, le=64)] = 2
    """Uploads, and downloads, that run at the same time; each costs about 3 MiB."""
    arrivals_per_s: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Hospitals whose sessions may begin in a second; the others are told when to come back."""
    confinement: Literal["report", "require"] = "report"
    """What a process that is not confined as it should be does: say so, or not start."""
    _folder: Path = PrivateAttr(default=Path())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Load the file at `path`.

        Raises:
            ConfigError: see `common.config.load`.
        """
        loaded = load(path, cls, SCHEMA).value
        loaded._folder = path.parent  # noqa: SLF001 - of this very class; no key of the file
        return loaded

    def path(self, name: str) -> Path:
        """Return a path of this file, relative to the file's own folder."""
        return self._folder / name
