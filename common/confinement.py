"""What the operating system confines this process to, read back from the kernel.

The shipped compose and systemd files start a service as an ordinary user, without
capabilities, on a read-only root file system, under a seccomp filter, with
`no-new-privileges`. Whether all of that is so can only be seen from inside: a line left out
of a compose file changes nothing that anybody would notice. So `serve` looks, says what it
found in one line, and with `confinement: require` does not start if something is weak.

Always, in both modes: files are made for their owner alone (umask 0077) and no core is
dumped (RLIMIT_CORE 0). Under `require` the process is also made not dumpable: no debugger of
the same user attaches, and no core goes to a handler that ignores the limit. Not under
`report`: there `bench` measures its children through /proc/<pid>/fd, which that would close
to everybody but root.
"""

from __future__ import annotations

import base64
import ctypes
import os
import re
import resource
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from common.errors import ConfigError
from common.events import Event
from common.logs import EventLog
from common.text import show

Mode = Literal["report", "require"]

_PR_SET_DUMPABLE: Final = 4
_PR_GET_DUMPABLE: Final = 3
_SECCOMP_FILTER: Final = 2
_CAPABILITY_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_PEM_KEY: Final = "PRIVATE KEY-----"
_PEM_BASE64: Final = re.compile("LS0tLS1CRUdJTi[A-Za-z0-9+/]*")
"""`-----BEGIN` in base64, as some put files into variables."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read back. `keys` and `variables` name what is open to others or exposed."""

    user: int
    capabilities: int
    """How many capabilities the process has or could get, over all of the kernel's sets."""
    no_new_privileges: bool
    seccomp: bool
    root_read_only: bool
    core_dumps: bool
    keys: tuple[str, ...]
    variables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Weakness:
    """A weak setting, and what cures it: keys of the compose and the systemd file, or `other`."""

    name: str
    found: str
    compose: str = ""
    systemd: str = ""
    other: str = ""


def confine(mode: Mode, keys: Iterable[Path]) -> Facts:
    """Tighten what a process can tighten for itself, and look at the rest; once, at the start.

    Raises:
        ConfigError: CONFINEMENT, `mode` is `require` and a setting is weak.
    """
    os.umask(0o077)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    facts = look(keys)
    if mode == "require":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
        weak = tuple(weaknesses(facts))
        if weak:
            raise refusal(weak)
    return facts


def say(log: EventLog, mode: Mode, facts: Facts) -> None:
    """Write the one line: what was found, and the names of the settings that are weak."""
    log.info(
        Event.PROCESS_CONFINEMENT,
        mode=mode,
        user=facts.user,
        capabilities=facts.capabilities,
        no_new_privileges=facts.no_new_privileges,
        seccomp=facts.seccomp,
        read_only_root=facts.root_read_only,
        core_dumps=facts.core_dumps,
        debugger=is_dumpable(),
        weak=[weak.name for weak in weaknesses(facts)] or ["none"],
    )


# --- looking ------------------------------------------------------------------------------------


def look(keys: Iterable[Path]) -> Facts:
    """Return what the kernel says about this process now."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return facts_of(
        status,
        root_read_only=bool(os.statvfs("/").f_flag & os.ST_RDONLY),
        core_limit=resource.getrlimit(resource.RLIMIT_CORE)[0],
        keys=tuple(str(key) for key in keys if _is_open(key)),
        environ=os.environ,
    )


def facts_of(
    status: str,
    *,
    root_read_only: bool,
    core_limit: int,
    keys: tuple[str, ...],
    environ: Mapping[str, str],
) -> Facts:
    """Return the facts in the text of /proc/self/status and what was found beside it.

    What a kernel does not tell counts as weak.
    """
    lines = dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))
    held = 0
    for name in _CAPABILITY_SETS:
        held |= int(lines.get(name, "1"), 16)
    users = {int(word) for word in lines.get("Uid", "0").split()}
    return Facts(
        user=0 if 0 in users else min(users),
        capabilities=held.bit_count(),
        no_new_privileges=lines.get("NoNewPrivs") == "1",
        seccomp=lines.get("Seccomp") == str(_SECCOMP_FILTER),
        root_read_only=root_read_only,
        core_dumps=core_limit != 0,
        keys=keys,
        variables=tuple(sorted(name for name, text in environ.items() if holds_key(text))),
    )


def _is_open(key: Path) -> bool:
    try:
        return bool(key.stat().st_mode & 0o077)
    except OSError:
        return False  # whoever needs the file says what is wrong with it


def holds_key(text: str) -> bool:
    """Say whether a variable's value is a private key in PEM, as it is or in base64."""
    if _PEM_KEY in text:
        return True
    for packed in _PEM_BASE64.findall("".join(text.split())):
        if _PEM_KEY.encode() in base64.b64decode(packed[: len(packed) // 4 * 4]):
            return True
    return False


def is_dumpable() -> bool:
    """Say whether a debugger of the same user may attach to this process."""
    return bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


# --- judging ------------------------------------------------------------------------------------


def weaknesses(facts: Facts) -> Iterator[Weakness]:
    """Yield every setting that is weak, each with its cure."""
    if facts.user == 0:
        yield Weakness("user", "it runs as root", 'user: "10001:10001"', "User=fedcare")
    if facts.capabilities:
        yield Weakness(
            "capabilities",
            f"it has or may get {facts.capabilities} capabilities",
            "cap_drop: [ALL]",
            "CapabilityBoundingSet=",
        )
    if not facts.no_new_privileges:
        yield Weakness(
            "no_new_privileges",
            "it may gain privileges",
            'security_opt: ["no-new-privileges:true"]',
            "NoNewPrivileges=yes",
        )
    if not facts.seccomp:
        yield Weakness(
            "seccomp",
            "no seccomp filter",
            "no `seccomp:unconfined`",
            "SystemCallFilter=@system-service",
        )
    if not facts.root_read_only:
        yield Weakness("root", "/ is writable", "read_only: true", "ProtectSystem=strict")
    if facts.core_dumps:
        yield Weakness("core_dumps", "cores are dumped", "ulimits: {core: 0}", "LimitCORE=0")
    for key in facts.keys:
        yield Weakness("keys", f"{key} is open to others", other=f"chmod 600 {key}")
    for name in facts.variables:
        yield Weakness(
            "environment",
            f"the variable {show(name)} holds a private key",
            other="keep keys in files",
        )


def refusal(weak: tuple[Weakness, ...]) -> ConfigError:
    """Return the error that names every weak setting and its cures."""
    cures = {
        "compose": [each.compose for each in weak if each.compose],
        "systemd": [each.systemd for each in weak if each.systemd],
    }
    fixes = [f"{where}: {', '.join(keys)}" for where, keys in cures.items() if keys]
    return ConfigError(
        "CONFINEMENT",
        "confinement: require, but " + "; ".join(each.found for each in weak),
        fix="; ".join(fixes + [each.other for each in weak if each.other]),
    )
