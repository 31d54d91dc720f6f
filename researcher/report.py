"""The demo's report: one HTML page without any other file, and the same facts as JSON.

The page is for a hospital's engineer or privacy officer: what was trained and by whom,
what the model is worth beside the alternatives, what was protected from whom, and what
was not. No script runs in it and nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Final, TypeAlias

from common.manifest import Manifest
from common.study import Study
from common.views import RunView
from researcher import personal
from researcher.comparison import Assessment, Comparison, Figures
from researcher.report_page import PAGE

Row: TypeAlias = tuple[str, ...]

_COUNTS: Final = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
_NONE: Final = "&ndash;"


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Everything a report is made of. `data` is the envelope's, `made_unix` its time."""

    study: Study
    run: RunView
    manifest: Manifest
    comparison: Comparison
    data: Mapping[str, object]
    attribution: str
    made_unix: float


def figure(value: float | None, digits: int = 3) -> str:
    """Return a figure for people; a dash where it has no value."""
    return "-" if value is None else f"{value:.{digits}f}"


MEAN: Final = "mean of hospitals"
EVERYBODY: Final = "all test patients"
NOTE: Final = (
    f"{EVERYBODY}, local only: one hospital's model tried on everybody's patients, "
    "mean over the hospitals"
)


def comparison_rows(comparison: Comparison, name: str = "auroc") -> list[Row]:
    """Return (hospital, test rows, federated, local only, centralised), then the two sums."""
    kinds = (comparison.federated, comparison.local_only, comparison.centralised)

    def row(label: str, rows: float | None, pick: Callable[[Assessment], Figures]) -> Row:
        count = "" if rows is None else f"{rows:.0f}"
        return (label, count, *(figure(pick(kind).get(name)) for kind in kinds))

    found = [
        row(site, len(scored.target), lambda kind, site=site: kind.by_site[site])  # type: ignore[misc]
        for site, scored in comparison.scores.items()
    ]
    found.append(row(MEAN, None, lambda kind: kind.mean_of_sites))
    everybody = sum(len(scored.target) for scored in comparison.scores.values())
    found.append(row(EVERYBODY, everybody, lambda kind: kind.pooled))
    return found


def html(facts: ReportFacts) -> str:
    """Return the whole page."""
    from researcher import plots
    from researcher.medical_report import section

    comparison, sites = facts.comparison, list(facts.comparison.scores)
    made = datetime.fromtimestamp(facts.made_unix, UTC).strftime("%d %B %Y, %H:%M UTC")
    return PAGE.substitute(
        title=escape(facts.study.title or facts.study.id),
        lead=_lead(facts),
        facts=_facts(facts),
        table=_table(comparison),
        elsewhere=_elsewhere(comparison),
        alone=plots.elsewhere_bars(comparison),
        bars=plots.auroc_bars(comparison),
        roc=plots.roc(comparison),
        calibration=plots.calibration(comparison),
        medical=section(facts.study, comparison, dict(facts.run.pooled)),
        personal=personal.section(comparison),
        timeline=plots.timeline(facts.run.history, sites),
        protection=_protection(facts),
        proof=_proof(facts),
        attribution=escape(facts.attribution),
        made=made,
        software=escape(facts.manifest.software),
    )


def _lead(facts: ReportFacts) -> str:
    comparison, sites = facts.comparison, facts.comparison.scores
    pooled = comparison.federated.pooled.get("auroc")
    central = comparison.centralised.pooled.get("auroc")
    best = max((f.get("auroc") or 0.0 for f in comparison.elsewhere.values()), default=0.0)
    rows = comparison.federated.pooled.get("rows") or 0
    together = (
        f"{_COUNTS.get(len(sites), len(sites))} hospitals trained one model together. On the "
        f"{rows:.0f} test patients of all of them it reaches an AUROC of <b>{figure(pooled)}</b>; "
        f"with all patients in one place it would be {figure(central)}."
    )
    alone = f"The best model that a single hospital makes alone reaches {figure(best)} on them."
    return f"{together} {alone} No record left a hospital, and the coordinator saw sums only."


def _facts(facts: ReportFacts) -> str:
    data, run = facts.data, facts.run
    model = facts.study.model.kind
    rounds = facts.study.federation.rounds
    cells = [
        ("hospitals", str(len(facts.comparison.scores))),
        ("model", escape(model)),
        ("training rounds", str(rounds)),
        ("rounds in all", str(sum(entry.state == "CLOSED" for entry in run.history))),
        ("first round after", f"{_number(data, 'seconds_to_first_round'):.1f} s"),
        ("everything in", f"{_number(data, 'seconds'):.1f} s"),
        ("transport", f"mutual TLS {escape(str(data['tls']))}"),
        ("masks", escape(f"secure aggregation, {facts.manifest.privacy.suite}")),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)


def _number(data: Mapping[str, object], key: str) -> float:
    value = data[key]
    return float(value) if isinstance(value, (int, float)) else 0.0


def _table(comparison: Comparison) -> str:
    from researcher.plots import colours

    palette = colours(list(comparison.scores))
    names = ("auroc", "accuracy", "brier")
    columns = {name: comparison_rows(comparison, name) for name in names}
    body = []
    for place, (site, rows, *_rest) in enumerate(columns["auroc"]):
        mark = f'<i style="background:{palette[site]}"></i>' if site in palette else ""
        sick = comparison.federated.by_site.get(site, {}).get("positives")
        note = "" if sick is None else f" <small>({sick:.0f} positive)</small>"
        cells = [f"<td>{mark}{escape(site)}</td><td>{rows}{note}</td>"]
        for name in names:
            values = columns[name][place][2:]
            cells += [
                f"<td{_css(name, kind)}>{_NONE if value == '-' else value}</td>"
                for kind, value in zip(("fed", "loc", "cen"), values, strict=True)
            ]
        last = ' class="sum"' if site == MEAN else ' class="all"' if site == EVERYBODY else ""
        body.append(f"<tr{last}>{''.join(cells)}</tr>")
    return "\n".join(body)


def _css(name: str, kind: str) -> str:
    classes = [kind] if kind == "fed" else []
    if kind == "fed" and name != "auroc":
        classes.append("first")
    return f' class="{" ".join(classes)}"' if classes else ""


def _elsewhere(comparison: Comparison) -> str:
    return (
        "A model made at one hospital alone does well where the patients are like its own and less "
        "well where they are not. If each patient could always be judged by the very hospital's "
        f"model, it would be {figure(comparison.at_home.get('auroc'))} against the federated "
        f"<b>{figure(comparison.federated.pooled.get('auroc'))}</b>, but a hospital that is new, "
        "small, or sees one outcome only has no such model."
    )


def _protection(facts: ReportFacts) -> str:
    """Say in plain words what was protected from whom, and what was not."""
    privacy, sites = facts.manifest.privacy, len(facts.comparison.scores)
    words = {"least": privacy.min_sites, "colluders": privacy.colluders, "sites": sites}
    kept = [text.format(**words) for text in _KEPT]
    if privacy.suite == "hybrid":
        kept.append(_LATER)
    limits = [_TWO_SITES, *_LIMITS] if sites == 2 else list(_LIMITS)  # noqa: PLR2004
    return (
        f"<div><h3>Protected</h3><ul>{_items(kept)}</ul></div>"
        f"<div><h3>Not protected</h3><ul>{_items(limits)}</ul></div>"
    )


_KEPT: Final = (
    (
        "Patients' records stayed in each hospital's own process, which was given its own file "
        "and no other."
    ),
    (
        "Each update was masked before it left. A sum opens only over at least {least} hospitals; "
        "the coordinator never saw one hospital's update, number of patients or result."
    ),
    "That holds even if the coordinator conspires with {colluders} of the {sites} hospitals.",
    "Each hospital enforced a policy file of its own, which nobody could lower from outside.",
)
_LATER: Final = (
    "Keys were agreed by X25519 and ML-KEM-768 together: traffic recorded today stays closed to "
    "a later quantum computer."
)
_TWO_SITES: Final = "With two hospitals, each can compute the other's update from the sum."
_LIMITS: Final = (
    (
        "The sums and the model themselves: <b>no differential privacy was applied</b>, so the "
        "model may still tell something about the patients it was trained on."
    ),
    (
        "Sums of several rounds: whoever may choose the models and hospitals of many rounds can "
        "subtract one sum from another. The rule against repeating a round with other hospitals "
        "limits this; only differential privacy bounds it."
    ),
    "The truth of an update: a hospital that lies about it is hidden by the same masks.",
    "Names, times, sizes of transfers and who took part: the coordinator sees them.",
    "This very machine: whoever owns it could have read everything in this demonstration.",
)


def _items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{text}</li>" for text in texts)


def _proof(facts: ReportFacts) -> str:
    manifest = facts.manifest
    rows = [
        ("model sha256", manifest.model_sha256),
        ("study hash", f"sha256:{manifest.study.config_hash}"),
        ("run", manifest.run),
        ("last round in the chain", manifest.rounds[-1].chain if manifest.rounds else ""),
    ]
    return "".join(
        f"<tr><th>{name}</th><td><code>{escape(value)}</code></td></tr>" for name, value in rows
    )
