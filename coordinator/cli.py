"""`fedcare coordinator serve|status|health`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

app = group("Serve a federation; show what each site is waiting for.")

ConfigFile = Annotated[
    Path, typer.Option("--config", help="The coordinator's file (fedcare.coordinator/v1).")
]


@app.command()
@command
def serve(config: ConfigFile = Path("coordinator.yaml"), *, as_json: JsonFlag = False) -> Outcome:
    """Serve until SIGTERM; log lines go to stderr."""
    del as_json
    from coordinator.app import serve as run
    from coordinator.config import CoordinatorConfig

    asyncio.run(run(CoordinatorConfig.read(config), sys.stderr))
    return Outcome({"stopped": True})


@app.command()
@command
def status(
    config: ConfigFile = Path("coordinator.yaml"),
    *,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT to ask; default: where the file says it listens.")
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(help="An operator's certificate folder, to ask from elsewhere.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show who is connected and what every open run waits for."""
    del as_json
    from common.clock import SystemClock
    from common.errors import ConfigError
    from common.identity import load_identity
    from coordinator.config import CoordinatorConfig
    from coordinator.own import name_to_expect, own_identity
    from coordinator.status import ask, data_of, screen
    from coordinator.whereabouts import serving_address

    clock, name = SystemClock(), None
    if tls is not None and coordinator is not None:
        address, identity = coordinator, load_identity(tls, now_unix=clock.unix())
    elif tls is not None and not config.exists():
        raise ConfigError("BAD_ARGUMENT", "--tls without a --config needs --coordinator HOST:PORT")
    else:
        settings = CoordinatorConfig.read(config)
        address = coordinator or serving_address(settings)
        name = None if coordinator else name_to_expect(settings, address)
        identity = (
            load_identity(tls, now_unix=clock.unix()) if tls else own_identity(settings, clock)
        )
    view = asyncio.run(ask(address, identity, name))
    return Outcome(data_of(view), screen(view, clock.unix()))


@app.command()
@command
def health(config: ConfigFile = Path("coordinator.yaml"), *, as_json: JsonFlag = False) -> Outcome:
    """Ask the coordinator of this file whether it serves: exit code 0 yes, 1 no, 2 not there."""
    del as_json
    from coordinator.config import CoordinatorConfig
    from coordinator.whereabouts import ask_health

    return asyncio.run(ask_health(CoordinatorConfig.read(config)))
