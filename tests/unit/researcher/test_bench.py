from __future__ import annotations

import hashlib
import os
import socket
import threading

import numpy as np
import pytest

from common.errors import ConfigError
from common.layouts import round_layout
from common.manifest import RoundEntry
from common.models.vector import whole
from common.quantise import quantise_value
from common.secagg.header import RoundKind, quant_bound
from researcher.bench import BenchPlan, expected_sum, versions, wire_per_round
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
        (BenchPlan(4, 10, 1, dp="hospital"), "NOT_SUPPORTED", "adds no noise"),
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
        pytest.skip("no such address family here")
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
        pytest.skip("the kernel gives no socket counters here")
    assert found.sockets == 1
    assert 2_000_000 <= found.sent <= 2_060_000
    assert 1000 <= found.received <= 60_000
