"""The coordinator's own identity: what it serves with, and what its commands call it with."""

from __future__ import annotations

from common.certificates import Role
from common.clock import Clock
from common.errors import IdentityError
from common.identity import Identity, load_identity
from coordinator.config import CoordinatorConfig


def own_identity(config: CoordinatorConfig, clock: Clock) -> Identity:
    """Load the coordinator's certificate and key.

    Raises:
        ConfigError, IdentityError: a file is missing, wrong, out of date, or of another
            role or federation.
    """
    certificate = config.path(config.tls.certificate)
    identity = load_identity(
        certificate=certificate,
        key=config.path(config.tls.key),
        ca=config.path(config.tls.ca),
        now_unix=clock.unix(),
    )
    if identity.role is not Role.COORDINATOR or identity.federation != config.federation:
        raise IdentityError(
            "IDENTITY",
            f"{certificate} is of {identity.spiffe}, not of a coordinator of {config.federation}",
            fix="Correct the file's federation, or have a new one issued with `fedcare pki issue`.",
        )
    return identity
