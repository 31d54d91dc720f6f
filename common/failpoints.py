"""Named places at every step that writes or sends, where a test has a process fail.

    failpoint("coordinator.facts.before_commit")       # a write
    if passes("node.send"): ...                        # a send, which a test may swallow

Unless something is armed both do nothing but look at one variable. Two things arm them:

* a simulation in one process installs a hook (`install`), which may raise;
* a real process reads `FEDCARE_FAILPOINTS` when it starts (`arm`), for example

      coordinator.facts.after_commit=kill@3, node.send=drop@2, node.file.before_fsync=error:EIO

  An action is `kill` (SIGKILL to itself), `exit` (at once, code 1), `pause` (SIGSTOP),
  `delay:MS`, `error:NAME` (an OSError of that errno) or `drop`; `@N` is the N-th time
  the place is reached (else the first), `@N+` that and every later time.

Only a source checkout can be armed: an installed distribution refuses to start with the
variable set, so no test switch of ours exists at a hospital.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Final, TypeAlias

from common.errors import ConfigError

VARIABLE: Final = "FEDCARE_FAILPOINTS"

POINTS: Final[Mapping[str, str]] = {
    # Coordinator: the store, one transaction each.
    "coordinator.run.before_commit": "a submission is not stored yet",
    "coordinator.run.after_commit": "it is, and nobody was told",
    "coordinator.facts.before_commit": "facts of a run are not stored yet, nor acted on",
    "coordinator.facts.after_commit": "they are stored, and nothing was sent",
    "coordinator.epoch.before_commit": "an epoch is not reserved yet",
    "coordinator.epoch.after_commit": "it is",
    "coordinator.release.before_commit": "a signed release is not stored yet",
    "coordinator.release.after_commit": "it is",
    "coordinator.end.before_commit": "a run is not marked as ended yet",
    "coordinator.end.after_commit": "it is",
    # Coordinator: files.
    "coordinator.spool.before_write": "a chunk of an upload came",
    "coordinator.spool.after_write": "it was written, not flushed",
    "coordinator.spool.before_fsync": "a whole upload is there, not durable",
    "coordinator.spool.after_fsync": "its bytes are durable, its name is not",
    "coordinator.object.before_write": "a part of a model was made",
    "coordinator.object.before_fsync": "a whole model was written, not flushed",
    "coordinator.object.before_rename": "its bytes are durable, under no name",
    "coordinator.object.after": "it is durable under its name",
    # Commands beside the coordinator.
    "backup.before_write": "a block of a backup is about to be written",
    "backup.before_rename": "all of a backup is durable, under no name",
    "restore.before_write": "a block of a restored file is about to be written",
    "restore.before_rename": "all is restored but what says whose the state is",
    # Coordinator: sending.
    "coordinator.sum.before": "a sum is about to be opened",
    "coordinator.send": "a message of the control stream is about to go",
    "coordinator.receipt": "a stored upload is about to be acknowledged",
    "coordinator.download": "a piece of a model is about to go",
    # Node: small files (sessions, decisions, own tensors, heads of ledgers, reports).
    "node.file.before_write": "nothing is written",
    "node.file.before_fsync": "written beside the former file, not flushed",
    "node.file.before_rename": "durable beside the former file",
    "node.file.after": "it took the former file's place, durably",
    # Node: the masked vector, the ledger, models.
    "node.vector.before_write": "a block of the masked vector was made",
    "node.vector.before_fsync": "all of it is written, not flushed",
    "node.vector.before_rename": "its bytes are durable, under no name",
    "node.vector.undo": "a vector that failed is about to be removed",
    "node.vector.after": "it has its name; the session does not tell of it yet",
    "node.checkpoint.after": "how far training is lies on disk, sealed; it goes on",
    "node.ledger.before_write": "a charge is not written",
    "node.ledger.before_fsync": "it is written, not flushed",
    "node.ledger.undo": "a charge that failed is about to be taken back",
    "node.ledger.after": "it is durable, and nothing was released",
    "node.anchor.before_write": "a mark outside the state directory is not written",
    "node.anchor.before_fsync": "it is written, not flushed",
    "node.anchor.after": "it is durable",
    "node.model.before_write": "a piece of a model came and was checked",
    "node.model.before_rename": "all of it came, under no name",
    "node.model.after": "it has its name",
    # Node: sending.
    "node.send": "a message of the control stream is about to go",
    "node.upload": "a chunk of the masked vector is about to go",
    "node.receipt": "the upload was acknowledged; the session does not know yet",
}
"""Every place, and what is true there. A test holds the code against it."""

Hook: TypeAlias = Callable[[str], bool]
"""Told which place is reached; False: what would be sent there is lost."""

_hook: Hook | None = None


def failpoint(name: str) -> None:
    """Say that the place `name` of `POINTS` is reached; fails as armed."""
    if _hook is not None:
        _hook(name)


def passes(name: str) -> bool:
    """As `failpoint`, before something is sent; False: it is lost on the way."""
    return _hook is None or _hook(name)


def install(hook: Hook | None) -> None:
    """Have `hook` told of every place in this process; None takes it away."""
    global _hook  # noqa: PLW0603 - one process, one hook, and no cost where there is none
    _hook = hook


# --- real processes ---------------------------------------------------------------------------

_ORDER: Final = re.compile(
    r"(?P<point>[a-z_.]+)=(?P<act>kill|exit|pause|drop|delay:\d{1,6}|error:E[A-Z]{2,12})"
    r"(@(?P<at>\d{1,6})(?P<on>\+?))?"
)


@dataclass(frozen=True, slots=True)
class Order:
    """What happens at one place: `act` at its reach number `at`, and on if `on`."""

    point: str
    act: str
    at: int = 1
    on: bool = False

    def __str__(self) -> str:
        return f"{self.point}={self.act}@{self.at}{'+' if self.on else ''}"


def arm(environ: Mapping[str, str]) -> None:
    """Install what the environment asks for; nothing where it does not.

    Raises:
        ConfigError: BAD_VALUE, it asks for something that is not there, or this is an
            installed distribution and not a source checkout.
    """
    text = environ.get(VARIABLE, "")
    if not text:
        return
    if not _is_checkout():
        raise ConfigError(
            "BAD_VALUE",
            f"{VARIABLE} is set, and this is no source checkout: it makes processes fail",
            fix=f"Take {VARIABLE} out of the environment; it is for tests of FedCare itself.",
        )
    install(_Armed(parse(text)))


def parse(text: str) -> tuple[Order, ...]:
    """Return the orders of `FEDCARE_FAILPOINTS`.

    Raises:
        ConfigError: BAD_VALUE.
    """
    orders = []
    for part in text.split(","):
        found = _ORDER.fullmatch(part.strip())
        if found is None or found["point"] not in POINTS:
            raise ConfigError("BAD_VALUE", f"{VARIABLE}: {part.strip()!r} is no place and action")
        act = found["act"]
        if act.startswith("error:") and not hasattr(errno, act[6:]):
            raise ConfigError("BAD_VALUE", f"{VARIABLE}: {act[6:]} is no errno")
        orders.append(Order(found["point"], act, int(found["at"] or 1), bool(found["on"])))
    return tuple(orders)


class _Armed:
    """Counts how often each place is reached, and acts when its turn has come."""

    def __init__(self, orders: tuple[Order, ...]) -> None:
        self._orders = orders
        self._reached: Counter[str] = Counter()

    def __call__(self, name: str) -> bool:
        self._reached[name] += 1
        return all(
            _act(order.act, name)
            for order in self._orders
            if order.point == name and self._is_due(order)
        )

    def _is_due(self, order: Order) -> bool:
        reached = self._reached[order.point]
        return reached >= order.at if order.on else reached == order.at


def _act(act: str, name: str) -> bool:
    kind, _, how = act.partition(":")
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(1)
        case "pause":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "delay":
            time.sleep(int(how) / 1000)
        case "error":
            number = int(getattr(errno, how))
            raise OSError(number, f"{os.strerror(number)} (ordered at {name})")
        case _:
            pass
    return kind != "drop"


def _is_checkout() -> bool:
    """Whether this code is installed in place, as `make install` does."""
    try:
        url = metadata.distribution("fedcare").read_text("direct_url.json")
        return url is not None and json.loads(url)["dir_info"]["editable"] is True
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return False
