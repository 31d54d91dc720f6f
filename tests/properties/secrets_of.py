"""Finding secrets in things: what a node must not say, keep or print."""

from __future__ import annotations

import base64
import dataclasses
import gc
from collections.abc import Iterable, Iterator

from common.secagg.node_state import OpenRound
from common.secret import Secret


def round_secrets(opened: OpenRound) -> dict[str, bytes]:
    """Return every secret of an open round by name."""
    out = {"b": opened.b.reveal(), "a": opened.a.reveal()}
    for pair in opened.pairs:
        out[f"edge {pair.peer}"] = pair.edge.reveal()
        out[f"seal {pair.peer}"] = pair.seal_to.reveal()
        out[f"open {pair.peer}"] = pair.open_from.reveal()
    return out


def leaves(value: object) -> Iterator[bytes]:
    """Yield all byte strings of a message, revealed secrets among them."""
    if isinstance(value, Secret):
        yield value.reveal()
    elif isinstance(value, bytes):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from leaves(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield from leaves(getattr(value, one.name))


def reachable_bytes(*roots: object) -> bytes:
    """Return every byte string that is reachable from some objects, end to end."""
    seen: set[int] = set()
    todo = list(roots)
    out = []
    while todo:
        value = todo.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, Secret):
            out.append(value.reveal())
        elif isinstance(value, bytes | bytearray):
            out.append(bytes(value))
        elif isinstance(value, str):
            out.append(value.encode())
        elif dataclasses.is_dataclass(value):
            todo += [getattr(value, one.name) for one in dataclasses.fields(value)]
        else:
            todo += gc.get_referents(value)
    return b"\x00".join(out)


def forms(secret: bytes) -> Iterable[bytes]:
    """Return how a secret could stand in bytes or text."""
    return (
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret),
        base64.urlsafe_b64encode(secret),
        repr(secret).encode(),
        str(int.from_bytes(secret, "big")).encode(),
        str(list(secret)).encode(),
    )


def found(secret: bytes, haystack: bytes) -> bool:
    """Return whether a secret stands in some bytes, in any of its forms."""
    return any(form in haystack for form in forms(secret))
