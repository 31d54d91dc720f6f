"""What half the bytes cost: 16-bit uploads and float16 downloads against 32 bits, on real sets.

    python -m benchmarks.accuracy narrow --data HEART TCGA [--seeds 5]

HEART and TCGA hold the original files, as for `heart` and `tcga`. Each seed is run both ways and
compared with itself. Words of 16 bits are rounded at random (docs/protocol.md, section 7.4), so
that figures differ a little from run to run. Bytes are those of a training round that every run
reports (`researcher.traffic`); small models' downloads are mostly the file's header, so that a
model of 100,000 parameters stands beside the two.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.accuracy import frame, heart, large, tcga
from common.secagg.header import RoundKind
from common.site import Site
from common.study import Study, completed, load_study
from hospital_node.data import tcga as tcga_files
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import Knobs
from researcher.studies import changed, with_seed
from researcher.traffic import traffic

SETS: Final = {
    "heart": (heart.STUDY, (frame.ACCURACY, frame.AUROC)),
    "tcga": (tcga.STUDY, (frame.C_INDEX,)),
}
"""The study of each set, and what must not be lost on it."""

WIDE, NARROW, LOST, SHARE = "32 bits", "16 bits", "lost", "share"
MOST_LOST: Final = 0.002
HALF: Final = 0.51
_MODEL: Final = "100,000 parameters"


def measure(given: argparse.Namespace) -> frame.Entry:
    """Run both sets over the seeds, wide and narrow."""
    began = time.monotonic()
    costs: list[frame.Result] = []
    bytes_: list[frame.Result] = []
    with tempfile.TemporaryDirectory() as name:
        for (label, (file, figures)), source in zip(SETS.items(), given.data, strict=True):
            study = load_study(file)
            sites = _sites(label, source, Path(name), study.dataset)
            costs += cost(label, study, sites, range(given.seeds), figures)
            bytes_ += carried(label, study)
        written = generate(Path(name) / "large", Knobs(sites=3, rows=20), large.DATA_SEED)
        bytes_ += carried(_MODEL, large.of_size(load_study(written.study)))
    return frame.Entry(
        "narrow",
        "Half the bytes: 16-bit uploads and float16 downloads",
        f"python -m benchmarks.accuracy narrow --data HEART TCGA --seeds {given.seeds}",
        "`federation: {upload_bits: 16, download: float16}` against the default, with the studies "
        f"of `heart` and `tcga`, {given.seeds} seeds; losses are by seed. The order of batches "
        "follows from the model that a hospital received, so rounding changes it as another seed "
        "does, and the losses' standard errors have that chance in them. Bytes are the payload of "
        "a training round for one hospital, as every run reports them. The models of the two sets "
        "are so small that a download is mostly the file's header, and an upload has metrics too; "
        "the network of the last lines shows what larger models save.",
        (*costs, *bytes_),
        (
            *(frame.Must(one.way, LOST, MOST_LOST, at_most=True) for one in costs),
            *(frame.Must(one.way, SHARE, HALF, at_most=True) for one in bytes_[-2:]),
        ),
        time.monotonic() - began,
    )


def _sites(label: str, source: Path, folder: Path, dataset: str) -> list[Site]:
    if label == "heart":
        return heart.hospitals(source, folder, dataset)
    files = tcga_files.write_sites(tcga_files.read_flamby(source), folder)
    return frame.manifests(files, dataset)


def cost(
    label: str, study: Study, sites: Sequence[Site], seeds: Sequence[int], figures: Sequence[str]
) -> list[frame.Result]:
    """Return each figure both ways over the seeds, and what narrow loses by seed."""
    wide, thin = (
        [frame.of(frame.run(with_seed(one, seed), sites).federated) for seed in seeds]
        for one in (study, narrow(study))
    )
    found = []
    for name in figures:
        before, after = (tuple(one[name] for one in runs) for runs in (wide, thin))
        lost = tuple(round(a - b, _DIGITS) for a, b in zip(before, after, strict=True))
        found.append(frame.Result(f"{label}, {name}", {WIDE: before, NARROW: after, LOST: lost}))
    return found


def narrow(study: Study) -> Study:
    """Return the study with words of 16 bits up and float16 down."""
    terms = {"upload_bits": 16, "download": "float16"}
    return changed(study, {"federation": {**completed(study)["federation"], **terms}})


def carried(label: str, study: Study) -> list[frame.Result]:
    """Return a training round's bytes for one hospital both ways: up, then down."""
    wide, thin = (
        next(part for part in traffic(one) if part.kind is RoundKind.TRAIN)
        for one in (study, narrow(study))
    )
    return [
        frame.Result(
            f"{label}, bytes {way} a round",
            {WIDE: (before,), NARROW: (after,), SHARE: (after / before,)},
        )
        for way, before, after in (
            ("up", wide.upload, thin.upload),
            ("down", wide.download, thin.download),
        )
    ]


_DIGITS: Final = 12
"""Below them a difference is only the order of a sum."""
