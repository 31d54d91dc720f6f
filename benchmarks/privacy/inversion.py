"""Patients' records from what a coordinator holds.

    python -m benchmarks.privacy.inversion [--quick] [--json]

A real federation of four hospitals runs one round in this process (`curious`): each
hospital trains one step on all its rows, which are 1 to 16 patients of the heart data.
What the attack is given:

    in the clear    one hospital's vector before it is masked: what a coordinator without
                    secure aggregation would hold. It is made again by the hospital's code and
                    checked against the run: the hospitals' vectors add up to the opened sum
    masked          one hospital's upload, from the coordinator's spool
    opened sum      what the coordinator opened
    with shared DP  what it opened in a run of mode patient-distributed, epsilon 1
    with local DP   the same of mode patient-local

The attack (`gradients`) knows the model, how many records there are, and each column's
public centre and spread. Records are matched with their guesses so that the error is
least; a record without a guess counts as the mean. Error: root mean square over the
columns, in standard deviations; guessing the mean has 1 on average.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.privacy import hearts
from benchmarks.privacy.bounds import Floats
from benchmarks.privacy.curious import Federation, Kept, Words, weight_words
from benchmarks.privacy.gradients import Network, invert
from benchmarks.privacy.hearts import Row
from benchmarks.privacy.report import Cell, Table, main
from common.layouts import constant_count, round_layout, with_constants
from common.models import layer_widths
from common.quantise import Coding
from common.secagg.header import RoundKind
from common.study import Study, Train
from hospital_node.pipeline import ContributionSource, make_contribution
from hospital_node.strategies import Received

BATCHES: Final = (1, 2, 3, 4, 8, 16)
MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "logistic": {"kind": "logistic"},
    "mlp 64-64": {"kind": "mlp", "hidden": [64, 64]},
}
VIEWS: Final = (
    "in the clear", "masked", "opened sum", "with shared DP", "with local DP",
    "guess: other patients",
)  # fmt: skip
_PRIVATE: Final[Mapping[str, str]] = {
    "with shared DP": "patient-distributed",
    "with local DP": "patient-local",
}
LR: Final = 0.1
_USUAL: Final = (
    "model", "what is held", "records", "recovered", "error", "recovered by other patients",
    "error of other patients",
)  # fmt: skip
_CLOSE: Final = 0.95
_FAR: Final = 4.0
"""Guesses are kept within so many standard deviations."""


@dataclass(frozen=True, slots=True)
class Result:
    """How well records were guessed: each record's error and cosine."""

    errors: Floats
    cosines: Floats


@dataclass(frozen=True, slots=True)
class Victims:
    """A study, the rows of each hospital, and the public spread of the columns."""

    study: Study
    tables: Mapping[str, Sequence[Row]]
    spread: tuple[Floats, Floats]

    def truth(self, sites: Sequence[str]) -> Floats:
        """Return these hospitals' records as the model sees them."""
        rows = [row for site in sites for row in self.tables[site]]
        return hearts.encode(self.study, rows).features.astype(np.float64)


def study_of(model: str, mode: str, batch: int) -> Study:
    """Return the study under attack: one step of every hospital on all its rows."""
    terms: dict[str, Any] = {"mode": mode}
    train: dict[str, Any] = {"optimiser": "sgd", "lr": LR, "local_steps": 1}
    if mode == "none":
        train["batch"] = batch
    else:
        terms |= {"epsilon": 1.0, "delta": 1e-5, "clip": 1.0, "max_patients": 200}
        terms |= {"batch": 4 * batch if mode == "patient-distributed" else batch, "spare_rounds": 0}
    return hearts.study(
        model=dict(MODELS[model]),
        train=train,
        federation={"rounds": 1, "min_sites": 4, "weights": "equal"},
        privacy={"secure_aggregation": {"colluders": 0, "suite": "classical"}, "dp": terms},
        seed=1,
    )


def victims(model: str, mode: str, batch: int, seed: int) -> Victims:
    """Draw each hospital's patients."""
    rng = np.random.default_rng([seed, batch])
    tables = {}
    for site, rows in hearts.complete_rows().items():
        picked = rng.choice(len(rows), batch, replace=False)
        tables[site] = [{**rows[k], "split": "train"} for k in picked.tolist()]
    study = study_of(model, mode, batch)
    return Victims(study, tables, hearts.spread(study))


# --- from words to gradients ---------------------------------------------------------------------


def clear_words(who: Victims, kept: Kept, site: str) -> Words:
    """Return a hospital's vector of the round before it is masked, made by its own code."""
    study, header = who.study, kept.header
    data = hearts.encode(study, who.tables[site])
    source = make_contribution(study, site, data, Received(kept.model), header.r, {})
    whole = with_constants(study, np.asarray(source.values, np.float32))
    source = ContributionSource(whole, source.u, source.metrics)
    schema = round_layout(study, RoundKind.TRAIN).schema
    out = np.empty(schema.words, np.uint32)
    source.encoder(schema, header.ranges, Coding.of_header(header)).fill(out, 0)
    return out.view(np.int32).astype(np.int64)


def checked_clear_words(who: Victims, kept: Kept) -> dict[str, Words]:
    """Return every hospital's vector in the clear; they must add up to what was opened.

    Raises:
        ValueError: they do not, so they are not what the hospitals sent.
    """
    found = {site: clear_words(who, kept, site) for site in kept.survivors}
    if not np.array_equal(sum(found.values()), kept.opened):
        raise ValueError("the vectors in the clear are not those of the run")
    return found


def gradient(who: Victims, kept: Kept, words: Words, hospitals: int) -> Network:
    """Return the mean gradient that the sum of so many hospitals' words stands for."""
    study, header = who.study, kept.header
    part = weight_words(study, words).astype(np.float64)
    if header.ranges:
        scales = _scales(study, header.ranges)
        step = part * scales / (header.bound * hospitals) / LR
    else:
        step = part * header.dp.clip / header.dp.delta_int / (study.privacy.dp.batch or 1)
    return Network.of(-step, layer_widths(study))


def _scales(study: Study, ranges: Sequence[float]) -> Floats:
    schema = round_layout(study, RoundKind.TRAIN).schema
    each = [np.full(tensor.size, r) for tensor, r in zip(schema.tensors, ranges, strict=False)]
    return np.concatenate(each)[constant_count(study) :]


# --- attack and score ----------------------------------------------------------------------------


def attack(who: Victims, kept: Kept, words: Words, sites: Sequence[str], seed: int) -> Result:
    """Invert what was seen of these hospitals and compare with the truth."""
    truth = who.truth(sites)
    model = Network.of(kept.model.astype(np.float64), layer_widths(who.study))
    seen = gradient(who, kept, words, len(sites))
    return score(truth, invert(model, seen, len(truth), who.spread, seed), who.spread)


def score(truth: Floats, guesses: Floats, spread: tuple[Floats, Floats]) -> Result:
    """Match records with guesses, each guess used once, and measure."""
    centre, scale = spread
    wanted = (truth - centre) / scale
    offered = np.clip(np.nan_to_num((guesses - centre) / scale), -_FAR, _FAR)
    blank = np.zeros((max(0, len(wanted) - len(offered)), len(centre)))
    offered = np.concatenate([offered, blank])
    errors = np.sqrt(((wanted[:, np.newaxis] - offered[np.newaxis]) ** 2).mean(axis=2))
    rows, columns = linear_sum_assignment(errors)
    chosen = offered[columns]
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(chosen, axis=1)
    cosines = (wanted * chosen).sum(axis=1) / np.where(lengths > 0, lengths, np.inf)
    return Result(errors[rows, columns], cosines)


def views(model: str, batch: int, seed: int) -> Iterator[tuple[str, Result]]:
    """Run the federations of one batch size and attack everything that is held."""
    who = victims(model, "none", batch, seed)
    kept = _round(who)
    clear = checked_clear_words(who, kept)
    for site in kept.survivors[:2]:
        yield "in the clear", attack(who, kept, clear[site], [site], seed)
        yield "masked", attack(who, kept, kept.masked[site], [site], seed)
    yield "opened sum", attack(who, kept, kept.opened, kept.survivors, seed)
    yield "guess: other patients", _guess(who, kept.survivors, seed)
    for view, mode in _PRIVATE.items():
        private = victims(model, mode, batch, seed)
        kept = _round(private)
        yield view, attack(private, kept, kept.opened, kept.survivors, seed)


def _round(who: Victims) -> Kept:
    with tempfile.TemporaryDirectory(prefix="fedcare-attack-") as folder:
        return Federation(Path(folder), who.study, who.tables).run(tuple(who.tables))[0]


def _guess(who: Victims, sites: Sequence[str], seed: int, units: int | None = None) -> Result:
    """Guess that the records are those of other patients, as many or `units`: no attack at all."""
    truth = who.truth(sites)
    known = {tuple(row.values()) for site in sites for row in who.tables[site]}
    others = [
        row
        for rows in hearts.complete_rows().values()
        for row in rows
        if tuple({**row, "split": "train"}.values()) not in known
    ]
    count = min(len(others), units or len(truth))
    picked = np.random.default_rng(seed).choice(len(others), count, replace=False)
    guesses = hearts.encode(who.study, [others[k] for k in picked.tolist()]).features
    return score(truth, guesses.astype(np.float64), who.spread)


# --- training as it is shipped -------------------------------------------------------------------


def shipped(model: str) -> Iterator[tuple[Cell, ...]]:
    """Attack one round of training at its usual length: many steps on all patients."""
    train = Train(optimiser="sgd", lr=LR, batch=16, local_steps=25)
    study = study_of(model, "none", 1).model_copy(update={"train": train})
    tables = {
        site: [row for row in rows if row["split"] == "train"]
        for site, rows in hearts.complete_rows().items()
    }
    who = Victims(study, tables, hearts.spread(study))
    kept = _round(who)
    largest = max(tables, key=lambda site: len(tables[site]))
    clear = checked_clear_words(who, kept)[largest]
    for view, words, sites in (
        ("in the clear", clear, (largest,)),
        ("opened sum", kept.opened, kept.survivors),
    ):
        result = attack(who, kept, words, sites, 0)
        others = _guess(who, sites, 0, units=1 if model == "logistic" else 64)
        yield (
            model, view, len(result.errors), _share([result]), _error([result]), _share([others]),
            _error([others]),
        )  # fmt: skip


# --- the tables ----------------------------------------------------------------------------------


def measure(quick: bool) -> list[Table]:  # noqa: FBT001 - the one switch of every script here
    """Return two tables: share of records recovered, and error, by patients of a hospital."""
    batches, repeats = ((1, 2, 8), 1) if quick else (BATCHES, 4)
    found: dict[tuple[str, str, int], list[Result]] = {}
    for model in MODELS:
        for batch in batches:
            for seed in range(repeats):
                for view, result in views(model, batch, seed):
                    found.setdefault((model, view, batch), []).append(result)
    columns = ("model", "what is held", *(f"{b} patient{'s' * (b > 1)}" for b in batches))
    shares: list[tuple[Cell, ...]] = []
    errors: list[tuple[Cell, ...]] = []
    for model in MODELS:
        for view in VIEWS:
            results = [found[model, view, batch] for batch in batches]
            shares.append((model, view, *(_share(each) for each in results)))
            errors.append((model, view, *(_error(each) for each in results)))
    usual = tuple(row for model in MODELS for row in shipped(model))
    return [
        Table("inversion-share", columns, tuple(shares)),
        Table("inversion-error", columns, tuple(errors)),
        Table("inversion-usual", _USUAL, usual),
    ]


def _share(results: Sequence[Result]) -> float:
    return float((np.concatenate([each.cosines for each in results]) > _CLOSE).mean())


def _error(results: Sequence[Result]) -> float:
    return float(np.concatenate([each.errors for each in results]).mean())


if __name__ == "__main__":
    main("inversion", measure)
