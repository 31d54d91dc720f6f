"""Invariant 2: without the certificate path no function returns b_i or e_ij.

Three ways to look: whatever a node says over random scripts without a good
certificate holds no secret byte; a certificate that lacks anything gets nothing;
and in the source, one function builds a Release and one a RecoverItem.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import common.secagg
from common.ids import NodeId
from common.secagg import node as machine
from common.secagg.messages import Certificate, FromNode, Propose, RecoverShares, Release
from tests.properties.adversary import World, cast
from tests.properties.profile import bounded
from tests.properties.secrets_of import leaves, round_secrets
from tests.properties.test_malicious_coordinator import SCRIPTS, Attack, Kind, Script


class Listening(World):
    """A world that keeps everything said."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.said: list[tuple[NodeId, FromNode]] = []

    def hear(self, node: NodeId, message: FromNode) -> None:
        self.said.append((node, message))
        super().hear(node, message)


def listening(script: Script) -> Attack:
    attack = Attack(script)
    attack.world = Listening(attack.world.cast)
    return attack


def told(world: World) -> list[bytes]:
    assert isinstance(world, Listening)
    return [data for _, message in world.said for data in leaves(message)]


def secrets(world: World) -> set[bytes]:
    """Return every b_i and e_ij of honest nodes, and their shares where t_h is 1."""
    out = set()
    for known in world.seen.values():
        for opened in known.truth.values():
            out |= set(round_secrets(opened).values())
    return out


SILENT = {Kind.CERTIFY, Kind.RECOVER, Kind.SQUEEZE, Kind.EQUIVOCATE}


@given(SCRIPTS)
@bounded(80)
def test_no_message_holds_a_secret_before_a_certificate(script: Script) -> None:
    players, moves = script
    attack = listening((players, [move for move in moves if move.kind not in SILENT]))
    world = attack.play()
    hidden = secrets(world)
    wide = {b"\x00" + secret for secret in hidden}
    for data in told(world):
        assert not any(secret in data for secret in hidden | wide)


def committed(n: int, c: int) -> tuple[Listening, Certificate]:
    """Return a round in which all have signed, and its whole certificate."""
    world = Listening(cast(n, c))
    for i in world.cast.ids:
        world.deliver(i, machine.MakeReady())
    hd = world.header(world.cast.ids, r=1)
    header = world.seen[hd].header
    for i in world.cast.ids:
        world.deliver(i, machine.HeaderReceived(header, header.model_sha256))
        world.deliver(i, machine.InputFinal(hd, world.ydig(hd, i)))
    digests = world.digests(hd, world.cast.ids)
    for i in world.cast.ids:
        world.deliver(i, Propose(hd, digests))
    return world, world.certificate(hd, digests)


@given(st.sampled_from([(3, 0), (4, 1), (5, 1)]), st.data())
@bounded(60)
@pytest.mark.fault("F69")
def test_a_certificate_that_lacks_anything_gets_nothing(
    shape: tuple[int, int], data: st.DataObject
) -> None:
    world, good = committed(*shape)
    header = world.seen[good.hd].header
    sigs = list(good.sigs)
    match data.draw(st.sampled_from(["few", "twice", "swapped", "bit", "stranger", "set"])):
        case "few":
            keep = data.draw(st.integers(0, header.q - 1))
            bad = Certificate(good.hd, good.digests, tuple(sigs[:keep]))
        case "twice":
            bad = Certificate(good.hd, good.digests, (sigs[0],) * header.n)
        case "swapped":
            names = [i for i, _ in sigs]
            moved = zip(names, [sig for _, sig in sigs[1:] + sigs[:1]], strict=True)
            bad = Certificate(good.hd, good.digests, tuple(moved))
        case "bit":
            place = data.draw(st.integers(0, len(sigs) - 1))
            spot = data.draw(st.integers(0, 511))
            sig = bytearray(sigs[place][1])
            sig[spot // 8] ^= 1 << spot % 8
            sigs[place] = (sigs[place][0], bytes(sig))
            bad = Certificate(good.hd, good.digests, tuple(sigs))
        case "stranger":
            sigs[-1] = (NodeId("spiffe://attack/hospital/zz"), sigs[-1][1])
            bad = Certificate(good.hd, good.digests, tuple(sigs))
        case _:
            bad = Certificate(good.hd, good.digests[1:], tuple(sigs[1:]))
    for i in world.cast.ids:
        world.deliver(i, bad)
        digests = bad.digests
        silent = [j for j, _ in digests if j != i]
        request = world.recover_request(good.hd, digests, i, silent)
        world.deliver(i, type(request)(bad, request.sealed))
    assert not [m for _, m in world.said if isinstance(m, Release | RecoverShares)]
    world.deliver(world.cast.ids[0], good)
    assert [m for _, m in world.said if isinstance(m, Release)]


@pytest.mark.parametrize(
    ("built", "allowed"),
    [("Release", {"release"}), ("RecoverItem", {"_open_bundle"})],
)
def test_one_function_in_the_machines_builds_what_gives_secrets_away(
    built: str, allowed: set[str]
) -> None:
    builders = set()
    for path in Path(str(common.secagg.__file__)).parent.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id == built
                ):
                    builders.add(function.name)
    assert builders == allowed
