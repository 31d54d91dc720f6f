"""The hospitals' own models in a simulation or demonstration: read where the nodes keep them.

Each hospital chose for itself (`hospital_node.personal`); here, where one person owns all
the data, its choice is tried on its own test rows and put beside the released model and
beside the hospital alone. In a real federation none of this leaves a hospital.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from common.errors import RoundError
from hospital_node.config import NodeConfig
from researcher.comparison import Assessment, Comparison, Figures, assess, score

if TYPE_CHECKING:
    from common.preprocessing import Preprocessing
    from common.study import Study
    from hospital_node.data.load import SiteData
    from hospital_node.personal.artefact import Personal
    from researcher.local import FederationPlan

_POLL_S: Final = 0.05
_WAIT_S: Final = 1800.0
_NONE: Final = "&ndash;"


@dataclass(frozen=True, slots=True)
class PersonalFigures:
    """Which model each hospital chose and why, and what it is worth on its own test rows."""

    chosen: dict[str, str]
    why: dict[str, str]
    assessment: Assessment

    def data(self) -> dict[str, object]:
        """Return the form for envelopes and files."""
        return {
            "chosen": self.chosen,
            "why": self.why,
            "by_site": self.assessment.by_site,
            "mean_of_sites": self.assessment.mean_of_sites,
        }


async def made(plan: FederationPlan, run_id: str) -> None:
    """Wait until every hospital has made its own model of a run, or said that it cannot.

    Raises:
        RoundError: DEADLINE, one has done neither in half an hour.
    """
    if not plan.study.personal.enabled:
        return
    waiting = [_folder(plan, site.name, run_id) for site in plan.sites]
    try:
        async with asyncio.timeout(_WAIT_S):
            while not all(map(_settled, waiting)):  # noqa: ASYNC110 - files of other processes
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise RoundError("DEADLINE", "a hospital has not made its personal model") from None


def collect(plan: FederationPlan, run_id: str) -> dict[str, Personal]:
    """Return the hospitals' own models, by site; a hospital that could make none is left out.

    Raises:
        StateError: MODEL_INVALID.
    """
    from hospital_node.personal.artefact import load

    folders = {site.name: _folder(plan, site.name, run_id) for site in plan.sites}
    return {site: load(folder) for site, folder in folders.items() if folder.is_dir()}


def judged(
    study: Study,
    preprocessing: Preprocessing,
    models: Mapping[str, Personal],
    sites: Mapping[str, SiteData],
) -> PersonalFigures | None:
    """Return the figures of each hospital's own model on its own test rows; None without any."""
    test = {site: preprocessing.encode(study, sites[site].test) for site in sites if site in models}
    if not test:
        return None
    weights = {site: model.model()[1] for site, model in models.items()}
    train = {site: preprocessing.encode(study, sites[site].train) for site in test}
    scored = score(study, test, lambda site: weights[site], train)
    return PersonalFigures(
        {site: str(models[site].record["chosen"]) for site in test},
        {site: str(models[site].record["why"]) for site in test},
        assess(study, scored),
    )


def _folder(plan: FederationPlan, site: str, run_id: str) -> Path:
    config = NodeConfig.read(plan.site_folder(site) / "node.yaml")
    return config.path(config.state_dir) / "personal" / run_id


def _settled(folder: Path) -> bool:
    return folder.is_dir() or folder.with_name(folder.name + ".failed").exists()


# --- for people -----------------------------------------------------------------------------


def rows(comparison: Comparison, name: str) -> list[tuple[str, ...]]:
    """Return (hospital, its own model, personal, federated, local only), then the means."""
    figures = comparison.personal
    if figures is None:
        return []
    kinds = (figures.assessment, comparison.federated, comparison.local_only)
    found = [
        (site, figures.chosen[site], *(_cell(kind.by_site[site], name) for kind in kinds))
        for site in figures.chosen
    ]
    means = (_cell(kind.mean_of_sites, name) for kind in kinds)
    return [*found, ("mean of hospitals", "", *means)]


def _cell(figures: Figures, name: str) -> str:
    value = figures.get(name)
    return "-" if value is None else f"{value:.3f}"


def section(comparison: Comparison) -> str:
    """Return the report's section; empty where no hospital made a model of its own."""
    if comparison.personal is None:
        return ""
    names = [
        name
        for name in _TITLES
        if any(figures.get(name) is not None for figures in _by_site(comparison))
    ]
    tables = {name: rows(comparison, name) for name in names}
    heads = "".join(f'<th colspan="3">{_TITLES[name]}</th>' for name in names)
    subs = "<th>own model</th><th>federated</th><th>local only</th>" * len(names)
    body = []
    chosen_by = [*comparison.personal.chosen.items(), ("mean of hospitals", "")]
    for place, (site, chosen) in enumerate(chosen_by):
        cells = "".join(
            f"<td{' class=fed' if k == 0 else ''}>{_NONE if value == '-' else value}</td>"
            for name in names
            for k, value in enumerate(tables[name][place][2:])
        )
        last = "" if chosen else ' class="sum"'
        shown = f"<td>{escape(chosen)}</td>"
        body.append(f"<tr{last}><td>{escape(site)}</td>{shown}{cells}</tr>")
    reasons = [
        f"<li>{escape(site)}: {escape(why)}</li>" for site, why in comparison.personal.why.items()
    ]
    return _SECTION.format(heads=heads, subs=subs, body="\n".join(body), reasons="\n".join(reasons))


def _by_site(comparison: Comparison) -> list[dict[str, Any]]:
    return [dict(figures) for figures in comparison.federated.by_site.values()]


_TITLES: Final = {
    "auroc": "AUROC",
    "c_index": "C-index",
    "accuracy": "accuracy",
    "log_loss": "log-loss (less is better)",
    "r2": "R&sup2;",
}
_SECTION: Final = """<section>
<h2>Each hospital's own model</h2>
<p>After the run each hospital compared, on training patients held out in turn, the released model
with one it recalibrated, fine-tuned or held near it, and with one of its own patients alone, and
kept the best. These models and the comparison stay at the hospital. Figures are over its own test
patients, which had no part in the choice.</p>
<div class="scroll"><table>
<thead>
<tr><th></th><th></th>{heads}</tr>
<tr><th>hospital</th><th>chosen</th>{subs}</tr>
</thead>
<tbody>
{body}
</tbody></table></div>
<ul>
{reasons}
</ul>
</section>"""
