"""Units: every conversion is right by an independent computation, or is refused by name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.units import ANALYTES, conversion

# IUPAC 2021, abridged: an oracle apart from the table's own numbers.
WEIGHTS = {
    "H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999, "Na": 22.990, "Mg": 24.305, "P": 30.974,
    "S": 32.06, "Cl": 35.45, "K": 39.098, "Ca": 40.078, "Fe": 55.845, "Co": 58.933, "I": 126.90,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name, one in ANALYTES.items() if one.formula])
def test_molar_masses_are_the_sum_of_the_atomic_weights(name: str) -> None:
    known = ANALYTES[name]
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", known.formula)
    mass = sum(WEIGHTS[element] * int(count or 1) for element, count in parts)
    assert known.molar_mass == pytest.approx(mass, rel=3e-4)


@pytest.mark.parametrize(
    ("old", "new", "analyte", "one", "other"),
    [
        ("mmol/L", "mg/dL", "glucose", 5.5, 99.1),
        ("mmol/L", "mg/dL", "cholesterol", 5.0, 193.3),
        ("umol/L", "mg/dL", "creatinine", 88.4, 1.0),
        ("umol/L", "mg/dL", "bilirubin", 17.1, 1.0),
        ("mmol/L", "mg/dL", "urea nitrogen", 5.0, 14.0),
        ("mmol/L", "mg/dL", "urea", 5.0, 30.03),
        ("mmol/L", "mg/dL", "calcium", 2.5, 10.02),
        ("meq/L", "mmol/L", "calcium", 5.0, 2.5),
        ("g/dL", "mmol/L", "haemoglobin", 14.0, 8.688),
        ("%", "mmol/mol", "hba1c", 6.5, 47.5),
        ("[degF]", "Cel", None, 98.6, 37.0),
        ("Cel", "K", None, 37.0, 310.15),
        ("mmHg", "kPa", None, 120.0, 16.0),
        ("g/L", "g/dL", None, 140.0, 14.0),
        ("10*3/uL", "10*9/L", None, 7.0, 7.0),
        ("[lb_av]", "kg", None, 150.0, 68.04),
        ("wk", "d", None, 2.0, 14.0),
        ("kg/m2", "g/cm2", None, 25.0, 2.5),
    ],
)
def test_known_pairs(old: str, new: str, analyte: str | None, one: float, other: float) -> None:
    step = conversion(old, new, analyte)
    assert one * step.factor + step.offset == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize(
    ("old", "new", "analyte", "why"),
    [
        ("mmol/L", "mg/dL", None, "needs the substance"),
        ("mmol/L", "mg/dL", "glucos", "did you mean 'glucose'"),
        ("mmol/L", "kg", "glucose", "different things"),
        ("%", "mmol/mol", None, "hba1c"),
        ("%", "mmol/mol", "glucose", "hba1c"),
        ("mmol/L", "mg/dL", "hba1c", "no such conversion"),
        ("meq/L", "mmol/L", "glucose", "no such conversion"),
        ("furlong", "m", None, "'furlong' is not a unit"),
        ("Cel", "kg", None, "different things"),
    ],
)
def test_an_unknown_pair_is_refused_by_both_names(
    old: str, new: str, analyte: str | None, why: str
) -> None:
    with pytest.raises(DataError) as caught:
        conversion(old, new, analyte)
    assert caught.value.name == "DATA_UNIT"
    assert all(word in caught.value.detail for word in (old, new, why))
    assert caught.value.fix


AMOUNTS = ["mmol/L", "umol/L", "mg/dL", "g/L", "ug/mL", "meq/L"]


@given(
    st.sampled_from(AMOUNTS),
    st.sampled_from(AMOUNTS),
    st.sampled_from(AMOUNTS),
    st.floats(0.01, 1e4),
)
def test_there_and_back_is_the_same_by_any_way(a: str, b: str, c: str, value: float) -> None:
    def go(old: str, new: str, number: float) -> float:
        step = conversion(old, new, "calcium")
        return number * step.factor + step.offset

    assert go(b, a, go(a, b, value)) == pytest.approx(value)
    assert go(b, c, go(a, b, value)) == pytest.approx(go(a, c, value))
