from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError
from common.layouts import noise_terms, round_layout
from common.manifest import RoundEntry
from common.models.vector import whole
from common.quantise import quantise_value
from common.secagg.dp import check_terms
from common.secagg.header import RoundKind, quant_bound
from common.secagg.ring import Words
from common.study_privacy import charged
from researcher.bench import BenchPlan, expected_sum, versions, wire_per_round
from researcher.recording import FOLDER, RecordingSource, recorded_sum
from researcher.wirecount import WireCount, count


def entry(survivors: tuple[str, ...], dropped: tuple[str, ...] = (), r: int = 3) -> RoundEntry:
    return RoundEntry(
        position=1, kind="train", r=r, header="0" * 64, survivors=survivors, dropped=dropped,
        sum_sha256="0" * 64, model_sha256="", chain="0" * 64,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 999, 70_001])
@pytest.mark.parametrize("dropped", [(), ("site-03",)])
def test_the_expected_sum_is_the_plain_sum_of_quantised_integers(
    size: int, dropped: tuple[str, ...]
) -> None:
    plan = BenchPlan(sites=3, params=size, rounds=1)
    survivors = tuple(name for name in plan.names() if name not in dropped)
    members = len(plan.names())
    bound = quant_bound(members, 32)
    total = [0] * size
    for site in survivors:
        for place, value in enumerate(whole(site, 3, size).tolist()):
            total[place] += quantise_value(value, 1.0, bound)
    words = np.array([*total, bound * len(survivors)], np.int64).astype(np.int32)
    assert round_layout(plan.study(), RoundKind.TRAIN).schema.words == size + 1
    found = expected_sum(plan.study(), entry(survivors, dropped))
    assert found == hashlib.sha256(words.astype("<i4").tobytes()).hexdigest()


def test_another_round_or_another_survivor_gives_another_sum() -> None:
    study = BenchPlan(sites=3, params=100, rounds=1).study()
    everyone = entry(("site-01", "site-02", "site-03"))
    sums = {
        expected_sum(study, everyone),
        expected_sum(study, entry(everyone.survivors, r=4)),
        expected_sum(study, entry(("site-01", "site-02"), ("site-03",))),
        expected_sum(study, entry(("site-01", "site-03"), ("site-02",))),
    }
    assert len(sums) == 4


@pytest.mark.parametrize(
    ("plan", "name", "said"),
    [
        (BenchPlan(4, 10, 1, dp="some"), "BAD_ARGUMENT", "--dp"),
        (BenchPlan(1, 10, 1), "BAD_ARGUMENT", "--sites"),
        (BenchPlan(4, 0, 1), "BAD_ARGUMENT", "--params"),
        (BenchPlan(4, 10, 0), "BAD_ARGUMENT", "--rounds"),
        (BenchPlan(4, 10, 1, dropouts=2), "BAD_ARGUMENT", "at least 3"),
        (BenchPlan(2, 10, 1, dropouts=1), "BAD_ARGUMENT", "at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused(plan: BenchPlan, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        plan.check()
    assert caught.value.name == name
    assert caught.value.kind.exit_code == 4


def copies(folder: Path, header: str, ring_bits: int) -> list[Path]:
    """Three sites' copies of what they put in, with words near the ring's ends."""
    sites = []
    for number in range(3):
        rng = np.random.default_rng(number)
        words = rng.integers(0, 2**ring_bits - 1, 300_000, np.uint64, endpoint=True)
        site = folder / f"site-{number}"
        (site / FOLDER).mkdir(parents=True)
        (site / FOLDER / header).write_bytes(words.astype(f"<u{ring_bits // 8}").tobytes())
        sites.append(site)
    return sites


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_a_recorded_sum_is_the_ring_sum_of_the_survivors_copies(
    ring_bits: int, tmp_path: Path
) -> None:
    sites = copies(tmp_path, "ab", ring_bits)
    raw = [np.fromfile(site / FOLDER / "ab", f"<u{ring_bits // 8}").tolist() for site in sites]
    for chosen in ([0, 1, 2], [0, 2]):
        total = [sum(words) % 2**ring_bits for words in zip(*(raw[k] for k in chosen), strict=True)]
        digest = hashlib.sha256(np.array(total, f"<u{ring_bits // 8}").tobytes()).hexdigest()
        folders = [sites[k] for k in chosen]
        assert recorded_sum(folders, "ab", 300_000, ring_bits) == digest


def test_a_copy_that_is_missing_short_or_changed_is_not_exact(tmp_path: Path) -> None:
    sites = copies(tmp_path, "ab", 32)
    good = recorded_sum(sites, "ab", 300_000, 32)
    assert recorded_sum(sites, "cd", 300_000, 32) is None
    assert recorded_sum(sites, "ab", 299_999, 32) is None
    file = sites[1] / FOLDER / "ab"
    data = bytearray(file.read_bytes())
    data[1_000_000] ^= 1
    file.write_bytes(data)
    assert recorded_sum(sites, "ab", 300_000, 32) not in (None, good)


def test_a_recording_hands_on_the_words_and_keeps_them(tmp_path: Path) -> None:
    class Counting:
        words = 1000

        def fill(self, out: Words, word_offset: int) -> None:
            out[:] = np.arange(word_offset, word_offset + out.size)

    with (tmp_path / "kept").open("wb", buffering=0) as file:
        source = RecordingSource(Counting(), file)
        out = np.zeros(1000, np.uint32)
        for start in range(0, 1000, 128):
            source.fill(out[start : start + 128], start)
        assert file.closed
    assert out.tolist() == list(range(1000))
    assert np.fromfile(tmp_path / "kept", "<u4").tolist() == out.tolist()


@pytest.mark.parametrize(
    ("mode", "sigma"),
    [("patient-distributed", 46_341), ("hospital", 46_341), ("patient-local", 65_536)],
)
@pytest.mark.parametrize("rounds", [1, 20, 1000])
def test_a_bench_with_noise_states_what_it_charges_and_fits_every_limit(
    mode: str, sigma: int, rounds: int
) -> None:
    """The same noise whatever the rounds, so that rounds of any number can be compared."""
    plan = BenchPlan(4, 1_000_000, rounds, dp=mode)
    plan.check()
    study = plan.study()
    assert study.privacy.dp.mode == mode
    assert charged(study) <= (study.privacy.dp.epsilon or 0.0) <= charged(study) + 0.0101
    (terms,) = noise_terms(study, 4, 4)
    check_terms(terms, n=4, h=2, d=1_000_000, w=32)
    assert round(terms.sigma_loc) == sigma


def test_the_last_hospitals_drop_out() -> None:
    plan = BenchPlan(5, 10, 1, dropouts=1)
    plan.check()
    assert plan.dropping() == ["site-05"]


def test_uploads_count_by_rounds_and_downloads_by_rounds_and_the_release() -> None:
    assert wire_per_round(WireCount(sent=300, received=400, sockets=4), rounds=3) == 200
    assert wire_per_round(None, rounds=3) is None


def test_versions_name_what_a_figure_depends_on() -> None:
    assert {"fedcare", "grpcio", "python", "cpu", "kernel", "cores"} <= set(versions())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_kernels_counters_are_the_bytes_that_were_sent(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    try:
        listener = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("no such address family: needs IPv6 on loopback")
    port = listener.getsockname()[1]
    with listener, socket.create_connection((host, port)) as near, listener.accept()[0] as far:
        sender = threading.Thread(target=near.sendall, args=(bytes(2_000_000),))
        sender.start()
        got = 0
        while got < 2_000_000:
            got += len(far.recv(1 << 16))
        sender.join()
        far.sendall(bytes(1000))
        assert len(near.recv(1000, socket.MSG_WAITALL)) == 1000
        found = count(port, [os.getpid()])
        assert count(port, [1 << 22]) is None
    if found is None:
        pytest.skip("the kernel gives no socket counters: needs Linux with sock_diag")
    assert found.sockets == 1
    assert 2_000_000 <= found.sent <= 2_060_000
    assert 1000 <= found.received <= 60_000
