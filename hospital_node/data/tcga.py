"""The TCGA-BRCA patients of FLamby's Fed-TCGA-BRCA, as one CSV file per region.

FLamby (Ogier du Terrail et al. 2022) keeps three files: `brca.csv` (39 columns, event E, days
T), `centers.csv` (the region of each source site) and `train_test_split.csv`. A patient's
barcode `TCGA-<source site>-<number>` names the source site; its region, among the split's
six, is the hospital here. Eight patients of no region are not in the split and are left
out. Columns get short plain names; cells stay as they are. `ATTRIBUTION` must be shown.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.errors import ConfigError, DataError

SITES: Final = ("northeast", "south", "west", "midwest", "europe", "canada")
"""Regions in the order of FLamby's centres 0 to 5."""

SHA256: Final = {
    "brca.csv": "07cb53423f7d579d33cfdbf2cba57b2aee75318b85866c68ce39a75b1f1ba020",
    "centers.csv": "d610df2dae0203ea229c9579747ed3eb8d28e137c5378f55acc6fe6b4632bb1d",
    "train_test_split.csv": "1249c6543a4060ff0fdaf8510fc37017755836db6c9fc5e6af96057c36510990",
}

ATTRIBUTION: Final = (
    "TCGA-BRCA clinical data, The Cancer Genome Atlas Research Network, via the Genomic Data "
    "Commons (open access), as prepared by FLamby (owkin/FLamby); split by region. Nobody may "
    "try to identify a patient."
)


def read_flamby(folder: Path) -> dict[str, str]:
    """Return each region's table as CSV text with a heading line, patients in file order.

    Raises:
        ConfigError: FILE_MISSING.
        DataError: DATA_CHECKSUM, a file is not FLamby's.
    """
    patients, centres, folds = (_read(folder / name) for name in SHA256)
    region = {row["TSS Code"]: row["Region"].lower() for row in centres}
    fold = {row["pid"]: row["fold"] for row in folds}
    texts = {site: io.StringIO(newline="") for site in SITES}
    writers = {site: csv.writer(text, lineterminator="\n") for site, text in texts.items()}
    for writer in writers.values():
        writer.writerow([*(column_name(name) for name in patients[0]), "split"])
    for row in patients:
        if row["pid"] in fold:
            site = region[row["pid"].split("-")[1]]
            writers[site].writerow([*row.values(), fold[row["pid"]]])
    return {site: text.getvalue() for site, text in texts.items()}


def column_name(name: str) -> str:
    """Return a heading in lower case with underscores: `morphology_8500_3`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def write_sites(tables: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Write one `<region>.csv` per hospital into `folder`; return the files by region.

    Raises:
        ConfigError: OUTPUT_EXISTS, one of the files is already there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {site: folder / f"{site}.csv" for site in tables}
    for path in paths.values():
        if path.exists():
            raise ConfigError("OUTPUT_EXISTS", f"{path.name} already exists in the output folder")
    for site, text in tables.items():
        paths[site].write_text(text, encoding="utf-8", newline="")
    return paths


def _read(path: Path) -> list[dict[str, str]]:
    try:
        content = path.read_bytes()
    except OSError:
        raise ConfigError("FILE_MISSING", f"{path} cannot be read") from None
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise DataError("DATA_CHECKSUM", f"{path.name} is not the file that FLamby ships")
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))
