"""`fedcare explain FC-nnnn|NAME`: the catalogue of errors, for people."""

from __future__ import annotations

from typing import Annotated

import typer

from common.commands import JsonFlag, Outcome, command, single
from common.errors import BY_CODE, CATALOGUE, ConfigError, ErrorKind
from common.text import nearest, show


def find(word: str) -> ErrorKind:
    """Return the row of a code or name, in any case, with `_` or `-`.

    Raises:
        ConfigError: BAD_VALUE, there is no such row.
    """
    wanted = word.strip().upper()
    row = BY_CODE.get(wanted) or CATALOGUE.get(wanted.replace("-", "_"))
    if row is None:
        guess = nearest(wanted, [*CATALOGUE, *BY_CODE])
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise ConfigError(
            "BAD_VALUE",
            f"no error is called {show(word)}{hint}",
            fix="Give a code such as FC-1004, a name such as UNKNOWN_KEY, or nothing for the list.",
        )
    return row


def as_data(row: ErrorKind) -> dict[str, object]:
    """Return a row as `data` holds it."""
    return {
        "code": row.code,
        "name": row.name,
        "meaning": row.meaning,
        "fix": row.fix,
        "who_acts": row.whose.value,
        "exit_code": int(row.exit_code),
        "status": row.status.value,
    }


@command
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="[FC-nnnn|NAME]", show_default=False)
    ] = None,
    *,
    as_json: JsonFlag = False,
) -> Outcome:
    """Say what an error code means, who has to act, and how it is mended."""
    del as_json
    if code is None:
        rows = sorted(CATALOGUE.values(), key=lambda row: row.code)
        text = "\n".join(f"{row.code}  {row.name:<18}  {row.meaning}" for row in rows)
        return Outcome({"errors": [as_data(row) for row in rows]}, text)
    row = find(code)
    text = (
        f"{row.code} {row.name}\n"
        f"  {row.meaning}\n"
        f"  fix:       {row.fix}\n"
        f"  who acts:  {row.whose.value}\n"
        f"  exit code: {int(row.exit_code)}"
    )
    return Outcome(as_data(row), text)


app = single(explain, "Say what an error code means, who has to act, and how it is mended.")
