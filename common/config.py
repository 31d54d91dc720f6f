"""Files into frozen pydantic models, with the file and line in every complaint.

Three steps, each with its own refusals: `common.documents.parse_yaml` makes plain data
and remembers lines; the `schema:` line must name the schema asked for; `validate` makes a
`Section`, the strict base of all our schemas.

    loaded = load(Path("policy.yaml"), Policy, "fedcare.policy/v1")
    loaded.source.where("allow", "purposes")        # 'policy.yaml:9'
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from common.documents import Document, KeyPath, Source, dotted, parse_yaml, read_text
from common.errors import CATALOGUE, ConfigError, FedError, PolicyRefusal
from common.text import check_text, escape, listed, nearest, show

M = TypeVar("M", bound="Section")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A validated file together with where each of its keys stands."""

    value: M
    source: Source


# --- data to models -------------------------------------------------------------------


def problem(message: str, *at: str | int, name: str = "BAD_VALUE") -> PydanticCustomError:
    """Return what a pydantic validator raises to report the catalogue row `name`.

    `message` goes on from the key's name ("must be ..."); `at` is the key, below the
    section that is being validated. A plain `ValueError` there means BAD_VALUE.
    """
    return PydanticCustomError(name, "{message}", {"message": message, "at": at})


class Section(BaseModel):
    """Base of every schema: frozen, no coercion, finite numbers, unknown keys refused."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def refuse_unknown_keys(cls, data: object) -> object:
        """Name the nearest known key; pydantic's own message could not."""
        if not isinstance(data, dict):
            return data
        known = [entry.alias or name for name, entry in cls.model_fields.items()]
        for key in data:
            if key not in known:
                guess = nearest(str(key), known)
                hint = f"did you mean '{guess}'?" if guess else f"known here: {', '.join(known)}"
                raise PydanticCustomError("UNKNOWN_KEY", "{hint}", {"key": key, "hint": hint})
        return data


def check_schema(document: Document, schema: str) -> None:
    """Refuse a document whose `schema:` line is not `schema`.

    Raises:
        ConfigError: SCHEMA_VERSION; FILE_SYNTAX if the document is not a mapping.
    """
    source = document.source
    if not isinstance(document.data, dict):
        raise ConfigError(
            "FILE_SYNTAX",
            f"{source.where()}: should hold keys and values, as in `schema: {schema}`",
        )
    stated = document.data.get("schema")
    if stated is None:
        raise ConfigError(
            "SCHEMA_VERSION", f"{source.where()}: no schema is stated; add `schema: {schema}`"
        )
    if stated != schema:
        raise ConfigError(
            "SCHEMA_VERSION",
            f"{source.where('schema')}: schema is {show(stated)}, this version reads '{schema}'",
            fix=f"Write `schema: {schema}`, or use the version of fedcare that reads the other.",
        )


def validate(document: Document, model: type[M], schema: str) -> M:
    """Return the document as a `model`.

    Raises:
        FedError: the first problem of the file, by line: SCHEMA_VERSION, UNKNOWN_KEY,
            BAD_VALUE and so on as ConfigError, POLICY_... as PolicyRefusal.
    """
    check_schema(document, schema)
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document) from None


def load(path: Path, model: type[M], schema: str) -> Loaded[M]:
    """Read, parse and validate one file; messages call it by `path` as given.

    Raises:
        FedError: as `read_text`, `parse_yaml` and `validate`.
    """
    document = parse_yaml(read_text(path), str(path))
    return Loaded(validate(document, model, schema), document.source)


# --- pydantic's errors in our words ---------------------------------------------------


def explain(error: ValidationError, document: Document) -> FedError:
    """Return the first problem of a validation, by line, as an error of the catalogue."""
    by_key: dict[KeyPath, tuple[int, str, str]] = {}
    noun = f"the {error.title.lower()}"
    errors = error.errors(include_url=False)
    for item in errors:
        if item["type"] == "too_short" and any(
            other["loc"][: len(item["loc"])] == item["loc"] and other is not item
            for other in errors
        ):
            continue  # only short of the entries that are told about anyway
        path, entry = _explain_one(item, document, noun)
        by_key.setdefault(path, entry)
    found = sorted(by_key.values(), key=lambda entry: entry[0])
    _, name, detail = found[0]
    if len(found) > 1:
        more = len(found) - 1
        detail += f" ({more} more problem{'s' if more > 1 else ''} in this file)"
    kind = PolicyRefusal if name.startswith("POLICY_") else ConfigError
    return kind(name, detail)


def _explain_one(
    item: ErrorDetails, document: Document, noun: str
) -> tuple[KeyPath, tuple[int, str, str]]:
    context = item.get("ctx", {})
    path, value = _follow((*item["loc"], *context.get("at", ())), document.data)
    kind = item["type"]
    name = kind if kind in CATALOGUE else "BAD_VALUE"
    misspelt = _misspelt_tag(kind, context, value)
    if misspelt is not None:
        tag, key = misspelt
        path, name = (*path, key), "UNKNOWN_KEY"
        message = f"unknown key '{dotted(path)}'; did you mean '{tag}'?"
    elif kind == "UNKNOWN_KEY":
        path = (*path, context["key"])
        message = f"unknown key '{dotted(path)}'; {context['hint']}"
    elif kind == "missing":
        message = f"key '{dotted((*path, str(item['loc'][-1])))}' is missing"
    else:
        message = f"{dotted(path) or noun} {_phrase(kind, context, value, item['msg'])}"
    source = document.source
    return path, (source.line(*path) or 0, name, f"{source.where(*path)}: {message}")


def _misspelt_tag(kind: str, context: Mapping[str, Any], value: object) -> tuple[str, str] | None:
    """Return (the key that says which form a section has, what was written instead of it)."""
    if kind != "union_tag_not_found" or not isinstance(value, dict):
        return None
    tag = str(context["discriminator"]).strip("'")
    written = nearest(tag, [str(key) for key in value])
    return None if written is None else (tag, written)


_ABSENT: Final = object()


def _follow(loc: Iterable[str | int], data: object) -> tuple[KeyPath, object]:
    """Return the part of a pydantic location that exists in the file, and the value there.

    Pydantic adds the tags of discriminated unions and `[key]` marks; the file has none.
    """
    path: list[str | int] = []
    for part in loc:
        inner = _step(data, part)
        if inner is not _ABSENT:
            data = inner
            path.append(part)
    return tuple(path), data


def _step(data: object, part: str | int) -> object:
    if isinstance(data, dict):
        return data.get(part, _ABSENT)
    if isinstance(data, tuple) and isinstance(part, int) and part < len(data):
        return data[part]
    return _ABSENT


_WANTED: Final[Mapping[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "dataclass_type": "keys and values",
}
_SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _phrase(kind: str, context: Mapping[str, Any], value: object, message: str) -> str:
    """Return the rest of a sentence that began with the key's name."""
    if kind in _WANTED:
        hint = _quote_hint(value) if kind == "string_type" else ""
        return f"must be {_WANTED[kind]}, not {_described(value)}{hint}"
    if kind in _SIGNS:
        key, words = _SIGNS[kind]
        return f"must be {words} {context[key]:g}, not {show(value)}"
    match kind:
        case "literal_error":
            return _choices(value, re.findall(r"'([^']*)'", str(context["expected"])))
        case "union_tag_invalid":
            tag = str(context["discriminator"]).strip("'")
            stated = value.get(tag) if isinstance(value, dict) else value
            tags = re.findall(r"'([^']*)'", str(context["expected_tags"]))
            choices = [choice for choice in tags if choice != "none"]  # the absent form
            return f"has an unknown {tag}: {_choices(stated, choices)}"
        case "union_tag_not_found":
            return f"needs the key {context['discriminator']}"
        case "too_short":
            return f"must have at least {context['min_length']} entries"
        case "string_too_short":
            return "must not be empty"
        case "too_long" | "string_too_long":
            limit = context["max_length"]
            return f"is too long: at most {limit} {'characters' if 'string' in kind else 'entries'}"
        case _:
            return escape(message.removeprefix("Value error, "))


def _choices(value: object, choices: list[str]) -> str:
    guess = nearest(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"must be {listed(choices)}, not {show(value)}{hint}"


def _described(value: object) -> str:
    match value:
        case bool() | None:
            return show(value)
        case str():
            return f"the text {show(value)}"
        case int() | float():
            return f"the number {show(value)}"
        case tuple():
            return "a list"
        case dict():
            return "keys and values"
        case _:
            return "something else"


def _quote_hint(value: object) -> str:
    return "; write it in quotes" if isinstance(value, (bool, int, float)) else ""


# --- types that several schemas share -------------------------------------------------

_DURATION: Final = re.compile(
    r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?(?:(\d{1,9})ms)?", re.ASCII
)
_UNITS_MS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1))


def parse_duration(value: object) -> float:
    """Return the seconds of `10m`, `30s`, `90d`, `1h30m` or `250ms`; exact to the millisecond.

    Raises:
        ValueError: no unit, a unit twice or out of order, a fraction, or nothing at all.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"needs a unit, such as {value:g}s or {value:g}m")  # noqa: TRY004
    match = _DURATION.fullmatch(value) if isinstance(value, str) and value else None
    if match is None:
        raise ValueError(
            f"must be a duration such as 30s, 10m, 1h30m or 90d (d, h, m, s, ms), not {show(value)}"
        )
    parts = zip(match.groups(), _UNITS_MS, strict=True)
    return sum(int(count) * unit for count, (_, unit) in parts if count) / 1000


def format_duration(seconds: float) -> str:
    """Return the one canonical spelling of a duration: `5400.0` is `1h30m`."""
    left = round(seconds * 1000)
    text = ""
    for name, unit in _UNITS_MS:
        count, left = divmod(left, unit)
        if count:
            text += f"{count}{name}"
    return text or "0s"


def _positive_zero(value: float) -> float:
    return value + 0.0  # -0.0 and 0.0 are one number and must hash alike


Seconds = Annotated[
    float, BeforeValidator(parse_duration), PlainSerializer(format_duration, return_type=str)
]
"""Seconds as a float in Python, a duration with a unit in a file."""

Number = Annotated[float, AfterValidator(_positive_zero)]
"""A finite float64; whole numbers are taken, text is not."""

Text = Annotated[str, AfterValidator(check_text)]
"""Printable text in Unicode normal form C."""


def _name(value: str) -> str:
    value = check_text(value)
    if not 1 <= len(value) <= 128 or value != value.strip():  # noqa: PLR2004
        raise ValueError("must have 1 to 128 characters and no space at either end")
    return value


Name = Annotated[str, AfterValidator(_name)]
"""A column, level or code as people write it: 1 to 128 printable characters, normal form C."""

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def _label(value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise ValueError(f"must be 1 to 63 of a-z, 0-9, '.', '_' and '-', not {show(value)}")
    return value


Label = Annotated[str, AfterValidator(_label)]
"""A purpose or data set: a short lower-case word that two parties must spell alike."""


def no_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a list in which an entry stands twice (for use as a validator)."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise problem(f"holds {show(value)} twice", name="DUPLICATE_KEY")
        seen.add(value)
    return values
