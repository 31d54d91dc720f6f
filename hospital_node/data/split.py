"""Train and test rows, drawn inside the hospital; no row number ever leaves it.

The draw repeats scikit-learn's `train_test_split` number for number (so published
splits such as FLamby's can be had by stating their seed) without needing that
library at a hospital. It is a reproducible shuffle, not a secret: NumPy's legacy
generator, whose stream is frozen, is the right tool here and nowhere near a mask.

Stratification follows FLamby: it is left out where a hospital has one class only or
a class of at most two rows.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.encoding import enc

SMALLEST_CLASS: Final = 3
"""A class of fewer rows turns stratification off."""


def train_test(
    labels: NDArray[np.float64], test: float, seed: int, *, stratify: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted (train, test) row indices for one hospital's `labels`.

    `test` in [0, 1) is the share of test rows, rounded up; the rest trains. The sets
    equal scikit-learn's `train_test_split(test_size=test, random_state=seed)`.
    """
    rows = len(labels)
    n_test = min(rows, math.ceil(test * rows))
    rng = np.random.RandomState(seed)
    counts = np.unique(labels, return_counts=True)[1]
    if stratify and len(counts) > 1 and counts.min() >= SMALLEST_CLASS and n_test > 0:
        train, held_out = _stratified(labels, n_test, rng)
    else:
        order = rng.permutation(rows)
        held_out, train = order[:n_test], order[n_test:]
    return np.sort(train).astype(np.int64), np.sort(held_out).astype(np.int64)


def drawn_alone(patients: NDArray[np.int64], test: float, seed: int) -> NDArray[np.bool_]:
    """Return whether each of `patients` (their numbers) tests: each by itself, with chance `test`.

    By `SHA-256(enc("split", seed, number))`, its first 64 bits as a fraction of 2^64, so that
    nobody's part depends on who else is there (protocol, section 9.3).
    """
    digests = (hashlib.sha256(enc("split", seed, number)) for number in patients.tolist())
    fractions = [int.from_bytes(digest.digest()[:8], "big") for digest in digests]
    return np.array([fraction < test * 2.0**64 for fraction in fractions], np.bool_)


def _stratified(
    labels: NDArray[np.float64], n_test: int, rng: np.random.RandomState
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw from each class its share. The order of the draws is part of the recipe."""
    classes, codes = np.unique(labels, return_inverse=True)
    counts = np.bincount(codes)
    for_training = _shares(counts, len(labels) - n_test, rng)
    for_testing = _shares(counts - for_training, n_test, rng)
    train, test = [], []
    for code in range(len(classes)):
        members = np.flatnonzero(codes == code)[rng.permutation(counts[code])]
        cut = for_training[code]
        train.append(members[:cut])
        test.append(members[cut : cut + for_testing[code]])
    return np.concatenate(train), np.concatenate(test)


def _shares(counts: NDArray[np.int64], draws: int, rng: np.random.RandomState) -> NDArray[np.int64]:
    """Split `draws` over classes in proportion to `counts`.

    Each class gets its share rounded down; what is left goes to the largest
    fractions, equal fractions in random order.
    """
    exact = counts / counts.sum() * draws
    shares = np.floor(exact)
    left = int(draws - shares.sum())
    fractions = exact - shares
    for value in np.unique(fractions)[::-1]:
        if left <= 0:
            break
        tied = np.flatnonzero(fractions == value)
        chosen = rng.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    whole: NDArray[np.int64] = shares.astype(np.int64)
    return whole
