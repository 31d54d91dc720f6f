"""The coordinator's own identity: what it serves with, and what its commands call it with."""

from __future__ import annotations

from cryptography import x509

from common.address import split_address
from common.certificates import Role
from common.clock import Clock
from common.errors import IdentityError
from common.identity import Identity, load_certificates, load_identity
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


def name_to_expect(config: CoordinatorConfig, address: str) -> str | None:
    """Return the name to look for in its certificate; None: the host dialled, as always.

    It listens on every address of the machine, say, and is asked from the same machine on
    loopback, while its certificate carries only the name that hospitals dial.

    Raises:
        ConfigError, IdentityError: the certificate's file is missing or none.
    """
    certificate = load_certificates(config.path(config.tls.certificate))[0]
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    carried = found.value.get_values_for_type(x509.DNSName)
    carried += [str(place) for place in found.value.get_values_for_type(x509.IPAddress)]
    return None if split_address(address)[0] in carried else next(iter(carried), None)
