"""Units of measurement by their UCUM spelling, and how a number goes from one to another.

A unit is read as a product of powers (`umol/L`, `10*9/L`, `kg/m2`) and compared by its
dimension; a conversion is `value * factor + offset`. Two things are more than dimensions:

* mass and amount of a substance (mg/dL and mmol/L) need its molar mass, so a conversion
  between them names the substance (`ANALYTES`) or is refused;
* a temperature has an offset, and HbA1c has a master equation of its own (IFCC/NGSP).

UCUM: https://ucum.org. Common spellings that UCUM does not have (`mmHg`, `bpm`) are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from common.errors import DataError
from common.text import nearest, show

Dimension = tuple[int, int, int, int, int, int, int]
"""Powers of gram, metre, second, mole, kelvin, international unit, charge."""

_PLAIN: Final[Dimension] = (0, 0, 0, 0, 0, 0, 0)
_MASS, _METRE, _SECOND, _MOLE, _KELVIN, _IU, _CHARGE = (
    tuple(int(place == at) for place in range(7)) for at in range(7)
)
_PRESSURE: Final = (1, -1, -2, 0, 0, 0, 0)
_ENERGY: Final = (1, 2, -2, 0, 0, 0, 0)
_LITRE: Final = (0, 3, 0, 0, 0, 0, 0)
_CATALYTIC: Final = (0, 0, -1, 1, 0, 0, 0)

_ATOMS: Final[Mapping[str, tuple[float, tuple[int, ...], bool]]] = {
    # atom: (in base units, dimension, takes a prefix)
    "g": (1.0, _MASS, True),
    "m": (1.0, _METRE, True),
    "s": (1.0, _SECOND, True),
    "mol": (1.0, _MOLE, True),
    "eq": (1.0, _CHARGE, True),
    "K": (1.0, _KELVIN, False),
    "L": (1e-3, _LITRE, True),
    "l": (1e-3, _LITRE, True),
    "Pa": (1e3, _PRESSURE, True),
    "bar": (1e8, _PRESSURE, True),
    "m[Hg]": (133322387.415, _PRESSURE, True),  # UCUM: 133.322 kPa, in g/(m s2)
    "m[H2O]": (9806650.0, _PRESSURE, True),
    "J": (1e3, _ENERGY, True),
    "cal": (4184.0, _ENERGY, True),
    "W": (1e3, (1, 2, -3, 0, 0, 0, 0), True),
    "Hz": (1.0, (0, 0, -1, 0, 0, 0, 0), True),
    "kat": (1.0, _CATALYTIC, True),
    "U": (1e-6 / 60, _CATALYTIC, True),
    "[iU]": (1.0, _IU, True),
    "min": (60.0, _SECOND, False),
    "h": (3600.0, _SECOND, False),
    "d": (86400.0, _SECOND, False),
    "wk": (604800.0, _SECOND, False),
    "mo": (2629800.0, _SECOND, False),
    "a": (31557600.0, _SECOND, False),
    "%": (0.01, _PLAIN, False),
    "[ppth]": (1e-3, _PLAIN, False),
    "[lb_av]": (453.59237, _MASS, False),
    "[oz_av]": (28.349523125, _MASS, False),
    "[in_i]": (0.0254, _METRE, False),
    "[ft_i]": (0.3048, _METRE, False),
}
_PREFIXES: Final[Mapping[str, float]] = {
    "G": 1e9, "M": 1e6, "k": 1e3, "h": 1e2, "da": 1e1, "d": 1e-1, "c": 1e-2, "m": 1e-3,
    "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15,
}  # fmt: skip
_TEMPERATURES: Final[Mapping[str, tuple[float, float]]] = {
    "Cel": (1.0, 273.15),
    "[degF]": (5 / 9, 273.15 - 32 * 5 / 9),
}
"""Kelvin are value * factor + offset."""

_SPELLINGS: Final[Mapping[str, str]] = {
    "mmHg": "mm[Hg]", "cmH2O": "cm[H2O]", "bpm": "/min", "percent": "%", "mEq/L": "meq/L",
    "°C": "Cel", "degC": "Cel", "°F": "[degF]", "degF": "[degF]", "lb": "[lb_av]", "in": "[in_i]",
    "ft": "[ft_i]", "kg/m^2": "kg/m2", "IU/L": "[iU]/L", "mIU/L": "m[iU]/L", "U/l": "U/L",
    "years": "a", "year": "a", "yr": "a", "months": "mo", "days": "d", "day": "d", "hours": "h",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Analyte:
    """A substance: g/mol of what laboratories count, its charge number, names of columns.

    `formula` is what the molar mass is of (a test adds up IUPAC's atomic weights); empty for
    a protein, whose mass is the convention that `source` names.
    """

    molar_mass: float
    formula: str
    names: tuple[str, ...]
    charge: int = 0
    source: str = "IUPAC atomic weights"


ANALYTES: Final[Mapping[str, Analyte]] = {
    "glucose": Analyte(180.156, "C6H12O6", ("glucose", "gluc", "glu", "blood_glucose")),
    "cholesterol": Analyte(
        386.664,
        "C27H46O",
        ("cholesterol", "chol", "tc", "total_cholesterol", "ldl", "hdl", "ldl_c", "hdl_c"),
    ),
    "triglycerides": Analyte(
        885.45, "C57H104O6", ("triglycerides", "trig", "tg"), source="as triolein"
    ),
    "creatinine": Analyte(113.12, "C4H7N3O", ("creatinine", "crea", "creat", "scr")),
    "bilirubin": Analyte(
        584.67, "C33H36N4O6", ("bilirubin", "bili", "total_bilirubin", "bilirubin_total")
    ),
    "urea": Analyte(60.056, "CH4N2O", ("urea",)),
    "urea nitrogen": Analyte(28.014, "N2", ("bun", "urea_nitrogen"), source="two N an urea"),
    "uric acid": Analyte(168.11, "C5H4N4O3", ("uric_acid", "urate")),
    "calcium": Analyte(40.078, "Ca", ("calcium", "ca_total"), 2),
    "magnesium": Analyte(24.305, "Mg", ("magnesium",), 2),
    "phosphate": Analyte(30.974, "P", ("phosphate", "phosphorus"), source="as phosphorus"),
    "sodium": Analyte(22.990, "Na", ("sodium",), 1),
    "potassium": Analyte(39.098, "K", ("potassium",), 1),
    "chloride": Analyte(35.45, "Cl", ("chloride",), 1),
    "iron": Analyte(55.845, "Fe", ("iron",)),
    "lactate": Analyte(90.078, "C3H6O3", ("lactate",), 1, "as lactic acid"),
    "haemoglobin": Analyte(
        16114.5,
        "",
        ("haemoglobin", "hemoglobin", "hb", "hgb"),
        source="monomer, ICSH 2021 and IFCC: 1 g/dL is 0.6206 mmol/L",
    ),
    "cortisol": Analyte(362.46, "C21H30O5", ("cortisol",)),
    "thyroxine": Analyte(776.87, "C15H11I4NO4", ("thyroxine", "t4", "ft4", "free_t4")),
    "25-hydroxyvitamin d": Analyte(400.64, "C27H44O2", ("vitamin_d", "25ohd")),
    "folate": Analyte(441.40, "C19H19N7O6", ("folate", "folic_acid")),
    "vitamin b12": Analyte(1355.37, "C63H88CoN14O14P", ("vitamin_b12", "b12")),
    "homocysteine": Analyte(135.18, "C4H9NO2S", ("homocysteine",)),
    "hba1c": Analyte(
        0.0, "", ("hba1c", "a1c"), source="no mass: % (NGSP) = 0.09148 mmol/mol (IFCC) + 2.152"
    ),
}

_NGSP: Final = (0.09148, 2.152)


@dataclass(frozen=True, slots=True)
class Conversion:
    """`new = old * factor + offset`."""

    factor: float
    offset: float = 0.0


@dataclass(frozen=True, slots=True)
class _Unit:
    factor: float
    dimension: Dimension


def same_unit(one: str, other: str) -> bool:
    """Whether two spellings are one unit (`mmHg` and `mm[Hg]`)."""
    return _spelt(one) == _spelt(other)


def analyte_of(column: str) -> str | None:
    """Return the substance that a column's name tells, `None` where it tells none."""
    word = column.lower()
    return next((name for name, one in ANALYTES.items() if word in (name, *one.names)), None)


def conversion(old: str, new: str, analyte: str | None = None) -> Conversion:
    """Return how numbers in `old` become numbers in `new`.

    Raises:
        DataError: DATA_UNIT, naming both units and what is lacking.
    """
    old_unit, new_unit = _spelt(old), _spelt(new)
    if old_unit == new_unit:
        return Conversion(1.0)
    if analyte is not None and analyte not in ANALYTES:
        guess = nearest(analyte, ANALYTES)
        hint = f"; did you mean {show(guess)}?" if guess else ""
        raise _refused(old, new, f"the analyte {show(analyte)} is not known{hint}")
    if {old_unit, new_unit} == {"%", "mmol/mol"}:
        return _hba1c(old, new, to_percent=new_unit == "%", analyte=analyte)
    if old_unit in _TEMPERATURES or new_unit in _TEMPERATURES:
        return _temperature(old_unit, new_unit, old, new)
    one, two = _parse(old_unit, old, new), _parse(new_unit, old, new)
    if one.dimension == two.dimension:
        return Conversion(one.factor / two.factor)
    return Conversion(one.factor / two.factor * _by_substance(one, two, old, new, analyte))


def _by_substance(one: _Unit, two: _Unit, old: str, new: str, analyte: str | None) -> float:
    """Return the factor between mass, amount and charge of a substance.

    Only these three may differ, and all by one power: mg/dL to mmol/L, meq/L to mmol/L.
    """
    change = tuple(b - a for a, b in zip(one.dimension, two.dimension, strict=True))
    moved = {place: power for place, power in enumerate(change) if power}
    mass, mole, charge = 0, 3, 6
    if not (set(moved) <= {mass, mole, charge} and sorted(moved.values()) == [-1, 1]):
        raise _refused(old, new, "they measure different things")
    if analyte is None:
        raise _refused(
            old,
            new,
            "this needs the substance",
            fix="Write `units: {column: {unit: ..., analyte: glucose}}` in the site manifest "
            f"(known: {', '.join(sorted(ANALYTES))}).",
        )
    known = ANALYTES[analyte]
    in_moles = {mass: known.molar_mass, mole: 1.0, charge: 1.0 / (known.charge or 1)}
    if (charge in moved and not known.charge) or (mass in moved and not known.molar_mass):
        raise _refused(old, new, f"{analyte} has no such conversion")
    gone = next(place for place, power in moved.items() if power < 0)
    come = next(place for place, power in moved.items() if power > 0)
    # One unit of `gone` is 1/in_moles mol where in_moles is per mole (mass: g/mol).
    to_moles = 1 / in_moles[gone] if gone == mass else in_moles[gone]
    return to_moles * (in_moles[come] if come == mass else 1 / in_moles[come])


def _hba1c(old: str, new: str, *, to_percent: bool, analyte: str | None) -> Conversion:
    """Return the master equation of Hoelzel et al., Clin Chem 2004;50:166-174."""
    if analyte != "hba1c":
        raise _refused(
            old, new, "% and mmol/mol are two scales of HbA1c; state `analyte: hba1c` if it is that"
        )
    slope, offset = _NGSP
    return Conversion(slope, offset) if to_percent else Conversion(1 / slope, -offset / slope)


def _temperature(old_unit: str, new_unit: str, old: str, new: str) -> Conversion:
    kelvin = (1.0, 0.0)
    scales = {**_TEMPERATURES, "K": kelvin}
    if old_unit not in scales or new_unit not in scales:
        raise _refused(old, new, "they measure different things")
    (factor, offset), (per, zero) = scales[old_unit], scales[new_unit]
    return Conversion(factor / per, (offset - zero) / per)


def _spelt(unit: str) -> str:
    plain = unit.strip().replace("μ", "u").replace("µ", "u")
    return _SPELLINGS.get(unit.strip(), _SPELLINGS.get(plain, plain))


def _parse(unit: str, old: str, new: str) -> _Unit:
    """Return a unit's value in base units and its dimension; `{notes}` count as 1."""
    factor, powers = 1.0, [0] * 7
    text = re.sub(r"\{[^}]*\}", "", unit)
    sign, first = 1, True
    for part in re.split(r"([./])", text):
        if part in (".", "/"):
            sign = 1 if part == "." else -1
            continue
        if part in ("", "1"):
            if part == "" and not first and not text.endswith(("/", ".")):
                raise _refused(old, new, f"{show(unit)} is not a unit this version reads")
            first = False
            continue
        first = False
        value, dimension, power = _term(part, unit, old, new)
        factor *= value ** (sign * power)
        for place, one in enumerate(dimension):
            powers[place] += one * sign * power
        sign = 1
    return _Unit(factor, (*powers,))  # type: ignore[arg-type]


def _term(part: str, unit: str, old: str, new: str) -> tuple[float, tuple[int, ...], int]:
    ten = re.fullmatch(r"10[*^](-?\d{1,2})", part)
    if ten is not None:
        return 10.0 ** int(ten[1]), _PLAIN, 1
    found = re.fullmatch(r"(.*?)(-?\d)?", part)
    name, power = (found[1], int(found[2] or 1)) if found else (part, 1)
    if name in _ATOMS:
        value, dimension, _ = _ATOMS[name]
        return value, dimension, power
    for prefix, scale in _PREFIXES.items():
        atom = _ATOMS.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if atom is not None and atom[2]:
            return scale * atom[0], atom[1], power
    raise _refused(old, new, f"{show(unit)} is not a unit this version reads")


def _refused(old: str, new: str, why: str, fix: str | None = None) -> DataError:
    return DataError(
        "DATA_UNIT",
        f"no conversion from {show(old)} to {show(new)}: {why}",
        fix=fix
        or "Write the hospital's unit in UCUM in the site manifest, or ask the researcher "
        "for the study's.",
    )
