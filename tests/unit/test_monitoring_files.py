"""The monitoring files speak of metrics, labels and codes that the services really have.

Needs no Prometheus; tests/integration/test_monitoring.py asks a real one.
"""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

import coordinator.metrics
import hospital_node.metrics
from common.errors import CATALOGUE
from common.exposition import Kind, Metric
from tests import monitoring

ROOT = Path(__file__).parents[2]

TABLES = {
    "fedcare-coordinator": coordinator.metrics.TABLE,
    "fedcare-node": hospital_node.metrics.TABLE,
}
PROCESS = {  # prometheus_client's, of any process
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "python_info",
}
FOREIGN = {"up", "ALERTS", "probe_success"}  # Prometheus' own, and the blackbox exporter's
UNUSED = {
    "process_max_fds": "connections are bounded by configuration",
    "process_open_fds": "likewise",
    "process_virtual_memory_bytes": "says nothing about memory in use",
    "python_info": "the build says which Python it needs",
}


def series(metric: Metric) -> set[str]:
    if metric.kind is Kind.HISTOGRAM:
        return {metric.name + end for end in ("_bucket", "_sum", "_count")}
    return {metric.name}


def labels_of() -> dict[str, set[str]]:
    """Series of our own -> the labels it may carry."""
    found: dict[str, set[str]] = {}
    for table in TABLES.values():
        for metric in table:
            for name in series(metric):
                found.setdefault(name, {"job", "instance"}).update(metric.labels)
                if name.endswith("_bucket"):
                    found[name].add("le")
    return found


def recorded() -> set[str]:
    return {rule["record"] for rule in monitoring.rules() if "record" in rule}


def expressions() -> list[tuple[str, str]]:
    """Where it stands, and the expression."""
    rules = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in monitoring.rules()]
    return rules + [(query.panel, query.expr) for query in monitoring.queries()]


def test_every_series_in_rules_and_dashboard_exists() -> None:
    known = set(labels_of()) | PROCESS | FOREIGN | recorded()
    for place, expr in expressions():
        names = [found.name for found in monitoring.selected(expr)]
        assert names or "vector(" in expr, place
        assert set(names) <= known, place


def test_every_label_that_is_asked_for_exists() -> None:
    labels = labels_of()
    for place, expr in expressions():
        for found in monitoring.selected(expr):
            if found.name in labels:
                assert {name for name, _ in found.matchers} <= labels[found.name], place


def test_label_values_that_are_asked_for_are_ones_that_occur() -> None:
    closed = {
        "job": set(TABLES) | {"fedcare-coordinator-ready", "fedcare-(coordinator|node)"},
        "state": set(coordinator.metrics.RUN_STATES),
        "outcome": set(coordinator.metrics.OUTCOMES) | set(hospital_node.metrics.OUTCOMES),
    }
    for place, expr in expressions():
        for found in monitoring.selected(expr):
            for name, value in found.matchers:
                if name in closed:
                    asked = {value} if value in closed[name] else set(value.split("|"))
                    assert asked <= closed[name], place


def test_every_metric_is_shown_or_alerted_or_left_out_for_a_reason() -> None:
    used = {found.name for _, expr in expressions() for found in monitoring.selected(expr)}
    for table in TABLES.values():
        for metric in table:
            assert series(metric) & used, metric.name
    assert PROCESS - used == set(UNUSED)


def test_every_recording_is_used() -> None:
    used = {found.name for _, expr in expressions() for found in monitoring.selected(expr)}
    assert recorded() <= used


def codes(alert: str) -> set[str]:
    expr = next(rule["expr"] for rule in monitoring.alerts() if rule["alert"] == alert)
    return set(re.findall(r"FC-\d{4}", expr))


def test_the_codes_that_call_a_peer_hostile_are_the_catalogues() -> None:
    refusals = [kind for kind in CATALOGUE.values() if kind.code[:4] in ("FC-3", "FC-4")]
    late = {kind.code for kind in refusals if kind.fix.startswith("Nothing")}
    hostile = {
        kind.code for kind in refusals if re.search("is faulty or hostile|hostile key", kind.fix)
    }
    assert codes("FedcareProtocolRefused") == late
    assert codes("FedcarePeerHostile") == hostile


@pytest.mark.parametrize("rule", monitoring.alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_how_bad_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Fedcare")
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    told = rule["annotations"]
    assert set(told) == {"summary", "description", "runbook_url"}
    assert all(told[key].endswith(".") for key in ("summary", "description"))
    assert told["runbook_url"] == f"deploy/RUNBOOK.md#{rule['alert'].lower()}"


def test_the_runbook_has_one_paragraph_for_each_alert() -> None:
    text = (ROOT / "deploy" / "RUNBOOK.md").read_text(encoding="utf-8")
    section = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    found = re.findall(r"\n#### (\w+)\n\n([^\n#]+(?:\n[^\n#]+)*)\n", section)
    assert [name for name, _ in found] == list(
        dict.fromkeys(rule["alert"] for rule in monitoring.alerts())
    )


def test_each_alert_has_a_firing_and_a_silent_case() -> None:
    names = {rule["alert"] for rule in monitoring.alerts()}
    found = monitoring.cases()
    assert set(found) == names
    for name in names:
        assert set(found[name]) == {True, False}, name


def test_memory_limits_in_the_rules_are_the_containers() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    sizes = {"m": 1024**2, "g": 1024**3}
    limits = {
        rule["labels"]["job"]: product_of(rule["expr"])
        for rule in monitoring.rules()
        if rule.get("record") == "job:fedcare_memory_limit:bytes"
    }
    for job, service in (("fedcare-coordinator", "coordinator"), ("fedcare-node", "va")):
        written: str = services[service]["mem_limit"]
        assert limits[job] == int(written[:-1]) * sizes[written[-1]], job


def product_of(expr: str) -> int:
    result = 1
    for factor in re.findall(r"\d+", expr):
        result *= int(factor)
    return result


# --- the dashboard ----------------------------------------------------------------------------

CORE_PANELS = {"stat", "timeseries", "state-timeline", "bargauge", "table"}


def test_the_dashboard_is_one_that_grafana_10_and_11_import() -> None:
    found = monitoring.dashboard()
    assert (found["uid"], found["schemaVersion"]) == ("fedcare", 39)
    assert not {"id", "__inputs"} & set(found)  # those of an export from somebody's server
    variables = {entry["name"]: entry["type"] for entry in found["templating"]["list"]}
    assert variables == {"DS": "datasource", "coordinator": "query", "node": "query"}
    assert all(n == 1 for n in Counter(panel["id"] for panel in found["panels"]).values())


def test_panels_do_not_overlap_and_lie_in_the_grid() -> None:
    places = [panel["gridPos"] for panel in monitoring.dashboard()["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


@pytest.mark.parametrize("panel", monitoring.panels(), ids=lambda panel: panel["title"])
def test_a_panel_says_in_a_sentence_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["type"] in CORE_PANELS
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None
    for source in (panel, *panel["targets"]):
        assert source["datasource"] == {"type": "prometheus", "uid": "${DS}"}


def test_thresholds_of_the_dashboard_are_those_of_the_alerts() -> None:
    by_title = {
        panel["title"]: [
            step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1:]
        ]
        for panel in monitoring.panels()
    }
    exprs = {rule["alert"]: rule["expr"] for rule in monitoring.alerts()}
    assert "< 14 * 86400" in exprs["FedcareCertificateExpiresSoon"]
    assert "< 3 * 86400" in exprs["FedcareCertificateExpires"]
    assert "< 5 * 1024 * 1024 * 1024" in exprs["FedcareDiskLow"]
    assert "< 0.2 *" in exprs["FedcareRoundNearDeadline"]
    assert exprs["FedcareHospitalDropsOut"].endswith(">= 3")
    assert exprs["FedcareCallsRefused"].endswith("> 1")
    for title in ("Certificate expires in", "Node's certificate expires in"):
        assert by_title[title] == [0, 3 * 86400, 14 * 86400]
    for title in ("State disk free", "Node's state disk free", "State disk"):
        assert by_title[title] == [5 * 1024**3]
    assert by_title["Share of the round's time left"] == [0.2]
    assert by_title["Dropouts in the last hour, by hospital"] == [1, 3]
    assert by_title["Refused calls by code"] == [1]


# --- the other files --------------------------------------------------------------------------


def test_the_readme_lists_every_panel_and_every_alert() -> None:
    text = (monitoring.HERE / "README.md").read_text(encoding="utf-8")
    for panel in monitoring.panels():
        assert f"| {panel['title']} |" in text
    for rule in monitoring.alerts():
        assert f"`{rule['alert']}`" in text


def test_prometheus_scrapes_the_jobs_that_rules_and_dashboard_select() -> None:
    config = yaml.safe_load((monitoring.HERE / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in config["scrape_configs"]}
    assert set(jobs) == set(TABLES)
    for files in jobs.values():
        assert all((monitoring.HERE / name).is_file() for name in files)
    assert [monitoring.HERE / name for name in config["rule_files"]] == [monitoring.RULES]


def test_grafana_is_given_a_prometheus_and_the_folder_of_the_dashboard() -> None:
    folder = monitoring.HERE / "grafana" / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "fedcare.yml").read_text(encoding="utf-8"))
    provider = yaml.safe_load((folder / "dashboards" / "fedcare.yml").read_text(encoding="utf-8"))
    assert source["apiVersion"] == provider["apiVersion"] == 1
    assert [entry["type"] for entry in source["datasources"]] == ["prometheus"]
    assert [entry["type"] for entry in provider["providers"]] == ["file"]
