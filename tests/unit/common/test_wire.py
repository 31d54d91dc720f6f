"""Peer bytes become domain objects, or are refused by name: every message, every field.

The rules are not written down a second time here. What a `bytes` field may hold is read
from its comment in the .proto file, which fields there are from the descriptors: a new
field that nobody checks, or that has no comment, fails without a change to this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from common import wire, wire_checks
from common import wire_operations as people
from common.errors import Refusal
from common.ids import RunId
from common.messages import CHUNK_BYTES, ReleaseNotice
from common.wire import CoordinatorStep, NodeStep, UploadPart
from fedcare.v1 import aggregation_pb2 as pb
from fedcare.v1 import operations_pb2 as ops
from fedcare.v1 import secagg_pb2 as sa
from tests import wire_samples as samples

PROTOS: Final = Path(__file__).resolve().parents[3] / "protos" / "fedcare" / "v1"


# --- every message, encoded -----------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A valid message on the wire, how it is read, and what it then is."""

    name: str
    message: Message
    decode: Callable[[Any], object]
    expected: object


def _cases() -> Iterator[Case]:
    for node in samples.NODE_STEPS:
        task = "" if type(node).__name__ in ("Hello", "Heartbeat") else "heart-disease"
        name = f"node {type(node).__name__}"
        yield Case(name, wire.encode_node(task, node), wire.decode_node, (task, node))
    for step in samples.COORDINATOR_STEPS:
        task = "" if type(step).__name__ in ("Welcome", "Heartbeat") else "heart-disease"
        name = f"coordinator {type(step).__name__}"
        yield Case(name, wire.encode_coordinator(task, step), wire.decode_coordinator, (task, step))
    for part in samples.UPLOAD_PARTS:
        name = f"upload {type(part).__name__}"
        yield Case(name, wire.encode_upload(part), wire.decode_upload, part)
    yield Case("ack", wire.encode_ack(samples.ACK), wire.decode_ack, samples.ACK)
    piece = samples.PIECE
    yield Case("piece", wire.encode_piece(piece), wire.decode_piece, piece)
    wanted = (samples.sha(80), 5)
    yield Case("download", wire.encode_download(*wanted), wire.decode_download, wanted)
    yield from _questions()
    yield from _answers()


def _questions() -> Iterator[Case]:
    submission = people.Submission(b"{}", "request-1", samples.fill(70), samples.CHAIN)
    asked = ops.SubmitStudyRequest(
        study=submission.study,
        client_id=submission.request,
        signature=submission.signature,
        cert_chain=submission.cert_chain,
    )
    yield Case("submit", asked, people.decode_submission, submission)
    cancel = ops.CancelRunRequest(run_id=samples.RUN, reason="no longer needed")
    expected = (samples.RUN, "no longer needed")
    yield Case("cancel", cancel, people.decode_cancel, expected)


def _answers() -> Iterator[Case]:
    view = samples.STUDY_VIEW
    submitted = people.Submitted(view.study_id, samples.RUN, samples.CONFIG)
    encoded: Message = people.encode_submitted(submitted)
    yield Case("submitted", encoded, people.decode_submitted, submitted)
    yield Case("study", people.encode_study(view), people.decode_study, view)
    content = people.encode_content(view, b"{}")
    yield Case("content", content, people.decode_content, (view, b"{}"))
    notice = ReleaseNotice(samples.RUN, b"{}", samples.fill(70), samples.CHAIN)
    release = people.encode_release(notice)
    yield Case("release", release, lambda m: people.decode_release(samples.RUN, m), notice)
    run = samples.RUN_VIEW
    yield Case("run", people.encode_run(run), people.decode_run, run)
    status = samples.STATUS_VIEW
    yield Case("status", people.encode_status(status), people.decode_status, status)


CASES: Final = tuple(_cases())
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))


@by_name
def test_a_message_comes_back_as_it_was_sent(case: Case) -> None:
    parsed = type(case.message).FromString(case.message.SerializeToString())
    assert case.decode(parsed) == case.expected


def test_every_step_has_a_sample() -> None:
    assert {type(step) for step in samples.NODE_STEPS} == set(get_args(NodeStep))
    assert {type(step) for step in samples.COORDINATOR_STEPS} == set(get_args(CoordinatorStep))
    assert {type(part) for part in samples.UPLOAD_PARTS} == set(get_args(UploadPart))


def test_every_step_of_the_protos_is_read() -> None:
    for message, decoders in (
        (pb.NodeMessage, wire._NODE_STEPS),
        (pb.CoordinatorMessage, wire._COORDINATOR_STEPS),
    ):
        steps = message.DESCRIPTOR.oneofs_by_name["step"].fields
        assert {field.name for field in steps} == set(decoders)


@pytest.mark.parametrize(
    ("message", "decode"),
    [
        (pb.NodeMessage(), wire.decode_node),
        (pb.CoordinatorMessage(task="heart"), wire.decode_coordinator),
        (pb.UploadMessage(), wire.decode_upload),
    ],
)
def test_a_message_without_a_step_is_refused(
    message: Message, decode: Callable[[Any], object]
) -> None:
    with pytest.raises(Refusal) as refused:
        decode(message)
    assert refused.value.name == "BAD_MESSAGE"


def test_secrets_on_the_wire_are_secrets_behind_it() -> None:
    message = wire.encode_node("t-1", samples.NODE_STEPS[8])
    _, release = wire.decode_node(message)
    assert samples.fill(32, 37) in message.SerializeToString()
    assert repr(samples.fill(32, 37))[2:-1] not in repr(release)


# --- what a field may hold, from the protos' own comments --------------------------------------


KIB: Final = 1024
_FIELD: Final = re.compile(r"(?:repeated )?bytes (\w+) = \d+;\s*(?://\s*(.*))?")
_UNITS: Final = {"bytes": 1, "KiB": KIB, "MiB": KIB * KIB}


@dataclass(frozen=True)
class Lengths:
    """The lengths a field may have: some exact ones, or any from 1 (or 0) to `most`."""

    exact: tuple[int, ...] = ()
    least: int = 1
    most: int = 0

    def wrong(self, length: int) -> list[int]:
        """Return lengths next to the allowed ones that are not allowed."""
        if self.exact:
            near = {0, length - 1, length + 1, 2 * length}
            return sorted(n for n in near if n >= 0 and n not in self.exact)
        return [self.most + 1] if self.least == 0 else [0, self.most + 1]


def _lengths(comment: str) -> Lengths:
    """Read "32 bytes", "32 bytes, or empty", "at most 72 bytes", "at most 1 MiB", ..."""
    most = re.search(r"at most (\d+) (bytes|KiB|MiB)", comment)
    if most is not None:
        least = 0 if "raw bytes of the object" in comment else 1  # the piece of an empty object
        return Lengths(least=least, most=int(most[1]) * _UNITS[most[2]])
    if "1 MiB but for the last chunk" in comment:
        return Lengths(most=CHUNK_BYTES)
    if "33-byte shares" in comment or "as SealedShares.ct" in comment:
        return Lengths(most=33 * wire_checks.MAX_MEMBERS + 16)
    exact = re.search(r"(\d+) bytes", comment)
    if exact is None:
        raise AssertionError(f"a comment that states no length: {comment!r}")
    return Lengths(exact=(int(exact[1]), 0) if "or empty" in comment else (int(exact[1]),))


def _stated() -> dict[str, Lengths]:
    """Return `Message.field` -> lengths for every bytes field of the protos."""
    found: dict[str, Lengths] = {}
    for path in sorted(PROTOS.glob("*.proto")):
        message = ""
        for line in path.read_text().splitlines():
            if (begin := re.match(r"message (\w+) {", line)) is not None:
                message = begin[1]
            elif (field := _FIELD.match(line.strip())) is not None:
                found[f"{message}.{field[1]}"] = _lengths(field[2] or "")
    return found


STATED: Final = _stated()


def _bytes_fields() -> set[str]:
    """Return every bytes field of the descriptors."""
    return {
        f"{message.name}.{field.name}"
        for file in (pb, sa, ops)
        for message in file.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_BYTES
    }


def test_every_bytes_field_states_its_length() -> None:
    assert set(STATED) == _bytes_fields()


# --- one spoiled field at a time ----------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A field of a sample that is set: how to reach it, and where it is declared."""

    path: tuple[tuple[str, int | None], ...]
    field: Any  # the descriptor classes of the two protobuf runtimes share no base

    @property
    def name(self) -> str:
        owner = self.field.containing_type
        assert owner is not None
        return f"{owner.name}.{self.field.name}"

    def _holder(self, message: Any) -> Any:  # noqa: ANN401 - generated classes
        for name, place in self.path:
            message = getattr(message, name)
            if place is not None:
                message = message[place]
        return message

    def spoiled(self, message: Message, value: Any) -> Message:  # noqa: ANN401
        """Return a copy of `message` with this field (its first entry) set to `value`."""
        copy = type(message)()
        copy.CopyFrom(message)
        holder = self._holder(copy)
        if self.field.is_repeated:
            getattr(holder, self.field.name)[0] = value
        else:
            setattr(holder, self.field.name, value)
        return copy

    def repeated(self, message: Message, times: int) -> Message:
        """Return a copy whose list here has its first entry so many times."""
        copy = type(message)()
        copy.CopyFrom(message)
        entries = getattr(self._holder(copy), self.field.name)
        entries.extend([entries[0]] * (times - len(entries)))
        return copy

    def value(self, message: Message) -> Any:  # noqa: ANN401
        value = getattr(self._holder(message), self.field.name)
        return value[0] if self.field.is_repeated else value


def _spots(message: Message, path: tuple[tuple[str, int | None], ...] = ()) -> Iterator[Spot]:
    """Yield every field of the message and of what it holds, set or not."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.is_repeated and not value:
            continue
        yield Spot(path, field)
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        place = 0 if field.is_repeated else None
        yield from _spots(value[0] if field.is_repeated else value, (*path, (field.name, place)))


def _of(*types: int) -> list[Any]:
    return [
        pytest.param(case, spot, id=f"{case.name}: {spot.name}".replace(" ", "-"))
        for case in CASES
        for spot in _spots(case.message)
        if spot.field.type in types
    ]


def _refused(case: Case, message: Message, spot: Spot) -> None:
    """Demand BAD_MESSAGE whose text names the field, or the list that it is an entry of."""
    with pytest.raises(Refusal) as refused:
        case.decode(message)
    assert refused.value.name == "BAD_MESSAGE"
    named = re.split(r"[.\s]", refused.value.detail)
    around = {spot.field.name, *(name for name, _ in spot.path)}
    assert around & set(named), f"{refused.value.detail!r} does not name {spot.name}"


def test_every_bytes_field_is_in_some_sample() -> None:
    covered = {spot.name for case in CASES for spot in _spots(case.message)}
    assert _bytes_fields() <= covered


@pytest.mark.parametrize(("case", "spot"), _of(FieldDescriptor.TYPE_BYTES))
def test_bytes_of_another_length_are_refused(case: Case, spot: Spot) -> None:
    allowed = STATED[spot.name]
    wrong = allowed.wrong(len(spot.value(case.message)))
    assert wrong
    for length in wrong:
        _refused(case, spot.spoiled(case.message, b"\x01" * length), spot)


@pytest.mark.parametrize(("case", "spot"), _of(FieldDescriptor.TYPE_BYTES))
def test_bytes_of_a_stated_length_are_taken(case: Case, spot: Spot) -> None:
    allowed = STATED[spot.name]
    for length in allowed.exact or (1, allowed.most):
        case.decode(spot.spoiled(case.message, b"\x01" * length))


NAMES: Final = frozenset({"id", "to", "sender", "helper"})
"""String fields that hold a hospital's certificate URI."""

NOT_A_HOSPITAL: Final = (
    "",
    "a",
    "spiffe://heart/operator/a",
    "spiffe://heart/hospital/A",
    "spiffe://heart/hospital/a/",
    "spiffe://heart/hospital/a\n",
    "spiffe://heart/hospital/../a",
    "spiffe://heart/hospital/" + "a" * 64,
)


@pytest.mark.parametrize(("case", "spot"), _of(FieldDescriptor.TYPE_STRING))
def test_a_text_with_control_characters_or_of_any_length_is_refused(case: Case, spot: Spot) -> None:
    for bad in ("a\x1b[31m", "a\nb", "x" * 100_000):
        _refused(case, spot.spoiled(case.message, bad), spot)


@pytest.mark.parametrize(
    ("case", "spot"),
    [p for p in _of(FieldDescriptor.TYPE_STRING) if p.values[1].field.name in NAMES],
)
def test_an_id_that_is_no_hospital_is_refused(case: Case, spot: Spot) -> None:
    for bad in NOT_A_HOSPITAL:
        _refused(case, spot.spoiled(case.message, bad), spot)


LISTS: Final = ("run_ids", "survivors", "dropped", "sites", "history", "pooled", "studies", "runs")
"""Lists in answers to people, bounded by the size of a message alone in tests of speed."""

FREE: Final = frozenset(
    {"Heartbeat.counter", "RoundView.number", "RunView.round", "RunView.rounds"}
)
"""Numbers that nothing is computed from."""


@pytest.mark.parametrize(
    ("case", "spot"),
    [p for p in _of(FieldDescriptor.TYPE_UINT64) if p.values[1].name not in FREE],
)
def test_a_number_beyond_63_bits_is_refused(case: Case, spot: Spot) -> None:
    for bad in (1 << 63, (1 << 64) - 1):
        _refused(case, spot.spoiled(case.message, bad), spot)


@pytest.mark.parametrize(("case", "spot"), _of(FieldDescriptor.TYPE_DOUBLE))
def test_a_number_that_is_not_finite_is_refused(case: Case, spot: Spot) -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        _refused(case, spot.spoiled(case.message, bad), spot)


def _lists() -> list[Any]:
    return [
        pytest.param(case, spot, id=f"{case.name}: {spot.name}".replace(" ", "-"))
        for case in CASES
        for spot in _spots(case.message)
        if spot.field.is_repeated and spot.field.name not in LISTS
    ]


MAY_BE_EMPTY: Final = ("heartbeat", "hello", "roster")
"""Steps of numbers and lists alone: the machines judge those."""


@pytest.mark.parametrize(("case", "spot"), _lists())
def test_a_list_without_end_is_refused(case: Case, spot: Spot) -> None:
    times = (
        wire_checks.MAX_RANGES + 1 if spot.field.name == "ranges" else wire_checks.MAX_MEMBERS + 1
    )
    _refused(case, spot.repeated(case.message, times), spot)


@pytest.mark.parametrize(
    ("case", "spot"),
    [
        p
        for p in _of(FieldDescriptor.TYPE_MESSAGE)
        if not p.values[1].field.is_repeated and p.values[1].field.name not in MAY_BE_EMPTY
    ],
)
def test_a_step_left_empty_is_refused(case: Case, spot: Spot) -> None:
    copy = type(case.message)()
    copy.CopyFrom(case.message)
    inner = getattr(spot._holder(copy), spot.field.name)
    inner.Clear()
    inner.SetInParent()
    with pytest.raises(Refusal) as refused:
        case.decode(copy)
    assert refused.value.name == "BAD_MESSAGE"


@pytest.mark.parametrize(
    ("path", "value"),
    [("kind", "dance"), ("rounding", "up"), ("dp_mode", "maybe"), ("d", (1 << 32) + 1), ("w", 65)],
)
def test_a_header_with_a_word_or_number_of_no_meaning_is_refused(path: str, value: object) -> None:
    start = next(case for case in CASES if case.name == "coordinator RoundStart")
    spot = next(s for s in _spots(start.message) if s.name == f"Header.{path}")
    _refused(start, spot.spoiled(start.message, value), spot)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"verdict": ""}, "decision.verdict"),
        ({"verdict": "perhaps"}, "decision.verdict"),
        ({"verdict": "waiting"}, "decision.waiting_for does not fit"),
        ({"verdict": "accepted", "waiting_for": ["dr-weber"]}, "decision.waiting_for does not fit"),
        ({"verdict": "refused", "waiting_for": ["dr-weber"]}, "decision.waiting_for does not fit"),
        (
            {"verdict": "accepted", "objections": [pb.Objection(code="RERUN", detail="no")]},
            "decision.objections do not fit",
        ),
        ({"verdict": "waiting", "waiting_for": ["Dr Weber"]}, "is not a name"),
        ({"verdict": "waiting", "waiting_for": ["a", "a"]}, "names somebody twice"),
        ({"verdict": "waiting", "waiting_for": [f"dr-{n}" for n in range(65)]}, "65 entries"),
    ],
)
def test_a_decision_that_contradicts_itself_is_refused(change: dict[str, Any], field: str) -> None:
    plain = pb.StudyDecision(run_id="run-1", config_hash=bytes(32), **change)
    with pytest.raises(Refusal, match=re.escape(field)) as caught:
        wire.decode_node(pb.NodeMessage(task="t", study_decision=plain))
    assert caught.value.name == "BAD_MESSAGE"


def test_a_code_outside_the_catalogue_is_refused() -> None:
    for case in CASES:
        for spot in _spots(case.message):
            if spot.name in ("Refused.code", "Objection.code"):
                with pytest.raises(Refusal, match="catalogue"):
                    case.decode(spot.spoiled(case.message, "OOPS"))


# --- bytes of no sense ------------------------------------------------------------------------


ROOTS: Final = tuple({type(case.message): case.decode for case in CASES}.items())


def _take(kind: type[Message], decode: Callable[[Any], object], data: bytes) -> None:
    """Read bytes as the servicer would; only the two expected errors may come of it."""
    try:
        decode(kind.FromString(data))
    except (DecodeError, Refusal):
        return


@given(data=st.binary(max_size=300))
def test_random_bytes_give_an_object_or_one_of_two_errors(data: bytes) -> None:
    for kind, decode in ROOTS:
        _take(kind, decode, data)


@given(
    index=st.integers(0, len(CASES) - 1),
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 60),
)
def test_altered_messages_give_an_object_or_one_of_two_errors(
    index: int, changes: list[tuple[int, int]], cut: int
) -> None:
    case = CASES[index]
    data = bytearray(case.message.SerializeToString())
    for place, value in changes:
        data[place % len(data)] = value
    _take(type(case.message), case.decode, bytes(data[: len(data) - cut]))


@given(reason=st.text(max_size=2000))
def test_whatever_reason_a_person_gives_is_read_or_refused(reason: str) -> None:
    request = ops.CancelRunRequest(run_id="heart-1", reason=reason)
    if reason.isprintable() and len(reason) <= 1000:
        assert people.decode_cancel(request) == (RunId("heart-1"), reason)
    else:
        with pytest.raises(Refusal, match="reason"):
            people.decode_cancel(request)
