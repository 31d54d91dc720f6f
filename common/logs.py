r"""Log lines: UTC milliseconds, level, an event of the catalogue, then fields in fixed order.

    2026-01-31T09:15:02.120Z INFO    round.closed study=heart run=r1 round=3 seconds=4.2 survivors=4

`LOG_FORMAT=json` gives the same fields, one object a line. A logger takes an `Event`, not a
text, and plain values only: bytes, arrays and secrets appear as their type's name. Control
characters are escaped, so that no value can forge a line or reach a terminal as a command.
Floats have three decimals at most; a field without a value (None, no items) is left out. Lines
that a peer can provoke are limited (`common.log_limit`); what is observed is not.

    log = make_log(sys.stderr, clock=SystemClock())
    log.bind(study="heart", run="r1").info(Event.ROUND_OPENED, round=3, cohort=4)
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TextIO

import structlog

from common.clock import Clock, SystemClock
from common.errors import FedError, InternalError
from common.events import FIRST_FIELDS, FORBIDDEN_FIELDS, LIMITED, Event
from common.log_limit import LineLimit
from common.text import escape

Form = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]

Observe = Callable[[Event, str, Mapping[str, object]], None]
"""Is given each event, its level and all its fields, the bound ones included."""

_LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_RESERVED: Final = ("time", "level", "event")
_LONGEST: Final = 400
"""Characters of one value; longer ones are cut."""


@dataclass(frozen=True, slots=True)
class _Sink:
    """What all logs of one process share."""

    logger: Any
    least: int
    observe: Observe | None
    limit: LineLimit

    def write(self, level: Level, event: Event, fields: Mapping[str, object]) -> None:
        """Count an event, and write its line unless it is below the level or one too many."""
        if self.observe is not None:
            self.observe(event, level, fields)
        self.report_left_out(at_once=event is Event.SERVICE_STOPPED)
        if _LEVELS[level] < self.least:
            return
        if event not in LIMITED or self.limit.admit(event, _who(fields)):
            getattr(self.logger, level)(event.value, **fields)

    def report_left_out(self, *, at_once: bool = False) -> None:
        """Say what the limit left out, if it is time to."""
        for one in self.limit.due(at_once=at_once):
            since = utc_stamp(one.since_unix)
            fields = {"of": one.event, "peer": one.who, "lines": one.lines, "since": since}
            self.write("warning", Event.LOG_SUPPRESSED, fields)


def _who(fields: Mapping[str, object]) -> str:
    """Return whom a line is about, for the limit."""
    named = (fields.get(name) for name in ("peer", "site", "library"))
    return next((one[:_LONGEST] for one in named if isinstance(one, str)), "")


class EventLog:
    """Writes events; made by `make_log`, narrowed by `bind`."""

    __slots__ = ("_bound", "_sink")

    def __init__(self, sink: _Sink, bound: Mapping[str, object] = MappingProxyType({})) -> None:
        self._sink = sink
        self._bound = bound

    def bind(self, **fields: object) -> EventLog:
        """Return a log whose every line carries these fields.

        Raises:
            InternalError: a field's name is forbidden.
        """
        _check_fields(fields)
        return EventLog(self._sink, {**self._bound, **fields})

    def debug(self, event: Event, **fields: object) -> None:
        """Write what only a developer wants to know."""
        self._write("debug", event, fields)

    def info(self, event: Event, **fields: object) -> None:
        """Write what an operator may want to know."""
        self._write("info", event, fields)

    def warning(self, event: Event, **fields: object) -> None:
        """Write what an operator should look at."""
        self._write("warning", event, fields)

    def error(self, event: Event, **fields: object) -> None:
        """Write what somebody has to mend."""
        self._write("error", event, fields)

    def failure(self, event: Event, error: FedError, **fields: object) -> None:
        """Write an error of the catalogue: its code, name and detail."""
        self.warning(event, code=error.code, name=error.name, detail=error.detail, **fields)

    def report_left_out(self) -> None:
        """Say what was left out of a storm; for a loop that turns also when nothing is logged."""
        self._sink.report_left_out()

    def _write(self, level: Level, event: Event, fields: dict[str, object]) -> None:
        if not isinstance(event, Event):
            raise InternalError(f"a log line needs an event of the catalogue, not {type(event)}")
        _check_fields(fields)
        self._sink.write(level, event, {**self._bound, **fields})


def _check_fields(fields: Mapping[str, object]) -> None:
    for name in fields:
        if name in FORBIDDEN_FIELDS or name in _RESERVED:
            raise InternalError(f"a log line must not have a field called {name!r}")


def form_from_environment(environ: Mapping[str, str] | None = None) -> Form:
    """Return the form that `LOG_FORMAT` asks for; anything but `json` is console."""
    environ = os.environ if environ is None else environ
    return "json" if environ.get("LOG_FORMAT", "").strip().lower() == "json" else "console"


def make_log(
    stream: TextIO,
    *,
    form: Form | None = None,
    level: Level = "info",
    clock: Clock | None = None,
    observe: Observe | None = None,
) -> EventLog:
    """Return a log that writes to `stream`; only composition roots call this.

    `form` defaults to what the environment's `LOG_FORMAT` asks for. `observe` is called for
    every event before it is shown, also for one that is below `level`: counters hang there.
    It must return at once and must not log.
    """
    chosen = form_from_environment() if form is None else form
    render = _render_json if chosen == "json" else _render_console
    clock = clock or SystemClock()
    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        processors=[structlog.processors.add_log_level, _Stamp(clock), _order, render],
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return EventLog(_Sink(logger, _LEVELS[level], observe, LineLimit(clock)))


# --- structlog processors ---------------------------------------------------------------

_Fields = MutableMapping[str, Any]


class _Stamp:
    """Adds the time in UTC with milliseconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, _logger: object, _method: str, fields: _Fields) -> _Fields:
        fields["time"] = utc_stamp(self._clock.unix(), milliseconds=True)
        return fields


def utc_stamp(unix: float, *, milliseconds: bool = False) -> str:
    """Return a time as log lines show it, as `2026-01-31T09:15:02Z`."""
    moment = datetime.fromtimestamp(unix, UTC)
    rest = f".{moment.microsecond // 1000:03d}" if milliseconds else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{rest}Z"


def _order(_logger: object, _method: str, fields: _Fields) -> _Fields:
    """Put the fields in their fixed order, make every value plain, leave out what is empty."""
    known = (*_RESERVED, *FIRST_FIELDS)
    names = [name for name in known if name in fields]
    names += sorted(name for name in fields if name not in known)
    values = {name: plain(fields[name]) for name in names}
    return {name: value for name, value in values.items() if value is not None and value != []}


def plain(value: object) -> str | float | int | bool | list[Any] | None:
    """Return `value` as a log may show it; what is not plain shows as its type's name."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return round(value, 3) if math.isfinite(value) else str(value)
        case str():
            return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
        case list() | tuple() | set() | frozenset():
            items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
            return [plain(item) for item in list(items)[:100]]
        case _:
            return f"<{type(value).__name__}>"


def _render_json(_logger: object, _method: str, fields: _Fields) -> str:
    return json.dumps(fields, ensure_ascii=True)


def _render_console(_logger: object, _method: str, fields: _Fields) -> str:
    head = f"{fields['time']} {fields['level'].upper():<7} {fields['event']}"
    pairs = [f"{name}={_shown(fields[name])}" for name in fields if name not in _RESERVED]
    return " ".join([head, *pairs])


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case float():
            return str(int(value)) if value.is_integer() else str(value)
        case list():
            return ",".join(_shown(item) for item in value)
        case str():
            quote = not value or not value.isprintable() or any(c in value for c in ' "=,\\')
            return (
                '"' + escape(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
                if quote
                else value
            )
        case _:
            return str(value)


# --- other people's logging ---------------------------------------------------------------


class _Bridge(logging.Handler):
    """Turns a library's warning into `library.message`: its first line, never a traceback."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        first = (record.getMessage().splitlines() or [""])[0]
        level = "error" if record.levelno >= logging.ERROR else "warning"
        getattr(self._log, level)(Event.LIBRARY_MESSAGE, library=record.name, text=first[:200])


def capture_libraries(log: EventLog) -> None:
    """Send the warnings of libraries that use `logging` to `log`; replaces root handlers."""
    root = logging.getLogger()
    root.handlers[:] = [_Bridge(log)]
    root.setLevel(logging.WARNING)
