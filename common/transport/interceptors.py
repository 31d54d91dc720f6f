"""The guard in front of every handler of a coordinator.

In this order, for each call, before any handler runs or any message is parsed:

1. the connection negotiated TLS 1.3;
2. the peer's certificate names exactly one identity of this federation, valid now;
3. `admit` lets it in (the seam for revocation and enrolment);
4. it has not too many calls open already: a peer has a share of the calls, not all, and
   so have people together, who may be any number; hospitals and health checks get through;
5. its role may call this method; a method that is not in the table is refused.

While the handler runs, `caller()` tells who called, and the call ends when the caller's
certificate does. Afterwards a `FedError` becomes its gRPC status, and anything
unexpected becomes FC-9001 with an incident number: the peer sees the number, the
`report` hook gets the exception, nobody gets a traceback over the wire.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from common.certificates import Role
from common.clock import Clock
from common.errors import FedError, IdentityError, InternalError, Refusal, RoundError
from common.transport.identity import PeerIdentity, check_tls, peer_identity
from common.transport.status import to_status

MethodTable = Mapping[str, frozenset[Role]]
"""Full method name (`/fedcare.v1.Operations/Status`) -> the roles that may call it."""

CALLS_OF_ONE_PEER: Final = 16
"""Open calls of one certificate's name. A node has a session, and an upload and a download
for each of its studies; a second session for the moment in which one replaces another."""

BUSY_S: Final = 1.0
"""How long a caller that has too many calls open is asked to wait."""

_PEOPLE: Final = frozenset({Role.OPERATOR, Role.RESEARCHER})

_caller: ContextVar[PeerIdentity] = ContextVar("fedcare_caller")


def caller() -> PeerIdentity:
    """Return the authenticated caller; inside a handler behind the `Guard` only.

    Raises:
        InternalError: called from elsewhere.
    """
    try:
        return _caller.get()
    except LookupError:
        raise InternalError("caller() was used outside a guarded handler") from None


@dataclass(frozen=True, slots=True)
class CallFailure:
    """A call that ended in an error, for the log.

    `cause` is set for unexpected exceptions only, with the `incident` number that
    the peer was given; `peer` is None where no identity was established.
    """

    method: str
    peer: PeerIdentity | None
    error: FedError
    incident: str | None = None
    cause: Exception | None = None


def _ignore(_: object) -> None:
    return None


# In quotes: at run time gRPC's classes take no parameters.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[[Any, Context], Any]


class Guard(grpc.aio.ServerInterceptor):
    """See the module. One per server, first in its list of interceptors.

    Handlers are `async` functions or async generators, of all four kinds of call.
    """

    def __init__(
        self,
        *,
        federation: str,
        methods: MethodTable,
        clock: Clock,
        admit: Callable[[PeerIdentity], None] = _ignore,
        report: Callable[[CallFailure], None] = _ignore,
        calls_of_people: int | None = None,
    ) -> None:
        self._federation = federation
        self._methods = dict(methods)
        self._clock = clock
        self._admit = admit
        self._report = report
        self._calls_of_people = calls_of_people
        self._open: Counter[str] = Counter()
        self._open_of_people = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put the checks around the handler; an unknown method gets them as well."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None:
            # Answer after the identity checks, so that strangers cannot probe methods.
            return grpc.stream_stream_rpc_method_handler(self._wrap(method, _no_method))
        return _rebuild(handler, lambda behaviour, decode: self._wrap(method, behaviour, decode))

    def _wrap(
        self, method: str, behaviour: Behaviour, decode: Callable[[bytes], Any] | None = None
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:  # noqa: ANN401 - any message
            peer: PeerIdentity | None = None
            try:
                peer = self._authenticate(context)
                _caller.set(peer)
                with self._counted(peer):
                    self._authorise(method, peer)
                    message = decode(request) if decode is not None else request
                    return await self._run(behaviour, message, context, peer)
            except FedError as error:
                failure = CallFailure(method, peer, error)
            except (grpc.aio.AbortError, grpc.aio.UsageError, grpc.aio.InternalError):
                raise  # gRPC's own; the last is what a send meets when the peer has just died
            except Exception as cause:  # noqa: BLE001 - the outermost place of a call
                incident = secrets.token_hex(4)
                failure = CallFailure(method, peer, InternalError(incident), incident, cause)
            return await self._fail(failure, context)

        return call

    def _authenticate(self, context: Context) -> PeerIdentity:
        check_tls(context)
        return peer_identity(context, federation=self._federation, now_unix=self._clock.unix())

    @contextmanager
    def _counted(self, peer: PeerIdentity) -> Iterator[None]:
        """Hold one of the peer's calls."""
        name, most = f"{peer.role}/{peer.id}", self._calls_of_people
        person = peer.role in _PEOPLE
        if self._open[name] >= CALLS_OF_ONE_PEER:
            detail = f"{peer.node_id} has {CALLS_OF_ONE_PEER} calls open"
            raise RoundError("BUSY", detail, retry_s=BUSY_S)
        if person and most is not None and self._open_of_people >= most:
            detail = f"operators and researchers have {most} calls open together"
            raise RoundError("BUSY", detail, retry_s=BUSY_S)
        self._open[name] += 1
        self._open_of_people += person
        try:
            yield
        finally:
            self._open[name] -= 1
            self._open_of_people -= person
            if not self._open[name]:
                del self._open[name]

    def _authorise(self, method: str, peer: PeerIdentity) -> None:
        self._admit(peer)
        allowed = self._methods.get(method)
        if allowed is None:
            raise IdentityError("ROLE_DENIED", "there is no such method")
        if peer.role not in allowed:
            raise IdentityError(
                "ROLE_DENIED",
                f"a {peer.role} may not call {method}; it is for {', '.join(sorted(allowed))}",
            )

    async def _run(
        self, behaviour: Behaviour, request: object, context: Context, peer: PeerIdentity
    ) -> object:
        left_s = peer.not_after + 1 - self._clock.unix()
        scope = asyncio.timeout(left_s)
        try:
            async with scope:
                return await _finish(behaviour(request, context), context)
        except TimeoutError:
            if not scope.expired():
                raise
            raise IdentityError(
                "CERT_INVALID", f"the certificate of {peer.node_id} expired during the call"
            ) from None

    async def _fail(self, failure: CallFailure, context: Context) -> object:
        self._report(failure)
        detail = f"incident {failure.incident}" if failure.incident is not None else None
        code, text, trailer = to_status(failure.error, detail)
        return await context.abort(code, text, trailer)


async def _finish(result: Any, context: Context) -> object:  # noqa: ANN401 - of either kind
    """Await a handler's answer, or pass on the messages of its generator."""
    if inspect.isasyncgen(result):
        async with aclosing(result) as messages:  # ended here, not when memory is collected
            async for message in messages:
                await context.write(message)
        return None
    answer: object = await result
    return answer


async def _no_method(_request: object, _context: Context) -> object:
    raise IdentityError("ROLE_DENIED", "there is no such method")


_KINDS: Final = {
    # (request streaming, response streaming)
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _rebuild(handler: Handler, wrap: Callable[[Behaviour, Any], Any]) -> Handler:
    """Return the same handler with its behaviour wrapped and its parsing made safe.

    A single request stays bytes until the checks are done. Messages of a stream are
    parsed as the handler reads them, which is after the checks in any case.
    """
    name, make = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour: Behaviour = getattr(handler, name)
    parse = _careful(handler.request_deserializer)
    made: Handler = make(
        wrap(behaviour, None if handler.request_streaming else parse),
        request_deserializer=parse if handler.request_streaming else None,
        response_serializer=handler.response_serializer,
    )
    return made


def _careful(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Turn any failure of a parser into BAD_MESSAGE, without its words (F54)."""
    if parse is None:
        return None

    def safe(data: bytes) -> Any:  # noqa: ANN401 - any message
        try:
            return parse(data)
        except Exception:  # noqa: BLE001 - whatever hostile bytes provoke
            raise Refusal("BAD_MESSAGE", "a message cannot be parsed") from None

    return safe
