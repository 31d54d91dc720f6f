"""The reason that a person gives for an order: it is kept, and stands in log lines."""

from __future__ import annotations

from typing import Final

from common.errors import ConfigError

MOST_REASON: Final = 500
"""Characters."""


def check_reason(reason: str) -> str:
    """Return a reason that can stand in a log line.

    Raises:
        ConfigError: BAD_ARGUMENT.
    """
    if not reason.strip() or len(reason) > MOST_REASON or not reason.isprintable():
        raise ConfigError(
            "BAD_ARGUMENT", f"--reason is one line of 1 to {MOST_REASON} characters: it is kept"
        )
    return reason
