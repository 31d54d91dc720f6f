"""The first row of a hospital's CSV file, and what a start checks of every table.

`check_tables` holds the manifest against the files before the node dials: a table that is
not there, not text, or lacks a column that the manifest names is an error of the start, with
the manifest's line, not a surprise of the first study. What a *study* asks for is checked
when the study comes, and so is a database: one that is down stops no start. Needs polars
for a Parquet file only.

Messages name the file and the heading, never a cell. A file without a heading row has
patients' values in its first row, so no heading is proposed from a row that holds a number.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, assert_never

from common.config import Loaded
from common.errors import ConfigError, DataError, FedError
from common.site import Site
from common.site_tables import (
    CsvTable,
    DicomTable,
    FhirTable,
    OmopTable,
    ParquetTable,
    SqlTable,
    Table,
)
from common.text import nearest, show

CHECKED_BYTES: Final = 64 << 20
"""So much of a table must be UTF-8 for the node to start; a study reads all of it."""

_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a text file is written; `str()` is how messages call it."""

    delimiter: str = ","
    encoding: str = "utf-8"

    @property
    def reads(self) -> str:
        """Python's codec: UTF-8 may begin with a mark."""
        return "utf-8-sig" if self.encoding == "utf-8" else self.encoding

    @property
    def named(self) -> str:
        """What ends a cell."""
        return {",": "a comma", "\t": "a tab"}.get(self.delimiter, f"'{self.delimiter}'")

    def __str__(self) -> str:
        encoding = {"utf-8": "UTF-8"}.get(self.encoding, self.encoding)
        words = {",": "comma-separated", "\t": "tab-separated"}
        return f"{words.get(self.delimiter, f'{self.delimiter}-separated')} {encoding}"


COMMAS: Final = Dialect()


def dialect_of(table: CsvTable) -> Dialect:
    """Return how a manifest says a file is written."""
    return Dialect(table.delimiter, table.encoding)


def check_tables(loaded: Loaded[Site]) -> None:
    """Hold a manifest against its files.

    Raises:
        ConfigError: FILE_MISSING, FILE_SYNTAX; DataError: DATA_EMPTY, DATA_COLUMN. Each
            begins with the manifest's line.
    """
    for index, table in enumerate(loaded.value.data):
        place: tuple[str | int, ...] = ("data", index, "path")
        try:
            match table:
                case CsvTable():
                    header = read_header(Path(table.path), dialect_of(table))
                    _check_text(Path(table.path), table.encoding)
                case ParquetTable():
                    from hospital_node.data.parquet import read_names

                    header = read_names(Path(table.path))
                case FhirTable():
                    from hospital_node.data.fhir import export_files

                    export_files(table)
                    continue
                case DicomTable():
                    from hospital_node.data.dicom import dicom_files

                    dicom_files(table)
                    continue
                case SqlTable() | OmopTable():
                    from hospital_node.data.database import address_of

                    place = ("data", index, "name")
                    address_of(table)
                    continue
                case _:
                    assert_never(table)
            for study_name, heading in table.columns.items():
                place = ("data", index, "columns", study_name)
                find(table_name(table), header, study_name, heading)
            if table.patient is not None:
                place = ("data", index, "patient")
                find(table_name(table), header, table.patient, table.patient)
        except FedError as failure:
            where = loaded.source.where(*place)
            raise type(failure)(
                failure.name, f"{where}: {failure.detail}", fix=failure.fix
            ) from None


def table_name(table: Table) -> str:
    """Return what messages call a table: a file without the folders that lead to it."""
    match table:
        case CsvTable() | ParquetTable() | FhirTable() | DicomTable():
            return Path(table.path).name
        case SqlTable() | OmopTable():
            return f"{table.kind} table {table.name}"
        case _:
            assert_never(table)


def read_header(path: Path, dialect: Dialect = COMMAS) -> list[str]:
    """Return the headings of a text file, stripped.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, not such a file.
        DataError: DATA_EMPTY, there is no heading.
    """
    try:
        with path.open(encoding=dialect.reads, newline="") as file:
            header = next(csv.reader(file, delimiter=dialect.delimiter), None)
    except OSError as failure:
        raise ConfigError(
            "FILE_MISSING",
            f"{path.name} cannot be read by uid {os.geteuid()}: {failure.strerror}",
        ) from None
    except (UnicodeDecodeError, csv.Error):
        raise ConfigError("FILE_SYNTAX", f"{path.name} is not {dialect} text") from None
    if not header or not any(cell.strip() for cell in header):
        raise DataError("DATA_EMPTY", f"{path.name} is empty: not even a header")
    return [cell.strip() for cell in header]


def find(file: str, header: Sequence[str], study_name: str, heading: str) -> int:
    """Return the place of a study's column, which the file calls `heading`.

    Raises:
        DataError: DATA_COLUMN, it is absent or stands twice.
    """
    found = [place for place, cell in enumerate(header) if cell == heading]
    if len(found) == 1:
        return found[0]
    named = show(heading) if study_name == heading else f"{show(heading)} (for {show(study_name)})"
    if found:
        raise DataError("DATA_COLUMN", f"{file} has the column {named} twice")
    raise DataError("DATA_COLUMN", f"{file} has no column {named}{_hint(header, heading)}")


def _hint(header: Sequence[str], heading: str) -> str:
    if len(header) == 1 and ";" in header[0]:
        return "; the header is separated by ';': write `delimiter: ';'` in the site manifest"
    if any(map(_is_number, header)):
        return "; its first row holds numbers, so it is not a row of headings"
    guess = nearest(heading, header)
    return f"; did you mean {show(guess)}?" if guess else ""


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_text(path: Path, encoding: str) -> None:
    """Refuse a file whose beginning is not text: a later row would stop the first study."""
    decoder, left = codecs.getincrementaldecoder(encoding)(), CHECKED_BYTES
    try:
        with path.open("rb") as file:
            while left > 0 and (block := file.read(min(_BLOCK, left))):
                decoder.decode(block)
                left -= len(block)
    except OSError as failure:
        raise ConfigError("FILE_MISSING", f"{path.name}: {failure.strerror}") from None
    except UnicodeDecodeError:
        called = {"utf-8": "UTF-8"}.get(encoding, encoding)
        raise ConfigError("FILE_SYNTAX", f"{path.name} is not {called} text") from None
