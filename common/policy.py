"""A hospital's own word: which studies its node runs, with whom, on what terms.

The schema is `fedcare.policy/v1`. The file belongs to the hospital and its node enforces
it (docs/protocol.md, section 10.1); a coordinator may be stricter, never laxer. What is
not listed under `allow` is not allowed. `require.approval` names the people who have to
approve a study before it runs here (section 10.8); without approvers nobody is asked.

What is added to the architecture page's keys is optional, with the defaults below.

Defaults of `require`: `min_cohort` and `min_sites` 3 (2 in a federation of two that
`allow_two_party`), `colluders` by the protocol's rule for the number of members: 0 for
two, 1 for three to five, a quarter beyond; never 0 for three or more unless written down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from common.approval_keys import approver_key
from common.config import (
    Label,
    Loaded,
    Name,
    Number,
    Seconds,
    Section,
    Text,
    load,
    no_repeats,
    problem,
    validate,
)
from common.documents import dump_yaml, parse_yaml
from common.hours import Hours
from common.ids import ConfigHash
from common.policy_limits import ResourceLimits
from common.site import MAX_SITES, SiteId
from common.study_federation import LATER_STRATEGIES, STRATEGIES, WEIGHT_RULES
from common.study_models import LATER_MODEL_KINDS, MODEL_KINDS
from common.study_sections import DP_MODES
from common.text import listed, nearest, show

SCHEMA: Final = "fedcare.policy/v1"

STATISTICS: Final = "statistics"
"""What `allow.model_kinds` lists to allow studies that fit no model."""

PUBLIC_WEIGHTS: Final = "public"
"""What `allow.weights` lists to allow a public constant per site."""

MOST_APPROVERS: Final = 64
SHORTEST_APPROVAL_S: Final = 3600.0
LONGEST_APPROVAL_S: Final = 5 * 365 * 86_400.0
"""An approval lasts at least an hour and at most five years."""

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_ADDRESS: Final = re.compile(
    r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>\d{1,5})", re.ASCII
)
_HIGHEST_PORT: Final = 65_535
SUITES: Final = ("hybrid", "classical")
RING_BITS: Final = (16, 32, 64)
RINGS: Final = (32, 64)
"""Widths `w` of the ring that a policy allows unless it says otherwise; 16 must be listed."""

_MOST_DIMS: Final = 8
_TWO: Final = 2


def _fingerprint(value: str) -> str:
    """Return 64 lower-case hex digits; colons, as openssl prints them, are taken out."""
    digits = value.removeprefix("sha256:").replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(digits):
        raise ValueError(
            "must be the CA certificate's SHA-256 fingerprint, 64 hexadecimal digits in quotes "
            f"(`fedcare pki show` prints it), not {show(value)}"
        )
    return digits


def _address(value: str) -> str:
    found = _ADDRESS.fullmatch(value)
    if found is None or not 1 <= int(found["port"]) <= _HIGHEST_PORT:
        raise ValueError(
            f"must be host:port, such as coordinator.example.org:443, not {show(value)}"
        )
    return value


def _proxy(value: str) -> str:
    try:
        return "http://" + _address(value.removeprefix("http://").removesuffix("/"))
    except ValueError:
        raise ValueError(f"must be http://host:port or null, not {show(value)}") from None


def _known(*groups: tuple[str, ...]) -> AfterValidator:
    """Return a validator of words that some version of the product knows."""
    known = tuple(word for group in groups for word in group)

    def check(value: str) -> str:
        if value not in known:
            guess = nearest(value, known)
            hint = f"did you mean '{guess}'?" if guess else f"known: {listed(known)}"
            raise ValueError(f"is {show(value)}, which no version knows; {hint}")
        return value

    return AfterValidator(check)


def _study_hash(value: str) -> str:
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        raise ValueError(
            "must be sha256: and the 64 hexadecimal digits that `fedcare study lint` prints, "
            f"not {show(value)}"
        )
    return value


def _ring(value: int) -> int:
    if value not in RING_BITS:
        raise ValueError(f"must be {listed([str(width) for width in RING_BITS])}, not {value}")
    return value


def _layout(value: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
    """Freeze a layout; its tensors stand in the order of the file."""
    return MappingProxyType(dict(value))


Distinct = AfterValidator(no_repeats)
Dimension = Annotated[int, Field(ge=1, le=2**31)]
Layout = Annotated[
    Mapping[Name, Annotated[tuple[Dimension, ...], Field(max_length=_MOST_DIMS)]],
    Field(min_length=1, max_length=10_000),
    AfterValidator(_layout),
    PlainSerializer(lambda value: {name: list(shape) for name, shape in value.items()}),
]
"""A model by its tensors: each name with its shape, in order."""


class PinnedFederation(Section):
    """Whom the hospital trusts: one CA by fingerprint, and the members by name.

    `ca_sha256` is the SHA-256 of the CA certificate in DER. A certificate that verifies
    but names nobody of `members` is refused all the same.
    """

    id: SiteId
    ca_sha256: Annotated[str, AfterValidator(_fingerprint)]
    members: Annotated[tuple[SiteId, ...], Field(min_length=2, max_length=MAX_SITES), Distinct]


class Coordinator(Section):
    """Where the node dials; `proxy: null` means the environment's https_proxy, if any."""

    address: Annotated[str, AfterValidator(_address)]
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None


class Allow(Section):
    """What may run here. A study must be of one of `owners` or one of `studies` (by hash).

    `tasks`: ids of studies; null: any id. `layouts`: models by the names and shapes of their
    tensors; null: any of the kinds that are allowed. `suites`: key exchanges. `ring_bits`:
    widths of the ring.
    """

    purposes: Annotated[tuple[Label, ...], Distinct]
    owners: Annotated[tuple[Text, ...], Distinct] = ()
    studies: Annotated[tuple[Annotated[str, AfterValidator(_study_hash)], ...], Distinct] = ()
    datasets: Annotated[tuple[Label, ...], Distinct]
    model_kinds: Annotated[
        tuple[Annotated[str, _known(MODEL_KINDS, (STATISTICS,), LATER_MODEL_KINDS)], ...], Distinct
    ]
    strategies: Annotated[
        tuple[Annotated[str, _known(STRATEGIES, LATER_STRATEGIES)], ...], Distinct
    ] = ("fedavg",)
    weights: Annotated[
        tuple[Annotated[str, _known(WEIGHT_RULES, (PUBLIC_WEIGHTS,))], ...], Distinct
    ] = ("size_class", "equal")
    tasks: Annotated[tuple[SiteId, ...], Distinct] | None = None
    layouts: tuple[Layout, ...] | None = None
    suites: Annotated[tuple[Annotated[str, _known(SUITES)], ...], Field(min_length=1), Distinct] = (
        SUITES
    )
    ring_bits: Annotated[
        tuple[Annotated[int, AfterValidator(_ring)], ...], Field(min_length=1), Distinct
    ] = RINGS

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a policy that forgot to say whose studies may run."""
        if not self.model_fields_set & {"owners", "studies"}:
            raise ValueError("must list 'owners' or 'studies' (by hash); an empty list allows none")
        return self

    def lists_study(self, digest: ConfigHash) -> bool:
        """Return whether the study of that hash is allowed by hash."""
        return f"sha256:{digest.hex()}" in self.studies


class PrivacyRules(Section):
    """What the hospital asks of differential privacy, and how much it lets be spent.

    `modes`: those it takes part in; without `none` no study runs without noise.
    `epsilon_per_study` and `epsilon_total` (per data set, over all studies, for ever) are
    charged by its own ledger. `delta`: the most a study may state, and what the total is
    counted at. `max_clip`: the largest C. `min_noise_multiplier`: the least z.
    """

    modes: Annotated[
        tuple[Annotated[str, _known(DP_MODES)], ...], Field(min_length=1), Distinct
    ] = DP_MODES
    epsilon_per_study: Annotated[Number, Field(gt=0, le=1000)] = 3.0
    epsilon_total: Annotated[Number, Field(gt=0, le=1000)] = 10.0
    delta: Annotated[Number, Field(gt=0, lt=0.1)] = 1e-5
    max_clip: Annotated[Number, Field(gt=0)] = 10.0
    min_noise_multiplier: Annotated[Number, Field(ge=0)] = 0.0


class Approver(Section):
    """A person who may approve studies here: a name, and the public half of that person's key."""

    name: Label
    key: Annotated[str, AfterValidator(approver_key)]


class Approval(Section):
    """Who approves a study before it runs: `quorum` of `approvers`, each for `expires` seconds.

    Without approvers nobody is asked.
    """

    quorum: Annotated[int, Field(ge=1, le=MOST_APPROVERS)] = 1
    approvers: Annotated[tuple[Approver, ...], Field(max_length=MOST_APPROVERS)] = ()
    expires: Annotated[Seconds, Field(ge=SHORTEST_APPROVAL_S, le=LONGEST_APPROVAL_S)] = (
        90 * 86_400.0
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse a quorum that nobody can reach, and one person under two names."""
        for key in ("name", "key"):
            seen: set[str] = set()
            for index, approver in enumerate(self.approvers):
                value: str = getattr(approver, key)
                if value in seen:
                    words = f"is {show(value)}, as an earlier approver's is"
                    raise problem(words, "approvers", index, key, name="DUPLICATE_KEY")
                seen.add(value)
        if self.quorum > max(1, len(self.approvers)):  # the default asks nobody
            raise problem(
                f"is {self.quorum}, but {len(self.approvers)} approvers are named", "quorum"
            )
        return self

    def key_of(self, name: str) -> str | None:
        """Return the key of the approver of that name, if the policy names one."""
        return next((one.key for one in self.approvers if one.name == name), None)


class Require(Section):
    """The least the hospital insists on. Completed by `Policy`, so that no value is open."""

    min_cohort: Annotated[int, Field(ge=2, le=10_000)] = 3
    min_sites: Annotated[int, Field(ge=2, le=10_000)] = 3
    colluders: Annotated[int, Field(ge=0, le=10_000)] = 1
    allow_two_party: bool = False
    dp: PrivacyRules = PrivacyRules()
    approval: Approval = Approval()


class Release(Section):
    """What may leave besides masked sums.

    `min_cell`: patients below which nothing is counted: a study whose unprotected sums would
    hold fewer of this hospital's patients is refused. `site_metrics`: whether the hospital's
    own metrics may be sent to the study's owner. `pad_to_deadline`: an input is held back
    until half of the round's deadline has passed, so that the time training took is hidden.
    """

    min_cell: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    site_metrics: bool = False
    pad_to_deadline: bool = False


class Policy(Section):
    """A hospital's policy, completed and cross-checked."""

    schema_: Literal["fedcare.policy/v1"] = Field(alias="schema")
    site: SiteId
    federation: PinnedFederation
    coordinator: Coordinator
    allow: Allow
    require: Require = Require()
    release: Release = Release()
    limits: ResourceLimits = ResourceLimits()
    hours: Hours = Hours()

    @model_validator(mode="before")
    @classmethod
    def complete(cls, data: object) -> object:
        """Fill in the defaults of `require` that depend on the number of members."""
        if not isinstance(data, dict):
            return data
        federation, require = data.get("federation"), data.get("require", {})
        members = federation.get("members") if isinstance(federation, dict) else None
        if not isinstance(members, tuple) or not isinstance(require, dict):
            return data
        from common.secagg.params import default_colluders  # it brings numpy

        two = len(members) == _TWO and require.get("allow_two_party") is True
        defaults: dict[str, Any] = {
            "min_cohort": 2 if two else 3,
            "min_sites": 2 if two else 3,
            "colluders": default_colluders(len(members)),
        }
        return {**data, "require": {**defaults, **require}}

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse rules that contradict each other."""
        members, require = self.federation.members, self.require
        if self.site not in members:
            raise problem(f"lacks this hospital, '{self.site}'", "federation", "members")
        if require.min_cohort == _TWO and not require.allow_two_party:
            raise problem(
                "is 2, which needs allow_two_party: true (each hospital can then compute the "
                "other's update)",
                "require",
                "min_cohort",
            )
        for key in ("min_cohort", "min_sites"):
            wanted = getattr(require, key)
            if key in require.model_fields_set and wanted > max(3, len(members)):
                raise problem(
                    f"is {wanted}, but the federation has {len(members)} members", "require", key
                )
        if require.colluders > len(members) - _TWO:
            raise problem(
                f"is {require.colluders}, but of {len(members)} members at least 2 must be honest",
                "require",
                "colluders",
            )
        return self


def parse_policy(text: str, name: str = "policy") -> Loaded[Policy]:
    """Return the policy of a YAML text and its lines.

    Raises:
        FedError: as `load_policy`.
    """
    document = parse_yaml(text, name)
    return Loaded(validate(document, Policy, SCHEMA), document.source)


def load_policy(path: Path) -> Loaded[Policy]:
    """Return a hospital's policy and where each of its rules stands.

    Raises:
        ConfigError: the file is missing or wrong.
    """
    return load(path, Policy, SCHEMA)


def policy_yaml(policy: Policy) -> str:
    """Return the completed policy as YAML; it reads back as an equal policy."""
    return dump_yaml(policy.model_dump(mode="json", by_alias=True))
