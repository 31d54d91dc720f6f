"""Is the node well: the answers it gives; `hospital_node.ask_health` asks for them.

The process as a whole is well while its event loop turns and its store takes writes: the
check itself makes the loop rewrite the status file. The link is well while the coordinator
has welcomed the node. A node without its coordinator is well: it dials again by itself.
"""

from __future__ import annotations

from typing import Protocol

from common.clock import Clock
from common.pulse import Pulse
from common.transport.ask import LINK, WHOLE
from common.transport.health import HealthServicer
from hospital_node.picture import Picture


class Patient(Protocol):
    """What is asked of a node."""

    @property
    def connected(self) -> bool:
        """Whether the coordinator has welcomed it."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        ...

    def store_writes(self) -> bool:
        """Write something and say whether that went well."""
        ...

    def picture(self) -> Picture:
        """Return what metrics show."""
        ...


class Standing:
    """How a node is, for its socket and its HTTP port."""

    def __init__(self, node: Patient, clock: Clock) -> None:
        self._node = node
        self.health = HealthServicer({WHOLE: self._works, LINK: self._linked})
        self.pulse = Pulse(node.picture, clock)

    def _works(self) -> bool:
        return not self._node.stopping and self._node.store_writes()

    def _linked(self) -> bool:
        return not self._node.stopping and self._node.connected
