"""Real nodes with tables, ledgers and noise, and the coordinator in memory of `node_world`.

Before a chunk is taken, the coordinator looks into the ledger on the uploading node's disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from common import layouts, statistics
from common.entropy import CountingEntropy
from common.ids import HeaderDigest, NodeId, Sha256, site_name
from common.logs import make_log
from common.messages import StudyOffer, UploadChunk
from common.model_file import model_header
from common.policy import parse_policy
from common.privacy.accountant import epsilon
from common.secagg import coordinator as co
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.ring import words_of
from common.site import load_site
from common.study import Study, canonical_json, config_hash
from common.vectors import model_digest
from hospital_node.driver import Node, NodeParts
from hospital_node.learning import HospitalDesk
from hospital_node.ledger import look
from hospital_node.ledger_lines import Entries
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import StoreReader
from tests.node_world import RUN, TASK, MemoryCoordinator, World, node_id
from tests.private_study import private_study

POLICY = """\
schema: fedcare.policy/v1
site: SITE
federation: {id: sim, ca_sha256: "PIN", members: [h1, h2, h3, h4]}
coordinator: {address: "localhost:8443"}
allow: {purposes: [research], owners: [uni-x], datasets: [heart], model_kinds: [logistic],
  weights: [equal]}
require: {min_cohort: 3, min_sites: 3, colluders: 1, dp: {epsilon_total: TOTAL}}
"""
SITE = """\
schema: fedcare.site/v1
id: NAME
data: [{name: heart, kind: csv, path: NAME.csv}]
"""


class PrivateCoordinator(MemoryCoordinator):
    """Opens noised rounds, and sees to it that what arrives has been charged."""

    def __init__(self, world: PrivateWorld, rounds: int) -> None:
        self.private = world
        self.seen: list[tuple[NodeId, HeaderDigest, float]] = []
        """For each chunk: who, which round, and the epsilon that the ledger said by then."""
        self.headers: list[Header] = []
        super().__init__(world, rounds)

    def _put_model(self) -> tuple[Sha256, Sha256]:
        return self._store(0.0)

    def _model_moves(self) -> None:
        self.model, self.stream = self._store(float(len(self.opened)))

    def _store(self, moved: float) -> tuple[Sha256, Sha256]:
        study = self.private.study
        schema = layouts.model_schema(study)
        model = layouts.first_model(study, statistics.without_statistics(study))
        model[layouts.constant_count(study) :] += moved / 8
        data = model.astype("<f4").tobytes()
        file = model_header(schema) + data
        address = Sha256(hashlib.sha256(file).digest())
        self.objects[address] = file
        return model_digest(schema, data), address

    def _start(self) -> None:
        layout = layouts.round_layout(self.private.study, RoundKind.TRAIN)
        self.spools = {}
        terms = co.RoundTerms(
            kind=RoundKind.TRAIN,
            model_sha256=self.model,
            layout_sha256=layout.schema.layout_sha256,
            d=layout.schema.words,
            c=1,
            ranges=(),
            w_max=self.private.study.federation.max_weight,
            deadline_ms=60_000,
            s_min=3,
            w=layout.ring_bits,
            rounding=Rounding.STOCHASTIC,
            dp=layout.dp,
        )
        members = tuple(sorted((node_id(site) for site in self.world.sites), key=str.encode))
        self._round(co.OpenRound(terms, members))
        assert self.round is not None
        assert self.round.header is not None
        self.headers.append(self.round.header)

    def chunk(self, node: NodeId, hd: HeaderDigest, chunk: UploadChunk) -> None:
        ledger = self.private.ledger(site_name(node))
        assert hd.hex() in ledger.rounds, "a byte left before its charge was on the disk"
        self.seen.append((node, hd, epsilon(ledger.spent(), 1e-5).epsilon))
        super().chunk(node, hd, chunk)

    def _open(self, opening: co.Open) -> None:
        assert opening.header.w == 32
        total = np.zeros(opening.header.d, np.uint32)
        for node in opening.survivors:
            total += words_of(bytes(self.spools[node]), 32)
        opening.plan.stream().apply(total, 0)
        signed = total.view(np.int32).astype(np.int64)
        self.opened.append((opening.header.r, opening.survivors, signed))
        digest = Sha256(hashlib.sha256(total.tobytes()).digest())
        self._round(co.SumOpened(digest, b""))


@dataclass
class PrivateWorld(World):
    """See `World`: four hospitals with tables of 40 patients, and a study with noise."""

    study: Study = field(default_factory=private_study)
    totals: dict[str, float] = field(default_factory=dict)
    """What a site's policy lets be spent, 10 unless told."""

    def __post_init__(self) -> None:
        study = private_study(TASK, rounds=self.rounds, epsilon=2.0)
        super().__post_init__()
        self.study = study
        self.canonical = canonical_json(study)
        self.config_hash = config_hash(study)
        self.offer = StudyOffer(RUN, self.canonical, self.config_hash, b"signed", (b"chain",))
        self.private = PrivateCoordinator(self, self.rounds)
        self.coordinator = self.private
        for place, site in enumerate(self.sites):
            rng = np.random.Generator(np.random.PCG64(place))
            rows = [f"{age:.1f},{int(age > 60)}" for age in rng.normal(60, 10, 40)]
            (self.root / f"{site}.csv").write_text("\n".join(["age,sick", *rows, ""]))
            (self.root / f"{site}.yaml").write_text(SITE.replace("NAME", site))

    def start(self, site: str, wrap: Callable[[NodeParts], NodeParts] | None = None) -> Node:
        def with_data(parts: NodeParts) -> NodeParts:
            total = repr(self.totals.get(site, 10.0))
            text = POLICY.replace("SITE", site).replace("PIN", "ab" * 32).replace("TOTAL", total)
            policy = parse_policy(text)
            log = make_log(self.log, form="json", level="debug", clock=self.clock)
            entropy = CountingEntropy(f"books/{site}/{self.starts[site]}".encode())
            books = Books(parts.store, node_id(site), Limits.of(policy), entropy, lambda: 1)
            manifest = load_site(self.root / f"{site}.yaml")
            desk = HospitalDesk(policy, manifest, log, books)
            whole = replace(parts, desk=desk, witnessed=books.witnessed)
            return whole if wrap is None else wrap(whole)

        return super().start(site, with_data)

    def ledger(self, site: str) -> Entries:
        """What the ledger on a site's disk says, whoever holds the directory."""
        reader = StoreReader(self.state_dir(site), CountingEntropy(b"reader"))
        return look(reader.ledgers, node_id(site), "heart", reader)

    def words(self) -> list[np.ndarray[Any, Any]]:
        """Every opened sum, int64."""
        return [total for _, _, total in self.coordinator.opened]
