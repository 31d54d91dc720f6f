"""Leave one hospital out: what a federation is worth where it has never been.

For each hospital the study runs once more without it, from the same seed, and the model
is judged on the test rows of the one left out: external validation, as TRIPOD asks of a
prediction model (Collins et al. 2015). Beside it stand the model with everybody, the
hospital's own, and all rows in one place, on the very same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.study import Study

if TYPE_CHECKING:
    from common.site import Site
    from researcher.comparison import Comparison, Figures


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Figures over one hospital's test rows; `figures` is of the federation without it."""

    site: str
    figures: Figures
    federated: Figures
    local_only: Figures
    centralised: Figures

    @property
    def columns(self) -> tuple[Figures, ...]:
        """Return all four, the federation without it first."""
        return (self.figures, self.federated, self.local_only, self.centralised)

    def data(self) -> dict[str, object]:
        """Return the form for envelopes."""
        return {
            "site": self.site,
            "federated_without": self.figures,
            "federated_with": self.federated,
            "local_only": self.local_only,
            "centralised": self.centralised,
        }


def check_enough(study: Study, sites: Sequence[Site]) -> None:
    """Refuse what has no run without one of its hospitals, before anything runs.

    Raises:
        ConfigError: BAD_VALUE, too few sites.
    """
    needed = study.federation.min_sites + 1
    if len(sites) < needed:
        raise ConfigError(
            "BAD_VALUE",
            f"leaving a hospital out needs at least {needed} sites, {len(sites)} given",
            fix="Give more --site manifests, or lower federation.min_sites.",
        )


def leave_one_out(
    sites: Sequence[Site],
    comparison: Comparison,
    judge: Callable[[Sequence[Site], Site], Figures],
    tell: Callable[[str], None],
) -> tuple[LeftOut, ...]:
    """Return each hospital's row. `judge` runs the study over sites and judges it on another's.

    `tell` is told of each run before it begins.

    Raises:
        FedError: a run failed.
    """
    found = []
    for place, site in enumerate(sites):
        tell(f"without {site.id} ({place + 1} of {len(sites)})")
        figures = judge([other for other in sites if other.id != site.id], site)
        found.append(
            LeftOut(
                site.id,
                figures,
                comparison.federated.by_site[site.id],
                comparison.local_only.by_site[site.id],
                comparison.centralised.by_site[site.id],
            )
        )
    return tuple(found)
