"""Rule 10.4: one survivor set, and one set of numbers, for each model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import Refusal
from common.ids import ConfigHash, NodeId, RoundNo, SessionId, Sha256
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.rerun import RerunMemory, set_code

A, B, C, D = (NodeId(name) for name in "abcd")
HEADER = Header(
    session_id=SessionId(b"\x01" * 32),
    r=RoundNo(1),
    kind=RoundKind.TRAIN,
    model_sha256=Sha256(b"\x02" * 32),
    layout_sha256=Sha256(b"\x03" * 32),
    config_hash=ConfigHash(b"\x04" * 32),
    members=tuple((node, bytes(32)) for node in (A, B, C, D)),
    d=8,
    w=32,
    c=1,
    q=3,
    s_min=3,
    t_h=2,
    kappa=3,
    ranges=(0.5, 1.0),
    w_max=1000,
    rounding=Rounding.EVEN,
    deadline_ms=1000,
)
MEMORY = RerunMemory().remember(HEADER, (A, B, C))


def test_the_same_set_is_agreed_to_again_in_any_order() -> None:
    MEMORY.check_set(HEADER, (C, A, B))
    assert MEMORY.remember(HEADER, (A, B, C)) == MEMORY


@pytest.mark.parametrize("survivors", [(A, B, D), (A, B), (A, B, C, D)])
@pytest.mark.fault("F70")
def test_another_set_is_refused_and_the_one_that_holds_is_named_by_its_code(
    survivors: tuple[NodeId, ...],
) -> None:
    code = set_code(HEADER.kind, HEADER.layout_sha256, HEADER.model_sha256, (A, B, C))
    with pytest.raises(Refusal, match=f"RERUN: .*{code}"):
        MEMORY.check_set(HEADER, survivors)


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, w=64),
        replace(HEADER, w_max=999),
        replace(HEADER, ranges=(0.5, 2.0)),
        replace(HEADER, ranges=(0.5,)),
    ],
)
def test_the_same_model_with_other_numbers_is_refused_before_any_training(header: Header) -> None:
    with pytest.raises(Refusal, match="RERUN"):
        MEMORY.check_terms(header)
    with pytest.raises(Refusal, match="RERUN"):
        MEMORY.check_set(header, (A, B, C))


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, kind=RoundKind.EVALUATE),
        replace(HEADER, model_sha256=Sha256(b"\x09" * 32)),
        replace(HEADER, layout_sha256=Sha256(b"\x09" * 32)),
    ],
)
def test_another_kind_model_or_layout_is_free(header: Header) -> None:
    MEMORY.check_set(header, (A, B, D))
    both = MEMORY.remember(header, (A, B, D))
    with pytest.raises(Refusal):
        both.check_set(header, (A, B, C))
    both.check_set(HEADER, (A, B, C))


def test_ranges_that_follow_from_the_levels_do_so_with_another_cohort() -> None:
    """The count's range is B and a remainder's one level; a stated range is what it was."""

    def header(*members: NodeId, stated: float = 0.5) -> Header:
        cohort = replace(HEADER, members=tuple((node, bytes(32)) for node in members))
        levels = float(cohort.bound)
        return replace(cohort, ranges=(stated, stated / levels, levels))

    memory = RerunMemory().remember(header(A, B, C, D), (A, B, C))
    assert header(A, B, C).ranges != header(A, B, C, D).ranges
    memory.check_set(header(A, B, C), (A, B, C))
    for other in (header(A, B, C, stated=0.25), replace(header(A, B, C), ranges=(0.5, 0.5, 0.5))):
        with pytest.raises(Refusal, match="RERUN"):
            memory.check_set(other, (A, B, C))


def test_the_session_the_round_and_the_nonces_make_no_difference() -> None:
    later = replace(
        HEADER,
        session_id=SessionId(b"\x0a" * 32),
        r=RoundNo(9),
        members=tuple((node, b"\x01" * 32) for node in (A, B, C, D)),
    )
    with pytest.raises(Refusal):
        MEMORY.check_set(later, (A, B, D))


def test_a_lift_frees_the_last_model_only() -> None:
    other = replace(HEADER, model_sha256=Sha256(b"\x09" * 32))
    third = replace(HEADER, model_sha256=Sha256(b"\x0b" * 32))
    memory = MEMORY.remember(other, (A, B, C)).remember(third, (A, B, C))
    lifted = memory.without_last()
    lifted.check_set(third, (A, B, D))
    for header in (HEADER, other):
        with pytest.raises(Refusal):
            lifted.check_set(header, (A, B, D))
    assert RerunMemory().without_last() == RerunMemory()


def test_the_code_of_the_last_set_is_the_one_that_the_coordinator_names() -> None:
    def code(header: Header, *survivors: NodeId) -> str:
        return set_code(header.kind, header.layout_sha256, header.model_sha256, survivors)

    other = replace(HEADER, model_sha256=Sha256(b"\x09" * 32))
    assert MEMORY.last_code == code(HEADER, C, A, B)
    assert MEMORY.remember(other, (A, B, D)).last_code == code(other, A, B, D)
    assert RerunMemory().last_code == ""
    assert len({code(HEADER, A, B, C), code(HEADER, A, B, D), code(other, A, B, C)}) == 3


def test_what_was_opened_covers_every_model_before_it_and_none_after() -> None:
    other = replace(HEADER, model_sha256=Sha256(b"\x09" * 32))
    memory = MEMORY.remember(other, (A, B, C))
    assert memory.with_opened(HEADER).opened == 1
    assert not memory.with_opened(HEADER).last_is_opened
    assert memory.with_opened(other).last_is_opened
    assert memory.with_opened(other).with_opened(HEADER).opened == 2
    assert RerunMemory().with_opened(HEADER) == RerunMemory()


def test_a_thousand_rounds_take_ninety_six_bytes_each() -> None:
    memory = RerunMemory()
    for number in range(1000):
        header = replace(HEADER, model_sha256=Sha256(number.to_bytes(32, "big")))
        memory = memory.remember(header, (A, B, C))
    assert len(memory.records) == 96_000
    with pytest.raises(Refusal):
        memory.check_set(replace(HEADER, model_sha256=Sha256(bytes(32))), (A, B, D))
