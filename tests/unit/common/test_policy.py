"""The hospital's policy: defaults never weaker than the protocol, and no rule ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConfigError, FedError
from common.policy import Policy, load_policy, parse_policy, policy_yaml
from tests.policy_texts import PIN, POLICY, SHORTEST_POLICY
from tests.study_texts import altered

KEY = "ed25519:" + "a7" * 32
ONE = f'{{name: dr-weber, key: "{KEY}"}}'


def policy(old: str = "", new: str = "", text: str = POLICY) -> Policy:
    return parse_policy(altered(text, old, new) if old else text, "policy.yaml").value


def test_the_architecture_pages_policy_reads_as_written() -> None:
    found = policy()
    assert found.site == "cleveland"
    assert found.federation.members == ("cleveland", "hungarian", "switzerland", "va")
    assert found.allow.model_kinds == ("logistic", "mlp", "cox")
    assert (found.require.min_cohort, found.require.min_sites, found.require.colluders) == (3, 3, 1)
    assert found.coordinator.proxy is None
    assert (found.release.min_cell, found.release.site_metrics) == (10, False)


def test_rules_keep_their_lines() -> None:
    loaded = parse_policy(POLICY, "policy.yaml")
    assert loaded.source.where("allow", "purposes") == "policy.yaml:9"
    assert loaded.source.where("require", "colluders") == "policy.yaml:18"


@pytest.mark.parametrize(
    ("members", "colluders"), [(2, 0), (3, 1), (5, 1), (6, 1), (8, 2), (16, 4)]
)
def test_colluders_default_to_the_protocols_rule(members: int, colluders: int) -> None:
    names = ", ".join(["a", *(f"s{i}" for i in range(1, members))])
    found = policy("members: [a, b, c]", f"members: [{names}]", SHORTEST_POLICY)
    assert found.require.colluders == colluders
    assert (found.require.min_cohort, found.require.min_sites) == (3, 3)


def test_two_hospitals_need_their_own_switch() -> None:
    text = altered(SHORTEST_POLICY, "members: [a, b, c]", "members: [a, b]")
    assert policy(text=text).require.min_cohort == 3
    allowed = policy(text=text + "require: {allow_two_party: true}\n").require
    assert (allowed.min_cohort, allowed.min_sites, allowed.colluders) == (2, 2, 0)


def test_what_is_not_listed_is_not_allowed_by_default() -> None:
    allow = policy(text=SHORTEST_POLICY).allow
    assert allow.studies == ()
    assert allow.strategies == ("fedavg",)
    assert allow.weights == ("size_class", "equal")


def approving(value: str) -> Policy:
    text = altered(POLICY, "  colluders: 1\n", f"  colluders: 1\n  approval: {value}\n")
    return parse_policy(text, "policy.yaml").value


def test_without_approvers_nobody_has_to_approve() -> None:
    assert policy().require.approval.approvers == ()
    assert approving("{}") == policy()
    assert approving("{quorum: 1, approvers: [], expires: 90d}") == policy()


def test_approvers_are_read_and_written_as_they_stand() -> None:
    found = approving(
        f'{{quorum: 2, expires: 30d, approvers: [{{name: dr-weber, key: "{KEY}"}},'
        f' {{name: dr-ito, key: "{KEY[:-1]}0"}}]}}'
    )
    rules = found.require.approval
    assert (rules.quorum, rules.expires) == (2, 30 * 86_400)
    assert (rules.key_of("dr-weber"), rules.key_of("dr-rossi")) == (KEY, None)
    assert parse_policy(policy_yaml(found)).value == found


@pytest.mark.parametrize(
    ("value", "name", "words"),
    [
        ("false", "BAD_VALUE", "require.approval must be keys and values"),
        ("{quorum: 0}", "BAD_VALUE", "require.approval.quorum must be at least 1"),
        (f"{{quorum: 2, approvers: [{ONE}]}}", "BAD_VALUE", "but 1 approvers are named"),
        ("{quorum: 2}", "BAD_VALUE", "is 2, but 0 approvers are named"),
        (f"{{approvers: [{ONE}, {ONE}]}}", "DUPLICATE_KEY", "approvers[1].name is 'dr-weber', as"),
        (
            f"{{approvers: [{ONE}, {ONE.replace('weber', 'ito')}]}}",
            "DUPLICATE_KEY",
            "approvers[1].key is 'ed25519:",
        ),
        (f"{{approvers: [{ONE.replace('a7', 'A7')}]}}", "BAD_VALUE", "node approvals key FILE"),
        (
            '{approvers: [{name: a, key: "ed25519:' + "0" * 64 + '"}]}',
            "BAD_VALUE",
            "approvers[0].key is a key under which anybody can sign",
        ),
        ("{approvers: [{name: Dr Weber, key: x}]}", "BAD_VALUE", "approvers[0].name must be 1 to"),
        ("{approvers: [{name: dr-weber}]}", "BAD_VALUE", "'require.approval.approvers[0].key'"),
        ("{approvers: [dr-weber]}", "BAD_VALUE", "must be keys and values"),
        ("{expires: 90}", "BAD_VALUE", "needs a unit"),
        ("{expires: 59m}", "BAD_VALUE", "expires must be at least 3600"),
        ("{expires: 1826d}", "BAD_VALUE", "expires must be at most"),
        ("{approver: []}", "UNKNOWN_KEY", "did you mean 'approvers'?"),
    ],
)
def test_a_wrong_rule_of_approval_is_refused_with_its_line(
    value: str, name: str, words: str
) -> None:
    with pytest.raises(FedError, match=r"policy\.yaml:19: ") as caught:
        approving(value)
    assert caught.value.name == name
    assert words in caught.value.detail
    assert int(caught.value.kind.exit_code) == 4


@pytest.mark.parametrize(
    ("old", "new", "name", "words"),
    [
        ("policy/v1", "policy/v9", "SCHEMA_VERSION", "fedcare.policy/v1"),
        ("colluders: 1", "colluder: 1", "UNKNOWN_KEY", "policy.yaml:18: unknown key"),
        ("  purposes: [research]\n", "", "BAD_VALUE", "key 'allow.purposes' is missing"),
        ("  owners: [uni-x]\n", "", "BAD_VALUE", "must list 'owners' or 'studies'"),
        ("[fedavg, fedprox]", "[fedvag]", "BAD_VALUE", "did you mean 'fedavg'?"),
        ("[logistic, mlp, cox]", "[logistc]", "BAD_VALUE", "did you mean 'logistic'?"),
        ("[size_class, equal]", "[sizes]", "BAD_VALUE", "policy.yaml:14: allow.weights[0]"),
        ("[size_class, equal]", "[equal, equal]", "DUPLICATE_KEY", "twice"),
        (PIN, PIN[:-1], "BAD_VALUE", "fingerprint"),
        (f'"{PIN}"', "12", "BAD_VALUE", "federation.ca_sha256 must be text"),
        ("switzerland, va", "cleveland", "DUPLICATE_KEY", "'cleveland' twice"),
        ("cleveland, hungarian", "hungarian", "BAD_VALUE", "lacks this hospital, 'cleveland'"),
        ("cleveland, hungarian, switzerland, va", "cleveland", "BAD_VALUE", "at least 2"),
        (
            "hungarian, switzerland",
            ", ".join(f"h{place}" for place in range(511)),
            "BAD_VALUE",
            "at most 512 entries",
        ),
        ("org:443", "org", "BAD_VALUE", "coordinator.address must be host:port"),
        ("org:443", "org:0", "BAD_VALUE", "host:port"),
        ("org:443", "org:65536", "BAD_VALUE", "host:port"),
        ("proxy: null", "proxy: socks5://x:1", "BAD_VALUE", "must be http://host:port or null"),
        ("proxy: null", "proxy: http://user:pw@x:1", "BAD_VALUE", "must be http://host:port"),
        ("min_cohort: 3", "min_cohort: 2", "BAD_VALUE", "needs allow_two_party: true"),
        ("min_cohort: 3", "min_cohort: 1", "BAD_VALUE", "at least 2"),
        ("min_sites: 3", "min_sites: 5", "BAD_VALUE", "but the federation has 4 members"),
        ("colluders: 1", "colluders: 3", "BAD_VALUE", "at least 2 must be honest"),
        ("allow_two_party: false", "allow_two_party: no", "BAD_VALUE", "must be true or false"),
        ("min_cell: 10", "min_cell: 0", "BAD_VALUE", "release.min_cell must be at least 1"),
        ("site: cleveland", "site: Cleveland Clinic", "BAD_VALUE", "site must be 1 to 63"),
        ("owners: [uni-x]", "studies: [deadbeef]", "BAD_VALUE", "must be sha256: and the 64"),
    ],
)
def test_a_wrong_policy_is_refused_in_one_line(old: str, new: str, name: str, words: str) -> None:
    with pytest.raises(FedError) as caught:
        policy(old, new)
    assert caught.value.name == name
    assert words in caught.value.detail


@pytest.mark.parametrize("written", ["AB" * 32, "sha256:" + "ab" * 32, ":".join(["AB"] * 32)])
def test_a_fingerprint_may_be_written_as_tools_print_it(written: str) -> None:
    assert policy(PIN, written).federation.ca_sha256 == PIN


@pytest.mark.parametrize(
    ("address", "ok"),
    [("localhost:8443", True), ("[::1]:8443", True), ("10.0.0.1:1", True), ("a b:1", False)],
)
def test_addresses(address: str, ok: bool) -> None:
    if ok:
        assert policy("coordinator.example.org:443", address).coordinator.address == address
    else:
        with pytest.raises(ConfigError):
            policy("coordinator.example.org:443", address)


def test_a_proxy_is_kept_in_one_spelling() -> None:
    assert policy("proxy: null", "proxy: proxy.local:3128").coordinator.proxy == (
        "http://proxy.local:3128"
    )


@pytest.mark.parametrize("text", [POLICY, SHORTEST_POLICY])
def test_the_completed_policy_reads_back_as_the_same(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy_yaml(policy(text=text)))
    assert load_policy(path).value == policy(text=text)
