"""Faults B over real processes and mutual TLS: links that die, freeze, crawl and break.

Heartbeats are a second here, so a silent peer is one after three; the figures of the settings
that ship are measured in tests/faults/test_reconnects.py.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests import forked
from tests.faults.network import BEAT_S, CHUNK, CHUNK_WORDS, TIMING, Network, at, everybody, until
from tests.faults.proxy import Way
from tests.faults.record import record
from tests.federation import SITES
from tests.zygote import Zygote

pytestmark = pytest.mark.slow

ZYGOTE = Zygote(*forked.SERVING)


NOTICED_S: Final = 30.0
"""What is promised. With beats of a second it takes four: three of silence, and a look."""


WRONG: Final = {
    "cleveland": ("F17", "partition"),
    "hungarian": ("F19", "nothing goes up"),
    "switzerland": ("F19", "nothing comes down"),
    "va": ("F21", "frozen"),
}
"""What happens to each hospital's link, all at once."""


def _upset(net: Network, site: str, *, on: bool) -> None:
    proxy = net.proxies[site]
    match WRONG[site][1]:
        case "partition":
            (proxy.hold if on else proxy.go_on)()
        case "nothing goes up":
            (proxy.up.hold if on else proxy.up.go_on)()
        case "nothing comes down":
            (proxy.down.hold if on else proxy.down.go_on)()
        case _:
            net.signal(site, signal.SIGSTOP if on else signal.SIGCONT)


@pytest.mark.fault("F17")
@pytest.mark.fault("F19")
@pytest.mark.fault("F21")
async def test_links_that_die_in_an_upload_are_noticed_and_their_hospitals_still_count(
    tmp_path: Path,
) -> None:
    async with Network(tmp_path / "f", size=4 * CHUNK_WORDS) as net:
        for proxy in net.proxies.values():
            proxy.up.bytes_per_s = CHUNK // 2
        run = await net.submit()
        await net.log.until("round.opened")
        await until(lambda: all(net.spooled(site) >= CHUNK for site in SITES))
        began = time.time()
        for site in SITES:
            _upset(net, site, on=True)
        detection_s = {}
        for site, (_, fault) in WRONG.items():
            lost = [await net.log.until("link.lost", site=site)]
            if fault != "frozen":
                lost.append(await net.log_of(site).until("link.lost"))
            detection_s[site] = max(map(at, lost)) - began
        assert max(detection_s.values()) < NOTICED_S
        net.log.forget()
        healed = time.time()
        for site in SITES:
            net.proxies[site].up.bytes_per_s = None
            _upset(net, site, on=False)
        back = {site: await net.log.until("link.connected", site=site) for site in SITES}
        assert everybody(await net.finish(run))
        for site, (fault, _) in WRONG.items():
            record(
                fault, trials=1, failures=0, detection_s=detection_s[site],
                rejoin_s=max(0.0, at(back[site]) - healed),
            )  # fmt: skip


@pytest.mark.fault("F21")
async def test_a_frozen_coordinator_is_noticed_by_every_hospital_and_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    async with Network(tmp_path / "f", size=4 * CHUNK_WORDS) as net:
        net.proxies["va"].up.bytes_per_s = 2 * CHUNK
        run = await net.submit()
        await net.uploading("va", CHUNK)
        began = time.time()
        net.signal("coordinator", signal.SIGSTOP)
        lost = [await net.log_of(site).until("link.lost") for site in SITES]
        detection_s = max(map(at, lost)) - began
        assert detection_s < NOTICED_S
        healed = time.time()
        net.signal("coordinator", signal.SIGCONT)
        await until(
            lambda: all(len(net.log_of(site).lines("link.connected")) >= 2 for site in SITES)
        )
        back = [at(net.log_of(site).lines("link.connected")[1]) for site in SITES]
        assert everybody(await net.finish(run))
        record(
            "F21", trials=1, failures=0, coordinator_frozen_detection_s=detection_s,
            coordinator_frozen_rejoin_s=max(back) - healed,
        )  # fmt: skip


# --- beyond the deadline, below the quorum -------------------------------------------------------


@pytest.mark.fault("F18")
async def test_a_partition_beyond_the_deadline_costs_one_round_and_its_late_update_none(
    tmp_path: Path,
) -> None:
    deadline_s = 8.0
    async with Network(
        tmp_path / "f", size=CHUNK_WORDS, rounds=2, deadline=f"{deadline_s:g}s"
    ) as net:
        va = net.proxies["va"]
        va.up.bytes_per_s = CHUNK // 2
        run = await net.submit()
        await net.uploading("va", CHUNK // 4)
        va.hold()
        closed = await net.log.until("round.closed", round=1)
        assert (closed["survivors"], closed["dropped"]) == (3, ["va"])
        va.up.bytes_per_s = None
        va.go_on()
        view = await net.finish(run)  # both sums are exact: nothing of the late update is in one
        first, second = view.history
        assert sorted(first.survivors) == ["cleveland", "hungarian", "switzerland"]
        assert sorted(second.survivors) == sorted(SITES)
        assert not net.log_of("va").lines("upload.finished", round=1)
        record(
            "F18", trials=1, failures=0, round_s=closed["seconds"], deadline_s=deadline_s,
            late_updates_counted=0,
        )  # fmt: skip


@pytest.mark.fault("F20")
async def test_below_the_quorum_nothing_is_opened_and_the_model_stays_as_it_was(
    tmp_path: Path,
) -> None:
    async with Network(tmp_path / "f", size=CHUNK_WORDS, deadline="8s") as net:
        away = [net.proxies[site] for site in ("switzerland", "va")]
        for proxy in away:
            proxy.up.bytes_per_s = CHUNK // 2
        run = await net.submit()
        await net.uploading("va", CHUNK // 4)
        for proxy in away:
            proxy.hold()
        voided = await net.log.until("round.voided")
        models = await net.models()
        for proxy in away:
            proxy.up.bytes_per_s = None
            proxy.go_on()
        view = await net.finish(run)
        first, *_, last = view.history
        assert (first.state, first.sum_sha256, last.state) == ("ABORTED", b"", "CLOSED")
        assert sorted(last.survivors) == sorted(SITES)
        assert len(models) == 1, "a voided round left a model"
        record(
            "F20", trials=1, failures=0, releases_below_quorum=0, voided_after_s=voided["seconds"]
        )


# --- slow lines ----------------------------------------------------------------------------------


@pytest.mark.fault("F22")
async def test_a_slow_line_delays_a_round_and_nobody_is_called_dead(tmp_path: Path) -> None:
    """256 kbit/s and 300 ms +- 100 ms each way, behind a hospital's proxy whose buffers are deep.

    Whatever is on one connection with a heartbeat stands in them before it: on a connection
    that carried the upload too, the hospital was silent for more than three heartbeats (found
    with half a chunk; a quarter fits into what is on its way between two of them).
    """
    timing = TIMING | {"gather": "60s"}
    async with Network(tmp_path / "f", size=CHUNK_WORDS // 2, timing=timing) as net:
        va = net.proxies["va"]
        for way in (va.up, va.down):
            way.latency_s, way.jitter_s = 0.3, 0.1
        await net.log.until("link.connected", site="va")
        va.up.bytes_per_s = 32_000
        run = await net.submit()
        view = await net.finish(run)
        assert everybody(view)
        deaths = len(net.log.lines("link.lost")) + len(net.log_of("va").lines("link.lost"))
        assert deaths == 0
        assert view.history[0].seconds > 3 * BEAT_S
        record("F22", trials=1, failures=0, round_s=view.history[0].seconds, false_deaths=deaths)


# --- connections that break ----------------------------------------------------------------------

BIG: Final = 4
LANES: Final = 2
"""Connections of a node that meets nothing: for control messages, and for what is bulky."""


def _overhead(sent: int, missing: int) -> float:
    """Return the bytes re-sent above what was missing and one chunk, in parts of the missing."""
    return max(0.0, (sent - CHUNK) / missing - 1.0)


async def _held(way: Way, arrived: Callable[[], int]) -> None:
    """Hold a way once two chunks and a half have passed, and wait until the two were stored.

    What a machine under load had not read yet would be lost with its connection: that would
    measure the load.
    """
    await until(lambda: way.bytes > 5 * CHUNK // 2)
    way.hold()
    await until(lambda: arrived() >= 2 * CHUNK)


@pytest.mark.fault("F11")
@pytest.mark.fault("F24")
async def test_what_breaks_on_its_way_up_or_down_sends_what_is_missing_and_no_more(
    tmp_path: Path,
) -> None:
    async with Network(tmp_path / "f", size=BIG * CHUNK_WORDS) as net:
        va, log = net.proxies["va"], net.log_of("va")
        await net.log.until("link.connected", site="va")
        va.up.bytes_per_s = va.down.bytes_per_s = 4 * CHUNK
        for way in (va.up, va.down):
            way.bytes = 0
        run = await net.submit()
        whole = BIG * CHUNK

        async def cut_off(way: Way, arrived: Callable[[], int]) -> tuple[int, int]:
            """Return the bytes that were missing, and where `way` stood."""
            await _held(way, arrived)
            missing, before = whole - arrived() // CHUNK * CHUNK, way.bytes
            broken = list(va.connections)
            va.reset()
            await until(lambda: not any(one in va.connections for one in broken))
            way.bytes_per_s = None
            way.go_on()
            return missing, before

        missing, before = await cut_off(va.down, net.received)
        await log.until("download.finished")
        down = va.down.bytes - before
        record(
            "F24", trials=1, failures=0, download_missing_bytes=missing,
            download_sent_again_bytes=down, download_overhead_share=_overhead(down, missing),
        )  # fmt: skip
        assert down <= 1.05 * missing + CHUNK
        missing, before = await cut_off(va.up, net.spooled)
        chunk = (await log.until("upload.resumed"))["chunk"]
        assert (BIG - chunk) * CHUNK <= missing
        await log.until("upload.finished")
        up = va.up.bytes - before
        for fault in ("F11", "F24"):
            record(
                fault, trials=1, failures=0, upload_missing_bytes=missing,
                upload_sent_again_bytes=up, upload_overhead_share=_overhead(up, missing),
            )  # fmt: skip
        assert up <= 1.05 * missing + CHUNK
        assert everybody(await net.finish(run))
        assert net.spooled() == 0, "bytes of the broken upload are left"


@pytest.mark.fault("F24")
async def test_what_travels_over_a_line_that_breaks_again_and_again_arrives(tmp_path: Path) -> None:
    """A reset after each N bytes, N random between 2.5 and 5 chunks, for uploads and downloads.

    What goes down is the model to train, and the model that came of it.
    """
    chance = random.Random(24)  # noqa: S311 - where a line breaks is no secret
    size = BIG * CHUNK
    async with Network(tmp_path / "f", size=size // 4, deadline="120s") as net:
        va = net.proxies["va"]
        await net.log.until("link.connected", site="va")
        va.up.bytes_per_s = va.down.bytes_per_s = 4 * CHUNK
        va.reset_after(3 * CHUNK)
        va.cut_after = lambda: chance.randint(5 * CHUNK // 2, 5 * CHUNK)
        started = va.up.bytes, va.down.bytes
        run = await net.submit()
        view = await net.finish(run)
        assert everybody(view)
        assert va.cuts >= 3
        up, down = va.up.bytes - started[0], va.down.bytes - started[1]
        record(
            "F24", trials=va.cuts, failures=0, resets=va.cuts,
            went_up_times=up / size, went_down_times=down / (2 * size),
        )  # fmt: skip
        assert up <= 1.5 * size
        assert down <= 1.5 * 2 * size


@pytest.mark.fault("F24")
async def test_a_flipped_byte_is_caught_by_tls_and_the_bytes_come_again(tmp_path: Path) -> None:
    """One on the way up in the first round, one on the way down in the second."""
    async with Network(tmp_path / "f", size=3 * CHUNK_WORDS, rounds=2) as net:
        va = net.proxies["va"]
        run = await net.submit()
        await net.log_of("va").until("download.finished")
        va.up.flip_next()
        await net.log.until("round.closed", round=1)
        va.down.flip_next()
        view = await net.finish(run)
        assert everybody(view)
        assert (va.up.flipped, va.down.flipped) == (1, 1)
        assert va.accepted > LANES, "the connection with the altered byte went on"
        record("F24", trials=2, failures=0, flipped_bytes_accepted=0)


@pytest.mark.fault("F24")
async def test_a_connection_of_which_one_end_is_gone_is_replaced(tmp_path: Path) -> None:
    """One that is truncated, and one of which only the coordinator's end was reset."""
    async with Network(tmp_path / "f", size=3 * CHUNK_WORDS) as net:
        va, other = net.proxies["va"], net.proxies["switzerland"]
        for proxy in (va, other):
            proxy.up.bytes_per_s = 2 * CHUNK
        run = await net.submit()
        await net.log.until("round.opened")
        await until(lambda: min(net.spooled("va"), net.spooled("switzerland")) >= CHUNK)
        va.truncate = True
        va.reset_after(1)
        other.half_open()
        assert everybody(await net.finish(run))
        assert va.accepted > LANES
        assert other.accepted > LANES
        record("F24", trials=2, failures=0)
