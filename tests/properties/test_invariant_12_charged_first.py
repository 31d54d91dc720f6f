"""Invariant 12: with DP nothing but noised words leaves, and each charge comes first.

The charge precedes the first upload byte; reload gives the same epsilon; epsilon never falls;
refusal when over budget; tampering breaks the chain. Over real nodes that are killed at any
point of a round, alone or twice, and come back (docs/protocol.md, sections 9.4 and 16).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import layouts
from common.entropy import CountingEntropy
from common.privacy.accountant import add, epsilon
from common.secagg.header import Header
from common.secagg.messages import Refused
from common.study import Study
from hospital_node.driver import NodeParts
from hospital_node.learning import HospitalDesk
from hospital_node.ledger import Ledger
from hospital_node.private.books import Books, round_cost
from hospital_node.store import NodeStore
from tests.node_world import SITES, Killed, World, node_id
from tests.private_world import PrivateWorld
from tests.properties.profile import bounded

VICTIM = "h4"
POINTS = ("before", "line", "charged", "chunk")


def _books(parts: NodeParts) -> Books:
    desk = parts.desk
    assert isinstance(desk, HospitalDesk)
    assert isinstance(desk._books, Books)
    return desk._books


def mortal(point: str, nth: int, parts: NodeParts) -> NodeParts:
    """Make a node die at its `nth` charge: before it, with the line written only, or after it."""
    books = _books(parts)
    real, calls = books.charge, [0]

    def dead() -> None:
        raise Killed

    def charge(study: Study, header: Header) -> None:
        calls[0] += 1
        due = calls[0] == nth
        if due and point == "before":
            dead()
        if due and point == "line":
            books._ledger(study.dataset, accepted=True)._mark = dead  # type: ignore[method-assign]
        real(study, header)
        if due and point == "charged":
            dead()

    books.charge = charge  # type: ignore[method-assign]
    return parts


def _killed(world: World) -> bool:
    """Whether a job of the victim died."""
    jobs = [
        job
        for one in world.nodes[VICTIM]._tasks.values()
        for _, job in one._jobs._jobs.values()
        if job.done() and not job.cancelled()
    ]
    return any(isinstance(job.exception(), Killed) for job in jobs)


async def _dies(world: PrivateWorld, point: str, nth: int, after: list[float]) -> None:
    """Start the victim so that it dies, wait for that, and bury it."""
    if point == "chunk":
        world.cut_upload_after[node_id(VICTIM)] = 0
        world.start(VICTIM)
        await world.until(lambda: node_id(VICTIM) not in world.cut_upload_after)
    else:
        world.start(VICTIM, partial(mortal, point, nth))
        await world.until(lambda: _killed(world))
    await world.kill(VICTIM)
    after.append(epsilon(world.ledger(VICTIM).spent(), 1e-5).epsilon)


async def _story(root: Path, deaths: list[tuple[str, int]]) -> PrivateWorld:
    world = PrivateWorld(root, rounds=2)
    for site in SITES:
        if site != VICTIM:
            world.start(site)
    after: list[float] = []
    for point, nth in deaths:
        await _dies(world, point, nth, after)
    world.start(VICTIM)
    await world.finish(30)
    assert after == sorted(after)
    return world


@given(
    deaths=st.lists(
        st.tuples(st.sampled_from(POINTS), st.sampled_from((1, 2))), min_size=1, max_size=2
    ).filter(lambda deaths: all(nth == 1 for _, nth in deaths[1:]))
)
@bounded(5, shrink=False)
@pytest.mark.fault("F74")
def test_wherever_a_node_dies_each_round_is_charged_once_and_before_its_first_byte(
    deaths: list[tuple[str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = asyncio.run(_story(Path(folder), deaths))
        check(world)


def check(world: PrivateWorld) -> None:
    """Hold every ledger against every header and every byte that arrived."""
    assert len(world.coordinator.opened) == 2
    headers = {header.digest().hex(): header for header in world.private.headers}
    for site in SITES:
        ledger = world.ledger(site)
        charged = [charge.hd for charge in ledger.charges]
        assert len(charged) == len(set(charged)), "a header was charged twice"
        assert set(charged) <= headers.keys()
        expected = round_cost(headers[charged[0]])
        for hd in charged[1:]:
            expected = add(expected, round_cost(headers[hd]))
        assert ledger.spent() == expected
        seen = [eps for node, _, eps in world.private.seen if node == node_id(site)]
        assert seen == sorted(seen), "epsilon fell"
        uploaded = {hd.hex() for node, hd, _ in world.private.seen if node == node_id(site)}
        assert uploaded <= set(charged)


def test_nothing_but_noised_words_leaves(tmp_path: Path) -> None:
    """No weight word, no metric word; and words of untouched constants carry noise as well."""
    world = PrivateWorld(tmp_path, rounds=2)

    async def run() -> None:
        world.start_all()
        await world.finish(30)

    asyncio.run(run())
    check(world)
    constants = layouts.constant_count(world.study)
    for header, words in zip(world.private.headers, world.words(), strict=True):
        assert header.d == words.size == layouts.model_schema(world.study).parameters
        assert header.ranges == ()
        assert all(word != 0 for word in words[:constants])


def _tampered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"r":1', b'"r":2'))


def _removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "code"), [(_tampered, "LEDGER_DAMAGED"), (_removed, "LEDGER_LOST")]
)
@pytest.mark.fault("F74")
def test_a_node_whose_ledger_was_tampered_with_uploads_nothing_more(
    tmp_path: Path, harm: Callable[[Path], None], code: str
) -> None:
    world = PrivateWorld(tmp_path, rounds=1)

    async def run() -> None:
        for site in SITES:
            if site != VICTIM:
                world.start(site)
        await _dies(world, "charged", 1, [])
        harm(world.state_dir(VICTIM) / "ledger" / "heart.jsonl")
        world.start(VICTIM)
        await world.finish(30)

    asyncio.run(run())
    assert [node for node, _, _ in world.private.seen if node == node_id(VICTIM)] == []
    ((_, survivors, _),) = world.coordinator.opened
    assert len(survivors) == 3
    refused = [m.code for node, m in world.sent if isinstance(m, Refused)]
    assert refused == [code]


def _charged_elsewhere(world: PrivateWorld, rounds: int) -> None:
    """Charge rounds of another study, which cost what the victim's first round did."""
    with NodeStore.open(world.state_dir(VICTIM), CountingEntropy(b"other")) as store:
        ledger = Ledger.open(store.ledgers, node_id(VICTIM), "heart", store, None)
        for number in range(rounds):
            ledger.append(replace(ledger.charges[0], task="other", hd=f"{number:064x}"))


@pytest.mark.fault("F74")
def test_a_round_over_budget_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """The victim's total holds one round of this study, not two: another study ran meanwhile."""
    world = PrivateWorld(tmp_path, rounds=2)

    async def run() -> None:
        for site in SITES:
            if site != VICTIM:
                world.start(site)
        await _dies(world, "charged", 1, [])
        # Rounds, spare ones and all, cost the study's epsilon of 2: three of them are gone.
        world.totals[VICTIM] = 2.0
        _charged_elsewhere(world, 3)
        world.start(VICTIM)
        await world.finish(30)

    asyncio.run(run())
    first, second = (survivors for _, survivors, _ in world.coordinator.opened)
    assert node_id(VICTIM) in first
    assert node_id(VICTIM) not in second
    (refused,) = [m for node, m in world.sent if isinstance(m, Refused)]
    assert refused.code == "BUDGET"
    assert "together" in refused.detail
    assert [charge.task for charge in world.ledger(VICTIM).charges].count("other") == 3
    assert len(world.ledger(VICTIM).charges) == 4
