"""Small images for tests: discs and squares in noise, as PNG or DICOM files of equal pixels."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16

STUDY = """
schema: fedcare.study/v1
id: shapes
purpose: research
dataset: shapes
owner: {name: Somebody, organisation: uni-x}
features: [{name: image, type: image, size: [16, 16]}]
target: {type: binary, name: disc}
split: {test: 0.3, seed: 1}
model: {kind: cnn, channels: [8, 16], norm: group}
train: {optimiser: adam, lr: 0.01, batch: 8, local_epochs: 4}
federation: {rounds: 5, min_sites: 3}
seed: 5
"""


def shapes(rows: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images [rows, SIDE, SIDE] and whether each shows a disc (else a square's edge)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    discs = rng.integers(0, 2, rows)
    images = np.empty((rows, SIDE, SIDE), np.uint8)
    y, x = np.mgrid[:SIDE, :SIDE]
    for row, disc in enumerate(discs):
        middle_y, middle_x = rng.integers(6, 10, 2)
        far = np.hypot(y - middle_y, x - middle_x)
        box = np.maximum(abs(y - middle_y), abs(x - middle_x))
        shape = far <= 5 if disc else (box <= 5) & (box >= 4)
        images[row] = np.clip(shape * 120 + rng.normal(70, 25, (SIDE, SIDE)), 0, 255)
    return images, discs


def write_png(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Write the images and a csv that names them; return the manifest's section."""
    (folder / "pictures").mkdir(parents=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "disc"])
        for row, image in enumerate(images):
            Image.fromarray(image).save(folder / "pictures" / f"{row:03}.png")
            writer.writerow([f"{row:03}.png", labels[row]])
    return "{name: shapes, kind: csv, path: rows.csv, images: pictures}"


def write_dicom(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    """Write the images as DICOM files, the label in ImageComments; return the section."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    (folder / "scans").mkdir(parents=True)
    for row, image in enumerate(images):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(row)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID = meta.MediaStorageSOPClassUID
        data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        data.PatientID, data.ImageComments = f"p{row}", str(labels[row])
        data.Rows, data.Columns = image.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = 0
        # The stored value is 100 above; the rescaling takes it off again.
        data.RescaleSlope, data.RescaleIntercept = "0.5", "-50"
        data.PixelData = (image.astype("<u2") * 2 + 100).tobytes()
        data.save_as(folder / "scans" / f"{row:03}.dcm", enforce_file_format=True)
    return "{name: shapes, kind: dicom, path: scans, columns: {disc: ImageComments}}"
