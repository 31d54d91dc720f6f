"""docs/protocol.md names what the code names: labels, messages, states, codes, sections."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from common.encoding import Label
from common.errors import CATALOGUE
from common.secagg import coordinator, messages, node
from common.secagg.coordinator_state import RoundPhase
from common.secagg.node_state import Phase
from common.secagg.params import SecAggParams, default_colluders
from common.secagg.setup_state import SetupPhase
from common.views import RunPhase

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
SOURCES = [
    path
    for folder in ("common", "coordinator", "hospital_node", "researcher", "protos")
    for pattern in ("*.py", "*.proto")
    for path in sorted((ROOT / folder).rglob(pattern))
    if "_pb2" not in path.name
]


def table(heading: str, columns: int) -> list[list[str]]:
    """Return the rows of the first table with that many columns under a heading."""
    start = re.search(rf"^#+ {re.escape(heading)}", PAGE, re.MULTILINE)
    assert start, heading
    rows: list[list[str]] = []
    for line in PAGE[start.end() :].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == columns:
            rows.append(cells)
        elif rows:
            break
    return rows[2:]


def names(cell: str) -> list[str]:
    """Return what stands in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


def test_labels_are_those_of_the_code_in_order() -> None:
    rows = table("3.1 Encoding", 4)
    assert sorted(names(row[0])[0] for row in rows) == sorted(Label)


def test_message_fields_are_those_of_the_code() -> None:
    rows = table("4.8 Messages", 4)
    stated = {names(row[0])[0]: [name.strip() for name in row[2].split(",")] for row in rows}
    for name, fields in stated.items():
        kind = getattr(messages, name)
        assert fields == [field.name for field in dataclasses.fields(kind)], name
    spoken = {
        kind.__name__
        for union in (messages.FromNode, messages.FromCoordinator)
        for kind in union.__args__
    }
    assert spoken <= set(stated)


@pytest.mark.parametrize(
    ("heading", "machine", "phases", "beside"),
    [
        ("5.1 A node's round", node, Phase, {"IDLE", "READY", "CLOSED"}),
        ("5.2 The coordinator's round", coordinator, RoundPhase, set()),
    ],
)
def test_state_tables_speak_of_what_the_machines_have(
    heading: str, machine: object, phases: type[Phase | RoundPhase], beside: set[str]
) -> None:
    rows = table(heading, 4)
    known = {phase.name for phase in phases} | beside
    states = {state.strip() for row in rows for state in row[0].split(",")}
    assert states | {row[2] for row in rows} - {"same"} == known
    for row in rows:
        for name in (*names(row[1]), *names(row[3])):
            assert hasattr(machine, name) or hasattr(messages, name), name


def test_every_event_of_the_node_is_explained() -> None:
    page = PAGE[PAGE.index("### 5.1") : PAGE.index("### 5.2")]
    for kind in node.NodeEvent.__args__:
        assert f"`{kind.__name__}`" in page, kind.__name__


def test_phases_of_set_up_and_run_are_those_of_the_code() -> None:
    assert {row[0] for row in table("5.3 An epoch's set-up", 3)} == {p.name for p in SetupPhase}
    stated = {name.strip() for row in table("5.4 A run", 3) for name in row[0].split(",")}
    assert stated == {phase.name for phase in RunPhase}


def test_refusal_codes_are_those_of_the_catalogue() -> None:
    section = PAGE[PAGE.index("## 12. ") : PAGE.index("## 13. ")]
    stated = dict(re.findall(r"`([A-Z_]+)` \| (FC-\d{4})", section))
    known = {n: row.code for n, row in CATALOGUE.items() if row.code.startswith(("FC-30", "FC-40"))}
    assert stated == known


def test_sections_that_the_code_cites_exist() -> None:
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)", PAGE, re.MULTILINE))
    missing = {
        f"{path.relative_to(ROOT)}: section {number}"
        for path in SOURCES
        for number in re.findall(
            r"[Ss]ections? (\d+(?:\.\d+)?)|protocol, (\d+(?:\.\d+)?)", path.read_text("utf-8")
        )
        for number in number
        if number and number not in headings
    }
    assert not missing


def test_the_threat_models_table_is_the_rule() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+)[^|]*\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", page, re.MULTILINE)
    assert len(rows) == 6
    for n, c, summed, honest, lost in (map(int, row) for row in rows):
        params = SecAggParams.derive(n, default_colluders(n))
        least = params.s_min
        assert (c, summed, honest, lost) == (params.c, least, least - params.c, n - least), n


def test_the_table_of_dropouts_is_the_rule() -> None:
    start = PAGE.index("Members that may vanish")
    block = PAGE[start : PAGE.index("## 2. ")]
    rows = re.findall(r"\| (\d+) \| (\d+) \| (\d+) \| (\d+)", block)
    assert len(rows) == 14
    for n, c, q, lost in (map(int, row) for row in rows):
        params = SecAggParams.derive(n, c)
        assert (params.q, n - params.s_min) == (q, lost), n
        assert c in (default_colluders(n), 0)
