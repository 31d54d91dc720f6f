"""The images of a table's rows: PNG, JPEG or DICOM files, brought to the study's form.

    pixel = (value - low) / (high - low), cut off at 0 and 1          (window [low, high])

then resized to [height, width] (bilinear, without regard to the sides' ratio). Values of PNG
and JPEG are as stored, of DICOM after rescale slope and intercept; MONOCHROME1, in which low
is white, is turned round. A message names table, column, row and reason, never the file: its
name may tell who the patient is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import DataError
from common.study import Feature
from hospital_node.data.csv import TextTable
from hospital_node.data.dicom import is_deflated, pydicom

MOST_PIXELS: Final = 1 << 26
"""Of one file; a header may claim any size, and a reader would make room for it."""

_DICOM_MARK: Final = b"DICM"
_MARK_AT: Final = 128
_GREY, _COLOUR = 2, 3
_DEEP: Final = frozenset({"I", "F", "I;16", "I;16B", "I;16L"})

Floats = NDArray[np.float32]


_CONVERT: Final = (
    "Convert such files (`gdcmconv --raw`, or `dcmdjpeg`), or install a decoder that pydicom "
    "finds by itself: `pip install python-gdcm`."
)


class _Unfit(Exception):
    """Why a file cannot be used, as the rest of a sentence about its row, and the fix if any."""

    def __init__(self, why: str, fix: str | None = None) -> None:
        super().__init__(why)
        self.fix = fix


def read_images(feature: Feature, text: TextTable, used: NDArray[np.int64]) -> Floats:
    """Return the pixels of the `used` rows, float32 [rows, channels * height * width], 0..1.

    Raises:
        DataError: DATA_VALUE (table, column, row): no such file in the folder, not an image,
            too large, of another number of channels; DATA_SOURCE, the manifest names no folder.
        ConfigError: NOT_SUPPORTED, a DICOM file and no pydicom.
    """
    if text.folder is None:
        raise DataError(
            "DATA_SOURCE",
            f"{text.name}, column '{feature.name}': the site manifest does not say where the "
            "images are",
            fix="Add `images: FOLDER` to the table in the site manifest.",
        )
    if feature.size is None or feature.channels is None:
        raise DataError("DATA_VALUE", f"feature '{feature.name}' is no image")
    height, width = feature.size
    found = np.empty((len(used), feature.channels * height * width), np.float32)
    folder = text.folder.resolve()
    names = text.columns[feature.name].gather(used).to_list()
    for place, (name, row) in enumerate(zip(names, text.places(used).tolist(), strict=True)):
        try:
            found[place] = _pixels(feature, folder, name)
        except _Unfit as why:
            where = f"{text.name}, column '{feature.name}', row {row + 1}"
            raise DataError("DATA_VALUE", f"{where}: {why}", fix=why.fix) from None
    return found


def _pixels(feature: Feature, folder: Path, name: str) -> Floats:
    path = _inside(folder, name)
    values, turned = _values(path, feature.channels == 1)
    low, high = feature.window or (0.0, 255.0)
    scaled = np.clip((values - low) / (high - low), 0.0, 1.0).astype(np.float32)
    if turned:
        scaled = 1.0 - scaled
    height, width = feature.size or scaled.shape[:2]
    planes = scaled[:, :, None] if scaled.ndim == _GREY else scaled
    if planes.shape[2] != feature.channels:
        planes = np.repeat(planes, feature.channels or 1, axis=2)
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[:, :, channel])).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        )
        for channel in range(planes.shape[2])
    ]
    flat: Floats = np.clip(np.stack(resized), 0.0, 1.0).reshape(-1)
    return flat


def _inside(folder: Path, name: str) -> Path:
    """Return the file; links are followed first, so that none leads out of the folder."""
    try:
        path = (folder / name).resolve()
        inside, there = path.is_relative_to(folder), path.is_file()
    except (OSError, ValueError, RuntimeError):
        raise _Unfit("its file cannot be reached") from None
    if not inside:
        raise _Unfit("its file lies outside the folder of images")
    if not there:
        raise _Unfit("its file is not in the folder of images")
    return path


def _values(path: Path, grey: bool) -> tuple[NDArray[np.float64], bool]:  # noqa: FBT001
    """Return the stored values [height, width(, 3)], and whether low means white."""
    try:
        with path.open("rb") as file:
            head = file.read(_MARK_AT + len(_DICOM_MARK))
    except OSError:
        raise _Unfit("its file cannot be read") from None
    if head[_MARK_AT:] == _DICOM_MARK:
        return _dicom(path, grey)
    return _picture(path, grey), False


def _picture(path: Path, grey: bool) -> NDArray[np.float64]:  # noqa: FBT001
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            _check_size(image.width, image.height)
            if image.mode in _DEEP:
                return np.asarray(image, np.float64)
            return np.asarray(image.convert("L" if grey else "RGB"), np.float64)
    except _Unfit:
        raise
    except Exception:  # noqa: BLE001 - a broken file makes decoders raise anything
        raise _Unfit("its file is not a whole PNG, JPEG or DICOM image") from None


def _dicom(path: Path, grey: bool) -> tuple[NDArray[np.float64], bool]:  # noqa: FBT001
    library = pydicom()
    try:
        _check_inflated(path)
        values, turned = _rescaled(library.dcmread(path))
    except _Unfit:
        raise
    except Exception:  # noqa: BLE001 - a broken file makes decoders raise anything
        raise _Unfit("its DICOM file is broken or without pixels") from None
    if values.ndim == _COLOUR and grey:
        raise _Unfit("its DICOM file is in colour, and the study's images have one channel")
    if not np.isfinite(values).all():
        raise _Unfit("its image has a value that is not finite")
    return values, turned


def _check_inflated(path: Path) -> None:
    if is_deflated(path):
        raise _Unfit("its DICOM file is deflated as a whole")


def _rescaled(data: Any) -> tuple[NDArray[np.float64], bool]:  # noqa: ANN401 - a dataset
    """Return slope * stored + intercept, and whether low means white."""
    if int(data.get("NumberOfFrames") or 1) != 1:
        raise _Unfit("its file has several frames")
    _check_size(int(data.Columns), int(data.Rows))
    _check_syntax(data.file_meta.TransferSyntaxUID)
    slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
    values = np.asarray(data.pixel_array, np.float64) * float(1 if slope is None else slope)
    turned = data.get("PhotometricInterpretation") == "MONOCHROME1"
    return values + float(0 if intercept is None else intercept), turned


def _check_syntax(uid: Any) -> None:  # noqa: ANN401 - a UID
    """Refuse what no decoder of this installation reads, by the name that DICOM has for it."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import AllTransferSyntaxes

    try:
        readable = get_decoder(uid).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        how = f"as {uid.name} ({uid})" if uid in AllTransferSyntaxes else "in no way DICOM knows"
        why = f"its DICOM file is compressed {how}, which no decoder installed here reads"
        raise _Unfit(why, _CONVERT)


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise _Unfit("its image is too large")
