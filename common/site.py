"""A site manifest: where one hospital's tables lie. It never leaves the hospital.

The schema is `fedcare.site/v1`. A table has the name that studies ask for (`dataset`), a
`kind` (`common.site_tables`) and, for files, a path relative to the manifest's folder (or
absolute: it is the hospital's own file). Where the hospital's headings differ, `columns`
goes from the study's name to its own:

    - {name: heart, kind: csv, path: cleveland.csv, columns: {num: diagnosis}}

A study that says `num` then reads the column `diagnosis`. `patient` is the hospital's own
word on which column (by its own heading) tells patients apart; `patient: null` says that
each row is one patient. A study that protects patients is held against it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, assert_never

from pydantic import AfterValidator, Field, field_validator

from common.config import Loaded, Section, load, problem
from common.errors import ConfigError, DataError
from common.ids import check_name
from common.site_tables import (
    CsvTable,
    DicomTable,
    FhirTable,
    OmopTable,
    ParquetTable,
    Renamed,
    SqlTable,
    Table,
)
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
            one source twice.
    """
    loaded = load(path, Site, SCHEMA)
    folder = path.resolve().parent
    tables: list[Table] = []
    taken: dict[Hashable, str] = {}
    for index, table in enumerate(loaded.value.data):
        key, stated = _path_of(table)
        where = loaded.source.where("data", index, key)
        if stated is not None:
            wrong = _why_unusable(folder / stated, folder=isinstance(table, FhirTable | DicomTable))
            if wrong:
                raise ConfigError(
                    "FILE_MISSING", f"{where}: data[{index}].{key} {show(stated)} {wrong}"
                )
            table = table.model_copy(update={key: str(folder / stated)})  # noqa: PLW2901
        table = _with_images(table, folder, loaded.source.where("data", index, "images"), index)  # noqa: PLW2901
        _refuse_again(f"{where}: data[{index}].{key}", table, taken)
        tables.append(table)
    site = loaded.value.model_copy(update={"data": tuple(tables)})
    return Loaded(site, loaded.source)


def _with_images(table: Table, folder: Path, where: str, index: int) -> Table:
    """Return the table with the absolute path of its images."""
    if not isinstance(table, Renamed) or table.images is None:
        return table
    wrong = _why_unusable(folder / table.images, folder=True)
    if wrong:
        raise ConfigError(
            "FILE_MISSING", f"{where}: data[{index}].images {show(table.images)} {wrong}"
        )
    return table.model_copy(update={"images": str(folder / table.images)})


def _path_of(table: Table) -> tuple[str, str | None]:
    """Return the key that says where a table is, and its path if it is one."""
    match table:
        case CsvTable() | ParquetTable() | FhirTable() | DicomTable():
            return "path", table.path
        case SqlTable() | OmopTable():
            return ("url_file", table.url_file) if table.url_file else ("name", None)
        case _:
            assert_never(table)


def _source_of(table: Table) -> Hashable:
    """Return what is equal for two tables that are the same rows, as far as can be told.

    Two different queries of one database may still meet the same patients: only the hospital
    knows (docs/data.md).
    """
    match table:
        case CsvTable() | ParquetTable() | FhirTable() | DicomTable():
            found = Path(table.path).stat()
            return (found.st_dev, found.st_ino)
        case SqlTable():
            return (table.place, " ".join(table.query.split()))
        case OmopTable():
            return (table.place, " ".join(table.cohort.split()))
        case _:
            assert_never(table)


def _refuse_again(where: str, table: Table, taken: dict[Hashable, str]) -> None:
    """Refuse the rows of another table, by whatever path: its patients would be counted twice.

    Each data set has a privacy budget of its own (docs/protocol.md, section 9.4).
    """
    other = taken.setdefault(_source_of(table), table.name)
    if other == table.name:
        return
    _, stated = _path_of(table)
    what = "rows" if isinstance(table, SqlTable | OmopTable) else "file"
    raise ConfigError(
        "DUPLICATE_KEY",
        f"{where} {show(stated or table.name)} is the {what} of data set "
        f"{show(other)}: the same patients would have two privacy budgets",
        fix="Offer one table under one name; map headings with `columns`.",
    )


def _why_unusable(path: Path, *, folder: bool) -> str:
    """Return why `path` is not a file (or folder), as the rest of a sentence; empty if it is."""
    what = "folder" if folder else "file"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return f"is not a {what} (paths are relative to the manifest's folder)"
    except OSError as failure:
        return f"cannot be reached by uid {os.geteuid()}: {failure.strerror}"
    if stat.S_ISDIR(mode):
        return "" if folder else "is not a file but a folder"
    if folder:
        return "is not a folder"
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
