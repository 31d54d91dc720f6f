"""Each rule of the smallest cell over invented patients in whom that rule alone decides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from common import statistics_result
from common.errors import ConfigError
from common.statistics_file import NumberEntry
from common.study import Study
from tests import statistics_study as world

M = 10


@pytest.fixture(scope="module")
def study() -> Study:
    return world.study()


def patients(rows: int = 180) -> pd.DataFrame:
    """Return patients of whom everything is known, a third in each arm."""
    frame = world.patients(rows, 7)
    place = np.arange(rows)
    return frame.assign(
        arm=place % 3 * 1.0, sex=place % 2 * 1.0, age=30.0 + place % 60, lab=(place % 40) / 4.0
    )


def number(study: Study, frame: pd.DataFrame, name: str) -> NumberEntry:
    found = statistics_result.published(study, world.summed(study, [frame]))
    entry = found.features[world.FEATURES.index(name)]
    assert isinstance(entry, NumberEntry)
    return entry


def missing(frame: pd.DataFrame, name: str, rows: np.ndarray) -> pd.DataFrame:
    return frame.assign(**{name: frame[name].where(~rows)})


def test_nothing_is_hidden_where_nobody_is_missing(study: Study) -> None:
    entry = number(study, patients(), "lab")
    assert entry.present == (180, 60, 60, 60)
    assert None not in (*entry.mean, *(bar.count for bar in entry.histogram))


def test_a_group_with_few_values_takes_the_means_of_all_groups(study: Study) -> None:
    """Of all and of every group but one, the last one's mean would follow."""
    frame = patients()
    entry = number(study, missing(frame, "lab", (frame.arm == 2) & (frame.index > 12)), "lab")
    assert entry.mean[0] is not None
    assert entry.mean[1:] == (None, None, None)


def test_a_mean_beside_a_hidden_count_is_no_fraction_over_it(study: Study) -> None:
    frame = patients()
    gone = missing(frame, "age", frame.index < 4)
    entry = number(study, gone, "age")
    exact = float(gone.age.mean())
    assert entry.present[0] is None
    assert entry.mean[0] == float(f"{exact:.4g}") != exact
    assert entry.sd[0] == float(f"{gone.age.std():.4g}")


def test_bars_do_not_add_up_to_a_number_of_values_that_is_hidden(study: Study) -> None:
    frame = patients()
    lab = number(study, missing(frame, "lab", frame.index < 4), "lab")
    assert lab.present[0] is None
    assert [bar.count for bar in lab.histogram].count(None) == 1
    # Of a number with bands elsewhere one open bar would follow from the bands.
    assert number(study, missing(frame, "age", frame.index < 4), "age").histogram == ()
    assert number(study, frame, "age").histogram != ()


def medians(study: Study, frame: pd.DataFrame) -> list[float | None]:
    """Return the medians of `lab`, of everybody and by arm, to the whole number."""
    one = next(one for one in number(study, frame, "lab").quantiles if one.q == 0.5)
    shown = one.model_dump()["values"]
    return [None if value is None else round(value) for value in shown]


def test_a_groups_quantile_from_which_a_small_rest_would_follow_is_dropped(study: Study) -> None:
    """All below 6 less those of a (nobody) and of c are the 3 of b below it."""
    cells = [(0, 6, 60), (1, 5, 3), (1, 7, 57), (2, 4, 20), (2, 6, 20), (2, 8, 20)]
    arm, lab, rows = (np.array(column) for column in zip(*cells, strict=True))
    frame = patients().assign(arm=np.repeat(arm, rows) * 1.0, lab=np.repeat(lab, rows) * 1.0)
    assert medians(study, frame) == [6, None, None, None]
    nobody = frame.assign(lab=np.where(frame.lab == 5, 7.0, frame.lab))
    assert medians(study, nobody) == [6, 6, 7, 6]


def test_two_sets_of_bands_of_one_number_are_refused() -> None:
    pairs = (
        "[[sex, {feature: age, bands: [50, 65]}],"
        " [{feature: lab, bands: [1]}, {feature: age, bands: [51]}]]"
    )
    text = world.TEXT.replace("[[sex, {feature: age, bands: [50, 65]}]]", pairs)
    with pytest.raises(ConfigError, match="has other bands elsewhere"):
        world.study(text)
    assert world.study(text.replace("[51]", "[50, 65]")).statistics is not None
