"""Every field of every message, altered in every way the wire lets through: refused or harmless.

A message that passes `common.wire` may still be nonsense. In each phase of a run, each
message of another phase or sender, with one thing in it changed, must be taken or
refused; any other exception would stop a process. And whatever was sent, the run ends
with the exact sums (the world checks each) once proper messages go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from common.errors import Refusal
from common.ids import NodeId
from common.secagg import node as nd
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Kem,
    KemForward,
    KeyAdvert,
    Propose,
    Ready,
    RecoverRequest,
    RecoverShares,
    Release,
    Roster,
    RoundResult,
    RoundStart,
)
from common.secret import Secret
from common.wire import decode_coordinator, decode_node, encode_coordinator, encode_node
from tests.run_world import VECTOR, RunWorld

STRANGER = NodeId("spiffe://sim/hospital/nobody")
LARGE = 2**63 - 1


def altered(value: Any) -> Iterator[Any]:  # noqa: ANN401 - any field
    """Yield variants of a value, one change each."""
    match value:
        case Enum():
            yield from type(value)
        case Secret():
            yield Secret(bytes(len(value)))
            yield Secret(b"\xff" * len(value))
        case bytes():
            yield bytes(len(value))
            yield b"\xff" * len(value)
            yield b""
        case bool():
            yield not value
        case int():
            yield from (0, 1, value + 1, LARGE)
        case float():
            yield from (0.0, -value, 1e300, 5e-324)
        case str():
            yield from ("", STRANGER)
        case tuple():
            yield from _altered_list(value)
        case _ if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                for part in altered(getattr(value, field.name)):
                    yield dataclasses.replace(value, **{field.name: part})  # type: ignore[type-var]
        case _:
            raise TypeError(type(value).__name__)


def _altered_list(value: tuple[Any, ...]) -> Iterator[Any]:
    yield ()
    if value:
        yield value[1:]
        yield value[::-1]
        yield (*value, value[0])
        yield (value[0],) * len(value)
        for part in altered(value[0]):
            yield (part, *value[1:])
        for part in altered(value[-1]):
            yield (*value[:-1], part)


def _wire_valid(messages: Iterator[Any], *, to_node: bool) -> Iterator[Any]:
    for message in messages:
        try:
            if to_node:
                yield decode_coordinator(encode_coordinator("pattern", message))[1]
            else:
                yield decode_node(encode_node("pattern", message))[1]
        except (Refusal, ValueError, TypeError):
            continue


class Recorded(RunWorld):
    """Keeps what every hospital said."""

    def __init__(self, study: str = VECTOR) -> None:
        self.heard: dict[type, tuple[NodeId, Any]] = {}
        super().__init__(study)

    def hear(self, node: NodeId, message: Any) -> None:  # noqa: ANN401
        self.heard[type(message)] = node, message
        super().hear(node, message)


def _with_dropout(study: str) -> Recorded:
    """A run with one silent survivor, so that shares are asked for; halted before the end."""
    world = Recorded(study)
    world.mute = {(world.at(3), Release)}
    world.begin()
    if "round:1:release" in world.timers:
        world.fire("round:1:release")
    return world


def _stopped(study: str, kind: type) -> Recorded:
    """A run that waits for every hospital's message of this kind."""
    world = Recorded(study)
    world.mute = {(node, kind) for node in world.ids}
    if kind is RecoverShares:
        world.mute.add((world.at(3), Release))
    world.begin()
    for name in [name for name in world.timers if name.endswith("release")]:
        world.fire(name)
    return world


PHASES = [KeyAdvert, Kem, Confirm, Ready, Commit, Release, RecoverShares]


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda kind: kind.__name__)
def test_the_coordinator_takes_or_refuses_any_altered_message(phase: type, suite: str) -> None:
    study = VECTOR.replace("classical", suite)
    samples = dict(_with_dropout(study).heard)
    samples |= _stopped(study, phase).heard
    world = _stopped(study, phase)
    senders = (world.at(0), world.at(3))
    count = 0
    for _, message in samples.values():
        for variant in _wire_valid(iter([message, *altered(message)]), to_node=False):
            for sender in senders:
                world.hear(sender, variant)
                count += 1
    assert count > 100


COORDINATOR = [
    Roster, KemForward, RoundStart, Propose, Certificate, RecoverRequest, RoundResult
]  # fmt: skip


@pytest.mark.parametrize("suite", ["classical", "hybrid"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda kind: kind.__name__)
def test_a_node_takes_or_refuses_any_altered_message(phase: type, suite: str) -> None:
    study = VECTOR.replace("classical", suite)
    sent = {type(step): step for _, step in _with_dropout(study).sent}
    world = _stopped(study, phase)
    node = world.nodes[world.at(0)]
    sent |= {type(step): step for to, step in world.sent if to == world.at(0)}
    count = 0
    for kind in COORDINATOR:
        if kind not in sent:
            continue
        for variant in _wire_valid(iter([sent[kind], *altered(sent[kind])]), to_node=True):
            event: Any = variant
            if isinstance(variant, RoundStart):
                event = nd.HeaderReceived(variant.header, variant.header.model_sha256)
            node.hear(event)
            count += 1
    assert count > 100
