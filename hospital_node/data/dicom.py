"""A folder of DICOM files as a table: one row a file, columns from its tags.

Only files called `*.dcm` are read, also in folders below, in the order of their paths; what
is called so and is not DICOM is refused. Pixels are not read here (`images`). A message names
the row, never the file: its name may tell who the patient is.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from common.errors import ConfigError, DataError
from common.site_tables import DicomTable
from common.text import show
from hospital_node.data.csv import Raw
from hospital_node.data.harmonise import FILE

_PATIENT: Final = "PatientID"


def dicom_files(table: DicomTable) -> list[Path]:
    """Return the folder's files in the order of their paths.

    Raises:
        ConfigError: FILE_MISSING, the folder has none.
    """
    folder = Path(table.path)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".dcm")
    if not found:
        raise ConfigError("FILE_MISSING", f"{folder.name} holds no *.dcm file")
    return found


def read_dicom(table: DicomTable) -> Raw:
    """Return `PatientID`, `file` and the manifest's keywords as text, a row for each file.

    Raises:
        ConfigError: FILE_MISSING; FILE_SYNTAX, a file is not DICOM; NOT_SUPPORTED, pydicom is
            not installed. DataError: DATA_COLUMN, no such keyword; DATA_VALUE, a file names
            no patient, or has several values of a tag.
    """
    folder = Path(table.path)
    keywords = list(dict.fromkeys([_PATIENT, *table.columns.values()]))
    _check_keywords(folder.name, keywords)
    rows: list[list[str]] = []
    for number, path in enumerate(dicom_files(table), start=1):
        where = f"{folder.name}, row {number}"
        tags = _tags(path, keywords, where)
        cells = [_text(tags.get(keyword), where, keyword) for keyword in keywords]
        if not cells[0]:
            raise DataError("DATA_VALUE", f"{where}: the file names no patient ({_PATIENT})")
        rows.append([*cells, path.relative_to(folder).as_posix()])
    names = [f"c{place}" for place in range(len(keywords) + 1)]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")
    return Raw(folder.name, [*keywords, FILE], frame)


def pydicom() -> Any:  # noqa: ANN401 - a module
    """Return the library.

    Raises:
        ConfigError: NOT_SUPPORTED, it is not installed.
    """
    try:
        import pydicom as library
    except ImportError:
        raise ConfigError(
            "NOT_SUPPORTED",
            "DICOM files need pydicom, which is not installed",
            fix="pip install 'fedcare[dicom]'",
        ) from None
    return library


def is_deflated(path: Path) -> bool:
    """Whether all of a file is compressed; its reader would unpack it, however large it becomes."""
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    return bool(syntax == DeflatedExplicitVRLittleEndian)


def _check_keywords(name: str, keywords: list[str]) -> None:
    pydicom()
    from pydicom.datadict import tag_for_keyword

    for keyword in keywords:
        if tag_for_keyword(keyword) is None:
            raise DataError("DATA_COLUMN", f"{name}: DICOM has no keyword {show(keyword)}")


def _tags(path: Path, keywords: list[str], where: str) -> Any:  # noqa: ANN401 - a dataset
    tags = None
    try:
        if not is_deflated(path):
            tags = pydicom().dcmread(path, stop_before_pixels=True, specific_tags=keywords)
    except Exception:  # noqa: BLE001 - whatever a broken file makes it raise may quote the file
        raise ConfigError("FILE_SYNTAX", f"{where}: not a DICOM file") from None
    if tags is None:
        raise ConfigError("FILE_SYNTAX", f"{where}: the DICOM file is deflated as a whole")
    return tags


def _text(value: object, where: str, keyword: str) -> str:
    if value is None:
        return ""
    if isinstance(value, (MutableSequence, bytes)):
        raise DataError("DATA_VALUE", f"{where}: {keyword} is not one plain value")
    return str(value).strip()
