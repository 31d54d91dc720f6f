"""What must hold after a simulated run, whatever went wrong in it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from common.ids import NodeId, hospital_id, site_name
from common.views import RunPhase
from coordinator.run_facts import replay
from coordinator.run_state import RunState, decode_fact
from hospital_node.ledger import ledger_path
from hospital_node.ledger_lines import read_lines
from tests.faults.plan import SITES, Act, twin_of
from tests.federation import NAME, names

if TYPE_CHECKING:
    from tests.faults.world import World

_NEVER: Final = frozenset(
    {
        "UPLOAD_SIZE", "UPLOAD_DIGEST", "UPLOAD_SIG", "MODEL_HASH", "MODEL_INVALID", "BAD_MESSAGE",
        "SET_CONFLICT", "RERUN", "DIGEST", "BUDGET", "LEDGER_DAMAGED", "LEDGER_LOST",
        "LEDGER_ROLLED_BACK", "LEDGER_ANCHOR", "STATE_DAMAGED", "STATE_ROLLED_BACK",
    }
)  # fmt: skip
"""What only a party that does not do what it should brings about."""
_BY: Final = {
    # A twin knows nothing of what the hospital has spent, and must not be believed; nor does
    # the hospital know what the twin has done.
    Act.TWIN: {"LEDGER_ROLLED_BACK", "STATE_ROLLED_BACK"},
}


_SHUT_OUT: Final = ('"STATE_ROLLED_BACK"', '"study.withdrawn"')


def members(run: RunState) -> list[str]:
    """Return who took part: a hospital that was away until the end is not among them."""
    found = {node for record in run.history for node in (*record.survivors, *record.dropped)}
    return sorted(site_name(node) for node in found)


def due(world: World) -> list[str]:
    """Return the members that have to get the released model.

    Not one whose twin took it, decided or withdrew in its name, nor one whose twin went further
    than itself: what it has looks like an old backup, and it takes part again when its operators
    say so.
    """
    twins = {fault.who for fault in world.faults.faults if fault.act is Act.TWIN}
    lines = world.words.getvalue().splitlines() if twins else []
    refused = [line for line in lines if any(word in line for word in _SHUT_OUT)]
    shut_out = {json.loads(line)["site"] for line in refused} & twins
    shut_out |= {site for site in twins if release_of(world, twin_of(site)).exists()}
    shut_out |= {site for site in twins if not _decided(world, site)}
    return [site for site in members(world.state) if site not in shut_out]


def _decided(world: World, site: str) -> bool:
    """Whether a hospital itself has decided on the run."""
    decisions = world.plan.site_folder(site) / "state" / "decisions"
    return (decisions / f"{world.run_id}.json").exists()


def release_of(world: World, site: str) -> Path:
    """Return where a hospital, or its twin, keeps the released model."""
    folder = world.plan.site_folder(site) / "state" / "releases" / str(world.run_id)
    return folder / "model.safetensors"


def problem_of(world: World) -> str | None:
    """Return what is wrong after a run that ended, in one line; None if all holds."""
    run = world.state
    try:
        _sums(world, run)
        world.check_lines()
        for check in _CHECKS:
            check(world, run)
    except AssertionError as failure:
        return f"{type(failure).__name__}: {failure}" if str(failure) else repr(failure)
    return None


def _sums(world: World, run: RunState) -> None:
    """Every opened sum is the survivors', and the run ended well.

    One with noise may end early: each round that fails may be charged to everybody. So may one
    whose study was cancelled after hospitals had signed a set for the model it begins with: they
    sign no other one for it until their people say so (protocol, section 10.4).
    """
    unpaid = world.study.privacy.dp.on and "ROUND_VOID" in run.reason
    signed = world.faults.cancel_s > 0 and "RERUN" in run.reason
    if run.phase is RunPhase.FAILED and (unpaid or signed):
        for record in run.history:
            assert not record.opened or record.sum_sha256 == world.expected(record)
    else:
        world.check(run)


def _receipts(world: World, run: RunState) -> None:
    """Who holds a receipt for a round that was opened is in its sum."""
    assert not world.early, f"{sorted(world.early)} got receipts for what was not stored"
    for record in run.history:
        held = {site for site, hd in world.receipts if hd == record.hd}
        assert not record.opened or held <= names(record.survivors), (
            f"round {record.r}: {sorted(held - names(record.survivors))} hold receipts, "
            "and are not in the sum"
        )


def _one_vector(world: World, run: RunState) -> None:
    """A hospital never promised two masked vectors for one header: masks would cancel."""
    del run
    twice = {site for (site, _), digests in world.masked.items() if len(digests) > 1}
    assert not twice, f"{sorted(twice)} signed two vectors for one header"


def _one_set(world: World, run: RunState) -> None:
    """For one header one set was ever proposed; without noise, for one model one was signed.

    Another run of the study knows nothing of that set; whoever signed it does, unless it lost all
    that it knew of its sessions.
    """
    del run
    several = {hd.hex()[:8] for hd, sets in world.sets.items() if len(sets) > 1}
    assert not several, f"more than one survivor set for headers {sorted(several)}"
    if world.study.privacy.dp.on:
        return
    by_model: defaultdict[tuple[bytes, str], set[tuple[NodeId, ...]]] = defaultdict(set)
    lost = {fault.who for fault in world.faults.faults if fault.act is Act.FORGET}
    for hd, signers in world.signed.items():
        for who in signers - lost if world.faults.cancel_s else ("all",):
            by_model[world.models[hd], who] |= world.sets[hd]
    assert all(len(sets) == 1 for sets in by_model.values()), "two sets signed for one model"


def _charged_once(world: World, run: RunState) -> None:
    """Every noise that was drawn was charged, once, and no charge was taken back."""
    del run
    if not world.study.privacy.dp.on:
        return
    for site in SITES:
        charged = Counter(_charges(world, site))
        twice = {hd for hd, times in charged.items() if times > 1}
        assert not twice, f"{site} charged rounds twice"
        drawn = {hd.hex() for who, hd in world.drawn if who == site}
        assert drawn <= charged.keys(), f"{site} drew noise that its ledger does not charge"
        begun = {hd.hex() for who, hd in world.begun if who == site}
        assert charged.keys() <= begun, f"{site} charged rounds for which it made nothing"


def _charges(world: World, site: str) -> list[str]:
    dataset = world.study.dataset
    path = ledger_path(world.plan.site_folder(site) / "state" / "ledger", dataset)
    raw = path.read_bytes() if path.exists() else b""
    entries, _ = read_lines(raw, hospital_id(NAME, site), dataset, str(path))
    return [charge.hd for charge in entries.charges]


def _one_model(world: World, run: RunState) -> None:
    """Every hospital ends with the very model that the run names."""
    if run.phase is not RunPhase.FINISHED:
        return
    assert run.model is not None
    found = set()
    for site in due(world):
        found.add(release_of(world, site).read_bytes())
    assert len(found) <= 1, "hospitals hold different models"


def _stored(world: World, run: RunState) -> None:
    """What the store holds gives the very state that the coordinator has in memory."""
    service = world.service
    assert service is not None
    store = service._shop.store
    stored = next(one for one in store.runs() if one.run_id == run.run_id)
    facts = [decode_fact(fact.body) for fact in store.facts(run.run_id) if fact.body]
    state = replay(service._first_state(stored, run.study), facts)
    assert state.history == run.history, "the store tells another history"
    assert state.model == run.model, "the store names another model"


def _no_bug(world: World, run: RunState) -> None:
    del run
    assert world.count("internal.error") == 0, "an error that should not be possible was logged"
    allowed = {name for fault in world.faults.faults for name in _BY.get(fault.act, ())}
    allowed.update(world.excused, {"RERUN"} if world.faults.cancel_s else ())
    for line in map(json.loads, world.words.getvalue().splitlines()):
        name = line.get("name", line.get("code"))
        assert name not in _NEVER - allowed, f"{name} among honest parties: {line.get('detail')}"


_CHECKS: Final = (
    _receipts, _one_vector, _one_set, _charged_once, _one_model, _stored, _no_bug,
)  # fmt: skip
