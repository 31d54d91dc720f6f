"""`fedcare simulation consortium|hospitals`: see `researcher.simulation`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

if TYPE_CHECKING:
    from researcher.simulation import Inside, Written

app = group("Write the folders of the simulation in containers.")

_LEAF_DAYS = 90  # `common.pki.LEAF_DAYS`, which would load the certificates' library for --help

IdentitiesOption = Annotated[
    Path,
    typer.Option("--identities", metavar="DIR", help="Holds a folder for each certificate."),
]
StudyOption = Annotated[
    str, typer.Option("--study", metavar="STUDY", help="A study's file, or a shipped one's name.")
]
TlsAtOption = Annotated[
    str,
    typer.Option(
        "--tls-at",
        metavar="DIR",
        help="Where a service sees its certificate; {site} stands for its name.",
    ),
]
StateAtOption = Annotated[
    str, typer.Option("--state-at", metavar="DIR", help="Where it keeps its state, likewise.")
]
ConfinementOption = Annotated[
    str,
    typer.Option(
        "--confinement",
        metavar="report|require",
        help="Whether a service that is not confined says so, or does not start.",
    ),
]


def _inside(tls: str, state: str, confinement: str) -> Inside:
    from researcher.simulation import Inside

    return Inside(tls, state, confinement)


@app.command()
@command
def consortium(  # noqa: PLR0913 - a command's options
    *,
    ca: Annotated[Path, typer.Option("--ca", metavar="DIR", help="The CA's folder.")],
    identities: IdentitiesOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="For coordinator.yaml.")],
    days: Annotated[
        int, typer.Option("--days", metavar="N", min=1, max=825, help="Life of a certificate.")
    ] = _LEAF_DAYS,
    study: StudyOption = "heart-disease",
    listen: Annotated[
        str, typer.Option("--listen", metavar="ADDRESS:PORT", help="Where the coordinator listens.")
    ] = "0.0.0.0:8443",
    http: Annotated[
        str, typer.Option("--http", metavar="ADDRESS:PORT", help="Its HTTP port, or `none`.")
    ] = "127.0.0.1:8080",
    tls_at: TlsAtOption = "/etc/fedcare-tls",
    state_at: StateAtOption = "/var/lib/fedcare",
    confinement: ConfinementOption = "require",
    as_json: JsonFlag = False,
) -> Outcome:
    """Do the operator's part: the CA, everybody's certificates, coordinator.yaml."""
    del as_json
    from common.clock import SystemClock
    from common.pki_keep import report_data, report_line
    from researcher.simulation import Ports, write_consortium
    from researcher.studies import named

    now = SystemClock().unix()
    report, file = write_consortium(
        named(study),
        ca=ca,
        identities=identities,
        out=out,
        days=days,
        ports=Ports(listen, None if http == "none" else http),
        inside=_inside(tls_at, state_at, confinement),
        now_unix=now,
    )
    lines = [report_line(found, now) for found in report.all]
    data = {**report_data(report, now), "files": [_file(file)]}
    return Outcome(data, "\n".join([*lines, f"{file.path}  {file.action}"]))


@app.command()
@command
def hospitals(
    *,
    identities: IdentitiesOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Holds a folder for each hospital.")
    ],
    coordinator: Annotated[
        str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where hospitals dial.")
    ],
    study: StudyOption = "heart-disease",
    tls_at: TlsAtOption = "/etc/fedcare-tls",
    state_at: StateAtOption = "/var/lib/fedcare",
    confinement: ConfinementOption = "require",
    as_json: JsonFlag = False,
) -> Outcome:
    """Do the four hospitals' part: table, manifest, policy and node file of each."""
    del as_json
    from hospital_node.data.heart import ATTRIBUTION
    from researcher.simulation import write_hospitals
    from researcher.studies import named

    done = write_hospitals(
        named(study),
        identities=identities,
        out=out,
        address=coordinator,
        inside=_inside(tls_at, state_at, confinement),
    )
    files = [file for written in done.values() for file in written]
    lines = [f"{file.path}  {file.action}" for file in files]
    data = {"files": [_file(file) for file in files], "source": ATTRIBUTION}
    return Outcome(data, "\n".join([*lines, f"data: {ATTRIBUTION}"]))


def _file(file: Written) -> dict[str, str]:
    return {"path": str(file.path), "action": file.action}
