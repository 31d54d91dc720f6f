"""What a policy says about a study's size: its model, its rounds, its time, its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from common import layouts
from common.config import format_duration
from common.policy import Policy
from common.policy_limits import ResourceLimits
from common.secagg.header import RoundKind
from common.secagg.ring import word_bytes
from common.study import Study
from common.vectors import ParameterSchema
from hospital_node.findings import Finding, Rules

_SHOWN_TENSORS: Final = 4

Shapes = Mapping[str, tuple[int, ...]]


def limit_rules(study: Study, limits: ResourceLimits, rules: Rules) -> Iterator[Finding]:
    """Yield what each limit says. A study without a model has no local training."""
    train = None if study.kind == "statistics" else study.train
    rounds = None if train is None else study.federation.rounds
    steps, epochs = (train.local_steps, train.local_epochs) if train else (None, None)
    numbers: tuple[tuple[str, str, int | None, int], ...] = (
        ("parameters", "a model of", layouts.result_schema(study).parameters, limits.parameters),
        ("rounds", "rounds", rounds, limits.rounds),
        ("local_steps", "local_steps", steps, limits.local_steps),
        (
            "local_epochs",
            "local_epochs",
            epochs,
            limits.local_epochs,
        ),
        ("batch", "batch", train.batch if train else None, limits.batch),
        ("upload_bytes", "bytes in a round:", upload_bytes(study), limits.upload_bytes),
    )
    for key, noun, asked, most in numbers:
        yield rules.at_most("POLICY_LIMITS", f"limits.{key}", noun, asked, most)
    deadline, longest = study.federation.round_deadline, limits.round_deadline
    yield rules.finding(
        "POLICY_LIMITS",
        "limits.round_deadline",
        ok=deadline <= longest,
        asked=f"round_deadline {format_duration(deadline)}",
        allowed=f"at most {format_duration(longest)}",
    )


def layout_rule(study: Study, policy: Policy, rules: Rules) -> Finding:
    """Return whether the study's model is one of those listed by names and shapes."""
    allowed, own = policy.allow.layouts, shapes(layouts.result_schema(study))
    fits = allowed is None or any(list(one.items()) == list(own.items()) for one in allowed)
    return rules.finding(
        "POLICY_LAYOUT",
        "allow.layouts",
        ok=fits,
        asked=f"tensors {_shown(own)}",
        allowed="any" if allowed is None else "; ".join(map(_shown, allowed)) or "none",
    )


def ring_rule(study: Study, policy: Policy, rules: Rules) -> Finding:
    """Return whether every ring that the study's rounds use is allowed."""
    used = sorted({layout.ring_bits for layout in _layouts(study)})
    allowed = policy.allow.ring_bits
    return rules.finding(
        "POLICY_PROTOCOL",
        "allow.ring_bits",
        ok=set(used) <= set(allowed),
        asked=f"rings of {used} bits",
        allowed=str(sorted(allowed)),
    )


def shapes(schema: ParameterSchema) -> Shapes:
    """Return a schema's tensors as a policy lists them."""
    return {tensor.name: tensor.shape for tensor in schema.tensors}


def upload_bytes(study: Study) -> int:
    """Return the bytes of the largest upload of the study's rounds."""
    return max(layout.schema.words * word_bytes(layout.ring_bits) for layout in _layouts(study))


def _layouts(study: Study) -> tuple[layouts.RoundLayout, ...]:
    kinds: tuple[RoundKind, ...] = tuple(dict.fromkeys(layouts.round_kinds(study)))
    return tuple(layouts.round_layout(study, kind) for kind in kinds)


def _shown(tensors: Shapes) -> str:
    parts = [f"{name} {list(shape)}" for name, shape in tensors.items()]
    more = len(parts) - _SHOWN_TENSORS
    return ", ".join(parts[:_SHOWN_TENSORS]) + (f" and {more} more" if more > 0 else "")
