"""The composition root: the only place that builds real clocks, keys, channels and files.

    fedcare node serve --config node.yaml

`load_setup` reads and cross-checks every file before anything is opened, so that a
wrong one is named at once; `build_node` puts a node together from it, with any `connect`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from common import failpoints
from common.certificates import ChainTrust, Role
from common.clock import Clock, SystemClock
from common.config import Loaded
from common.confinement import Facts, confine, say
from common.documents import Source
from common.drain import let_in
from common.entropy import Entropy, OsEntropy
from common.errors import ConfigError, IdentityError
from common.identity import Identity, OutOfDates, load_identity
from common.ids import NodeId, hospital_id
from common.logs import EventLog, capture_libraries, make_log
from common.policy import Policy, load_policy
from common.secagg.dp import DpMode
from common.secagg.keys import Suite
from common.secagg.rules import NodeRules
from common.site import Site, read_site
from common.state_folder import Owner
from hospital_node.approval.gate import gate_of
from hospital_node.approval.records import ApprovalFolder
from hospital_node.checkpoints import Checkpoints
from hospital_node.conduct import Conduct
from hospital_node.config import NodeConfig
from hospital_node.data.headings import check_tables
from hospital_node.driver import Node, NodeParts
from hospital_node.findings import cite
from hospital_node.last_contact import explained
from hospital_node.launcher import Launcher
from hospital_node.learning import HospitalDesk
from hospital_node.link import Connect
from hospital_node.picture import not_ready
from hospital_node.private.books import Books
from hospital_node.private.limits import Limits
from hospital_node.releases import ReleaseTrust
from hospital_node.store import NodeStore, open_own
from hospital_node.work import Desk, PrivacyBooks

if TYPE_CHECKING:  # loaded where they are needed: grpc to dial, prometheus for the port
    from hospital_node.health import Standing
    from hospital_node.metrics import NodeMetrics

HEALTH_GRACE_S: Final = 1.0

DeskMaker: TypeAlias = Callable[
    [
        Loaded[Policy],
        Site | None,
        EventLog,
        PrivacyBooks,
        Launcher | None,
        Checkpoints | None,
    ],
    Desk,
]
"""Makes the hospital's desk; `bench` brings one whose training always fails."""


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """Every file of a node, loaded and checked against the others."""

    config: NodeConfig
    policy: Loaded[Policy]
    site: Site | None
    identity: Identity


def load_setup(config: NodeConfig, clock: Clock) -> NodeSetup:
    """Load what the configuration names.

    Raises:
        ConfigError: a file is missing or wrong, or two files contradict each other.
        DataError: a table is empty, or lacks a column that the manifest names.
        IdentityError: the certificate is not this hospital's, or not of the pinned CA.
    """
    policy = load_policy(config.path(config.policy))
    try:
        identity = load_identity(
            certificate=config.path(config.tls.certificate),
            key=config.path(config.tls.key),
            ca=config.path(config.tls.ca),
            now_unix=clock.unix(),
        )
    except OutOfDates as failure:
        raise explained(failure, config.path(config.state_dir), clock) from None
    check_identity(identity, policy)
    site = None if config.site is None else _site(config.path(config.site))
    if site is not None and site.id != policy.value.site:
        raise ConfigError(
            "BAD_VALUE",
            f"{config.site}: id is '{site.id}', but {policy.source.where('site')} says"
            f" '{policy.value.site}'",
        )
    return NodeSetup(config, policy, site, identity)


def _site(path: Path) -> Site:
    """Load the manifest, and hold it against the tables it names."""
    loaded = read_site(path)
    check_tables(loaded)
    return loaded.value


def check_identity(identity: Identity, policy: Loaded[Policy]) -> None:
    """Refuse a certificate that is not the one the policy speaks of.

    Raises:
        IdentityError: IDENTITY, another role, site or federation; CERT_INVALID, another CA.
    """
    rules, where = policy.value, policy.source.where
    if identity.role is not Role.HOSPITAL:
        raise IdentityError("IDENTITY", f"{identity.spiffe} is not a hospital's certificate")
    if identity.node_id != hospital_id(rules.federation.id, rules.site):
        raise IdentityError(
            "IDENTITY",
            f"the certificate is {identity.spiffe}'s; {where('site')} and"
            f" {where('federation', 'id')} say {rules.site} of {rules.federation.id}",
            fix="Correct the policy, or have a new one issued with `fedcare pki issue`.",
        )
    if identity.ca_sha256 != {rules.federation.ca_sha256}:
        raise IdentityError(
            "CERT_INVALID",
            f"the CA file is not the one pinned at {where('federation', 'ca_sha256')}",
            fix="Compare the fingerprints: `fedcare pki show` prints the CA's.",
        )


def members(policy: Policy) -> frozenset[NodeId]:
    """Return the ids of the pinned members."""
    pinned = policy.federation
    return frozenset(hospital_id(pinned.id, site) for site in pinned.members)


_AT_HEADERS: Final = (
    "require.min_cohort",
    "require.allow_two_party",
    "require.colluders",
    "require.min_sites",
    "require.dp",
    "require.dp.modes",
    "require.dp.min_noise_multiplier",
    "require.dp.max_clip",
    "allow.weights",
    "allow.layouts",
    "allow.ring_bits",
    "allow.suites",
    "limits.upload_bytes",
    "limits.round_deadline",
    "hours",
)
"""The policy's keys that every header is held against."""


def rules_of(policy: Policy, source: Source) -> NodeRules:
    """Return the hospital's floors as the protocol's machine takes them."""
    require, dp, limits = policy.require, policy.require.dp, policy.limits
    return NodeRules(
        colluders=require.colluders,
        min_cohort=require.min_cohort,
        s_min=require.min_sites,
        allow_two_party=require.allow_two_party,
        ring_bits=frozenset(policy.allow.ring_bits),
        suites=frozenset(map(Suite, policy.allow.suites)),
        dp_modes=frozenset(map(DpMode, dp.modes)),
        min_z=dp.min_noise_multiplier,
        max_clip=dp.max_clip,
        max_upload_bytes=limits.upload_bytes,
        max_deadline_ms=round(limits.round_deadline * 1000),
        hours=policy.hours,
        where={key: cite(source, key) for key in _AT_HEADERS},
    )


def build_node(
    setup: NodeSetup,
    connect: Connect,
    *,
    log: EventLog,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    software: str = "fedcare",
    desk: DeskMaker = HospitalDesk,
) -> Node:
    """Return a node that dials with `connect`; it holds its state directory from now on.

    Call it inside a running event loop; `await node.run()` serves until `node.stop()`.

    Raises:
        StateError: see `hospital_node.store.open_own`.
        ConfigError: see `Launcher.of`.
    """
    config, policy, identity = setup.config, setup.policy.value, setup.identity
    entropy = entropy or OsEntropy()
    key_file = None if config.sealing_key is None else config.path(config.sealing_key)
    owner = Owner(identity.role, identity.federation, identity.spiffe.id)
    store = open_own(config.path(config.state_dir), owner, entropy, key_file)
    clock = clock or SystemClock()
    anchor = None if config.ledger_anchor is None else config.path(config.ledger_anchor)
    limits = Limits.of(setup.policy)
    books = Books(store, identity.node_id, limits, entropy, lambda: int(clock.unix()), anchor)
    approvals = ApprovalFolder(
        store.root, policy.site, policy.federation.id, policy.require.approval
    )
    parts = NodeParts(
        federation=policy.federation.id,
        signer=identity,
        trust=ChainTrust(identity.ca_der, members(policy), policy.federation.id),
        rules=rules_of(policy, setup.policy.source),
        release_trust=ReleaseTrust(identity.ca_der, policy.federation.id),
        gate=gate_of(approvals, policy.require.approval, clock, log),
        store=store,
        desk=desk(
            setup.policy, setup.site, log, books, Launcher.of(config), _checkpoints(config, store)
        ),
        witnessed=books.witnessed,
        connect=connect,
        log=log,
        conduct=Conduct.of(policy, setup.policy.source),
        software=software,
        clock=clock,
        entropy=entropy,
    )
    return Node(parts)


def _checkpoints(config: NodeConfig, store: NodeStore) -> Checkpoints | None:
    every_s = config.training.checkpoint_s
    return None if every_s is None else Checkpoints(store.checkpoints, every_s)


def serve(config: NodeConfig, desk: DeskMaker = HospitalDesk) -> None:
    """Run a node until SIGTERM or SIGINT, or until no round is open after SIGUSR1.

    A second SIGTERM or SIGINT ends the process at once.

    Raises:
        FedError: see `load_setup` and `build_node`.
    """
    failpoints.arm(os.environ)
    clock = SystemClock()
    confined = confine(config.confinement, _key_files(config))
    setup = load_setup(config, clock)
    metrics = _metrics(config)
    log = make_log(
        sys.stderr,
        level=config.log_level,
        clock=clock,
        observe=None if metrics is None else metrics.observe,
    )
    capture_libraries(log)
    own_log = log.bind(site=setup.policy.value.site)
    asyncio.run(_serve(setup, confined, own_log, clock, desk, metrics))


def _key_files(config: NodeConfig) -> list[Path]:
    return [config.path(name) for name in (config.tls.key, config.sealing_key) if name is not None]


def _metrics(config: NodeConfig) -> NodeMetrics | None:
    if config.http is None:
        return None
    from hospital_node.metrics import NodeMetrics

    return NodeMetrics()


async def _serve(
    setup: NodeSetup,
    confined: Facts,
    log: EventLog,
    clock: Clock,
    desk: DeskMaker,
    metrics: NodeMetrics | None,
) -> None:
    from common.cli import version
    from common.transport.health import local_server
    from hospital_node.grpc_link import GrpcDialler  # grpc: not needed to check files
    from hospital_node.health import Standing

    where = setup.policy.value.coordinator
    dialler = GrpcDialler(where.address, setup.identity, where.proxy, clock)
    node = build_node(
        setup, dialler, log=log, clock=clock, software=f"fedcare {version()}", desk=desk
    )
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        node.stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(0))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    say(log, setup.config.confinement, confined)
    standing = Standing(node, clock)
    state_dir = setup.config.path(setup.config.state_dir)
    with (
        local_server(state_dir, standing.health) as local,
        _http_port(setup, standing, metrics, log) as http,
    ):
        await local.start()
        beat = asyncio.create_task(standing.pulse.keep())

        async def before_end() -> None:
            beat.cancel()
            standing.health.stop()
            await local.stop(HEALTH_GRACE_S)

        # At its first wait `run` knows of the open rounds that draining has to finish.
        loop.call_soon(let_in, node.drain)
        await node.run(http, before_end)


@contextmanager
def _http_port(
    setup: NodeSetup, standing: Standing, metrics: NodeMetrics | None, log: EventLog
) -> Iterator[str | None]:
    """Serve health and metrics on loopback inside the block; yield the address, if any."""
    config = setup.config
    if config.http is None or metrics is None:
        yield None
        return
    from common.http_port import HttpPort, in_loop, pages_of

    metrics.read(standing.pulse, config.path(config.state_dir), setup.identity.leaf.not_after)
    pages = pages_of(standing.pulse, not_ready, metrics.text)
    port = HttpPort(config.http, pages, in_loop(log.failure))
    try:
        yield port.open()
    finally:
        port.close()
