r"""Log lines: UTC milliseconds, level, an event of the catalogue, then fields in fixed order.

    2026-01-31T09:15:02.120Z INFO  round.waiting study=heart run=r1 round=3 for=va until=09:16

`LOG_FORMAT=json` gives the same fields, one object a line. A logger takes an `Event`, not a
text, and plain values only: bytes, arrays and secrets appear as their type's name. Control
characters are escaped, so that no value can forge a line or reach a terminal as a command.

    log = make_log(sys.stderr, clock=SystemClock())
    log.bind(study="heart", run="r1").info(Event.ROUND_OPENED, round=3, cohort=4)
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TextIO

import structlog

from common.clock import Clock, SystemClock
from common.errors import FedError, InternalError
from common.events import FIRST_FIELDS, FORBIDDEN_FIELDS, Event
from common.text import escape

Form = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]

Observe = Callable[[Event, str, Mapping[str, object]], None]
"""Is given each event, its level and all its fields, the bound ones included."""

_LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_RESERVED: Final = ("time", "level", "event")
_LONGEST: Final = 400
"""Characters of one value; longer ones are cut."""


class EventLog:
    """Writes events; made by `make_log`, narrowed by `bind`."""

    __slots__ = ("_bound", "_logger", "_observe")

    def __init__(
        self,
        logger: Any,  # noqa: ANN401 - structlog's loggers are untyped
        observe: Observe | None = None,
        bound: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._logger = logger
        self._observe = observe
        self._bound = bound

    def bind(self, **fields: object) -> EventLog:
        """Return a log whose every line carries these fields.

        Raises:
            InternalError: a field's name is forbidden.
        """
        _check_fields(fields)
        return EventLog(self._logger, self._observe, {**self._bound, **fields})

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

    def _write(self, level: str, event: Event, fields: dict[str, object]) -> None:
        if not isinstance(event, Event):
            raise InternalError(f"a log line needs an event of the catalogue, not {type(event)}")
        _check_fields(fields)
        fields = {**self._bound, **fields}
        if self._observe is not None:
            self._observe(event, level, fields)
        getattr(self._logger, level)(event.value, **fields)


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
    stamp = _Stamp(clock or SystemClock())
    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        processors=[structlog.processors.add_log_level, stamp, _order, render],
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return EventLog(logger, observe)


# --- structlog processors ---------------------------------------------------------------

_Fields = MutableMapping[str, Any]


class _Stamp:
    """Adds the time in UTC with milliseconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, _logger: object, _method: str, fields: _Fields) -> _Fields:
        moment = datetime.fromtimestamp(self._clock.unix(), UTC)
        milliseconds = f"{moment.microsecond // 1000:03d}"
        fields["time"] = f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds}Z"
        return fields


def _order(_logger: object, _method: str, fields: _Fields) -> _Fields:
    """Put the fields in their fixed order and make every value plain."""
    known = (*_RESERVED, *FIRST_FIELDS)
    names = [name for name in known if name in fields]
    names += sorted(name for name in fields if name not in known)
    return {name: plain(fields[name]) for name in names}


def plain(value: object) -> str | float | int | bool | list[Any] | None:
    """Return `value` as a log may show it; what is not plain shows as its type's name."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
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
        case list():
            return ",".join(_shown(item) for item in value) or "-"
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
