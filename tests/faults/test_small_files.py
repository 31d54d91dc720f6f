"""Small disks where there is no root: a limit on the length of a file, with short writes before it.

The limit is the system's own (`RLIMIT_FSIZE`), and holds for a process of each test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.record import record

LIMIT = 96 * 1024

_LIMITED = f"""
import resource, sys
from pathlib import Path
from common.errors import NoRoom
resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, resource.RLIM_INFINITY))
folder, big, small = Path(sys.argv[1]), bytes({2 * LIMIT}), bytes({LIMIT // 2})

def no_room(write):
    try:
        write()
    except NoRoom:
        return
    raise SystemExit("it was written")
"""

_NODE = """
from hospital_node.files import replace, write_new
replace(folder / "kept", small)
no_room(lambda: replace(folder / "kept", big))
assert (folder / "kept").read_bytes() == small
no_room(lambda: write_new(folder / "new", big))
assert not (folder / "new").exists()
write_new(folder / "new", small)
assert (folder / "new").read_bytes() == small
"""

_OBJECTS = """
from coordinator.objects import ObjectStore
store = ObjectStore(folder / "objects")
no_room(lambda: store.put(big))
assert list((folder / "objects").iterdir()) == [], "nothing of it is there"
with store.open(store.put(small)) as kept:
    assert kept.read(0, len(big)) == small
"""

_SPOOL = """
from coordinator.spool import SpoolFile
from common.messages import CHUNK_BYTES
whole = bytes(range(256)) * (2 * CHUNK_BYTES // 256)
resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK_BYTES + CHUNK_BYTES // 2, resource.RLIM_INFINITY))
file = SpoolFile(folder / "upload", len(whole))
file.append(0, whole[:CHUNK_BYTES])
no_room(lambda: file.append(1, whole[CHUNK_BYTES:]))
assert file.next_chunk == 1 and not file.complete, "half a chunk is none"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
file.append(1, whole[CHUNK_BYTES:])
import hashlib
digest = hashlib.sha256(whole).digest()
assert file.finish(digest) == digest
"""


@pytest.mark.parametrize(
    ("fault", "steps"),
    [
        pytest.param("F37", _NODE, marks=pytest.mark.fault("F37"), id="node"),
        pytest.param("F36", _OBJECTS, marks=pytest.mark.fault("F36"), id="objects"),
        pytest.param("F36", _SPOOL, marks=pytest.mark.fault("F36"), id="upload"),
    ],
)
def test_what_does_not_fit_is_not_there_and_what_fits_then_is(
    tmp_path: Path, fault: str, steps: str
) -> None:
    program = [sys.executable, "-c", _LIMITED + steps, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    record(fault, trials=1, failures=0, written_in_part=0)
