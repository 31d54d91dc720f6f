"""What the commands `coordinator health` and `node health` say and how they exit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from common.commands import Outcome
from common.errors import ExitCode
from common.transport.ask import Health

_WORDS: Final[Mapping[Health, str]] = {
    Health.SERVING: "serves",
    Health.NOT_SERVING: "does not serve now",
    Health.NO_ANSWER: "listens but gave no answer: its event loop is stuck",
}


def outcome(what: str, found: Health) -> Outcome:
    """Return the answer of a health command; exit code 1 unless it serves."""
    return Outcome(
        {"status": found.value, "serving": found is Health.SERVING},
        f"{what} {_WORDS[found]}",
        ExitCode.OK if found is Health.SERVING else ExitCode.REFUSED,
    )
