"""A policy and its findings as text for people: at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from common.documents import KeyPath, dotted, parse_yaml, read_text
from common.policy import Policy, policy_yaml
from hospital_node.findings import Finding

WIDTHS: Final = (6, 31, 22, 22, 15)
"""Columns of the table; one blank between two: 100 in all."""

HEADINGS: Final = ("", "rule", "the study's value", "the policy's value", "where")
MARK: Final = "  # default"


def table(findings: Sequence[Finding]) -> str:
    """Return one row for each rule, and the verdict."""
    against = sum(not finding.ok for finding in findings)
    verdict = "accepted" if not against else f"refused: {against} of {len(findings)} rules"
    lines = [*_row(HEADINGS), "-" * (sum(WIDTHS) + len(WIDTHS) - 1)]
    for found in findings:
        word = "accept" if found.ok else "REFUSE"
        lines += _row((word, found.rule, found.asked, found.allowed, found.where))
    return "\n".join([*lines, "", verdict])


def _row(cells: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one row, each cell wrapped in its own column."""
    wrapped = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS, strict=True)]
    for parts in zip_longest(*wrapped, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True))
        yield " ".join(padded).rstrip()


def completed_text(policy: Policy, path: Path) -> tuple[str, list[str]]:
    """Return the completed policy as YAML, and the keys that the file at `path` leaves out.

    A line with such a key ends in a mark; where only a part of a line is a default, the
    comment names the keys.
    """
    written = parse_yaml(read_text(path), str(path)).data
    text = policy_yaml(policy)
    document = parse_yaml(text, "policy")
    lines, left_out = text.splitlines(), []
    by_line: dict[int, list[KeyPath]] = {}
    for key in _keys(document.data):
        by_line.setdefault(document.source.line(*key) or 0, []).append(key)
    for number, keys in by_line.items():
        absent = [key for key in keys if not _stands(key, written)]
        left_out += [dotted(key) for key in absent]
        if absent:
            names = "" if len(absent) == len(keys) else ": " + ", ".join(str(k[-1]) for k in absent)
            lines[number - 1] += MARK + names
    return "\n".join(lines), left_out


def _keys(data: object, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the path of every value that is no section."""
    if not isinstance(data, dict):
        yield path
        return
    for key, value in data.items():
        yield from _keys(value, (*path, key))


def _stands(path: KeyPath, data: object) -> bool:
    for part in path:
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True
