"""What `fedcare coordinator verify` and `fedcare node verify` found, and how they show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.commands import Outcome
from common.errors import ExitCode
from common.text import escape


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that was verified: what is wrong with it and what to do; both empty if good."""

    name: str
    trouble: str = ""
    fix: str = ""


def shown(parts: Sequence[Part]) -> Outcome:
    """Return the screen, and for scripts each damaged part's trouble and fix by its name."""
    bad = [part for part in parts if part.trouble]
    lines = [f"{'DAMAGED' if part.trouble else 'good':<8} {escape(part.name)}" for part in parts]
    for part in bad:
        lines += [escape(f"{part.name}: {part.trouble}"), escape(f"  fix: {part.fix}")]
    data = {
        "good": [part.name for part in parts if not part.trouble],
        "damaged": {part.name: part.trouble for part in bad},
        "fixes": {part.name: part.fix for part in bad},
    }
    return Outcome(data, "\n".join(lines), ExitCode.REFUSED if bad else ExitCode.OK)
