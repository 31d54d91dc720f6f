"""How `fedcare node unlock`, `accept-loss` and `orders` hold the state and show orders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from common.commands import Outcome
from common.entropy import OsEntropy
from common.errors import ConfigError, StateError
from common.tables import table
from hospital_node.config import NodeConfig
from hospital_node.orders import Order
from hospital_node.store import NodeStore


@contextmanager
def held(config: Path) -> Iterator[NodeStore]:
    """Hold a stopped node's state inside the block.

    Raises:
        ConfigError: FILE_MISSING, there is none.
        StateError: STATE_LOCKED, the node runs; STATE_DAMAGED.
    """
    loaded = NodeConfig.read(config)
    root = loaded.path(loaded.state_dir)
    if not (root / "sessions").is_dir():
        raise ConfigError("FILE_MISSING", f"{root} holds no node's state")
    key_file = None if loaded.sealing_key is None else loaded.path(loaded.sealing_key)
    try:
        store = NodeStore.open(root, OsEntropy(), key_file)
    except StateError as failure:
        if failure.name != "STATE_LOCKED":
            raise
        raise StateError(
            "STATE_LOCKED", failure.detail, fix="Stop the node, and give the order again."
        ) from None
    with store:
        yield store


def outcome(orders: Sequence[Order], then: str = "") -> Outcome:
    """Show orders, the oldest first, and what to do next."""
    rows = [
        (
            datetime.fromtimestamp(order.unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            order.what,
            order.task,
            order.user,
            order.reason,
        )
        for order in orders
    ]
    text = table(("given", "order", "study", "by", "reason"), rows) if rows else "no order"
    return Outcome({"orders": [asdict(order) for order in orders]}, f"{text}\n{then}".rstrip())
