"""`fedcare pki init|issue|keep|show`: the certificates of a federation, from the command line.

The operator runs `init` once and `issue` once a machine, on a computer that keeps
`ca.key`; each folder that `issue` writes goes to its machine whole. `keep` does both for a
whole plan, and renews what is past half its life.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from common.certificates import Role
from common.clock import SystemClock
from common.commands import JsonFlag, Outcome, command, group
from common.errors import FedError
from common.identity import load_identity
from common.pki import CA_DAYS, LEAF_DAYS, CertificateFacts, create_ca, describe, issue

app = group("Make the certificates of a federation.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the CA.")]
Force = Annotated[
    bool, typer.Option("--force", help="Move what is there aside (nothing is deleted).")
]


@app.command("init")
@command
def init_command(
    folder: Folder,
    *,
    federation: Annotated[
        str, typer.Option(help="The federation's id: a-z, 0-9 and inner hyphens.")
    ],
    days: Annotated[int, typer.Option(help="How long the CA is valid.")] = CA_DAYS,
    force: Force = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Make the consortium's certificate authority."""
    del as_json
    now = SystemClock().unix()
    facts = create_ca(folder, federation, now_unix=now, days=days, force=force)
    text = (
        f"{folder}/ca.crt  the CA of {federation}, valid until {facts.not_after}\n"
        f"{folder}/ca.key  keep it offline; whoever has it can pose as anybody\n"
        f"hospitals pin it in their policy as  ca_sha256: {facts.sha256!r}"
    )
    return Outcome({"folder": folder, "federation": federation, "ca": asdict(facts)}, text)


@app.command("issue")
@command
def issue_command(
    folder: Folder,
    role: Annotated[Role, typer.Argument(help="What the certificate is for.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="The site's or person's id.")],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A DNS name or IP address peers dial (coordinator only, repeatable)."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long the certificate is valid.")] = LEAF_DAYS,
    out: Annotated[
        Path | None, typer.Option(help="Where to write it. Default: DIR/ROLE-ID")
    ] = None,
    force: Force = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Issue one certificate with its key."""
    del as_json
    now = SystemClock().unix()
    facts = issue(
        folder, role, name, now_unix=now, hosts=host or (), days=days, out=out, force=force
    )
    target = out if out is not None else folder / f"{role}-{name}"
    text = f"{target}/  {facts.spiffe}, valid until {facts.not_after}"
    return Outcome({"folder": target, "certificate": asdict(facts)}, text)


@app.command("keep")
@command
def keep_command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="Who is to have certificates.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Bring a federation's certificates up to date: issue, renew at half life, or keep."""
    del as_json
    from common.pki_keep import PkiPlan, keep, report_data, report_line

    now = SystemClock().unix()
    report = keep(PkiPlan.read(plan), now_unix=now, dry_run=dry_run)
    lines = [report_line(found, now) for found in report.all]
    if dry_run and not report.idle:
        lines.append("nothing was changed: this was a dry run")
    return Outcome({**report_data(report, now), "dry_run": dry_run}, "\n".join(lines))


@app.command("show")
@command
def show_command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A certificate file, or a machine's folder.")
    ],
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Show certificates; for a folder, also check that it would be accepted now.

    Raises:
        FedError: what is wrong with the folder's identity, after nothing was changed.
    """
    del as_json
    if not path.is_dir():
        shown = describe(path)
        return Outcome({"certificates": [asdict(f) for f in shown]}, _lines(shown))
    if not (path / "tls.crt").exists() and (path / "ca.crt").exists():
        shown = describe(path / "ca.crt")
        return Outcome({"certificates": [asdict(f) for f in shown]}, _lines(shown))
    shown = [*describe(path / "tls.crt"), *describe(path / "ca.crt")]
    try:
        load_identity(path, now_unix=SystemClock().unix())
    except FedError:
        typer.echo(_lines(shown), err=True)  # what to compare the error with
        raise
    data = {"certificates": [asdict(f) for f in shown], "usable": True}
    return Outcome(data, f"{_lines(shown)}\nusable: yes")


def _lines(shown: list[CertificateFacts]) -> str:
    return "\n".join(
        f"{facts.spiffe or 'a CA or foreign certificate'}\n"
        f"  names:   {', '.join(facts.names) or 'none'}\n"
        f"  issuer:  {facts.issuer}\n"
        f"  valid:   {facts.not_before} to {facts.not_after}\n"
        f"  sha256:  {facts.sha256}\n"
        f"  serial:  {facts.serial}"
        for facts in shown
    )
