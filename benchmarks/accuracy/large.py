"""What a simulation of many hospitals takes: memory and time a round, from 10 to 200 of them.

    python -m benchmarks.accuracy large

Every number of hospitals is a `fedcare sim` of its own process, of which the kernel says how
much memory it had at most. The hospitals are generated, forty patients each; the model is a
network of about 100,000 parameters, so that keys, masks and sums are the work and not training.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.accuracy import frame
from common.models import layout
from common.study import Study, canonical_json, load_study
from hospital_node.data.invent.files import generate
from hospital_node.data.invent.knobs import Knobs
from researcher.processes import environment
from researcher.studies import changed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COUNTS: Final = (10, 25, 50, 100, 200)
PATIENTS: Final = 40
HIDDEN: Final = [308, 308]
ROUNDS: Final = 3
DATA_SEED: Final = 1

MEMORY: Final = "peak memory, MB"
ROUND: Final = "seconds a round"
WHOLE: Final = "seconds in all"
CPU: Final = "processor seconds in all"

_MOST_MB: Final = 4000.0
_STYLE: Final[Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedcare",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def measure(_given: argparse.Namespace) -> frame.Entry:
    """Run the same study over more and more hospitals."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        written = generate(Path(name) / "many", Knobs(sites=max(COUNTS), rows=PATIENTS), DATA_SEED)
        study = of_size(load_study(written.study))
        results = [simulated(study, written.manifests[:count]) for count in COUNTS]
    return frame.Entry(
        "large",
        "Many hospitals in one process",
        "python -m benchmarks.accuracy large",
        f"Generated hospitals of {PATIENTS} patients, a network of {layout(study).parameters:,} "
        f"parameters, {ROUNDS} rounds of one step, no personal models. Each number of hospitals is "
        "one `fedcare sim` in its own process. Seconds a round are the coordinator's, median of "
        "the training rounds; seconds in all have setting up, keys, statistics, evaluation and "
        f"the models to compare with as well. {os.cpu_count()} cores, load average "
        f"{os.getloadavg()[2]:.1f} (one process of it is this), so trust processor seconds more.",
        tuple(results),
        (frame.Must(_way(max(COUNTS)), MEMORY, _MOST_MB, at_most=True),),
        time.monotonic() - began,
        picture(results),
    )


def of_size(study: Study) -> Study:
    """Return the generated study with the large model and few short rounds."""
    return changed(
        study,
        {
            "model": {"kind": "mlp", "hidden": HIDDEN},
            "train": {"lr": 0.01, "batch": PATIENTS, "local_steps": 1},
            "federation": {"rounds": ROUNDS, "min_sites": 3},
            "personal": {"enabled": False},
        },
    )


def simulated(study: Study, manifests: Sequence[Path]) -> frame.Result:
    """Run `fedcare sim` in a process of its own and return what it took.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        file, said = Path(name) / "study.yaml", Path(name) / "said.json"
        file.write_bytes(canonical_json(study))  # JSON is YAML
        sites = [word for path in manifests for word in ("--site", str(path))]
        command = [sys.executable, "-m", "common.cli", "sim", str(file), *sites, "--json"]
        with said.open("wb") as out:
            child = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdout=out,
                stderr=subprocess.DEVNULL,
                env=environment(),
                cwd=frame.ROOT,
            )
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        answer = json.loads(said.read_text("utf-8"))
    if child.returncode:
        raise RuntimeError(f"fedcare sim over {len(manifests)} hospitals: {answer['error']}")
    found = {
        MEMORY: (used.ru_maxrss * 1024 / 1e6,),
        ROUND: (statistics.median(answer["data"]["round_seconds"]),),
        WHOLE: (answer["data"]["seconds"],),
        CPU: (used.ru_utime + used.ru_stime,),
    }
    way = _way(len(manifests))
    print(way, found, file=sys.stderr)  # noqa: T201 - progress of a command
    return frame.Result(way, found)


def _way(count: int) -> str:
    return f"{count} hospitals"


def picture(results: Sequence[frame.Result]) -> str:
    """Return an SVG: seconds a round and memory over the number of hospitals, from zero."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    counts = [int(result.way.split()[0]) for result in results]
    text = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curve(left, counts, [result.mean(ROUND) for result in results], ROUND)
        _curve(right, counts, [result.mean(MEMORY) for result in results], MEMORY)
        figure.savefig(text, format="svg", metadata={"Date": None})
    shown = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"


def _curve(axes: Axes, counts: Sequence[int], values: Sequence[float], name: str) -> None:
    axes.plot(counts, values, "-", color="#0b6e99", marker="o", markersize=4)
    axes.set_xlabel("hospitals")
    axes.set_ylabel(name)
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.grid(color="#dddddd", linewidth=0.6)
