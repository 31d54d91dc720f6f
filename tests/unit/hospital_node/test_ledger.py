"""The privacy ledger: append-only, chained, durable before it is acknowledged, never less.

Each test is one sentence of `hospital_node.ledger` or of docs/privacy.md (F74, F73).
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.entropy import CountingEntropy
from common.errors import StateError
from common.privacy.accountant import NOTHING
from hospital_node import files, ledger_lines
from hospital_node.ledger import Ledger, look
from hospital_node.ledger_lines import charging, opening
from hospital_node.store import NodeStore, StoreReader
from tests.ledger_world import (
    BEGUN,
    DATASET,
    NODE,
    RDP,
    anchored,
    charge,
    open_ledger,
    open_store,
    summed,
    written,
)

Harm = Callable[[Path], None]


def file_of(store: NodeStore) -> Path:
    return store.ledgers / f"{DATASET}.jsonl"


def head_of(store: NodeStore) -> Path:
    return store.ledgers / f"{DATASET}.head.sealed"


def filled(store: NodeStore, charges: int = 3, anchor: Path | None = None) -> Ledger:
    ledger = open_ledger(store, anchor=anchor)
    for number in range(1, charges + 1):
        ledger.append(charge(number))
    return ledger


def refused(store: NodeStore, **terms: object) -> StateError:
    """What a node, and whoever only looks, is told; nothing on the disk is changed."""
    before = {path: path.read_bytes() for path in store.ledgers.iterdir()}
    anchor = terms.get("anchor")
    assert anchor is None or isinstance(anchor, Path)
    begun = terms.get("begun", BEGUN)
    with pytest.raises(StateError) as told:
        look(store.ledgers, NODE, DATASET, store, anchored(anchor, store), begun=begun is not None)
    with pytest.raises(StateError) as caught:
        open_ledger(store, **terms)  # type: ignore[arg-type]
    assert (told.value.name, told.value.detail) == (caught.value.name, caught.value.detail)
    assert before == {path: path.read_bytes() for path in store.ledgers.iterdir()}
    return caught.value


# --- what it holds ----------------------------------------------------------------------------


def test_a_charge_stands_in_the_file_before_append_returns_and_comes_back(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        ledger = filled(store)
        assert file_of(store).read_bytes() == written(3)[0]
        again = open_ledger(store, begun=None)
    assert again.charges == ledger.charges == tuple(charge(number) for number in (1, 2, 3))
    assert again.spent() == ledger.spent() == summed(again.entries)


def test_a_study_and_the_whole_are_summed_apart(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        ledger = open_ledger(store)
        ledger.append(charge(1, "study-a"))
        ledger.append(charge(2, "study-b"))
        ledger.append(charge(3, "study-a"))
    assert ledger.spent("study-b") == RDP
    assert ledger.spent("study-a") == tuple(2 * cost for cost in RDP)
    assert ledger.spent("study-c") == NOTHING
    assert ledger.spent() == summed(ledger.entries)


def test_a_header_is_charged_once_however_often_it_comes(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        ledger = filled(store, 1)
        ledger.append(charge(1))
        again = open_ledger(store)
        again.append(charge(1))
        assert (len(ledger.charges), len(again.charges)) == (1, 1)
        assert file_of(store).read_bytes() == written(1)[0]


def test_what_was_written_is_never_written_again(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        ledger = open_ledger(store)
        before = b""
        for number in range(1, 5):
            ledger.append(charge(number))
            now = file_of(store).read_bytes()
            assert now.startswith(before)
            before = now


def test_another_data_set_has_a_ledger_of_its_own(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        assert open_ledger(store, dataset="lungs").spent() == NOTHING


def test_ten_thousand_charges_open_in_two_seconds_and_the_next_costs_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path) as store:
        raw, heads = written(10_000)
        file_of(store).write_bytes(raw)
        store.save_sealed(f"{DATASET}.head", f"10001 {heads[-1]}".encode())
        began = time.process_time()
        ledger = open_ledger(store)
        assert time.process_time() - began < 2.0
        assert len(ledger.charges) == 10_000
        hashed: list[int] = []
        real = ledger_lines._hash

        def counted(before: str, body: bytes) -> str:
            hashed.append(len(body))
            return real(before, body)

        monkeypatch.setattr(ledger_lines, "_hash", counted)
        began = time.process_time()
        for number in range(20_000, 20_100):
            ledger.append(charge(number))
            ledger.spent()
        assert len(hashed) == 100  # one line each: nothing before it is read again
        assert time.process_time() - began < 1.0


# --- durable before it is acknowledged --------------------------------------------------------


def failing(call: str, monkeypatch: pytest.MonkeyPatch, nth: int = 1) -> None:
    """Make the `nth` call of an `os` function fail from now on, and all that follow."""
    real, calls = getattr(os, call), [0]

    def fail(*args: object) -> object:
        calls[0] += 1
        if calls[0] >= nth:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_line_that_is_not_on_the_disk_is_no_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with open_store(tmp_path) as store:
        ledger = filled(store, 2)
        with monkeypatch.context() as broken:
            failing(call, broken)
            with pytest.raises(StateError) as caught:
                ledger.append(charge(3))
        assert caught.value.name == "DISK"
        assert not ledger.knows(charge(3).hd)
        if call == "fsync":  # whether the line was taken off is not known: nothing more is done
            with pytest.raises(StateError, match="restart the node"):
                ledger.append(charge(4))
            ledger = open_ledger(store)
        ledger.append(charge(3))
        assert len(open_ledger(store).charges) == 3


def test_half_a_line_is_taken_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        ledger = filled(store, 2)
        real = os.write

        def half(handle: int, data: bytes) -> int:
            monkeypatch.setattr(os, "write", full)
            return real(handle, bytes(data)[:100])

        def full(_handle: int, _data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context():
            monkeypatch.setattr(os, "write", half)
            with pytest.raises(StateError, match="No space"):
                ledger.append(charge(3))
            monkeypatch.setattr(os, "write", real)
        assert file_of(store).read_bytes() == written(2)[0]
        ledger.append(charge(3))
        assert file_of(store).read_bytes() == written(3)[0]


@pytest.mark.parametrize("kind", ["head", "anchor"])
def test_a_line_whose_mark_failed_counts_but_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    anchor = tmp_path / "elsewhere"
    anchor.mkdir()
    with open_store(tmp_path / "state") as store:
        ledger = filled(store, 2, anchor)
        with monkeypatch.context() as broken:
            if kind == "head":
                failing("fsync", broken, nth=3)  # the line, the anchor, then the head
            else:
                anchor.rename(tmp_path / "unmounted")
            with pytest.raises(StateError) as caught:
                ledger.append(charge(3))
        assert caught.value.name == ("DISK" if kind == "head" else "LEDGER_ANCHOR")
        assert ledger.spent() == tuple(3 * cost for cost in RDP)
        if kind == "anchor":
            with pytest.raises(StateError, match="elsewhere"):
                ledger.append(charge(3))
            (tmp_path / "unmounted").rename(anchor)
        ledger.append(charge(3))
        sealed = store.load_sealed(f"{DATASET}.head")
        assert sealed == f"4 {written(3)[1][4]} anchored".encode()
        assert file_of(store).read_bytes() == written(3)[0]
        assert len(open_ledger(store, anchor=anchor).charges) == 3


class Killed(BaseException):
    """Stands for SIGKILL at the place where it is raised."""


WRITES = ("write", "fsync", "replace")


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, half: bool) -> list[str]:
    """Die at the `step`-th write to the disk; a write may get half of its bytes there."""
    done: list[str] = []

    def wrap(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **named: object) -> object:
            done.append(name)
            if len(done) == step:
                if half and name == "write":
                    handle, data = args
                    assert isinstance(data, memoryview)
                    real(handle, data[: len(data) // 2])
                raise Killed
            return real(*args, **named)

        return call

    monkeypatch.setattr(os, "write", wrap("write", os.write))
    monkeypatch.setattr(os, "fsync", wrap("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", wrap("replace", Path.replace))
    monkeypatch.setattr(os, "ftruncate", _dead)
    return done


def _dead(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("with_anchor", [False, True])
def test_killed_at_any_write_it_opens_with_every_acknowledged_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, with_anchor: bool
) -> None:
    """From the very first write of a new ledger to the last of its second charge."""
    step, finished = 0, False
    while not finished:
        step += 1
        root, anchor = tmp_path / f"{step}", None
        if with_anchor:
            anchor = tmp_path / f"anchor-{step}"
            anchor.mkdir()
        acknowledged = 0
        with open_store(root) as store, monkeypatch.context() as dying:
            killed_at(step, dying, half)
            try:
                ledger = open_ledger(store, anchor=anchor)
                for number in (1, 2):
                    ledger.append(charge(number))
                    acknowledged = number
                finished = True
            except Killed:
                pass
        with open_store(root, life=1) as store:
            assert len(look(store.ledgers, NODE, DATASET, store).charges) >= acknowledged
            again = open_ledger(store, anchor=anchor)
            assert len(again.charges) in {acknowledged, min(acknowledged + 1, 2)}
            again.append(charge(7))
            assert len(open_ledger(store, begun=None, anchor=anchor).charges) >= acknowledged + 1
    assert step > (18 if with_anchor else 12)


# --- what is no ledger of this data set -------------------------------------------------------


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"r":2', b'"r":9'))


def cheaper(path: Path) -> None:
    """A forger who knows how the chain is made, and has no key."""
    line, head = ledger_lines.opening(NODE, DATASET, BEGUN)
    lines = [line]
    for number in (1, 2, 3):
        line, head = ledger_lines.charging(charge(number, rdp=NOTHING), head)
        lines.append(line)
    path.write_bytes(b"".join(lines))


def cut_in_the_middle(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))


def swapped(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))


def cut_at_the_end(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def torn_though_sealed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def without_opening(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))


def of_another_hospital(path: Path) -> None:
    path.write_bytes(written(3, node="spiffe://net/hospital/b")[0])


def of_another_data_set(path: Path) -> None:
    path.write_bytes(written(3, dataset="lungs")[0])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (edited, "LEDGER_DAMAGED"),
        (cheaper, "LEDGER_DAMAGED"),
        (cut_in_the_middle, "LEDGER_DAMAGED"),
        (swapped, "LEDGER_DAMAGED"),
        (without_opening, "LEDGER_DAMAGED"),
        (of_another_hospital, "LEDGER_DAMAGED"),
        (of_another_data_set, "LEDGER_DAMAGED"),
        (cut_at_the_end, "LEDGER_ROLLED_BACK"),
        (torn_though_sealed, "LEDGER_ROLLED_BACK"),
        (emptied, "LEDGER_ROLLED_BACK"),
        (removed, "LEDGER_LOST"),
    ],
)
def test_a_file_that_is_not_as_it_was_left_is_refused_and_left_alone(
    tmp_path: Path, harm: Harm, code: str
) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        harm(file_of(store))
        told = refused(store)
    assert told.name == code
    assert str(file_of(store)) in told.detail
    assert "counts as spent" in told.fix


@pytest.mark.parametrize("harm", [of_another_hospital, of_another_data_set])
@pytest.mark.parametrize("headless", [False, True])
def test_a_foreign_ledger_is_known_by_its_first_line_with_or_without_a_head(
    tmp_path: Path, harm: Harm, headless: bool
) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        harm(file_of(store))
        if headless:
            head_of(store).unlink()
        assert "line 1: is not what this hospital wrote" in refused(store).detail


@pytest.mark.parametrize("cost", [math.nan, -1e-12])
def test_a_line_whose_cost_would_give_budget_back_is_refused(cost: float) -> None:
    """Even where the chain is whole: whoever has the file can make it anew."""
    line, head = opening(NODE, DATASET, BEGUN)
    bad, _ = charging(charge(1, rdp=(*RDP[:-1], 0.125)), head)
    body = bad[: bad.index(b',"prev"')].replace(b"0.125", repr(cost).encode()) + b"}"
    good = hashlib.sha256(head.encode() + body)
    tail = f',"prev":"{head}","sha256":"{good.hexdigest()}"}}\n'.encode()
    with pytest.raises(StateError, match="LEDGER_DAMAGED"):
        ledger_lines.read_lines(line + body[:-1] + tail, NODE, DATASET, "f")
    whole, _ = ledger_lines.read_lines(line + bad, NODE, DATASET, "f")
    assert whole.count == 2


def test_the_damaged_line_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        edited(file_of(store))
        assert "line 3" in refused(store).detail


def test_charges_without_a_sealed_head_are_refused(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        head_of(store).unlink()
        assert refused(store).name == "LEDGER_DAMAGED"


def test_a_head_of_another_key_or_data_set_does_not_open(tmp_path: Path) -> None:
    with open_store(tmp_path / "other") as other:
        filled(other)
        filled_head = head_of(other).read_bytes()
    with open_store(tmp_path / "own") as store:
        filled(store)
        head_of(store).write_bytes(filled_head)
        assert refused(store).name == "STATE_DAMAGED"
        open_ledger(store, dataset="lungs")
        shutil.copy(store.ledgers / "lungs.head.sealed", head_of(store))
        assert refused(store).name == "STATE_DAMAGED"


def test_a_lost_sealing_key_is_not_made_anew_where_heads_are(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        filled(store)
    (tmp_path / "node.key").unlink()
    with pytest.raises(StateError, match=r"node\.key is gone"):
        open_store(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "the first line"])
@pytest.mark.fault("F74")
def test_file_and_head_gone_together_are_lost_where_a_study_was_accepted(
    tmp_path: Path, left: str
) -> None:
    with open_store(tmp_path) as store:
        filled(store)
        head_of(store).unlink()
        if left == "nothing":
            file_of(store).unlink()
        else:
            file_of(store).write_bytes(written(0)[0])
        assert refused(store, begun=None).name == "LEDGER_LOST"


@pytest.mark.parametrize(
    ("harm", "code"),
    [(removed, "LEDGER_LOST"), (cut_at_the_end, "LEDGER_ROLLED_BACK"), (edited, "LEDGER_DAMAGED")],
)
@pytest.mark.fault("F74")
def test_a_file_that_changes_under_a_running_node_stops_the_next_charge(
    tmp_path: Path, harm: Harm, code: str
) -> None:
    with open_store(tmp_path) as store:
        ledger = filled(store)
        if harm is edited:  # longer, as somebody else's charge would make it
            file_of(store).write_bytes(file_of(store).read_bytes() + b"\n")
        else:
            harm(file_of(store))
        with pytest.raises(StateError) as caught:
            ledger.append(charge(4))
    assert caught.value.name == code
    assert not ledger.knows(charge(4).hd)


# --- restored as a whole: the anchor ----------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def rolled_back(tmp_path: Path, anchor: Path | None) -> NodeStore:
    """A state directory restored as a whole from before its last charge."""
    root = tmp_path / "state"
    with open_store(root) as store:
        ledger = filled(store, 2, anchor)
        shutil.copytree(root, tmp_path / "backup")
        ledger.append(charge(3))
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "backup", root)
    return open_store(root, life=1)


def test_without_an_anchor_a_whole_old_state_looks_like_itself(tmp_path: Path) -> None:
    """What docs/privacy.md says is not detected."""
    with rolled_back(tmp_path, None) as store:
        assert len(open_ledger(store, begun=None).charges) == 2


@pytest.mark.fault("F74")
def test_with_an_anchor_a_whole_old_state_is_rolled_back(tmp_path: Path, elsewhere: Path) -> None:
    with rolled_back(tmp_path, elsewhere) as store:
        told = refused(store, anchor=elsewhere)
    assert told.name == "LEDGER_ROLLED_BACK"
    assert "has 3 entries" in told.detail
    assert "knows of 4" in told.detail


@pytest.mark.fault("F74")
def test_an_empty_state_is_lost_where_an_anchor_is(tmp_path: Path, elsewhere: Path) -> None:
    with open_store(tmp_path / "state") as store:
        filled(store, 2, elsewhere)
    shutil.rmtree(tmp_path / "state")
    with open_store(tmp_path / "state", life=1) as store:  # with another key, too
        assert refused(store, anchor=elsewhere).name == "LEDGER_LOST"


def test_a_ledger_ahead_of_its_anchor_is_vouched_for_from_then_on(
    tmp_path: Path, elsewhere: Path
) -> None:
    with open_store(tmp_path / "state") as store:
        filled(store, 3)  # before the hospital had an anchor
        open_ledger(store, anchor=elsewhere)
        file_of(store).write_bytes(written(2)[0])
        store.save_sealed(f"{DATASET}.head", f"3 {written(2)[1][3]}".encode())
        assert refused(store, anchor=elsewhere).name == "LEDGER_ROLLED_BACK"


def an_anchor_gone(path: Path) -> None:
    path.unlink()


def an_anchor_altered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"000000000003", b"000000000001"))


def an_anchor_unmounted(path: Path) -> None:
    path.parent.rename(path.parent.with_name("unmounted"))


@pytest.mark.parametrize("harm", [an_anchor_gone, an_anchor_altered, an_anchor_unmounted])
def test_an_anchor_that_cannot_vouch_stops_the_data_set(
    tmp_path: Path, elsewhere: Path, harm: Harm
) -> None:
    with open_store(tmp_path / "state") as store:
        filled(store, 2, elsewhere)
        harm(elsewhere / f"{DATASET}.anchor")
        told = refused(store, anchor=elsewhere)
    assert told.name == "LEDGER_ANCHOR"
    assert "ledger_anchor" in told.fix


def test_an_anchor_of_another_hospital_or_key_is_refused(tmp_path: Path, elsewhere: Path) -> None:
    with open_store(tmp_path / "other") as other:
        filled(other, 2, elsewhere)
    with open_store(tmp_path / "own") as store:
        filled(store, 2)
        assert refused(store, anchor=elsewhere).name == "LEDGER_ANCHOR"


def test_a_torn_line_of_an_anchor_is_passed_over_and_not_built_upon(
    tmp_path: Path, elsewhere: Path
) -> None:
    path = elsewhere / f"{DATASET}.anchor"
    with open_store(tmp_path / "state") as store:
        filled(store, 2, elsewhere)
        path.write_bytes(path.read_bytes() + b"0000000000")
        open_ledger(store, anchor=elsewhere).append(charge(3))
        assert len(open_ledger(store, anchor=elsewhere).charges) == 3
        anchor = anchored(elsewhere, store)
        assert anchor is not None
        mark = anchor.furthest(anchor.load())
    assert mark is not None
    assert mark.count == 4


def test_an_anchor_is_only_ever_appended_to(tmp_path: Path, elsewhere: Path) -> None:
    path = elsewhere / f"{DATASET}.anchor"
    with open_store(tmp_path / "state") as store:
        ledger = open_ledger(store, anchor=elsewhere)
        before, inode = path.read_bytes(), path.stat().st_ino
        for number in (1, 2):
            ledger.append(charge(number))
            now = path.read_bytes()
            assert now.startswith(before)
            before = now
        assert path.stat().st_ino == inode


# --- read while it is written -----------------------------------------------------------------


def test_a_reader_of_a_locked_directory_sees_whole_lines_and_changes_nothing(
    tmp_path: Path,
) -> None:
    with open_store(tmp_path) as store:
        filled(store, 2)
        raw = written(3)[0]
        whole = len(written(2)[0])
        for end in (whole, whole + 1, len(raw) - 1, len(raw)):
            file_of(store).write_bytes(raw[:end])
            reader = StoreReader(tmp_path, CountingEntropy(b"reader"))
            before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
            found = look(reader.ledgers, NODE, DATASET, reader)
            assert len(found.charges) == (3 if end == len(raw) else 2)
            assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
            assert file_of(store).read_bytes() == raw[:end]


@pytest.mark.parametrize("place", range(4))
def test_a_reader_between_any_two_writes_of_a_charge_finds_a_sound_ledger(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    """The node writes a charge just before the reader's `place`-th read of a file."""
    with open_store(tmp_path / "state") as store:
        ledger = filled(store, 2, elsewhere)
        reads, real = [0], Path.read_bytes

        def read(path: Path) -> bytes:
            reads[0] += 1
            if reads[0] == place + 1:
                ledger.append(charge(3))
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", read)
        found = look(store.ledgers, NODE, DATASET, store, anchored(elsewhere, store))
        assert len(found.charges) == (3 if place < 3 else 2)


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    with open_store(tmp_path):
        reader = StoreReader(tmp_path, CountingEntropy(b"reader"))
        with pytest.raises(Exception, match="only read"):
            reader.save_sealed("heart.head", b"")
    assert files.TEMPORARY not in "".join(path.name for path in tmp_path.rglob("*"))
