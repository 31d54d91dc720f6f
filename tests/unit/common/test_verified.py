"""Both `verify` commands show the same screen, and scripts get the fix as well."""

from __future__ import annotations

from common.errors import ExitCode
from common.verified import Part, shown


def test_what_is_damaged_is_shown_with_trouble_and_fix_and_so_for_scripts() -> None:
    found = shown([Part("owner.json"), Part("spool/x", "is not there", "Look after the disk.")])
    assert found.exit_code == ExitCode.REFUSED
    assert found.data == {
        "good": ["owner.json"],
        "damaged": {"spool/x": "is not there"},
        "fixes": {"spool/x": "Look after the disk."},
    }
    lines = found.text.splitlines()
    assert lines[:2] == ["good     owner.json", "DAMAGED  spool/x"]
    assert lines[2:] == ["spool/x: is not there", "  fix: Look after the disk."]


def test_a_state_that_is_good_ends_well_and_names_from_outside_are_escaped() -> None:
    found = shown([Part("orders/\x1b[2J.json")])
    assert found.exit_code == ExitCode.OK
    assert "\x1b" not in found.text
