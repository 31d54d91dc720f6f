"""`fedcare study ...`: what a researcher does with a study file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

app = group("Check, submit and list studies.")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", show_default=False)]


@app.command()
@command
def lint(file: StudyFile, *, as_json: JsonFlag = False) -> Outcome:
    """Check a study; print it with every default filled in, its hash and what to mind."""
    del as_json
    from common.study import completed, completed_yaml, config_hash, load_study, warnings

    study = load_study(file)
    digest, notes = config_hash(study).hex(), warnings(study)
    data = {
        "id": study.id,
        "kind": study.kind,
        "hash": f"sha256:{digest}",
        "study": completed(study),
        "warnings": list(notes),
    }
    lines = [completed_yaml(study).rstrip(), "", f"hash: sha256:{digest}"]
    lines += [f"warning: {note}" for note in notes]
    return Outcome(data, "\n".join(lines))
