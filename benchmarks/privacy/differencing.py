"""One hospital's update from two rounds of a coordinator that lies.

    python -m benchmarks.privacy.differencing [--quick] [--json]

The coordinator runs an approved study over four hospitals, forgets it, and runs it again
without one of them, on a first model that differs by a millionth in every weight. What the
two opened sums differ by is nearly the update of the one left out. Hospitals, keys,
certificates and rules are real; only the coordinator's model is not the study's
(`curious`). Tried with the model unaltered as well: there rule 10.4 stands in the way.

With differential privacy the same study a second time passes what its epsilon pays for,
so that the coordinator needs a second approved study on the same data, and pays for it
from the hospitals' ledgers. What it gets is the update and the noise of both rounds.

`usual`: logistic regression on all patients. `small`: the one left out has four patients and
takes one step of an mlp 64-64, and its update is turned into records (`gradients`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.privacy import hearts
from benchmarks.privacy.bounds import Floats
from benchmarks.privacy.curious import Federation, Kept, Weights, weight_words
from benchmarks.privacy.gradients import Network, invert
from benchmarks.privacy.hearts import Row
from benchmarks.privacy.inversion import LR, Victims, clear_words, score, study_of
from benchmarks.privacy.report import Cell, Table, main
from common.entropy import CountingEntropy
from common.errors import RoundError
from common.models import layer_widths
from common.secagg.dp import DpMode
from common.study import Study
from hospital_node.private.contribution import patient_sum

LEFT_OUT: Final = "va"
ALTERED: Final = np.float32(1e-6)
_FEW: Final = 4
_CLOSE: Final = 0.95
_COLUMNS: Final = (
    "case", "privacy", "second run", "outcome", "relative error of the update", "cosine",
    "records recovered",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A study and its tables; `steps` a round."""

    name: str
    model: str
    mode: str
    rounds: int = 1

    def study(self) -> Study:
        """Return the study: three hospitals are enough for a round."""
        study = study_of(self.model, self.mode, 16)
        train = dict(study.train.model_dump(exclude_none=True))
        if self.mode == "none":
            # All rows in a batch, the attacker's best: with smaller ones the other hospitals'
            # updates differ too, for the order of rows follows from the model.
            train |= {"batch": 512}
        if self.name == "usual" and self.mode == "none":
            train |= {"lr": 0.02, "local_steps": 25}
        privacy = study.privacy.model_dump(mode="json", exclude_none=True)
        privacy["secure_aggregation"]["colluders"] = 1
        privacy["dp"].pop("noise_multiplier", None)
        federation = {"rounds": self.rounds, "min_sites": 3, "weights": "equal"}
        return hearts.study(
            model=study.model.model_dump(mode="json"),
            train=train,
            federation={**federation, "round_deadline": "10s"},
            privacy=privacy,
            seed=1,
        )

    def tables(self) -> dict[str, Sequence[Row]]:
        """Return each hospital's training rows."""
        found: dict[str, Sequence[Row]] = {
            site: [row for row in rows if row["split"] == "train"]
            for site, rows in hearts.complete_rows().items()
        }
        if self.name == "small":
            found[LEFT_OUT] = found[LEFT_OUT][:_FEW]
        return found


def attempt(case: Case, how: str) -> tuple[Cell, ...]:
    """Run twice and subtract; `how` the second run differs from the first."""
    study, tables = case.study(), case.tables()
    rest = [site for site in tables if site != LEFT_OUT]
    with tempfile.TemporaryDirectory(prefix="fedcare-attack-") as folder:
        alive = Federation(Path(folder), study, tables)
        first = alive.run(tuple(tables))
        try:
            second = _SECOND[how](alive, rest, study)
        except RoundError as failure:
            why = next((name for name in ("RERUN", "BUDGET") if name in failure.detail), None)
            if why is None:
                raise
            return (case.name, case.mode, how, f"refused: {why}", None, None, None)
    who = Victims(study, tables, hearts.spread(study))
    return (case.name, case.mode, how, "went through", *_judged(who, first[0], second[0]))


def _again(alive: Federation, rest: Sequence[str], study: Study) -> list[Kept]:
    return alive.run(rest, study=study)


def _altered(alive: Federation, rest: Sequence[str], study: Study) -> list[Kept]:
    def alter(weights: Weights) -> Weights:
        return weights + ALTERED

    return alive.run(rest, alter=alter, study=study)


def _another(alive: Federation, rest: Sequence[str], study: Study) -> list[Kept]:
    return alive.run(rest, study=study.model_copy(update={"id": f"{study.id}-b"}))


_SECOND: Final[Mapping[str, Callable[[Federation, Sequence[str], Study], list[Kept]]]] = {
    "same model": _again,
    "altered by 1e-6": _altered,
    "another study": _another,
}


# --- what comes of it ----------------------------------------------------------------------------


def _judged(who: Victims, first: Kept, second: Kept) -> tuple[float, float, float | None]:
    """Return error and cosine of the difference, and the share of records got from it."""
    found = _units(who, first, first.opened) - _units(who, second, second.opened)
    truth = _truth(who, first)
    error = float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
    cosine = float(found @ truth / (np.linalg.norm(found) * np.linalg.norm(truth)))
    if len(who.tables[LEFT_OUT]) > _FEW:
        return error, cosine, None
    records = who.truth([LEFT_OUT])
    sign = -1 / LR if first.header.dp.mode is DpMode.NONE else -1 / len(records)
    model, widths = first.model.astype(np.float64), layer_widths(who.study)
    gradient = Network.of(sign * found, widths)
    guesses = invert(Network.of(model, widths), gradient, len(records), who.spread, seed=0)
    cosines = score(records, guesses, who.spread).cosines
    return error, cosine, float((cosines > _CLOSE).mean())


def _units(who: Victims, kept: Kept, words: np.ndarray) -> Floats:
    """Return words of the weights as the update they stand for (with DP: clipped steps)."""
    header = kept.header
    part = weight_words(who.study, words).astype(np.float64)
    if header.dp.mode is DpMode.NONE:
        return part / header.bound  # the first round's range is 1
    return part * header.dp.clip / header.dp.delta_int


def _truth(who: Victims, kept: Kept) -> Floats:
    """Return what the hospital left out adds, made by its own code, without noise."""
    study, terms = who.study, kept.header.dp
    if terms.mode is DpMode.NONE:
        return _units(who, kept, clear_words(who, kept, LEFT_OUT))
    data = hearts.encode(study, who.tables[LEFT_OUT])
    patients = np.arange(data.rows)
    entropy = CountingEntropy(b"truth")
    total = patient_sum(study, data, patients, kept.model, patients, terms, entropy)
    return total * terms.clip / terms.delta_int


# --- the table -----------------------------------------------------------------------------------


def measure(quick: bool) -> list[Table]:  # noqa: FBT001 - the one switch of every script here
    """Return the table of all attempts; it is quick as it is."""
    del quick
    none, private = "none", DpMode.PATIENT_DISTRIBUTED.value
    tried = [
        (Case("usual", "logistic", none), "same model"),
        (Case("usual", "logistic", none), "altered by 1e-6"),
        (Case("small", "mlp 64-64", none), "altered by 1e-6"),
        (Case("usual", "logistic", private, 15), "altered by 1e-6"),
        (Case("usual", "logistic", private, 15), "another study"),
        (Case("small", "mlp 64-64", private, 15), "another study"),
    ]
    return [Table("differencing", _COLUMNS, tuple(attempt(case, how) for case, how in tried))]


if __name__ == "__main__":
    main("differencing", measure)
