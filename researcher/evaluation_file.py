"""`evaluation.json` as it lies in a release: the pooled figures, by level and by subgroup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import StateError
from common.evaluation_document import SCHEMA
from common.manifest import EVALUATION_FILE
from researcher.figures import TITLES, names_of, with_interval

if TYPE_CHECKING:
    from common.tables import Row


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """Return a release's pooled figures as data; None where it has none.

    Raises:
        StateError: MODEL_INVALID, the file is not such a document.
    """
    path = folder / EVALUATION_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        if found["schema"] != SCHEMA:
            raise StateError("MODEL_INVALID", f"{path} is of another version")
        return {**found, "figures": dict(found["figures"]), "subgroups": list(found["subgroups"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise StateError("MODEL_INVALID", f"{path} does not hold pooled figures") from None


def figures_grid(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each figure's title and value with its interval."""
    return [(title(name), value_text(figures, name)) for name in names_of(figures)]


def title(name: str) -> str:
    """Return what papers call a figure."""
    return TITLES.get(name, name.replace("_", " "))


def value_text(figures: Mapping[str, Any], name: str) -> str:
    """Return a figure with its interval, a count without decimals, or a dash."""
    value = figures.get(name)
    return str(value) if isinstance(value, int) else with_interval(figures, name)


def levels_grid(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a document's levels, each against the rest; no cell without."""
    names = ("auroc", "sensitivity", "ppv")
    head = ["level", "rows", *(TITLES[name] for name in names)]
    cells = [
        [one["level"], str(one["rows"]), *(with_interval(one["figures"], name) for name in names)]
        for one in found.get("levels", ())
    ]
    return head, cells


def confusion_grid(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a document's confusion table; no cell where it has none."""
    names = [one["level"] for one in found.get("levels", ())]
    cells = [
        [name, *(str(count) for count in row)]
        for name, row in zip(names, found.get("confusion", ()), strict=False)
    ]
    return ["true level", *(f"said {name}" for name in names)], cells


def subgroups_grid(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return head and cells of a document's subgroups; a dash where few patients are in one."""
    groups = found["subgroups"]
    known = [one["figures"] for one in groups if one["figures"]]
    names = [name for name in names_of(known[0]) if name in TITLES] if known else []
    cells = [
        [
            f"{one['feature']} {one['label']}",
            *(value_text(one["figures"] or {}, name) for name in ("rows", *names)),
        ]
        for one in groups
    ]
    return ["subgroup", "rows", *(TITLES[name] for name in names)], cells


def evaluation_text(found: Mapping[str, Any]) -> str:
    """Return the document for people: its figures, levels, confusion table and subgroups."""
    from common.tables import table

    grids: list[tuple[Row, Sequence[Row]]] = [
        (["figure, all hospitals", f"value ({found['confidence']:.0%} interval)"],
         figures_grid(found["figures"])),
        levels_grid(found), confusion_grid(found), subgroups_grid(found),
    ]  # fmt: skip
    return "\n\n".join(table(head, cells) for head, cells in grids if cells)
