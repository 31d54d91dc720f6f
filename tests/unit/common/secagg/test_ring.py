"""Ring words: little-endian, modulo 2^w, signed by a view."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InternalError, Refusal
from common.secagg import ring


@pytest.mark.parametrize("w", ring.RING_BITS)
def test_words_travel_little_endian(w: int) -> None:
    words = ring.words_of((258).to_bytes(w // 8, "little"), w)
    assert int(words[0]) == 258
    assert int(ring.signed_view(~words)[0]) == -259
    assert words.tobytes() == (258).to_bytes(w // 8, "little")
    assert ring.word_bytes(w) == w // 8


def test_reading_words_copies_nothing() -> None:
    raw = bytearray(8)
    words = ring.words_of(raw, 32)
    raw[4] = 7
    assert int(words[1]) == 7


def test_partial_words_are_refused() -> None:
    with pytest.raises(Refusal, match="UPLOAD_SIZE"):
        ring.words_of(bytes(7), 32)


@pytest.mark.parametrize("w", [0, 8, 24, 128])
def test_other_rings_do_not_exist(w: int) -> None:
    with pytest.raises(InternalError):
        ring.word_dtype(w)


@pytest.mark.parametrize("w", ring.RING_BITS)
def test_an_opened_sum_stays_within_its_bound(w: int) -> None:
    good = np.array([5, 2**w - 5, 0], ring.word_dtype(w))
    ring.check_sum_range(good, 5)
    ring.check_sum_range(good[:0], 0)
    for bad in (6, 2**w - 6, 2 ** (w - 1)):
        good[1] = bad
        with pytest.raises(Refusal, match="SUM_RANGE") as refusal:
            ring.check_sum_range(good, 5)
        assert str(bad) not in refusal.value.detail.replace("4.7", "")
