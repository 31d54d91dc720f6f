"""`fedcare coordinator serve|status|health|backup|restore|verify|...`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
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


@app.command()
@command
def backup(
    target: Annotated[Path, typer.Argument(metavar="DIR|FILE.tar", show_default=False)],
    config: ConfigFile = Path("coordinator.yaml"),
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Copy the state, also while the coordinator serves: verified, with every SHA-256, signed."""
    del as_json
    from common.clock import SystemClock
    from coordinator import backups_cli
    from coordinator.backup import make_backup
    from coordinator.config import CoordinatorConfig
    from coordinator.own import own_identity

    clock = SystemClock()
    settings = CoordinatorConfig.read(config)
    identity = own_identity(settings, clock)
    tell = backups_cli.progress(clock)
    made = make_backup(settings, identity, target, int(clock.unix()), tell)
    return backups_cli.backed_up(made)


@app.command()
@command
def restore(
    source: Annotated[Path, typer.Argument(metavar="BACKUP", show_default=False)],
    into: Annotated[
        Path, typer.Option("--into", metavar="STATE_DIR", help="An empty folder, or none yet.")
    ],
    config: ConfigFile = Path("coordinator.yaml"),
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Make a state directory of a backup: all of it verified, or nothing."""
    del as_json
    from common.clock import SystemClock
    from coordinator import backups_cli
    from coordinator.config import CoordinatorConfig
    from coordinator.restore import restore as run

    clock = SystemClock()
    settings = CoordinatorConfig.read(config)
    made = run(settings, source, into, backups_cli.progress(clock))
    return backups_cli.restored(made, into, clock.unix())


Reason = Annotated[str, typer.Option("--reason", help="Why, in one line; it is kept and logged.")]


@app.command("accept-loss")
@command
def accept_loss(
    reason: Reason, config: ConfigFile = Path("coordinator.yaml"), *, as_json: JsonFlag = False
) -> Outcome:
    """Go on from an old backup although hospitals have seen more; the coordinator is stopped."""
    del as_json
    from common.clock import SystemClock
    from common.logs import make_log
    from common.reason import check_reason
    from coordinator.config import CoordinatorConfig
    from coordinator.operator import orders

    clock = SystemClock()
    log = make_log(sys.stderr, clock=clock)
    with orders(CoordinatorConfig.read(config), clock, log) as held:
        told = held.accept_loss(check_reason(reason))
    lost = [{"site": one.site, "run": one.seen.run_id, "what": one.why} for one in told]
    lines = [f"{one.site}: {one.why}" for one in told]
    lines.append("The loss is on record. Start the coordinator: open runs go on in a new epoch.")
    return Outcome({"accepted": lost, "reason": reason}, "\n".join(lines))


@app.command()
@command
def unlock(
    run: Annotated[str, typer.Argument(metavar="RUN", show_default=False)],
    reason: Reason,
    config: ConfigFile = Path("coordinator.yaml"),
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Stop waiting for a set that was signed (protocol, 10.4); the coordinator is stopped."""
    del as_json
    from common.clock import SystemClock
    from common.ids import RunId
    from common.logs import make_log
    from common.reason import check_reason
    from coordinator.config import CoordinatorConfig
    from coordinator.operator import orders
    from coordinator.signed_set import who_unlocks

    clock = SystemClock()
    log = make_log(sys.stderr, clock=clock)
    with orders(CoordinatorConfig.read(config), clock, log) as held:
        found = held.unlock(RunId(run), check_reason(reason))
    text = (
        f"{run}: the next round may open with another set than {', '.join(found.sites)}.\n"
        f"{who_unlocks(found)}\nThen start the coordinator."
    )
    data = {**asdict(found), "run": run, "reason": reason}
    return Outcome(data, text)


@app.command()
@command
def verify(config: ConfigFile = Path("coordinator.yaml"), *, as_json: JsonFlag = False) -> Outcome:
    """Say what in the state is good and what is damaged; it only reads, also beside a server."""
    del as_json
    from common.clock import SystemClock
    from common.state_folder import Owner
    from common.verified import shown
    from coordinator.config import CoordinatorConfig
    from coordinator.own import own_identity
    from coordinator.verify import verify as run

    settings = CoordinatorConfig.read(config)
    identity = own_identity(settings, SystemClock())
    return shown(run(settings, Owner(identity.role, identity.federation, identity.spiffe.id)))
