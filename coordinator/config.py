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

from pydantic import AfterValidator, Field

from common.config import Label, Seconds, Section, load, no_repeats

SCHEMA: Final = "fedcare.coordinator/v1"


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
    setup: Seconds = 30.0
    gather: Seconds = 2.0
    release: Seconds = 30.0
    heartbeat: Seconds = 10.0


class CoordinatorConfig(Section):
    """Everything the coordinator is told; all durations in seconds."""

    schema_: Annotated[Literal["fedcare.coordinator/v1"], Field(alias="schema")]
    federation: Label
    listen: str = "127.0.0.1:8443"
    state_dir: str = "state"
    store: str | None = None
    """Database URL; the embedded one in the state directory unless given."""
    tls: TlsFiles = TlsFiles()
    members: Annotated[tuple[Label, ...], Field(min_length=2), AfterValidator(no_repeats)]
    timing: Timing = Timing()
    bulk_streams: Annotated[int, Field(ge=1, le=64)] = 2
    """Uploads, and downloads, that run at the same time; each costs about 3 MiB."""
    folder: Path = Field(default=Path(), exclude=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Load the file at `path`.

        Raises:
            ConfigError: see `common.config.load`.
        """
        loaded = load(path, cls, SCHEMA).value
        return loaded.model_copy(update={"folder": path.parent})

    def path(self, name: str) -> Path:
        """Return a path of this file, relative to the file's own folder."""
        return self.folder / name
