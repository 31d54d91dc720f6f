"""`pki keep`: what is whole is left alone, what is due is renewed, what is foreign is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from common.certificates import Role
from common.cli import main
from common.clock import ManualClock
from common.documents import dump_yaml, parse_yaml
from common.errors import ConfigError, FedError
from common.identity import load_certificates, load_identity
from common.install import Content, lock, replace_files
from common.pki import CA_DAYS, LEAF_DAYS, create_ca, issue
from common.pki_keep import Action, PkiPlan, Report, keep
from tests.properties.profile import bounded

DAY = 86400.0
IDENTITIES: tuple[dict[str, Any], ...] = (
    {"role": "coordinator", "id": "main", "out": "main", "hosts": ["localhost", "127.0.0.1"]},
    {"role": "hospital", "id": "va", "out": "va"},
    {"role": "researcher", "id": "uni-x", "out": "deep/uni-x"},
)


class Crash(BaseException):
    """The process ends here: no handler of `Exception` sees it."""


class World:
    """A plan, a clock, and what lies in its folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ManualClock()

    def plan(self, **changes: object) -> PkiPlan:
        data: dict[str, object] = {
            "schema": "fedcare.pki/v1",
            "federation": "heart",
            "ca": "ca",
            "identities": list(IDENTITIES),
            **changes,
        }
        path = self.root / "plan.yaml"
        path.write_text(dump_yaml(data))
        return PkiPlan.read(path)

    def keep(self, *, dry_run: bool = False, **changes: object) -> Report:
        return keep(self.plan(**changes), now_unix=self.clock.unix(), dry_run=dry_run)

    def refused(self, **changes: object) -> FedError:
        """Keep, be refused, and find everything as it was."""
        plan = self.plan(**changes)
        before = self.files()
        with pytest.raises(FedError) as caught:
            keep(plan, now_unix=self.clock.unix())
        assert self.files() == before
        return caught.value

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in sorted(self.root.rglob("*")):
            facts = path.stat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (facts.st_mode, facts.st_mtime_ns, data)
        return found

    def usable(self) -> None:
        """Check that every identity is whole, by the rules that services load it by."""
        for entry in IDENTITIES:
            identity = load_identity(self.root / entry["out"], now_unix=self.clock.unix())
            assert identity.spiffe.uri == f"spiffe://heart/{entry['role']}/{entry['id']}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def kept(world: World) -> World:
    world.keep()
    return world


def actions(report: Report) -> list[str]:
    return [found.action.value for found in report.all]


# --- issuing and keeping --------------------------------------------------------------


def test_from_nothing_everything_is_issued_and_usable(world: World) -> None:
    assert actions(world.keep()) == ["issued"] * 4
    world.usable()


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_keys_are_0600_and_certificates_0644_whatever_the_umask(world: World, umask: int) -> None:
    before = os.umask(umask)
    try:
        world.keep()
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(world.root)): path.stat().st_mode & 0o777
        for folder in ("ca", "va")
        for path in (world.root / folder, *(world.root / folder).iterdir())
    }
    assert modes == {
        "ca": 0o700, "ca/ca.crt": 0o644, "ca/ca.key": 0o600,
        "va": 0o700, "va/tls.crt": 0o644, "va/tls.key": 0o600, "va/ca.crt": 0o644,
    }  # fmt: skip


def test_folders_that_cannot_be_renamed_are_filled_in_place(world: World) -> None:
    before = {}
    for name in ("ca", "va", "main"):
        (world.root / name).mkdir(mode=0o700)
        (world.root / name / "lost+found").mkdir()
        before[name] = (world.root / name).stat().st_ino
    world.keep()
    world.usable()
    assert {name: (world.root / name).stat().st_ino for name in before} == before


plans = st.lists(
    st.tuples(st.sampled_from(["hospital", "researcher", "operator"]), st.integers(0, 99)),
    min_size=1,
    max_size=5,
    unique=True,
)


@bounded(25)
@given(entries=plans, days=st.integers(1, 825), pause=st.floats(0, 0.49))
def test_running_twice_changes_nothing(
    entries: list[tuple[str, int]], days: int, pause: float
) -> None:
    identities = [
        {"role": role, "id": f"n{number}", "out": f"{role}/{number}"} for role, number in entries
    ]
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        world.keep(identities=identities, days=days)
        before = world.files()
        world.clock.advance(pause * days * DAY)
        again = world.keep(identities=identities, days=days)
        assert set(actions(again)) == {"kept"}
        after = world.files()
        plan = str(world.root / "plan.yaml")
        assert before.pop(plan)[2] == after.pop(plan)[2]
        assert after == before


def test_one_that_is_added_later_is_issued_and_the_others_stay(kept: World) -> None:
    more = [*IDENTITIES, {"role": "hospital", "id": "zurich", "out": "zurich"}]
    assert actions(kept.keep(identities=more)) == ["kept"] * 4 + ["issued"]


def test_a_dry_run_says_the_same_and_changes_nothing(world: World) -> None:
    world.plan()
    before = world.files()
    planned = world.keep(dry_run=True)
    assert set(world.files()) == set(before)
    assert actions(planned) == actions(world.keep())


# --- renewing -------------------------------------------------------------------------


def test_past_half_its_life_a_leaf_is_issued_again_and_not_before(kept: World) -> None:
    leaf = load_certificates(kept.root / "va/tls.crt")[0]
    half = (leaf.not_valid_before_utc.timestamp() + leaf.not_valid_after_utc.timestamp()) / 2
    kept.clock.advance(half - kept.clock.unix() - 1)
    assert actions(kept.keep()) == ["kept"] * 4
    kept.clock.advance(1)
    report = kept.keep()
    assert actions(report) == ["kept", *["renewed"] * 3]
    assert {found.why for found in report.identities} == {"past half its life"}
    assert {found.days_left(kept.clock.unix()) for found in report.identities} == {90}
    assert actions(kept.keep()) == ["kept"] * 4
    kept.usable()


def test_an_expired_leaf_is_issued_again(kept: World) -> None:
    kept.clock.advance(91 * DAY)
    assert actions(kept.keep()) == ["kept", *["renewed"] * 3]
    kept.usable()


def test_new_hosts_renew_the_coordinator_alone_and_their_order_does_not_matter(
    kept: World,
) -> None:
    main_, *others = IDENTITIES
    turned = {**main_, "hosts": ["127.0.0.1", "localhost"]}
    assert actions(kept.keep(identities=[turned, *others])) == ["kept"] * 4
    more = {**main_, "hosts": ["localhost", "coordinator.example.org"]}
    report = kept.keep(identities=[more, *others])
    assert actions(report) == ["kept", "renewed", "kept", "kept"]
    leaf = load_certificates(kept.root / "main/tls.crt")[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "coordinator.example.org"]


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
def test_a_missing_file_is_mended(kept: World, name: str) -> None:
    (kept.root / "va" / name).unlink()
    report = kept.keep()
    assert actions(report) == ["kept", "kept", "renewed", "kept"]
    assert report.identities[1].why == f"{name} was missing"
    kept.usable()


def test_what_is_kept_needs_no_ca_key_and_what_is_due_does(kept: World) -> None:
    key = kept.root / "ca/ca.key"
    data = key.read_bytes()
    key.unlink()
    assert actions(kept.keep()) == ["kept"] * 4
    kept.clock.advance(60 * DAY)
    error = kept.refused()
    assert error.name == "FILE_MISSING"
    assert str(key) in error.detail
    replace_files(key.parent, {"ca.key": Content(data, 0o600)})
    assert actions(kept.keep()) == ["kept", *["renewed"] * 3]


# --- crashes --------------------------------------------------------------------------


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[int]:
    """Let the process die before the rename number `step`."""
    renames = iter(range(1000))
    real = Path.replace

    def counted(path: Path, target: Path) -> Path:
        if next(renames) == step:
            raise Crash
        return real(path, target)

    monkeypatch.setattr(Path, "replace", counted)
    yield step
    monkeypatch.undo()


@pytest.mark.parametrize("step", range(11))
def test_a_crash_before_any_rename_of_the_first_run_is_healed_by_the_next(
    world: World, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in crash_at(monkeypatch, step):
        with pytest.raises(Crash):
            world.keep()
    world.keep()
    world.usable()
    assert actions(world.keep()) == ["kept"] * 4
    assert not list(world.root.rglob(".*.new"))


@pytest.mark.parametrize("step", range(9))
def test_a_crash_before_any_rename_of_a_renewal_is_healed_by_the_next(
    kept: World, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.clock.advance(50 * DAY)
    for _ in crash_at(monkeypatch, step):
        with pytest.raises(Crash):
            kept.keep()
    kept.keep()
    kept.usable()
    assert actions(kept.keep()) == ["kept"] * 4


def test_a_torn_pair_is_named(kept: World, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.clock.advance(50 * DAY)
    for _ in crash_at(monkeypatch, 2):  # after the coordinator's ca.crt and tls.key
        with pytest.raises(Crash):
            kept.keep()
    report = kept.keep(dry_run=True)
    assert report.identities[0].why == "its key was another certificate's"


def test_a_key_left_by_a_crash_in_the_first_run_becomes_the_cas(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in crash_at(monkeypatch, 1):
        with pytest.raises(Crash):
            world.keep()
    left = (world.root / "ca/ca.key").read_bytes()
    world.keep()
    assert (world.root / "ca/ca.key").read_bytes() == left


def test_a_full_disk_is_said_and_the_next_run_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FedError) as caught:
        world.keep()
    assert caught.value.name == "DISK"
    monkeypatch.undo()
    assert actions(world.keep()) == ["issued"] * 4


# --- refusing -------------------------------------------------------------------------


def test_a_certificate_of_another_ca_is_refused(kept: World) -> None:
    shutil.rmtree(kept.root / "ca")
    create_ca(kept.root / "ca", "heart", now_unix=kept.clock.unix())
    error = kept.refused()
    assert error.name == "OUTPUT_EXISTS"
    assert f"{kept.root / 'main'} holds a ca.crt of another CA" in error.detail
    for entry in IDENTITIES:
        (kept.root / entry["out"] / "ca.crt").unlink()
    error = kept.refused()
    assert f"{kept.root / 'main'} holds a tls.crt of another CA" in error.detail
    assert str(kept.root / "main") in error.fix


def test_a_lost_ca_is_not_replaced_under_certificates_that_live(kept: World) -> None:
    shutil.rmtree(kept.root / "ca")
    error = kept.refused()
    assert error.name == "OUTPUT_EXISTS"
    assert f"Put the CA back into {kept.root / 'ca'}" in error.fix


def test_the_ca_of_another_federation_is_refused(world: World) -> None:
    create_ca(world.root / "ca", "lungs", now_unix=world.clock.unix())
    assert "holds the CA of federation lungs, not of heart" in world.refused().detail


@pytest.mark.parametrize(("role", "name"), [(Role.HOSPITAL, "zurich"), (Role.RESEARCHER, "va")])
def test_a_certificate_of_another_name_is_refused(kept: World, role: Role, name: str) -> None:
    shutil.rmtree(kept.root / "va")
    issue(kept.root / "ca", role, name, now_unix=kept.clock.unix(), out=kept.root / "va")
    error = kept.refused()
    assert error.name == "OUTPUT_EXISTS"
    assert f"{kept.root / 'va'} holds the certificate of spiffe://heart/{role}/{name}" in str(error)


@pytest.mark.parametrize("folder", ["va", "ca"])
def test_a_file_it_does_not_know_is_refused(world: World, folder: str) -> None:
    (world.root / folder).mkdir()
    (world.root / folder / "notes\n.txt").touch()
    error = world.refused()
    assert error.name == "OUTPUT_EXISTS"
    assert str(world.root / folder) in error.detail
    assert r"notes\n.txt" in error.detail


def test_one_wrong_folder_keeps_all_others_from_being_issued(world: World) -> None:
    (world.root / "deep/uni-x").mkdir(parents=True)
    (world.root / "deep/uni-x/thesis.tex").touch()
    world.refused()
    assert not (world.root / "ca").exists()


def test_a_file_in_a_folders_place_is_refused(world: World) -> None:
    (world.root / "va").touch()
    assert world.refused().name == "FILE_MISSING"


def test_a_key_that_others_can_read_is_refused(kept: World) -> None:
    (kept.root / "va/tls.key").chmod(0o644)
    assert kept.refused().name == "KEY_PERMISSIONS"


def test_a_damaged_certificate_is_refused(kept: World) -> None:
    (kept.root / "va/tls.crt").write_text("nonsense")
    assert kept.refused().name == "CERT_INVALID"


def test_a_clock_before_the_certificate_is_refused(kept: World) -> None:
    kept.clock.advance(-DAY)
    error = kept.refused()
    assert error.name == "CLOCK_OFF"
    assert "empty " in error.fix  # the clock may have been ahead then, and be right now


def test_a_ca_that_ends_too_soon_is_refused_before_anything_is_written(kept: World) -> None:
    kept.clock.advance(3600 * DAY)
    error = kept.refused()
    assert error.name == "CERT_INVALID"
    assert "does not cover 90 days" in error.detail


def test_a_second_run_at_the_same_time_is_refused(kept: World) -> None:
    kept.clock.advance(50 * DAY)
    handle = lock(kept.root / "ca")
    assert handle is not None
    try:
        assert kept.refused().name == "STATE_LOCKED"
    finally:
        os.close(handle)
    assert actions(kept.keep()) == ["kept", *["renewed"] * 3]


# --- the plan -------------------------------------------------------------------------


def planned(*entries: dict[str, Any]) -> dict[str, object]:
    return {"identities": list(entries)}


VA = {"role": "hospital", "id": "va", "out": "va"}


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        (planned(), "BAD_VALUE", "identities must have at least 1"),
        (planned(VA, {**VA, "out": "b"}), "DUPLICATE_KEY", "names hospital va twice"),
        (planned(VA, {**VA, "id": "b", "out": "./va"}), "DUPLICATE_KEY", "identities[1].out"),
        (planned({**VA, "out": "ca"}), "DUPLICATE_KEY", "is another's folder"),
        (planned({**VA, "hosts": ["a"]}), "BAD_VALUE", "identities[0].hosts cannot be"),
        (planned({**VA, "role": "coordinator"}), "BAD_VALUE", "needs the DNS names"),
        (planned({**VA, "role": "admin"}), "BAD_VALUE", "identities[0].role must be"),
        (planned({**VA, "id": "../x"}), "BAD_VALUE", "identities[0].id must be"),
        ({"days": 900}, "BAD_VALUE", "days must be at most 825"),
        ({"cas": "x"}, "UNKNOWN_KEY", "did you mean 'ca'"),
    ],
)
def test_a_wrong_plan_is_one_line_with_its_place(
    world: World, changes: dict[str, object], name: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        world.plan(**changes)
    assert caught.value.name == name
    assert words in caught.value.detail
    assert "plan.yaml:" in caught.value.detail


def test_the_runbooks_plan_shows_every_key_and_the_defaults(world: World) -> None:
    page = (Path(__file__).parents[3] / "deploy/RUNBOOK.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(schema: fedcare.pki/v1\n.*?)```", page, re.DOTALL)
    assert found is not None
    path = world.root / "plan.yaml"
    path.write_text(found[1])
    plan = PkiPlan.read(path)
    assert (plan.days, plan.ca_days) == (LEAF_DAYS, CA_DAYS)
    shown = set(parse_yaml(found[1], "plan").data)
    assert shown == {entry.alias or name for name, entry in PkiPlan.model_fields.items()}
    assert actions(keep(plan, now_unix=world.clock.unix())) == ["issued"] * 4


def test_the_command_prints_one_line_for_each_certificate(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.plan()
    path = str(world.root / "plan.yaml")
    assert main(["pki", "keep", path, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was changed: this was a dry run"
    assert main(["pki", "keep", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "CA of heart", "coordinator main", "hospital va", "researcher uni-x",
    ]  # fmt: skip
    assert lines[2] == f"hospital va  issued, 89 days left  {world.root / 'va'}"
    assert main(["pki", "keep", path, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert [entry["action"] for entry in data["identities"]] == [Action.KEPT.value] * 3
    assert data["identities"][1]["days_left"] == 89
