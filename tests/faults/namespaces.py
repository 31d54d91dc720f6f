"""A host of its own for one process: a network namespace with one cable out (instrument I4).

    with Namespace() as host:                      # host.outside is this side's address
        host.drop("OUTPUT")                        # the kernel drops; nobody acknowledges
        host.clear()
        host.rate("256kbit")
        await start_fresh(arguments, folder, env, words, *host.inside)

Needs root, `ip` and `iptables`; `missing` says what the machine lacks, for a test to skip by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_HOSTS: Final = Path("/etc/netns")


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _works(*words: str) -> bool:
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


@cache
def missing() -> str:
    """Return why there can be no namespace here; empty if there can be."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "iptables", "tc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    try:
        with Namespace("probe") as host:
            host.drop("OUTPUT")
    except subprocess.CalledProcessError as error:
        return f"the kernel or the container refuses: {' '.join(error.cmd)}"
    return ""


@cache
def lacks(discipline: str) -> str:
    """Return why `tc` cannot do `netem` or `tbf` here; empty if it can."""
    options = {
        "netem": ["delay", "1ms"],
        "tbf": ["rate", "1mbit", "burst", "16kb", "latency", "1s"],
    }
    with Namespace("probe") as host:
        if _works(*host.inside, *_qdisc(host.cable), discipline, *options[discipline]):
            return ""
    return f"the kernel has no sch_{discipline}"


def _qdisc(cable: str) -> list[str]:
    return ["tc", "qdisc", "replace", "dev", cable, "root"]


class Namespace:
    """See the module; everything it made is gone after the block."""

    def __init__(self, role: str = "node") -> None:
        number = os.getpid() % 250
        self.name = f"fedcare-{role}-{os.getpid()}"
        kind = {"node": 213, "probe": 214}[role]
        self.outside = f"10.{kind}.{number}.1"
        self._own = f"10.{kind}.{number}.2"
        self._far = f"fc{kind}o{number}"
        self.cable = f"fc{kind}i{number}"
        self.inside = ("ip", "netns", "exec", self.name)

    def __enter__(self) -> Self:
        _run("ip", "netns", "add", self.name)
        try:
            pair = ("type", "veth", "peer", "name", self.cable, "netns", self.name)
            _run("ip", "link", "add", self._far, *pair)
            _run("ip", "addr", "add", f"{self.outside}/30", "dev", self._far)
            _run("ip", "link", "set", self._far, "up")
            _run(*self.inside, "ip", "addr", "add", f"{self._own}/30", "dev", self.cable)
            for link in ("lo", self.cable):
                _run(*self.inside, "ip", "link", "set", link, "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        _works("ip", "netns", "del", self.name)
        _works("ip", "link", "del", self._far)
        shutil.rmtree(_HOSTS / self.name, ignore_errors=True)

    # --- orders -----------------------------------------------------------------------------

    def drop(self, *chains: str, share: float = 1.0) -> None:
        """Drop packets of INPUT (nothing comes down), OUTPUT, or a share of them by chance."""
        some = () if share >= 1.0 else (
            "-m", "statistic", "--mode", "random", "--probability", f"{share:g}"
        )  # fmt: skip
        for chain in chains:
            _run(*self.inside, "iptables", "-A", chain, *some, "-j", "DROP")

    def clear(self) -> None:
        """Drop nothing any more."""
        _run(*self.inside, "iptables", "-F")

    def rate(self, rate: str) -> None:
        """Send no faster than this, with the short queue of a router."""
        shape = ("tbf", "rate", rate, "burst", "16kb", "latency", "400ms")
        _run(*self.inside, *_qdisc(self.cable), *shape)

    def netem(self, *words: str) -> None:
        """Delay, lose, reorder or double packets."""
        _run(*self.inside, *_qdisc(self.cable), "netem", *words)

    def full_rate(self) -> None:
        """Send as fast as the cable allows."""
        _run(*self.inside, "tc", "qdisc", "del", "dev", self.cable, "root")

    def hosts(self, lines: str) -> None:
        """Say what names mean in there: its own `/etc/hosts`, before or while a process runs."""
        folder = _HOSTS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "hosts").open("w", encoding="ascii") as file:  # the same file, as mounted
            file.write(f"127.0.0.1 localhost\n{lines}\n")
