"""Shamir's secret sharing over the prime p = 2^256 + 297 (section 4.3).

The secret is coefficient 0, the others are derived from the node's coefficient seed,
so a restarted node makes the same shares. The point of a helper is its 1-based place
in sorted `U`. Each secret of a round (`b_i`, every `e_ij`) has a polynomial of its
own: what a helper returns for one edge says nothing about another.

Wrong shares are found against a commitment (`matches`): subsets are tried while they
are few, then Reed-Solomon decoding (Gao 2003) finds up to (m - t)/2 wrong ones of m.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Final

from common.encoding import Label, expand_info, statement
from common.errors import InternalError, Refusal
from common.secagg.keys import CoefficientSeed
from common.secret import Secret

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
SELF_NAME: Final = "self"
"""The name of `b_i` among a node's secrets; an edge is named by the other end's id."""

SUBSET_LIMIT: Final = 500
"""Subsets tried before Reed-Solomon decoding."""

_COEFFICIENT_BYTES: Final = 64

Poly = list[int]
"""Coefficients modulo `PRIME`, constant first."""


# --- splitting -----------------------------------------------------------------------


def split(
    secret: Secret,
    name: str,
    coefficients: CoefficientSeed,
    threshold: int,
    points: Sequence[int],
) -> tuple[bytes, ...]:
    """Return one 33-byte share per point; any `threshold` of them restore the secret.

    Raises:
        InternalError: a secret of another length, a point below 1, or a threshold
            below 1.
    """
    if len(secret) != SECRET_BYTES or threshold < 1 or any(point < 1 for point in points):
        raise InternalError("a secret has 32 bytes, a threshold and points are at least 1")
    poly = _polynomial(secret, name, coefficients, threshold)
    return tuple((_plain_value(poly, x) % PRIME).to_bytes(SHARE_BYTES, "big") for x in points)


def share_secrets(
    secrets: Sequence[tuple[str, Secret]],
    coefficients: CoefficientSeed,
    threshold: int,
    points: Sequence[int],
) -> tuple[Secret, ...]:
    r"""Return each point's bundle: its shares of all `secrets`, in order, end to end.

    `secrets`: `("self", b_i)`, then `(j, e_ij)` for j in sorted `U\{i}`.

    Raises:
        InternalError: see `split`.
    """
    columns = [split(secret, name, coefficients, threshold, points) for name, secret in secrets]
    return tuple(Secret(b"".join(row)) for row in zip(*columns, strict=True))


def split_bundle(bundle: Secret, count: int) -> tuple[bytes, ...]:
    """Return the shares of an opened bundle.

    Raises:
        Refusal: SHARE_OPEN, it does not hold `count` shares.
    """
    data = bundle.reveal()
    if len(data) != count * SHARE_BYTES:
        raise Refusal("SHARE_OPEN", f"a share bundle holds {len(data)} bytes, not {count} shares")
    return tuple(data[at : at + SHARE_BYTES] for at in range(0, len(data), SHARE_BYTES))


def _polynomial(secret: Secret, name: str, seed: CoefficientSeed, threshold: int) -> Poly:
    key = seed.reveal()
    poly = [int.from_bytes(secret.reveal(), "big")]
    for k in range(1, threshold):
        wide = expand_info(key, statement(Label.POLY, name, k), _COEFFICIENT_BYTES)
        poly.append(int.from_bytes(wide, "big") % PRIME)
    return poly


def _plain_value(poly: Poly, x: int) -> int:
    """Return the value at a small x without reduction: cheaper than 16 divisions."""
    value = 0
    for coefficient in reversed(poly):
        value = value * x + coefficient
    return value


# --- combining -----------------------------------------------------------------------


def decode_share(share: bytes) -> int:
    """Return a share's value.

    Raises:
        Refusal: SHARE_BAD, not 33 bytes, or not below the prime.
    """
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise Refusal("SHARE_BAD", "a share is not 33 bytes below the prime")
    return value


def combine(shares: Mapping[int, bytes], threshold: int) -> Secret:
    """Return the secret from the `threshold` shares of the lowest points, point -> share.

    A wrong share gives a wrong secret: compare it with its commitment, or use
    `combine_checked`.

    Raises:
        Refusal: NOT_ENOUGH, fewer than `threshold` shares; SHARE_BAD, a malformed share
            or a result that is no secret.
    """
    if len(shares) < threshold:
        raise Refusal("NOT_ENOUGH", f"{len(shares)} shares of the {threshold} needed")
    chosen = {x: decode_share(shares[x]) for x in sorted(shares)[:threshold]}
    secret = _as_secret(_value_at_zero(chosen))
    if secret is None:
        raise Refusal("SHARE_BAD", "the shares do not combine to a secret")
    return secret


@dataclass(frozen=True, slots=True)
class Recovered:
    """A secret that fits its commitment, and the points whose shares were wrong."""

    secret: Secret
    wrong_points: tuple[int, ...]


def combine_checked(
    shares: Mapping[int, bytes], threshold: int, matches: Callable[[Secret], bool]
) -> Recovered:
    """Return the secret for which `matches` holds, though some shares may be wrong.

    Raises:
        Refusal: NOT_ENOUGH, fewer than `threshold` well-formed shares; SHARE_BAD,
            nothing that can be decoded fits.
    """
    values: dict[int, int] = {}
    for x in sorted(shares):
        if len(shares[x]) == SHARE_BYTES and int.from_bytes(shares[x], "big") < PRIME:
            values[x] = int.from_bytes(shares[x], "big")
    if len(values) < threshold:
        raise Refusal("NOT_ENOUGH", f"{len(values)} usable shares of the {threshold} needed")
    few = comb(len(values), threshold) <= SUBSET_LIMIT
    poly = _by_subsets(values, threshold, matches, 1 if not few else SUBSET_LIMIT)
    if poly is None and not few:
        poly = _reed_solomon(values, threshold)
    secret = None if poly is None else _as_secret(poly[0])
    if poly is None or secret is None or not matches(secret):
        raise Refusal("SHARE_BAD", "no choice of the shares fits the commitment")
    wrong = [x for x in sorted(shares) if x not in values or _value(poly, x) != values[x]]
    return Recovered(secret, tuple(wrong))


def _by_subsets(
    values: Mapping[int, int],
    threshold: int,
    matches: Callable[[Secret], bool],
    limit: int,
) -> Poly | None:
    """Return the polynomial of the first fitting subset among the first `limit`."""
    for tried, points in enumerate(combinations(values, threshold)):
        if tried == limit:
            break
        chosen = {x: values[x] for x in points}
        secret = _as_secret(_value_at_zero(chosen))
        if secret is not None and matches(secret):
            return _interpolate(chosen) or [0]  # a hostile node may share zeros
    return None


def _as_secret(value: int) -> Secret | None:
    """Return a field element as 32 bytes; None above 2^256, which no secret reaches."""
    return None if value >> 256 else Secret(value.to_bytes(SECRET_BYTES, "big"))


def _value_at_zero(values: Mapping[int, int]) -> int:
    """Return the Lagrange interpolation at 0; one inversion for each point."""
    total = 0
    for x, y in values.items():
        top = bottom = 1
        for other in values:
            if other != x:
                top = top * other % PRIME
                bottom = bottom * (other - x) % PRIME
        total += y * top * pow(bottom, -1, PRIME)
    return total % PRIME


# --- Reed-Solomon decoding -------------------------------------------------------------


def _reed_solomon(values: Mapping[int, int], threshold: int) -> Poly | None:
    """Return the polynomial of degree < t nearest to the points, or None (Gao 2003).

    With g0 = prod (X - x) and g1 through all points, the extended Euclidean algorithm
    is stopped at the first remainder g = u g0 + v g1 of degree < (m + t)/2; then g/v
    is the polynomial, if the division leaves nothing and the degree fits.
    """
    g0: Poly = [1]
    for x in values:
        g0 = _times_root(g0, x)
    older, newer = g0, _interpolate(values)
    v_older: Poly = []
    v_newer: Poly = [1]
    while 2 * (len(newer) - 1) >= len(values) + threshold:
        quotient, rest = _divide(older, newer)
        older, newer = newer, rest
        v_older, v_newer = v_newer, _minus_product(v_older, quotient, v_newer)
    poly, rest = _divide(newer, v_newer)
    if rest or len(poly) > threshold:
        return None
    return poly or [0]


def _trim(poly: Poly) -> Poly:
    while poly and not poly[-1]:
        poly.pop()
    return poly


def _value(poly: Poly, x: int) -> int:
    return _plain_value(poly, x) % PRIME


def _times_root(poly: Poly, x: int) -> Poly:
    """Return poly * (X - x)."""
    shifted = [0, *poly]
    return [(high - x * low) % PRIME for high, low in zip(shifted, [*poly, 0], strict=True)]


def _interpolate(values: Mapping[int, int]) -> Poly:
    """Return the polynomial through all points (Newton's divided differences)."""
    points = list(values)
    table = [values[x] for x in points]
    for order in range(1, len(points)):
        for at in range(len(points) - 1, order - 1, -1):
            gap = pow(points[at] - points[at - order], -1, PRIME)
            table[at] = (table[at] - table[at - 1]) * gap % PRIME
    poly: Poly = []
    for x, coefficient in zip(reversed(points), reversed(table), strict=True):
        poly = _times_root(poly, x) if poly else [0]
        poly[0] = (poly[0] + coefficient) % PRIME
    return _trim(poly)


def _divide(top: Poly, bottom: Poly) -> tuple[Poly, Poly]:
    """Return quotient and remainder; `bottom` is not zero."""
    rest = list(top)
    inverse = pow(bottom[-1], -1, PRIME)
    quotient = [0] * max(len(rest) - len(bottom) + 1, 0)
    for at in range(len(quotient) - 1, -1, -1):
        factor = rest[at + len(bottom) - 1] * inverse % PRIME
        quotient[at] = factor
        for k, coefficient in enumerate(bottom):
            rest[at + k] = (rest[at + k] - factor * coefficient) % PRIME
    return _trim(quotient), _trim(rest)


def _minus_product(poly: Poly, left: Poly, right: Poly) -> Poly:
    """Return poly - left * right."""
    out = list(poly) + [0] * max(len(left) + len(right) - 1 - len(poly), 0)
    for i, a in enumerate(left):
        for k, b in enumerate(right):
            out[i + k] = (out[i + k] - a * b) % PRIME
    return _trim(out)
