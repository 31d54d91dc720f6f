"""Ledgers for tests: charges that cost the same, and a state directory to keep them in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.entropy import CountingEntropy
from common.privacy.accountant import Rdp, step_rdp
from hospital_node.ledger import Charge, Ledger
from hospital_node.ledger_anchor import Anchor
from hospital_node.ledger_lines import Entries, charging, opening
from hospital_node.store import NodeStore

NODE: Final = "spiffe://net/hospital/a"
DATASET: Final = "heart"
BEGUN: Final = 1_800_000_000
RDP: Final[Rdp] = step_rdp(1.0, 0.01)


def charge(number: int, task: str = "study-a", rdp: Rdp = RDP) -> Charge:
    """The charge of round `number`; each has a header of its own."""
    return Charge(
        time=BEGUN + number,
        task=task,
        session="51" * 32,
        r=number,
        hd=f"{number:064x}",
        kind="train",
        mode="patient-distributed",
        z=1.0,
        p=0.01,
        delta_int=4096,
        sigma_loc=2048.5,
        h=4,
        rdp=rdp,
    )


def open_store(root: Path, life: int = 0, key_file: Path | None = None) -> NodeStore:
    return NodeStore.open(root, CountingEntropy(f"{root.name}/{life}".encode()), key_file)


def anchored(folder: Path | None, store: NodeStore, dataset: str = DATASET) -> Anchor | None:
    return None if folder is None else Anchor(folder, NODE, dataset, store)


def open_ledger(
    store: NodeStore,
    *,
    begun: int | None = BEGUN,
    anchor: Path | None = None,
    dataset: str = DATASET,
    node: str = NODE,
) -> Ledger:
    """The ledger of a data set; `begun=None` where a study was accepted before."""
    return Ledger.open(store.ledgers, node, dataset, store, begun, anchored(anchor, store, dataset))


def written(count: int, node: str = NODE, dataset: str = DATASET) -> tuple[bytes, list[str]]:
    """The bytes of a ledger with `count` charges, and the hash after each line."""
    line, head = opening(node, dataset, BEGUN)
    lines, heads = [line], ["0" * 64, head]
    for number in range(1, count + 1):
        line, head = charging(charge(number), head)
        lines.append(line)
        heads.append(head)
    return b"".join(lines), heads


def summed(entries: Entries) -> Rdp:
    """What the charges cost, added one by one."""
    total = [0.0] * len(RDP)
    for entry in entries.charges:
        total = [a + b for a, b in zip(total, entry.rdp, strict=True)]
    return tuple(total)
