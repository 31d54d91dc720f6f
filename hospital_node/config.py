"""The node's own file, `fedcare.node/v1`: where its parts lie, nothing about privacy.

    schema: fedcare.node/v1
    state_dir: state
    policy: policy.yaml          # the hospital's rules, and whom the node dials
    site: site.yaml              # where its tables lie; null: none to offer
    tls: {certificate: tls.crt, key: tls.key, ca: ca.crt}
    sealing_key: null            # a 32-byte file kept elsewhere; null: state_dir/node.key
    ledger_anchor: null          # a folder on another disk that vouches for the privacy ledgers
    training: {processes: 2}     # by torchrun (`hospital_node.launcher`); 1: in the node itself

Paths are relative to the file's own folder. Rules stand in the policy file, so that the
people who answer for them need to read that one only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from common.address import is_loopback, split_address
from common.config import Section, load
from common.errors import ConfigError
from common.text import show

SCHEMA: Final = "fedcare.node/v1"


def _machine(value: str, example: str = "gpu1:29400") -> str:
    """Refuse what names no machine and port."""
    try:
        split_address(value)
    except ConfigError:
        raise ValueError(f'must be host:port, such as "{example}", not {show(value)}') from None
    return value


def _own_machine(value: str) -> str:
    """Refuse what others could reach: a node listens on no network."""
    host, _ = split_address(_machine(value, "127.0.0.1:8081"))
    if not is_loopback(host):
        raise ValueError(
            f"must be on loopback, such as 127.0.0.1:8081, not {show(value)}:"
            " a node listens on no network"
        )
    return value


class TlsFiles(Section):
    """PEM files: the hospital's certificate, its key (mode 0600), the consortium's CA."""

    certificate: str = "tls.crt"
    key: str = "tls.key"
    ca: str = "ca.crt"


class Training(Section):
    """Where local training runs: in the node, or in processes that torchrun starts.

    `processes` on each of `machines`; on `cuda` each has a GPU. Over several machines
    `prefix` is the command that starts another one on all of them (such as `srun`),
    `rendezvous` where they meet, and `folder` lies on a file system that all of them see.
    """

    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    device: Literal["cpu", "cuda"] = "cpu"
    machines: Annotated[int, Field(ge=1, le=1024)] = 1
    rendezvous: Annotated[str, AfterValidator(_machine)] | None = None
    prefix: tuple[str, ...] = ()
    folder: str | None = None
    limit_s: Annotated[float, Field(gt=0, le=604_800)] = 3600.0
    """How long the training of one round may take before its processes are ended."""
    checkpoint_s: Annotated[float, Field(gt=0, le=604_800)] | None = 60.0
    """How often a long training is kept on disk (`hospital_node.checkpoints`); null: never."""

    @property
    def everywhere(self) -> int:
        """The processes on all machines."""
        return self.processes * self.machines

    @property
    def launched(self) -> bool:
        """Whether processes are started at all."""
        return self.everywhere > 1 or self.device == "cuda"

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse several machines without what they need, and that without them."""
        needed = (bool(self.prefix), self.rendezvous is not None, self.folder is not None)
        if self.machines > 1 and not all(needed):
            raise ValueError("must state prefix, rendezvous and folder where machines is above 1")
        if self.machines == 1 and any(needed):
            raise ValueError("states prefix, rendezvous or folder, which are for several machines")
        return self


class NodeConfig(Section):
    """Everything the node is told besides its policy."""

    schema_: Annotated[Literal["fedcare.node/v1"], Field(alias="schema")]
    state_dir: str = "state"
    policy: str = "policy.yaml"
    site: str | None = "site.yaml"
    tls: TlsFiles = TlsFiles()
    sealing_key: str | None = None
    ledger_anchor: str | None = None
    """A folder on another disk where ledgers are vouched for (`hospital_node.ledger_anchor`)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    training: Training = Training()
    http: Annotated[str, AfterValidator(_own_machine)] | None = None
    """Where health and metrics are served in plain text, on this machine only; null: nowhere."""
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
