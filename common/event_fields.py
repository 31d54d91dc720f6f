"""What each field of a log line means, in a word; `common.events` says which event has which.

One name means the same in every line, but for the few that say so here. Seconds and bytes
stand in the name or its meaning; stamps are UTC.
"""

from __future__ import annotations

from typing import Final

FIELDS: Final = {
    "address": "where it listens",
    "attempts": "failed attempts in a row",
    "away_s": "seconds since its last stream ended",
    "bytes": "length of what was moved; the same for every hospital of a round",
    "capabilities": "how many capabilities the process has",
    "code": "the error's code; `fedcare explain CODE` tells more",
    "cohort": "the hospitals of the round",
    "config_hash": "SHA-256 of the study in canonical form",
    "core_dumps": "whether the kernel may write one",
    "deadline_s": "seconds from now to the round's deadline",
    "debugger": "whether one may attach",
    "detail": "what happened, in words",
    "dropped": "hospitals of the cohort that are not in the sum",
    "epoch": "number of the key exchange",
    "fix": "what to do about it",
    "http": "where health and metrics are served",
    "incident": "number that the caller was given for the same error",
    "kind": "statistics, train or evaluate; of a personal model: how made; of an error: its type",
    "library": "name of the library",
    "lines": "how many lines were left out",
    "manifest": "first digits of the release manifest's SHA-256",
    "meaning": "what follows from it",
    "members": "how many hospitals are in the cohort",
    "method": "name of the call",
    "missing": "hospitals that did not take part",
    "mode": "what the configuration asks for",
    "model_sha256": "the model's digest",
    "name": "the error's name",
    "need": "how many hospitals are needed",
    "needs": "fewest survivors with which the round closes",
    "no_new_privileges": "whether a program it starts may gain none",
    "of": "rounds of the run; of `log.suppressed`: the event that was left out",
    "others": "the other hospitals of the epoch",
    "peer": "the certificate's id of who called",
    "people": "the approvers, by their names in the hospital's policy",
    "phase": "the protocol's state",
    "present": "hospitals that are there",
    "quorum": "signatures that the certificate needs",
    "read_only_root": "whether the root file system is read-only",
    "reason": "why",
    "reasons": "objections, with the policy's lines",
    "round": "round of the run, from 1 (at a node: of its epoch)",
    "run": "the run's id",
    "seccomp": "whether system calls are filtered",
    "seconds": "how long so far: since the round opened; of a wait: since `since`",
    "signed": "how many signatures the certificate holds",
    "since": "when it began, UTC",
    "site": "the hospital the line is about; at a node: itself",
    "sites": "the hospitals the line is about",
    "software": "name and version",
    "status": "how the round ended",
    "study": "the study's id",
    "survivors": "how many hospitals are in the sum",
    "text": "what the library said, first line",
    "then": "what happens next, or at `until`",
    "trained_s": "seconds that this hospital's input took, masks included",
    "two_party": "the epoch has only two members",
    "until": "when the wait ends, or the approval, UTC; left out: only when they come",
    "user": "number of the user it runs as",
    "version": "version of the software",
    "waiting_for": "hospitals that are waited for",
    "weak": "the settings that are weaker than they could be",
    "what": (
        "what they owe: decision, connection, keys, readiness, upload, commit, release,"
        " shares or receipt"
    ),
}
