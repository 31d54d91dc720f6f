"""How many bytes a run moves: what follows from the study, per hospital and round.

Payload only: masked vectors up, models down. Records, acknowledgements and keys are small
beside them (`researcher.plan` estimates those), and TLS adds well under one in a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.layouts import model_schema, round_kinds, round_layout
from common.model_file import model_header
from common.secagg.header import RoundKind
from common.study import Study


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes of one kind of round for one hospital; `rounds` of them in a run."""

    kind: RoundKind
    rounds: int
    upload: int
    download: int

    def data(self) -> dict[str, object]:
        """Return the form for envelopes and files."""
        return {
            "kind": self.kind.value,
            "rounds": self.rounds,
            "upload_bytes": self.upload,
            "download_bytes": self.download,
        }


def traffic(study: Study) -> tuple[Traffic, ...]:
    """Return what each kind of round of a study moves, in the order of the rounds."""
    kinds = round_kinds(study)
    found = []
    for kind in dict.fromkeys(kinds):
        layout = round_layout(study, kind)
        upload = layout.schema.words * layout.ring_bits // 8
        download = 0
        if kind is not RoundKind.STATISTICS:
            schema = model_schema(study)
            download = len(model_header(schema)) + schema.byte_size
        found.append(Traffic(kind, kinds.count(kind), upload, download))
    return tuple(found)


def total(parts: tuple[Traffic, ...]) -> int:
    """Return a hospital's payload bytes in a run of which no round is tried again."""
    return sum(part.rounds * (part.upload + part.download) for part in parts)


def communication(study: Study) -> dict[str, object]:
    """Return what a run moves, for an envelope."""
    parts = traffic(study)
    return {
        "upload_bits": study.federation.upload_bits,
        "download": study.federation.download,
        "traffic": [part.data() for part in parts],
        "bytes_per_site": total(parts),
    }


def communication_text(study: Study) -> str:
    """Return the same in one line, for people."""
    parts = [
        f"{part.rounds} {part.kind.value} rounds of {part.upload:,} up and {part.download:,} down"
        for part in traffic(study)
    ]
    return f"bytes a hospital: {total(traffic(study)):,} ({'; '.join(parts)})"
