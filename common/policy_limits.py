"""How much of a hospital one study may take: the `limits` of a policy.

Each limit is held against a study when it is offered; the length of a round and the bytes
of an upload once more against every header. Defaults are far above what the catalogue's
models need: they bound what a mistake or a hostile study can cost.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field

from common.config import Number, Seconds, Section, format_duration

_LONGEST_ROUND_S: Final = 7 * 86_400.0
_MOST: Final = 2**40


def _deadline(seconds: float) -> float:
    if not 1 <= seconds <= _LONGEST_ROUND_S:
        raise ValueError(f"must be 1s to {format_duration(_LONGEST_ROUND_S)}")
    return seconds


class ResourceLimits(Section):
    """The most that one study may ask of this hospital.

    `parameters`: numbers of the model that travels, preprocessing included. `rounds`:
    training rounds of a study. `local_steps`, `local_epochs`, `batch`: of one round.
    `round_deadline`: how long a round may keep this hospital. `upload_bytes`: of one round.
    `studies`: runs that are accepted and not over, at a time. `model_step`: how far, as an
    L2 norm over all numbers of it, a model may move from the last one that was accepted in
    the study (docs/protocol.md, 10.2); null: any finite model.
    """

    parameters: Annotated[int, Field(ge=1, le=_MOST)] = 100_000_000
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100_000
    local_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000_000
    round_deadline: Annotated[Seconds, AfterValidator(_deadline)] = 86_400.0
    upload_bytes: Annotated[int, Field(ge=1, le=_MOST)] = 1 << 30
    studies: Annotated[int, Field(ge=1, le=5_000)] = 20
    model_step: Annotated[Number, Field(gt=0)] | None = None
