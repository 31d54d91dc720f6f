"""Composition root of the coordinator.

The only place that builds real clocks, stores and servers.

`build_service` is everything but the transport; `sim` uses it as it is. `serve` puts
gRPC in front of it and runs until it is told to stop.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import grpc

from common.certificates import ChainTrust, Role
from common.clock import Clock, SystemClock
from common.errors import ConfigError, ConnectError, IdentityError, StateError
from common.events import Event
from common.identity import Identity, load_identity
from common.ids import NodeId, hospital_id
from common.logs import EventLog, capture_libraries, make_log
from common.transport.identity import PeerIdentity
from common.transport.interceptors import CALLS_OF_ONE_PEER, CallFailure, Guard
from common.transport.tls import bind, server, server_credentials, split_address
from common.version import VERSION
from coordinator.config import CoordinatorConfig
from coordinator.driver import Workshop
from coordinator.hub import Hub
from coordinator.objects import ObjectStore
from coordinator.run_step import Timing
from coordinator.service import CoordinatorService
from coordinator.servicer import METHODS, AggregationServicer, OperationsServicer
from coordinator.spool import Spool
from coordinator.store import default_url, open_store
from fedcare.v1 import aggregation_pb2_grpc, operations_pb2_grpc

ADDRESS_FILE = "address"
"""In the state directory while the coordinator serves: the host:port it listens on."""

STOP_GRACE_S = 5.0
CALLS_OF_PEOPLE = 64
"""Calls there is room for beside those that every member may have open at a time."""


def lock_state(state_dir: Path) -> TextIO:
    """Make sure that no other process uses the state directory; keep the handle open.

    Raises:
        StateError: STATE_LOCKED.
        ConfigError: BAD_VALUE, a file stands where the folder should.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(
            "BAD_VALUE",
            f"{state_dir}: a file stands where a folder is needed",
            fix="Move the file away, or name another state_dir.",
        ) from None
    handle = (state_dir / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StateError("STATE_LOCKED", f"{state_dir} is in use by another process") from None
    return handle


def build_service(
    config: CoordinatorConfig, identity: Identity, clock: Clock, log: EventLog
) -> CoordinatorService:
    """Return the coordinator without a transport; call `recover` inside a running loop.

    Raises:
        StateError: the store cannot be opened.
    """
    state_dir = config.path(config.state_dir)
    members = frozenset(hospital_id(config.federation, site) for site in config.members)
    waits = config.timing
    shop = Workshop(
        identity=identity,
        trust=ChainTrust(identity.ca_der, members, config.federation),
        store=open_store(config.store or default_url(state_dir)),
        objects=ObjectStore(state_dir / "objects"),
        spool=Spool(state_dir / "spool"),
        hub=Hub(),
        clock=clock,
        log=log,
        timing=Timing(waits.enrolment_grace, waits.setup, waits.gather, waits.release),
        disk=ThreadPoolExecutor(1, thread_name_prefix="disk"),
        crunch=ThreadPoolExecutor(2, thread_name_prefix="sum"),
    )
    return CoordinatorService(
        shop,
        members=config.members,
        heartbeat_s=waits.heartbeat,
        bulk_streams=config.bulk_streams,
    )


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


def serving_address(config: CoordinatorConfig) -> str:
    """Return where a coordinator of this configuration is listening now.

    Raises:
        ConnectError: UNREACHABLE, none is.
        StateError: STATE_DAMAGED, the file that says it does not.
    """
    mark = config.path(config.state_dir) / ADDRESS_FILE
    try:
        address = mark.read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise ConnectError(
            "UNREACHABLE",
            f"no coordinator of {config.federation} is running here",
            fix="Start it with `fedcare coordinator serve`.",
        ) from None
    try:
        host, port = split_address(address)
    except ConfigError:
        raise StateError(
            "STATE_DAMAGED",
            f"{mark} is no address",
            fix="Start the coordinator: it writes it anew.",
        ) from None
    return f"127.0.0.1:{port}" if host in ("0.0.0.0", "::") else address  # noqa: S104 - compared


async def serve(config: CoordinatorConfig, stream: TextIO) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises:
        ConfigError, IdentityError, ConnectError, StateError: it cannot start, or its
            store failed while it ran.
    """
    clock = SystemClock()
    log = make_log(stream, clock=clock)
    capture_libraries(log)
    identity = own_identity(config, clock)
    state_dir = config.path(config.state_dir)
    lock = lock_state(state_dir)
    try:
        service = build_service(config, identity, clock, log)
        listener = _listener(config, service, identity, clock, log)
        port = bind(listener, config.listen, server_credentials(identity))
        address = f"{config.listen.rsplit(':', 1)[0]}:{port}"
        service.recover()
        await listener.start()
        _announce(state_dir, address)
        log.info(Event.SERVICE_STARTED, version=VERSION, address=address)
        await _until_stopped(service)
        log.info(Event.SERVICE_STOPPING)
        await service.close()
        await listener.stop(STOP_GRACE_S)
    finally:
        (state_dir / ADDRESS_FILE).unlink(missing_ok=True)
        lock.close()
    log.info(Event.SERVICE_STOPPED)


def _listener(
    config: CoordinatorConfig,
    service: CoordinatorService,
    identity: Identity,
    clock: Clock,
    log: EventLog,
) -> grpc.aio.Server:
    guard = Guard(
        federation=identity.federation,
        methods=METHODS,
        clock=clock,
        admit=_admission(service),
        report=_reporter(log),
    )
    calls = CALLS_OF_ONE_PEER * len(config.members) + CALLS_OF_PEOPLE
    listener = server([guard], concurrent_calls=calls)
    aggregation_pb2_grpc.add_AggregationServicer_to_server(AggregationServicer(service), listener)
    operations_pb2_grpc.add_OperationsServicer_to_server(OperationsServicer(service), listener)
    return listener


def _admission(service: CoordinatorService) -> Callable[[PeerIdentity], None]:
    def admit(peer: PeerIdentity) -> None:
        if peer.role is Role.HOSPITAL:
            service.check_member(NodeId(peer.node_id))

    return admit


def _reporter(log: EventLog) -> Callable[[CallFailure], None]:
    def report(failure: CallFailure) -> None:
        peer = failure.peer.id if failure.peer is not None else "unknown"
        method = failure.method.rsplit("/", 1)[-1]
        if failure.cause is None:
            log.failure(Event.CALL_REFUSED, failure.error, peer=peer, method=method)
        else:
            log.error(
                Event.INTERNAL_ERROR,
                incident=failure.incident,
                peer=peer,
                method=method,
                kind=type(failure.cause).__name__,
            )

    return report


def _announce(state_dir: Path, address: str) -> None:
    temp = state_dir / f".{ADDRESS_FILE}"
    temp.write_text(address + "\n", encoding="ascii")
    temp.rename(state_dir / ADDRESS_FILE)


async def _until_stopped(service: CoordinatorService) -> None:
    """Return at the first signal, raise if the service cannot go on."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    watch = asyncio.create_task(service.watch_over())
    waiter = asyncio.create_task(stopped.wait())
    done, _ = await asyncio.wait({watch, waiter}, return_when=asyncio.FIRST_COMPLETED)
    for task in (watch, waiter):
        task.cancel()
    if watch in done:
        watch.result()
