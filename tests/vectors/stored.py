"""Read the stored vectors as Python values, with the product's own types."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from common.ids import ConfigHash, NodeId, RoundNo, SessionId, Sha256
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind

HERE = Path(__file__).parent


@cache
def load(name: str) -> Any:  # noqa: ANN401 - JSON
    """Return a vector file; callers must not change it."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def unhex(text: str) -> bytes:
    """Return bytes."""
    return bytes.fromhex(text)


def header_of(tree: dict[str, Any]) -> Header:
    """Return a stored header as the product's."""
    return Header(
        session_id=SessionId(unhex(tree["session_id"])),
        r=RoundNo(tree["r"]),
        kind=RoundKind(tree["kind"]),
        model_sha256=Sha256(unhex(tree["model_sha256"])),
        layout_sha256=Sha256(unhex(tree["layout_sha256"])),
        config_hash=ConfigHash(unhex(tree["config_hash"])),
        members=tuple((NodeId(node), unhex(nonce)) for node, nonce in tree["members"]),
        d=tree["d"],
        w=tree["w"],
        c=tree["c"],
        q=tree["q"],
        s_min=tree["s_min"],
        t_h=tree["t_h"],
        kappa=tree["kappa"],
        ranges=tuple(tree["ranges"]),
        w_max=tree["W_max"],
        rounding=Rounding(tree["rounding"]),
        deadline_ms=tree["deadline_ms"],
        dp=DpTerms(
            mode=DpMode(tree["dp_mode"]),
            z=tree["z"],
            clip=tree["C"],
            delta_int=tree["Delta_int"],
            sigma_loc=tree["sigma_loc"],
            noise_cap=tree["T"],
            p=tree["p"],
            m_max=tree["m_max"],
            steps=tree.get("steps", 0),
        ),
        group=tree["group"],
        version=tree["version"],
    )
