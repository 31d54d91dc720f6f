"""deploy/site: what firewall.md and proxy.md foretell is what OpenSSL, nft and gRPC do.

All traffic stays on loopback, between ports that are free.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.pki import Role, create_ca, issue
from tests.e2e.test_readme import commands
from tests.unit.test_site_files import ROOT, SITE

FIREWALL = (SITE / "firewall.md").read_text("utf-8")


def test_the_rules_of_firewall_md_are_nftables(tmp_path: Path) -> None:
    tool = shutil.which("nft")
    if tool is None or os.geteuid() != 0:
        pytest.skip("needs root and nft: apt-get install nftables")
    rules = re.findall(r"^```nft\n(.*?)^```", FIREWALL, re.MULTILINE | re.DOTALL)
    assert len(rules) == 2
    for text in rules:
        path = tmp_path / "rules.nft"
        path.write_text(text.replace('"fedcare" accept', "10001 accept"), "utf-8")
        done = subprocess.run([tool, "-c", "-f", path], capture_output=True, text=True, check=False)
        if "Operation not permitted" in done.stderr or "cache initialization" in done.stderr:
            pytest.skip("the kernel lets nobody check nftables rules here: needs CAP_NET_ADMIN")
        assert done.returncode == 0, done.stderr


# --- firewall.md: what the check with openssl tells ---------------------------------------------


@contextlib.contextmanager
def tls_server(folder: Path) -> Iterator[int]:
    """Serve TLS 1.3 as a coordinator does, with the identity in `folder`; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with (
                        contextlib.suppress(OSError),
                        context.wrap_socket(client, server_side=True) as stream,
                    ):
                        stream.recv(1)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def coordinator(folder: Path, federation: str) -> Path:
    """Make a CA and a coordinator's certificate of it."""
    now = SystemClock().unix()
    if not (folder / "pki").exists():
        create_ca(folder / "pki", federation, now_unix=now)
    out = folder / "coordinator"
    issue(folder / "pki", Role.COORDINATOR, "main", now_unix=now, hosts=["localhost"], out=out)
    return out


def s_client(folder: Path, port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the page's check against a local port, as its own owner instead of with sudo."""
    (line,) = [x for x in commands(FIREWALL) if "s_client" in x]
    line = line.removeprefix("sudo ").replace("coordinator.example.org:8443", f"localhost:{port}")
    env = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        ["/bin/bash", "-c", line],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Return a folder that holds etc/tls as step 3 of install.md leaves it, and the CA."""
    now = SystemClock().unix()
    create_ca(tmp_path / "pki", "heart-network", now_unix=now)
    (tmp_path / "etc").mkdir()
    out = tmp_path / "etc" / "tls"
    issue(tmp_path / "pki", Role.HOSPITAL, "cleveland", now_unix=now, out=out)
    return tmp_path


def test_openssl_finds_the_right_coordinator(hospital: Path) -> None:
    with tls_server(coordinator(hospital, "heart-network")) as port:
        done = s_client(hospital, port)
    assert done.returncode == 0
    row = next(x for x in FIREWALL.splitlines() if "all is well" in x)
    for expected in re.findall(r"`([^`]+)`", row):
        assert expected in done.stdout + done.stderr


def test_openssl_finds_a_box_that_opens_tls_even_if_the_machine_trusts_it(
    hospital: Path, tmp_path: Path
) -> None:
    (tmp_path / "box").mkdir()
    box = coordinator(tmp_path / "box", "heart-network")
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(box / "ca.crt", trusted / "box.pem")
    subprocess.run(["/bin/sh", "-c", "openssl rehash trusted"], cwd=tmp_path, check=True)
    shown = (box / "tls.crt").read_text("utf-8") + (box / "ca.crt").read_text("utf-8")
    for chain in ((box / "tls.crt").read_text("utf-8"), shown):
        (box / "tls.crt").write_text(chain, "utf-8")
        with tls_server(box) as port:
            done = s_client(hospital, port, SSL_CERT_DIR=str(trusted))
        assert done.returncode != 0
        row = next(x for x in FIREWALL.splitlines() if "not this consortium's" in x)
        assert any(text in done.stderr for text in re.findall(r"`(?:verify error:)?([^`]+)`", row))


# --- proxy.md: what the environment does --------------------------------------------------------

_DIAL = """
import sys
import common, grpc
given = [("grpc.http_proxy", sys.argv[2])] if len(sys.argv) > 2 else []
channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(), options=given)
try:
    grpc.channel_ready_future(channel).result(timeout=5)
except grpc.FutureTimeoutError:
    pass
"""

_NAMES = "grpc_proxy https_proxy http_proxy HTTPS_PROXY HTTP_PROXY ALL_PROXY all_proxy no_proxy \
no_grpc_proxy NO_PROXY"


class Ear:
    """A port that keeps the first bytes that anybody sends."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard = b""
        self.event = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            with client:
                client.settimeout(5)
                self.heard = client.recv(4096)
        self.event.set()


VIA, DIRECT = True, False
ENVIRONMENT: list[tuple[str, bool]] = [
    ("https_proxy=http://PROXY", VIA),
    ("http_proxy=http://PROXY", VIA),
    ("grpc_proxy=http://PROXY https_proxy=http://127.0.0.1:1", VIA),
    ("https_proxy=http://PROXY http_proxy=http://127.0.0.1:1", VIA),
    ("https_proxy= http_proxy=http://PROXY", DIRECT),
    ("HTTPS_PROXY=http://PROXY", DIRECT),
    ("HTTP_PROXY=http://PROXY ALL_PROXY=http://PROXY", DIRECT),
    ("https_proxy=PROXY", DIRECT),
    ("https_proxy=http://PROXY no_proxy=127.0.0.1", DIRECT),
    ("https_proxy=http://PROXY no_proxy=10.0.0.0/8,127.0.0.0/8", DIRECT),
    ("https_proxy=http://PROXY no_proxy=0.0.1", DIRECT),
    ("https_proxy=http://PROXY no_proxy=*", VIA),
    ("https_proxy=http://PROXY NO_PROXY=127.0.0.1", VIA),
    ("https_proxy=http://PROXY no_grpc_proxy=other no_proxy=127.0.0.1", VIA),
    ("policy=http://PROXY", VIA),
    ("policy=http://PROXY no_proxy=127.0.0.1", DIRECT),
]
"""Variables, and whether the proxy is asked; `policy` is the channel's own setting."""


@pytest.mark.parametrize(("variables", "via"), ENVIRONMENT)
def test_what_proxy_md_says_of_the_environment(variables: str, via: bool) -> None:
    proxy, target = Ear(), Ear()
    told = dict(pair.split("=", 1) for pair in variables.replace("PROXY", "\0").split())
    told = {k.replace("\0", "PROXY"): v.replace("\0", proxy.address) for k, v in told.items()}
    setting = [told.pop("policy")] if "policy" in told else []
    env = {name: value for name, value in os.environ.items() if name not in _NAMES.split()}
    child = subprocess.Popen(
        [sys.executable, "-c", _DIAL, target.address, *setting],
        cwd=ROOT,
        env={**env, **told},
        stderr=subprocess.DEVNULL,
    )
    try:
        asked, other = (proxy, target) if via else (target, proxy)
        assert asked.event.wait(20), variables
        assert asked.heard.startswith(b"CONNECT " if via else b"\x16\x03"), variables
        assert other.heard == b"", variables
    finally:
        child.kill()
        child.wait()
        for ear in (proxy, target):
            ear.listener.close()


def test_a_password_goes_to_the_proxy_as_basic_authentication() -> None:
    proxy = Ear()
    env = {name: value for name, value in os.environ.items() if name not in _NAMES.split()}
    env["https_proxy"] = f"http://node:p%40ss%3A@{proxy.address}"
    child = subprocess.Popen(
        [sys.executable, "-c", _DIAL, "127.0.0.1:1"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    )
    try:
        assert proxy.event.wait(20)
        assert b"Proxy-Authorization: Basic bm9kZTpwQHNzOg==" in proxy.heard  # node:p@ss:
    finally:
        child.kill()
        child.wait()
        proxy.listener.close()
