"""A hospital whose policy states every rule on a line of its own, and what it judges.

`judged` puts a study before the real desk, with a real table and a real ledger; `headed`
puts a header before the real protocol machine, with the floors that the policy's file
gives. `line_of` finds a key's line by its spelling alone, not by the code under test.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common import layouts
from common.entropy import CountingEntropy
from common.ids import Epoch, NodeId, RoundNo, SessionId, Sha256, hospital_id
from common.logs import make_log
from common.messages import Objection
from common.policy import parse_policy
from common.secagg import node as machine
from common.secagg.dp import NO_DP
from common.secagg.header import Header, Rounding, RoundKind, default_rounding
from common.secagg.keys import ChainKey, SessionKey, Suite
from common.secagg.node_state import HeaderReceived, LiveSession, NodeContext, NodeState, Peer
from common.secagg.params import SecAggParams
from common.secagg.session import EpochTerms
from common.site import load_site
from common.study import Study, canonical_json, config_hash, parse_study
from hospital_node.app import rules_of
from hospital_node.learning import HospitalDesk
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.store import NodeStore
from tests.simulation.secagg_harness import SimSigner, SimTrust
from tests.study_texts import altered

NAME: Final = "policy.yaml"
MEMBERS: Final = ("cleveland", "hungarian", "switzerland", "va")
OWN: Final = hospital_id("heart-network", "cleveland")
MONDAY_NOON: Final = 1_772_452_800
"""2026-03-02 12:00 UTC, a Monday."""

POLICY: Final = f"""\
schema: fedcare.policy/v1
site: cleveland
federation:
  id: heart-network
  ca_sha256: "{"ab" * 32}"
  members: [cleveland, hungarian, switzerland, va]
coordinator: {{address: "localhost:8443"}}
allow:
  purposes: [research]
  owners: [uni-x]
  datasets: [heart]
  model_kinds: [logistic, mlp]
  strategies: [fedavg]
  weights: [size_class, equal]
  tasks: [heart-open, heart-private]
  layouts:
    - {{preprocess.centre: [1], preprocess.scale: [1], preprocess.impute: [1],
        layers.0.weight: [1, 1], layers.0.bias: [1]}}
  suites: [hybrid, classical]
  ring_bits: [32, 64]
require:
  min_cohort: 3
  min_sites: 3
  colluders: 1
  allow_two_party: false
  dp:
    modes: [none, patient-distributed, hospital]
    epsilon_per_study: 2.0
    epsilon_total: 3.0
    delta: 1.0e-3
    max_clip: 5.0
    min_noise_multiplier: 0.5
release:
  min_cell: 10
  site_metrics: false
limits:
  parameters: 1000
  rounds: 20
  local_steps: 50
  local_epochs: 5
  batch: 64
  round_deadline: 1h
  upload_bytes: 1048576
hours: {{}}
"""

_STUDY: Final = """\
schema: fedcare.study/v1
id: heart-open
purpose: research
dataset: heart
owner: {name: Somebody, organisation: uni-x}
features: [{name: age, type: float, range: [0, 120]}]
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
patient_key: null
normalise: none
model: {kind: logistic}
train: {optimiser: sgd, lr: 0.1, batch: 16, local_steps: 2}
federation:
  strategy: {name: fedavg}
  weights: equal
  rounds: 4
  min_sites: 3
  round_deadline: 1m
evaluate: {metrics: [accuracy], site_metrics: false}
"""
OPEN: Final = _STUDY + "privacy: {secure_aggregation: {colluders: 1, suite: hybrid}}\n"
PRIVATE: Final = (
    altered(_STUDY, "id: heart-open", "id: heart-private").replace(
        "local_steps: 2", "local_steps: 1"
    )
    + """\
privacy:
  secure_aggregation: {colluders: 1, suite: hybrid}
  dp: {mode: patient-distributed, epsilon: 1.0, delta: 1.0e-4, clip: 1.0, batch: 50,
       max_patients: 200, sampling: 0.5}
"""
)

TABLE: Final = "age,sick\n" + "".join(f"{20 + n / 2},{n % 2}\n" for n in range(80))

Change = tuple[str, str]


def changed(text: str, *changes: Change) -> str:
    """Return a text with some of its parts replaced, each of which stands in it once."""
    for old, new in changes:
        text = altered(text, old, new)
    return text


def line_of(policy: str, key: str) -> int:
    """Return the line on which the last word of a dotted key stands, as the text has it."""
    word = key.rsplit(".", 1)[-1] + ":"
    found = [n for n, line in enumerate(policy.splitlines(), 1) if line.strip().startswith(word)]
    if len(found) != 1:
        raise AssertionError(f"{word} stands on lines {found}")
    return found[0]


# --- before a study is accepted -------------------------------------------------------------


def books_of(folder: Path, policy: str) -> Books:
    """Return a real ledger under the limits of the policy."""
    loaded = parse_policy(policy, NAME)
    store = NodeStore.open(folder / "state", CountingEntropy(b"books"))
    limits = Limits.of(loaded)
    return Books(store, OWN, limits, CountingEntropy(b"list"), lambda: MONDAY_NOON)


def judged(
    folder: Path,
    study: str,
    policy: str = POLICY,
    table: str = TABLE,
    manifest: str = "",
    books: Books | None = None,
) -> tuple[Objection, ...]:
    """Return the real desk's objections to a study; `manifest`: more keys of the table."""
    (folder / "rows.csv").write_text(table)
    (folder / "site.yaml").write_text(
        "schema: fedcare.site/v1\nid: cleveland\n"
        f"data: [{{name: heart, kind: csv, path: rows.csv{manifest}}}]\n"
    )
    loaded, parsed = parse_policy(policy, NAME), parse_study(study)
    site, own = load_site(folder / "site.yaml"), None
    if books is None:
        own = books = books_of(folder, policy)
    desk = HospitalDesk(loaded, site, make_log(io.StringIO()), books)
    try:
        return desk.judge(canonical_json(parsed), config_hash(parsed))
    finally:
        if own is not None:
            own._store.close()


# --- after it was accepted ------------------------------------------------------------------


def header_of(study: Study, members: int = 4, r: int = 1, **numbers: int) -> Header:
    """Return the header that an honest coordinator would write; `numbers` go to `derive`."""
    layout = layouts.round_layout(study, RoundKind.TRAIN)
    params = SecAggParams.derive(
        members,
        numbers.get("c", study.colluders(len(MEMBERS))),
        s_min=numbers.get("s_min", study.federation.min_sites),
        ring_bits=layout.ring_bits,
    )
    bare = Header(
        session_id=SessionId(bytes(32)),
        r=RoundNo(r),
        kind=RoundKind.TRAIN,
        model_sha256=Sha256(b"m" * 32),
        layout_sha256=layout.schema.layout_sha256,
        config_hash=config_hash(study),
        members=tuple(
            (hospital_id("heart-network", site), b"n" * 32) for site in MEMBERS[:members]
        ),
        d=layout.schema.words,
        w=layout.ring_bits,
        c=params.c,
        q=params.q,
        s_min=params.s_min,
        t_h=params.t_h,
        kappa=params.kappa,
        ranges=(),
        w_max=study.federation.max_weight,
        rounding=Rounding.STOCHASTIC if layout.dp else default_rounding(members, layout.ring_bits),
        deadline_ms=round(study.federation.round_deadline * 1000),
        dp=layout.dp.terms(params.s_min - params.c) if layout.dp else NO_DP,
    )
    return replace(bare, ranges=layouts.header_ranges(layout, bare.bound, ()))


def headed(
    study: str,
    change: Callable[[Header], Header],
    policy: str = POLICY,
    suite: Suite = Suite.HYBRID,
    header: Callable[[Study], Header] = header_of,
) -> None:
    """Hand a changed header to the machine of a hospital that accepted `study`.

    Raises:
        Refusal: what the machine says.
    """
    parsed = parse_study(study)
    made = change(header(parsed))
    event = HeaderReceived(made, made.model_sha256)
    machine.handle(accepted(parsed, suite), event, context_of(policy))


def context_of(policy: str) -> NodeContext:
    """Return what the driver would pass with an event, on a Monday at noon."""
    loaded, keys = parse_policy(policy, NAME), _keys()
    public = {node: key.public_key().public_bytes_raw() for node, key in keys.items()}
    return NodeContext(
        entropy=CountingEntropy(b"node"),
        now_unix=MONDAY_NOON,
        signer=SimSigner(OWN, keys[OWN]),
        trust=SimTrust(public),
        rules=rules_of(loaded.value, loaded.source),
    )


def accepted(study: Study, suite: Suite = Suite.HYBRID) -> NodeState:
    """The state of a node with a live session of the study that has just said Ready."""
    peers = tuple(
        Peer(node, key.public_key().public_bytes_raw(), ChainKey(bytes(32)))
        for node, key in sorted(_keys().items())
        if node != OWN
    )
    session = LiveSession(
        session_id=SessionId(bytes(32)),
        terms=EpochTerms("heart-network", study.id, Epoch(1), config_hash(study), suite),
        expect=layouts.session_expectation(study, len(MEMBERS)),
        key=SessionKey.generate(CountingEntropy(b"session")),
        peers=peers,
        chain_r=RoundNo(1),
        next_r=RoundNo(1),
        not_after=MONDAY_NOON + 3600,
        nonce_r=RoundNo(1),
        nonce=b"n" * 32,
    )
    return NodeState(session=session)


def _keys() -> dict[NodeId, Ed25519PrivateKey]:
    return {
        hospital_id("heart-network", site): Ed25519PrivateKey.from_private_bytes(
            site.encode().ljust(32, b".")
        )
        for site in MEMBERS
    }
