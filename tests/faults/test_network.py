"""Faults B over real processes and mutual TLS: links that die, freeze, crawl and break.

Heartbeats are a second here, so a silent peer is one after three; the figures of the settings
that ship are measured in tests/faults/test_network_defaults.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forked
from tests.faults.network import BEAT_S, CHUNK, CHUNK_WORDS, Network, at, everybody
from tests.faults.record import record
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

ZYGOTE = Zygote(*(name for name in forked.WORKING if name != "torch"
                  and not name.startswith("hospital_node.")), "hospital_node.grpc_link")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _zygote() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        forked.services_of(ZYGOTE, patch)
        patch.setenv("LOG_FORMAT", "json")
        yield
    ZYGOTE.close()


NOTICED_S = 5 * BEAT_S
"""Three beats of silence, the look at it once a beat, and the machine's own delays."""


def _upset(net: Network, fault: str, *, on: bool) -> None:
    proxy = net.proxies["va"]
    match fault:
        case "partition":
            (proxy.hold if on else proxy.go_on)()
        case "nothing goes up":
            (proxy.up.hold if on else proxy.up.go_on)()
        case "nothing comes down":
            (proxy.down.hold if on else proxy.down.go_on)()
        case _:
            net.signal("va", signal.SIGSTOP if on else signal.SIGCONT)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param("partition", marks=pytest.mark.fault("F17")),
        pytest.param("nothing goes up", marks=pytest.mark.fault("F19")),
        pytest.param("nothing comes down", marks=pytest.mark.fault("F19")),
        pytest.param("frozen node", marks=pytest.mark.fault("F21")),
    ],
)
async def test_a_link_that_dies_in_an_upload_is_noticed_and_its_hospital_still_counts(
    tmp_path: Path, fault: str, request: pytest.FixtureRequest
) -> None:
    async with Network(tmp_path / "f", size=4 * CHUNK_WORDS) as net:
        net.proxies["va"].up.bytes_per_s = 2 * CHUNK
        run = await net.submit()
        await net.uploading("va", CHUNK)
        began = time.time()
        _upset(net, fault, on=True)
        lost = await net.log.until("link.lost", site="va")
        detection_s = at(lost) - began
        assert detection_s < NOTICED_S
        net.log.forget()
        healed = time.time()
        _upset(net, fault, on=False)
        back = await net.log.until("link.connected", site="va")
        view = await net.finish(run)
        assert everybody(view)
        record(
            request.node.get_closest_marker("fault").args[0],
            trials=1,
            failures=0,
            detection_s=detection_s,
            rejoin_s=max(0.0, at(back) - healed),
        )
