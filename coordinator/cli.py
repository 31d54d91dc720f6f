"""`fedcare coordinator serve|status`."""

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
