"""Images of every kind become the same pixels, or are refused by row without naming a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common import models
from common.errors import ConfigError, DataError, FedError
from common.features import Table
from common.preprocessing import Preprocessing
from common.site import load_site
from common.statistics import without_statistics
from common.study import Study, canonical_json, parse_study, study_from_canonical
from hospital_node.data import images as images_module
from hospital_node.data.load import SiteData, load_table
from hospital_node.evaluate import predict
from hospital_node.models import build, flatten
from hospital_node.models.convolutional import group_count
from hospital_node.personal.artefact import Personal
from hospital_node.personal.score import Scorer
from hospital_node.train import train
from tests.pictures import SIDE, STUDY, shapes, write_dicom, write_png

ALL_TRAIN = STUDY.replace("split: {test: 0.3, seed: 1}", "split: {test: 0}")


def study(old: str = "", new: str = "") -> Study:
    assert old in ALL_TRAIN
    return parse_study(ALL_TRAIN.replace(old, new, 1) if old else ALL_TRAIN)


def read(folder: Path, section: str, terms: Study) -> SiteData:
    manifest = folder / "site.yaml"
    manifest.write_text(f"schema: fedcare.site/v1\nid: a\ndata: [{section}]\n")
    return load_table(terms, load_site(manifest).table("shapes"))


def pixels(table: Table) -> np.ndarray:
    assert table.pixels is not None
    return table.pixels


def one_png(folder: Path, terms: Study, name: str = "000.png") -> Table:
    images, labels = shapes(2, 0)
    section = write_png(folder, images, labels)
    if name != "000.png":
        rows = folder / "rows.csv"
        rows.write_text(rows.read_text().replace("001.png", name))
    return read(folder, section, terms).train


# --- what is read -----------------------------------------------------------------------------


def test_pixels_of_the_studys_size_are_the_stored_ones_over_255(tmp_path: Path) -> None:
    images, labels = shapes(5, 0)
    table = read(tmp_path, write_png(tmp_path, images, labels), study()).train
    assert pixels(table).dtype == np.float32
    np.testing.assert_allclose(pixels(table), images.reshape(5, -1) / 255, atol=1e-6)
    assert table.target.tolist() == labels.tolist()


def test_dicom_files_give_the_same_table_as_png_files(tmp_path: Path) -> None:
    images, labels = shapes(6, 1)
    terms = study("size: [16, 16]", "size: [8, 12]")
    png = read(tmp_path / "png", write_png(tmp_path / "png", images, labels), terms).train
    dcm = read(tmp_path / "dcm", write_dicom(tmp_path / "dcm", images, labels), terms).train
    assert np.array_equal(pixels(png), pixels(dcm))
    assert np.array_equal(png.target, dcm.target)
    assert pixels(png).shape == (6, 8 * 12)


def test_a_table_may_name_dicom_files(tmp_path: Path) -> None:
    images, labels = shapes(3, 1)
    write_dicom(tmp_path, images, labels)
    lines = [f"{row:03}.dcm,{label}" for row, label in enumerate(labels)]
    (tmp_path / "rows.csv").write_text("\n".join(["image,disc", *lines]) + "\n")
    section = "{name: shapes, kind: csv, path: rows.csv, images: scans}"
    table = read(tmp_path, section, study()).train
    np.testing.assert_allclose(pixels(table), images.reshape(3, -1) / 255, atol=1e-6)


def test_a_files_rows_of_one_dicom_patient_stay_together(tmp_path: Path) -> None:
    import pydicom

    section = write_dicom(tmp_path, *shapes(3, 1))
    for name in ("000.dcm", "002.dcm"):
        data = pydicom.dcmread(tmp_path / "scans" / name)
        data.PatientID = "same"
        data.save_as(tmp_path / "scans" / name)
    patient = read(tmp_path, section, study()).train.patient
    assert patient[0] == patient[2] != patient[1]


def test_monochrome1_is_turned_round(tmp_path: Path) -> None:
    import pydicom

    images, labels = shapes(1, 1)
    section = write_dicom(tmp_path, images, labels)
    path = tmp_path / "scans" / "000.dcm"
    data = pydicom.dcmread(path)
    data.PhotometricInterpretation = "MONOCHROME1"
    data.save_as(path)
    found = pixels(read(tmp_path, section, study()).train)
    np.testing.assert_allclose(found, 1 - images.reshape(1, -1) / 255, atol=1e-6)


def test_the_window_cuts_off_what_lies_outside(tmp_path: Path) -> None:
    images, labels = shapes(2, 0)
    terms = study("size: [16, 16]", "size: [16, 16], window: [50, 150]")
    found = pixels(read(tmp_path, write_png(tmp_path, images, labels), terms).train)
    wanted = np.clip((images.reshape(2, -1).astype(float) - 50) / 100, 0, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert {0.0, 1.0} <= set(found.ravel().tolist())


def test_colour_is_three_planes_one_after_the_other(tmp_path: Path) -> None:
    section = write_png(tmp_path, *shapes(1, 0))
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[..., 0], colour[..., 2] = 255, 51
    Image.fromarray(colour).save(tmp_path / "pictures" / "000.png")
    terms = study("size: [16, 16]", "size: [16, 16], channels: 3")
    found = pixels(read(tmp_path, section, terms).train).reshape(3, -1)
    assert [{round(value, 4) for value in plane.tolist()} for plane in found] == [
        {1.0},
        {0.0},
        {0.2},
    ]


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../secret-anna.png", "outside the folder"),
        ("/etc/hostname", "outside the folder"),
        ("anna-meier.png", "is not in the folder"),
        ("", "is missing"),
    ],
)
def test_a_row_without_its_file_is_refused_by_its_number(
    tmp_path: Path, name: str, why: str
) -> None:
    (tmp_path / "x").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "secret-anna.png")
    Image.new("L", (4, 4)).save(tmp_path / "x" / "secret-anna.png")
    with pytest.raises(DataError, match=rf"column 'image', row 2: .*{why}") as caught:
        one_png(tmp_path / "x", study(), name)
    assert "anna" not in str(caught.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "other.png")
    section = write_png(tmp_path, *shapes(2, 0))
    (tmp_path / "pictures" / "001.png").unlink()
    (tmp_path / "pictures" / "001.png").symlink_to(tmp_path / "other.png")
    with pytest.raises(DataError, match="row 2: its file lies outside"):
        read(tmp_path, section, study())


@pytest.mark.parametrize("cut", [0, 30, -40])
def test_a_broken_file_is_refused(tmp_path: Path, cut: int) -> None:
    section = write_png(tmp_path, *shapes(2, 0))
    path = tmp_path / "pictures" / "001.png"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="row 2: its file is not a whole"):
        read(tmp_path, section, study())


def test_a_broken_dicom_file_is_refused(tmp_path: Path) -> None:
    section = write_dicom(tmp_path, *shapes(2, 0))
    path = tmp_path / "scans" / "001.dcm"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="row 2: its DICOM file is broken"):
        read(tmp_path, section, study())
    path.write_bytes(b"no dicom at all")
    with pytest.raises(ConfigError, match="row 2: not a DICOM file"):
        read(tmp_path, section, study())


def test_only_png_jpeg_and_dicom_are_read(tmp_path: Path) -> None:
    section = write_png(tmp_path, *shapes(2, 0))
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "pictures" / "001.png", format="GIF")
    with pytest.raises(DataError, match="row 2: its file is not a whole PNG, JPEG or DICOM"):
        read(tmp_path, section, study())


def test_a_dicom_file_whose_values_are_rescaled_beyond_all_bounds_is_refused(
    tmp_path: Path,
) -> None:
    import pydicom

    section = write_dicom(tmp_path, *shapes(2, 0))
    path = tmp_path / "scans" / "001.dcm"
    data = pydicom.dcmread(path)
    data.RescaleIntercept = "1e400"
    data.save_as(path)
    with pytest.raises(DataError, match="row 2: its image has a value that is not finite"):
        read(tmp_path, section, study())


def test_a_dicom_file_that_would_be_unpacked_whole_is_refused(tmp_path: Path) -> None:
    import pydicom

    images, labels = shapes(2, 0)
    write_dicom(tmp_path, images, labels)
    path = tmp_path / "scans" / "001.dcm"
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)
    by_itself = "{name: shapes, kind: dicom, path: scans, columns: {disc: ImageComments}}"
    with pytest.raises(ConfigError, match="row 2: the DICOM file is deflated"):
        read(tmp_path, by_itself, study())
    (tmp_path / "rows.csv").write_text("image,disc\n000.dcm,0\n001.dcm,1\n")
    with pytest.raises(DataError, match="row 2: its DICOM file is deflated"):
        read(tmp_path, "{name: shapes, kind: csv, path: rows.csv, images: scans}", study())


@pytest.mark.parametrize("write", [write_png, write_dicom])
def test_an_image_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., str]
) -> None:
    monkeypatch.setattr(images_module, "MOST_PIXELS", SIDE * SIDE - 1)
    with pytest.raises(DataError, match="row 1: its image is too large"):
        read(tmp_path, write(tmp_path, *shapes(2, 0)), study())


def test_a_dicom_file_of_several_frames_is_refused(tmp_path: Path) -> None:
    import pydicom

    section = write_dicom(tmp_path, *shapes(2, 0))
    path = tmp_path / "scans" / "001.dcm"
    data = pydicom.dcmread(path)
    data.NumberOfFrames = 2
    data.save_as(path)
    with pytest.raises(DataError, match="row 2: its file has several frames"):
        read(tmp_path, section, study())


def test_images_need_a_folder_and_known_keywords(tmp_path: Path) -> None:
    write_png(tmp_path, *shapes(2, 0))
    with pytest.raises(DataError, match="does not say where"):
        read(tmp_path, "{name: shapes, kind: csv, path: rows.csv}", study())
    write_dicom(tmp_path, *shapes(2, 0))
    with pytest.raises(DataError, match="no keyword 'NoSuchTag'"):
        read(
            tmp_path,
            "{name: shapes, kind: dicom, path: scans, columns: {disc: NoSuchTag}}",
            study(),
        )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("kind: cnn, channels: [8, 16], norm: group", "kind: logistic", "needs cnn"),
        ("type: image, size: [16, 16]", "type: float", "needs a feature of type image"),
        (", size: [16, 16]", "", "needs 'size'"),
        ("[16, 16]}]", "[16, 16]}, {name: age, type: float}]", "image alone"),
        ("channels: [8, 16]", "channels: [8, 8, 8, 8, 8]", "nothing is left"),
        ("seed: 5", "seed: 5\nnormalise: federated", "must be none"),
        ("[16, 16]}]", "[16, 16], impute: drop-row}]", "every row needs its image"),
        ("disc}", "disc}\nevaluate: {subgroups: [{feature: image}]}", "told by an image"),
    ],
)
def test_what_does_not_go_with_images_is_refused(old: str, new: str, why: str) -> None:
    with pytest.raises(FedError, match=why):
        study(old, new)


def test_images_have_no_differential_privacy() -> None:
    with pytest.raises(FedError, match="differential privacy"):
        study(
            "seed: 5",
            "seed: 5\nprivacy: {dp: {mode: patient-local, epsilon: 3, delta: 1.0e-5, clip: 1}}",
        )


def test_the_canonical_form_reads_back_and_others_have_no_key_of_images() -> None:
    assert study_from_canonical(canonical_json(study())) == study()
    plain = ALL_TRAIN.replace("type: image, size: [16, 16]", "type: float")
    other = canonical_json(
        parse_study(plain.replace("kind: cnn, channels: [8, 16], norm: group", "kind: logistic"))
    )
    assert b"window" not in other


# --- where a table comes from, and how DICOM is compressed --------------------------------------


def parquet_of(folder: Path) -> str:
    import polars as pl

    pl.read_csv(folder / "rows.csv").write_parquet(folder / "rows.parquet")
    return "{name: shapes, kind: parquet, path: rows.parquet, images: pictures}"


QUERY = "select * from rows order by image"


def sqlite_of(folder: Path) -> str:
    import polars as pl

    with sqlite3.connect(folder / "rows.sqlite") as database:
        database.execute("create table rows (image text, disc integer)")
        rows = pl.read_csv(folder / "rows.csv").rows()
        database.executemany("insert into rows values (?, ?)", rows)
    url = f"sqlite:///{folder}/rows.sqlite"
    return f"{{name: shapes, kind: sql, url: '{url}', query: {QUERY}, images: pictures}}"


@pytest.mark.parametrize("source", [parquet_of, sqlite_of])
def test_a_parquet_or_sql_table_names_images_as_a_csv_does(
    tmp_path: Path, source: Callable[[Path], str]
) -> None:
    csv = read(tmp_path, write_png(tmp_path, *shapes(5, 0)), study()).train
    section = source(tmp_path)
    found = read(tmp_path, section, study()).train
    assert np.array_equal(pixels(found), pixels(csv))
    assert np.array_equal(found.target, csv.target)
    (tmp_path / "pictures" / "003.png").unlink()
    with pytest.raises(DataError, match="column 'image', row 4: its file is not in the folder"):
        read(tmp_path, section, study())


@pytest.mark.parametrize("source", [parquet_of, sqlite_of])
def test_a_table_that_does_not_say_where_its_images_lie_is_told_the_key(
    tmp_path: Path, source: Callable[[Path], str]
) -> None:
    write_png(tmp_path, *shapes(2, 0))
    section = source(tmp_path).replace(", images: pictures", "")
    with pytest.raises(DataError, match="does not say where the images are") as caught:
        read(tmp_path, section, study())
    assert "images: FOLDER" in str(caught.value.fix)


def compressed(folder: Path, syntax: str, image: np.ndarray) -> None:
    """Write `image` uint8 into the folder's first file, in one frame of a transfer syntax."""
    import pydicom
    from pydicom.encaps import encapsulate

    path = folder / "scans" / "000.dcm"
    data, out = pydicom.dcmread(path), BytesIO()
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.RescaleSlope, data.RescaleIntercept = "1", "0"
    data.PixelData = image.tobytes()
    if syntax == RLE:
        data.compress(RLE)
    else:
        form = {JPEG: "JPEG", JPEG_2000: "JPEG2000"}.get(syntax, "JPEG")
        options = {"no_jp2": True} if form == "JPEG2000" else {"quality": 95}
        Image.fromarray(image).save(out, form, **options)
        data.PixelData = encapsulate([out.getvalue()])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.save_as(path)


RLE, JPEG, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"


@pytest.mark.parametrize(("syntax", "most"), [(RLE, 0), (JPEG_2000, 0), (JPEG, 8 / 255)])
def test_rle_jpeg_and_jpeg_2000_are_read(tmp_path: Path, syntax: str, most: float) -> None:
    images, labels = shapes(1, 1)
    section = write_dicom(tmp_path, images, labels)
    smooth = np.asarray(Image.fromarray(images[0]).resize((4, 4)).resize((SIDE, SIDE)))
    compressed(tmp_path, syntax, smooth)
    found = pixels(read(tmp_path, section, study()).train)
    assert np.abs(found - smooth.reshape(1, -1) / 255).max() <= most + 1e-6


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.70", "JPEG Lossless"),
        ("1.2.840.10008.1.2.4.80", "JPEG-LS Lossless"),
        ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.826.0.1.3680043.9.9999", "in no way DICOM knows"),
    ],
)
def test_another_compression_is_refused_by_its_name_with_the_fix(
    tmp_path: Path, syntax: str, name: str
) -> None:
    section = write_dicom(tmp_path, *shapes(1, 1))
    compressed(tmp_path, syntax, np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(DataError, match=f"row 1: its DICOM file is compressed .*{name}") as caught:
        read(tmp_path, section, study())
    assert "gdcmconv --raw" in str(caught.value.fix)
    assert "000.dcm" not in str(caught.value)
    assert "9999" not in str(caught.value)


# --- the network ------------------------------------------------------------------------------

NORMS = ("group", "batch", "none")


@given(
    channels=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    norm=st.sampled_from(NORMS),
    colours=st.sampled_from([1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_the_layout_is_the_modules_tensors_and_survives_it(
    channels: list[int], norm: str, colours: int
) -> None:
    terms = study("channels: [8, 16], norm: group", f"channels: {channels}, norm: {norm}")
    image = terms.features[0].model_copy(update={"channels": colours})
    terms = terms.model_copy(update={"features": (image,)})
    schema = models.full_layout(terms)
    model = np.arange(schema.parameters, dtype=np.float32)
    module = build(terms, model)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    assert {t.name: t.shape for t in schema.tensors} == {
        n: tuple(v.shape) for n, v in named.items()
    }
    assert np.array_equal(flatten(module, schema), model)


def test_it_starts_within_kaimings_bounds() -> None:
    terms = study()
    views = models.layout(terms).views(models.initial(terms))
    for name, inputs, gain in (("convs.0", 9, 6), ("convs.1", 72, 6), ("layers.0", 16, 3)):
        limit = np.sqrt(gain / inputs)
        assert 0.7 * limit < np.abs(views[f"{name}.weight"]).max() <= limit
        assert not views[f"{name}.bias"].any()
    assert (views["norms.1.weight"] == 1).all()


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (12, 6), (7, 7), (11, 1), (1, 1)])
def test_groups_are_the_largest_divisor_up_to_8(channels: int, groups: int) -> None:
    assert group_count(channels) == groups


@pytest.mark.parametrize("norm", NORMS)
def test_a_prediction_is_that_of_a_slow_network(norm: str) -> None:
    number = ALL_TRAIN.replace("binary, name: disc", "continuous, name: disc")
    terms = parse_study(number.replace("norm: group", f"norm: {norm}"))
    rng = np.random.Generator(np.random.PCG64(3))
    schema = models.full_layout(terms)
    model = rng.normal(0.0, 0.5, schema.parameters).astype(np.float32)
    for name, view in schema.views(model).items():
        if name.endswith("running_var"):
            view[...] = np.abs(view) + 0.1
    views = {name: view.astype(np.float64) for name, view in schema.views(model).items()}
    rows = rng.random((3, SIDE * SIDE)).astype(np.float32)
    found = predict(terms, model, rows)
    for row, answer in zip(rows, found, strict=True):
        top = slow(views, norm, row.reshape(1, SIDE, SIDE).astype(np.float64))
        assert answer == pytest.approx(top, rel=1e-4)


def slow(views: dict[str, np.ndarray], norm: str, signal: np.ndarray) -> float:
    """Loops over every pixel: convolution, normalisation, ReLU, pooling, mean, line."""
    for place in range(2):
        weight, bias = views[f"convs.{place}.weight"], views[f"convs.{place}.bias"]
        side = signal.shape[1]
        wide = np.pad(signal, ((0, 0), (1, 1), (1, 1)))
        out = np.empty((len(weight), side, side))
        for channel in range(len(weight)):
            for y in range(side):
                for x in range(side):
                    patch = wide[:, y : y + 3, x : x + 3]
                    out[channel, y, x] = (weight[channel] * patch).sum() + bias[channel]
        if norm == "group":
            parts = out.reshape(8, -1)
            parts = (parts - parts.mean(1, keepdims=True)) / np.sqrt(
                parts.var(1, keepdims=True) + 1e-5
            )
            out = parts.reshape(out.shape)
        if norm == "batch":
            mean, var = views[f"norms.{place}.running_mean"], views[f"norms.{place}.running_var"]
            out = (out - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
        if norm != "none":
            out = (
                out * views[f"norms.{place}.weight"][:, None, None]
                + views[f"norms.{place}.bias"][:, None, None]
            )
        out = np.maximum(out, 0).reshape(len(weight), side // 2, 2, side // 2, 2)
        signal = out.max(axis=(2, 4))
    return float(views["layers.0.weight"][0] @ signal.mean(axis=(1, 2)) + views["layers.0.bias"][0])


@pytest.mark.parametrize(
    "target",
    ["binary, name: disc", "multiclass, name: disc, levels: ['0', '1']", "continuous, name: disc"],
)
@pytest.mark.parametrize("norm", NORMS)
def test_training_lowers_the_loss_and_repeats_to_the_bit(
    tmp_path: Path, target: str, norm: str
) -> None:
    text = ALL_TRAIN.replace("binary, name: disc", target).replace("norm: group", f"norm: {norm}")
    terms = parse_study(text)
    table = read(tmp_path, write_png(tmp_path, *shapes(24, 0)), terms).train
    constants: Preprocessing = without_statistics(terms)
    data = constants.encode(terms, table)
    model = models.initial(terms)
    first = train(terms, data, model, site="a")
    again = train(terms, data, model, site="a")
    assert np.array_equal(first.delta, again.delta)
    after = train(terms, data, model + first.delta, site="a")
    assert after.loss < first.loss


def test_patients_are_not_scored_from_images() -> None:
    terms = study()
    with pytest.raises(ConfigError, match="from images"):
        Scorer.released(terms, np.zeros(models.layout(terms).parameters, np.float32))
    with pytest.raises(FedError, match="no patients from images"):
        Scorer.personal(Personal(terms, np.zeros(models.layout(terms).parameters, np.float32), {}))


def test_size_is_height_then_width(tmp_path: Path) -> None:
    """Dark beside light stays so, in every row."""
    section = write_png(tmp_path, *shapes(1, 0))
    halves = np.zeros((8, 8), np.uint8)
    halves[:, 4:] = 255
    Image.fromarray(halves).save(tmp_path / "pictures" / "000.png")
    found = pixels(read(tmp_path, section, study("size: [16, 16]", "size: [4, 8]")).train)
    rows = found.reshape(4, 8)
    assert (rows == rows[:1]).all()
    assert (rows[0, :3] < 0.2).all()
    assert (rows[0, 5:] > 0.8).all()
