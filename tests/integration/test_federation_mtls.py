"""The coordinator's real server and real nodes over mutual TLS on loopback.

One whole run; then who may call what, and that nobody can speak for anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from common.certificates import ChainTrust, Role
from common.entropy import OsEntropy
from common.errors import FedError
from common.identity import Identity, load_identity, sign_study
from common.ids import hospital_id
from common.layouts import session_expectation
from common.messages import BeginEpoch, Hello, StudyDecision, StudyOffer, Verdict
from common.pki import issue
from common.secagg import node as nd
from common.secagg.keys import Suite
from common.secagg.messages import Kem, KeyAdvert, Refused, Roster
from common.secagg.session import EpochTerms
from common.study import canonical_json, config_hash
from common.transport.status import from_rpc
from common.transport.tls import bind, channel, server_credentials
from common.views import RunPhase
from coordinator.app import Standing, _listener
from coordinator.config import CoordinatorConfig
from coordinator.servicer import METHODS
from fedcare.v1 import aggregation_pb2 as pb
from fedcare.v1 import operations_pb2 as ops
from hospital_node.grpc_link import GrpcDialler
from hospital_node.link import Link
from researcher.client import Client
from tests.federation import NAME, SITES, Federation, names

SERVICES: Final = (
    *pb.DESCRIPTOR.services_by_name.values(),
    *ops.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
)
RPCS: Final = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
    if method.name != "List"  # of the health service: a list of its names, for nobody
}


class OverTls(Federation):
    """A federation whose road is gRPC on loopback; `stay_away` names hospitals not started."""

    def __init__(self, root: Path, *, stay_away: Iterable[str] = (), **settings: Any) -> None:  # noqa: ANN401
        super().__init__(root, **settings)
        self._stay_away = frozenset(stay_away)
        self.address = ""
        self._server: grpc.aio.Server | None = None

    async def __aenter__(self) -> Self:
        self.start_coordinator()
        assert self.service is not None
        config = CoordinatorConfig.read(self.plan.coordinator_folder / "coordinator.yaml")
        identity = load_identity(self.plan.coordinator_folder, now_unix=self.clock.unix())
        self._server = _listener(
            config, self.service, Standing(self.service, self.clock).health,
            identity, self.clock, self.log,
        )  # fmt: skip
        port = bind(self._server, "127.0.0.1:0", server_credentials(identity))
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        for site in SITES:
            if site not in self._stay_away:
                self.start(site)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if self._server is not None:
            await self._server.stop(0)

    def identity(self, site: str) -> Identity:
        return load_identity(self.plan.site_folder(site), now_unix=self.clock.unix())

    async def _dial(self, site: str) -> Link:
        return await GrpcDialler(self.address, self.identity(site), None, self.clock)()

    def issue(self, role: Role, name: str) -> Identity:
        """Return another identity of the same consortium."""
        now = self.clock.unix()
        folder = self.plan.folder / f"{role.value}-{name}"
        issue(self.plan.folder / "pki", role, name, now_unix=now, days=2, out=folder)
        return load_identity(folder, now_unix=now)

    @property
    def owner(self) -> Identity:
        return load_identity(self.plan.researcher_folder, now_unix=self.clock.unix())


# --- a run ------------------------------------------------------------------------------------


async def test_a_run_over_mutual_tls_is_exact_and_everybody_gets_the_model(tmp_path: Path) -> None:
    async with (
        OverTls(tmp_path / "f", suite="hybrid") as fed,
        Client(fed.address, fed.owner) as client,
    ):
        submitted = await client.submit(canonical_json(fed.study), "request-1")
        fed.run_id = submitted.run_id
        assert submitted.config_hash == config_hash(fed.study)
        views = [view async for view in client.watch(submitted.run_id)]
        assert views[-1].state is RunPhase.FINISHED
        fed.check(fed.state)
        assert names(fed.state.receipts) == set(SITES)
        assert [round_.number for round_ in views[-1].history] == [1, 2]
        again = await client.submit(canonical_json(fed.study), "request-1")
        assert again == submitted
        (study,) = await client.studies()
        assert study.run_ids == (submitted.run_id,)
        assert (await client.study("pattern"))[1] == canonical_json(fed.study)
        notice = await client.release(submitted.run_id)
        assert notice.run_id == submitted.run_id
        assert {site.site for site in (await client.status()).sites} == set(SITES)


async def test_a_study_that_its_owner_did_not_sign_is_refused(tmp_path: Path) -> None:
    async with OverTls(tmp_path / "f", stay_away=SITES) as fed:
        other = fed.issue(Role.RESEARCHER, "mallory")
        request = ops.SubmitStudyRequest(
            study=canonical_json(fed.study),
            client_id="request-1",
            signature=sign_study(other, config_hash(fed.study)),
            cert_chain=other.chain,
        )
        path = "/fedcare.v1.Operations/SubmitStudy"
        async with channel(fed.address, other) as dialled:
            error = await failure_of(dialled, path, request.SerializeToString())
        assert error is not None
        assert error.name == "OWNER_SIGNATURE"
        assert fed.service is not None
        assert await fed.service.runs() == []


# --- who may call what ------------------------------------------------------------------------


def test_every_method_of_the_protos_has_its_roles_and_there_are_no_others() -> None:
    assert set(METHODS) == set(RPCS)
    assert all(METHODS.values())


def _of(role: Role) -> set[str]:
    return {path.rsplit(".", 1)[1] for path, roles in METHODS.items() if role in roles}


def test_machines_and_people_share_no_more_than_they_need() -> None:
    uploads = {"Aggregation/Session", "Aggregation/Upload"}
    release = {"Aggregation/Download", "Operations/GetRelease"}
    health = {"Health/Check", "Health/Watch"}
    assert _of(Role.HOSPITAL) == uploads | release | health
    assert _of(Role.COORDINATOR) == {"Operations/GetStatus"} | health
    everything = {path.rsplit(".", 1)[1] for path in RPCS}
    assert _of(Role.RESEARCHER) == everything - uploads
    assert _of(Role.OPERATOR) == everything - uploads - {"Operations/SubmitStudy"}


async def _none() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for each in nothing:
        yield each


async def failure_of(dialled: grpc.aio.Channel, path: str, request: bytes = b"") -> FedError | None:
    """Call any method with a request (none, where requests stream); return what it failed with."""
    rpc: Any = RPCS[path]
    open_channel: Any = dialled
    asked: Any = _none() if rpc.client_streaming else request
    try:
        async with asyncio.timeout(20):
            match rpc.client_streaming, rpc.server_streaming:
                case False, False:
                    await open_channel.unary_unary(path)(asked)
                case False, True:
                    call = open_channel.unary_stream(path)(asked)
                    await anext(aiter(call), None)  # a watch has no end
                    call.cancel()
                case True, False:
                    await open_channel.stream_unary(path)(asked)
                case _:
                    _ = [m async for m in open_channel.stream_stream(path)(asked)]
    except grpc.aio.AioRpcError as failed:
        return from_rpc(failed, address="localhost:1")
    return None


@asynccontextmanager
async def _people(fed: OverTls) -> AsyncIterator[dict[Role, grpc.aio.Channel]]:
    identities = {
        Role.HOSPITAL: fed.identity("va"),
        Role.RESEARCHER: fed.owner,
        Role.OPERATOR: fed.issue(Role.OPERATOR, "ann"),
        Role.COORDINATOR: load_identity(fed.plan.coordinator_folder, now_unix=fed.clock.unix()),
    }
    channels = {role: channel(fed.address, identity) for role, identity in identities.items()}
    try:
        yield channels
    finally:
        for dialled in channels.values():
            await dialled.close()


async def test_every_method_takes_its_roles_and_refuses_every_other(tmp_path: Path) -> None:
    async with OverTls(tmp_path / "f", stay_away=SITES) as fed, _people(fed) as people:
        for path, roles in METHODS.items():
            for role, dialled in people.items():
                error = await failure_of(dialled, path)
                denied = error is not None and error.name == "ROLE_DENIED"
                assert denied == (role not in roles), f"{role.value} calls {path}: {error}"
                assert error is None or error.name != "INTERNAL", f"{path}: {error}"


async def test_a_hospital_of_the_ca_that_is_no_member_is_refused_everything(tmp_path: Path) -> None:
    async with OverTls(tmp_path / "f", stay_away=SITES) as fed:
        stranger = fed.issue(Role.HOSPITAL, "stranger")
        async with channel(fed.address, stranger) as dialled:
            for path in METHODS:
                error = await failure_of(dialled, path)
                assert error is not None
                assert error.name == "NOT_MEMBER", path


# --- nobody speaks for anybody else -----------------------------------------------------------


CLAIMS: Final = {"KeyAdvert.id", "Kem.sender"}
"""Fields in which a hospital names itself; all others name its peers."""

OTHERS: Final = {
    "KemItem.to",
    "ReleasedEdge.id",
    "RecoveredShares.sender",
    "EdgeShare.id",
    "EdgeTag.id",
    "SealedShares.helper",
}


def _ids(message: Any, seen: set[str]) -> Iterator[str]:  # noqa: ANN401 - descriptor classes
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _ids(field.message_type, seen)
        elif field.name in ("id", "to", "sender", "helper"):
            yield f"{message.name}.{field.name}"


def test_the_fields_that_name_a_hospital_are_these() -> None:
    found: set[str] = set()
    for root in (pb.NodeMessage, pb.UploadMessage):
        found |= set(_ids(root.DESCRIPTOR, set()))
    assert found == CLAIMS | OTHERS


class Impostor:
    """Cleveland's certificate in the hands of somebody who speaks the protocol himself."""

    def __init__(self, fed: OverTls, link: Link) -> None:
        self._fed = fed
        self._link = link
        self._stream = link.messages()
        self._identity = fed.identity("cleveland")
        self._state = nd.NodeState()

    async def send(self, message: Any) -> None:  # noqa: ANN401 - any step
        await self._link.send(self._fed.study.id, message)

    async def wait_for(self, kind: type) -> Any:  # noqa: ANN401 - what was asked for
        async with asyncio.timeout(20):
            while True:
                _, step = await anext(self._stream)
                if isinstance(step, kind):
                    return step

    def tell(self, event: nd.NodeEvent) -> Any:  # noqa: ANN401 - the one message that follows
        ids = frozenset(hospital_id(NAME, site) for site in SITES)
        trust = ChainTrust(self._identity.ca_der, ids, NAME)
        now = int(self._fed.clock.unix())
        rules = nd.NodeRules(colluders=1, min_cohort=3, s_min=3)
        context = nd.NodeContext(OsEntropy(), now, self._identity, trust, rules)
        self._state, commands = nd.handle(self._state, event, context)
        return next(command.message for command in commands if isinstance(command, nd.Send))

    def begin(self, message: BeginEpoch) -> KeyAdvert:
        study = self._fed.study
        terms = EpochTerms(NAME, study.id, message.epoch, config_hash(study), Suite.HYBRID)
        expect = session_expectation(study, len(SITES))
        advert = self.tell(nd.BeginEpoch(terms, expect, message.not_before, message.not_after))
        assert isinstance(advert, KeyAdvert)
        return advert


async def test_a_hospital_cannot_send_keys_or_ciphertexts_as_another(tmp_path: Path) -> None:
    async with OverTls(tmp_path / "f", suite="hybrid", stay_away=["cleveland"]) as fed:
        link = await fed._dial("cleveland")
        impostor = Impostor(fed, link)
        await link.send("", Hello("fedcare", 1, ()))
        await fed.submit()
        offer = await impostor.wait_for(StudyOffer)
        accepted = StudyDecision(offer.run_id, offer.config_hash, Verdict.ACCEPTED)
        await impostor.send(accepted)
        advert = impostor.begin(await impostor.wait_for(BeginEpoch))
        va = hospital_id(NAME, "va")

        await impostor.send(replace(advert, id=va))
        assert (await impostor.wait_for(Refused)).code == "KEY_ADVERT"
        await impostor.send(advert)
        kem = impostor.tell(await impostor.wait_for(Roster))
        assert isinstance(kem, Kem)
        await impostor.send(replace(kem, sender=va))
        assert (await impostor.wait_for(Refused)).code == "KEM"

        # In its own name it is a member like any other.
        assert fed.state.session is not None
        assert names(fed.state.session.members) == set(SITES)
        await impostor.send(kem)
        await fed.until(
            lambda: fed.state.session is not None and len(fed.state.session.kems) == len(SITES)
        )
        await link.close()


async def test_a_stream_that_does_not_begin_with_hello_is_ended(tmp_path: Path) -> None:
    async with OverTls(tmp_path / "f", stay_away=SITES) as fed:
        link = await fed._dial("va")
        await link.send("pattern", Refused(b"", "RERUN", "no"))
        with pytest.raises(FedError) as failed:
            async for _ in link.messages():
                pass
        assert failed.value.name == "OUT_OF_TURN"
        await link.close()
