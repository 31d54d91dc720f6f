"""One study for a privacy officer, in plain words; `page_data` for scripts, `page_text` for people.

Who asks and what for, which columns are read, what leaves the hospital and in which form,
how that is protected and what is *not* protected, what it costs of the privacy budget,
what the policy finds, who has approved, and what has changed since the last approved
version. Everything is derived from the study, the policy and the records: nothing is
taken from what the owner says about it but title, purpose and names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final, assert_never

from common.layouts import round_kinds
from common.secagg.header import RoundKind
from common.study import (
    BinaryTarget,
    ColumnSplit,
    ContinuousTarget,
    Feature,
    MulticlassTarget,
    Study,
    completed,
)
from common.study_privacy import steps_per_round
from common.text import escape, show
from hospital_node.approval.cases import Case
from hospital_node.approval.desk import ApprovalDesk, Former, standing_data
from hospital_node.approval.standing import Said, Standing, stamp
from hospital_node.consent import examine

_ABSENT: Final = "not there"
_WEIGHTS: Final = {
    "equal": "every hospital counts the same: nothing is said of its number of patients",
    "size_class": "the number of training rows, rounded down to a power of two, goes into the "
    "masked sum",
    "samples": "the exact number of training rows goes into the masked sum; comparing rounds "
    "with and without this hospital gives it away",
    "public": "a constant that stands in the study: nothing is said of the number of patients",
}
_WITHOUT_NOISE: Final = (
    (
        "There is no noise. The sums themselves, and the released model, may say something about "
        "a patient who is unlike all others."
    ),
    (
        "A malicious coordinator, or whoever chooses the models, can send models that differ "
        "slightly from round to round and subtract the sums; that may isolate what one patient or "
        "hospital contributed. Where the coordinator is not trusted, ask for differential privacy."
    ),
)
_STATISTICS: Final = {
    False: "sums over the columns: shares of present values and of levels, means, spreads, and "
    "histograms where medians are needed",
    True: "sums over the patients, each counted once: present values, means, spreads and levels of "
    "the columns, plus noise",
}
_COUNTED: Final = (
    "counts over all rows, by group where the study has groups: rows, missing values, levels, fine "
    "histograms, cross tables, events and losses over time; sums for means and spreads. Counts of "
    "few patients in the sum over all hospitals are left out before anything is stored"
)
_EVALUATION: Final = {
    False: "counts and sums of errors over the test rows, for a yes/no target with a histogram of "
    "the model's scores",
    True: "a histogram of the model's scores, each test patient counted once, plus noise",
}
_MISSING: Final = {
    "none": "must not occur",
    "drop-row": "the row is left out",
    "centre": "a constant that stands in the study",
    "mean": "the mean over all hospitals",
    "median": "the median over all hospitals",
    "most-frequent": "the most frequent level over all hospitals",
}
"""By what takes a missing value's place (`hospital_node.data.contract`)."""


def page_data(desk: ApprovalDesk, case: Case) -> dict[str, Any]:
    """Return the page as plain data.

    Raises:
        FedError: APPROVAL_RECORD, LEDGER_DAMAGED, STATE_DAMAGED.
    """
    study, policy = case.study, desk.policy
    findings = examine(study, case.config_hash, policy.value, policy.source)
    former = desk.former(case)
    return {
        "study": study.id,
        "hash": case.hash_text,
        "runs": [run.run_id for run in case.runs],
        "kind": study.kind,
        "title": study.title,
        "purpose": study.purpose,
        "owner": {"name": study.owner.name, "organisation": study.owner.organisation},
        "reads": _reads(study),
        "leaves": _leaves(study),
        "protected": _protected(study, len(policy.value.federation.members)),
        "not_protected": _not_protected(study, len(policy.value.federation.members)),
        "budget": desk.spent(case),
        "policy": [asdict(finding) for finding in findings],
        "approval": standing_data(desk.standing(case.config_hash)),
        "difference": None if former is None else _difference(former, case),
    }


# --- what is read -----------------------------------------------------------------------------


def _reads(study: Study) -> dict[str, Any]:
    if isinstance(study.split, ColumnSplit):
        split = f"the column {study.split.column} says which rows train and which test"
    else:
        split = f"{study.split.test:.0%} of the rows, drawn inside the hospital, are for tests"
    return {
        "dataset": study.dataset,
        "features": [_feature(feature) for feature in study.features],
        "target": _target(study),
        "patient_key": study.patient_key,
        "split": split if study.kind == "training" else None,
    }


def _feature(feature: Feature) -> dict[str, Any]:
    unit = f" in {feature.unit}" if feature.unit else ""
    form = f"{len(feature.levels)} levels" if feature.levels else f"{feature.type}{unit}"
    marked = ", and a column that says so" if feature.indicator else ""
    return {"name": feature.name, "form": form, "missing_values": feature.impute + marked}


def _target(study: Study) -> str | None:
    match study.target:
        case BinaryTarget(name=name, positive=positive):
            return f"{name}, yes where it is {positive}"
        case MulticlassTarget(name=name, levels=levels):
            return f"{name}, one of {len(levels)} levels"
        case ContinuousTarget(name=name):
            return f"{name}, a number"
        case _:
            columns = study.columns()[len(study.features) :]
            told = study.target.type != "none" or study.curve is not None
            return ", ".join(columns) if told else None


# --- what leaves, and how it is protected --------------------------------------------------------


def _leaves(study: Study) -> list[dict[str, Any]]:
    """Return every kind of message with something of this hospital's data in it.

    With differential privacy whatever leaves is noised (protocol, section 9.5).
    """
    noised, rounds = study.privacy.dp.on, Counter(round_kinds(study))
    sums = _COUNTED if study.kind == "statistics" else _STATISTICS[noised]
    whats = {
        RoundKind.STATISTICS: ("statistics", sums),
        RoundKind.TRAIN: ("training", _trained(study)),
        RoundKind.EVALUATE: ("evaluation", _EVALUATION[noised]),
    }
    return [
        {
            "round": name,
            "what": what,
            "rounds": rounds[kind],
            "form": "masked sum",
            "noised": noised,
        }
        for kind, (name, what) in whats.items()
        if rounds[kind]
    ]


def _trained(study: Study) -> str:
    rule = _WEIGHTS[study.federation.weight_rule]
    match study.privacy.dp.mode:
        case "none":
            return (
                "how training on this hospital's rows changes the model's numbers, its mean loss, "
                f"and how many numbers were clipped; {rule}"
            )
        case "hospital":
            return "how training changes the model's numbers, cut to a length, plus noise"
        case "patient-local":
            return (
                "how training changes the model's numbers, where every step is a sum of the "
                "patients' gradients, each cut to a length, plus noise"
            )
        case "patient-distributed":
            return "the sum of the patients' gradients, each cut to a length, plus noise"
        case _:
            assert_never(study.privacy.dp.mode)


def _protected(study: Study, members: int) -> list[str]:
    c, sites = study.colluders(members), study.federation.min_sites
    masked = (
        f"What leaves is masked: the coordinator alone reads only sums over at least {sites} "
        "hospitals"
    )
    if c:
        masked += (
            f"; with the help of {c} of the {members} hospitals, sums over at least {sites - c} "
            "of the others"
        )
    found = ["Rows, values and labels never leave the hospital.", f"{masked}."]
    terms = study.privacy.dp
    if not terms.on:
        return found
    whom = "hospital" if terms.mode == "hospital" else "patient"
    return [
        *found,
        (
            f"Differential privacy ({terms.mode}): whoever sees the results can hardly tell "
            f"whether one {whom} was in the data. Epsilon {_number(terms.epsilon)} for the whole "
            f"study, delta {_number(terms.delta)}: the smaller, the stronger."
        ),
        _noise(study, whom, sites - c),
        *_figures_noise(study),
    ]


def _noise(study: Study, whom: str, honest: int) -> str:
    terms = study.privacy.dp
    cut = f"is cut to the length {_number(terms.clip)}"
    times = f"{_number(terms.noise_multiplier)} times that length"
    if terms.mode == "patient-local":
        return (
            f"Each {whom}'s part {cut}; this hospital adds noise of {times} in every one of "
            f"its {steps_per_round(study)} steps a round, so that what it sends is protected by "
            "itself."
        )
    return (
        f"Each {whom}'s part {cut}; every training round's sum has noise of {times}. The "
        f"hospitals make it together, sized for {honest} honest ones: it protects in the sum."
    )


def _figures_noise(study: Study) -> list[str]:
    terms = study.privacy.dp
    paid = (("statistics", terms.statistics_noise), ("evaluation", terms.evaluation_noise))
    return [
        f"The sum of {name} has noise of its own, {_number(noise)} times the length of one "
        "patient's part; the epsilon above pays for it too."
        for name, noise in paid
        if noise is not None
    ]


def _not_protected(study: Study, members: int) -> list[str]:
    found = _noise_limits(study, members) if study.privacy.dp.on else list(_WITHOUT_NOISE)
    if study.federation.min_sites == 2:  # noqa: PLR2004
        found.append(
            "Rounds of two hospitals are possible: then each can compute the other's part."
        )
    if study.privacy.secure_aggregation.colluders == 0:
        found.append("One hospital that helps the coordinator undoes the masks.")
    if study.evaluate.site_metrics:
        found.append("The study asks for this hospital's own figures, not only for pooled ones.")
    found.append(
        "Which hospitals take part, in which rounds, and when, is known to all of them and to the "
        "coordinator."
    )
    return found


def _noise_limits(study: Study, members: int) -> list[str]:
    """Return what the noise does not do."""
    mode, c = study.privacy.dp.mode, study.colluders(members)
    found = []
    if mode != "hospital":
        found.append(
            "What this hospital's patients have in common: the noise hides one patient, not the "
            "hospital."
        )
        if study.patient_key is None:
            found.append("A patient with several rows is hidden row by row only.")
    if mode != "patient-local":
        whoever = f"More than {c} hospitals that tell" if c else "One hospital that tells"
        weaken = "weaken" if c else "weakens"
        found.append(f"{whoever} the coordinator a part of the noise {weaken} the promise.")
    return found


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


# --- what has changed -----------------------------------------------------------------------------


def _difference(former: Former, case: Case) -> dict[str, Any]:
    """Return the keys in which a study differs from the version approved last."""
    was, now = dict(_flat(completed(former.case.study))), dict(_flat(completed(case.study)))
    changes = [
        {"key": key, "was": was.get(key, _ABSENT), "is": now.get(key, _ABSENT)}
        for key in dict.fromkeys([*was, *now])
        if was.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    return {"hash": former.case.hash_text, "approved_at": former.at, "changes": changes}


def _flat(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its key; features go by their names, other lists stay whole."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif path == "features" and isinstance(value, list):
        for feature in value:
            yield from _flat(feature, f"features.{feature['name']}")
    else:
        yield path, value


# --- for people -----------------------------------------------------------------------------------


def page_text(data: Mapping[str, Any], found: Standing) -> str:
    """Return the page as text."""
    owner = data["owner"]
    lines = [
        f"{data['title'] or data['study']}",
        "",
        f"  asked by   {owner['name']}, {owner['organisation']}",
        f"  purpose    {data['purpose']}",
        f"  study      {data['study']}, {data['hash']}",
        f"  runs       {', '.join(data['runs'])}",
        *_section("What is read, inside the hospital", _reads_lines(data["reads"])),
        *_section("What leaves the hospital", _leaves_lines(data["leaves"])),
        *_section("How it is protected", data["protected"]),
        *_section("What is NOT protected", data["not_protected"]),
        *_section("Privacy budget", _budget_lines(data["budget"])),
        *_section("What this hospital's policy says", _policy_lines(data["policy"])),
        *_section("Changed since the last approved version", _changes(data["difference"])),
        *_section("Approval", approval_lines(found)),
    ]
    return "\n".join(escape(line) for line in lines)


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)]


def _reads_lines(reads: Mapping[str, Any]) -> list[str]:
    lines = [f"data set {reads['dataset']}; {len(reads['features'])} columns for the model:"]
    lines += [
        f"  {one['name']}: {one['form']}; missing values: {_MISSING[one['missing_values']]}"
        for one in reads["features"]
    ]
    if reads["target"]:
        lines.append(f"what is to be predicted: {reads['target']}")
    key = reads["patient_key"]
    lines.append(
        f"rows of one patient are grouped by {key}"
        if key
        else "no patient key: every row counts as a patient of its own"
    )
    return [*lines, reads["split"]] if reads["split"] else lines


def _leaves_lines(leaves: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['round']}, {one['rounds']} round{'s' if one['rounds'] > 1 else ''}, as a masked sum"
        f"{' with noise' if one['noised'] else ' without noise'}: {one['what']}"
        for one in leaves
    ]


def _budget_lines(budget: Mapping[str, Any] | None) -> list[str]:
    if budget is None:
        return ["nothing is charged: the study has no differential privacy"]
    lines = [
        f"epsilon spent on this data set so far: {budget['spent']:.4g}",
        (
            f"with the whole of this study: {budget['after']:.4g} of "
            f"{budget['limit_total']:.4g}, at delta {budget['delta']:.4g}"
        ),
        f"this study alone: {budget['study']:.4g} of {budget['limit_study']:.4g} for one study",
    ]
    return [*lines, *(f"OVER THE LIMIT: {line}" for line in budget["over"])]


def _policy_lines(findings: list[dict[str, Any]]) -> list[str]:
    return [
        f"{'accepts' if one['ok'] else 'REFUSES'}  {one['asked']}"
        f"  ({one['rule']} is {one['allowed']}; {one['where']})"
        for one in findings
    ]


def _changes(difference: Mapping[str, Any] | None) -> list[str]:
    if difference is None:
        return ["no earlier version of this study was approved here"]
    lines = [f"{difference['hash']}, approved {stamp(difference['approved_at'])}"]
    lines += [
        f"{one['key']}: was {_value(one['was'])}, is {_value(one['is'])}"
        for one in difference["changes"]
    ]
    return lines


def _value(value: object) -> str:
    return _ABSENT if value == _ABSENT else show(value)


def approval_lines(found: Standing) -> list[str]:
    """Return how a study stands, person by person."""
    if not found.voices:
        return ["the policy asks nobody: it alone decides"]
    head = f"{found.stand.value}; needed: {found.quorum} of {len(found.voices)}"
    if found.until:
        head += f"; until {stamp(found.until)}"
    lines = [head]
    for voice in found.voices:
        words = "has not answered" if voice.said is Said.NOTHING else voice.said.value
        if voice.at:
            words += f" on {stamp(voice.at)}"
        if voice.said is Said.GRANTED:
            words += f", until {stamp(voice.until)}"
        lines.append(f"{voice.name}: {words}" + (f": {voice.reason}" if voice.reason else ""))
    return lines
