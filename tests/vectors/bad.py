"""Bad vectors: one change to something good, and the refusal that has to follow.

A change is `[path, operation, argument]`. Paths name fields and places, as in
`digests.0.1`. Operations: `set` a value, `flip` a bit, `cut` bytes or items from the
end, `add` to a number, `drop`, `repeat` or `swap` (with the next) an item of a list.
Values: `node:3` is the id of the fourth hospital, `hex:..` bytes, `float:..` a float
that JSON cannot write. Where the specification leaves the name open, several are
allowed. `resign` says that the liar signs its changed statement properly.

The good situation (built by `tests.vectors.test_bad`): a roster of five, U the whole
roster, c = 1, q = s_min = 4, t_h = 2, kappa = 4; the judge is the first hospital, or
the coordinator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

Change = list[object]
Row = dict[str, object]


def row(name: str, expect: str, *changes: Change, resign: bool = False) -> Row:
    """Return one vector; `expect` holds the allowed names."""
    return {"name": name, "changes": list(changes), "expect": expect.split(), "resign": resign}


def headers() -> object:
    """Return headers that a node refuses (4.2), and changes that it may accept."""
    form = "HEADER_FORM"
    few = "COHORT_SMALL SMIN_RULE QUORUM_RULE HELPER_RULE"
    return {
        "refused": [
            row("another version", form, ["version", "set", 2]),
            row("another session", f"{form} EPOCH_OLD", ["session_id", "flip", 0]),
            row("a short session id", form, ["session_id", "cut", 1]),
            row("round zero", f"{form} ROUND_OLD", ["r", "set", 0]),
            row("a round beyond the epoch", "ROUND_OLD", ["r", "set", 257]),
            row("a huge round", "ROUND_OLD", ["r", "set", 2**62]),
            row("a round without its nonce", "HEADER_NONCE", ["r", "set", 2]),
            row("a kind that the study lacks", "LAYOUT", ["kind", "set", "vote"]),
            row("a group", form, ["group", "set", 1]),
            row("a model that was not sent", "MODEL_HASH", ["model_sha256", "flip", 7]),
            row("another layout", "LAYOUT", ["layout_sha256", "flip", 7]),
            row("another study", "CONFIG_HASH", ["config_hash", "flip", 7]),
            row("ids out of order", form, ["members", "swap", 1]),
            row("an id twice", form, ["members", "repeat", 2]),
            row("a stranger", form, ["members.4.0", "set", "node:9"]),
            row("the judge left out", f"{form} {few}", ["members", "drop", 0]),
            row("fewer members than the numbers say", few, ["members", "drop", 4]),
            row("two members", few, ["members", "cut", 3]),
            row("no members", f"{few} {form}", ["members", "cut", 5]),
            row("the judge's nonce altered", "HEADER_NONCE", ["members.0.1", "flip", 255]),
            row("a nonce too short", form, ["members.3.1", "cut", 1]),
            row("a word more", "LAYOUT", ["d", "add", 1]),
            row("no words", f"{form} LAYOUT", ["d", "set", 0]),
            row("more words than 2^32", f"{form} LAYOUT", ["d", "set", 2**32 + 1]),
            row("a wider ring", form, ["w", "set", 64]),
            row("a narrower ring", form, ["w", "set", 16]),
            row("no ring", form, ["w", "set", 33]),
            row("c below the policy", "QUORUM_RULE", ["c", "set", 0]),
            row(
                "c below the policy, all else consistent",
                "QUORUM_RULE",
                ["c", "set", 0],
                ["q", "set", 3],
                ["s_min", "set", 3],
                ["t_h", "set", 1],
            ),
            row("a smaller quorum", "QUORUM_RULE", ["q", "add", -1]),
            row("a larger quorum", "QUORUM_RULE", ["q", "add", 1]),
            row("s_min below the rule", "SMIN_RULE", ["s_min", "add", -1]),
            row("s_min of two", "SMIN_RULE", ["s_min", "set", 2]),
            row("s_min above n", "SMIN_RULE", ["s_min", "set", 6]),
            row("t_h of one", "HELPER_RULE", ["t_h", "set", 1]),
            row("t_h of zero", "HELPER_RULE", ["t_h", "set", 0]),
            row("t_h too large", "HELPER_RULE", ["t_h", "add", 1]),
            row("a helper less", "HELPER_RULE", ["kappa", "add", -1]),
            row("helpers of a large cohort", "HELPER_RULE", ["kappa", "set", 64]),
            row("no range", "LAYOUT", ["ranges", "cut", 2]),
            row("a range less", "LAYOUT", ["ranges", "cut", 1]),
            row("a range more", "LAYOUT", ["ranges", "repeat", 0]),
            row("a range of zero", form, ["ranges.0", "set", 0.0]),
            row("a negative range", form, ["ranges.0", "set", -0.5]),
            row("an infinite range", form, ["ranges.0", "set", "float:inf"]),
            row("a range that is no number", form, ["ranges.0", "set", "float:nan"]),
            row("another fixed range", form, ["ranges.1", "set", 2.0]),
            row("another W_max", form, ["w_max", "add", 1]),
            row("another rounding", form, ["rounding", "set", "stochastic"]),
            row("a privacy mode", f"DP_WEAK {form}", ["dp.mode", "set", "hospital"]),
            row("privacy terms without a mode", f"{form} DP_WEAK", ["dp.z", "set", 1.0]),
            row("a clip without a mode", f"{form} DP_WEAK", ["dp.clip", "set", 1.0]),
            row("Delta_int without a mode", f"{form} DP_WEAK", ["dp.delta_int", "set", 1]),
            row("sigma without a mode", f"{form} DP_WEAK", ["dp.sigma_loc", "set", 4.0]),
            row("T without a mode", f"{form} DP_WEAK", ["dp.noise_cap", "set", 52]),
            row("p without a mode", f"{form} DP_WEAK", ["dp.p", "set", 0.5]),
            row("m_max without a mode", f"{form} DP_WEAK", ["dp.m_max", "set", 9]),
            row("steps without a mode", f"{form} DP_WEAK", ["dp.steps", "set", 1]),
            row("no time", form, ["deadline_ms", "set", 0]),
            row("more time than the study gives", form, ["deadline_ms", "set", 600_001]),
        ],
        "accepted": [
            row("another free range", "", ["ranges.0", "set", 0.25]),
            row("another deadline", "", ["deadline_ms", "set", 60_001]),
            row("a larger s_min", "", ["s_min", "set", 5]),
            row(
                "more colluders than the policy asks",
                "",
                ["c", "set", 2],
                ["q", "set", 4],
                ["s_min", "set", 4],
                ["t_h", "set", 3],
            ),
        ],
    }


def local_headers() -> Row:
    """Return what a node refuses of a good header of mode patient-local (9.7).

    Its terms: z 2, C 1, Delta_int 20,000, sigma_loc 40,000, p 0.25, m_max 300, steps 3.
    """
    weak, form = "DP_WEAK", "HEADER_FORM"
    return {
        "refused": [
            row("a step more", weak, ["dp.steps", "add", 1]),
            row("a step less", weak, ["dp.steps", "add", -1]),
            row("no steps", weak, ["dp.steps", "set", 0]),
            row("steps below zero", f"{form} {weak}", ["dp.steps", "set", -3]),
            row("more steps than the keystream has words", weak, ["dp.steps", "set", 2**62]),
            row("another p", weak, ["dp.p", "set", 0.5]),
            row("p of zero", weak, ["dp.p", "set", 0.0]),
            row("p above one", weak, ["dp.p", "set", 1.5]),
            row("p that is no number", form, ["dp.p", "set", "float:nan"]),
            row("a smaller z", weak, ["dp.z", "set", 1.0]),
            row(
                "a smaller z and its noise",
                weak,
                ["dp.z", "set", 1.0],
                ["dp.sigma_loc", "set", 20_000.0],
                ["dp.noise_cap", "set", 260_000],
            ),
            row(
                "noise as if the honest shared it",
                weak,
                ["dp.sigma_loc", "set", 23_094.010767585032],
                ["dp.noise_cap", "set", 300_223],
            ),
            row("no noise", weak, ["dp.sigma_loc", "set", 0.0], ["dp.noise_cap", "set", 0]),
            row("noise cut short", weak, ["dp.noise_cap", "add", -1]),
            row("a wider clip", weak, ["dp.clip", "set", 2.0]),
            row("a coarser grid", weak, ["dp.delta_int", "set", 10]),
            row("a finer grid without its noise", weak, ["dp.delta_int", "set", 40_000]),
            row("more patients", weak, ["dp.m_max", "add", 1]),
            row("no patients", weak, ["dp.m_max", "set", 0]),
            row("more patients than float64 adds up", "OVERFLOW_BOUND", ["dp.m_max", "set", 2**40]),
            row("no privacy", form, ["dp.mode", "set", "none"]),
            row("noise by hospital", form, ["dp.mode", "set", "hospital"]),
            row("shared noise with steps", form, ["dp.mode", "set", "patient-distributed"]),
            row(
                "shared noise",
                weak,
                ["dp.mode", "set", "patient-distributed"],
                ["dp.steps", "set", 0],
            ),
            row("another rounding", form, ["rounding", "set", "stochastic"]),
            row("another fixed range", form, ["ranges.1", "set", 2.0]),
            row("a range less", "LAYOUT", ["ranges", "cut", 1]),
        ],
        "accepted": [
            row("another free range", "", ["ranges.0", "set", 0.25]),
            row("a larger s_min, which shares no noise", "", ["s_min", "set", 5]),
        ],
    }


def rosters() -> object:
    """Return rosters that a node refuses (3.3); changes to the third advert, mostly."""
    other = "adverts.2"
    return {
        "refused": [
            row("a signature altered", "ADVERT_SIG", [f"{other}.sig", "flip", 3]),
            row("a key altered", "ADVERT_SIG", [f"{other}.x25519_pub", "flip", 3]),
            row("a session key altered", "ADVERT_SIG", [f"{other}.ed25519_pub", "flip", 3]),
            row("another epoch", "EPOCH_OLD", [f"{other}.epoch", "add", 1], resign=True),
            row("another task", "EPOCH_OLD", [f"{other}.task", "set", "x"], resign=True),
            row(
                "another federation", "EPOCH_OLD", [f"{other}.federation", "set", "x"], resign=True
            ),
            row("another study", "CONFIG_HASH", [f"{other}.config_hash", "flip", 0], resign=True),
            row(
                "not valid any more",
                "EPOCH_OLD CERT_CHAIN",
                [f"{other}.not_before", "add", -90_000],
                [f"{other}.not_after", "add", -90_000],
                resign=True,
            ),
            row(
                "valid for too long", "EPOCH_OLD", [f"{other}.not_after", "add", 10**6], resign=True
            ),
            row(
                "not valid yet",
                "EPOCH_OLD CERT_CHAIN",
                [f"{other}.not_before", "add", 80_000],
                resign=True,
            ),
            row(
                "a public key of zeros",
                "ZERO_DH",
                [f"{other}.x25519_pub", "set", "hex:" + "00" * 32],
                resign=True,
            ),
            row(
                "a public key of small order",
                "ZERO_DH",
                [f"{other}.x25519_pub", "set", "hex:01" + "00" * 31],
                resign=True,
            ),
            row(
                "a public key too short",
                "KEY_ADVERT KEM",
                [f"{other}.x25519_pub", "cut", 1],
                resign=True,
            ),
            row(
                "another suite",
                "KEY_ADVERT KEM",
                [f"{other}.mlkem_pub", "set", "hex:" + "07" * 1184],
                resign=True,
            ),
            row("a member twice", "ADVERT_DUP", ["adverts", "repeat", 2]),
            row("a stranger", "NOT_MEMBER", [f"{other}.id", "set", "node:9"], resign=True),
            row("another certificate", "CERT_CHAIN", [f"{other}.cert_chain.0", "flip", 9]),
            row("no certificate", "CERT_CHAIN", [f"{other}.cert_chain", "cut", 1]),
            row(
                "the judge's advert altered",
                "OWN_ADVERT",
                ["adverts.0.not_after", "add", -1],
                resign=True,
            ),
            row("the judge's advert missing", "OWN_ADVERT", ["adverts", "drop", 0]),
            row("too few members", "COHORT_SMALL", ["adverts", "cut", 3]),
        ],
        "copied": row("a key twice", "ADVERT_DUP", resign=True),
    }


def rounds() -> object:
    """Return what a node refuses after its upload (4.4 to 4.6)."""
    return {
        "propose": [
            row("the judge left out", "NOT_IN_SET", ["digests", "drop", 0]),
            row("too small a set", "SET_SMALL", ["digests", "cut", 2]),
            row("the judge's digest altered", "DIGEST", ["digests.0.1", "flip", 0]),
            row("out of order", "DIGEST", ["digests", "swap", 1]),
            row("a member twice", "DIGEST", ["digests", "repeat", 1]),
            row("a stranger", "DIGEST", ["digests.4.0", "set", "node:9"]),
            row("another header", "CLOSED", ["hd", "flip", 0]),
        ],
        "certificate": [
            row("a signature less than the quorum", "CERT_QUORUM", ["sigs", "cut", 2]),
            row("no signatures", "CERT_QUORUM", ["sigs", "cut", 5]),
            row(
                "one signer twice",
                "CERT_QUORUM",
                ["sigs", "cut", 2],
                ["sigs", "repeat", 0],
                ["sigs", "repeat", 0],
            ),
            row("a signature altered", "CERT_SIG", ["sigs.1.1", "flip", 5]),
            row("a signature cut short", "CERT_SIG", ["sigs.1.1", "cut", 1]),
            row(
                "signatures exchanged",
                "CERT_SIG",
                ["sigs.1.0", "set", "node:2"],
                ["sigs", "drop", 2],
            ),
            row("a stranger signs", "CERT_QUORUM", ["sigs.4.0", "set", "node:9"]),
            row(
                "a set that nobody signed", "CERT_SIG", ["digests", "drop", 4], ["sigs", "drop", 4]
            ),
            row("a signer outside the set", "CERT_QUORUM", ["digests", "drop", 4]),
            row("another's digest altered", "CERT_SIG", ["digests.3.1", "flip", 1]),
            row("the judge left out", "RELEASE_OUTSIDE NOT_IN_SET", ["digests", "drop", 0]),
            row("too small a set", "SET_SMALL", ["digests", "cut", 2], ["sigs", "cut", 2]),
            row("another header", "CLOSED", ["hd", "flip", 0]),
        ],
        "after a commit": [
            row("another set", "SET_CONFLICT", ["digests", "drop", 4]),
            row("the same set, another digest", "SET_CONFLICT", ["digests.3.1", "flip", 1]),
        ],
        "recover": [
            row("a node outside the set", "RECOVER_OUTSIDE", ["sealed.0.sender", "set", "node:9"]),
            row("the judge itself", "RECOVER_OUTSIDE", ["sealed.0.sender", "set", "node:0"]),
            row("one node twice", "RECOVER_OUTSIDE", ["sealed", "repeat", 0]),
            row("a ciphertext cut short", "SHARE_OPEN", ["sealed.0.ct", "cut", 1]),
            row("an empty ciphertext", "SHARE_OPEN", ["sealed.0.ct", "set", "hex:"]),
            row("a ciphertext altered", "SHARE_OPEN", ["sealed.0.ct", "flip", 77]),
            row("a nonce altered", "SHARE_OPEN", ["sealed.0.nonce", "flip", 0]),
            row("a nonce cut short", "SHARE_OPEN", ["sealed.0.nonce", "cut", 12]),
            row("another sender's", "SHARE_OPEN", ["sealed.0.sender", "set", "node:3"]),
            row("no quorum", "CERT_QUORUM", ["certificate.sigs", "cut", 2]),
            row("nothing to open", "SHARE_OPEN", ["sealed", "cut", 1]),
        ],
    }


def uploads() -> object:
    """Return what the coordinator refuses (4.3 to 4.6).

    The liar is the second hospital; the fifth one dropped out.
    """
    return {
        "upload": [
            row("a signature altered", "UPLOAD_SIG", ["sig", "flip", 3]),
            row("a tag altered", "UPLOAD_SIG", ["tags.0.1", "flip", 3]),
            row("a commitment altered", "UPLOAD_SIG", ["self_commit", "flip", 3]),
            row("a digest altered", "UPLOAD_DIGEST UPLOAD_SIG", ["ydig", "flip", 3]),
            row("a tag missing", "UPLOAD_SIG", ["tags", "drop", 1], resign=True),
            row("a tag twice", "UPLOAD_SIG", ["tags", "repeat", 1], resign=True),
            row("tags out of order", "UPLOAD_SIG", ["tags", "swap", 1], resign=True),
            row("shares missing", "UPLOAD_SIG", ["sealed", "drop", 1]),
            row("shares twice", "UPLOAD_SIG", ["sealed", "repeat", 1]),
            row("a ciphertext cut short", "UPLOAD_SIG", ["sealed.1.ct", "cut", 1]),
            row("a helper outside the round", "UPLOAD_SIG", ["sealed.1.helper", "set", "node:9"]),
            row("another header", "OUT_OF_TURN", ["hd", "flip", 0]),
        ],
        "commit": [
            row("a signature altered", "COMMIT_SIG", ["sig", "flip", 3]),
            row("another set", "COMMIT_SIG", ["set_hash", "flip", 3]),
            row("another header", "OUT_OF_TURN", ["hd", "flip", 3]),
        ],
        "release": [
            row("a seed altered", "RELEASE_BAD", ["b", "flip", 3]),
            row("a seed cut short", "RELEASE_BAD BAD_MESSAGE", ["b", "cut", 1]),
            row("an edge altered", "RELEASE_BAD", ["edges.0.1", "flip", 3]),
            row("an edge missing", "RELEASE_BAD", ["edges", "cut", 1]),
            row("an edge twice", "RELEASE_BAD", ["edges", "repeat", 0]),
            row("an edge inside the set", "RELEASE_BAD", ["edges.0.0", "set", "node:2"]),
            row("another header", "OUT_OF_TURN", ["hd", "flip", 3]),
        ],
    }


def shares() -> object:
    """Return share sets of `round_n5.json`'s silent survivor that must not combine.

    `off` adds to the share of the helper at a place, `helpers` says how many are used.
    """
    return {
        "round": "round_n5.json",
        "rows": [
            {"name": "a share off by one", "helpers": 2, "off": {"0": 1}, "expect": ["SHARE_BAD"]},
            {
                "name": "both shares off",
                "helpers": 2,
                "off": {"0": 1, "1": 5},
                "expect": ["SHARE_BAD"],
            },
            {
                "name": "all shares off",
                "helpers": 3,
                "off": {"0": 1, "1": 1, "2": 1},
                "expect": ["SHARE_BAD"],
            },
            {"name": "one share only", "helpers": 1, "off": {}, "expect": ["NOT_ENOUGH"]},
            {"name": "one of three off", "helpers": 3, "off": {"1": 1}, "expect": [], "wrong": [1]},
            {"name": "three good ones", "helpers": 3, "off": {}, "expect": [], "wrong": []},
        ],
    }


VECTORS: dict[str, Callable[[], object]] = {
    "bad_header.json": headers,
    "bad_roster.json": rosters,
    "bad_round.json": rounds,
    "bad_upload.json": uploads,
    "bad_shares.json": shares,
}
