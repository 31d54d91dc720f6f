"""The study schema: defaults, refusals with their line, and the canonical form and hash."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError
from common.study import (
    ColumnSplit,
    MlpModel,
    NoModel,
    NoTarget,
    RandomSplit,
    Study,
    canonical_json,
    completed,
    completed_yaml,
    config_hash,
    load_study,
    parse_study,
    study_from_canonical,
    warnings,
)
from common.subgroups import cells
from tests.small_study import small_text
from tests.study_texts import HEART, SHORTEST, STATISTICS, altered


def heart(old: str = "", new: str = "") -> Study:
    return parse_study(altered(HEART, old, new) if old else HEART, "s.yaml")


def line_of(word: str) -> int:
    return HEART[: HEART.index(word)].count("\n") + 1


# --- canonical form and hash ------------------------------------------------------------

TINY_CANONICAL = (
    b'{"dataset":"heart","evaluate":{"metrics":["auroc","accuracy","brier"],"site_metrics":false},'
    b'"features":[{"centre":null,"impute":"none","levels":null,"missing":[],"name":"age",'
    b'"range":null,"scale":null,"type":"float","unit":null}],'
    b'"federation":{"max_weight":4096,"min_sites":3,"round_deadline":"10m","rounds":10,'
    b'"strategy":{"name":"fedavg"},"weights":"size_class"},"id":"tiny","kind":"training",'
    b'"model":{"kind":"logistic"},"normalise":"federated",'
    b'"owner":{"name":"A","organisation":"B"},"patient_key":null,'
    b'"privacy":{"dp":{"mode":"none"},"secure_aggregation":{"colluders":null,"suite":"hybrid"}},'
    b'"purpose":"research","schema":"fedcare.study/v1","seed":null,'
    b'"split":{"seed":0,"stratify":true,"test":0.2},'
    b'"target":{"name":"num","positive":"== 1","type":"binary"},"title":"",'
    b'"train":{"batch":16,"local_epochs":1,"local_steps":null,"lr":0.02,"optimiser":"sgd",'
    b'"weight_decay":0.0}}'
)
"""Written by hand from the specification's section 3.3; a change breaks every approval."""


def test_the_shortest_study_has_this_canonical_form_and_hash() -> None:
    study = parse_study(SHORTEST)
    assert canonical_json(study) == TINY_CANONICAL
    assert config_hash(study) == hashlib.sha256(TINY_CANONICAL).digest()


def test_the_hash_of_the_architecture_pages_study_is_golden() -> None:
    assert config_hash(heart()).hex() == (
        "53f00dda86d9a4ead21b8f58c08176753c95e275ff4cc1e128304ada0eb6f06c"
    )


def test_spelling_comments_and_order_do_not_change_the_hash() -> None:
    lines = HEART.splitlines()
    target = next(line for line in lines if line.startswith("target:"))
    lines.remove(target)
    moved = "\n".join([target, *lines, "# a comment"])
    same = altered(moved, "round_deadline: 10m", "round_deadline: 9m60s")
    same = altered(same, "lr: 0.02", "lr: 2.0e-2")
    same = altered(same, "weight_decay: 0}", "weight_decay: -0.0}")
    same = altered(same, '"> 0"', '">0"')
    same = altered(same, "patient_key: null\n", "")
    assert config_hash(parse_study(same)) == config_hash(heart())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("lr: 0.02", "lr: 0.020000000000000004"),
        ("missing: [0]", 'missing: ["0"]'),
        ("colluders: 1", "colluders: 0"),
        ("colluders: 1", "colluders: 1, suite: classical"),
        ("colluders: 1", "colluders: null"),
        ("id: heart-disease", "id: heart-diseasf"),
        ("rounds: 15", "rounds: 15\n  max_weight: 256"),
        ("dataset: heart", "dataset: heart\nseed: 1"),
    ],
)
def test_every_difference_in_meaning_changes_the_hash(old: str, new: str) -> None:
    assert config_hash(heart(old, new)) != config_hash(heart())


def test_the_canonical_form_is_ascii_sorted_and_without_spaces() -> None:
    raw = canonical_json(heart("Angiographic", "Ang\u00efographic \u5fc3"))
    assert raw.isascii()
    assert b'"title":"Ang\\u00efographic \\u5fc3 heart' in raw
    data = json.loads(raw)
    again = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert again.encode() == raw


@pytest.mark.parametrize("text", [HEART, SHORTEST, STATISTICS])
def test_canonical_form_and_completed_yaml_read_back_as_the_same_study(text: str) -> None:
    study = parse_study(text)
    assert study_from_canonical(canonical_json(study)) == study
    assert parse_study(completed_yaml(study)) == study
    assert canonical_json(parse_study(completed_yaml(study))) == canonical_json(study)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.replace(b":", b": ", 1),
        lambda raw: raw.replace(b'"lr":0.02', b'"lr":2e-2'),
        lambda raw: raw.replace(b'"seed":null', b'"seed":null '),
        lambda raw: raw.replace(b'"local_steps":null,', b""),
        lambda raw: raw.replace(b'"10m"', b'"600s"'),
        lambda raw: raw.replace(b"tiny", b"\\u0074iny"),
    ],
)
def test_what_a_peer_sends_must_be_canonical_to_the_byte(spoil: object) -> None:
    raw = spoil(TINY_CANONICAL)  # type: ignore[operator]
    assert raw != TINY_CANONICAL
    with pytest.raises(ConfigError, match="canonical"):
        study_from_canonical(raw, "offer")


def test_a_peer_cannot_slip_in_an_unknown_key() -> None:
    with pytest.raises(ConfigError) as caught:
        study_from_canonical(TINY_CANONICAL.replace(b'"rounds"', b'"code":"x","rounds"'), "offer")
    assert caught.value.name == "UNKNOWN_KEY"


@given(
    lr=st.floats(1e-12, 1000, exclude_min=True),
    rounds=st.integers(1, 100_000),
    deadline_ms=st.integers(1000, 604_800_000),
    title=st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=40),
)
def test_any_study_survives_both_written_forms(
    lr: float, rounds: int, deadline_ms: int, title: str
) -> None:
    text = altered(HEART, "lr: 0.02", f"lr: {lr!r}")
    text = altered(text, "rounds: 15", f"rounds: {rounds}")
    text = altered(text, "round_deadline: 10m", f"round_deadline: {deadline_ms}ms")
    title = json.dumps(title, ensure_ascii=False)
    text = altered(
        text, "title: Angiographic heart disease from routine measurements", f"title: {title}"
    )
    study = parse_study(text)
    assert (study.train.lr, study.federation.round_deadline) == (lr, deadline_ms / 1000)
    assert study_from_canonical(canonical_json(study)) == study
    assert parse_study(completed_yaml(study)) == study


# --- defaults --------------------------------------------------------------------------


def test_defaults_are_those_that_are_documented() -> None:
    study = parse_study(SHORTEST)
    assert study.split == RandomSplit(test=0.2, seed=0, stratify=True)
    assert (study.federation.rounds, study.federation.min_sites) == (10, 3)
    assert study.federation.round_deadline == 600.0
    assert study.privacy.secure_aggregation.suite == "hybrid"
    assert study.features[0].impute == "none"


def test_adam_has_its_own_default_rate() -> None:
    assert heart("optimiser: sgd, lr: 0.02", "optimiser: adam").train.lr == 0.001


def test_a_number_as_target_is_neither_stratified_nor_scored_by_auroc() -> None:
    text = altered(SHORTEST, "type: binary", "type: continuous")
    study = parse_study(altered(text, "kind: logistic", "kind: mlp"))
    assert isinstance(study.split, RandomSplit)
    assert not study.split.stratify
    assert study.evaluate.metrics == ("mse", "r2")
    assert study.model == MlpModel(kind="mlp", hidden=(64, 64))


def test_a_split_cannot_be_stratified_by_a_number() -> None:
    text = altered(SHORTEST, "type: binary", "type: continuous")
    text = altered(text, "kind: logistic", "kind: mlp") + "split: {stratify: true}\n"
    with pytest.raises(ConfigError, match=r"split.stratify must be false for a continuous"):
        parse_study(text)


def test_several_levels_are_stratified() -> None:
    text = altered(
        SHORTEST, "type: binary, name: num", "type: multiclass, name: num, levels: [a, b, c]"
    )
    study = parse_study(text)
    assert study.evaluate.metrics == ("accuracy", "brier")
    assert study.split == RandomSplit(test=0.2, seed=0, stratify=True)


def test_a_split_by_column_is_the_other_form() -> None:
    study = heart("{test: 0.34, seed: 43, stratify: true}", "{column: fold}")
    assert study.split == ColumnSplit(column="fold")
    assert study.columns() == ("age", "sex", "chol", "num", "fold")


def test_colluders_follow_the_rule_unless_stated() -> None:
    study = parse_study(SHORTEST)
    assert [study.colluders(n) for n in (2, 3, 5, 8, 64)] == [0, 1, 1, 2, 16]
    assert heart().colluders(64) == 1


def test_public_weights_are_scaled_to_the_largest() -> None:
    federation = heart("weights: size_class", "weights: {a: 50, b: 200, c: 100}").federation
    assert federation.weight_rule == "public"
    assert [federation.public_weight(site) for site in ("a", "b", "c", "d")] == [0.25, 1, 0.5, None]
    assert heart().federation.public_weight("a") is None


def test_a_statistics_study_has_no_model_in_its_canonical_form() -> None:
    study = parse_study(STATISTICS)
    assert isinstance(study.model, NoModel)
    assert isinstance(study.target, NoTarget)
    assert set(completed(study)).isdisjoint({"model", "target", "train", "split", "evaluate"})


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "name", "words"),
    [
        ("optimiser: sgd", "optimizer: sgd", "UNKNOWN_KEY", "did you mean 'optimiser'?"),
        ("normalise:", "normalize:", "UNKNOWN_KEY", "did you mean 'normalise'?"),
        ("mode: none", "mode: none, epsilon: 3", "BAD_VALUE", "is not used by dp mode none"),
        ("study/v1", "study/v2", "SCHEMA_VERSION", "this version reads 'fedcare.study/v1'"),
        ("id: heart-disease", "id: Heart", "BAD_VALUE", "id must be 3 to 63"),
        ("id: heart-disease", "id: -ab", "BAD_VALUE", "id must be 3 to 63"),
        ("id: heart-disease", "id: ab", "BAD_VALUE", "id must be 3 to 63"),
        ("kind: training", "kind: trainng", "BAD_VALUE", "did you mean 'training'?"),
        ("lr: 0.02", "lr: 0", "BAD_VALUE", "train.lr must be more than 0, not 0"),
        ("batch: 16", "batch: 1.5", "BAD_VALUE", "train.batch must be a whole number"),
        ("local_steps: 25", "local_steps: 25, local_epochs: 2", "BAD_VALUE", "not both"),
        ("round_deadline: 10m", "round_deadline: 10", "BAD_VALUE", "needs a unit"),
        ("round_deadline: 10m", "round_deadline: 8d", "BAD_VALUE", "must be 1s to 7d"),
        ("rounds: 15", "rounds: 0", "BAD_VALUE", "federation.rounds must be at least 1"),
        ("min_sites: 3", "min_sites: 2", "BAD_VALUE", "two honest hospitals must remain"),
        ("min_sites: 3", "min_sites: 1", "BAD_VALUE", "must be at least 2"),
        ("colluders: 1", "colluders: 2", "BAD_VALUE", "federation.min_sites is 3, but with 2"),
        ("name: fedavg", "name: fedbn", "BAD_VALUE", "needs a model with batch norm"),
        ("name: fedavg", "name: fedprox, mu: 0", "BAD_VALUE", "strategy.mu must be more than 0"),
        ("name: fedavg", "name: fedprox, nu: 1", "UNKNOWN_KEY", "known here: name, mu"),
        ("name: fedavg", "name: fedvag", "BAD_VALUE", "did you mean 'fedavg'?"),
        ("kind: logistic", "kind: cox", "BAD_VALUE", "model.kind is cox, which cannot predict a"),
        ("kind: logistic", "kind: resnet", "NOT_SUPPORTED", "it has logistic"),
        ("kind: logistic", "kind: logistc", "BAD_VALUE", "did you mean 'logistic'?"),
        ("kind: logistic", "kind: none", "BAD_VALUE", "needs the key 'model'"),
        ("{kind: logistic}", "{kind: mlp, hidden: []}", "BAD_VALUE", "model.hidden must have at"),
        ("{kind: logistic}", "{kind: mlp, hidden: [0]}", "BAD_VALUE", "model.hidden[0] must be"),
        ("{kind: logistic}", "{}", "BAD_VALUE", "model needs the key 'kind'"),
        ("mode: none", "mode: hospital", "BAD_VALUE", "privacy.dp needs the key 'epsilon'"),
        ("mode: none", "mode: patient-local, epsilon: 1", "BAD_VALUE", "needs the key 'delta'"),
        ("mode: none", "mode: hopsital", "BAD_VALUE", "privacy.dp.mode must be none"),
        ("weights: size_class", "weights: sizeclass", "BAD_VALUE", "did you mean 'size_class'?"),
        ("weights: size_class", "weights: {a: 1, b: 0, c: 1}", "BAD_VALUE", "above 0"),
        ("weights: size_class", "weights: {a: 1, b: .nan, c: 1}", "BAD_VALUE", "above 0"),
        ("weights: size_class", "weights: {A B: 1, b: 1, c: 1}", "BAD_VALUE", "not a site id"),
        ("weights: size_class", "weights: {a: 1, b: 1}", "BAD_VALUE", "names 2 sites, fewer"),
        ("name: sex", "name: age", "DUPLICATE_KEY", "features[1].name is 'age'"),
        ("name: num", "name: age", "DUPLICATE_KEY", "target.name is the column 'age'"),
        ("patient_key: null", "patient_key: num", "DUPLICATE_KEY", "patient_key is the column"),
        ("range: [18, 110]", "range: [110, 18]", "BAD_VALUE", "low below high"),
        ("range: [18, 110]", "range: [18, 18]", "BAD_VALUE", "low below high"),
        ("range: [18, 110]", "range: [-1e308, 1e308]", "BAD_VALUE", "1e-100 to 1e+100 wide"),
        ("range: [18, 110]", "range: [0, 1e-320]", "BAD_VALUE", "1e-100 to 1e+100 wide"),
        ("range: [18, 110]", "range: [18]", "BAD_VALUE", "must be [low, high]"),
        ("range: [18, 110], impute: mean", "impute: median", "BAD_VALUE", "needs the feature's"),
        ("range: [18, 110], impute: mean", "impute: most-frequent", "BAD_VALUE", "for a number"),
        (', levels: ["0", "1"]', "", "BAD_VALUE", "is category, which needs 'levels'"),
        ('levels: ["0", "1"]', "levels: [0, 1]", "BAD_VALUE", "write it in quotes"),
        ('levels: ["0", "1"]', 'levels: ["0"]', "BAD_VALUE", "at least 2"),
        ('levels: ["0", "1"]', 'levels: ["0", "0"]', "DUPLICATE_KEY", "holds '0' twice"),
        ('levels: ["0", "1"]', 'levels: ["0", "1"], unit: a', "BAD_VALUE", "belongs to numbers"),
        ('levels: ["0", "1"]', 'levels: ["0", "1"], impute: mean', "BAD_VALUE", "for a category"),
        ('levels: ["0", "1"]', 'levels: ["0", "1"], missing: [9]', "BAD_VALUE", "be in quotes"),
        ('levels: ["0", "1"]', 'levels: ["0", "1"], missing: ["1"]', "BAD_VALUE", "also a level"),
        ("missing: [0]", "missing: [true]", "BAD_VALUE", "features[2].missing[0]"),
        ("missing: [0]", "missing: [0, 0.0]", "DUPLICATE_KEY", "twice"),
        ("unit: a,", 'unit: a, levels: ["a", "b"],', "BAD_VALUE", "belongs to type category"),
        ("unit: a,", "unit: a, centre: 1,", "BAD_VALUE", "both 'centre' and 'scale'"),
        ('levels: ["0", "1"]', 'levels: ["0", "1"], indicator: true', "BAD_VALUE", "a stand-in"),
        ("unit: a,", "unit: a, centre: 1, scale: 2,", "BAD_VALUE", "belongs to normalise: fixed"),
        ("unit: a,", "unit: a, centre: 1, scale: 0,", "BAD_VALUE", "must be more than 0"),
        ("normalise: federated", "normalise: fixed", "BAD_VALUE", "because normalise is fixed"),
        ('"> 0"', '"> zero"', "BAD_VALUE", "target.positive must be a rule"),
        ('"> 0"', "0", "BAD_VALUE", "target.positive must be text"),
        ("test: 0.34", "test: 1", "BAD_VALUE", "split.test must be less than 1"),
        ("test: 0.34", "test: 34%", "BAD_VALUE", "split.test must be a number"),
        ("test: 0.34", "column: fold", "UNKNOWN_KEY", "unknown key 'split.seed'"),
        ("[auroc,", "[aucroc,", "BAD_VALUE", "did you mean 'auroc'?"),
        ("[auroc,", "[auroc, auroc,", "DUPLICATE_KEY", "twice"),
        ("[auroc,", "[mse,", "BAD_VALUE", "but a binary target has"),
        (
            'type: binary, name: num, positive: "> 0"',
            "type: survival, time: t, event: e",
            "BAD_VALUE",
            "model.kind is logistic, which cannot predict a survival target; one of cox",
        ),
        ("kind: training", "kind: statistics", "BAD_VALUE", "does not belong to a study of kind"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused_in_one_line(old: str, new: str, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        heart(old, new)
    assert caught.value.name == name
    assert words in caught.value.detail
    assert caught.value.detail.startswith("s.yaml:")
    assert "\n" not in caught.value.detail


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("rounds: 15", "roundz: 15", "rounds: 15"),
        ("lr: 0.02", "lr: fast", "lr: 0.02"),
        ("min_sites: 3", "min_sites: 2", "min_sites: 3"),
        ("name: num", "name: age", "name: num"),
        ("mode: none", "mode: hospital", "mode: none"),
        ("[auroc,", "[aucroc,", "[auroc,"),
        ("missing: [0]", "missing: [true]", "missing: [0]"),
    ],
)
def test_the_line_is_the_one_to_mend(old: str, new: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"^FC-\d+ \w+: s.yaml:{line_of(place)}: "):
        heart(old, new)


@pytest.mark.parametrize("key", ["target", "model"])
def test_training_needs_target_and_model(key: str) -> None:
    text = "\n".join(line for line in SHORTEST.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(ConfigError, match=f"needs the key '{key}'"):
        parse_study(text)


@pytest.mark.parametrize("key", ["id", "purpose", "dataset", "owner", "features"])
def test_what_has_no_default_must_be_stated(key: str) -> None:
    text = "\n".join(line for line in SHORTEST.splitlines() if not line.startswith(f"{key}:"))
    with pytest.raises(ConfigError, match=f"key '{key}' is missing"):
        parse_study(text)


def test_logistic_regression_cannot_predict_a_number() -> None:
    with pytest.raises(ConfigError, match=r"model.kind is logistic"):
        parse_study(altered(SHORTEST, "type: binary", "type: continuous"))


def test_a_missing_study_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "none.yaml")
    assert caught.value.name == "FILE_MISSING"


def test_a_careful_reader_is_warned() -> None:
    assert warnings(heart()) == ()
    text = altered(HEART, "min_sites: 3", "min_sites: 2")
    text = altered(text, "colluders: 1", "colluders: 0, suite: classical")
    text = altered(text, "weights: size_class", "weights: samples")
    text = altered(text, "test: 0.34", "test: 0")
    notes = " | ".join(warnings(parse_study(text)))
    for word in ("allow_two_party", "colluders is 0", "classical", "samples", "split.test is 0"):
        assert word in notes


@pytest.mark.parametrize(
    ("weights", "impute", "told"),
    [("size_class", "mean", True), ("equal", "median", True), ("samples", "mean", False),
     ("size_class", None, False)],
)  # fmt: skip
def test_lint_says_where_an_exact_regression_is_not_quite_the_pooled_one(
    weights: str, impute: str | None, *, told: bool
) -> None:
    imputed = "" if impute is None else f", range: [0, 9], impute: {impute}"
    text = f"""\
schema: fedcare.study/v1
id: exact
purpose: research
dataset: d
owner: {{name: A, organisation: b}}
features: [{{name: a, type: float{imputed}}}, {{name: s, type: category, levels: ["0", "1"]}}]
target: {{type: binary, name: y}}
split: {{test: 0.2, seed: 1}}
model: {{kind: logistic}}
federation: {{rounds: 9, weights: {weights}, strategy: {{name: newton}}}}
"""
    notes = warnings(parse_study(text))
    assert any("not quite that of the pooled analysis" in note for note in notes) is told
    plain = warnings(parse_study(altered(text, "newton", "fedavg")))
    assert not any("pooled analysis" in note for note in plain)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (", range: [18, 110]}", "}", "needs 'range'"),
        ("110]}", "110], impute: mean}", "counts what is missing"),
        ("110]}]\n", "110]}]\nstatistics: {group_by: age}\n", "needs 'bands'"),
        ("110]}]\n", "110]}]\nstatistics: {group_by: agee}\n", "did you mean 'age'"),
        ("110]}]\n", "110]}]\nstatistics: {cross: [[age, age]]}\n", "with itself"),
        ("110]}]\n", "110]}]\nstatistics: {min_cell: 5}\n", "min_cell"),
        (
            "110]}]\n",
            "110]}]\nstatistics: {survival: {time: age, event: dead, horizon: 9}}\n",
            "is a feature already",
        ),
        (
            "110]}]\n",
            "110]}]\nstatistics: {group_by: {feature: age, bands: [2, 3, 4, 5, 6, 7, 8, 9]}}\n",
            "more than 8 groups",
        ),
    ],
)
def test_a_wrong_statistics_section_is_refused(old: str, new: str, says: str) -> None:
    assert parse_study(STATISTICS).statistics is not None
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_study(altered(STATISTICS, old, new))


def _category(name: str, levels: int) -> str:
    return f"{{name: {name}, type: category, levels: {[str(one) for one in range(levels)]}}}"


def test_tables_that_take_too_long_to_hide_cells_in_are_refused() -> None:
    pair = altered(STATISTICS, "110]}]", f"110]}}, {_category('a', 30)}, {_category('b', 31)}]")
    assert parse_study(pair + "statistics: {cross: [[a, b]]}\n").statistics is not None
    wide = altered(pair, _category("b", 31), _category("b", 32))
    with pytest.raises(ConfigError, match="more than 1000 cells"):
        parse_study(wide + "statistics: {cross: [[a, b]]}\n")


def test_more_subgroups_than_a_sum_should_carry_are_refused() -> None:
    text = small_text().replace("{name: age, type: float}", _category("ward", 254))
    groups = "evaluate: {subgroups: [{feature: ward}]}\n"
    assert len(cells(parse_study(text + groups))) == 254
    with pytest.raises(ConfigError, match="more than 256 subgroups"):
        parse_study(altered(text, _category("ward", 254), _category("ward", 257)) + groups)


@pytest.mark.parametrize("level", ["0.4", "0.9999999999999999", "1"])
def test_a_confidence_whose_interval_has_no_number_is_refused(level: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("evaluate.confidence")):
        parse_study(small_text() + f"evaluate: {{confidence: {level}}}\n")
