"""What one rule of a policy says about a study, with the file and line it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.documents import Source
from common.text import show


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule of the policy says about the study."""

    code: str
    """The catalogue name a refusal carries, for example `POLICY_PURPOSE`."""
    rule: str
    """The policy's key, for example `allow.purposes`."""
    where: str
    """`policy.yaml:9`: where the hospital wrote the rule, or where it would stand."""
    ok: bool
    asked: str
    """The study's value, for people."""
    allowed: str
    """The policy's value, for people."""

    def __str__(self) -> str:
        verb = "allows" if self.ok else "does not allow"
        return f"{self.where}: {self.rule} is {self.allowed}: {verb} {self.asked}"


@dataclass(frozen=True, slots=True)
class Rules:
    """Makes findings of the rules of one file."""

    source: Source

    def finding(self, code: str, rule: str, *, ok: bool, asked: str, allowed: str) -> Finding:
        """Return what the rule of that dotted key says."""
        if tuple(rule.split(".")) not in self.source.lines:
            allowed += " (default)"
        return Finding(code, rule, cite(self.source, rule), ok, asked, allowed)

    def member(
        self, code: str, rule: str, noun: str, asked: str, allowed: tuple[str, ...]
    ) -> Finding:
        """Return a finding of a rule that lists what is allowed."""
        text = f"{noun} {show(asked)}"
        return self.finding(code, rule, ok=asked in allowed, asked=text, allowed=words(allowed))

    def at_least(self, code: str, rule: str, noun: str, asked: float, least: float) -> Finding:
        """Return a finding of a floor."""
        return self.finding(
            code,
            rule,
            ok=asked >= least,
            asked=f"{noun} {number(asked)}",
            allowed=f"at least {number(least)}",
        )

    def at_most(self, code: str, rule: str, noun: str, asked: float | None, most: float) -> Finding:
        """Return a finding of a limit; a study without such a number is within it."""
        return self.finding(
            code,
            rule,
            ok=asked is None or asked <= most,
            asked=f"no {noun}" if asked is None else f"{noun} {number(asked)}",
            allowed=f"at most {number(most)}",
        )


def cite(source: Source, rule: str) -> str:
    """Return `policy.yaml:9`: the file's name only, for a finding may leave the hospital.

    The line is the rule's, or its section's; a file without the section has none to name.
    """
    path, name = tuple(rule.split(".")), Path(source.name).name
    return f"{name}:{source.line(*path)}" if path[:1] in source.lines else name


def words(listed: tuple[str, ...]) -> str:
    """Return a list of words as YAML writes it."""
    return "[" + ", ".join(show(word)[1:-1] for word in listed) + "]"


def number(value: float) -> str:
    """Return a number for people, whole ones in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"
