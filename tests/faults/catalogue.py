"""The faults that the tests bring about, by number, in the words of docs/reliability.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SIMULATION: Final = "simulation"
KILLS: Final = "kills"
POSTGRESQL: Final = "F01-F15 on PostgreSQL"
TESTS: Final = "tests"
SOAK: Final = "soak"
"""The parts of a report; three of them have a row of their own."""

FAULTS: Final[Mapping[str, str]] = {
    SIMULATION: "a whole federation in virtual time, one to six random faults in each run",
    SOAK: "real processes at work for hours, one killed now and then; what grows is a leak",
    "F01": "coordinator killed while nothing is open",
    "F02": "coordinator killed as a round opens",
    "F03": "coordinator killed between an update and its receipt",
    "F04": "coordinator killed after a receipt",
    "F05": "coordinator killed while it adds up",
    "F06": "coordinator killed around the commit of a model",
    "F07": "coordinator killed while it tells the hospitals",
    "F08": "hospital killed before it trains",
    "F09": "hospital killed while it trains",
    "F10": "hospital killed with a sealed update",
    "F11": "hospital killed in the middle of an upload",
    "F12": "hospital killed before it holds its receipt",
    "F13": "hospital killed as it takes over a model",
    "F14": "power cut: everything dies, unflushed writes are lost",
    "F15": "coordinator dies every two seconds for two minutes",
    POSTGRESQL: "the same, with PostgreSQL as the coordinator's store",
    "F16": "told to stop (SIGTERM) in each phase",
    "F17": "one hospital cut off, for less than the deadline",
    "F18": "one hospital cut off beyond the deadline",
    "F19": "packets pass in one direction only",
    "F20": "most hospitals cut off",
    "F21": "a process is frozen, its connections stay open",
    "F22": "a slow line",
    "F23": "packets lost, late, twice",
    "F24": "a proxy that resets, truncates or cuts",
    "F25": "clocks that are wrong by hours",
    "F26": "the day's clock is set while a round is open",
    "F27": "a clock beyond the validity of certificates",
    "F28": "the coordinator's name leads elsewhere, or nowhere",
    "F29": "coordinator gone for a day",
    "F30": "all hospitals come back at once",
    "F31": "everything is said twice",
    "F32": "an update of one round comes in the next",
    "F33": "what was recorded is played again",
    "F34": "messages come in another order",
    "F35": "one certificate in two places",
    "F36": "disk full at the coordinator",
    "F37": "disk full at a hospital",
    "F38": "a flush that fails",
    "F39": "bytes on disk, or their ends, damaged",
    "F40": "a model or checkpoint of an earlier process, damaged or foreign",
    "F40a": "an old backup is restored",
    "F64": "coordinator offers an older model",
    "F65": "coordinator offers nothing new, or leaps ahead",
    "F66": "coordinator gives hospitals different models",
    "F67": "coordinator mixes model and plan of two studies",
    "F68": "a log that was rewritten",
    "F69": "coordinator makes the cohort too small",
    "F70": "coordinator asks for two sets that differ by one hospital",
    "F71": "coordinator says that a hospital dropped out",
    "F72": "coordinator invents hospitals",
    "F73": "coordinator weakens the privacy terms",
    "F74": "a privacy ledger is lost, restored or exhausted",
    "F75": "randomness that repeats",
}
"""In the order of the table."""
