"""A hospital's own tensors: staged with a round, counted with it, never a mix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import StateError
from common.ids import HeaderDigest, RunId
from hospital_node.personal_state import CONTROL, DITTO, FEDBN, OwnTensors

RUN = RunId("test-study-0001")
ONE, TWO = (HeaderDigest(bytes([k]) * 32) for k in (1, 2))
OLD, NEW = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)


@pytest.fixture
def own(tmp_path: Path) -> OwnTensors:
    kept = OwnTensors(tmp_path, RUN)
    kept.put(DITTO, OLD)
    return kept


def value(own: OwnTensors, name: str = DITTO) -> list[float]:
    found = own.get(name)
    assert found is not None
    return [float(one) for one in found]


def test_what_is_staged_counts_only_when_its_round_does(own: OwnTensors, tmp_path: Path) -> None:
    own.stage(ONE, {DITTO: NEW, CONTROL: NEW})
    assert value(own) == OLD.tolist()
    assert own.get(CONTROL) is None
    own.settle(ONE, counted=True)
    own.settle(ONE, counted=True)  # the result came twice
    assert value(own) == value(own, CONTROL) == NEW.tolist()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("hd", "counted"), [(ONE, False), (TWO, True)])
def test_a_voided_round_and_another_rounds_values_change_nothing(
    own: OwnTensors, tmp_path: Path, hd: HeaderDigest, counted: bool
) -> None:
    own.stage(ONE, {DITTO: NEW})
    own.settle(hd, counted=counted)
    assert value(own) == OLD.tolist()
    own.settle(ONE, counted=True)  # it was forgotten
    assert value(own) == OLD.tolist()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_crash_between_two_tensors_is_made_good_by_the_repeated_result(
    own: OwnTensors, tmp_path: Path
) -> None:
    own.stage(ONE, {DITTO: NEW, FEDBN: NEW})
    own._staged(DITTO, ONE).replace(own._path(DITTO))  # killed after the first of two renames
    again = OwnTensors(tmp_path, RUN)
    again.settle(ONE, counted=True)
    assert value(again) == value(again, FEDBN) == NEW.tolist()


def test_runs_keep_apart_and_each_forgets_its_own(own: OwnTensors, tmp_path: Path) -> None:
    other = OwnTensors(tmp_path, RunId("test-study-0002"))
    assert other.get(DITTO) is None
    other.put(DITTO, NEW)
    other.stage(ONE, {FEDBN: NEW})
    own.put(CONTROL, NEW)
    own.drop((CONTROL,))
    assert own.all().keys() == {DITTO}
    own.drop()
    assert own.all() == {}
    other.settle(ONE, counted=True)
    assert other.all().keys() == {DITTO, FEDBN}


def test_a_changed_file_or_anothers_is_not_taken_for_the_hospitals(
    own: OwnTensors, tmp_path: Path
) -> None:
    content = bytearray(own._path(DITTO).read_bytes())
    own._path(FEDBN).write_bytes(content)  # another name's
    with pytest.raises(StateError, match="STATE_DAMAGED"):
        own.get(FEDBN)
    content[-1] ^= 1
    own._path(DITTO).write_bytes(content)
    with pytest.raises(StateError, match=r"ditto\.f32 is not what this node wrote"):
        own.get(DITTO)
