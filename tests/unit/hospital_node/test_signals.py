"""How a serving node is ended: once in order, twice at once."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from common.certificates import Role
from common.pki import create_ca, issue
from tests.serving import ends_at_the_second, ends_in_order, said, serving

POLICY = """\
schema: fedcare.policy/v1
site: cleveland
federation: {id: heart, ca_sha256: "PIN", members: [cleveland, hungarian, va]}
coordinator: {address: "127.0.0.1:1"}
allow: {purposes: [research], owners: [uni-x], datasets: [heart], model_kinds: [logistic]}
"""

STUCK = """
def spoil():
    from hospital_node.driver import Node

    async def run(self, *_beside):
        print("running", flush=True)
        await self._stopping.wait()
        print("stopping", flush=True)
        await asyncio.Event().wait()

    Node.run = run
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    now = time.time()
    facts = create_ca(tmp_path / "pki", "heart", now_unix=now)
    node = tmp_path / "node"
    issue(tmp_path / "pki", Role.HOSPITAL, "cleveland", now_unix=now, out=node)
    (node / "policy.yaml").write_text(POLICY.replace("PIN", facts.sha256))
    (node / "node.yaml").write_text("schema: fedcare.node/v1\nsite: null\n")
    return node / "node.yaml"


async def start(config: Path, how: str) -> asyncio.subprocess.Process:
    return await serving(STUCK, how, "node", "serve", "--config", str(config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.fault("F16")
async def test_one_signal_ends_a_node_in_order_with_exit_code_0(
    config: Path, number: signal.Signals
) -> None:
    node = await start(config, "as it is")
    await said(node.stderr, b"link.retrying")
    await ends_in_order(node, number)


@pytest.mark.fault("F16")
async def test_a_second_signal_ends_a_node_that_does_not_come_to_its_end(config: Path) -> None:
    node = await start(config, "stuck")
    await said(node.stdout, b"running")
    assert await ends_at_the_second(node, signal.SIGTERM) == 0
