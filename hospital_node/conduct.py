"""What a policy asks of the node's driver, rather than of a study or of a header.

`model_step` and `pad_to_deadline` concern each round's model and input
(docs/protocol.md, 10.2 and 10.7), `studies` how many runs a hospital is in at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from common.documents import Source
from common.errors import Refusal
from common.policy import Policy
from hospital_node.findings import cite

PADDED: Final = 0.5
"""Share of a round's deadline until which a padded input is held back."""

_MODEL_STEP, _STUDIES = "limits.model_step", "limits.studies"


@dataclass(frozen=True, slots=True)
class Conduct:
    """See the module; `where` says for a key of the policy in which file and line it stands."""

    model_step: float | None = None
    pad_to_deadline: bool = False
    studies: int = 5_000
    where: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, policy: Policy, source: Source) -> Conduct:
        """Return what a policy asks for."""
        where = {key: cite(source, key) for key in (_MODEL_STEP, _STUDIES)}
        limits = policy.limits
        return cls(limits.model_step, policy.release.pad_to_deadline, limits.studies, where)

    def check_step(self, moved: float) -> None:
        """Refuse a model that moved by the L2 norm `moved` from the last one accepted.

        Raises:
            Refusal: MODEL_RANGE.
        """
        if self.model_step is not None and not moved <= self.model_step:
            raise Refusal(
                "MODEL_RANGE",
                f"the model moved by {moved:.6g} from the last one, at most {self.model_step:g} "
                f"is allowed ({self._cite(_MODEL_STEP)})",
            )

    def no_room(self, running: int) -> str | None:
        """Return why a further run is refused while `running` are not over, None if it is not."""
        if running < self.studies:
            return None
        return (
            f"{self._cite(_STUDIES)} is at most {self.studies}: does not allow one more run "
            "while these are not over"
        )

    def held_back_s(self, deadline_ms: int, took_s: float) -> float:
        """Return how long a finished input waits before it is said to be there."""
        if not self.pad_to_deadline:
            return 0.0
        return max(0.0, PADDED * deadline_ms / 1000 - took_s)

    def _cite(self, key: str) -> str:
        place = self.where.get(key)
        return key if place is None else f"{place}: {key}"
