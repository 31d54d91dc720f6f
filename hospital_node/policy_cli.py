"""`fedcare node policy check|show|explain`: what a policy says, before anything runs.

The policy is the one that a node's file names (`--config`), or any file (`--policy`), so
that a draft can be held against a study on any machine. Only what the policy itself can
answer is answered: rows, other studies and the privacy budget are judged by the node.
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
    from hospital_node.findings import Finding

app = group("Show this hospital's policy, and hold it against a study.")

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY", help="A study (fedcare.study/v1).")]
ConfigOption = Annotated[Path, typer.Option("--config", help="The node's file (fedcare.node/v1).")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", metavar="FILE", help="Another policy than the node's.")
]
_NODE = Path("node.yaml")


def _policy_path(config: Path, policy: Path | None) -> Path:
    if policy is not None:
        return policy
    from hospital_node.config import NodeConfig

    loaded = NodeConfig.read(config)
    return loaded.path(loaded.policy)


def _judge(study_file: Path, path: Path) -> tuple[Study, Policy, tuple[Finding, ...]]:
    from common.policy import load_policy
    from common.study import config_hash, load_study
    from hospital_node.consent import examine

    study, policy = load_study(study_file), load_policy(path)
    findings = examine(study, config_hash(study), policy.value, policy.source)
    return study, policy.value, findings


def _data(study: Study, policy: Policy, findings: tuple[Finding, ...]) -> dict[str, object]:
    from dataclasses import asdict

    from common.errors import CATALOGUE
    from common.study import config_hash

    return {
        "study": study.id,
        "config_hash": config_hash(study).hex(),
        "site": policy.site,
        "accepted": all(finding.ok for finding in findings),
        "rules": [{"fc": CATALOGUE[found.code].code, **asdict(found)} for found in findings],
    }


@app.command()
@command
def check(
    study: StudyArgument,
    *,
    config: ConfigOption = _NODE,
    policy: PolicyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Say whether the policy accepts a study, and which rules are against it (exit code 1)."""
    del as_json
    from common.errors import CATALOGUE

    asked, rules, findings = _judge(study, _policy_path(config, policy))
    against = [finding for finding in findings if not finding.ok]
    data = _data(asked, rules, findings)
    if not against:
        return Outcome(data, f"accept: {rules.site}'s policy allows study {asked.id}")
    plural = "rules are" if len(against) > 1 else "rule is"
    head = f"refuse: {len(against)} {plural} against study {asked.id}"
    codes = (CATALOGUE[finding.code].code for finding in against)
    lines = [head, *(f"  {fc} {one.code}: {one}" for fc, one in zip(codes, against, strict=True))]
    return Outcome(data, "\n".join(lines), ExitCode.REFUSED)


@app.command()
@command
def explain(
    study: StudyArgument,
    *,
    config: ConfigOption = _NODE,
    policy: PolicyOption = None,
    as_json: JsonFlag = False,
) -> Outcome:
    """Print for every rule: accept or refuse, the study's value, the policy's, file and line."""
    del as_json
    from hospital_node.policy_text import table

    asked, rules, findings = _judge(study, _policy_path(config, policy))
    return Outcome(_data(asked, rules, findings), table(findings))


@app.command()
@command
def show(
    *, config: ConfigOption = _NODE, policy: PolicyOption = None, as_json: JsonFlag = False
) -> Outcome:
    """Print the completed policy; what the file leaves to its default is marked."""
    del as_json
    from common.policy import load_policy
    from hospital_node.policy_text import completed_text

    path = _policy_path(config, policy)
    loaded = load_policy(path)
    text, defaults = completed_text(loaded.value, path)
    data = loaded.value.model_dump(mode="json", by_alias=True)
    return Outcome({"policy": data, "defaults": defaults}, text)
