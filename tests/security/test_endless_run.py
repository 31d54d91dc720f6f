"""A study whose record of rounds no hospital could read is turned away at submission."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.errors import ConfigError
from common.study import canonical_json, parse_study
from common.wire_operations import Submission
from tests.run_world import VECTOR
from tests.security.desk import Desk


async def test_more_rounds_than_a_manifest_holds_are_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    endless = re.sub(r"rounds: \d+", "rounds: 90000", VECTOR)
    submission = Submission(canonical_json(parse_study(endless)), "one", b"x", (b"x",))
    with pytest.raises(ConfigError, match="at most") as found:
        await desk.service.submit(submission, "researcher")
    assert found.value.name == "BAD_VALUE"
    await desk.close()
