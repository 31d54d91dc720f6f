"""States of both services as they lie on a disk, for tests that damage them.

    kept = asyncio.run(keep(folder))     # one federation, once for a module
    kept.coordinator(tmp, "open")        # a copy of the state of a coordinator that was killed
    kept.node(tmp)                       # ... of a node, with a file of every kind there is

"open" is the middle of a round, with uploads, "finished" the end of the run, with a release.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from common import state_folder
from common.approval import Word
from common.clock import SystemClock
from common.entropy import OsEntropy
from common.ids import ConfigHash, HeaderDigest, RunId, hospital_id
from common.messages import Seen
from common.policy import load_policy
from common.secagg.messages import UploadEnd
from common.state_folder import Owner
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.history import History, Told
from hospital_node import orders
from hospital_node.checkpoints import Progress, _pack
from hospital_node.config import NodeConfig
from hospital_node.ledger import Ledger
from hospital_node.ledger_anchor import Anchor
from hospital_node.personal import artefact
from hospital_node.personal_state import DITTO, FEDBN
from hospital_node.store import NodeStore
from tests.approvers import WEBER, Office, section
from tests.faults.test_backup import OWNER, settings
from tests.federation import NAME, SITES, Federation
from tests.learning import study
from tests.ledger_world import BEGUN, charge

SITE: Final = "va"
SOCKET: Final = shutil.ignore_patterns("health.sock")
HD: Final = HeaderDigest(bytes(range(32)))
SEEN: Final = Seen(RunId("r-1"), "pattern", 7, 2, released=False)


@dataclass(frozen=True)
class Kept:
    """What `keep` made, under `root`."""

    root: Path
    fed: Federation

    def coordinator(self, into: Path, which: str) -> CoordinatorConfig:
        """Copy a coordinator's state to `into` and return the settings of that copy."""
        shutil.copytree(self.root / which / "coordinator", into, dirs_exist_ok=True)
        return settings(self.fed).model_copy(update={"state_dir": str(into)})

    def node(self, into: Path) -> NodeConfig:
        """Copy a node's state, with something of every kind, and return its settings."""
        shutil.copytree(self.root / "node", into)
        config = NodeConfig.read(self.fed.plan.site_folder(SITE) / "node.yaml")
        changed = {
            "state_dir": str(into / "state"),
            "ledger_anchor": str(into / "anchor"),
            "policy": str(self.root / "policy.json"),
        }
        return config.model_copy(update=changed)


async def keep(root: Path) -> Kept:
    """Run a federation of two rounds once and keep what it left on its disks."""
    async with Federation(root / "fed", rounds=2) as fed:
        config = settings(fed)

        async def copy(_: str) -> None:
            _copy(fed, root / "open", config)

        fed.on_send(SITE, UploadEnd, copy, skip=1, late=True)
        await fed.run()
        await fed.until(lambda: all(fed.ended(site) for site in SITES))
    _copy(fed, root / "finished", config)
    History(root / "finished" / "coordinator").tell([Told(SITE, SEEN, "it began round 2")])
    _fill(root, fed)
    return Kept(root, fed)


def _copy(fed: Federation, into: Path, config: CoordinatorConfig) -> None:
    state = config.path(config.state_dir)
    while True:  # its disk thread may just be writing: such a copy is none of any moment
        before = (state / MARK_NAME).read_bytes()
        shutil.copytree(state, into / "coordinator")
        if (state / MARK_NAME).read_bytes() == before:
            break
        shutil.rmtree(into / "coordinator")
    shutil.copytree(fed.plan.site_folder(SITE) / "state", into / SITE, ignore=SOCKET)


def _fill(root: Path, fed: Federation) -> None:
    """Make a node's state in which every kind of file is there, as the node writes it."""
    state = root / "node" / "state"
    shutil.copytree(root / "open" / SITE, state)
    shutil.copytree(root / "finished" / SITE / "releases", state / "releases", dirs_exist_ok=True)
    state_folder.mark(state, Owner("hospital", NAME, SITE))
    anchors = root / "node" / "anchor"
    anchors.mkdir()
    values = np.arange(50, dtype=np.float32)
    small = study()
    flat = np.zeros(artefact._schema(small).parameters, np.float32)
    run = RunId("r-1")
    with NodeStore.open(state, OsEntropy()) as store:
        node = hospital_id(NAME, SITE)
        ledger = Ledger.open(
            store.ledgers, node, "heart", store, BEGUN, Anchor(anchors, node, "heart", store)
        )
        for number in (1, 2, 3):
            ledger.append(charge(number))
        store.save_sealed("pattern.train-patients", b"1,2,3")
        own = store.own(run)
        own.put(DITTO, values)
        own.stage(HD, {FEDBN: values})
        store.checkpoints.want(HD)
        store.checkpoints.save(HD, _pack([Progress(bytes(32), 3, {"w": values})]))
        artefact.save(store.personal_directory(run), small, flat, {"chosen": "own"})
        store.save_report(run, {"run_id": run, "metrics": {"auroc": 0.5}}, "<p>0.5</p>")
    clock = SystemClock()
    orders._record(state, "unlock", "pattern", "a test", clock)
    orders.keep_older(state, [SEEN, replace(SEEN, task="other")])
    Office(state, SITE, NAME, ConfigHash(bytes(32))).say(WEBER, Word.GRANT, clock.unix())
    policy = load_policy(fed.plan.site_folder(SITE) / "policy.yaml").value
    tree = policy.model_dump(mode="json", by_alias=True)
    tree["require"]["approval"] = _yaml(section(WEBER))
    (root / "policy.json").write_text(json.dumps(tree))


def _yaml(line: str) -> object:
    import yaml

    return yaml.safe_load(line)["approval"]


__all__ = ["OWNER", "Kept", "keep"]
