"""What is read back from the kernel, and what of it is weak."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from common.confinement import Facts, facts_of, holds_key, look, refusal, weaknesses
from common.errors import ConfigError

CONFINED = """\
Name:\tfedcare
Uid:\t10001\t10001\t10001\t10001
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000000000000000
CapAmb:\t0000000000000000
NoNewPrivs:\t1
Seccomp:\t2
"""
PEM = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n"


def facts(
    status: str = CONFINED,
    *,
    root: bool = True,
    core: int = 0,
    keys: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
) -> Facts:
    return facts_of(status, root_read_only=root, core_limit=core, keys=keys, environ=environ or {})


def weak(found: Facts) -> list[str]:
    return [each.name for each in weaknesses(found)]


def test_the_shipped_container_has_no_weak_setting() -> None:
    assert weak(facts()) == []


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("Uid:\t10001\t10001", "Uid:\t0\t10001", "user"),
        ("Uid:\t10001\t10001", "Uid:\t10001\t0", "user"),
        ("10001\t10001\nCapInh", "0\t10001\nCapInh", "user"),
        ("CapEff:\t0000000000000000", "CapEff:\t0000000000000400", "capabilities"),
        ("CapPrm:\t0000000000000000", "CapPrm:\t0000000000000400", "capabilities"),
        ("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb", "capabilities"),
        ("CapAmb:\t0000000000000000", "CapAmb:\t0000000000000001", "capabilities"),
        ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "no_new_privileges"),
        ("Seccomp:\t2", "Seccomp:\t0", "seccomp"),
    ],
)
def test_each_setting_that_is_weak_is_seen_alone(old: str, new: str, name: str) -> None:
    assert old in CONFINED
    assert weak(facts(CONFINED.replace(old, new))) == [name]


def test_what_stands_beside_the_kernels_page_is_seen_too() -> None:
    assert weak(facts(root=False)) == ["root"]
    assert weak(facts(core=1024)) == ["core_dumps"]
    assert weak(facts(core=-1)) == ["core_dumps"]  # RLIM_INFINITY
    assert weak(facts(keys=("tls.key",))) == ["keys"]
    assert weak(facts(environ={"KEY": PEM})) == ["environment"]


def test_a_kernel_that_says_nothing_counts_as_weak() -> None:
    assert weak(facts("")) == ["user", "capabilities", "no_new_privileges", "seccomp"]


def test_capabilities_are_counted_over_all_sets() -> None:
    status = CONFINED.replace("CapBnd:\t0000000000000000", "CapBnd:\t00000000a80425fb")
    assert facts(status).capabilities == 14


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (PEM, True),
        (PEM.replace("PRIVATE", "EC PRIVATE"), True),
        (PEM.replace("\n", "\\n"), True),
        (base64.b64encode(PEM.encode()).decode(), True),
        ("data:" + base64.b64encode(PEM.encode()).decode(), True),
        (base64.encodebytes((PEM * 3).encode()).decode(), True),
        (base64.b64encode(b"-----BEGIN CERTIFICATE-----\nMIIB").decode(), False),
        ("LS0tLS1CRUdJTi", False),
        ("LS0tLS1CRUdJTi\u00fc", False),
        ("/etc/fedcare/tls.key", False),
        ("", False),
    ],
)
def test_a_private_key_in_a_variable_is_told_from_a_path(text: str, answer: bool) -> None:
    assert holds_key(text) is answer


def test_the_refusal_names_everything_and_fits_a_log_line() -> None:
    everything = facts("", root=False, core=9, keys=("tls.key",), environ={"MY_KEY": PEM})
    error = refusal(tuple(weaknesses(everything)))
    assert isinstance(error, ConfigError)
    for word in ("root", "capabilities", "seccomp", "writable", "tls.key", "'MY_KEY'"):
        assert word in error.detail
    for word in ("10001:10001", "cap_drop: [ALL]", "read_only: true", "NoNewPrivileges=yes"):
        assert word in error.fix
    assert PEM.splitlines()[1] not in error.detail + error.fix
    assert len(error.detail) <= 400
    assert len(error.fix) <= 400


def test_key_files_are_looked_at(tmp_path: Path) -> None:
    for name, mode in (("good", 0o600), ("bad", 0o604)):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    found = look([tmp_path / "good", tmp_path / "bad", tmp_path / "none"])
    assert found.keys == (str(tmp_path / "bad"),)
