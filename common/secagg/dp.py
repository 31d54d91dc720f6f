"""The privacy items of a round header and the rules they obey (sections 7.3 and 9).

A study fixes a `DpPlan`; with the round's honest hospitals it becomes the header's
`DpTerms`. Coordinator and node compute them alike, in binary64 and in the same order, so
that a node compares every item for equality. `check_terms` holds what the sections demand
of any terms, whoever chose them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from common.errors import Refusal

LEAST_SIGMA: Final = 4.0
"""Least `sigma_loc`: the sum of discrete Gaussians is one of the summed variance (9.1)."""

MOST_SIGMA: Final = 2.0**19
"""Largest `sigma_loc` of this version: the table of a larger one takes over 100 MiB."""

TRUNCATION: Final = 13
"""Noise is cut at `T = ceil(13 sigma_loc)` (7.3)."""

LEAST_DELTA: Final = 4_096
"""`Delta_int` of every vector up to a million words: its rounding is lost in the noise."""

MOST_DRAWS: Final = 2**32
"""Words of the noise keystream that a round may take: `K d` of mode patient-local (6.2, 9.6)."""

EXACT_SUM: Final = 2**53
"""A step's noised sum inside a hospital stays below: float64 then holds it exactly (7.3)."""

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
    patient, `m_max` the most patients of one site. `steps` K: the noised steps inside each
    hospital; an item of mode patient-local only.
    """

    mode: DpMode = DpMode.NONE
    z: float = 0.0
    clip: float = 0.0
    delta_int: int = 0
    sigma_loc: float = 0.0
    noise_cap: int = 0
    p: float = 0.0
    m_max: int = 0
    steps: int = 0

    @property
    def noised_steps(self) -> int:
        """How many noised steps a round charges (9.4)."""
        match self.mode:
            case DpMode.NONE:
                return 0
            case DpMode.PATIENT_LOCAL:
                return self.steps
            case _:
                return 1


NO_DP: Final = DpTerms()


@dataclass(frozen=True, slots=True)
class DpPlan:
    """What a study fixes of its rounds' privacy terms; what the mode does not use is 0."""

    mode: DpMode
    z: float
    clip: float
    delta_int: int
    p: float
    m_max: int
    steps: int = 0

    def terms(self, honest: int) -> DpTerms:
        """Return the header's items for `honest = s_min - c` hospitals in every sum.

        Raises:
            Refusal: DP_WEAK, too few share the noise.
        """
        sigma = noise_share(self.z, self.delta_int, _checked_sharers(self.mode, honest))
        return DpTerms(
            mode=self.mode,
            z=self.z,
            clip=self.clip,
            delta_int=self.delta_int,
            sigma_loc=sigma,
            noise_cap=math.ceil(TRUNCATION * sigma),
            p=self.p,
            m_max=self.m_max,
            steps=self.steps,
        )


def sharers(mode: DpMode, honest: int) -> int:
    """Return `h`: the hospitals whose noise a guarantee counts on (9.1).

    `honest = s_min - c`. In mode patient-local each upload is private by itself: 1.
    """
    return 1 if mode is DpMode.PATIENT_LOCAL else honest


def _checked_sharers(mode: DpMode, honest: int) -> int:
    h = sharers(mode, honest)
    if mode is not DpMode.PATIENT_LOCAL and h < 2:  # noqa: PLR2004 - section 9.1: h >= 2
        raise Refusal("DP_WEAK", f"s_min - c is {h}: two honest hospitals must add noise")
    return h


def noise_share(z: float, delta_int: int, h: int) -> float:
    """Return `sigma_loc = z * Delta_int / sqrt(h)`, in binary64, in this order (9.1)."""
    return (z * delta_int) / math.sqrt(h)


def delta_int_of(words: int) -> int:
    """Return `Delta_int` for a vector of `words` words: at least `4 sqrt(d)`."""
    return max(LEAST_DELTA, LEVELS_PER_ROOT * (math.isqrt(words - 1) + 1))


def word_bound(terms: DpTerms) -> int:
    """Return the largest word of one hospital's integer sum with its noise (7.3).

    In mode patient-local such a sum is one step's and stays inside the hospital.
    """
    contributions = 1 if terms.mode is DpMode.HOSPITAL else terms.m_max
    return contributions * terms.delta_int + terms.noise_cap


def codes_ranges(mode: DpMode) -> bool:
    """Whether a vector's words are coded by ranges (7.2), not integers of scale `s` (7.3)."""
    return mode in (DpMode.NONE, DpMode.PATIENT_LOCAL)


def check_terms(terms: DpTerms, *, n: int, h: int, d: int, w: int) -> None:
    """Refuse privacy terms that break a rule of sections 7.3 or 9.7.

    `n` members, `h = s_min - c` (of which mode patient-local makes nothing), `d` words of
    `w` bits.

    Raises:
        Refusal: HEADER_FORM, an item the mode does not use; DP_WEAK; OVERFLOW_BOUND, a sum
            could wrap.
    """
    if terms.mode is DpMode.NONE:
        if terms != NO_DP:
            raise Refusal("HEADER_FORM", "privacy terms stand in a header without privacy mode")
        return
    _check_items(terms, d)
    _check_noise(terms, h, d)
    _check_bound(terms, n, w)
    if terms.sigma_loc > MOST_SIGMA:
        raise Refusal(
            "DP_WEAK",
            f"sigma_loc is {terms.sigma_loc:.0f}, above {MOST_SIGMA:.0f}, the most of this "
            "version; state a larger epsilon, fewer rounds or more min_sites",
        )


def _check_bound(terms: DpTerms, n: int, w: int) -> None:
    bound = word_bound(terms)
    if terms.mode is DpMode.PATIENT_LOCAL:
        if bound > EXACT_SUM:
            raise Refusal("OVERFLOW_BOUND", f"a step's sum up to {bound} is not exact in float64")
        return  # what leaves is coded and bounded by 7.2
    if n * bound > (1 << (w - 1)) - 1:
        raise Refusal(
            "OVERFLOW_BOUND", f"{n} hospitals with words up to {bound} do not fit {w} bits"
        )


def _check_items(terms: DpTerms, d: int) -> None:
    """Refuse items that the mode does not use, and values that it cannot use."""
    local = terms.mode is DpMode.PATIENT_LOCAL
    if terms.mode is DpMode.HOSPITAL:
        if (terms.p, terms.m_max) != (0.0, 0):
            raise Refusal("HEADER_FORM", "p and m_max are not items of mode hospital")
    elif not (0 < terms.p <= 1 and terms.m_max >= 1):
        raise Refusal("DP_WEAK", "p is not in (0, 1], or m_max is 0")
    if terms.steps and not local:
        raise Refusal("HEADER_FORM", f"steps is not an item of mode {terms.mode}")
    if local and not 1 <= terms.steps * d <= MOST_DRAWS:
        raise Refusal("DP_WEAK", f"{terms.steps} steps of {d} words: not from 1 to 2^32 draws")


def _check_noise(terms: DpTerms, honest: int, d: int) -> None:
    h = _checked_sharers(terms.mode, honest)
    if not (terms.z > 0 and terms.clip > 0):
        raise Refusal("DP_WEAK", "z and C must be above 0")
    if terms.delta_int**2 < LEVELS_PER_ROOT**2 * d:
        raise Refusal("DP_WEAK", f"Delta_int {terms.delta_int} is below 4 sqrt(d), d={d}")
    if terms.sigma_loc < LEAST_SIGMA or terms.sigma_loc < noise_share(terms.z, terms.delta_int, h):
        raise Refusal("DP_WEAK", f"sigma_loc is below z * Delta_int / sqrt({h}), or below 4")
    if terms.noise_cap != math.ceil(TRUNCATION * terms.sigma_loc):
        raise Refusal("DP_WEAK", f"T {terms.noise_cap} is not ceil(13 sigma_loc)")
