"""The simulation's two jobs: what services read, written once and then left alone."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.certificates import Role
from common.clock import ManualClock
from common.errors import ConfigError, FedError
from common.identity import load_identity
from common.pki import describe
from common.pki_keep import Report
from common.policy import load_policy
from common.site import load_site
from common.site_tables import CsvTable
from common.study import Study, config_hash
from coordinator.config import CoordinatorConfig
from hospital_node.config import NodeConfig
from hospital_node.consent import ConsentRefused, decide
from hospital_node.data.heart import SITES
from hospital_node.data.load import load
from researcher.simulation import Inside, Ports, Written, write_consortium, write_hospitals
from researcher.studies import changed, named, shipped

ADDRESS = "coordinator:8443"
DAY = 86400.0


class Volumes:
    """Empty folders that stand where the mount points will be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock()
        for name in ("ca", "consortium"):
            (root / name).mkdir(mode=0o700)
        for name in ("coordinator", "researcher", *SITES):
            (root / "identity" / name).mkdir(parents=True, mode=0o700)
        for name in SITES:
            (root / "hospitals" / name).mkdir(parents=True, mode=0o700)

    def consortium(self, **ports: str | None) -> tuple[Report, Written]:
        return write_consortium(
            shipped("heart-disease"),
            ca=self.root / "ca",
            identities=self.root / "identity",
            out=self.root / "consortium",
            days=90,
            ports=Ports(**ports),  # type: ignore[arg-type]
            inside=Inside(),
            now_unix=self.clock.unix(),
        )

    def hospitals(self, study: Study | None = None) -> dict[str, tuple[Written, ...]]:
        return write_hospitals(
            study or shipped("heart-disease"),
            identities=self.root / "identity",
            out=self.root / "hospitals",
            address=ADDRESS,
            inside=Inside(),
        )

    def site(self, name: str) -> Path:
        return self.root / "hospitals" / name

    def inodes(self) -> dict[str, int]:
        return {str(p): p.stat().st_ino for p in self.root.rglob("*") if p.is_dir()}

    def files(self) -> dict[str, tuple[int, bytes]]:
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture
def volumes(tmp_path: Path) -> Volumes:
    return Volumes(tmp_path)


@pytest.fixture
def ready(volumes: Volumes) -> Volumes:
    volumes.consortium()
    volumes.hospitals()
    return volumes


def actions(done: dict[str, tuple[Written, ...]]) -> set[str]:
    return {file.action for written in done.values() for file in written}


def test_the_coordinators_file_says_where_its_container_finds_everything(ready: Volumes) -> None:
    config = CoordinatorConfig.read(ready.root / "consortium/coordinator.yaml")
    assert (config.federation, config.listen) == ("heart-network", "0.0.0.0:8443")
    assert config.http == "127.0.0.1:8080"
    assert config.members == SITES
    assert config.state_dir == "/var/lib/fedcare"
    assert config.tls.key == "/etc/fedcare-tls/tls.key"
    assert (config.timing.gather, config.confinement) == (10.0, "require")


def test_the_http_port_may_be_left_out(volumes: Volumes) -> None:
    volumes.consortium(http=None)
    assert CoordinatorConfig.read(volumes.root / "consortium/coordinator.yaml").http is None


def test_everybody_has_a_certificate_of_its_own_role(ready: Volumes) -> None:
    roles = {
        name: load_identity(ready.root / "identity" / name, now_unix=ready.clock.unix())
        for name in ("coordinator", "researcher", *SITES)
    }
    assert roles["researcher"].spiffe.uri == "spiffe://heart-network/researcher/fedcare-demo"
    assert {roles[site].role for site in SITES} == {Role.HOSPITAL}
    (facts,) = describe(ready.root / "identity/coordinator/tls.crt")
    assert set(facts.names) >= {"coordinator", "localhost", "127.0.0.1"}


def test_a_hospitals_files_name_it_its_ca_and_its_table_alone(ready: Volumes) -> None:
    for site in SITES:
        assert {path.name for path in ready.site(site).iterdir()} == {
            "heart.csv", "site.yaml", "policy.yaml", "node.yaml",
        }  # fmt: skip
        node = NodeConfig.read(ready.site(site) / "node.yaml")
        assert (node.state_dir, node.confinement) == ("/var/lib/fedcare", "require")
        policy = load_policy(ready.site(site) / "policy.yaml").value
        assert policy.coordinator.address == ADDRESS
        (ca,) = describe(ready.root / "identity" / site / "ca.crt")
        assert policy.federation.ca_sha256 == ca.sha256
        table = load_site(ready.site(site) / "site.yaml").data[0]
        assert isinstance(table, CsvTable)
        assert (table.name, Path(table.path)) == ("heart", ready.site(site) / "heart.csv")
        load(shipped("heart-disease"), Path(table.path))


def test_the_four_tables_hold_all_920_patients(ready: Volumes) -> None:
    rows = 0
    for site in SITES:
        with (ready.site(site) / "heart.csv").open() as file:
            rows += sum(1 for _ in csv.DictReader(file))
    assert rows == 920


def test_a_policy_allows_the_shipped_study_and_not_another_kind(ready: Volumes) -> None:
    loaded = load_policy(ready.site("va") / "policy.yaml")
    study = shipped("heart-disease")
    decide(study, config_hash(study), loaded.value, loaded.source)
    other = changed(study, {"model": {"kind": "mlp", "hidden": [4]}})
    with pytest.raises(ConsentRefused):
        decide(other, config_hash(other), loaded.value, loaded.source)


def test_both_jobs_again_change_nothing(ready: Volumes) -> None:
    files, inodes = ready.files(), ready.inodes()
    report, file = ready.consortium()
    assert report.idle
    assert file.action == "kept"
    assert actions(ready.hospitals()) == {"kept"}
    assert ready.files() == files
    assert ready.inodes() == inodes


def test_a_changed_file_is_replaced_inside_its_folder(ready: Volumes) -> None:
    inodes = ready.inodes()
    node = ready.site("va") / "node.yaml"
    node.write_text("schema: other\n")
    done = ready.hospitals()
    assert [file.action for file in done["va"]] == ["kept", "kept", "kept", "replaced"]
    assert actions({site: done[site] for site in SITES if site != "va"}) == {"kept"}
    NodeConfig.read(node)
    assert ready.inodes() == inodes


def test_a_new_study_changes_the_policies_and_not_the_tables(ready: Volumes) -> None:
    study = changed(shipped("heart-disease"), {"model": {"kind": "mlp", "hidden": [4]}})
    done = ready.hospitals(study)
    assert [file.action for file in done["va"]] == ["kept", "kept", "replaced", "kept"]
    loaded = load_policy(ready.site("va") / "policy.yaml")
    decide(study, config_hash(study), loaded.value, loaded.source)


def test_a_hospitals_own_table_is_left_alone_and_said(ready: Volumes) -> None:
    table = ready.site("va") / "heart.csv"
    table.write_text("age,num\n50,1\n")
    done = ready.hospitals()
    assert done["va"][0].action == "kept, although it differs from the one shipped"
    assert table.read_text() == "age,num\n50,1\n"


def test_a_study_that_splits_by_a_column_gets_one(volumes: Volumes) -> None:
    volumes.consortium()
    study = shipped("heart-disease-flamby")
    volumes.hospitals(study)
    load(study, volumes.site("cleveland") / "heart.csv")


def test_certificates_past_half_their_life_are_renewed_and_the_policies_stay(
    ready: Volumes,
) -> None:
    ready.clock.advance(46 * DAY)
    report, _ = ready.consortium()
    assert {found.action.value for found in report.identities} == {"renewed"}
    assert actions(ready.hospitals()) == {"kept"}


def test_a_study_of_another_data_set_is_refused(ready: Volumes) -> None:
    with pytest.raises(ConfigError, match="'synthetic'"):
        ready.hospitals(shipped("two-hospitals"))


@pytest.mark.parametrize("ports", [{"listen": "8443"}, {"http": "here"}])
def test_a_bad_address_is_refused_before_a_certificate_is_made(
    volumes: Volumes, ports: dict[str, str | None]
) -> None:
    with pytest.raises(FedError) as caught:
        volumes.consortium(**ports)
    assert caught.value.name == "BAD_VALUE"
    assert not volumes.files()


def test_hospitals_without_certificates_are_refused_with_the_missing_file(
    volumes: Volumes,
) -> None:
    with pytest.raises(ConfigError) as caught:
        volumes.hospitals()
    assert caught.value.name == "FILE_MISSING"
    assert "identity/cleveland/ca.crt" in caught.value.detail
    assert not volumes.files()


def test_an_unknown_study_lists_what_is_shipped() -> None:
    with pytest.raises(ConfigError) as caught:
        named("lungs")
    assert (
        "shipped: heart-disease, heart-disease-flamby, heart-disease-private, "
        in caught.value.detail
    )
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        named("nothing.yaml")


def test_a_folder_named_as_a_shipped_study_is_not_taken_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heart-disease").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named("heart-disease") == shipped("heart-disease")


WITHOUT = """
import sys
for name in ("torch", "polars", "pandas", "matplotlib"):
    sys.modules[name] = None
from common.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("group", ["simulation", "study", "pki"])
def test_the_jobs_run_where_no_polars_and_no_torch_are(volumes: Volumes, group: str) -> None:
    def fedcare(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-c", WITHOUT, *arguments],
            capture_output=True, text=True, check=False, env={**os.environ},
        )  # fmt: skip
        return f"{done.returncode} {done.stderr}"

    root = str(volumes.root)
    identities = ("--identities", f"{root}/identity")
    if group == "simulation":
        jobs = [
            ("consortium", "--ca", f"{root}/ca", *identities, "--out", f"{root}/consortium"),
            ("hospitals", *identities, "--out", f"{root}/hospitals", "--coordinator", ADDRESS),
        ]
        assert [fedcare("simulation", *job) for job in jobs] == ["0 ", "0 "]
    elif group == "study":
        volumes.clock.epoch = time.time()
        volumes.consortium()
        reached = fedcare(
            "study", "run", "heart-disease", "--coordinator", "127.0.0.1:1", "--wait", "0s",
            "--tls", f"{root}/identity/researcher", "--out", f"{root}/results",
        )  # fmt: skip
        assert reached.startswith("2 error FC-2001")
    else:
        assert fedcare("pki", "keep", f"{root}/none.yaml").startswith("4 error FC-1001")
