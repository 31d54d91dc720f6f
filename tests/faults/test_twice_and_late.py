"""Faults C over gRPC and mutual TLS: messages that come twice, late, replayed, from two places."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import FedError
from common.ids import Sha256
from common.messages import DownloadChunk, UploadAck, UploadChunk, UploadStart
from common.secagg.messages import UploadEnd
from common.secagg.node_state import InputFinal, NodeEvent, Restarted
from hospital_node.jobs import Input, RoundJobs
from hospital_node.link import CoordinatorOut, Link, NodeOut
from tests import forked
from tests.faults.network import BEAT_S, Network, at, everybody, until
from tests.faults.record import record
from tests.federation import SITES, Federation
from tests.integration.test_federation_mtls import OverTls
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

ZYGOTE = Zygote(*forked.SERVING)


@dataclass(frozen=True)
class Upload:
    """One upload as it went over the link."""

    start: UploadStart
    chunks: tuple[UploadChunk, ...]
    end: UploadEnd


class Twice:
    """A link that does everything `times` times, and keeps each upload."""

    def __init__(self, inner: Link, times: int, kept: list[Upload]) -> None:
        self._inner = inner
        self._times = times
        self._kept = kept

    async def send(self, task: str, message: NodeOut) -> None:
        for _ in range(self._times):
            await self._inner.send(task, message)

    async def messages(self) -> AsyncIterator[tuple[str, CoordinatorOut]]:
        async for item in self._inner.messages():
            for _ in range(self._times):
                yield item

    async def upload(
        self, start: UploadStart, chunks: AsyncIterator[UploadChunk], end: UploadEnd
    ) -> UploadAck:
        whole = Upload(start, tuple([chunk async for chunk in chunks]), end)
        self._kept.append(whole)
        acks = [await again(self._inner, whole) for _ in range(self._times)]
        assert len(set(acks)) == 1, "the second answer is not the first's"
        return acks[0]

    def download(self, sha256: Sha256, offset: int) -> AsyncIterator[DownloadChunk]:
        return self._inner.download(sha256, offset)

    async def close(self) -> None:
        await self._inner.close()


async def again(link: Link, upload: Upload) -> UploadAck:
    """Send a kept upload over a link."""

    async def chunks() -> AsyncIterator[UploadChunk]:
        for chunk in upload.chunks:
            yield chunk

    return await link.upload(upload.start, chunks(), upload.end)


class Repeating(OverTls):
    """A federation over TLS whose nodes say everything `times` times."""

    def __init__(self, root: Path, times: int) -> None:
        super().__init__(root, rounds=2, suite="hybrid")
        self.times = times
        self.uploads: dict[str, list[Upload]] = {site: [] for site in SITES}

    async def _dial(self, site: str) -> Link:
        return Twice(await super()._dial(site), self.times, self.uploads[site])


@pytest.mark.fault("F31")
async def test_every_message_and_upload_twice_over_tls_has_one_effect(tmp_path: Path) -> None:
    async with Repeating(tmp_path / "f", 2) as fed:
        run = await fed.run()
        fed.check(run)  # the exact sums: no update is in one twice
        assert [len(entry.survivors) for entry in run.history] == [len(SITES)] * 2
        record("F31", trials=1, failures=0, double_effects=0)


@pytest.mark.fault("F32")
async def test_an_update_of_one_round_is_refused_in_the_next(tmp_path: Path) -> None:
    """The whole upload of round 1, its right signature on it, while round 2 collects and after."""
    async with Repeating(tmp_path / "f", 1) as fed:
        link = await OverTls._dial(fed, "va")  # beside the node's own: an upload needs no Hello
        refused: list[str] = []

        async def late() -> None:
            with pytest.raises(FedError) as failure:
                await again(link, fed.uploads["va"][0])
            refused.append(failure.value.name)

        await fed.submit()
        await fed.until(lambda: len(fed.uploads["va"]) == 2)
        await late()
        run = await fed.finish()
        await late()
        await link.close()
        fed.check(run)
        assert set(refused) <= {"UPLOAD_LATE", "OUT_OF_TURN", "CLOSED"}
        assert fed.count("call.refused", name=refused[0]) >= 1
        record("F32", trials=len(refused), failures=0, refused_share=1.0)


@pytest.mark.fault("F33")
async def test_a_recorded_session_replayed_byte_for_byte_is_refused_by_tls(tmp_path: Path) -> None:
    async with Network(tmp_path / "f") as net:
        va = net.proxies["va"]
        await net.log.until("link.connected", site="va")
        va.records = True
        va.reset()  # the recording begins with a handshake
        await until(lambda: bool(va.recordings))
        run = await net.submit()
        assert everybody(await net.finish(run))
        await net.federation.children.stop("va")
        await until(lambda: not va.connections)
        recordings = [data for data in va.recordings if len(data) > 2_000]
        assert recordings
        net.log.forget()
        for recorded in recordings:
            await va.replay(recorded)
        assert not net.log.lines("link.connected")
        assert not net.log.lines("call.refused"), "it got past the handshake"
        assert net.federation.children["coordinator"].process.returncode is None
        record("F33", trials=len(recordings), failures=0, refused_share=1.0)


@pytest.mark.fault("F35")
async def test_two_processes_with_one_certificate_are_seen_and_the_newer_stands(
    tmp_path: Path,
) -> None:
    async with Network(tmp_path / "f") as net:
        await net.log.until("link.connected", site="va")
        await until(lambda: len(net.log.lines("link.connected")) == len(SITES))
        folder = net.copy("va", "stolen")
        began = time.time()
        serve = ["node", "serve", "--config", "node.yaml"]
        await net.federation.children.start("stolen", serve, folder)
        replaced = await net.log.until("link.replaced", site="va")
        assert replaced["level"] == "warning"
        assert (replaced["at"], replaced["was"]) == ("127.0.0.1", "127.0.0.1")
        lost = await net.log_of("va").until("link.lost")
        assert lost["name"] == "UNREACHABLE"
        assert at(lost) - at(replaced) < 2 * BEAT_S, "it fell silent; it was not closed"
        await net.log_of("stolen").until("link.connected")  # the newer one stands
        await net.federation.children.stop("stolen")
        record("F35", trials=1, failures=0, detection_s=at(replaced) - began)
        run = await net.submit()
        assert everybody(await net.finish(run))


@pytest.mark.fault("F10")
async def test_a_connection_that_comes_as_an_input_is_final_makes_no_second_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same masks two vectors would give away how their inputs differ."""
    real = RoundJobs._make

    async def make(self: RoundJobs, prepared: Input) -> None:
        put = self._put

        def after_a_connection(event: NodeEvent) -> None:
            if isinstance(event, InputFinal):
                put(Restarted())
            put(event)

        self._put = after_a_connection
        try:
            await real(self, prepared)
        finally:
            self._put = put

    monkeypatch.setattr(RoundJobs, "_make", make)
    async with Federation(tmp_path / "fed") as fed:
        fed.check(await fed.run())
        made = [fed.count("round.training", site=site) for site in SITES]
        assert made == [fed.rounds] * len(SITES)
        record("F10", trials=sum(made), failures=0, second_drawings=0)
