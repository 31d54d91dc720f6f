"""Studies with differential privacy, and the headers of their rounds, for tests of the books."""

from __future__ import annotations

from typing import Final

from common import layouts
from common.ids import NodeId, RoundNo, SessionId, Sha256
from common.secagg.header import Header, Rounding, RoundKind
from common.study import Study, config_hash, parse_study

MEMBERS: Final = ("a", "b", "c", "d")
COLLUDERS: Final = 1

_TEXT: Final = """\
schema: fedcare.study/v1
id: ID
purpose: research
dataset: DATASET
owner: {name: A, organisation: uni-x}
features: [{name: age, type: float, centre: 55, scale: 10}]
target: {type: binary, name: sick}
split: {test: 0}
normalise: fixed
model: {kind: logistic}
TRAIN
federation: {rounds: ROUNDS, min_sites: 3, round_deadline: 60s}
privacy:
  secure_aggregation: {colluders: 1, suite: classical}
  dp: {mode: MODE, epsilon: EPSILON, delta: DELTA, clip: 1.0, spare_rounds: SPARE MORE}
"""
_PATIENTS: Final = ", batch: 40, max_patients: 30, sampling: 0.5"


def private_text(
    name: str = "study-a",
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    rounds: int = 4,
    spare: int = 0,
    dataset: str = "heart",
    mode: str = "patient-distributed",
    more: str = "",
) -> str:
    """Return the study as a researcher would write it; its noise follows.

    `more` is put behind the privacy terms, such as `, evaluation_epsilon: 0.2`.
    """
    patients = mode == "patient-distributed"
    values = {
        "ID": name,
        "DATASET": dataset,
        "TRAIN": "train: {lr: 1.0}" if patients else "train: {lr: 0.1, local_steps: 2}",
        "ROUNDS": str(rounds),
        "MODE": mode,
        "EPSILON": repr(epsilon),
        "DELTA": f"{delta:.10f}",
        "SPARE": str(spare),
        " MORE": (_PATIENTS if patients else "") + more,
    }
    text = _TEXT
    for key, value in values.items():
        text = text.replace(key, value)
    return text


def private_study(
    name: str = "study-a",
    *,
    epsilon: float = 1.0,
    delta: float = 1e-5,
    rounds: int = 4,
    spare: int = 0,
    dataset: str = "heart",
    mode: str = "patient-distributed",
    more: str = "",
) -> Study:
    """Return the study, parsed."""
    return parse_study(
        private_text(
            name,
            epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            spare=spare,
            dataset=dataset,
            mode=mode,
            more=more,
        )
    )


def header_of(study: Study, r: int, session: int = 0x51) -> Header:
    """Return the header of a study's round among four hospitals."""
    layout = layouts.round_layout(study, RoundKind.TRAIN)
    assert layout.dp is not None
    return Header(
        session_id=SessionId(bytes([session]) * 32),
        r=RoundNo(r),
        kind=RoundKind.TRAIN,
        model_sha256=Sha256(bytes([r % 256]) * 32),
        layout_sha256=layout.schema.layout_sha256,
        config_hash=config_hash(study),
        members=tuple((NodeId(name), bytes(32)) for name in MEMBERS),
        d=layout.schema.words,
        w=layout.ring_bits,
        c=COLLUDERS,
        q=3,
        s_min=3,
        t_h=2,
        kappa=3,
        ranges=(),
        w_max=study.federation.max_weight,
        rounding=Rounding.STOCHASTIC,
        deadline_ms=60_000,
        dp=layout.dp.terms(3 - COLLUDERS),
    )
