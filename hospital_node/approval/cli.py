"""`fedcare node approvals ...`: the people whom a hospital's policy names say yes or no.

They work while the node serves, and without a connection to the coordinator.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.commands import JsonFlag, Outcome, command, group

if TYPE_CHECKING:
    from common.approval import Word
    from hospital_node.approval.desk import ApprovalDesk

app = group("Approve studies, as one of the people whom this hospital's policy names.")

ConfigOption = Annotated[
    Path, typer.Option("--config", help="The node's file (fedcare.node/v1).", show_default=True)
]
StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", show_default=False, help="A run's id, a study's id, or sha256:HASH."
    ),
]
NameOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Your name in the policy.")]
KeyOption = Annotated[Path, typer.Option("--key", metavar="FILE", help="Your own key file.")]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="A file whose first line is the key's passphrase; it is asked for otherwise.",
    ),
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="One line.")]


def _desk(config: Path) -> ApprovalDesk:
    from common.clock import SystemClock
    from hospital_node.approval.desk import ApprovalDesk

    return ApprovalDesk.open(config, int(SystemClock().unix()))


@app.command()
@command
def key(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False)],
    *,
    passphrase_file: PassphraseOption = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the key unencrypted.")
    ] = False,
    as_json: JsonFlag = False,
) -> Outcome:
    """Make your own key; print the line that goes into the hospital's policy."""
    del as_json
    from hospital_node.approval.key import make_key, new_passphrase

    public = make_key(file, new_passphrase(passphrase_file, none=no_passphrase))
    text = (
        f"{file}  your key: whoever has it can approve in your name; keep it to yourself\n"
        "for the policy, under require.approval.approvers, with your own name:\n"
        f'  - {{name: NAME, key: "{public}"}}'
    )
    return Outcome({"key": file, "public": public, "encrypted": not no_passphrase}, text)


@app.command("list")
@command
def list_(*, config: ConfigOption = Path("node.yaml"), as_json: JsonFlag = False) -> Outcome:
    """List the studies this node was offered: approved, denied, or waiting for whom."""
    del as_json
    from hospital_node.approval.desk import standing_data

    desk = _desk(config)
    rejected = desk.records().rejected
    rows, lines = [], []
    for case in desk.cases():
        found = desk.standing(case.config_hash)
        state = "refused by the policy" if case.refused else found.stand.value
        rows.append(
            {
                "study": case.study.id,
                "hash": case.hash_text,
                "runs": [run.run_id for run in case.runs],
                "refused_by_policy": case.refused,
                "ended": case.ended,
                "approval": standing_data(found),
            }
        )
        waits = f", waits for {', '.join(found.waiting_for)}" if found.waiting_for else ""
        why = f": {found.objection.detail}" if found.objection and not waits else ""
        ended = " (ended)" if case.ended and not case.refused else ""
        lines.append(f"{case.study.id}  {case.hash_text}{ended}")
        lines.append(f"  {state}" + ("" if case.refused else f"{waits}{why}"))
    lines += [f"does not count: {one.refusal}" for one in rejected]
    data = {
        "studies": rows,
        "rejected": [{"file": one.file, "reason": str(one.refusal)} for one in rejected],
    }
    return Outcome(data, "\n".join(lines) or "no study was offered yet")


@app.command()
@command
def show(
    study: StudyArgument,
    *,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Show a study in plain words: what it reads, what leaves, what protects it, what changed."""
    del as_json
    from hospital_node.approval.page import page_data, page_text

    desk = _desk(config)
    case = desk.find(study)
    data = page_data(desk, case)
    return Outcome(data, page_text(data, desk.standing(case.config_hash)))


@app.command()
@command
def grant(
    study: StudyArgument,
    *,
    name: NameOption,
    key: KeyOption,
    passphrase_file: PassphraseOption = None,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Approve a study: this very version of it, until your approval expires."""
    del as_json
    from common.approval import Word

    return _say(config, study, Word.GRANT, name, (key, passphrase_file), "")


@app.command()
@command
def deny(
    study: StudyArgument,
    *,
    name: NameOption,
    key: KeyOption,
    reason: ReasonOption,
    passphrase_file: PassphraseOption = None,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Say no to a study; the reason is told to its owner."""
    del as_json
    from common.approval import Word

    return _say(config, study, Word.DENY, name, (key, passphrase_file), reason)


@app.command()
@command
def withdraw(
    study: StudyArgument,
    *,
    name: NameOption,
    key: KeyOption,
    reason: ReasonOption,
    passphrase_file: PassphraseOption = None,
    config: ConfigOption = Path("node.yaml"),
    as_json: JsonFlag = False,
) -> Outcome:
    """Take your approval back: no further round runs here. The reason stays at the hospital."""
    del as_json
    from common.approval import Word

    return _say(config, study, Word.WITHDRAW, name, (key, passphrase_file), reason)


def _say(
    config: Path,
    study: str,
    word: Word,
    name: str,
    keys: tuple[Path, Path | None],
    reason: str,
) -> Outcome:
    from hospital_node.approval.desk import standing_data
    from hospital_node.approval.key import load_key
    from hospital_node.approval.page import approval_lines

    desk = _desk(config)
    case = desk.find(study)
    found = desk.say(case, word, name, load_key(*keys), reason)
    data = {
        "study": case.study.id,
        "hash": case.hash_text,
        "decision": word.value,
        "name": name,
        "approval": standing_data(found),
    }
    lines = [
        f"{word.value} by {name}: {case.study.id}, {case.hash_text}",
        *(f"  {line}" for line in approval_lines(found)),
    ]
    if case.refused:
        lines.append("  the policy refuses this study all the same: see `show`")
    return Outcome(data, "\n".join(lines))
