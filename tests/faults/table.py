"""A report for people: what was run, and a row for each fault."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tests.faults.catalogue import KILLS, POSTGRESQL, SIMULATION, SOAK, TESTS
from tests.faults.parts import PICTURE, Part
from tests.faults.picture import ALT, rows_of

BEGIN: Final = "<!-- begin faults: written by `python -m tests.faults` from reports/faults.json -->"
END: Final = "<!-- end faults -->"

_PERCENTILE: Final = re.compile(r"(.+)_(p50|p99|max)(_\w+)")
_BOUND: Final = (
    "At most: 3/*n*, of the *n* trials that were drawn at random. Where cases were gone through"
    " one by one there is no such figure."
)
_NAMES: Final = {"postgresql": "PostgreSQL", "tls": "TLS"}
_UNITS: Final = {
    "_per_hour": " an hour", "_per_s": " a second", "_bytes": " bytes", "_mb": " MB",
    "_mib": " MiB", "_ms": " ms", "_hours": " h", "_times": " times", "_s": " s",
}  # fmt: skip


def with_table(page: str, report: Mapping[str, Any]) -> str:
    """Return the page with the report's table between its marks."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError("the page has no place for the table")
    return f"{before}{BEGIN}\n\n{table_of(report)}\n{END}{after}"


def table_of(report: Mapping[str, Any]) -> str:
    """Return the page's tables of a report."""
    lines = [
        "| What was run | How much | Budget | Version, commit | When | Where |",
        "|---|---|---|---|---|---|",
        *(_part_row(part) for part in report["parts"]),
        "",
        *_pictured(report),
        "| Fault | What happens | Trials | Failed | At most (95 %) | Figures |",
        "|---|---|--:|--:|--:|---|",
        *(_row(entry) for entry in report["faults"] if entry["trials"]),
    ]
    lines += ["", _BOUND, *_left_out(report)]
    return "\n".join(lines) + "\n"


def _left_out(report: Mapping[str, Any]) -> Iterator[str]:
    why = {test: why for entry in report["faults"] for test, why in entry["skipped"].items()}
    for reason in sorted(set(why.values())):
        names = ", ".join(
            f"`{test.rpartition('::')[2]}`" for test in sorted(why) if why[test] == reason
        )
        yield ""
        yield f"Left out ({reason}): {names}."


def _pictured(report: Mapping[str, Any]) -> Iterator[str]:
    if rows_of(report):
        yield f"![{ALT}](img/{PICTURE.name})"
        yield ""
        yield "A line goes from the median to the longest; its dot is the 99th percentile."
        yield ""


# --- what was run ---------------------------------------------------------------------------------


def _part_row(part: Part) -> str:
    origin = part["origin"]
    name, much = _much(part)
    where = f"{origin['processors']} processors ({origin['machine']}), Python {origin['python']}"
    code = f"{origin['version']}, {origin['commit'] or 'unknown'}"
    return _line(name, much, f"`{part['budget']}`", code, origin["date"], where)


def _much(part: Part) -> tuple[str, str]:
    trials = sum(result["trials"] for result in part["results"])
    match part["part"]:
        case name if name == SIMULATION:
            seeds = ", ".join(f"{first} to {last}" for first, last in part["seeds"][:3])
            more = f" and {len(part['seeds']) - 3} more" if len(part["seeds"]) > 3 else ""
            return "Simulation", f"{trials:,} seeds ({seeds}{more})"
        case name if name == KILLS:
            return "Killed processes", f"{trials:,} kills"
        case name if name == POSTGRESQL:
            return "Killed processes, PostgreSQL", f"{trials:,} kills"
        case name if name == TESTS:
            ran = [one for one in part["outcomes"] if one["outcome"] != "skipped"]
            return "Tests named after a fault", f"{len(ran):,} tests"
        case name if name == SOAK:
            return "Soak", f"{trials:,} runs"
        case other:
            return other, f"{trials:,} trials"


# --- faults ---------------------------------------------------------------------------------------


def _row(entry: Mapping[str, Any]) -> str:
    bound = entry["bound_95"]
    most = "" if bound is None or bound >= 1 else f"{100 * bound:.2g} %"
    name = "" if entry["fault"] in (SIMULATION, SOAK) else entry["fault"]
    shown = "; ".join(figures_of(entry["figures"]))
    return _line(name, entry["what"], f"{entry['trials']:,}", entry["failures"], most, shown)


def figures_of(figures: Mapping[str, float]) -> Iterator[str]:
    """Yield the figures in words, with their units; percentiles of one thing together."""
    told = set[str]()
    for name, value in figures.items():
        found = _PERCENTILE.fullmatch(name)
        if found is None:
            yield _figure(name, [value])
        elif (base := found[1] + found[3]) not in told:
            told.add(base)
            names = {word: f"{found[1]}_{word}{found[3]}" for word in ("p50", "p99", "max")}
            there = [word for word in names if names[word] in figures]
            values = [figures[names[word]] for word in there]
            yield f"{_figure(base, values)} ({' / '.join(there)})"


def _figure(name: str, values: Iterable[float]) -> str:
    if name.endswith("_share"):
        return f"{_words(name.removesuffix('_share'))} {_numbers(100 * one for one in values)} %"
    for ending, unit in _UNITS.items():
        if name.endswith(ending):
            return f"{_words(name.removesuffix(ending))} {_numbers(values)}{unit}"
    return f"{_words(name)} {_numbers(values)}"


def _words(name: str) -> str:
    return " ".join(_NAMES.get(word, word) for word in name.split("_"))


def _numbers(values: Iterable[float]) -> str:
    return " / ".join(map(_number, values))


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _line(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
