# ruff: noqa: INP001 - a script, not a package
"""Writes the pages that are tables of the code, so that they cannot disagree with it.

    python docs/generate.py            write what is out of date
    python docs/generate.py --check    write nothing, name what is out of date, exit 1

`docs/errors.md` comes from `common.errors.CATALOGUE`, `docs/events.md` and the tables of
`deploy/RUNBOOK.md` from the same catalogue and `common.events.Event`. A test runs `--check`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from common import events
from common.errors import CATALOGUE, ErrorKind, ExitCode, Whose
from common.event_fields import FIELDS
from common.events import Event
from common.log_limit import BURST, BURST_OF_ALL, PER_MINUTE, PER_MINUTE_OF_ALL

ROOT: Final = Path(__file__).resolve().parent.parent
NOTE: Final = "<!-- Written by docs/generate.py from {source}; edit that and run it again. -->"
BEGIN: Final = "<!-- begin {name}: written by docs/generate.py -->"
END: Final = "<!-- end {name} -->"

FAMILIES: Final = (
    ("FC-10", "Files and arguments"),
    ("FC-11", "A hospital's data"),
    ("FC-2", "Connections and identity"),
    ("FC-3", "What a node refuses (protocol, section 12)"),
    ("FC-40", "What the coordinator refuses (protocol, section 12)"),
    ("FC-41", "Malformed messages"),
    ("FC-5", "A hospital's policy"),
    ("FC-6", "Rounds and runs"),
    ("FC-70", "State on disk"),
    ("FC-71", "Released models"),
    ("FC-72", "Bundles for installing without a network"),
    ("FC-9", "Our own bugs"),
)
"""Sections of docs/errors.md by the beginning of the code; each row belongs to one."""

EXIT_CODES: Final = {
    ExitCode.OK: "done",
    ExitCode.REFUSED: "refused, or failed on the far side",
    ExitCode.CONNECT: "cannot connect or authenticate",
    ExitCode.DEADLINE: "a deadline passed, or too few hospitals",
    ExitCode.BAD_INPUT: "wrong arguments or files",
    ExitCode.INTERNAL: "our bug",
    ExitCode.WAITING: "waiting for a person",
}

WHO: Final = {
    Whose.CALLER: "whoever called",
    Whose.HOSPITAL: "hospital",
    Whose.OPERATOR: "operator",
    Whose.RESEARCHER: "researcher",
    Whose.PEER: "the other end",
    Whose.PROJECT: "us",
}


def cell(text: str) -> str:
    """Return text as it may stand in a table."""
    return text.replace("|", "\\|")


# --- errors -----------------------------------------------------------------------------------


def family(prefix: str) -> list[ErrorKind]:
    """Return the rows whose code begins with `prefix`, by code."""
    rows = (row for row in CATALOGUE.values() if row.code.startswith(prefix))
    return sorted(rows, key=lambda row: row.code)


def errors_page() -> str:
    """Return docs/errors.md."""
    lines = [
        "# Errors",
        "",
        NOTE.format(source="common/errors.py"),
        "",
        "Every error that FedCare raises on purpose, by code. `fedcare explain FC-3024` prints",
        "one, `fedcare explain` the list. Where it happened the error itself says.",
        "",
        "| exit code | means |",
        "|---|---|",
        *(f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODES.items()),
    ]
    for prefix, title in FAMILIES:
        lines += ["", f"## {title}", "", *error_table(family(prefix))]
    return "\n".join(lines) + "\n"


def error_table(rows: list[ErrorKind]) -> Iterator[str]:
    """Yield the table of some rows."""
    yield "| code | name | what it means | what to do | who acts | exit |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        texts = (cell(row.meaning), cell(row.fix), WHO[row.whose])
        yield f"| {row.code} | `{row.name}` | {' | '.join(texts)} | {int(row.exit_code)} |"


# --- events -----------------------------------------------------------------------------------


def event_groups() -> list[tuple[str, list[Event]]]:
    """Return the events under the comments that head them in common/events.py."""
    groups: list[tuple[str, list[Event]]] = []
    for line in inspect.getsource(events.Event).splitlines():
        text = line.strip()
        if text.startswith("# --- "):
            groups.append((text.removeprefix("# --- "), []))
        name = text.split(" = ")[0]
        if name in Event.__members__:
            groups[-1][1].append(Event[name])
    return groups


def event_table(rows: list[Event]) -> Iterator[str]:
    """Yield the table of some events."""
    yield "| event | meaning |"
    yield "|---|---|"
    for event in rows:
        yield f"| `{event.value}` | {cell(event.meaning)} |"


def full_event_table(rows: list[Event]) -> Iterator[str]:
    """Yield the table of some events, with who writes them, at which level, and their fields."""
    yield "| event | meaning | written by | level | fields |"
    yield "|---|---|---|---|---|"
    for event in rows:
        limited = ", limited" if event in events.LIMITED else ""
        fields = " ".join(f"`{name}`" for name in event.fields)
        texts = (cell(event.meaning), event.by, f"{event.level}{limited}", fields)
        yield f"| `{event.value}` | {' | '.join(texts)} |"


def field_table() -> Iterator[str]:
    """Yield the table of all fields."""
    yield "| field | meaning |"
    yield "|---|---|"
    yield from (f"| `{name}` | {cell(meaning)} |" for name, meaning in FIELDS.items())


def events_page() -> str:
    """Return docs/events.md."""
    first = ", ".join(f"`{name}`" for name in events.FIRST_FIELDS)
    never = ", ".join(f"`{name}`" for name in sorted(events.FORBIDDEN_FIELDS))
    lines = [
        "# Log events",
        "",
        NOTE.format(source="common/events.py and event_fields.py"),
        "",
        "One event, one line: UTC time to the millisecond, level, event, then `key=value`. The",
        f"fields {first} stand first, in this order; the others follow by",
        "alphabet. `LOG_FORMAT=json` writes the same keys as JSON. The list is closed: a name that",
        "is not here cannot be logged. A field that has nothing to say is left out: `dropped`",
        "stands only where somebody dropped out. Floats have three decimals at most.",
        "",
        "*limited*: a peer could provoke such lines without end. Of each event about each peer",
        f"{BURST} are written at once and then {PER_MINUTE:g} a minute, about all peers",
        f"{BURST_OF_ALL} at once and {PER_MINUTE_OF_ALL:g} a minute. `log.suppressed` says how",
        "many were left out; the metrics count every one. Lines of rounds and runs are never",
        "left out.",
    ]
    for title, rows in event_groups():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *full_event_table(rows)]
    lines += ["", "## Fields", "", *field_table()]
    lines += ["", "## What no line holds", "", f"Fields of these names are refused: {never}."]
    return "\n".join(lines) + "\n"


# --- the runbook ------------------------------------------------------------------------------


def runbook_page(text: str) -> str:
    """Return deploy/RUNBOOK.md with its tables written anew; the rest is written by hand."""
    all_events = [event for _, rows in event_groups() for event in rows]
    text = replaced(text, "log events", list(event_table(all_events)))
    return replaced(text, "error codes", list(runbook_errors()))


def runbook_errors() -> Iterator[str]:
    """Yield the short table of errors that an operator looks up at night."""
    yield "| code | name | what to do |"
    yield "|---|---|---|"
    for row in sorted(CATALOGUE.values(), key=lambda row: row.code):
        yield f"| {row.code} | `{row.name}` | {cell(row.fix)} |"


def replaced(text: str, name: str, lines: list[str]) -> str:
    """Return `text` with `lines` between the marks of `name`."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"])


def pages() -> dict[Path, str]:
    """Return every generated file with what it should hold."""
    runbook = ROOT / "deploy" / "RUNBOOK.md"
    return {
        ROOT / "docs" / "errors.md": errors_page(),
        ROOT / "docs" / "events.md": events_page(),
        runbook: runbook_page(runbook.read_text(encoding="utf-8")),
    }


def outdated() -> list[Path]:
    """Return the generated files that do not hold what they should."""
    return [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: list[str]) -> int:
    """Write, or with `--check` only compare; return the exit code."""
    stale = outdated()
    for path in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)} is out of date\n")
        if "--check" not in arguments:
            path.write_text(pages()[path], encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
