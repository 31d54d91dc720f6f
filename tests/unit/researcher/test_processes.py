from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import RoundError
from researcher import processes
from researcher.processes import Children, Program, cpu_seconds, peak_rss_mb


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A program of its own, found through PYTHONPATH."""
    (tmp_path / "toy_program.py").write_text(
        "import os, signal, sys, time\n"
        "def main(arguments):\n"
        "    what = arguments[0]\n"
        "    print('hello', os.getppid(), flush=True)\n"
        "    if what == 'die':\n"
        "        print('error FC-2002 PORT_IN_USE: taken', file=sys.stderr)\n"
        "        print('fix: another \\x1b[31m one', file=sys.stderr)\n"
        "        return 4\n"
        "    if what == 'deaf':\n"
        "        signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "        print('deaf', flush=True)\n"
        "    block = bytearray(int(arguments[1]) if len(arguments) > 1 else 0)\n"
        "    block[:] = b'x' * len(block)\n"
        "    while True:\n"
        "        signal.pause()\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Program("toy_program", "main")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - it is another process that changes it
            await asyncio.sleep(0.01)


async def said(path: Path, word: str) -> None:
    await until(lambda: word in path.read_text())


async def test_a_child_that_dies_is_named_at_once_with_its_error(
    tmp_path: Path, program: Program
) -> None:
    async with Children(tmp_path / "logs") as children:
        await children.start("steady", ["run"], tmp_path, program)
        await children.start("brittle", ["die"], tmp_path, program)
        with pytest.raises(RoundError) as caught:
            async with children.guard():
                await asyncio.get_running_loop().create_future()  # would wait for ever
    assert "brittle" in caught.value.detail
    assert "FC-2002 PORT_IN_USE: taken" in caught.value.detail
    assert "\x1b" not in caught.value.detail + caught.value.fix
    assert str(tmp_path / "logs" / "brittle.log") in caught.value.fix


async def test_a_death_before_the_guard_is_noticed_too(tmp_path: Path, program: Program) -> None:
    async with Children(tmp_path / "logs") as children:
        child = await children.start("brittle", ["die"], tmp_path, program)
        await child.ended
        with pytest.raises(RoundError, match="brittle"):
            async with children.guard():
                await asyncio.get_running_loop().create_future()


async def test_an_outer_cancellation_is_not_taken_for_a_death(
    tmp_path: Path, program: Program
) -> None:
    async with Children(tmp_path / "logs") as children:
        await children.start("steady", ["run"], tmp_path, program)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), children.guard():
                await asyncio.get_running_loop().create_future()


async def test_leaving_ends_every_child_also_a_deaf_one(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    pids = []
    with contextlib.suppress(ZeroDivisionError):
        async with Children(tmp_path / "logs") as children:
            for what in ("run", "deaf"):
                child = await children.start(what, [what], tmp_path, program)
                pids.append(child.pid)
            await said(tmp_path / "logs" / "deaf.log", "deaf")
            raise ZeroDivisionError
    assert [gone(pid) for pid in pids] == [True, True]


async def test_one_child_can_be_stopped_and_is_then_not_missed(
    tmp_path: Path, program: Program
) -> None:
    async with Children(tmp_path / "logs") as children:
        await children.start("one", ["run"], tmp_path, program)
        other = await children.start("other", ["run"], tmp_path, program)
        async with children.guard():
            await children.stop("one")
            await asyncio.sleep(0)
        assert other.process.returncode is None


async def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path, program: Program) -> None:
    parent = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from researcher.processes import Children, Program\n"
        "async def main():\n"
        "    async with Children(Path(sys.argv[1])) as children:\n"
        "        toy = Program('toy_program', 'main')\n"
        "        child = await children.start('toy', ['run'], Path(sys.argv[1]), toy)\n"
        "        print(child.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    middle = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert middle.stdout is not None
    pid = int(await middle.stdout.readline())
    await said(tmp_path / "toy.log", "hello")
    middle.send_signal(signal.SIGKILL)
    await middle.wait()
    await until(lambda: gone(pid))


async def test_memory_is_the_high_water_mark_of_each_child(
    tmp_path: Path, program: Program
) -> None:
    size = 80 << 20
    async with Children(tmp_path / "logs") as children:

        def peak(name: str) -> float:
            return children.peak_rss_mb()[name]

        await children.start("small", ["run", "0"], tmp_path, program)
        await children.start("large", ["deaf", str(size)], tmp_path, program)
        await said(tmp_path / "logs" / "large.log", "deaf")
        await until(lambda: peak("large") > peak("small") + 79)
        await children.stop("small")
        assert set(children.peak_rss_mb()) == {"large"}
        os.kill(children["large"].pid, signal.SIGKILL)
        children["large"].stopping = True


def test_our_own_figures_are_those_of_the_kernel() -> None:
    before = cpu_seconds(os.getpid())
    total = sum(os.times()[:2])
    assert abs(before - total) < 1.0
    assert 5.0 < peak_rss_mb(os.getpid()) < 16_000.0
    assert cpu_seconds(2**22 + 1) == 0.0
    assert peak_rss_mb(2**22 + 1) == 0.0
