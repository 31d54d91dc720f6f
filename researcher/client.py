"""A researcher's or operator's side of the coordinator's `Operations`, typed.

    async with Client(address, load_identity(folder, now_unix=...)) as client:
        submitted = await client.submit(canonical_json(study))
        async for view in client.watch(submitted.run_id):
            ...

Calls that may be repeated without harm are repeated a few times when the connection
breaks: reading, and submitting, because a submission carries an id of its own that is
made once, so that a retry finds the run which the first attempt began. Watching goes on
with the run's present view. A download goes on at the byte where it broke off.

Raises (all methods): FedError as `common.transport.status.from_rpc` makes it:
ConnectError UNREACHABLE, IdentityError, RoundError NOT_FOUND and so on.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from common.clock import Clock, SystemClock
from common.errors import ConnectError, FedError, IdentityError, Refusal, RoundError
from common.identity import Identity, sign_study
from common.ids import RunId, Sha256
from common.messages import DownloadChunk, ReleaseNotice
from common.transport.status import remote_errors
from common.transport.tls import channel
from common.views import RunPhase, RunView, StatusView, StudyView
from common.wire import decode_piece, encode_download
from common.wire_checks import parsed
from common.wire_operations import (
    Submitted,
    decode_content,
    decode_release,
    decode_run,
    decode_status,
    decode_study,
    decode_submitted,
)
from fedcare.v1 import aggregation_pb2_grpc, operations_pb2_grpc
from fedcare.v1 import operations_pb2 as ops

T = TypeVar("T")

CALL_S: Final = 30.0
"""A call of one question and one answer ends within this."""

ATTEMPTS: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 3.0
_TRY_AGAIN: Final = frozenset({"UNREACHABLE", "DEADLINE", "BUSY"})


async def _pause(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Client:
    """One connection of one person to one coordinator.

    `identity` is a researcher's or an operator's. `attempts` bounds how often a call
    that found no connection is made; `pause` waits between two of them.
    """

    def __init__(
        self,
        address: str,
        identity: Identity,
        *,
        proxy: str | None = None,
        clock: Clock | None = None,
        attempts: int = ATTEMPTS,
        pause: Callable[[float], Awaitable[None]] = _pause,
    ) -> None:
        self._address = address
        self._identity = identity
        self._clock = clock or SystemClock()
        self._attempts = attempts
        self._pause = pause
        self._channel = channel(address, identity, proxy)
        # The generated stubs are typed for blocking channels only.
        self._operations: Any = operations_pb2_grpc.OperationsStub(self._channel)
        self._bulk: Any = aggregation_pb2_grpc.AggregationStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)

    # --- studies and runs ---------------------------------------------------------------

    async def submit(self, study: bytes, client_id: str | None = None) -> Submitted:
        """Sign a study in canonical form as its owner, submit it and begin a run of it.

        `client_id` names this submission, however often it is sent: the same id gives
        the same run. Made here unless given.

        Raises:
            IdentityError: ROLE_DENIED, the certificate is not a researcher's.
            Refusal: OWNER_SIGNATURE, the study names another owner.
        """
        name = client_id or new_client_id()
        digest = hashlib.sha256(study).digest()
        request = ops.SubmitStudyRequest(
            study=study,
            client_id=name,
            signature=sign_study(self._identity, digest),
            cert_chain=self._identity.chain,
        )
        answer = await self._ask(lambda: self._operations.SubmitStudy(request, timeout=CALL_S))
        return decode_submitted(answer)

    async def studies(self) -> tuple[StudyView, ...]:
        """Return every study that was submitted."""
        request = ops.ListStudiesRequest()
        answer = await self._ask(lambda: self._operations.ListStudies(request, timeout=CALL_S))
        return tuple(decode_study(view) for view in answer.studies)

    async def study(self, study_id: str) -> tuple[StudyView, bytes]:
        """Return a study and its canonical form."""
        request = ops.GetStudyRequest(study_id=study_id)
        answer = await self._ask(lambda: self._operations.GetStudy(request, timeout=CALL_S))
        return decode_content(answer)

    async def runs(self) -> tuple[RunView, ...]:
        """Return every run, oldest first."""
        request = ops.ListRunsRequest()
        answer = await self._ask(lambda: self._operations.ListRuns(request, timeout=CALL_S))
        return tuple(decode_run(view) for view in answer.runs)

    async def run(self, run_id: str) -> RunView:
        """Return one run."""
        request = ops.GetRunRequest(run_id=run_id)
        answer = await self._ask(lambda: self._operations.GetRun(request, timeout=CALL_S))
        return decode_run(answer.run)

    async def cancel(self, run_id: str, reason: str) -> RunView:
        """End a run; ending one that has ended changes nothing."""
        request = ops.CancelRunRequest(run_id=run_id, reason=reason)
        answer = await self._ask(lambda: self._operations.CancelRun(request, timeout=CALL_S))
        return decode_run(answer.run)

    async def status(self) -> StatusView:
        """Return the coordinator on one screen."""
        request = ops.GetStatusRequest()
        answer = await self._ask(lambda: self._operations.GetStatus(request, timeout=CALL_S))
        return decode_status(answer)

    async def watch(self, run_id: str) -> AsyncIterator[RunView]:
        """Yield a run's view now and after each change; the last one is final."""
        request = ops.WatchRunRequest(run_id=run_id)
        failures = 0
        while True:
            try:
                with self._errors():
                    async for answer in self._operations.WatchRun(request):
                        view = decode_run(parsed(answer).run)
                        failures = 0
                        yield view
                        if view.state.final:
                            return
                # The far side is stopping: look again.
                raise ConnectError("UNREACHABLE", f"{self._address}: the stream ended")
            except FedError as error:
                failures += 1
                await self._wait_or_raise(error, failures)

    # --- models ---------------------------------------------------------------------------

    async def release(self, run_id: str) -> ReleaseNotice:
        """Return the signed manifest of a run's model; nothing of it is verified yet."""
        request = ops.GetReleaseRequest(run_id=run_id)
        answer = await self._ask(lambda: self._operations.GetRelease(request, timeout=CALL_S))
        return decode_release(RunId(run_id), answer)

    async def download(self, sha256: Sha256, offset: int = 0) -> AsyncIterator[DownloadChunk]:
        """Yield a stored object's bytes from `offset` on, in order and without gaps.

        A broken connection is dialled again and the rest asked for; it gives up after
        `attempts` failures without a byte between them. The digest is the caller's to check.

        Raises:
            Refusal: BAD_MESSAGE, a gap or a size that changes.
        """
        total: int | None = None
        failures = 0
        while total is None or offset < total:
            try:
                with self._errors():
                    stream = self._bulk.Download(encode_download(sha256, offset))
                    async for message in stream:
                        piece = decode_piece(parsed(message))
                        _check_piece(piece, offset, total)
                        total, failures = piece.total, 0
                        offset += len(piece.data)
                        yield piece
                        if offset >= total:
                            return
                raise ConnectError("UNREACHABLE", f"{self._address}: the stream ended early")
            except FedError as error:
                failures += 1
                await self._wait_or_raise(error, failures)

    # --- failures ---------------------------------------------------------------------------

    def _errors(self) -> Any:  # noqa: ANN401 - a context manager
        return remote_errors(self._address, self._identity, self._clock)

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        failures = 0
        while True:
            try:
                with self._errors():
                    return parsed(await call())
            except FedError as error:
                failures += 1
                await self._wait_or_raise(error, failures)

    async def _wait_or_raise(self, error: FedError, failures: int) -> None:
        """Wait before the next attempt, or raise `error` if there is no point in one."""
        if error.name not in _TRY_AGAIN or failures >= self._attempts:
            raise error
        pause = min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S)
        await self._pause(pause)


def new_client_id() -> str:
    """Return a fresh id for one submission."""
    return f"request-{secrets.token_hex(12)}"


def _check_piece(piece: DownloadChunk, offset: int, total: int | None) -> None:
    if piece.offset != offset or not piece.data or offset + len(piece.data) > piece.total:
        raise Refusal("BAD_MESSAGE", f"a piece at byte {piece.offset}, expected {offset}")
    if total is not None and piece.total != total:
        raise Refusal("BAD_MESSAGE", "the object's size changed during the download")


def require_person(identity: Identity) -> None:
    """Refuse a machine's certificate before dialling with it.

    Raises:
        IdentityError: ROLE_DENIED.
    """
    if identity.role not in ("researcher", "operator"):
        raise IdentityError(
            "ROLE_DENIED",
            f"{identity.spiffe} is a {identity.role}'s certificate; this is for a researcher "
            "or an operator",
        )


def require_finished(view: RunView) -> None:
    """Refuse a run that ended without a model.

    Raises:
        RoundError: RUN_FAILED or RUN_CANCELLED, with the run's own reason.
    """
    reason = view.reason or "no reason was given"
    if view.state is RunPhase.CANCELLED:
        raise RoundError("RUN_CANCELLED", f"run {view.run_id}: {reason}")
    if view.state is RunPhase.FAILED:
        raise RoundError("RUN_FAILED", f"run {view.run_id}: {reason}")
