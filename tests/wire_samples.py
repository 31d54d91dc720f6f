"""One valid object of every message on the wire, for tests to send, compare and spoil."""

from __future__ import annotations

from typing import Final

from common.ids import (
    ConfigHash,
    Epoch,
    HeaderDigest,
    NodeId,
    RoundNo,
    RunId,
    SessionId,
    Sha256,
    SiteName,
    StudyId,
    hospital_id,
)
from common.messages import (
    BeginEpoch,
    DownloadChunk,
    Heartbeat,
    Hello,
    Objection,
    ReleaseNotice,
    ReleaseReceipt,
    RunEnded,
    Seen,
    StudyDecision,
    StudyOffer,
    UploadAck,
    UploadChunk,
    UploadStart,
    Verdict,
    Welcome,
)
from common.secagg.dp import DpMode, DpTerms
from common.secagg.header import Header, Rounding, RoundKind
from common.secagg.messages import (
    Certificate,
    Commit,
    Confirm,
    Kem,
    KemForward,
    KemFrom,
    KemItem,
    KeyAdvert,
    Propose,
    Ready,
    RecoverItem,
    RecoverRequest,
    RecoverShares,
    Refused,
    Release,
    Resume,
    ResumeState,
    Roster,
    RoundResult,
    RoundStart,
    RoundStatus,
    SealedFrom,
    SealedShares,
    UploadEnd,
)
from common.secret import Secret
from common.views import RoundView, RunPhase, RunView, SiteView, StatusView, StudyView, WaitView
from common.wire import CoordinatorStep, NodeStep, UploadPart

A: Final = hospital_id("heart", "a")
B: Final = hospital_id("heart", "b")


def fill(length: int, seed: int = 1) -> bytes:
    """Return bytes that differ by place, so that a swapped or cut field shows."""
    return bytes((seed * 37 + place) % 256 for place in range(length))


def sha(seed: int) -> Sha256:
    return Sha256(fill(32, seed))


HD: Final = HeaderDigest(fill(32, 2))
SESSION: Final = SessionId(fill(32, 3))
CONFIG: Final = ConfigHash(fill(32, 4))
RUN: Final = RunId("heart-0a1b")
CHAIN: Final = (fill(700, 5), fill(600, 6))
DIGESTS: Final = ((A, sha(7)), (B, sha(8)))

HEADER: Final = Header(
    version=1,
    session_id=SESSION,
    r=RoundNo(7),
    kind=RoundKind.TRAIN,
    group=0,
    model_sha256=sha(9),
    layout_sha256=sha(10),
    config_hash=CONFIG,
    members=((A, fill(32, 11)), (B, fill(32, 12))),
    d=1001,
    w=32,
    c=1,
    q=3,
    s_min=3,
    t_h=2,
    kappa=3,
    ranges=(1.0, 0.1, 8.0),
    w_max=4096,
    rounding=Rounding.STOCHASTIC,
    dp=DpTerms(DpMode.PATIENT_LOCAL, 0.5, 1.5, 3, 2.5, 9, 0.25, 4, 6),
    deadline_ms=60_000,
)


def advert(node: NodeId, seed: int) -> KeyAdvert:
    return KeyAdvert(
        id=node,
        federation="heart",
        task="heart-disease",
        epoch=Epoch(3),
        x25519_pub=fill(32, seed),
        mlkem_pub=fill(1184, seed + 1),
        ed25519_pub=fill(32, seed + 2),
        config_hash=CONFIG,
        not_before=1_800_000_000,
        not_after=1_800_600_000,
        cert_chain=CHAIN,
        sig=fill(71, seed + 3),
    )


CERTIFICATE: Final = Certificate(HD, DIGESTS, ((A, fill(64, 20)), (B, fill(64, 21))))

NODE_STEPS: Final[tuple[NodeStep, ...]] = (
    Hello("fedcare 1.0", 1, ("heart-disease", "tiny")),
    Heartbeat(17),
    StudyDecision(RUN, CONFIG, Verdict.REFUSED, objections=(Objection("RERUN", "line 3: no"),)),
    advert(A, 30),
    Kem(A, (KemItem(B, fill(1088, 31), fill(64, 32)),)),
    Confirm(SESSION, fill(64, 33)),
    Ready(SESSION, RoundNo(7), fill(32, 34)),
    Commit(HD, sha(35), fill(64, 36)),
    Release(HD, Secret(fill(32, 37)), ((B, Secret(fill(32, 38))),)),
    RecoverShares(HD, (RecoverItem(B, Secret(fill(33, 39)), ((A, Secret(fill(33, 40))),)),)),
    Resume(HD),
    Refused(HD, "RERUN", "header of round 7"),
    ReleaseReceipt(RUN, sha(41)),
    StudyDecision(RUN, CONFIG, Verdict.WAITING, waiting_for=("dr-weber", "dr_ito.2")),
    Hello("fedcare 1.0", 1, (), (Seen(RunId("r-1"), "tiny", 1_800_000_000, 7, released=True),)),
    Hello("fedcare 1.0", 1, (), (Seen(RunId("r-1"), "tiny", 1_800_000_000, 7, False, 8),)),  # noqa: FBT003
)

COORDINATOR_STEPS: Final[tuple[CoordinatorStep, ...]] = (
    Welcome("heart", 10_000),
    Welcome("heart", 10_000, (("heart", 17), ("lungs.2", 1)), unix=1_800_000_000),
    Heartbeat(18),
    StudyOffer(RUN, b'{"schema":"fedcare.study/v1"}', CONFIG, fill(70, 48), CHAIN),
    BeginEpoch(RUN, "heart-disease", Epoch(3), 1_800_000_000, 1_800_600_000),
    Roster((advert(A, 50), advert(B, 60)), RoundNo(7)),
    KemForward(SESSION, (KemFrom(A, fill(1088, 61), fill(64, 62)),)),
    RoundStart(HEADER, fill(32, 63)),
    Propose(HD, DIGESTS),
    CERTIFICATE,
    RecoverRequest(CERTIFICATE, (SealedFrom(B, fill(12, 64), fill(82, 65)),)),
    RoundResult(HD, RoundStatus.OPENED, DIGESTS, sha(66), sha(67), RoundNo(8), "NOT_ENOUGH"),
    ResumeState(HD, 4, done=True),
    Refused(HD, "UPLOAD_LATE", "too late"),
    ReleaseNotice(RUN, b'{"schema":"fedcare.model/v1"}', fill(70, 68), CHAIN),
    RunEnded(RUN, "finished", "all rounds done"),
)

UPLOAD_PARTS: Final[tuple[UploadPart, ...]] = (
    UploadStart("heart-disease", HD, 3),
    UploadChunk(3, fill(1000, 70)),
    UploadEnd(
        HD,
        sha(71),
        sha(72),
        ((B, fill(16, 73)),),
        (SealedShares(B, fill(12, 74), fill(82, 75)),),
        fill(64, 76),
    ),
)

ACK: Final = UploadAck(HD, sha(77))
PIECE: Final = DownloadChunk(5, 1005, fill(1000, 78))

STUDY_VIEW: Final = StudyView(
    StudyId("heart-disease"), CONFIG, "Heart, in general", "uni-x", (RUN,)
)
SITE_VIEW: Final = SiteView(
    site=SiteName("a"),
    connected=True,
    state="training",
    waiting_for="its update",
    objection="",
    since_s=61.5,
)
ROUND_VIEW: Final = RoundView(
    number=2,
    kind="train",
    state="CLOSED",
    survivors=(SiteName("a"), SiteName("b")),
    dropped=(SiteName("c"),),
    seconds=1.5,
    reason="",
    header_digest=HD,
    sum_sha256=sha(79),
)
RUN_VIEW: Final = RunView(
    run_id=RUN,
    study_id=StudyId("heart-disease"),
    state=RunPhase.RUNNING,
    round=2,
    rounds=17,
    sites=(SITE_VIEW,),
    history=(ROUND_VIEW,),
    pooled=(("auroc", 0.88),),
    model_sha256="0a" * 32,
    reason="",
    seconds=2.5,
    seconds_to_first_round=0.5,
    kind="train",
    open_s=3.25,
    paused=True,
    wait=WaitView((SiteName("a"), SiteName("c")), "upload", 3.25, 116.75, "goes on without them"),
)
STATUS_VIEW: Final = StatusView("heart", "1.0", (SITE_VIEW,), (RUN_VIEW,), 12.5)
