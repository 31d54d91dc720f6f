"""The runbook's page for the night on which a service does not start."""

from __future__ import annotations

import re
from pathlib import Path

from common.errors import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]


def section() -> str:
    text = (ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
    return text.partition("## It does not start\n")[2].partition("\n## ")[0]


def test_every_code_that_it_names_exists_under_that_name() -> None:
    found = re.findall(r"(FC-\d{4}) `([A-Z_]+)`", section())
    assert len(found) >= 15
    for code, name in found:
        assert CATALOGUE[name].code == code
    assert set(re.findall(r"FC-\d{4}", section())) == {code for code, _ in found} | {"FC-2008"}


def test_every_way_of_not_starting_that_is_tested_is_told() -> None:
    tests = (ROOT / "tests" / "integration" / "test_does_not_start.py").read_text(encoding="utf-8")
    names = {
        name for name in re.findall(r'"([A-Z]+(?:_[A-Z]+)+|DISK)"', tests) if name in CATALOGUE
    }
    assert names - {"BAD_ARGUMENT"} <= set(re.findall(r"`([A-Z_]+)`", section()))
