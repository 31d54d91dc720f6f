"""Marked values of a hospital run through a whole federation, and none of them comes out.

Four hospitals with real tables, nodes and training, one real coordinator, in one process. The
tables hold marked cells, patients, headings and file names; keys and updates are taken from
the running nodes. There are errors too: a training that crashes, a cell that cannot be read,
a column that is not there, a study that the policy refuses. Then everything that left a
hospital is searched: each message as it was encoded, the logs of both sides, metrics,
status, and every file that the coordinator keeps.

A hospital's own log may name its own file and column, for its engineers, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.events import Event
from common.logs import make_log
from common.messages import UploadChunk, UploadStart
from common.secagg.messages import Commit, Refused, UploadEnd
from common.study import parse_study
from common.views import RunPhase
from common.wire import NodeStep, encode_node, encode_upload
from coordinator.metrics import CoordinatorMetrics
from hospital_node import learning, pipeline
from hospital_node.metrics import NodeMetrics
from researcher.local import SitePlan
from tests.federation import SITES, Federation
from tests.security.canaries import (
    Canaries,
    binary_forms,
    integer_forms,
    number_forms,
    text_forms,
)

MARKED: Final = "va"
"""The hospital whose counts are looked for."""

ROWS: Final = 10_007
AGES: Final = (4717.58734219, 4718.19283746, 4719.73205081, 4721.41421356)
PATIENT: Final = "PT-QUOKKA-7731"
BAD_CELL: Final = "unreadable-axolotl"
UNREAD: Final = "Zbigniew-Canary"
FOLDER: Final = "ward-osprey"
FILE: Final = "kestrel-export.csv"
COLUMNS: Final = {"age": "kestrel_age", "pid": "kestrel_pid"}
CRASH: Final = "crashed-on-wombat"

STUDY: Final = """\
schema: fedcare.study/v1
id: canary
purpose: research
dataset: heart
owner: {name: A, organisation: researcher}
features: [{name: FEATURE, type: float, impute: mean}]
target: {type: binary, name: sick}
split: {test: 0.3, seed: 1}
patient_key: pid
model: {kind: logistic}
train: {local_steps: 2}
federation: {rounds: 2, min_sites: 3, round_deadline: 30s}
privacy: {secure_aggregation: {suite: classical}}
"""
GOOD: Final = STUDY.replace("FEATURE", "age")


def write_table(folder: Path, site: str) -> Path:
    """Write a hospital's table, the marked cells in its first rows."""
    rng = np.random.Generator(np.random.PCG64(len(site)))
    count = ROWS if site == MARKED else 83
    path = folder / site / FOLDER / FILE
    path.parent.mkdir(parents=True)
    lines = [f"{COLUMNS['age']},{COLUMNS['pid']},sick,broken,name"]
    for row in range(count):
        age = AGES[row] if row < len(AGES) else round(float(rng.normal(4700, 20)), 3)
        sick = int(rng.random() < 0.4)
        pid = f"{PATIENT}-{row}" if row < len(AGES) else f"p{row}"
        lines.append(f"{age},{pid},{sick},{BAD_CELL},{UNREAD}")
    path.write_text("\n".join([*lines, ""]))
    return path


class Watched(Federation):
    """A federation that keeps what leaves its hospitals."""

    def __init__(self, root: Path) -> None:
        clinics = [
            SitePlan(site, write_table(root / "tables", site), in_place=True, columns=COLUMNS)
            for site in SITES
        ]
        super().__init__(root / "f", clinics=clinics, study=GOOD)
        self.node_metrics, self.own_metrics = NodeMetrics(), CoordinatorMetrics(SITES)
        self.log = make_log(
            self.words, form="json", level="debug", observe=self.node_metrics.observe
        )
        self.own_log = make_log(
            self.own_words, form="json", level="debug", observe=self.own_metrics.observe
        )
        self.sent: list[tuple[str, bytes, object]] = []

    async def before(self, site: str, message: object) -> None:
        """Keep what a node is about to send, as it is encoded."""
        if isinstance(message, UploadStart | UploadChunk | UploadEnd):
            self.sent.append((site, encode_upload(message).SerializeToString(), message))
        elif isinstance(message, get_args(NodeStep)):
            self.sent.append((site, encode_node("canary", message).SerializeToString(), message))
        await super().before(site, message)

    async def ask(self, text: str) -> None:
        """Submit a study and wait until its run is over."""
        self.study = parse_study(text)
        await self.submit(f"request-{self.study.id}")
        await self.finish()

    def outside(self) -> Iterator[tuple[str, bytes]]:
        """Yield everything that is not a hospital's own."""
        for number, (site, data, message) in enumerate(self.sent):
            yield f"message {number} of {site}, {type(message).__name__}", data
        yield "the coordinator's log", self.own_words.getvalue().encode()
        yield "the node's metrics", self.node_metrics.text().encode()
        yield "the coordinator's metrics", self.own_metrics.text().encode()
        for path in sorted(self.plan.coordinator_folder.rglob("*")):
            if path.is_file():
                yield f"the coordinator's {path.name}", path.read_bytes()

    def inside(self) -> Iterator[tuple[str, bytes]]:
        """Yield what a hospital's own people see."""
        yield "a node's log", self.words.getvalue().encode()
        for site, node in self.nodes.items():
            yield f"the status of {site}", json.dumps(node.status()).encode()


@pytest.fixture
def federation(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def watch_updates(monkeypatch: pytest.MonkeyPatch, canaries: Canaries) -> None:
    """Take every update and loss as a canary; the first training of one hospital crashes."""
    real = pipeline.make_contribution
    crashed: list[str] = []

    def recorded(study: Any, site: str, *rest: Any) -> Any:  # noqa: ANN401 - as the real one
        if site == "hungarian" and not crashed:
            crashed.append(site)
            raise ValueError(f"{CRASH}: {AGES[0]}")
        source = real(study, site, *rest)
        values = [float(value) for value in source.values]
        canaries.add(f"an update of {site}", number_forms(values))
        canaries.add(f"a loss of {site}", number_forms(source.metrics))
        return source

    monkeypatch.setattr(pipeline, "make_contribution", recorded)


def watch_words(monkeypatch: pytest.MonkeyPatch, canaries: Canaries) -> None:
    """Take every vector before it is masked as a canary."""
    real = learning.StudyWork.make

    def recorded(*arguments: Any) -> Any:  # noqa: ANN401 - as the real one
        source = real(*arguments)
        words = np.empty(source.words, f"<u{4 if arguments[1].w == 32 else 8}")
        source.fill(words, 0)
        canaries.add("a vector without masks", integer_forms(words.view(f"<i{words.itemsize}")))
        return real(*arguments)

    monkeypatch.setattr(learning.StudyWork, "make", recorded)


def watch_keys(fed: Watched, canaries: Canaries) -> None:
    """Take the certificate's key, the sealing key and a session's keys as canaries."""
    folder = fed.plan.site_folder(MARKED)
    key = serialization.load_pem_private_key((folder / "tls.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value.to_bytes(32, "big")
    canaries.add("the certificate's key", binary_forms(secret))
    for line in (folder / "tls.key").read_text().splitlines()[1:2]:
        canaries.add("the certificate's key", text_forms(line))

    async def take(site: str) -> None:
        state = fed.nodes[site]._tasks["canary"].state
        assert state.session is not None
        assert state.session.open is not None
        seeds = {
            "a session key": state.session.key.seed.reveal(),
            "a coefficient seed": state.session.open.a.reveal(),
            "a chain key": state.session.peers[0].chain.reveal(),
        }
        for name, seed in seeds.items():
            canaries.add(name, binary_forms(seed))
        sealing = (fed.plan.site_folder(site) / "state" / "node.key").read_bytes()
        canaries.add("the sealing key", binary_forms(sealing))

    fed.on_send(MARKED, Commit, take)


def of_the_tables() -> Canaries:
    """Return the canaries that stand in the tables' cells and in what they lead to."""
    found = Canaries()
    found.add("a cell", number_forms(AGES, marked=True))
    for name, text in (
        ("a patient", PATIENT), ("a bad cell", BAD_CELL), ("an unread cell", UNREAD),
        ("a folder", FOLDER), ("words of a crash", CRASH),
    ):  # fmt: skip
        found.add(name, text_forms(text))
    found.counts = {"the rows": ROWS, "the training rows": 7_004, "the test rows": 3_003}
    return found


def names() -> Canaries:
    """Return what a hospital's own log may name, and nobody else's."""
    found = Canaries()
    for text in (FILE, *COLUMNS.values()):
        found.add(text, text_forms(text))
    return found


def leaks(fed: Watched, canaries: Canaries) -> list[str]:
    """Search everything."""
    found: list[str] = []
    for place, data in fed.outside():
        found += canaries.found_in(place, data) + names().found_in(place, data)
    for place, data in fed.inside():
        found += canaries.found_in(place, data)
    for site, _, message in fed.sent:
        found += canaries.found_in_fields(f"a {type(message).__name__} of {site}", message)
    return found


async def test_no_canary_leaves_a_hospital(
    federation: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, canaries = federation, of_the_tables()
    watch_words(monkeypatch, canaries)
    watch_updates(monkeypatch, canaries)
    async with fed:
        watch_keys(fed, canaries)
        run = await fed.run()
        assert run.phase is RunPhase.FINISHED, run.reason
        await fed.until(lambda: all(fed.ended(site) for site in SITES))
        await fed.ask(STUDY.replace("FEATURE", "broken").replace("id: canary", "id: bad-cell"))
        await fed.ask(STUDY.replace("FEATURE", "absent").replace("id: canary", "id: no-column"))
        await fed.ask(GOOD.replace("research\n", "sale\n").replace("id: canary", "id: refused"))
        assert leaks(fed, canaries) == []
    log = fed.words.getvalue()
    for happened in ("DATA_VALUE", "DATA_COLUMN", "POLICY_PURPOSE", "INTERNAL", FILE):
        assert happened in log, f"the test did not provoke {happened}"
    for kind in ("an update of va", "a loss of va", "a vector without masks", "a session key"):
        assert canaries.forms[kind]
    check_that_leaks_are_seen(fed, canaries)


def check_that_leaks_are_seen(fed: Watched, canaries: Canaries) -> None:
    """Plant one leak after the other, each where a real one would be."""
    for name, forms in canaries.forms.items():
        for form in forms:
            assert canaries.found_in("", b"x" + form + b"y") != [], name
    before = len(leaks(fed, canaries))
    assert before == 0
    fed.log.warning(Event.STUDY_REFUSED, detail=f"row 3 holds {AGES[1]}")
    assert leaks(fed, canaries) == ["a cell in a node's log"]
    fed.own_log.warning(Event.STUDY_REFUSED, detail=f"{FILE} of {ROWS} rows")
    assert f"{FILE} in the coordinator's log" in leaks(fed, canaries)
    assert "the rows in the coordinator's log" in leaks(fed, canaries)
    planted = Refused(b"", "DATA_VALUE", f"column {COLUMNS['age']} of {PATIENT}-2")
    fed.sent.append((MARKED, encode_node("canary", planted).SerializeToString(), planted))
    found = [leak for leak in leaks(fed, canaries) if "Refused" in leak]
    assert len(found) == 2
    counted = replace(planted, detail="", hd=b"")
    fed.sent.append((MARKED, b"", (counted, 7_004)))
    assert "the training rows in a tuple of va" in leaks(fed, canaries)


async def test_a_node_that_tells_what_is_wrong_with_its_cells_is_found_out(
    federation: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same search with a defect planted in the product: details of data errors leave."""
    monkeypatch.setattr(learning, "public_detail", lambda failure: failure.detail)
    async with federation as fed:
        await fed.ask(STUDY.replace("FEATURE", "absent").replace("id: canary", "id: no-column"))
        found = leaks(fed, of_the_tables())
    assert any(FILE in leak and "StudyDecision" in leak for leak in found)
    assert any(FILE in leak and "coordinator's log" in leak for leak in found)
