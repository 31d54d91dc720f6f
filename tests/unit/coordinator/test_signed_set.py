"""Who has to be told that a signed set is lifted: whoever signed, or may have."""

from __future__ import annotations

import pytest

from coordinator.signed_set import SignedSet, who_unlocks


@pytest.mark.parametrize(
    ("signed", "unknown", "first", "further"),
    [
        (("a", "b"), (), "at a, b say", ""),
        (("a",), ("b", "c"), "at a say", "Of b, c no signature came"),
        ((), ("a", "b", "c"), "at a, b, c say", ""),
    ],
)
def test_everybody_who_may_have_signed_is_named(
    signed: tuple[str, ...], unknown: tuple[str, ...], first: str, further: str
) -> None:
    told = who_unlocks(
        SignedSet("heart", "c0de", (*signed, *unknown), signed, unknown, lifted=True)
    )
    assert first in told
    assert "unlock heart --set c0de" in told
    assert further in told
    assert ("no signature came" in told) is bool(further)
