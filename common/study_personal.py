"""The personal models of a study: what each hospital makes for itself of the released one.

They never leave the hospital. `federated` is the released model as it is; `fedbn`, where
that is the study's strategy, the same with the hospital's own normalisation; `recalibrated`
has an intercept and slope of the hospital's own; `fine-tuned` is trained on from it; `ditto`
likewise, held near it (Li et al. 2021, equation 2); `own` is trained on the hospital's rows
alone; `averaged`, of models of one layer, is half `own` and half what cannot be told from the
best. The hospital keeps the best by predictions for rows that a candidate was not fitted to,
or the average where nothing is clearly better (docs/personal.md).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from common.config import Number, Section, no_repeats

Candidate = Literal["federated", "fedbn", "recalibrated", "fine-tuned", "ditto", "own", "averaged"]

CANDIDATES: Final[tuple[Candidate, ...]] = (
    "federated", "fedbn", "recalibrated", "fine-tuned", "ditto", "own", "averaged",
)  # fmt: skip


class Personal(Section):
    """Whether and how hospitals make personal models.

    `validation`: share of a hospital's training patients that is held out at a time while
    the candidates are compared; each patient is held out once. Where the study's split
    column states validation rows, those are used instead.
    """

    enabled: bool = True
    candidates: Annotated[
        tuple[Candidate, ...],
        Field(min_length=1, max_length=len(CANDIDATES)),
        AfterValidator(no_repeats),
    ] = CANDIDATES
    validation: Annotated[Number, Field(ge=0.05, le=0.5)] = 0.2
