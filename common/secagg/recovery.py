"""What a silent survivor kept back, put together from its helpers' shares (section 4.6).

A member of S that fell silent after the certificate owes `b_i` and its `e_ij` towards
U minus S. Helpers in S hold shares of both. Each secret is interpolated by itself and
held against what the member committed to in its upload: `H("self-commit", ...)` and
its edge tags. So wrong shares are found, and named; nothing unchecked opens a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import Refusal
from common.ids import HeaderDigest, NodeId
from common.secagg.header import Header
from common.secagg.keys import KEY_BYTES, EdgeSeed, SelfSeed, edge_tag, self_commit
from common.secagg.messages import RecoverItem, Release, SealedFrom, UploadEnd
from common.secagg.shamir import SHARE_BYTES, combine_checked
from common.secret import Secret


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of putting one member's secrets together.

    `b` and `edges` are set if all of them fit; `liars` sent shares that do not.
    """

    b: SelfSeed | None
    edges: tuple[tuple[NodeId, EdgeSeed], ...]
    liars: tuple[NodeId, ...]


def dropped(header: Header, survivors: Sequence[NodeId]) -> tuple[NodeId, ...]:
    """Return D, the members outside S, in order."""
    inside = set(survivors)
    return tuple(node for node in header.ids if node not in inside)


def b_fits(hd: HeaderDigest, end: UploadEnd, node: NodeId, seed: Secret) -> bool:
    """Return whether a self seed is the one its node committed to."""
    if len(seed) != KEY_BYTES:
        return False
    return bytes(self_commit(hd, node, SelfSeed(seed.reveal()))) == end.self_commit


def edge_fits(end: UploadEnd, other: NodeId, seed: Secret) -> bool:
    """Return whether a pair seed gives the tag its node sent for that edge."""
    if len(seed) != KEY_BYTES:
        return False
    return bytes(edge_tag(EdgeSeed(seed.reveal()))) == dict(end.tags).get(other)


def check_release(
    release: Release, node: NodeId, ends: Mapping[NodeId, UploadEnd], outside: Sequence[NodeId]
) -> None:
    """Return if a release is what `node` owes: its committed seeds, for D exactly.

    `ends`: all end records. On an edge whose two ends disagree either tag will do: a
    node that lied about a tag only, and was kept by the tie rule, cannot void the
    round by it. A seed that was not used shows when the sum is opened.

    Raises:
        Refusal: RELEASE_BAD.
    """
    if tuple(other for other, _ in release.edges) != tuple(outside):
        raise Refusal("RELEASE_BAD", f"{node} did not release exactly its edges to the dropped")
    if not b_fits(release.hd, ends[node], node, release.b):
        raise Refusal("RELEASE_BAD", f"the self seed of {node} is not the one committed to")
    for other, seed in release.edges:
        far = ends.get(other)
        if not edge_fits(ends[node], other, seed) and not (far and edge_fits(far, node, seed)):
            raise Refusal("RELEASE_BAD", f"a pair seed of {node} does not fit its tag")


def check_item(item: RecoverItem, helper: NodeId, outside: Sequence[NodeId]) -> None:
    """Return if a helper's shares of one member are complete and well formed.

    Raises:
        Refusal: SHARE_BAD.
    """
    shares = (item.b_share, *(share for _, share in item.edges))
    complete = tuple(other for other, _ in item.edges) == tuple(outside)
    if not complete or any(len(share) != SHARE_BYTES for share in shares):
        raise Refusal("SHARE_BAD", f"{helper} sent malformed shares of {item.sender}")


def sealed_for(helper: NodeId, ends: Mapping[NodeId, UploadEnd]) -> tuple[SealedFrom, ...]:
    """Return the bundles that these members (the silent ones) sealed to `helper`."""
    return tuple(
        SealedFrom(sender, one.nonce, one.ct)
        for sender, end in ends.items()
        for one in end.sealed
        if one.helper == helper
    )


def put_together(
    header: Header,
    hd: HeaderDigest,
    node: NodeId,
    end: UploadEnd,
    items: Mapping[NodeId, RecoverItem],
) -> Attempt | None:
    """Return what `items` (helper -> shares of `node`) give; None while too few.

    Every item lists the same edges: `check_item` saw to that.
    """
    if len(items) < header.t_h:
        return None
    points = {helper: header.point_of(helper) for helper in items}

    def restore(
        shares: Mapping[NodeId, Secret], fits: Callable[[Secret], bool]
    ) -> tuple[Secret, set[NodeId]] | None:
        table = {points[helper]: share.reveal() for helper, share in shares.items()}
        try:
            found = combine_checked(table, header.t_h, fits)
        except Refusal:
            return None
        return found.secret, {header.ids[point - 1] for point in found.wrong_points}

    own = restore(
        {helper: item.b_share for helper, item in items.items()},
        lambda seed: b_fits(hd, end, node, seed),
    )
    liars = set() if own is None else own[1]
    edges: list[tuple[NodeId, EdgeSeed]] = []
    complete = own is not None
    for place, (other, _) in enumerate(next(iter(items.values())).edges):
        found = restore(
            {helper: item.edges[place][1] for helper, item in items.items()},
            lambda seed, other=other: edge_fits(end, other, seed),  # type: ignore[misc]
        )
        if found is None:
            complete = False
            continue
        edges.append((other, EdgeSeed(found[0].reveal())))
        liars |= found[1]
    b = SelfSeed(own[0].reveal()) if own is not None and complete else None
    return Attempt(b, tuple(edges), tuple(sorted(liars, key=str.encode)))
