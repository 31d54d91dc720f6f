"""Where a coordinator of this machine listens, and whether it is well.

Apart from `coordinator.app`: a health check runs every few seconds and loads little.
"""

from __future__ import annotations

from typing import Final

from common.address import split_address
from common.clock import SystemClock
from common.commands import Outcome
from common.errors import ConfigError, ConnectError, FedError, IdentityError, StateError
from common.health import outcome
from common.transport.ask import PemFiles, ask_at
from coordinator.config import CoordinatorConfig

ADDRESS_FILE: Final = "address"
"""In the state directory while the coordinator serves: the host:port it listens on."""


def serving_address(config: CoordinatorConfig) -> str:
    """Return where a coordinator of this configuration is listening now.

    Raises:
        ConnectError: UNREACHABLE, none is.
        StateError: STATE_DAMAGED, the file that says it does not.
    """
    mark = config.path(config.state_dir) / ADDRESS_FILE
    try:
        address = mark.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise ConnectError(
            "UNREACHABLE",
            f"no coordinator of {config.federation} is running here",
            fix="Start it with `fedcare coordinator serve`.",
        ) from None
    try:
        host, port = split_address(address)
    except ConfigError:
        raise StateError(
            "STATE_DAMAGED",
            f"{mark} is no address",
            fix="Start the coordinator: it writes it anew.",
        ) from None
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "::") else address  # noqa: S104 - compared


async def ask_health(config: CoordinatorConfig) -> Outcome:
    """Ask the coordinator of this configuration whether it serves.

    Raises:
        ConnectError, IdentityError: no connection; says what is wrong with its own files
            or clock if that is why.
    """
    address = serving_address(config)
    tls = config.tls
    files = PemFiles(*(config.path(name) for name in (tls.certificate, tls.key, tls.ca)))
    try:
        found = await ask_at(address, files)
    except (FedError, OSError) as error:
        from coordinator.own import name_to_expect, own_identity

        clock = SystemClock()
        own_identity(config, clock).check_dates(clock.unix())
        name = name_to_expect(config, address)
        if name is None or not isinstance(error, IdentityError):
            raise
        found = await ask_at(address, files, name)
    return outcome(f"the coordinator at {address}", found)
