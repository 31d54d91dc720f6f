"""`fedcare node data check STUDY`: can this hospital's table take part, and what looks wrong.

Runs here and sends nothing. Prints counts only, suppressed below the policy's
`release.min_cell`; never a value. Exit code 1: the site cannot take part as things are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group
from common.errors import ExitCode

if TYPE_CHECKING:
    from common.policy import Policy
    from common.study import Study
    from hospital_node.data.check import Finding, Report

app = group("Hold this hospital's tables against a study, without a network.")


@app.command()
@command
def check(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study (fedcare.study/v1).")],
    *,
    config: Annotated[
        Path, typer.Option("--config", help="The node's file (fedcare.node/v1).")
    ] = Path("node.yaml"),
    site: Annotated[
        Path | None, typer.Option("--site", metavar="FILE", help="Another manifest; no policy.")
    ] = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Check the table against the study's contract and look for errors (exit code 1: cannot)."""
    del as_json
    from common.site import load_site
    from common.study import load_study
    from hospital_node.data.check import examine

    asked = load_study(study)
    policy, manifest = _files(config, site)
    hospital = load_site(manifest)
    min_cell = _usual_min_cell() if policy is None else policy.release.min_cell
    report = _with_cells(asked, examine(asked, hospital.table(asked.dataset)), min_cell)
    data = {
        "study": asked.id,
        "site": hospital.id,
        "takes_part": report.takes_part,
        "findings": [_plain(finding, min_cell) for finding in report.findings],
    }
    code = ExitCode.OK if report.takes_part else ExitCode.REFUSED
    return Outcome(data, _words(asked.id, hospital.id, report, min_cell), code)


def _files(config: Path, site: Path | None) -> tuple[Policy | None, Path]:
    from common.errors import ConfigError
    from common.policy import load_policy
    from hospital_node.config import NodeConfig

    if site is not None:
        return None, site
    loaded = NodeConfig.read(config)
    if loaded.site is None:
        raise ConfigError(
            "BAD_VALUE", f"{config}: site is null: there is no table to check",
            fix="Name the site manifest in the node's file, or give --site.",
        )  # fmt: skip
    return load_policy(loaded.path(loaded.policy)).value, loaded.path(loaded.site)


def _usual_min_cell() -> int:
    from common.policy import Release

    return Release().min_cell


def _with_cells(study: Study, report: Report, min_cell: int) -> Report:
    """Add what the node itself refuses: too few patients for a sum of the study."""
    from dataclasses import replace

    from common.errors import PolicyRefusal
    from hospital_node.data.check import Finding
    from hospital_node.row_rules import check_cells

    if report.data is None:
        return report
    try:
        check_cells(study, report.data, min_cell, "policy")
    except PolicyRefusal as failure:
        found = Finding("policy-min-cell", None, "stop", failure.detail, failure.fix)
        return replace(report, findings=(*report.findings, found))
    return report


def _shown(rows: int | None, min_cell: int) -> str:
    if rows is None:
        return ""
    return str(rows) if rows >= min_cell else f"fewer than {min_cell}"


def _plain(finding: Finding, min_cell: int) -> dict[str, object]:
    return {
        "name": finding.name,
        "column": finding.column,
        "severity": finding.severity,
        "rows": _shown(finding.rows, min_cell) or None,
        "means": finding.means,
        "fix": finding.fix,
    }


def _words(study: str, site: str, report: Report, min_cell: int) -> str:
    lines = []
    for finding in sorted(report.findings, key=lambda one: one.severity != "stop"):
        rows = _shown(finding.rows, min_cell)
        where = f" {finding.column}" if finding.column else ""
        count = f" ({rows} rows)" if rows else ""
        lines += [
            f"{finding.severity:<5} {finding.name}{where}{count}: {finding.means}",
            f"      fix: {finding.fix}",
        ]
    if report.takes_part:
        plural = "things" if len(report.findings) != 1 else "thing"
        more = f"; {len(report.findings)} {plural} to look at first" if report.findings else ""
        lines.append(f"{site} can take part in study {study}{more}")
    else:
        lines.append(f"{site} cannot take part in study {study}: mend what says stop")
    return "\n".join(lines)
