"""What `deploy/monitoring` ships, read for tests: rules, dashboard, and the metrics they name.

`names_in` takes an expression apart as far as a test needs: which series it selects, and by
which labels. Whether it is valid PromQL is Prometheus' own word, in the integration test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parents[1] / "deploy" / "monitoring"
RULES: Final = HERE / "rules" / "fedcare.rules.yml"
RULE_TESTS: Final = (HERE / "rules" / "tests.yml", HERE / "rules" / "tests-days.yml")
DASHBOARD: Final = HERE / "grafana" / "fedcare.json"

_WORDS: Final = frozenset({"and", "or", "unless"})
_VARIABLES: Final = {"$__rate_interval": "1m", "$coordinator": ".*", "$node": ".*"}
_SELECTOR: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?\s*(\()?")
_MATCHER: Final = re.compile(r'([a-zA-Z_]+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Selected:
    """A series that an expression selects, and by which label values."""

    name: str
    matchers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Query:
    """An expression of the dashboard, its variables filled in."""

    panel: str
    expr: str


def selected(expr: str) -> Iterator[Selected]:
    """Yield every series that an expression selects."""
    text = re.sub(r"\[[^\]]*\]", " ", expr)
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\boffset\s+\w+", " ", text)
    for found in _SELECTOR.finditer(text):
        name, matchers, call = found.groups()
        if call is None and name not in _WORDS:
            yield Selected(name, tuple(_MATCHER.findall(matchers or "")))


def rule_groups() -> list[dict[str, Any]]:
    """Return the groups of the rules file."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return groups


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule, alerts and recordings alike."""
    for group in rule_groups():
        yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """Return the alerts; a name may stand twice, with two severities."""
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels without its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Query]:
    """Yield every expression of the dashboard, with its variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            expr: str = target["expr"]
            for name, value in _VARIABLES.items():
                expr = expr.replace(name, value)
            yield Query(panel["title"], expr)


def cases() -> Mapping[str, list[bool]]:
    """Alert -> for each check in the rules' tests, whether it expects the alert to fire."""
    found: dict[str, list[bool]] = {}
    for path in RULE_TESTS:
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in test.get("promql_expr_test", []):
                name = re.search(r'ALERTS\{alertname="(\w+)"', check["expr"])
                if name is not None:
                    found.setdefault(name[1], []).append(bool(check["exp_samples"]))
    return found
