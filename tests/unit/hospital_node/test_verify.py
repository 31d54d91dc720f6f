"""`fedcare node verify` run as the wrong user advises nobody to start with an empty state."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.errors import StateError
from hospital_node import verify as module
from hospital_node.config import NodeConfig


def test_a_state_that_this_user_may_not_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Any = lambda _config: SimpleNamespace(root=tmp_path)  # noqa: E731
    monkeypatch.setattr(module, "_Look", looks)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(StateError, match="by this user") as refused:
        module.verify(cast("NodeConfig", None))
    assert refused.value.name == "STATE_ACCESS"
    assert "as the user" in refused.value.fix
