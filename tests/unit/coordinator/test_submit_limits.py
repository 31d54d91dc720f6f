"""A study whose sums or record would not fit is refused when it is submitted, not in a round."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError
from coordinator import service
from tests.federation import Federation
from tests.small_study import small_text
from tests.study_texts import STATISTICS

COUNTED = STATISTICS.replace("organisation: B", "organisation: uni-b")
TRAINED = small_text()
EXACT = TRAINED.replace("federation: {", "federation: {strategy: {name: newton}, ")


@pytest.mark.parametrize(
    ("study", "kind"), [(COUNTED, "statistics"), (EXACT, "train"), (TRAINED, "evaluate")]
)
async def test_a_sum_that_is_kept_whole_and_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str, kind: str
) -> None:
    monkeypatch.setattr(service, "MOST_WORDS_KEPT", 9)
    async with Federation(tmp_path, study=study) as fed:
        with pytest.raises(ConfigError, match=f"a {kind} round adds up"):
            await fed.submit()
        assert fed.run_id is None


async def test_a_run_of_more_rounds_than_its_manifest_may_hold_is_refused(tmp_path: Path) -> None:
    async with Federation(tmp_path, study=small_text(rounds=9000)) as fed:
        with pytest.raises(ConfigError, match="9000 rounds"):
            await fed.submit()
