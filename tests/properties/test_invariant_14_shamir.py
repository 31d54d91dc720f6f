"""Invariant 14: any t_h shares restore; t_h - 1 shares fit every secret equally well."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import Refusal
from common.secagg import shamir
from common.secagg.keys import CoefficientSeed
from common.secret import Secret
from tests.properties.profile import bounded
from tests.reference import plain

BYTES32 = st.binary(min_size=32, max_size=32)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, bytes, int, list[int]]:
    """Return a secret, a seed, a threshold and the points of a random set of helpers."""
    threshold = draw(st.integers(1, 9))
    points = draw(
        st.lists(st.integers(1, 1000), min_size=threshold, max_size=threshold + 6, unique=True)
    )
    extreme = st.sampled_from([bytes(32), b"\xff" * 32])
    return draw(st.one_of(BYTES32, extreme)), draw(BYTES32), threshold, points


@given(sharings(), st.data())
@bounded(80)
def test_any_threshold_of_shares_restores(
    sharing: tuple[bytes, bytes, int, list[int]], data: st.DataObject
) -> None:
    secret, seed, threshold, points = sharing
    made = shamir.split(Secret(secret), "self", CoefficientSeed(seed), threshold, points)
    poly = plain.coefficients(secret, seed, "self", threshold)
    assert list(made) == [plain.share(poly, x) for x in points]
    shares = dict(zip(points, made, strict=True))
    chosen = data.draw(
        st.lists(st.sampled_from(points), min_size=threshold, max_size=threshold, unique=True)
    )
    some = {x: shares[x] for x in chosen}
    assert shamir.combine(some, threshold).reveal() == secret == plain.interpolate(some)


@given(sharings(), st.data())
@bounded(60)
def test_wrong_shares_are_found_when_enough_are_right(
    sharing: tuple[bytes, bytes, int, list[int]], data: st.DataObject
) -> None:
    secret, seed, threshold, points = sharing
    made = shamir.split(Secret(secret), "self", CoefficientSeed(seed), threshold, points)
    shares = dict(zip(points, made, strict=True))
    spare = len(points) - threshold
    if math.comb(len(points), threshold) > shamir.SUBSET_LIMIT:
        spare //= 2  # beyond the exhaustive search, as far as Reed-Solomon decodes
    wrong = data.draw(st.lists(st.sampled_from(points), max_size=spare, unique=True))
    for x in wrong:
        value = (int.from_bytes(shares[x], "big") + data.draw(st.integers(1, 99))) % plain.PRIME
        shares[x] = value.to_bytes(33, "big")
    found = shamir.combine_checked(shares, threshold, lambda made: made.reveal() == secret)
    assert found.secret.reveal() == secret
    assert set(found.wrong_points) == set(wrong)


@pytest.mark.parametrize("wrong", [0, 5, 11])
def test_reed_solomon_finds_a_third_of_liars_among_many(wrong: int) -> None:
    seed, secret = CoefficientSeed(bytes(range(32))), Secret(b"s" * 32)
    points = range(1, 49)
    shares = dict(zip(points, shamir.split(secret, "self", seed, 26, points), strict=True))
    for x in range(2, 2 + 2 * wrong, 2):
        shares[x] = (7).to_bytes(33, "big")
    found = shamir.combine_checked(shares, 26, lambda made: made == secret)
    assert found.secret == secret
    assert found.wrong_points == tuple(range(2, 2 + 2 * wrong, 2))


def test_too_few_or_unusable_shares_are_refused() -> None:
    seed, secret = CoefficientSeed(bytes(range(32))), Secret(b"s" * 32)
    made = shamir.split(secret, "self", seed, 3, [1, 2, 3])
    for shares in (
        {1: made[0], 2: made[1]},
        {1: made[0], 2: made[1], 3: made[2][:-1]},
        {1: made[0], 2: made[1], 3: (plain.PRIME).to_bytes(33, "big")},
    ):
        with pytest.raises(Refusal):
            shamir.combine_checked(shares, 3, lambda made: made == secret)
    off = {1: made[0], 2: made[1], 3: made[2][:-1] + bytes([made[2][-1] ^ 1])}
    with pytest.raises(Refusal) as refused:
        shamir.combine_checked(off, 3, lambda made: made == secret)
    assert refused.value.name == "SHARE_BAD"


@pytest.mark.parametrize(("prime", "threshold", "points"), [(7, 3, (1, 2, 3, 4)), (11, 2, (1, 5))])
def test_one_share_less_says_nothing_in_a_small_field(
    prime: int, threshold: int, points: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shamir, "PRIME", prime)
    seen: Counter[tuple[tuple[tuple[int, int], ...], int]] = Counter()
    for poly in itertools.product(range(prime), repeat=threshold):
        shares = {x: shamir._plain_value(list(poly), x) % prime for x in points}
        for chosen in itertools.combinations(points, threshold):
            assert shamir._value_at_zero({x: shares[x] for x in chosen}) == poly[0]
        for chosen in itertools.combinations(points, threshold - 1):
            seen[tuple((x, shares[x]) for x in chosen), poly[0]] += 1
    views = {view for view, _ in seen}
    assert len(seen) == len(views) * prime  # every view goes with every secret,
    assert len(set(seen.values())) == 1  # and with each equally often
