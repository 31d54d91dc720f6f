"""The privacy items of a round header and the rules they obey (sections 7.3 and 9).

A study fixes a `DpPlan`; with the round's `h = s_min - c` honest survivors it becomes the
header's `DpTerms`. Coordinator and node compute them alike, in binary64 and in the same
order, so that a node compares every item for equality. `check_terms` holds what the
section demands of any terms, whoever chose them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.errors import Refusal

LEAST_SIGMA: Final = 4.0
"""Least `sigma_loc`: the sum of discrete Gaussians is one of the summed variance (9.1)."""

TRUNCATION: Final = 13
"""Noise is cut at `T = ceil(13 sigma_loc)` (7.3)."""

LEAST_DELTA: Final = 4_096
"""`Delta_int` of every vector up to a million words: its rounding is lost in the noise."""

LEVELS_PER_ROOT: Final = 4
"""`Delta_int >= 4 sqrt(d)`: then clipping in integers ends (7.3)."""


class DpMode(StrEnum):
    """What differential privacy protects (section 9)."""

    NONE = "none"
    PATIENT_DISTRIBUTED = "patient-distributed"
    PATIENT_LOCAL = "patient-local"
    HOSPITAL = "hospital"


@dataclass(frozen=True, slots=True)
class DpTerms:
    """The privacy items of a header; what a mode does not use is 0 or 0.0.

    `z` noise multiplier, `clip` C, `delta_int` the integer sensitivity, `sigma_loc` each
    hospital's noise in integer steps, `noise_cap` T, `p` the sampling probability of a
    patient, `m_max` the most patients of one site.
    """

    mode: DpMode = DpMode.NONE
    z: float = 0.0
    clip: float = 0.0
    delta_int: int = 0
    sigma_loc: float = 0.0
    noise_cap: int = 0
    p: float = 0.0
    m_max: int = 0


NO_DP: Final = DpTerms()


@dataclass(frozen=True, slots=True)
class DpPlan:
    """What a study fixes of its rounds' privacy terms; `p` and `m_max` are 0 by hospital."""

    mode: DpMode
    z: float
    clip: float
    delta_int: int
    p: float
    m_max: int

    def terms(self, h: int) -> DpTerms:
        """Return the header's items for `h = s_min - c` honest contributors.

        Raises:
            Refusal: DP_WEAK, fewer than two.
        """
        if h < 2:  # noqa: PLR2004 - section 9.1: h >= 2
            raise Refusal("DP_WEAK", f"s_min - c is {h}: two honest hospitals must add noise")
        sigma = noise_share(self.z, self.delta_int, h)
        return DpTerms(
            mode=self.mode,
            z=self.z,
            clip=self.clip,
            delta_int=self.delta_int,
            sigma_loc=sigma,
            noise_cap=math.ceil(TRUNCATION * sigma),
            p=self.p,
            m_max=self.m_max,
        )


def noise_share(z: float, delta_int: int, h: int) -> float:
    """Return `sigma_loc = z * Delta_int / sqrt(h)`, in binary64, in this order (9.1)."""
    return (z * delta_int) / math.sqrt(h)


def delta_int_of(words: int) -> int:
    """Return `Delta_int` for a vector of `words` words: at least `4 sqrt(d)`."""
    return max(LEAST_DELTA, LEVELS_PER_ROOT * (math.isqrt(words - 1) + 1))


def word_bound(terms: DpTerms) -> int:
    """Return `M`, the largest word of one hospital's noised vector (7.3).

    Raises:
        Refusal: DP_WEAK, the mode has no bound of its own.
    """
    match terms.mode:
        case DpMode.HOSPITAL:
            return terms.delta_int + terms.noise_cap
        case DpMode.PATIENT_DISTRIBUTED:
            return terms.m_max * terms.delta_int + terms.noise_cap
        case _:
            raise Refusal("DP_WEAK", f"rounds of mode {terms.mode} are not of this version")


def check_terms(terms: DpTerms, *, n: int, h: int, d: int, w: int) -> None:
    """Refuse privacy terms that break a rule of sections 7.3 or 9.

    `n` members, `h = s_min - c`, `d` words of `w` bits.

    Raises:
        Refusal: HEADER_FORM, an item the mode does not use; DP_WEAK; OVERFLOW_BOUND, a sum
            could wrap.
    """
    if terms.mode is DpMode.NONE:
        if terms != NO_DP:
            raise Refusal("HEADER_FORM", "privacy terms stand in a header without privacy mode")
        return
    bound = word_bound(terms)
    if terms.mode is DpMode.HOSPITAL and (terms.p, terms.m_max) != (0.0, 0):
        raise Refusal("HEADER_FORM", "p and m_max are not items of mode hospital")
    if terms.mode is DpMode.PATIENT_DISTRIBUTED and not (0 < terms.p <= 1 and terms.m_max >= 1):
        raise Refusal("DP_WEAK", "p is not in (0, 1], or m_max is 0")
    _check_noise(terms, h, d)
    if n * bound > (1 << (w - 1)) - 1:
        raise Refusal(
            "OVERFLOW_BOUND", f"{n} hospitals with words up to {bound} do not fit {w} bits"
        )


def _check_noise(terms: DpTerms, h: int, d: int) -> None:
    if h < 2:  # noqa: PLR2004 - section 9.1
        raise Refusal("DP_WEAK", f"s_min - c is {h}: two honest hospitals must add noise")
    if not (terms.z > 0 and terms.clip > 0):
        raise Refusal("DP_WEAK", "z and C must be above 0")
    if terms.delta_int**2 < LEVELS_PER_ROOT**2 * d:
        raise Refusal("DP_WEAK", f"Delta_int {terms.delta_int} is below 4 sqrt(d), d={d}")
    if terms.sigma_loc < LEAST_SIGMA or terms.sigma_loc < noise_share(terms.z, terms.delta_int, h):
        raise Refusal("DP_WEAK", "sigma_loc is below z * Delta_int / sqrt(s_min - c), or below 4")
    if terms.noise_cap != math.ceil(TRUNCATION * terms.sigma_loc):
        raise Refusal("DP_WEAK", f"T {terms.noise_cap} is not ceil(13 sigma_loc)")
