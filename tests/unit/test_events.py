"""The catalogue of events says what the code does: who writes an event, with which fields."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.event_fields import FIELDS
from common.events import FIRST_FIELDS, FORBIDDEN_FIELDS, LIMITED, Event

ROOT = Path(__file__).parents[2]
PACKAGES = {"coordinator": "coordinator", "hospital_node": "node", "common": "both"}
CATALOGUE = {"events.py", "event_fields.py", "logs.py", "log_limit.py"}
WRITERS = {"debug", "info", "warning", "error", "failure", "tell", "_tell", "_log", "_fail"}
FAILURES = {"failure", "_fail"}
NOT_FIELDS = {"warning"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package, who in PACKAGES.items():
        for path in sorted((ROOT / package).rglob("*.py")):
            if not (package == "common" and path.name in CATALOGUE):
                yield who, ast.parse(path.read_text(encoding="utf-8"))


def event_of(node: ast.expr) -> Event | None:
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if named and node.value.id == "Event":  # type: ignore[attr-defined]
        return Event[node.attr]  # type: ignore[attr-defined]
    return None


def written() -> Iterator[tuple[Event, set[str]]]:
    """Yield every call that writes an event named on the spot, with its fields."""
    for _, tree in sources():
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call):
                continue
            function = call.func
            name = function.attr if isinstance(function, ast.Attribute) else ""
            name = function.id if isinstance(function, ast.Name) else name
            found = [event for arg in call.args if (event := event_of(arg)) is not None]
            if name not in WRITERS or not found:
                continue
            fields = {keyword.arg for keyword in call.keywords if keyword.arg} - NOT_FIELDS
            fields |= {"code", "name", "detail"} if name in FAILURES else set()
            yield found[0], fields


def test_every_event_is_written_by_whom_the_catalogue_says_and_none_is_idle() -> None:
    used: dict[Event, set[str]] = defaultdict(set)
    for who, tree in sources():
        for node in ast.walk(tree):
            event = event_of(node) if isinstance(node, ast.expr) else None
            if event is not None:
                used[event].add(who)
    own = {Event.LOG_SUPPRESSED, Event.LIBRARY_MESSAGE}  # `common.logs` itself writes these
    for event in Event:
        writers = used[event] | ({"both"} if event in own else set())
        said = "both" if len(writers) > 1 or "both" in writers else "".join(writers)
        assert said == event.by, f"{event.value}: {event.by} in the catalogue, {writers} in code"


def test_no_line_has_a_field_that_its_event_is_not_documented_with() -> None:
    seen = list(written())
    assert len(seen) > 40
    for event, fields in seen:
        assert fields <= set(event.fields), (event.value, sorted(fields - set(event.fields)))


def test_every_field_has_its_word_of_meaning_and_none_is_idle() -> None:
    used = {name for event in Event for name in event.fields}
    assert used == set(FIELDS)
    assert list(FIELDS) == sorted(FIELDS)
    assert not used & FORBIDDEN_FIELDS
    assert set(FIRST_FIELDS) <= used


@pytest.mark.parametrize("event", Event, ids=lambda event: event.value)
def test_an_event_is_described_in_full(event: Event) -> None:
    assert event.by in {"coordinator", "node", "both"}
    assert set(event.level.split(" or ")) <= {"info", "warning", "error"}
    assert len(set(event.fields)) == len(event.fields)
    first = [name for name in event.fields if name in FIRST_FIELDS]
    assert first == [name for name in FIRST_FIELDS if name in event.fields]
    if event in LIMITED:
        assert not event.value.startswith(("round.", "run."))


def test_every_event_that_a_page_for_people_names_is_in_the_catalogue() -> None:
    names = {event.value for event in Event}
    groups = "|".join(sorted({name.partition(".")[0] for name in names}))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    assert ROOT / "deploy" / "RUNBOOK.md" in pages
    for page in pages:
        found = re.findall(rf"`((?:{groups})\.[a-z_]+)`", page.read_text("utf-8"))
        assert set(found) <= names, (page.name, set(found) - names)
