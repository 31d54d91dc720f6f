"""Log lines: a closed catalogue, a fixed order, and no value that can forge or reveal."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import InternalError, RoundError
from common.events import EVENTS, FIRST_FIELDS, FORBIDDEN_FIELDS, Event
from common.logs import EventLog, Form, Level, capture_libraries, form_from_environment, make_log
from common.secret import Secret


def made(form: Form = "console", level: Level = "info") -> tuple[EventLog, io.StringIO]:
    stream = io.StringIO()
    return make_log(stream, form=form, level=level, clock=ManualClock(now=0.1239)), stream


def test_a_console_line_has_time_level_event_and_fields_in_order() -> None:
    log, stream = made()
    log.info(Event.ROUND_WAITING, zulu=1, site="va", alpha=2, round=3, run="r1", study="heart")
    assert stream.getvalue() == (
        "2027-01-15T08:00:00.123Z INFO    round.waiting "
        "study=heart run=r1 round=3 site=va alpha=2 zulu=1\n"
    )


def test_a_json_line_has_the_same_keys_in_the_same_order() -> None:
    log, stream = made("json")
    log.bind(run="r1").warning(Event.ROUND_WAITING, zulu=None, study="heart", who=["a", "b"])
    found = json.loads(stream.getvalue())
    assert list(found) == ["time", "level", "event", "study", "run", "who"]
    assert (found["level"], found["who"]) == ("warning", ["a", "b"])


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_field_with_nothing_to_say_is_left_out_in_both_forms(form: Form) -> None:
    log, stream = made(form)
    log.info(Event.ROUND_CLOSED, reason=None, dropped=(), survivors=0, status="", ok=False)
    line = stream.getvalue()
    assert not any(name in line for name in ("reason", "dropped"))
    assert all(name in line for name in ("survivors", "status", "ok"))


@pytest.mark.parametrize("form", ["console", "json"])
def test_floats_have_three_decimals_at_the_most(form: Form) -> None:
    log, stream = made(form)
    log.info(Event.ROUND_CLOSED, seconds=1 / 3, deadline_s=120.0, most=1e22)
    assert "0.333" in stream.getvalue()
    assert "0.3333" not in stream.getvalue()
    if form == "console":
        assert " deadline_s=120 " in stream.getvalue()


def test_an_event_outside_the_catalogue_is_refused() -> None:
    log, stream = made()
    with pytest.raises(InternalError, match="event of the catalogue"):
        log.info("round.weird")  # type: ignore[arg-type]
    assert stream.getvalue() == ""


@pytest.mark.parametrize("name", sorted(FORBIDDEN_FIELDS | {"time", "level", "event"}))
def test_a_field_that_must_not_be_logged_is_refused(name: str) -> None:
    log, stream = made()
    if name != "event":  # Python itself refuses a second `event`
        with pytest.raises(InternalError, match=name):
            log.info(Event.ROUND_CLOSED, **{name: 1})
    with pytest.raises(InternalError, match=name):
        log.bind(**{name: 1})
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_bytes_and_objects_show_as_their_type_only(form: Form) -> None:
    log, stream = made(form)
    log.info(
        Event.ROUND_CLOSED, a=Secret(b"hunter2"), b=b"hunter2", c=[b"hunter2"], d={"x": "hunter2"}
    )
    assert "hunter2" not in stream.getvalue()
    assert b"hunter2".hex() not in stream.getvalue()
    assert "<bytes>" in stream.getvalue()


def test_an_error_of_the_catalogue_is_logged_by_code_name_and_detail() -> None:
    log, stream = made()
    log.failure(Event.ROUND_VOIDED, RoundError("ROUND_VOID", "2 of 3 remain"), round=4)
    assert 'round=4 code=FC-6001 detail="2 of 3 remain" name=ROUND_VOID' in stream.getvalue()


@given(st.text(max_size=50))
@pytest.mark.parametrize("form", ["console", "json"])
def test_no_value_can_forge_a_line_or_reach_the_terminal(form: Form, text: str) -> None:
    log, stream = made(form)
    log.info(Event.ROUND_CLOSED, note=text)
    line = stream.getvalue()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert line.count("\n") == 1
    if form == "json":
        assert json.loads(line)["note"] == text


def test_a_value_with_blanks_or_equals_is_quoted() -> None:
    log, stream = made()
    log.info(Event.ROUND_CLOSED, a="x run=r9", b='say "hi"', c="", d="back\\slash", e="\u5fc3")
    assert r'a="x run=r9" b="say \"hi\"" c="" d="back\\slash" e=' in stream.getvalue()


def test_long_values_are_cut() -> None:
    log, stream = made()
    log.info(Event.ROUND_CLOSED, a="x" * 10_000, b=list(range(10_000)))
    assert len(stream.getvalue()) < 1000


def test_levels_below_the_chosen_one_are_silent() -> None:
    log, stream = made(level="warning")
    log.debug(Event.ROUND_CLOSED)
    log.info(Event.ROUND_CLOSED)
    log.error(Event.ROUND_CLOSED)
    assert stream.getvalue().count("\n") == 1


def test_an_observer_is_given_every_event_with_its_level_and_bound_fields() -> None:
    seen: list[tuple[Event, str, dict[str, object]]] = []
    stream = io.StringIO()
    log = make_log(
        stream,
        form="console",
        level="warning",
        clock=ManualClock(),
        observe=lambda event, level, fields: seen.append((event, level, dict(fields))),
    )
    log.debug(Event.ROUND_OPENED, round=1)
    log.bind(run="r1").bind(study="heart").warning(Event.ROUND_CLOSED, round=1)
    assert seen == [
        (Event.ROUND_OPENED, "debug", {"round": 1}),
        (Event.ROUND_CLOSED, "warning", {"run": "r1", "study": "heart", "round": 1}),
    ]
    assert stream.getvalue().count("\n") == 1


def test_binding_leaves_the_first_log_as_it_was() -> None:
    log, stream = made()
    log.bind(study="heart")
    log.info(Event.ROUND_CLOSED)
    assert "study" not in stream.getvalue()


@pytest.mark.parametrize(
    ("value", "form"), [("json", "json"), ("JSON ", "json"), ("", "console"), ("xml", "console")]
)
def test_the_environment_chooses_the_form(value: str, form: Form) -> None:
    assert form_from_environment({"LOG_FORMAT": value}) == form
    assert form_from_environment({}) == "console"


def test_a_librarys_warning_is_one_line_without_its_traceback() -> None:
    log, stream = made()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        capture_libraries(log)
        try:
            int("patient 4711")
        except ValueError:
            logging.getLogger("lib").exception("it broke\nsecond line")
        logging.getLogger("lib").info("chatter")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert stream.getvalue().count("\n") == 1
    assert 'ERROR   library.message library=lib text="it broke"' in stream.getvalue()
    assert "4711" not in stream.getvalue()


def test_every_event_has_a_well_formed_name_and_a_sentence() -> None:
    for name, event in EVENTS.items():
        assert re.fullmatch(r"[a-z]+\.[a-z]+", name)
        assert event.meaning.endswith(".")
        assert event.name == name.upper().replace(".", "_")
    assert len(EVENTS) == len(Event)


def test_round_waiting_tells_what_the_architecture_asks() -> None:
    assert "for whom, since when, until when" in Event.ROUND_WAITING.meaning
    assert FIRST_FIELDS == ("study", "run", "round", "site")
