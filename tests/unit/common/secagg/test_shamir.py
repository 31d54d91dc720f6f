"""Shares: t restore, t - 1 say nothing, wrong ones are found."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.entropy import CountingEntropy
from common.errors import InternalError, Refusal
from common.secagg import shamir
from common.secagg.keys import CoefficientSeed
from common.secagg.shamir import (
    PRIME,
    SHARE_BYTES,
    combine,
    combine_checked,
    decode_share,
    share_secrets,
    split,
    split_bundle,
)
from common.secret import Secret

SECRET = Secret(b"\x05" * 32)
SEED = CoefficientSeed(b"\x06" * 32)


def shares_of(threshold: int, count: int, secret: Secret = SECRET) -> dict[int, bytes]:
    points = range(1, count + 1)
    return dict(zip(points, split(secret, "self", SEED, threshold, points), strict=True))


def spoil(share: bytes, by: int = 1) -> bytes:
    return ((int.from_bytes(share, "big") + by) % PRIME).to_bytes(SHARE_BYTES, "big")


def fits(secret: Secret) -> bool:
    return secret == SECRET


def test_the_field_is_a_prime_above_every_secret() -> None:
    assert PRIME == 2**256 + 297
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.data())
@settings(max_examples=40)
def test_any_t_shares_restore_the_secret(raw: bytes, threshold: int, data: st.DataObject) -> None:
    shares = shares_of(threshold, 8, Secret(raw))
    chosen = data.draw(st.permutations(sorted(shares)))[:threshold]
    assert combine({x: shares[x] for x in chosen}, threshold).reveal() == raw


@pytest.mark.parametrize("raw", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_largest_secrets_survive(raw: bytes) -> None:
    assert combine(shares_of(3, 3, Secret(raw)), 3).reveal() == raw


def test_fewer_than_t_shares_are_refused() -> None:
    with pytest.raises(Refusal, match="NOT_ENOUGH"):
        combine(shares_of(4, 3), 4)
    with pytest.raises(Refusal, match="NOT_ENOUGH"):
        combine_checked(shares_of(4, 3), 4, fits)


@pytest.mark.parametrize(("prime", "threshold"), [(5, 2), (7, 3)])
def test_t_minus_1_shares_fit_every_secret_equally_often(
    monkeypatch: pytest.MonkeyPatch, prime: int, threshold: int
) -> None:
    """The whole model over a small prime: each view of t - 1 points leaves every secret open."""
    monkeypatch.setattr(shamir, "PRIME", prime)
    for points in combinations(range(1, prime), threshold - 1):
        views: dict[tuple[int, ...], list[int]] = {}
        for poly in product(range(prime), repeat=threshold):
            view = tuple(shamir._value(list(poly), x) for x in points)
            views.setdefault(view, []).append(poly[0])
        assert all(sorted(secrets) == list(range(prime)) for secrets in views.values())


def test_shares_are_deterministic_but_differ_by_name_and_seed() -> None:
    made = split(SECRET, "self", SEED, 3, (1, 2))
    assert split(SECRET, "self", SEED, 3, (1, 2)) == made
    assert split(SECRET, "h1", SEED, 3, (1, 2)) != made
    assert split(SECRET, "self", CoefficientSeed(b"\x07" * 32), 3, (1, 2)) != made


def test_with_threshold_one_every_share_is_the_secret() -> None:
    """c = 0: nothing is promised once a hospital helps the coordinator (section 1)."""
    assert set(shares_of(1, 3).values()) == {b"\x00" + SECRET.reveal()}


@pytest.mark.parametrize("share", [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big")])
def test_malformed_shares_are_refused(share: bytes) -> None:
    with pytest.raises(Refusal, match="SHARE_BAD"):
        decode_share(share)
    with pytest.raises(Refusal, match="SHARE_BAD"):
        combine({1: share, 2: bytes(33)}, 2)
    assert decode_share((PRIME - 1).to_bytes(33, "big")) == PRIME - 1


def test_a_result_that_is_no_secret_is_refused() -> None:
    with pytest.raises(Refusal, match="SHARE_BAD"):
        combine({1: (2**256).to_bytes(33, "big")}, 1)


def test_inputs_that_make_no_sharing_are_a_bug() -> None:
    for secret, threshold, points in (
        (Secret(bytes(31)), 2, (1,)),
        (SECRET, 0, (1,)),
        (SECRET, 2, (0, 1)),
    ):
        with pytest.raises(InternalError):
            split(secret, "self", SEED, threshold, points)


# --- wrong shares ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threshold", "count", "wrong"),
    [
        (3, 5, ()),
        (3, 5, (1,)),
        (3, 5, (1, 2)),  # beyond Reed-Solomon's reach; subsets find it
        (17, 63, (1,)),
        (17, 63, tuple(range(1, 24))),  # (63 - 17)/2, as far as decoding goes
        (17, 63, (5, 30, 63)),
        (1, 3, (1,)),
    ],
)
def test_wrong_shares_are_found_and_named(
    threshold: int, count: int, wrong: tuple[int, ...]
) -> None:
    shares = shares_of(threshold, count)
    for x in wrong:
        shares[x] = spoil(shares[x], by=x * x + 1)
    recovered = combine_checked(shares, threshold, fits)
    assert recovered.secret == SECRET
    assert recovered.wrong_points == wrong


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_decoding_alone_corrects_half_of_the_surplus(data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, 8))
    count = data.draw(st.integers(threshold, 20))
    wrong = data.draw(st.sets(st.integers(1, count), max_size=(count - threshold) // 2))
    shares = shares_of(threshold, count)
    values = {x: decode_share(spoil(s, x) if x in wrong else s) for x, s in shares.items()}
    poly = shamir._reed_solomon(values, threshold)
    assert poly is not None
    assert poly[0] == int.from_bytes(SECRET.reveal(), "big")


def test_colluders_with_a_polynomial_of_their_own_do_not_win() -> None:
    shares = shares_of(17, 40)
    forged = split(Secret(b"\x66" * 32), "self", CoefficientSeed(b"\x09" * 32), 17, range(1, 12))
    shares |= dict(zip(range(1, 12), forged, strict=True))
    recovered = combine_checked(shares, 17, fits)
    assert recovered.secret == SECRET
    assert recovered.wrong_points == tuple(range(1, 12))


@pytest.mark.parametrize(("threshold", "count", "wrong"), [(3, 4, 2), (17, 63, 40)])
def test_too_many_wrong_shares_give_nothing_rather_than_a_guess(
    threshold: int, count: int, wrong: int
) -> None:
    shares = shares_of(threshold, count)
    for x in range(1, wrong + 1):
        shares[x] = spoil(shares[x], by=x + 7)
    with pytest.raises(Refusal, match="SHARE_BAD"):
        combine_checked(shares, threshold, fits)


def test_decoding_gives_no_polynomial_of_too_high_degree() -> None:
    values = {x: decode_share(share) for x, share in shares_of(20, 30).items()}
    assert shamir._reed_solomon(values, 20) is not None
    assert shamir._reed_solomon(values, 8) is None


def test_malformed_shares_count_as_wrong_not_as_an_error() -> None:
    shares = shares_of(3, 6)
    shares[2] = b"short"
    shares[4] = PRIME.to_bytes(33, "big")
    assert combine_checked(shares, 3, fits).wrong_points == (2, 4)


def test_right_shares_of_another_secret_do_not_fit() -> None:
    with pytest.raises(Refusal, match="SHARE_BAD"):
        combine_checked(shares_of(3, 5, Secret(b"\x11" * 32)), 3, fits)


# --- bundles -----------------------------------------------------------------------------


def test_a_bundle_holds_one_share_of_each_secret_in_order() -> None:
    entropy = CountingEntropy(b"bundle")
    secrets = [(name, Secret(entropy.take(32))) for name in ("self", "h1", "h3")]
    points = (1, 3, 4)
    bundles = share_secrets(secrets, SEED, 2, points)
    opened = [split_bundle(bundle, 3) for bundle in bundles]
    for k, (name, secret) in enumerate(secrets):
        assert [row[k] for row in opened] == list(split(secret, name, SEED, 2, points))
        shares = {x: row[k] for x, row in zip(points, opened, strict=True)}
        assert combine(shares, 2) == secret


@pytest.mark.parametrize("size", [0, 32, 33, 65, 67, 99])
def test_a_bundle_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(Refusal, match="SHARE_OPEN"):
        split_bundle(Secret(bytes(size)), 2)


def test_bundles_and_results_do_not_print() -> None:
    (bundle,) = share_secrets([("self", SECRET)], SEED, 1, (1,))
    recovered = combine_checked(shares_of(2, 3), 2, fits)
    for thing in (bundle, recovered):
        assert "\\x05" not in repr(thing)
        assert "0505" not in repr(thing)
