"""The coordinator's file: how many hospitals it takes, and why no more."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from common.certificates import to_der
from common.errors import ConfigError, ExitCode
from common.ids import ConfigHash, Epoch, HeaderDigest, NodeId, RoundNo, Sha256
from common.secagg.helpers import helper_count
from common.secagg.messages import KeyAdvert, Roster, SealedShares, UploadEnd
from common.site import MAX_SITES
from common.study import parse_study
from common.transport.options import MAX_MESSAGE_BYTES
from common.wire import encode_coordinator, encode_upload
from coordinator.config import CoordinatorConfig
from researcher.local import FederationPlan, SitePlan, build, write
from tests.certificate_factory import Spec, make, new_ca
from tests.federation import pattern_study

LONGEST = "x" * 63
FEDERATION = LONGEST


def node(place: int) -> NodeId:
    return NodeId(f"spiffe://{FEDERATION}/hospital/{place:063d}")


def roster(members: int) -> int:
    """Return the bytes of the roster of so many hospitals, with every name at its longest."""
    # One certificate for all: only its length counts here.
    chain = (to_der(make(Spec(uris=(node(0),), common_name=LONGEST), new_ca(LONGEST))),)
    adverts = tuple(
        KeyAdvert(
            id=node(place),
            federation=FEDERATION,
            task=LONGEST,
            epoch=Epoch(2**40),
            x25519_pub=bytes(32),
            mlkem_pub=bytes(1184),
            ed25519_pub=bytes(32),
            config_hash=ConfigHash(bytes(32)),
            not_before=2**40,
            not_after=2**40,
            cert_chain=chain,
            sig=bytes(72),
        )
        for place in range(members)
    )
    return encode_coordinator(LONGEST, Roster(adverts, RoundNo(2**40))).ByteSize()


def upload_end(members: int) -> int:
    """Return the bytes of the message that ends an upload among so many hospitals."""
    bundle = bytes(33 * members + 16)
    helpers = range(1, helper_count(members) + 1)
    end = UploadEnd(
        HeaderDigest(bytes(32)),
        Sha256(bytes(32)),
        Sha256(bytes(32)),
        tuple((node(place), bytes(16)) for place in range(1, members)),
        tuple(SealedShares(node(place), bytes(12), bundle) for place in helpers),
        bytes(64),
    )
    return encode_upload(end).ByteSize()


@pytest.mark.parametrize("size_of", [roster, upload_end])
def test_what_grows_with_the_members_fits_a_message_at_the_limit(size_of: object) -> None:
    assert callable(size_of)
    assert size_of(MAX_SITES) <= MAX_MESSAGE_BYTES
    assert size_of(2 * MAX_SITES) > MAX_MESSAGE_BYTES


def file_of(folder: Path, members: int) -> Path:
    path = folder / "coordinator.yaml"
    names = ", ".join(f"h{place}" for place in range(members))
    path.write_text(
        f"schema: fedcare.coordinator/v1\nfederation: heart\nmembers: [{names}]\n", encoding="utf-8"
    )
    return path


def test_a_federation_has_two_to_512_members(tmp_path: Path) -> None:
    for members in (2, MAX_SITES):
        assert len(CoordinatorConfig.read(file_of(tmp_path, members)).members) == members
    for members, words in ((1, "at least 2"), (MAX_SITES + 1, "at most 512 entries")):
        with pytest.raises(ConfigError, match=words) as refused:
            CoordinatorConfig.read(file_of(tmp_path, members))
        assert refused.value.name == "BAD_VALUE"


def with_http(folder: Path, http: str | None) -> Path:
    path = file_of(folder, 3)
    line = "" if http is None else f"http: {http}\n"
    path.write_text(path.read_text(encoding="utf-8") + line, encoding="utf-8")
    return path


def test_health_and_metrics_are_on_loopback_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    assert CoordinatorConfig.read(with_http(tmp_path, None)).http == "127.0.0.1:8080"
    assert CoordinatorConfig.read(with_http(tmp_path, "null")).http is None
    assert CoordinatorConfig.read(with_http(tmp_path, '"0.0.0.0:9"')).http == "0.0.0.0:9"
    with pytest.raises(ConfigError, match="http must be host:port"):
        CoordinatorConfig.read(with_http(tmp_path, '"8080"'))


def test_a_taken_http_port_is_named_before_anything_is_recovered(tmp_path: Path) -> None:
    study = parse_study(pattern_study(size=8, rounds=1, deadline="60s"))
    plan = FederationPlan(tmp_path / "f", "heart", study, [SitePlan("a"), SitePlan("b")])
    build(plan, "127.0.0.1:0")
    path = plan.coordinator_folder / "coordinator.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        write(path, {**data, "http": f"127.0.0.1:{port}"})
        done = subprocess.run(
            [sys.executable, "-P", "-m", "common.cli", "coordinator", "serve", "--config", path],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert done.returncode == ExitCode.BAD_INPUT
    (line,) = (line for line in done.stderr.splitlines() if "service.failed" in line)
    assert "FC-2002" in line
    assert f"http: 127.0.0.1:{port} is taken" in line
    assert "set `http` to another port" in line
    assert "service.started" not in done.stderr
    assert not (plan.coordinator_folder / "state" / "address").exists()
