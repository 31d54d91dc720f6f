"""`fedcare node predict` and `fedcare node report`: the hospital's own model, at the hospital.

Both read the node's state directory beside a serving node; nothing goes over a network and
no log line is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from common.commands import JsonFlag, Outcome, command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.ids import RunId
    from common.study import Study
    from hospital_node.config import NodeConfig
    from hospital_node.personal.artefact import Personal
    from hospital_node.personal.score import Patient, Scorer

Which = Literal["personal", "federated"]
ConfigOption = Annotated[
    Path, typer.Option("--config", help="The node's file (fedcare.node/v1).", show_default=True)
]
_SHOWN = 20


@command
def predict(
    *,
    model: Annotated[
        str, typer.Option("--model", metavar="RUN|DIR", help="A run, or a model's folder.")
    ],
    patients: Annotated[Path, typer.Option("--input", metavar="CSV", help="Patients, one a row.")],
    config: ConfigOption = Path("node.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", metavar="CSV", help="Where every row's answer goes.")
    ] = None,
    which: Annotated[
        Which, typer.Option(help="The hospital's own model, or the released one.")
    ] = "personal",
    explain: Annotated[
        int, typer.Option(min=0, max=1000, help="Features to name for each patient.")
    ] = 3,
    as_json: JsonFlag = False,
) -> Outcome:
    """Score patients here: risk, calibrated risk, what drove it, warnings."""
    del as_json
    from common.errors import ConfigError
    from hospital_node.config import NodeConfig
    from hospital_node.data.csv import read_csv

    if output is not None and output.exists():
        raise ConfigError("OUTPUT_EXISTS", f"{output.name} is already there")
    node = NodeConfig.read(config)
    scorer, about = _scorer(node, model, which)
    renamed = _columns(node, scorer)
    found = scorer.score(read_csv(patients, scorer.columns(), renamed), explain)
    data = {**about, "patients": [one.data() for one in found]}
    if output is None:
        return Outcome(data, _screen(found, about))
    _write(output, found, explain)
    refused = sum(bool(one.refused) for one in found)
    text = f"{len(found)} rows scored into {output}, {refused} of them refused"
    return Outcome({**about, "output": str(output), "rows": len(found), "refused": refused}, text)


@command
def report(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Say which model this hospital ended with for a run, and why. Stays at the hospital."""
    del as_json
    from hospital_node.config import NodeConfig
    from hospital_node.personal.artefact import read_record

    record = read_record(_state(NodeConfig.read(config), "personal", run))
    return Outcome(record, _told(record))


def _told(record: dict[str, Any]) -> str:
    from common.tables import table

    setting = f" ({record['setting']})" if record["setting"] else ""
    rows = [
        (name, f"{found['loss']:.4f}", f"{found['se']:.4f}", found["setting"])
        for name, found in record["candidates"].items()
    ]
    parts = [f"this hospital's own model: {record['chosen']}{setting}", record["why"]]
    if rows:
        head = ("candidate", "loss", "standard error", "setting")
        parts.append(table(head, rows, right=frozenset({1, 2})))
    return "\n".join(parts)


def _state(node: NodeConfig, part: str, run: str) -> Path:
    from common.errors import ConfigError

    folder = node.path(node.state_dir) / part / Path(run).name
    if not folder.is_dir():
        what = "personal model" if part == "personal" else "release"
        raise ConfigError(
            "FILE_MISSING",
            f"this node holds no {what} of run {Path(run).name}",
            fix="`fedcare node status` names the runs; a model is made once a run has ended.",
        )
    return folder


def _scorer(node: NodeConfig, model: str, which: Which) -> tuple[Scorer, dict[str, object]]:
    from hospital_node.personal import artefact
    from hospital_node.personal.score import Scorer

    given = Path(model)
    own = given if given.is_dir() else node.path(node.state_dir) / "personal" / given.name
    loaded: Personal | None = None
    if (own / artefact.CHOICE_FILE).exists():
        loaded = artefact.load(own)
    if which == "personal":
        if loaded is None:
            loaded = artefact.load(given if given.is_dir() else _state(node, "personal", model))
        about = {"model": "personal", "chosen": loaded.record["chosen"]}
        return Scorer.personal(loaded), {**about, "study": loaded.study.id}
    folder = given if given.is_dir() else _state(node, "releases", model)
    study, flat, run = _released(folder)
    ranges = {} if loaded is None else loaded.ranges
    scorer = Scorer.released(study, flat, ranges, _norms(node, study, run))
    return scorer, {"model": "federated", "chosen": "federated", "study": study.id}


def _norms(node: NodeConfig, study: Study, run: RunId) -> NDArray[np.float32] | None:
    """Return the normalisation that a run left at this hospital, None of other strategies."""
    from common.errors import ConfigError
    from common.study import FedBn
    from hospital_node.personal_state import FEDBN, OwnTensors

    if not isinstance(study.federation.strategy, FedBn):
        return None
    found = OwnTensors(node.path(node.state_dir) / "own", run).get(FEDBN)
    if found is None:
        raise ConfigError(
            "FILE_MISSING",
            f"this node holds no normalisation of its own of run {run}, without which the "
            "released model of a fedbn study predicts nothing",
            fix="Score with the state directory of a node that took part in the run.",
        )
    return found


def _released(folder: Path) -> tuple[Study, NDArray[np.float32], RunId]:
    """Return study, flat model and run of a release whose digests are its manifest's."""
    import hashlib

    from common.errors import StateError
    from common.ids import RunId
    from common.layouts import model_schema
    from common.manifest import MANIFEST_FILE, MODEL_FILE, STUDY_FILE, Manifest
    from common.study import study_from_canonical
    from common.vectors import model_digest
    from hospital_node.receive import read_model

    try:
        manifest = Manifest.from_json((folder / MANIFEST_FILE).read_bytes())
        text = (folder / STUDY_FILE).read_bytes()
    except OSError as failure:
        raise StateError("MODEL_INVALID", f"{folder.name}: {failure.strerror}") from None
    if hashlib.sha256(text).hexdigest() != manifest.study.config_hash:
        raise StateError("MODEL_INVALID", f"{folder.name}: the study is not the manifest's")
    study = study_from_canonical(text, STUDY_FILE)
    schema = model_schema(study)
    raw = read_model(folder / MODEL_FILE, schema)
    if model_digest(schema, raw).hex() != manifest.model_sha256:
        raise StateError("MODEL_INVALID", f"{folder.name}: the model is not the manifest's")
    return study, schema.flat(raw), RunId(manifest.run)


def _columns(node: NodeConfig, scorer: Scorer) -> dict[str, str]:
    """Return the site manifest's headings for the study's columns."""
    from common.site import load_site

    if node.site is None:
        return {}
    table = load_site(node.path(node.site)).table(scorer.study.dataset)
    return {name: table.column(name) for name in scorer.columns()}


def _cells(one: Patient) -> tuple[str, str, str, str, str]:
    risk = "" if one.risk is None else f"{one.risk:.6g}"
    calibrated = "" if one.calibrated is None else f"{one.calibrated:.6g}"
    return str(one.row), one.level or "", risk, calibrated, "; ".join(one.warnings)


def _screen(found: list[Patient], about: dict[str, object]) -> str:
    from common.tables import table

    head = ("row", "risk", "calibrated", "driven by", "to mind")
    rows = []
    for one in found[:_SHOWN]:
        row, level, risk, calibrated, warnings = _cells(one)
        causes = ", ".join(f"{name} {value:+.2f}" for name, value in one.drivers)
        mind = f"refused: {one.refused}" if one.refused else warnings
        rows.append((row, f"{level} {risk}".strip(), calibrated, causes, mind))
    parts = [f"{about['model']} model of study {about['study']} ({about['chosen']})"]
    parts.append(table(head, rows, right=frozenset({0, 1, 2})))
    if len(found) > _SHOWN:
        parts.append(f"and {len(found) - _SHOWN} more: name --output, or --json")
    parts.append("Not a medical device.")
    return "\n".join(parts)


def _write(output: Path, found: list[Patient], explain: int) -> None:
    """Write every row's answer; the file is the owner's alone to read."""
    import csv
    import io

    from hospital_node import files

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{what}_{k}" for k in range(1, explain + 1) for what in ("driver", "contribution")]
    writer.writerow(["row", "level", "risk", "calibrated", *names, "warnings", "refused"])
    for one in found:
        row, level, risk, calibrated, warnings = _cells(one)
        causes = [cell for name, value in one.drivers for cell in (_inert(name), f"{value:.6g}")]
        causes += [""] * (2 * explain - len(causes))
        words = (_inert(warnings), _inert(one.refused))
        writer.writerow([row, _inert(level), risk, calibrated, *causes, *words])
    files.write_new(output, out.getvalue().encode())


def _inert(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: names of a study are a stranger's.

    Numbers, such as a level of -1, stay as they are.
    """
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
    return text
