"""A site manifest: where one hospital's tables lie. It never leaves the hospital.

The schema is `fedcare.site/v1`. A table has the name that studies ask for (`dataset`), a
path relative to the manifest's folder (or absolute: it is the hospital's own file), and,
where the hospital's headings differ, `columns` from the study's name to its own:

    - {name: heart, kind: csv, path: cleveland.csv, columns: {num: diagnosis}}

A study that says `num` then reads the column `diagnosis`. `patient` is the hospital's own
word on which column (by its own heading) tells patients apart; `patient: null` says that
each row is one patient. A study that protects patients is held against it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, field_serializer, field_validator

from common.config import Label, Loaded, Name, Section, Text, load, problem
from common.errors import ConfigError, DataError
from common.ids import check_name
from common.text import listed, nearest, show

SCHEMA: Final = "fedcare.site/v1"

MAX_SITES: Final = 512
"""Hospitals of one federation. Two messages grow with their number and have to stay within
gRPC's 2 MiB: the `Roster` (every member's keys and certificate, 2 to 3 KiB each with a chain
of one) and the end of an upload (64 sealed bundles of a share for every member). Of twice as
many hospitals neither would fit."""


def _site(value: str) -> str:
    try:
        return check_name(value, "site id")
    except Exception as error:
        raise ValueError(
            f"must be 1 to 63 of a-z, 0-9 and inner hyphens, not {show(value)}"
        ) from error


SiteId = Annotated[str, AfterValidator(_site)]
"""A hospital's short name: the last part of its certificate's URI."""


class Table(Section):
    """One table of the hospital's data."""

    name: Label
    kind: Literal["csv"]
    path: Annotated[Text, Field(min_length=1, max_length=1024)]
    columns: Mapping[Name, Name] = Field(default_factory=lambda: MappingProxyType({}))
    patient: Name | None = None

    @field_validator("columns")
    @classmethod
    def distinct(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        """Refuse one column under two names, and freeze the mapping."""
        taken: dict[str, str] = {}
        for study_name, column in value.items():
            if column in taken:
                raise problem(
                    f"is the column {show(column)}, as {show(taken[column])} is",
                    study_name,
                    name="DUPLICATE_KEY",
                )
            taken[column] = study_name
        return MappingProxyType(dict(value))

    @field_serializer("columns")
    def plain(self, value: Mapping[str, str]) -> dict[str, str]:
        """Write the frozen mapping as an ordinary one."""
        return dict(value)

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

    def column(self, study_name: str) -> str:
        """Return the heading in the hospital's table for a study's column."""
        return self.columns.get(study_name, study_name)


class Site(Section):
    """A hospital's manifest; after `load_site` every `path` is absolute."""

    schema_: Literal["fedcare.site/v1"] = Field(alias="schema")
    id: SiteId
    data: Annotated[tuple[Table, ...], Field(min_length=1, max_length=1000)]

    @field_validator("data")
    @classmethod
    def distinct(cls, value: tuple[Table, ...]) -> tuple[Table, ...]:
        """Refuse two tables of one name."""
        names: set[str] = set()
        for index, table in enumerate(value):
            if table.name in names:
                raise problem(
                    f"is {show(table.name)}, as an earlier table is",
                    index,
                    "name",
                    name="DUPLICATE_KEY",
                )
            names.add(table.name)
        return value

    def table(self, dataset: str) -> Table:
        """Return the table that a study's `dataset` names.

        Raises:
            DataError: DATA_EMPTY, the manifest has no such table.
        """
        for table in self.data:
            if table.name == dataset:
                return table
        names = [table.name for table in self.data]
        guess = nearest(dataset, names)
        hint = f"; did you mean '{guess}'?" if guess else f"; it has {listed(names)}"
        raise DataError(
            "DATA_EMPTY",
            f"site {self.id}: the manifest has no data set {show(dataset)}{hint}",
            fix="Add the data set to the site manifest, or correct the study's dataset.",
        )


def read_site(path: Path) -> Loaded[Site]:
    """Return a manifest with absolute table paths, and its lines.

    Raises:
        ConfigError: the manifest is missing or wrong, or names a file that is not there, or
            one file twice.
    """
    loaded = load(path, Site, SCHEMA)
    folder = path.resolve().parent
    tables: list[Table] = []
    taken: dict[tuple[int, int], str] = {}
    for index, table in enumerate(loaded.value.data):
        file = folder / table.path
        wrong = _why_no_file(file)
        if wrong:
            where = loaded.source.where("data", index, "path")
            raise ConfigError(
                "FILE_MISSING",
                f"{where}: data[{index}].path {show(table.path)} {wrong}",
            )
        _refuse_again(loaded.source.where("data", index, "path"), index, table, file, taken)
        tables.append(table.model_copy(update={"path": str(file)}))
    site = loaded.value.model_copy(update={"data": tuple(tables)})
    return Loaded(site, loaded.source)


def _refuse_again(
    where: str, index: int, table: Table, file: Path, taken: dict[tuple[int, int], str]
) -> None:
    """Refuse the file of another table, by whatever path: its patients would be counted twice.

    Each data set has a privacy budget of its own (docs/protocol.md, section 9.4).
    """
    found = file.stat()
    other = taken.setdefault((found.st_dev, found.st_ino), table.name)
    if other != table.name:
        raise ConfigError(
            "DUPLICATE_KEY",
            f"{where}: data[{index}].path {show(table.path)} is the file of data set "
            f"{show(other)}: the same patients would have two privacy budgets",
            fix="Offer one table under one name; map headings with `columns`.",
        )


def _why_no_file(file: Path) -> str:
    """Return why `file` is not a file, as the rest of a sentence; empty if it is one."""
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is not a file (paths are relative to the manifest's folder)"
    except OSError as failure:
        return f"cannot be reached by uid {os.geteuid()}: {failure.strerror}"
    if stat.S_ISDIR(mode):
        return "is not a file but a folder"
    return "" if stat.S_ISREG(mode) else "is not an ordinary file"


def load_site(path: Path) -> Site:
    """Return a manifest with absolute table paths.

    Raises:
        ConfigError: as `read_site`.
    """
    return read_site(path).value


def load_sites(paths: Sequence[Path]) -> tuple[Site, ...]:
    """Return several hospitals' manifests, as a simulation needs them.

    Raises:
        ConfigError: as `read_site`; DUPLICATE_KEY if two manifests have one id.
    """
    sites: dict[str, Site] = {}
    first: dict[str, str] = {}
    for path in paths:
        loaded = read_site(path)
        site = loaded.value
        where = loaded.source.where("id")
        if site.id in sites:
            raise ConfigError(
                "DUPLICATE_KEY", f"{where}: id '{site.id}' is the id of {first[site.id]} already"
            )
        sites[site.id], first[site.id] = site, where
    return tuple(sites.values())
