"""A study that declares a giant model is turned away before anything of that size is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from common.study import canonical_json, parse_study
from common.wire_operations import Submission
from tests.run_world import VECTOR
from tests.security.desk import Desk

MLP = VECTOR.replace("{kind: vector, size: 5}", "{kind: mlp, hidden: [65536, 65536]}").replace(
    "weights: equal, ", ""
)


@pytest.mark.parametrize("study", [VECTOR.replace("size: 5", f"size: {2**31}"), MLP])
async def test_a_giant_model_is_refused_at_submission(tmp_path: Path, study: str) -> None:
    desk = Desk(tmp_path)
    submission = Submission(canonical_json(parse_study(study)), "one", b"x", (b"x",))
    with pytest.raises(ConfigError) as found:
        await desk.service.submit(submission, "researcher")
    assert "parameters" in found.value.detail
    await desk.close()
