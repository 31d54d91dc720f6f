"""The tables of a site manifest, one section for each kind of source.

    csv, parquet   a file                       sql    one SELECT over a database, read-only
    omop           concept ids of an OMOP CDM   fhir   a folder of FHIR R4 bulk NDJSON
    dicom          a folder of DICOM files

What every kind shares is the hospital's own mapping (`Mapped`): what its columns are called,
in which units and levels they stand, and what its codes for "not measured" are. The mapping
ends where the study's data contract begins: it yields text by the study's names, and the
contract judges that text. A database's address may hold a password, so `url` takes none:
it belongs into an environment variable (`url_env`) or a file (`url_file`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    WrapSerializer,
    field_validator,
    model_validator,
)

from common.config import Label, Name, Section, Text, no_repeats, problem
from common.study_features import Code
from common.text import show

K = TypeVar("K")
V = TypeVar("V")


def _freeze(value: Mapping[K, V]) -> Mapping[K, V]:
    return MappingProxyType(dict(value))


def _plain(value: Mapping[Any, Any], handler: SerializerFunctionWrapHandler) -> Any:  # noqa: ANN401
    return handler(dict(value))


Frozen = Annotated[Mapping[K, V], AfterValidator(_freeze), WrapSerializer(_plain)]
"""A mapping that nobody can change once it is checked."""


def _empty() -> Mapping[Any, Any]:
    return MappingProxyType({})


Path_ = Annotated[Text, Field(min_length=1, max_length=1024)]
Sql = Annotated[str, Field(min_length=1, max_length=100_000)]
_ISO: Final = "%Y-%m-%d"


class Derive(Section):
    """A column that is the time between two dates: whole and part years, or days.

    Both dates are the hospital's own columns; the second may be a fixed date
    (`YYYY-MM-DD`). An empty date makes an empty cell.
    """

    years_between: tuple[Name, Name] | None = None
    days_between: tuple[Name, Name] | None = None
    format: Name = _ISO

    @model_validator(mode="after")
    def one(self) -> Self:
        """Refuse none or both."""
        if (self.years_between is None) == (self.days_between is None):
            raise ValueError("must state one of 'years_between' and 'days_between'")
        return self

    @property
    def between(self) -> tuple[str, str]:
        """The two columns."""
        pair = self.years_between or self.days_between
        if pair is None:  # `one` saw to it
            raise ValueError("no dates")
        return pair


class OwnUnit(Section):
    """A hospital's unit, with the substance where the name of the column does not tell it."""

    unit: Name
    analyte: Name | None = None


class Rows(Section):
    """What becomes of several rows of one patient: one of them, or a number over all.

    `first` and `last` take a whole row by the date column `by` (a row without a date comes
    first); `mean`, `max` and `min` are over each column of numbers, and every other column
    has to say the same in all of the patient's rows.
    """

    take: Literal["last", "first", "mean", "max", "min"]
    by: Name | None = None
    format: Name = _ISO

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse an order without a column, and a column without an order."""
        if (self.by is None) == (self.take in ("last", "first")):
            raise problem("goes with take: last or first, which need it", "by")
        return self


class Mapped(Section):
    """What all kinds share: the hospital's words for what a study asks."""

    name: Label
    patient: Name | None = None
    units: Frozen[Name, Name | OwnUnit] = Field(default_factory=_empty)
    levels: Frozen[Name, Frozen[Name, Name]] = Field(default_factory=_empty)
    missing: Frozen[Name, tuple[Code, ...]] = Field(default_factory=_empty)
    derive: Frozen[Name, Derive] = Field(default_factory=_empty)
    rows: Rows | None = None

    @field_validator("patient")
    @classmethod
    def filled_in(cls, value: str | None) -> str | None:
        """Refuse the template's blank: no heading is called that."""
        if value == "FILL-IN":
            raise ValueError("still says FILL-IN: name the column, or write null")
        return value

    @property
    def patient_stated(self) -> bool:
        """Whether the manifest says what tells patients apart, `patient: null` included."""
        return "patient" in self.model_fields_set

    @property
    def patient_column(self) -> str | None:
        """The hospital's own column that tells patients apart, if there is one."""
        return self.patient


class Renamed(Mapped):
    """Kinds whose columns have headings of the hospital's own.

    `images`: the folder of the files that a column of images names, a file in each row.
    """

    columns: Frozen[Name, Name] = Field(default_factory=_empty)
    images: Path_ | None = None

    @field_validator("columns")
    @classmethod
    def distinct(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        """Refuse one column under two names."""
        taken: dict[str, str] = {}
        for study_name, column in value.items():
            if column in taken:
                raise problem(
                    f"is the column {show(column)}, as {show(taken[column])} is",
                    study_name,
                    name="DUPLICATE_KEY",
                )
            taken[column] = study_name
        return value

    def column(self, study_name: str) -> str:
        """Return the heading in the hospital's table for a study's column."""
        return self.columns.get(study_name, study_name)


class CsvTable(Renamed):
    """A text file with one heading line."""

    kind: Literal["csv"]
    path: Path_
    delimiter: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"

    @model_validator(mode="after")
    def told_apart(self) -> Self:
        """Refuse a comma that both ends a cell and begins its decimals."""
        if self.delimiter == self.decimal:
            raise problem("is ',', which also separates the cells", "decimal")
        return self


class ParquetTable(Renamed):
    """A Parquet file of plain columns."""

    kind: Literal["parquet"]
    path: Path_


_URL: Final = re.compile(r"(postgresql(\+psycopg)?|sqlite)://.*")
_PASSWORD: Final = re.compile(r"[a-z+0-9]+://[^/@]*:[^/@]*@.*|.*[?&]password=.*")


class Database(Section):
    """Where a database is: exactly one of three keys, each an SQLAlchemy URL or where it stands.

    PostgreSQL and SQLite only: for these two the session is opened read-only.
    """

    url: Annotated[Text, Field(max_length=1024)] | None = None
    url_env: Name | None = None
    url_file: Path_ | None = None

    @model_validator(mode="after")
    def one(self) -> Self:
        """Refuse no place, several, and a password in the manifest."""
        stated = [key for key in ("url", "url_env", "url_file") if getattr(self, key) is not None]
        if len(stated) != 1:
            raise ValueError("must state one of 'url', 'url_env' and 'url_file'")
        if self.url is not None and _PASSWORD.fullmatch(self.url):
            raise problem("holds a password; use 'url_env' or 'url_file'", "url")
        if self.url is not None and not _URL.fullmatch(self.url):
            raise problem("must begin with postgresql:// or sqlite://", "url")
        return self

    @property
    def place(self) -> str:
        """Which database, to tell it from another; holds no secret."""
        return f"{self.url or ''} {self.url_env or ''} {self.url_file or ''}"


_NO_WORDS: Final = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
"""Comments and quoted text: they may hold any word or semicolon."""


def _one_select(value: str) -> str:
    """Refuse what is not one SELECT; the session is read-only besides."""
    words = _NO_WORDS.sub(" ", value).strip().rstrip(";").lower()
    if ";" in words:
        raise ValueError("must be one SELECT, not several statements")
    if not re.match(r"(select|with)\b", words):
        raise ValueError("must be one SELECT (or WITH ... SELECT)")
    return value.strip().rstrip(";")


Select = Annotated[Sql, AfterValidator(_one_select)]


class SqlTable(Renamed, Database):
    """The rows of one SELECT. Write an ORDER BY, so that a row keeps its number."""

    kind: Literal["sql"]
    query: Select


Window = tuple[Annotated[int, Field(ge=-100_000, le=100_000)], ...]
Take = Literal["last", "first", "mean", "max", "min", "any", "count"]
_Concept = Annotated[int, Field(ge=0, lt=2**63)]


def _window(value: Window) -> Window:
    if len(value) != 2 or value[0] > value[1]:  # noqa: PLR2004
        raise ValueError("must be [first day, last day], days from the index date")
    return value


class OmopFeature(Section):
    """A study's column out of an OMOP CDM 5.3 or 5.4 database.

    `person` gives a `field` of the person: `age` in years at the index date, or a concept
    id. The other domains take those events of `concepts` (and, with `descendants`, of what
    is below them) whose day lies in `window`, counted from the index date, both ends in.
    `unit_concepts` names the UCUM unit of each unit concept and is needed where a hospital
    stores several; every value is brought to the study's unit by it.
    """

    domain: Literal["person", "measurement", "observation", "condition"]
    field: Literal["age", "gender_concept_id", "race_concept_id", "ethnicity_concept_id"] | None = (
        None
    )
    concepts: Annotated[
        tuple[_Concept, ...], Field(max_length=1000), AfterValidator(no_repeats)
    ] = ()
    descendants: bool = False
    take: Take = "last"
    window: Annotated[Window, AfterValidator(_window)] | None = None
    unit_concepts: Frozen[Name, Name] = Field(default_factory=_empty)
    analyte: Name | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse keys of another domain."""
        if self.domain == "person":
            if self.field is None or self.concepts:
                raise ValueError("is of domain person: it takes 'field' and no 'concepts'")
            return self
        if self.field is not None or not self.concepts:
            raise ValueError("needs 'concepts' and takes no 'field'")
        if self.domain == "condition" and self.take not in ("any", "count"):
            raise problem("must be any or count: a condition has no value", "take")
        for key in self.unit_concepts:
            if not key.isdecimal():
                raise problem("must have concept ids as keys", "unit_concepts", key)
        return self


class OmopTable(Mapped, Database):
    """Features of an OMOP CDM; `cohort` is one SELECT of person_id and index_date."""

    kind: Literal["omop"]
    cohort: Select
    cdm_schema: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    features: Annotated[Frozen[Name, OmopFeature], Field(min_length=1, max_length=10_000)]

    @property
    def patient_column(self) -> str | None:
        """OMOP's own key."""
        return "person_id"

    def column(self, study_name: str) -> str:
        """Return a study's column by its own name; any other name is the person's key."""
        own = study_name in self.features or study_name in self.derive
        return study_name if own else "person_id"


_CODE: Final = re.compile(r"[^|\s]+\|[^|\s]+")


def _coded(value: str) -> str:
    if not _CODE.fullmatch(value):
        raise ValueError(f"must be system|code, such as http://loinc.org|2093-3, not {show(value)}")
    return value


Coded = Annotated[Name, AfterValidator(_coded)]


class FhirPatient(Section):
    """A field of the Patient resource; `deceased` is 1 or 0."""

    resource: Literal["Patient"]
    field: Literal["birthDate", "gender", "deceased"]


class FhirObservation(Section):
    """Observations of `codes`, also as components; `unit` (UCUM) is what they are brought to."""

    resource: Literal["Observation"]
    codes: Annotated[tuple[Coded, ...], Field(min_length=1, max_length=1000)]
    take: Take = "last"
    unit: Name | None = None
    analyte: Name | None = None


class FhirCondition(Section):
    """1 if the patient has a condition of `codes` (`any`), or how many (`count`)."""

    resource: Literal["Condition"]
    codes: Annotated[tuple[Coded, ...], Field(min_length=1, max_length=1000)]
    take: Literal["any", "count"] = "any"


FhirColumn = Annotated[
    FhirPatient | FhirObservation | FhirCondition, Field(discriminator="resource")
]


class FhirTable(Mapped):
    """A folder of NDJSON files as a FHIR bulk export writes them; one row a patient."""

    kind: Literal["fhir"]
    path: Path_
    columns: Annotated[Frozen[Name, FhirColumn], Field(min_length=1, max_length=10_000)]

    @property
    def patient_column(self) -> str | None:
        """The Patient resource's id."""
        return "patient_id"

    def column(self, study_name: str) -> str:
        """Return a study's column by its own name; any other name is the patient's id."""
        own = study_name in self.columns or study_name in self.derive
        return study_name if own else "patient_id"


Keyword = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]


class DicomTable(Mapped):
    """A folder of DICOM files, one row each; `columns` are keywords of the DICOM dictionary.

    The study's image is the file itself, and PatientID tells patients apart.
    """

    kind: Literal["dicom"]
    path: Path_
    columns: Frozen[Name, Keyword] = Field(default_factory=_empty)

    @property
    def patient_column(self) -> str | None:
        """DICOM's own key."""
        return "PatientID"

    def column(self, study_name: str) -> str:
        """Return the keyword of a study's column; any other name is the patient's key."""
        return self.columns.get(study_name, "PatientID")


Table = Annotated[
    CsvTable | ParquetTable | SqlTable | OmopTable | FhirTable | DicomTable,
    Field(discriminator="kind"),
]
"""One table of the hospital's data."""
