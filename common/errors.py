"""Every error this product raises on purpose, in one tree with stable codes.

An error answers three questions: what happened (and where), whose it is, and how
it is mended. `CATALOGUE` is the one table: names, `FC-nnnn` codes, exit codes and
gRPC statuses map one to one, and `fedcare explain`, the runbook and the docs are
made from it. The refusal names of the protocol (docs/protocol.md, section 12) are
rows of the same table.

Codes: FC-1xxx files and arguments, FC-2xxx connections and identity, FC-3xxx a
node's refusals, FC-4xxx the coordinator's refusals, FC-5xxx a hospital's policy,
FC-6xxx rounds and runs, FC-7xxx state on disk, FC-9xxx our own bugs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Process exit codes that scripts may rely on."""

    OK = 0
    REFUSED = 1
    CONNECT = 2
    DEADLINE = 3
    BAD_INPUT = 4
    INTERNAL = 5
    WAITING = 6


class Whose(Enum):
    """Who has to act for the error to go away."""

    CALLER = "the person or program that made the request"
    HOSPITAL = "the hospital"
    OPERATOR = "the consortium's operator"
    RESEARCHER = "the researcher who owns the study"
    PEER = "the machine at the other end"
    PROJECT = "us, the authors"


class Status(Enum):
    """The gRPC status an error travels as; `common.transport.status` translates."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DATA_LOSS = "DATA_LOSS"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the catalogue; `meaning` and `fix` are whole sentences for people."""

    code: str
    name: str
    exit_code: ExitCode
    status: Status
    whose: Whose
    meaning: str
    fix: str


_IN, _NO, _CON, _DL, _BUG = (
    ExitCode.BAD_INPUT,
    ExitCode.REFUSED,
    ExitCode.CONNECT,
    ExitCode.DEADLINE,
    ExitCode.INTERNAL,
)
_ARG, _PRE, _DENY = Status.INVALID_ARGUMENT, Status.FAILED_PRECONDITION, Status.PERMISSION_DENIED
_CALLER, _HOSP, _OPER, _RES, _PEER = (
    Whose.CALLER,
    Whose.HOSPITAL,
    Whose.OPERATOR,
    Whose.RESEARCHER,
    Whose.PEER,
)

# fmt: off
_ROWS: Final = (
    # --- files and arguments ------------------------------------------------------
    ErrorKind("FC-1001", "FILE_MISSING", _IN, _ARG, _CALLER, "A file that was named is not there or cannot be read.", "Check the path and its permissions."),
    ErrorKind("FC-1002", "FILE_SYNTAX", _IN, _ARG, _CALLER, "A file is not valid YAML, JSON or CSV.", "Correct the line that is named."),
    ErrorKind("FC-1003", "SCHEMA_VERSION", _IN, _ARG, _CALLER, "A file states a schema this version does not read.", "Use the schema named in the message, or the matching version of fedcare."),
    ErrorKind("FC-1004", "UNKNOWN_KEY", _IN, _ARG, _CALLER, "A file has a key that the schema does not know.", "Correct the spelling or remove the key; the message names the nearest known one."),
    ErrorKind("FC-1005", "BAD_VALUE", _IN, _ARG, _CALLER, "A value has the wrong type, unit or range, or contradicts another.", "Give a value of the kind that the message names."),
    ErrorKind("FC-1006", "DUPLICATE_KEY", _IN, _ARG, _CALLER, "A key or an id stands twice.", "Keep one of the two."),
    ErrorKind("FC-1007", "OUTPUT_EXISTS", _IN, _ARG, _CALLER, "The place to write to already holds something.", "Choose an empty folder or remove the old one."),
    ErrorKind("FC-1008", "NOT_INSTALLED", _IN, _PRE, _CALLER, "The command needs an optional part that is not installed.", "Install the extra that the message names."),
    ErrorKind("FC-1009", "NOT_SUPPORTED", _IN, _ARG, _CALLER, "A file asks for something that this version knows by name but cannot do yet.", "Use one of the choices that the message names; nothing is ever ignored silently."),
    ErrorKind("FC-1010", "BAD_ARGUMENT", _IN, _ARG, _CALLER, "A command was called with arguments it does not take, or without one it needs.", "`--help` after the command lists its arguments."),
    ErrorKind("FC-1101", "DATA_COLUMN", _IN, _PRE, _HOSP, "A column of the study is not in the hospital's table.", "Map the column in the site manifest, or ask for the table to be completed."),
    ErrorKind("FC-1102", "DATA_VALUE", _IN, _PRE, _HOSP, "A value in the hospital's table cannot be read as the study's type.", "Correct the value or declare its missing code in the study."),
    ErrorKind("FC-1103", "DATA_LABEL", _IN, _PRE, _HOSP, "A label lies outside the levels the study declares.", "Correct the label, or the study's target."),
    ErrorKind("FC-1104", "DATA_EMPTY", _IN, _PRE, _HOSP, "A hospital has no usable row for the study.", "Check the file, the study's rules for missing values and its split."),
    ErrorKind("FC-1105", "DATA_CHECKSUM", _IN, Status.DATA_LOSS, _CALLER, "A data file's SHA-256 is not the expected one.", "Install the data package again at the pinned version."),
    ErrorKind("FC-1107", "DATA_UNIT", _IN, _PRE, _HOSP, "A hospital's unit cannot be brought to the study's.", "Write the hospital's unit in UCUM in the site manifest, with the analyte where mass becomes amount."),
    ErrorKind("FC-1108", "DATA_SOURCE", _IN, _PRE, _HOSP, "The hospital's database or export could not be read.", "Start the database or correct its address, account or query; the node asks again with the next offer."),
    ErrorKind("FC-1106", "ACCOUNTANT", _BUG, _PRE, Whose.PROJECT, "Two independent computations of a study's epsilon differ by more than 1 %.", "Do not run the study; please report it with the study's privacy terms."),
    ErrorKind("FC-1111", "PATIENT_KEY", _IN, _PRE, _RES, "The hospital's table holds several rows of one patient, and the study does not group them.", "State `patient_key` in the study; where each row is a patient of its own, the hospital says so in its manifest (`patient: null`)."),
    # --- connections and identity -------------------------------------------------
    ErrorKind("FC-2001", "UNREACHABLE", _CON, Status.UNAVAILABLE, _PEER, "No connection to the coordinator.", "Check that it runs, the address, and the outbound firewall port."),
    ErrorKind("FC-2002", "PORT_IN_USE", _IN, _PRE, _CALLER, "The address to listen on is taken.", "Stop the other program or choose another port."),
    ErrorKind("FC-2003", "TLS_REFUSED", _CON, Status.UNAUTHENTICATED, _PEER, "The TLS handshake failed.", "Compare both ends' CA, certificate dates and names; `fedcare pki show` prints them."),
    ErrorKind("FC-2004", "TLS_VERSION", _CON, Status.UNAUTHENTICATED, _PEER, "The peer negotiated less than TLS 1.3.", "Upgrade the peer's TLS library."),
    ErrorKind("FC-2005", "CERT_INVALID", _CON, Status.UNAUTHENTICATED, _CALLER, "A certificate is unusable: wrong CA, dates, usage or key.", "Have a new one issued with `fedcare pki issue`."),
    ErrorKind("FC-2006", "IDENTITY", _CON, Status.UNAUTHENTICATED, _PEER, "A certificate does not carry exactly one well-formed SPIFFE URI of this federation.", "Have a new one issued with `fedcare pki issue`."),
    ErrorKind("FC-2007", "ROLE_DENIED", _NO, _DENY, _CALLER, "The caller's role may not call this method.", "Use a certificate of the role that the message names."),
    ErrorKind("FC-2008", "KEY_PERMISSIONS", _IN, _PRE, _CALLER, "A private key is readable by others.", "chmod 600 the file that is named."),
    ErrorKind("FC-2009", "CLOCK_OFF", _CON, _PRE, _CALLER, "This machine's clock lies outside a certificate's validity.", "Set the clock, or renew the certificate."),
    ErrorKind("FC-2010", "CONFINEMENT", _IN, _PRE, _OPER, "The process is less confined than `confinement: require` demands.", "Set what the message names; the shipped compose and systemd files do."),
    # --- a node's refusals (protocol, section 12) -----------------------------------
    ErrorKind("FC-3001", "CERT_CHAIN", _NO, _PRE, _PEER, "A member's certificate chain does not verify against the pinned CA.", "The member named has to renew its certificate."),
    ErrorKind("FC-3002", "NOT_MEMBER", _NO, _PRE, _OPER, "A member of the roster is not in this hospital's pinned list.", "Add the hospital to the policy's members if the consortium admitted it."),
    ErrorKind("FC-3003", "HEADER_FORM", _NO, _ARG, _OPER, "A round header is malformed.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3004", "HELPER_RULE", _NO, _PRE, _OPER, "The helper numbers kappa or t_h are not those of the protocol.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3005", "ADVERT_SIG", _NO, _PRE, _PEER, "A member's key advert is not signed by its certificate.", "The member or the coordinator named is faulty or hostile."),
    ErrorKind("FC-3006", "ADVERT_DUP", _NO, _PRE, _PEER, "An id or a public key stands twice in the roster.", "Two machines may share one copied state; issue fresh certificates."),
    ErrorKind("FC-3007", "OWN_ADVERT", _NO, _PRE, _OPER, "The roster does not carry this node's own advert as sent.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3008", "EPOCH_OLD", _NO, _PRE, _OPER, "The epoch is not greater than every epoch used before.", "The coordinator was restored from an old copy; it picks a larger epoch by itself."),
    ErrorKind("FC-3009", "CONFIG_HASH", _NO, _PRE, _OPER, "The study hash is not the one this hospital accepted.", "Submit the changed study anew; hospitals decide on it again."),
    ErrorKind("FC-3010", "KEM", _NO, _PRE, _PEER, "A key encapsulation is missing, malformed or wrongly signed.", "The epoch is set up again without the hospital named."),
    ErrorKind("FC-3011", "ZERO_DH", _NO, _PRE, _PEER, "A key agreement gave the all-zero result.", "The member named sent a hostile key."),
    ErrorKind("FC-3012", "HEADER_NONCE", _NO, _PRE, _OPER, "The header does not carry this node's latest nonce.", "The coordinator sends a header with the latest nonce."),
    ErrorKind("FC-3013", "ROUND_OLD", _NO, _PRE, _OPER, "The round number was used before or exceeds the epoch.", "The coordinator goes on with the next round number."),
    ErrorKind("FC-3014", "ROUND_OPEN", _NO, _PRE, _OPER, "Another header is open in this session.", "The open round ends first."),
    ErrorKind("FC-3015", "COHORT_SMALL", _NO, _PRE, _OPER, "Fewer hospitals take part than this hospital's policy requires.", "Wait for more hospitals, or change `require.min_cohort` at this hospital."),
    ErrorKind("FC-3016", "QUORUM_RULE", _NO, _PRE, _OPER, "The commit quorum or the colluder bound is below the rule or the policy.", "Raise `colluders` in the study to the policy's value."),
    ErrorKind("FC-3017", "SMIN_RULE", _NO, _PRE, _OPER, "The smallest survivor set is below the rule or the policy.", "Raise `min_sites` in the study to the policy's value."),
    ErrorKind("FC-3018", "MODEL_HASH", _NO, Status.DATA_LOSS, _OPER, "The model received is not the one the header names.", "The node fetches it again; a lasting mismatch means a faulty or hostile coordinator."),
    ErrorKind("FC-3019", "LAYOUT", _NO, _PRE, _OPER, "The layout is not the one the study implies.", "Run the same version of fedcare at the coordinator and the hospitals."),
    ErrorKind("FC-3020", "MODEL_RANGE", _NO, _PRE, _OPER, "The model holds non-finite values or moved further than the policy allows.", "Lower the learning rate, or raise the policy's limit."),
    ErrorKind("FC-3021", "OVERFLOW_BOUND", _NO, _PRE, _OPER, "An honest sum could wrap around the ring.", "Use a wider ring or a smaller cohort."),
    ErrorKind("FC-3022", "DP_WEAK", _NO, _PRE, _RES, "The privacy terms are weaker than the study or the policy demands, or not supported.", "Use terms within the policy."),
    ErrorKind("FC-3023", "BUDGET", _NO, _PRE, _HOSP, "The round would pass the hospital's privacy limit.", "The hospital decides whether to raise its limit."),
    ErrorKind("FC-3024", "RERUN", _NO, _PRE, _OPER, "Another survivor set was already accepted for the same model.", "Run with the same hospitals as before. If one of them is gone for good, the hospital's operator may `unlock` that set, unless its sum was opened: then change the study."),
    ErrorKind("FC-3025", "NOT_IN_SET", _NO, _PRE, _OPER, "The survivor set leaves this hospital out.", "Nothing; the hospital takes part in the next round."),
    ErrorKind("FC-3026", "SET_SMALL", _NO, _PRE, _OPER, "The survivor set is smaller than the smallest allowed.", "Wait for more hospitals."),
    ErrorKind("FC-3027", "SET_CONFLICT", _NO, _PRE, _OPER, "A second survivor set was proposed for one round.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3028", "DIGEST", _NO, _PRE, _OPER, "The list of upload digests is wrong or incomplete.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3029", "CERT_SIG", _NO, _PRE, _OPER, "A signature in the quorum certificate is wrong.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3030", "CERT_QUORUM", _NO, _PRE, _OPER, "The certificate carries fewer signatures than the quorum.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3031", "RELEASE_OUTSIDE", _NO, _PRE, _OPER, "Secrets were asked for outside the certified set.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3032", "RECOVER_OUTSIDE", _NO, _PRE, _OPER, "Shares were asked for a hospital outside the certified set.", "The coordinator is faulty or hostile; keep its log."),
    ErrorKind("FC-3033", "SHARE_OPEN", _NO, _PRE, _PEER, "A sealed share does not open.", "The hospital named sent a bad share; other helpers are asked."),
    ErrorKind("FC-3034", "CLOSED", _NO, _PRE, _OPER, "The round is closed and its keys are erased.", "Nothing; the next round follows."),
    ErrorKind("FC-3035", "INPUT_NAN", _NO, _PRE, _HOSP, "Local training gave a value that is not finite.", "Lower the learning rate or check the data."),
    # --- the coordinator's refusals (protocol, section 12) -------------------------------
    ErrorKind("FC-4001", "UPLOAD_SIG", _NO, _ARG, _HOSP, "An upload's end record is wrongly signed.", "The node sends it again; a lasting failure means a faulty node."),
    ErrorKind("FC-4002", "UPLOAD_DIGEST", _NO, Status.DATA_LOSS, _HOSP, "An upload's bytes do not match its digest.", "The node sends it again from the start."),
    ErrorKind("FC-4003", "UPLOAD_LATE", _NO, _PRE, _HOSP, "The upload came after the round's survivor set was fixed.", "Nothing; the hospital takes part in the next round."),
    ErrorKind("FC-4004", "UPLOAD_SIZE", _NO, _ARG, _HOSP, "An upload is longer or shorter than the layout says.", "Run the same version of fedcare at both ends."),
    ErrorKind("FC-4005", "TAG_MISMATCH", _NO, _PRE, _HOSP, "The two ends of an edge used different keys or headers.", "The pair is left out as the protocol says; compare both hospitals' logs."),
    ErrorKind("FC-4006", "COMMIT_SIG", _NO, _ARG, _HOSP, "A commit is wrongly signed.", "The node is faulty or hostile."),
    ErrorKind("FC-4007", "RELEASE_BAD", _NO, _ARG, _HOSP, "Released seeds do not match what was committed.", "The node's shares are recovered from its helpers."),
    ErrorKind("FC-4008", "SHARE_BAD", _NO, _ARG, _HOSP, "Recovered shares do not fit together.", "Other helpers are asked; if nothing fits the round is voided."),
    ErrorKind("FC-4009", "SUM_RANGE", _NO, _PRE, _OPER, "The opened sum lies outside its bound.", "An input was corrupt; the round is voided and the model unchanged."),
    ErrorKind("FC-4010", "NOT_ENOUGH", _DL, _PRE, _OPER, "Fewer hospitals than the quorum remain.", "Wait for hospitals to return; the model is unchanged."),
    ErrorKind("FC-4011", "KEY_ADVERT", _NO, _ARG, _HOSP, "A node's key advert, encapsulation or confirmation is not acceptable.", "The node starts a fresh epoch."),
    ErrorKind("FC-4012", "OUT_OF_TURN", _NO, _PRE, _PEER, "A message does not fit the state it arrived in.", "Nothing if it is a late duplicate; otherwise run the same version at both ends."),
    ErrorKind("FC-4101", "BAD_MESSAGE", _NO, _ARG, _PEER, "A message from a peer is malformed or over its size cap.", "Run the same version of fedcare at both ends."),
    # --- a hospital's policy ---------------------------------------------------------------
    ErrorKind("FC-5001", "POLICY_PURPOSE", _NO, _DENY, _RES, "The study's purpose is not allowed at the hospital.", "Ask the hospital to add the purpose to its policy."),
    ErrorKind("FC-5002", "POLICY_OWNER", _NO, _DENY, _RES, "Neither the study's owner nor its hash is allowed at the hospital.", "Ask the hospital to list the owner or the study's hash."),
    ErrorKind("FC-5003", "POLICY_DATASET", _NO, _DENY, _RES, "The data set is not offered by the hospital.", "Ask the hospital to list the data set in policy and manifest."),
    ErrorKind("FC-5004", "POLICY_MODEL", _NO, _DENY, _RES, "The model kind is not allowed at the hospital.", "Use a model kind that the policy lists."),
    ErrorKind("FC-5005", "POLICY_STRATEGY", _NO, _DENY, _RES, "The strategy is not allowed at the hospital.", "Use a strategy that the policy lists."),
    ErrorKind("FC-5006", "POLICY_WEIGHTS", _NO, _DENY, _RES, "The weighting is not allowed at the hospital.", "Use size_class or equal weights, or ask the hospital."),
    ErrorKind("FC-5007", "POLICY_COHORT", _NO, _DENY, _RES, "The study asks for fewer hospitals or colluders than the policy requires.", "Raise min_sites or colluders in the study."),
    ErrorKind("FC-5008", "POLICY_TWO_PARTY", _NO, _DENY, _HOSP, "A two-hospital run needs `allow_two_party: true` at both hospitals.", "Each hospital decides; the other one can compute its update."),
    ErrorKind("FC-5010", "POLICY_RELEASE", _NO, _DENY, _RES, "The hospital's policy does not release what the study asks for.", "Leave the item out of the study, or ask the hospital."),
    ErrorKind("FC-5011", "OWNER_SIGNATURE", _NO, _DENY, _RES, "The study is not signed by the certificate of the organisation it names as its owner.", "Submit it with the owner's own certificate; its id is the study's owner.organisation."),
    ErrorKind("FC-5012", "POLICY_DP", _NO, _DENY, _RES, "The study protects patients less than the hospital's policy demands.", "Use a mode, an epsilon, a delta and a clip within the policy, or ask the hospital."),
    ErrorKind("FC-5013", "POLICY_HOURS", _NO, _DENY, _HOSP, "The hospital takes part only at the hours of its policy.", "Wait for the hour that the message names."),
    ErrorKind("FC-5014", "POLICY_LIMITS", _NO, _DENY, _RES, "The study is larger than the hospital's policy lets one be.", "Use a smaller model or fewer rounds, or ask the hospital."),
    # --- approval of studies by the people a hospital's policy names (protocol, section 10.8) ---
    ErrorKind("FC-5101", "APPROVAL_MISSING", ExitCode.WAITING, _PRE, _HOSP, "The study waits for the approval of people that the hospital's policy names.", "They look at it with `fedcare node approvals show` and answer with `grant` or `deny`; the node goes on by itself."),
    ErrorKind("FC-5102", "APPROVAL_DENIED", _NO, _DENY, _RES, "Somebody that the hospital's policy names has denied the study.", "Change what the reason names and submit the study anew; the same person may also grant it after all."),
    ErrorKind("FC-5103", "APPROVAL_WITHDRAWN", _NO, _DENY, _HOSP, "Somebody that the hospital's policy names has withdrawn the approval: the hospital takes part in no further round.", "Ask the hospital; the same person can grant it again."),
    ErrorKind("FC-5104", "APPROVAL_EXPIRED", ExitCode.WAITING, _PRE, _HOSP, "The approval of the study has expired at the hospital.", "The people named grant it again with `fedcare node approvals grant`; the node goes on by itself."),
    ErrorKind("FC-5105", "APPROVAL_PERSON", _IN, _DENY, _HOSP, "An approval is in the name of somebody that the policy does not name.", "Sign as one of the policy's people, or add the person to `require.approval.approvers` and start the node again."),
    ErrorKind("FC-5106", "APPROVAL_KEY", _IN, _DENY, _HOSP, "The key that signs is not the approver's key in the policy, or no approver's key at all.", "Use the key file whose public key stands in the policy; `fedcare node approvals key FILE` makes one and prints the line."),
    ErrorKind("FC-5107", "APPROVAL_STUDY", _IN, Status.NOT_FOUND, _CALLER, "No study of that name was offered to this hospital, or more than one was.", "Name one of the studies that the message lists, by its run or its whole hash."),
    ErrorKind("FC-5108", "APPROVAL_CHANGED", _NO, _PRE, _RES, "What was approved is another version of the study: one changed character is another study.", "The people named look at what has changed with `fedcare node approvals show` and approve the new version."),
    ErrorKind("FC-5109", "APPROVAL_RECORD", _IN, Status.DATA_LOSS, _HOSP, "A record of an approval is damaged, forged, or out of its time; it counts as no grant.", "Find out who wrote it; the person it names signs again, with a correct clock."),
    ErrorKind("FC-5021", "POLICY_MIN_CELL", _NO, _DENY, _HOSP, "The hospital has fewer patients for the study than its policy lets be counted.", "The hospital decides: more data, or a smaller `release.min_cell`; the others may run without it."),
    ErrorKind("FC-5022", "POLICY_TASK", _NO, _DENY, _RES, "The study's id is not among those that the hospital lists.", "Ask the hospital to add the id to `allow.tasks`."),
    ErrorKind("FC-5023", "POLICY_LAYOUT", _NO, _DENY, _RES, "The model's tensors are none of the layouts that the hospital lists.", "Use a model of a listed layout, or ask the hospital."),
    ErrorKind("FC-5024", "POLICY_PROTOCOL", _NO, _DENY, _RES, "The study's key suite or ring is not allowed at the hospital.", "Use a suite and a ring that the policy lists."),
    ErrorKind("FC-5025", "POLICY_PROCESSES", _NO, _DENY, _HOSP, "The hospital trains over several processes, and the study's training does not split over them.", "The hospital takes `training` out of its node.yaml, or the study uses a model that splits (docs/scale.md)."),
    # --- rounds and runs --------------------------------------------------------------------------
    ErrorKind("FC-6001", "ROUND_VOID", _DL, Status.DEADLINE_EXCEEDED, _OPER, "A round was voided below its quorum; the model is unchanged.", "See which hospitals were missing; the run goes on when they return."),
    ErrorKind("FC-6002", "RUN_FAILED", _NO, _PRE, _OPER, "A run ended without a model.", "`fedcare run show` says which round failed and why."),
    ErrorKind("FC-6003", "RUN_CANCELLED", _NO, _PRE, _CALLER, "A run was cancelled by a person.", "Submit the study again if it should run."),
    ErrorKind("FC-6004", "NOT_FOUND", _NO, Status.NOT_FOUND, _CALLER, "No study, run or model of that name.", "`fedcare study list` shows what there is."),
    ErrorKind("FC-6005", "ENROLMENT", _DL, Status.DEADLINE_EXCEEDED, _OPER, "Too few hospitals accepted the study in time.", "The message names who refused and why, and who did not answer."),
    ErrorKind("FC-6006", "DEADLINE", _DL, Status.DEADLINE_EXCEEDED, _PEER, "An answer did not come in time.", "Try again; if it lasts, look at the coordinator's status."),
    ErrorKind("FC-6007", "ALREADY_EXISTS", _NO, Status.ALREADY_EXISTS, _CALLER, "Something of that name is already there with other contents.", "Choose another id."),
    ErrorKind("FC-6008", "BUSY", _NO, Status.RESOURCE_EXHAUSTED, _CALLER, "The coordinator admits no more of these calls just now.", "Try again after the delay that is named."),
    ErrorKind("FC-6009", "TRAINING_LOST", _NO, Status.UNAVAILABLE, _HOSP, "The processes that a hospital trains with ended early or took too long.", "The round goes on without the hospital; look at its machines' memory and GPUs, and at `training` in its node.yaml."),
    # --- state on disk and models --------------------------------------------------------------------
    ErrorKind("FC-7001", "STATE_DAMAGED", _IN, Status.DATA_LOSS, _OPER, "State on disk is damaged or was altered.", "Restore it from a backup; nothing is repaired silently."),
    ErrorKind("FC-7002", "STATE_LOCKED", _IN, _PRE, _CALLER, "Another process uses the state directory.", "Stop the other process."),
    ErrorKind("FC-7003", "DISK", _NO, Status.RESOURCE_EXHAUSTED, _OPER, "Writing to disk failed.", "Free space or replace the disk; nothing acknowledged is lost."),
    ErrorKind("FC-7004", "STATE_FOREIGN", _IN, _PRE, _OPER, "The state directory belongs to another federation, site or role.", "Give this service its own state directory, or the volume it used before."),
    ErrorKind("FC-7005", "STATE_ACCESS", _IN, _PRE, _OPER, "The state directory is not this user's, or cannot be written.", "Give the folder to the user who runs the service, and mount it writable."),
    ErrorKind("FC-7006", "LEDGER_DAMAGED", _IN, Status.DATA_LOSS, _HOSP, "A privacy ledger was edited, cut in the middle, or belongs to another hospital or data set.", "Restore the hospital's own ledger; until then its whole budget counts as spent."),
    ErrorKind("FC-7007", "LEDGER_LOST", _IN, Status.DATA_LOSS, _HOSP, "A privacy ledger that held charges is gone.", "Restore the hospital's own ledger; until then its whole budget counts as spent."),
    ErrorKind("FC-7008", "LEDGER_ROLLED_BACK", _IN, Status.DATA_LOSS, _HOSP, "A privacy ledger is older than what this hospital has charged.", "Restore the newest ledger; until then its whole budget counts as spent."),
    ErrorKind("FC-7009", "LEDGER_ANCHOR", _IN, Status.DATA_LOSS, _HOSP, "The anchor of a privacy ledger is gone, cannot be read or written, or is another hospital's.", "Mount the place that `ledger_anchor` in node.yaml names, with what was in it; until then no round with privacy terms is joined."),
    ErrorKind("FC-7010", "STATE_ROLLED_BACK", _IN, Status.DATA_LOSS, _HOSP, "A node's state is older than what the coordinator has seen of it: an old copy was put back.", "Put the newest state back, or start with an empty folder; where neither is possible, `fedcare node accept-loss --reason ...`."),
    ErrorKind("FC-7011", "HISTORY_BACK", _NO, Status.DATA_LOSS, _OPER, "Hospitals have seen more of a run than the coordinator's store knows of: history went back.", "Restore the newest backup; if there is none, stop the coordinator, `fedcare coordinator accept-loss --reason ...`, and start it."),
    ErrorKind("FC-7101", "MODEL_INVALID", _IN, Status.DATA_LOSS, _CALLER, "A model file is truncated, altered or not of the manifest.", "Pull the model again."),
    ErrorKind("FC-7102", "MANIFEST_SIGNATURE", _IN, Status.DATA_LOSS, _CALLER, "A model manifest is not signed by a coordinator of the pinned CA.", "Do not use the model; ask the operator where it came from."),
    ErrorKind("FC-7201", "BUNDLE_SIGNATURE", _IN, Status.DATA_LOSS, _CALLER, "A bundle's list of files is not signed by the release key that you pinned.", "Do not use the bundle; compare the key's fingerprint with the consortium's and ask for the bundle again."),
    ErrorKind("FC-7202", "BUNDLE_DAMAGED", _IN, Status.DATA_LOSS, _CALLER, "A file of a bundle is missing, cut short, altered or added.", "Do not use the bundle; copy it again from the consortium."),
    ErrorKind("FC-7203", "BUNDLE_FORM", _IN, _ARG, _CALLER, "A bundle holds something that no bundle holds: a link, a path out of it, a name that stands twice, a malformed list.", "Do not unpack it by other means; ask the consortium where it came from."),
    ErrorKind("FC-7204", "BUNDLE_SBOM", _IN, Status.DATA_LOSS, _CALLER, "A bundle's bill of materials does not name exactly the wheels that are in it.", "Do not use the bundle; the consortium has to make it anew."),
    ErrorKind("FC-7205", "BUNDLE_KEY", _IN, _ARG, _CALLER, "A release key is not an Ed25519 key in PEM form.", "`fedcare bundle key FILE` makes one; hospitals pin the .pub file."),
    # --- ours ------------------------------------------------------------------------------------------
    ErrorKind("FC-9001", "INTERNAL", _BUG, Status.INTERNAL, Whose.PROJECT, "Something happened that should not be possible.", "Please report it with the output of --debug."),
)
# fmt: on

CATALOGUE: Final[dict[str, ErrorKind]] = {row.name: row for row in _ROWS}
BY_CODE: Final[dict[str, ErrorKind]] = {row.code: row for row in _ROWS}


class FedError(Exception):
    """An expected failure.

    `detail` says what happened and where, in one line; `fix` overrides the
    catalogue's advice where the raiser knows better. Neither ever holds a patient
    value, a tensor value, a secret or a stack trace: both may reach a log. `retry_s` is
    how many seconds to wait before trying again, where whoever refuses knows.

    Raises:
        KeyError: `name` is not in the catalogue (a bug of the raiser's).
    """

    def __init__(
        self, name: str, detail: str, *, fix: str | None = None, retry_s: float = 0.0
    ) -> None:
        super().__init__(detail)
        self.kind: ErrorKind = CATALOGUE[name]
        self.retry_s = retry_s
        self.detail = " ".join(detail.split())
        self.fix = fix or self.kind.fix

    @property
    def name(self) -> str:
        """The stable upper-case name, for example `RERUN`."""
        return self.kind.name

    @property
    def code(self) -> str:
        """The stable code, for example `FC-3024`."""
        return self.kind.code

    def __str__(self) -> str:
        return f"{self.code} {self.name}: {self.detail}"


class ConfigError(FedError):
    """A file, key, value or argument is wrong (FC-1xxx)."""


class DataError(FedError):
    """A hospital's table does not fit the study (FC-11xx)."""


class IdentityError(FedError):
    """A certificate, key or peer is not who it should be (FC-2xxx)."""


class ConnectError(FedError):
    """No usable connection (FC-2xxx)."""


class Refusal(FedError):
    """A protocol refusal of docs/protocol.md, section 12 (FC-3xxx, FC-4xxx).

    State is unchanged when it is raised; the driver logs it and reports name and
    detail to the other side.
    """


class PolicyRefusal(FedError):
    """The hospital's own policy says no (FC-5xxx); `detail` cites file and line."""


class RoundError(FedError):
    """A round or run cannot go on (FC-6xxx)."""


class StateError(FedError):
    """State or a model on disk cannot be trusted (FC-7xxx)."""


class NoRoom(StateError):
    """DISK, because it is full: nothing of what failed happened, and it may be tried again."""

    def __init__(self, detail: str) -> None:
        super().__init__("DISK", detail)


class InternalError(FedError):
    """A bug of ours (FC-9001)."""

    def __init__(self, detail: str) -> None:
        super().__init__("INTERNAL", detail)
