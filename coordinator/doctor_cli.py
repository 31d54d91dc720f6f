"""`fedcare doctor [RUN]`: why a run does not move, from the coordinator's store alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, single
from coordinator.cli import ConfigFile


@command
def doctor(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run or study; default: all open ones.")
    ] = None,
    config: ConfigFile = Path("coordinator.yaml"),
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Explain why a run does not move, from the store alone; the coordinator may run or not."""
    del as_json
    from common.clock import SystemClock
    from common.state_folder import Owner
    from coordinator.config import CoordinatorConfig
    from coordinator.doctor import data_of, examine, text_of
    from coordinator.own import own_identity

    settings = CoordinatorConfig.read(config)
    identity = own_identity(settings, SystemClock())
    owner = Owner(identity.role, identity.federation, identity.spiffe.id)
    found = examine(settings, owner, run)
    text = "\n\n".join(map(text_of, found)) or "no run is open"
    return Outcome({"runs": [data_of(one) for one in found]}, text)


app = single(doctor, "Explain why a run does not move, from the coordinator's store alone.")
