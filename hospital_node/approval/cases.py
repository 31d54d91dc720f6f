"""The studies that this node was offered, by whatever name a person calls one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import FedError, PolicyRefusal
from common.ids import ConfigHash
from common.study import Study, study_from_canonical
from common.text import show
from hospital_node.store import DecisionRecord, stored_decisions

_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class Case:
    """One version of a study, and the runs it was offered in, oldest first."""

    study: Study
    config_hash: ConfigHash
    runs: tuple[DecisionRecord, ...]

    @property
    def hash_text(self) -> str:
        """Return the hash as `fedcare study lint` prints it."""
        return f"{_PREFIX}{self.config_hash.hex()}"

    @property
    def refused(self) -> bool:
        """Whether the policy refused it in every run."""
        return not any(run.accepted for run in self.runs)

    @property
    def ended(self) -> bool:
        """Whether no run of it goes on."""
        return all(run.ended or not run.accepted for run in self.runs)


def cases(state_dir: Path) -> tuple[Case, ...]:
    """Return every version of every study that was offered, by its first offer.

    What cannot be read as a study was refused when it came, and is nobody's to approve.

    Raises:
        StateError: STATE_DAMAGED.
    """
    by_hash: dict[ConfigHash, list[DecisionRecord]] = {}
    for record in stored_decisions(state_dir):
        by_hash.setdefault(record.config_hash, []).append(record)
    found = []
    for digest, runs in by_hash.items():
        try:
            study = study_from_canonical(runs[0].study)
        except FedError:
            continue
        found.append(Case(study, digest, tuple(runs)))
    return tuple(found)


def find(known: tuple[Case, ...], name: str) -> Case:
    """Return the case that a run's id, a study's id or a whole hash names.

    Raises:
        PolicyRefusal: APPROVAL_STUDY, none or more than one.
    """
    fits = [
        case
        for case in known
        if name in (case.hash_text, case.study.id, *(run.run_id for run in case.runs))
    ]
    if len(fits) == 1:
        return fits[0]
    if not fits:
        there = _listing(known) if known else "none yet"
        detail = f"no study {show(name)} was offered to this hospital; there is {there}"
        raise PolicyRefusal("APPROVAL_STUDY", detail)
    raise PolicyRefusal(
        "APPROVAL_STUDY", f"{show(name)} has {len(fits)} versions here: {_listing(tuple(fits))}"
    )


def _listing(some: tuple[Case, ...]) -> str:
    return "; ".join(
        f"{case.hash_text} of {case.study.id} ({', '.join(run.run_id for run in case.runs)})"
        for case in some
    )
