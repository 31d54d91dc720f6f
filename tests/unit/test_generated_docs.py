"""Pages that are tables of the code say what the code says."""

from __future__ import annotations

import pytest

from common.errors import CATALOGUE
from common.events import EVENTS
from docs import generate


def test_generated_pages_are_current() -> None:
    stale = [str(path.relative_to(generate.ROOT)) for path in generate.outdated()]
    assert not stale, f"run `python docs/generate.py`: {', '.join(stale)} out of date"


def test_every_error_stands_once_in_the_page() -> None:
    text = generate.errors_page()
    for row in CATALOGUE.values():
        assert text.count(f"| {row.code} |") == 1, row.code
        assert f"`{row.name}`" in text


def test_every_event_stands_in_the_pages() -> None:
    grouped = [event.value for _, rows in generate.event_groups() for event in rows]
    assert sorted(grouped) == sorted(EVENTS)
    assert all(f"`{name}`" in generate.events_page() for name in EVENTS)


def test_check_names_a_page_that_differs_and_writes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path_factory.mktemp("tree")
    (root / "docs").mkdir()
    (root / "deploy").mkdir()
    (root / "deploy" / "RUNBOOK.md").write_text("by hand", encoding="utf-8")
    monkeypatch.setattr(generate, "ROOT", root)

    assert generate.main(["--check"]) == 1
    assert "docs/errors.md is out of date" in capsys.readouterr().out
    assert not (root / "docs" / "errors.md").exists()

    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


def test_what_people_wrote_in_the_runbook_stays() -> None:
    begin, end = generate.BEGIN.format(name="x"), generate.END.format(name="x")
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    found = generate.replaced(text, "x", ["new"])
    assert found.startswith(f"before\n{begin}\n")
    assert found.endswith(f"{end}\nafter\n")
    assert "new" in found
    assert "old" not in found
    assert generate.replaced(found, "x", ["new"]) == found
