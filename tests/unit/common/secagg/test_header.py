"""Every item of a header moves `hd`; what no session could accept is refused by form."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from common.encoding import Label, hash_label
from common.errors import Refusal
from common.ids import ConfigHash, NodeId, RoundNo, SessionId, Sha256
from common.secagg.dp import NO_DP, DpMode, DpTerms
from common.secagg.header import (
    Header,
    Rounding,
    RoundKind,
    default_rounding,
    quant_bound,
    sum_bound,
)

H1, H2, H3 = NodeId("h1"), NodeId("h2"), NodeId("h3")
MEMBERS = ((H1, b"\x11" * 32), (H2, b"\x12" * 32), (H3, b"\x13" * 32))
HEADER = Header(
    session_id=SessionId(b"\x01" * 32),
    r=RoundNo(1),
    kind=RoundKind.TRAIN,
    model_sha256=Sha256(b"\x02" * 32),
    layout_sha256=Sha256(b"\x03" * 32),
    config_hash=ConfigHash(b"\x04" * 32),
    members=MEMBERS,
    d=7,
    w=32,
    c=1,
    q=3,
    s_min=3,
    t_h=2,
    kappa=2,
    ranges=(0.5, 1.0),
    w_max=1000,
    rounding=Rounding.EVEN,
    deadline_ms=600_000,
)
CHANGES: list[dict[str, Any]] = [
    {"version": 2},
    {"session_id": SessionId(b"\x09" * 32)},
    {"r": RoundNo(2)},
    {"kind": RoundKind.EVALUATE},
    {"group": 1},
    {"model_sha256": Sha256(b"\x09" * 32)},
    {"layout_sha256": Sha256(b"\x09" * 32)},
    {"config_hash": ConfigHash(b"\x09" * 32)},
    {"members": MEMBERS[:2]},
    {"members": ((H1, b"\x19" * 32), *MEMBERS[1:])},
    {"d": 8},
    {"w": 64},
    {"c": 0},
    {"q": 2},
    {"s_min": 2},
    {"t_h": 1},
    {"kappa": 1},
    {"ranges": (0.5,)},
    {"ranges": (1.0, 0.5)},
    {"ranges": (0.5, 1.0 + 2**-52)},
    {"w_max": 999},
    {"rounding": Rounding.STOCHASTIC},
    {"deadline_ms": 600_001},
    {"dp": DpTerms(mode=DpMode.HOSPITAL)},
    {"dp": DpTerms(z=1.0)},
    {"dp": DpTerms(clip=1.0)},
    {"dp": DpTerms(delta_int=1)},
    {"dp": DpTerms(sigma_loc=1.0)},
    {"dp": DpTerms(noise_cap=1)},
    {"dp": DpTerms(p=1.0)},
    {"dp": DpTerms(m_max=1)},
    {"dp": DpTerms(mode=DpMode.PATIENT_LOCAL)},
    {"dp": DpTerms(mode=DpMode.PATIENT_LOCAL, steps=1)},
    {"dp": DpTerms(mode=DpMode.PATIENT_LOCAL, m_max=1)},
]


def test_every_field_is_changed_by_the_list_above() -> None:
    changed = {name for change in CHANGES for name in change}
    assert changed == {field.name for field in fields(Header)}
    terms = {field.name for field in fields(DpTerms)}
    moved = {
        name
        for change in CHANGES
        if "dp" in change
        for name in terms
        if getattr(change["dp"], name) != getattr(NO_DP, name)
    }
    assert moved == terms


def test_each_changed_item_gives_another_digest() -> None:
    digests = [replace(HEADER, **change).digest() for change in CHANGES]
    assert len({HEADER.digest(), *digests}) == len(CHANGES) + 1


def test_the_digest_lists_the_items_of_section_4_2_in_order() -> None:
    dp = DpTerms(DpMode.HOSPITAL, 1.5, 2.5, 20_000, 4.5, 59, 0.25, 7)
    header = replace(HEADER, dp=dp, group=6)
    assert header.digest() == hash_label(
        Label.HEADER,
        *(1, b"\x01" * 32, 1, "train", 6, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32),
        *(3, "h1", b"\x11" * 32, "h2", b"\x12" * 32, "h3", b"\x13" * 32),
        *(7, 32, 1, 3, 3, 2, 2, 2, 0.5, 1.0, 1000, "even"),
        *("hospital", 1.5, 2.5, 20_000, 4.5, 59, 0.25, 7, 600_000),
    )


def test_steps_is_an_item_of_mode_patient_local_and_of_no_other() -> None:
    for mode in DpMode:
        dp = DpTerms(mode, 1.5, 2.5, 20_000, 4.5, 59, 0.25, 7)
        plain, stepped = (replace(HEADER, dp=replace(dp, steps=k)) for k in (0, 5))
        assert (plain.digest() == stepped.digest()) == (mode is not DpMode.PATIENT_LOCAL)
        if mode is not DpMode.PATIENT_LOCAL:
            with pytest.raises(Refusal, match="HEADER_FORM"):
                stepped.check_form()
    local = replace(HEADER, dp=DpTerms(DpMode.PATIENT_LOCAL, 1.5, 2.5, 9, 4.5, 59, 0.25, 7, 5))
    assert local.digest() == hash_label(
        Label.HEADER,
        *(1, b"\x01" * 32, 1, "train", 0, b"\x02" * 32, b"\x03" * 32, b"\x04" * 32),
        *(3, "h1", b"\x11" * 32, "h2", b"\x12" * 32, "h3", b"\x13" * 32),
        *(7, 32, 1, 3, 3, 2, 2, 2, 0.5, 1.0, 1000, "even"),
        *("patient-local", 1.5, 2.5, 9, 4.5, 59, 0.25, 7, 5, 600_000),
    )


def test_ranges_given_as_integers_hash_as_floats() -> None:
    assert replace(HEADER, ranges=(1, 2)).digest() == replace(HEADER, ranges=(1.0, 2.0)).digest()


def test_a_good_header_passes_and_names_its_parts() -> None:
    HEADER.check_form()
    assert HEADER.n == 3
    assert HEADER.ids == (H1, H2, H3)
    assert HEADER.nonce_of(H2) == b"\x12" * 32
    assert HEADER.nonce_of(NodeId("h4")) is None
    assert [HEADER.point_of(node) for node in HEADER.ids] == [1, 2, 3]
    assert HEADER.bound == quant_bound(3, 32)
    with pytest.raises(ValueError, match="tuple"):
        HEADER.point_of(NodeId("h4"))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"version": 0}, "HEADER_FORM"),
    ({"version": 2}, "HEADER_FORM"),
    ({"session_id": SessionId(b"")}, "HEADER_FORM"),
    ({"model_sha256": Sha256(bytes(31))}, "HEADER_FORM"),
    ({"layout_sha256": Sha256(bytes(33))}, "HEADER_FORM"),
    ({"config_hash": ConfigHash(b"")}, "HEADER_FORM"),
    ({"r": RoundNo(0)}, "HEADER_FORM"),
    ({"members": MEMBERS[::-1]}, "HEADER_FORM"),
    ({"members": (MEMBERS[0], *MEMBERS)}, "HEADER_FORM"),
    ({"members": (*MEMBERS[:2], (H3, b"short"))}, "HEADER_FORM"),
    ({"members": MEMBERS[:1]}, "COHORT_SMALL"),
    ({"members": ()}, "COHORT_SMALL"),
    ({"d": 0}, "HEADER_FORM"),
    ({"d": 2**32 + 1}, "HEADER_FORM"),
    ({"w": 8}, "HEADER_FORM"),
    ({"w": 0}, "HEADER_FORM"),
    ({"ranges": (0.0, 1.0)}, "HEADER_FORM"),
    ({"ranges": (-1.0, 1.0)}, "HEADER_FORM"),
    ({"ranges": (math.nan, 1.0)}, "HEADER_FORM"),
    ({"ranges": (math.inf, 1.0)}, "HEADER_FORM"),
    ({"group": -1}, "HEADER_FORM"),
    ({"w_max": 2**64}, "HEADER_FORM"),
    ({"deadline_ms": -1}, "HEADER_FORM"),
    ({"c": -1}, "QUORUM_RULE"),
    ({"c": 0}, "QUORUM_RULE"),
    ({"q": 2}, "QUORUM_RULE"),
    ({"s_min": 2}, "SMIN_RULE"),
    ({"s_min": 4}, "SMIN_RULE"),
    ({"t_h": 1}, "HELPER_RULE"),
    ({"kappa": 3}, "HELPER_RULE"),
    ({"dp": DpTerms(z=1.0)}, "HEADER_FORM"),
    ({"dp": DpTerms(DpMode.HOSPITAL, z=math.nan)}, "HEADER_FORM"),
    ({"dp": DpTerms(DpMode.HOSPITAL, p=-0.5)}, "HEADER_FORM"),
    ({"dp": DpTerms(DpMode.HOSPITAL, noise_cap=-5)}, "HEADER_FORM"),
    ({"dp": DpTerms(DpMode.PATIENT_LOCAL, steps=2**64)}, "HEADER_FORM"),
    ({"dp": DpTerms(steps=1)}, "HEADER_FORM"),
]


@pytest.mark.parametrize(("change", "name"), BAD)
def test_what_no_session_could_accept_is_refused(change: dict[str, Any], name: str) -> None:
    with pytest.raises(Refusal) as refusal:
        replace(HEADER, **change).check_form()
    assert refusal.value.name == name


def test_a_ring_without_room_for_the_cohort_is_refused() -> None:
    assert quant_bound(64, 16) == 127
    with pytest.raises(Refusal, match="OVERFLOW_BOUND"):
        quant_bound(10_000, 16)


@pytest.mark.parametrize("w", [16, 32, 64])
@pytest.mark.parametrize("n", [2, 3, 10, 64, 1000])
def test_two_spare_bits_stay_in_every_honest_sum(n: int, w: int) -> None:
    assert sum_bound(n, quant_bound(n, w)) < 1 << (w - 3)


@pytest.mark.parametrize(
    ("n", "w", "rounding"),
    [
        (4, 32, Rounding.EVEN),
        (1023, 32, Rounding.EVEN),
        (1025, 32, Rounding.STOCHASTIC),
        (2, 16, Rounding.STOCHASTIC),
        (1000, 64, Rounding.EVEN),
    ],
)
def test_few_levels_are_rounded_stochastically(n: int, w: int, rounding: Rounding) -> None:
    assert default_rounding(n, w) is rounding
