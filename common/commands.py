"""What a command is written with: a group, a decorator, and what it returns.

    app = group("Check, submit and list studies.")

    @app.command()
    @command
    def lint(file: Path, *, as_json: JsonFlag = False) -> Outcome:
        ...
        return Outcome(data={"hash": digest}, text="study heart-disease is valid")

A command returns an `Outcome` and raises `FedError`s; it prints nothing itself on stdout
but progress, which `--json` moves to stderr, so that stdout holds one envelope. Errors are
reported by `common.cli.main`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ParamSpec

import typer

from common.cli import Interrupted, envelope
from common.errors import ExitCode

P = ParamSpec("P")

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON envelope on stdout and nothing else there.")
]
"""Type of the parameter `as_json` that every command has."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: `data` for scripts, `text` for people, and the exit code.

    `exit_code` is other than OK only where the answer itself is not a failure, such as
    WAITING for a person's approval.
    """

    data: Mapping[str, object]
    text: str = ""
    exit_code: ExitCode = ExitCode.OK


def group(help_text: str) -> typer.Typer:
    """Return an empty group of commands; it stays a group with a single command."""
    app = typer.Typer(help=help_text, no_args_is_help=True, add_completion=False)
    app.callback()(_nothing)
    return app


def _nothing() -> None:
    """Make typer keep the group; the group's help stands in its own text."""


def single(function: Callable[..., int], help_text: str) -> typer.Typer:
    """Return a command that is no group, such as `fedcare explain`."""
    app = typer.Typer(add_completion=False)
    app.command(help=help_text)(function)
    return app


def command(function: Callable[P, Outcome | None]) -> Callable[P, int]:
    """Run `function`, print its outcome in the form asked for, return its exit code."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> int:
        as_json = bool(kwargs.get("as_json"))
        out = sys.stdout
        quiet = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        try:
            with quiet:
                outcome = function(*args, **kwargs) or Outcome({})
        except KeyboardInterrupt:
            raise Interrupted from None
        if as_json:
            print(envelope(outcome.data), file=out)
        elif outcome.text:
            print(outcome.text, file=out)
        return int(outcome.exit_code)

    return wrapper
