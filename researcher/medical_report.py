"""The report's part for clinicians: figures with intervals, curves, hospitals, subgroups."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from string import Template
from typing import Final

from common.study import Study
from researcher import medical_plots
from researcher.comparison import Comparison, Figures
from researcher.figures import TITLES, with_interval

_NAMES: Final = (
    "auroc", "auprc", "brier", "calibration_slope", "calibration_intercept", "observed_expected",
    "accuracy", "sensitivity", "specificity", "ppv", "npv",
)  # fmt: skip

_SECTION: Final = Template("""<section>
<h2>As a paper would report it</h2>
<p>The released model over the test patients of all hospitals, with $level&nbsp;% intervals.
<em>Over the wire</em>: what the federation itself computed out of masked sums, without any
patient's score. From sensitivity downwards: at a threshold of $threshold.</p>
<div class="scroll"><table>
<thead><tr><th>figure</th><th>federated, exact</th><th>over the wire</th><th>centralised</th></tr>
</thead><tbody>$figures</tbody></table></div>
$confusion
</section>
<div class="two">
<section><h2>Precision and recall</h2><p>Of those found, how many are sick?</p>$pr</section>
<section><h2>Decision curve</h2><p>Above both lines the model helps to decide whom to treat.</p>
$decision</section>
</div>
<section><h2>By hospital</h2><p>AUROC at each hospital; the diamond is everybody's.</p>
$sites</section>
$subgroups
""")


def section(study: Study, comparison: Comparison, wire: Mapping[str, float]) -> str:
    """Return the whole part; nothing for a target that is not yes or no."""
    if study.target.type != "binary":
        return ""
    threshold = float(study.evaluate.threshold)
    everybody = ("all hospitals", comparison.federated.pooled)
    return _SECTION.substitute(
        level=f"{100 * float(study.evaluate.confidence):g}",
        threshold=f"{threshold:g}",
        figures=_figures(comparison, wire),
        confusion=_confusion(comparison.federated.pooled),
        pr=medical_plots.precision_recall(comparison),
        decision=medical_plots.decision_curve(comparison, threshold),
        sites=medical_plots.forest([*comparison.federated.by_site.items(), everybody]),
        subgroups=_subgroups(comparison, everybody),
    )


def _figures(comparison: Comparison, wire: Mapping[str, float]) -> str:
    columns: tuple[Figures, ...] = (
        comparison.federated.pooled,
        dict(wire),
        comparison.centralised.pooled,
    )
    return "".join(
        f"<tr><td>{TITLES[name]}</td>"
        + "".join(f"<td>{with_interval(column, name)}</td>" for column in columns)
        + "</tr>"
        for name in _NAMES
    )


def _confusion(figures: Figures) -> str:
    names = ("true_positive", "false_positive", "false_negative", "true_negative")
    tp, fp, fn, tn = (f"{figures.get(name) or 0:.0f}" for name in names)
    return (
        "<h3 style='margin-top:20px'>Confusion table</h3><table><thead><tr><th></th>"
        "<th>sick</th><th>healthy</th></tr></thead><tbody>"
        f"<tr><td>model says yes</td><td>{tp}</td><td>{fp}</td></tr>"
        f"<tr><td>model says no</td><td>{fn}</td><td>{tn}</td></tr></tbody></table>"
    )


def _subgroups(comparison: Comparison, everybody: tuple[str, Figures]) -> str:
    if not comparison.subgroups:
        return ""
    rows = [(f"{one.feature} {one.label}", one.figures or {}) for one in comparison.subgroups]
    names = ("auroc", "brier", "calibration_slope", "sensitivity", "specificity")
    head = "".join(f"<th>{TITLES[name].split(' (')[0]}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f"<td>{with_interval(figures, name, 2)}</td>" for name in names)
        + "</tr>"
        for label, figures in [*rows, everybody]
    )
    return (
        "<section><h2>By subgroup</h2><p>A subgroup of which fewer than 10 are sick or healthy, "
        "or that would follow from the others, has no figures.</p>"
        f"{medical_plots.forest([*rows, everybody])}"
        f"<div class='scroll'><table><thead><tr><th>subgroup</th>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )
