"""Orders that only a person may give, with the node stopped; each is recorded for good.

    unlock        protocol 10.4: forget the last set that this hospital agreed to for a study, so
                  that another one may be signed on the same model. Two such sums can be
                  subtracted from one another: what the hospitals in one set and not in the
                  other sent is then known to the coordinator, summed. The order names the set
                  by its code (`fedcare doctor`): where the last set is another one, as at a
                  hospital that did not sign, or was opened, nothing is forgotten.
    accept-loss   the state is an old copy (`found_older`), and no newer one is there: its keys
                  are erased and it joins through a new epoch. It has forgotten the sets it
                  agreed to since.

An order is one file, `orders/<time>.<what>.json`, written and flushed before it takes effect,
never changed. The node logs all of them at each start, and `fedcare node orders` lists them.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from common.clock import Clock
from common.errors import ConfigError, Refusal, RoundError, StateError
from common.messages import Seen
from common.reason import check_reason
from common.secagg.node import restored
from common.secagg.node_state import BackupRestored, NodeState, decode_state, encode_state
from common.secagg.params import EPOCH_SECONDS
from common.secagg.rerun import CODE_DIGITS, RerunMemory
from hospital_node import files
from hospital_node.store import ROLLED_BACK, NodeStore, SessionRecord

SCHEMA: Final = "fedcare.node-order/1"
OLDER_SCHEMA: Final = "fedcare.node-rolled-back/1"

What = Literal["unlock", "accept-loss"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a person ordered; `user` is the account it was given under, `unix` when.

    After an unlock, `left`: how many sets of the study are still remembered; `code`: of the set.
    """

    what: What
    task: str
    reason: str
    user: str
    unix: int
    left: int = 0
    code: str = ""


# --- an old copy is noticed -----------------------------------------------------------------


def seen_of(state: NodeState) -> tuple[int, int, int]:
    """Return (largest epoch, last round begun in it, next round) of a task's state; 0 for none."""
    session = state.session
    if session is None or session.terms.epoch != state.last_epoch:
        return state.last_epoch, 0, 0
    return state.last_epoch, session.chain_r - 1, session.next_r


def found_older(states: Iterable[tuple[str, NodeState]], witness: Iterable[Seen]) -> list[Seen]:
    """Return what the coordinator has seen of this node that its state does not know.

    A task that was in no epoch is none: an empty folder is the clean start of the runbook.
    Who lies here can stop this node, and nothing else.
    """
    known = dict(states)
    return [one for one in witness if one.task in known and _is_older(known[one.task], one)]


def _is_older(state: NodeState, seen: Seen) -> bool:
    epoch, r, _ = seen_of(state)
    if epoch == 0:
        return False
    live = state.session is not None and epoch == seen.epoch
    return epoch < seen.epoch or (live and r < seen.r)


def found_back(states: Iterable[tuple[str, NodeState]], witness: Iterable[Seen]) -> list[Seen]:
    """Return where the coordinator knows of fewer rounds than it has told this node are over.

    It stores a round's end before it tells of it. One that does not say its number is a former
    version's; in another epoch there is nothing to compare.
    """
    known = {task: seen_of(state) for task, state in states}
    return [
        one
        for one in witness
        if one.next_r
        and one.task in known
        and known[one.task][0] == one.epoch
        and known[one.task][2] > one.next_r
    ]


def keep_older(root: Path, older: Sequence[Seen]) -> None:
    """Keep what was found, for the command that accepts it.

    Raises:
        StateError: DISK.
    """
    tree: dict[str, object] = {
        "schema": OLDER_SCHEMA,
        "seen": [asdict(one) for one in older],
    }
    content = json.dumps({**tree, "sha256": _digest(tree)}).encode("ascii")
    files.replace(root / ROLLED_BACK, content)


def older_of(path: Path) -> list[Seen]:
    """Return what `keep_older` kept.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
        FileNotFoundError: nothing was found to be older.
    """
    found: list[Seen] | None = None
    try:
        tree = json.loads(path.read_bytes())
        if tree.pop("sha256") == _digest(tree) and tree["schema"] == OLDER_SCHEMA:
            found = [Seen(**one) for one in tree["seen"]]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found = None
    if found is None:
        raise StateError(
            "STATE_DAMAGED",
            f"{path} is not what the node wrote",
            fix="Remove the file and start the node: the coordinator tells it again.",
        )
    return found


# --- orders ---------------------------------------------------------------------------------


def unlock(store: NodeStore, task: str, code: str, reason: str, clock: Clock) -> Order:
    """Forget the last set that was agreed to for a study, if it is the one with this code.

    Raises:
        ConfigError: BAD_ARGUMENT, no code of a set.
        RoundError: NOT_FOUND, the last set that this hospital agreed to is another one.
        Refusal: RERUN, the sum over that set was opened.
        StateError: STATE_DAMAGED; DISK.
    """
    if len(code) != CODE_DIGITS or not set(code) <= set(string.hexdigits.lower()):
        raise ConfigError(
            "BAD_ARGUMENT",
            f"--set is the code of the set, {CODE_DIGITS} digits 0 to 9 and a to f",
            fix="`fedcare doctor RUN` at the coordinator shows it.",
        )
    record = store.load_session(task)
    if record is None:
        known = ", ".join(store.tasks()) or "none"
        raise RoundError(
            "NOT_FOUND",
            f"no set of a study {task} was agreed to; there are: {known}",
            fix="Name the study as the coordinator does; who agreed to no set has none to forget.",
        )
    state = decode_state(record.state)
    _check_last(state.rerun, task, code)
    new = replace(state, rerun=state.rerun.without_last())
    order = _record(store.root, "unlock", task, reason, clock, new.rerun.models, code)
    store.save_session(task, SessionRecord(record.run_id, encode_state(new)))
    return order


def _check_last(memory: RerunMemory, task: str, code: str) -> None:
    """Refuse to forget a set that is not the one a run waits for."""
    if memory.last_code != code:
        # What it agreed to last is of a model before: its sum was opened, and must not go.
        raise RoundError(
            "NOT_FOUND",
            f"the last set of {task} that this hospital agreed to is not {code}: it did not sign"
            " that one, or has forgotten it already; nothing was forgotten",
            fix="Start the node. If it then refuses a round with RERUN, give the code of that line;"
            " otherwise nothing is to be done here. `fedcare node orders` shows what was ordered.",
        )
    if memory.last_is_opened:
        raise Refusal(
            "RERUN",
            f"the sum over the set {code} of {task} was opened, by the coordinator's own word:"
            " another set on that model would show what hospitals sent; nothing was forgotten",
            fix="Do not give this order. Ask the coordinator's operator why it waits for that set.",
        )


def accept_loss(store: NodeStore, reason: str, clock: Clock) -> list[Order]:
    """Go on with an old copy of the state: without its keys, in a new epoch.

    Raises:
        RoundError: NOT_FOUND, nothing was found to be older.
        StateError: STATE_DAMAGED; DISK.
    """
    path = store.root / ROLLED_BACK
    try:
        older = older_of(path)
    except FileNotFoundError:
        raise RoundError(
            "NOT_FOUND",
            "the coordinator has not found this state to be old",
            fix="There is nothing to accept: start the node; it says so where its state is old.",
        ) from None
    orders = []
    for seen in older:
        record = store.load_session(seen.task)
        if record is None:
            continue
        orders.append(_record(store.root, "accept-loss", seen.task, reason, clock))
        # No hospital takes part in an epoch further ahead; who names one would shut this one out.
        last = min(seen.epoch, int(clock.unix()) + EPOCH_SECONDS)
        state, _ = restored(decode_state(record.state), BackupRestored(last))
        store.save_session(seen.task, SessionRecord(record.run_id, encode_state(state)))
    files.remove(path)
    files.sync_directory(store.root)
    return orders


def _record(
    root: Path, what: What, task: str, reason: str, clock: Clock, left: int = 0, code: str = ""
) -> Order:
    order = Order(what, task, check_reason(reason), _account(), int(clock.unix()), left, code)
    name = f"{int(clock.unix() * 1000):013}.{what}.{task}.json"
    tree = {"schema": SCHEMA, **asdict(order)}
    content = json.dumps({**tree, "sha256": _digest(tree)}).encode("ascii")
    files.write_new(root / "orders" / name, content)
    return order


def _account() -> str:
    """Return this process' account: its name, or its number, as in a container without names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _digest(tree: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode("ascii")).hexdigest()


def orders(root: Path) -> list[Order]:
    """Return every order that was given here, oldest first.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    return [order_of(path) for path in sorted((root / "orders").glob("*.json"))]


def order_of(path: Path) -> Order:
    """Return the order in a file.

    Raises:
        StateError: STATE_DAMAGED, naming the file.
    """
    order: Order | None = None
    try:
        tree = json.loads(path.read_bytes())
        good = tree.pop("sha256") == _digest(tree) and tree.pop("schema") == SCHEMA
        order = Order(**tree) if good else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        order = None
    if order is None:
        raise StateError("STATE_DAMAGED", f"{path} is not what the node wrote")
    return order
