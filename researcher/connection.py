"""How commands for people reach a coordinator: two options, and no hidden settings.

`--coordinator HOST:PORT` says where, `--tls DIR` as whom: a folder that `fedcare pki issue`
made, with `tls.crt`, `tls.key` and `ca.crt`. Nothing is read from the environment but the
proxy, as every program does (`common.transport.tls`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from researcher.client import Client

T = TypeVar("T")


def _seed(value: int | None) -> int | None:
    """Hold a seed to the study schema's bounds here, so that the message names the option."""
    if value is not None and not 0 <= value < 2**63:
        raise typer.BadParameter("must be at least 0 and less than 2^63")
    return value


CoordinatorOption = Annotated[
    str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where the coordinator listens.")
]
TlsOption = Annotated[
    Path,
    typer.Option(
        "--tls", metavar="DIR", help="Your own folder from `pki issue`: tls.crt, tls.key, ca.crt."
    ),
]
ProxyOption = Annotated[
    str | None,
    typer.Option("--proxy", metavar="URL", help="http://host:port, or `direct` for none."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        callback=_seed,
        help="Training seed, 0 or more, in place of the study's.",
    ),
]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to dial and as whom."""

    address: str
    tls: Path
    proxy: str | None = None

    def options(self) -> tuple[str, ...]:
        """Return the options that lead another command to the same place; no password."""
        return "--coordinator", self.address, "--tls", str(self.tls)

    def open(self) -> Client:
        """Return a client; nothing is dialled yet.

        Raises:
            FedError: for a malformed address or unusable certificate files.
        """
        from common.clock import SystemClock
        from common.identity import load_identity
        from researcher.client import Client, require_person

        clock = SystemClock()
        identity = load_identity(self.tls, now_unix=clock.unix())
        require_person(identity)
        return Client(self.address, identity, proxy=self.proxy, clock=clock)

    def require_owner(self, organisation: str) -> None:
        """Refuse to submit a study that this certificate does not own.

        Raises:
            IdentityError: ROLE_DENIED. ConfigError: BAD_VALUE, another owner.
        """
        from common.clock import SystemClock
        from common.errors import ConfigError, IdentityError
        from common.identity import load_identity
        from common.text import show

        spiffe = load_identity(self.tls, now_unix=SystemClock().unix()).spiffe
        if spiffe.role != "researcher":
            raise IdentityError("ROLE_DENIED", f"{spiffe} may not submit studies")
        if spiffe.id != organisation:
            raise ConfigError(
                "BAD_VALUE",
                f"owner.organisation is {show(organisation)}, but {self.tls} is the certificate "
                f"of {spiffe}",
                fix="Name the certificate's id as the study's owner.organisation.",
            )

    def ask(self, question: Callable[[Client], Awaitable[T]]) -> T:
        """Run one conversation with the coordinator and return what it gave."""

        async def talk() -> T:
            async with self.open() as client:
                return await question(client)

        return asyncio.run(talk())
