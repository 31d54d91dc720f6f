"""Composition root of the coordinator.

The only place that builds real clocks, stores and servers.

`build_service` is everything but the transport; `sim` uses it as it is. `serve` puts
gRPC in front of it, health and metrics beside it, and runs until it is told to stop.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import TextIO

import grpc

from common import confinement, failpoints, state_folder
from common.certificates import ChainTrust, Role
from common.clock import Clock, SystemClock
from common.drain import let_in
from common.errors import StateError
from common.events import Event
from common.http_port import HttpPort, in_loop, pages_of
from common.identity import Identity
from common.ids import NodeId, hospital_id
from common.logs import EventLog, capture_libraries, make_log
from common.pulse import Pulse
from common.state_folder import Owner
from common.transport.ask import WHOLE
from common.transport.health import HealthServicer, add_health
from common.transport.identity import PeerIdentity
from common.transport.interceptors import CALLS_OF_ONE_PEER, CallFailure, Guard
from common.transport.tls import bind, server, server_credentials
from common.version import VERSION
from coordinator.admission import Arrivals
from coordinator.checksums import MARK_NAME
from coordinator.config import CoordinatorConfig
from coordinator.driver import Workshop
from coordinator.failures import Failures
from coordinator.history import History
from coordinator.hub import Hub
from coordinator.metrics import CoordinatorMetrics, take_picture
from coordinator.objects import ObjectStore
from coordinator.own import own_identity
from coordinator.room import Room
from coordinator.run_step import Timing
from coordinator.service import CoordinatorService
from coordinator.servicer import METHODS, AggregationServicer, OperationsServicer
from coordinator.shelf import Shelf
from coordinator.spool import Spool
from coordinator.start_room import announce, once_there_is_room, reserve_address
from coordinator.store import STATE_NAMES, default_url, open_store
from coordinator.whereabouts import ADDRESS_FILE
from fedcare.v1 import aggregation_pb2_grpc, operations_pb2_grpc

STOP_GRACE_S = 5.0
CALLS_OF_PEOPLE = 64
"""Calls that operators and researchers may have open, all together."""

CALLS_OF_ITS_OWN = 8
"""Calls of this machine's health checks and status: there is always room for them."""


def lock_state(state_dir: Path) -> TextIO:
    """Make sure that no other process uses the state directory; keep the handle open.

    Raises:
        StateError: STATE_LOCKED; STATE_ACCESS; DISK.
        ConfigError: BAD_VALUE, a file stands where the folder should.
    """
    state_folder.make(state_dir)
    with state_folder.disk_errors(state_dir / "lock"):
        handle = (state_dir / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StateError("STATE_LOCKED", f"{state_dir} is in use by another process") from None
    return handle


def build_service(
    config: CoordinatorConfig,
    identity: Identity,
    clock: Clock,
    log: EventLog,
    room: Room | None = None,
) -> CoordinatorService:
    """Return the coordinator without a transport; call `recover` inside a running loop.

    Raises:
        StateError: the store cannot be opened. NoRoom: nothing of it is held, try again.
    """
    state_dir = config.path(config.state_dir)
    members = frozenset(hospital_id(config.federation, site) for site in config.members)
    waits = config.timing
    room = room or _room(state_dir, clock, log)
    # The store last: where one of the others finds no room, it is not held.
    objects, spool = ObjectStore(state_dir / "objects"), Spool(state_dir / "spool")
    history = History(state_dir, config.members)
    shop = Workshop(
        identity=identity,
        trust=ChainTrust(identity.ca_der, members, config.federation),
        store=open_store(
            config.store or default_url(state_dir),
            config.federation,
            state_dir / MARK_NAME,
            alone=config.store is not None,
        ),
        objects=objects,
        spool=spool,
        hub=Hub(),
        history=history,
        clock=clock,
        log=log,
        timing=Timing(waits.enrolment_grace, waits.setup, waits.gather, waits.release),
        disk=room.disk,
        crunch=ThreadPoolExecutor(2, thread_name_prefix="sum"),
        room=room,
    )
    return CoordinatorService(
        shop,
        members=config.members,
        heartbeat_s=waits.heartbeat,
        bulk_streams=config.bulk_streams,
        shelf=Shelf(state_dir),
    )


def _room(state_dir: Path, clock: Clock, log: EventLog) -> Room:
    disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
    return Room(Failures(state_dir), clock, log, disk)


async def serve(config: CoordinatorConfig, stream: TextIO) -> None:
    """Serve until SIGTERM or SIGINT, or until no round is open after SIGUSR1.

    A second SIGTERM or SIGINT ends the process at once.

    Raises:
        ConfigError, IdentityError, ConnectError, StateError: it cannot start, or its
            store failed while it ran.
    """
    failpoints.arm(os.environ)
    clock = SystemClock()
    confined = confinement.confine(config.confinement, [config.path(config.tls.key)])
    metrics = CoordinatorMetrics(config.members)
    log = make_log(stream, clock=clock, observe=metrics.observe)
    capture_libraries(log)
    identity = own_identity(config, clock)
    state_dir = config.path(config.state_dir)
    owner = Owner(identity.role, identity.federation, identity.spiffe.id)
    state_folder.check(state_dir, owner, STATE_NAMES, lambda _: None)
    lock = lock_state(state_dir)
    try:
        with state_folder.fatal_disk_errors(state_dir):
            await _serve_state(config, identity, clock, log, metrics, owner, confined)
    finally:
        with suppress(OSError):  # a disk that takes no more has ended this, and is named
            (state_dir / ADDRESS_FILE).unlink(missing_ok=True)
        lock.close()
    log.info(Event.SERVICE_STOPPED)


async def _serve_state(
    config: CoordinatorConfig,
    identity: Identity,
    clock: Clock,
    log: EventLog,
    metrics: CoordinatorMetrics,
    owner: Owner,
    confined: confinement.Facts,
) -> None:
    """Serve on a state directory that is this process' alone."""
    stopped, drained = _stop_signals(), asyncio.Event()  # a long recovery too ends in order
    let_in(drained.set)
    state_dir = config.path(config.state_dir)
    room = _room(state_dir, clock, log)
    build = cache(partial(build_service, config, identity, clock, log, room))

    def begin() -> CoordinatorService:
        reserve_address(state_dir)
        service = build()  # once: it holds the store while the mark waits for room
        state_folder.mark(state_dir, owner)  # not before: the store may be another federation's
        return service

    service = await once_there_is_room(room, state_dir, begin, stopped, drained)
    if service is None:
        if drained.is_set():
            log.info(Event.SERVICE_DRAINING)
        log.info(Event.SERVICE_STOPPING)
        return
    standing = Standing(service, clock)
    listener = _listener(config, service, standing.health, identity, clock, log)
    port = bind(listener, config.listen, server_credentials(identity))
    address = f"{config.listen.rsplit(':', 1)[0]}:{port}"
    with _http_port(config, standing, metrics, identity, log) as http:
        try:
            service.recover()
            await listener.start()
            standing.begin()
            announce(state_dir, address)
            confinement.say(log, config.confinement, confined)
            log.info(Event.SERVICE_STARTED, version=VERSION, address=address, http=http)
            await _until_stopped(service, standing, stopped, _left(service, drained, log))
            log.info(Event.SERVICE_STOPPING)
        finally:  # also when its store failed: gRPC would end noisily by itself
            standing.stop()
            await service.close()
            await listener.stop(STOP_GRACE_S)


@asynccontextmanager
async def listening(
    config: CoordinatorConfig,
    service: CoordinatorService,
    identity: Identity,
    clock: Clock,
    log: EventLog,
) -> AsyncIterator[None]:
    """Serve gRPC in front of a service of this process inside the block.

    For whoever composes both services; `serve` is how a coordinator runs.

    Raises:
        ConnectError: the address is taken.
    """
    standing = Standing(service, clock)
    listener = _listener(config, service, standing.health, identity, clock, log)
    bind(listener, config.listen, server_credentials(identity))
    await listener.start()
    standing.begin()
    try:
        yield
    finally:
        standing.stop()
        await listener.stop(STOP_GRACE_S)


class Standing:
    """Whether the coordinator does its work, for the health service and the HTTP port.

    While its disk is full it takes calls, answers those that only read, and is not ready.
    """

    def __init__(self, service: CoordinatorService, clock: Clock) -> None:
        self._service = service
        self._why_not = "starting"
        whole = {WHOLE: self.serving}
        named = {f"fedcare.v1.{name}": self.serving for name in ("Aggregation", "Operations")}
        self.health = HealthServicer(whole | named)
        self.pulse = Pulse(
            lambda: take_picture(service, self.why_not, clock.monotonic()),
            clock,
        )

    @property
    def why_not(self) -> str:
        """Why it does not do its work, in one line; empty if it does."""
        failed = "the store failed" if self._service.failed else ""
        return self._why_not or failed or self._service.short_of_room

    def serving(self) -> bool:
        """Whether it does its work."""
        return not self.why_not

    def begin(self) -> None:
        """Calls are taken from now on."""
        self._why_not = ""
        self.pulse.beat()

    def stop(self) -> None:
        """No more calls are taken: everybody who asks or watches is told."""
        self._why_not = "stopping"
        self.health.stop()
        self.pulse.beat()


@contextmanager
def _http_port(
    config: CoordinatorConfig,
    standing: Standing,
    metrics: CoordinatorMetrics,
    identity: Identity,
    log: EventLog,
) -> Iterator[str | None]:
    """Serve health and metrics beside gRPC inside the block; yield the address, if any."""
    if config.http is None:
        yield None
        return
    metrics.read(standing.pulse, config.path(config.state_dir), identity.leaf.not_after)
    pages = pages_of(standing.pulse, lambda seen: seen.not_ready, metrics.text)
    port = HttpPort(config.http, pages, in_loop(log.failure))
    try:
        yield port.open()
    finally:
        port.close()


def _listener(
    config: CoordinatorConfig,
    service: CoordinatorService,
    health: HealthServicer,
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
        calls_of_people=CALLS_OF_PEOPLE,
    )
    calls = CALLS_OF_ONE_PEER * len(config.members) + CALLS_OF_PEOPLE + CALLS_OF_ITS_OWN
    listener = server([guard], concurrent_calls=calls)
    aggregation = AggregationServicer(service, Arrivals(config.arrivals_per_s, clock))
    aggregation_pb2_grpc.add_AggregationServicer_to_server(aggregation, listener)
    operations_pb2_grpc.add_OperationsServicer_to_server(OperationsServicer(service), listener)
    add_health(health, listener)
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


def _stop_signals() -> asyncio.Event:
    """Return what the first signal sets; a second one ends the process at once."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(1)
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopped


async def _left(service: CoordinatorService, drained: asyncio.Event, log: EventLog) -> None:
    """Return once told to drain, and no round is open."""
    await drained.wait()
    log.info(Event.SERVICE_DRAINING)
    await service.drain()


async def _until_stopped(
    service: CoordinatorService,
    standing: Standing,
    stopped: asyncio.Event,
    left: Coroutine[None, None, None],
) -> None:
    """Return at the first signal or once `left`, raise if the service cannot go on."""
    watch = asyncio.create_task(service.watch_over())
    waiter = asyncio.create_task(stopped.wait())
    beat = asyncio.create_task(standing.pulse.keep())
    hold = asyncio.create_task(service.keep_store())
    tasks = {watch, waiter, beat, hold, asyncio.create_task(left)}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for task in (hold, beat, watch):
        if task in done:
            task.result()
