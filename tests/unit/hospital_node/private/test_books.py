"""The hospital's books: what is charged, when it is refused, and with which arithmetic."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import FedError, Refusal, StateError
from common.ids import RoundNo, RunId
from common.policy import parse_policy
from common.privacy import accountant
from common.privacy.accountant import Rdp, epsilon
from common.study import Study, canonical_json, config_hash
from common.study_privacy import charged, study_cost
from hospital_node.ledger import Heads, Ledger
from hospital_node.ledger_lines import Charge, Entries
from hospital_node.private import second_accountant
from hospital_node.private.books import Books, agreed_datasets, round_cost
from hospital_node.private.limits import Limits, bounds
from hospital_node.store import DecisionRecord, NodeStore
from tests.ledger_world import BEGUN, NODE, open_store
from tests.policy_texts import POLICY
from tests.private_study import header_of, private_study

LIMITS = Limits(3.0, 4.0, 1e-5, "policy.yaml:20", "policy.yaml:21")


def books_of(store: NodeStore, limits: Limits = LIMITS, anchor: Path | None = None) -> Books:
    return Books(store, NODE, limits, store._vault._entropy, lambda: BEGUN, anchor)


def spent(store: NodeStore, dataset: str = "heart", task: str | None = None) -> Rdp:
    return Ledger.open(store.ledgers, NODE, dataset, store, None).spent(task)


def run(books: Books, study: Study, rounds: int, first: int = 1) -> None:
    books.admit(study, accepted=False)
    for r in range(first, first + rounds):
        books.charge(study, header_of(study, r))


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    assert caught.value.name == "BUDGET"
    return caught.value


# --- what is charged --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["patient-distributed", "hospital"])
def test_all_rounds_of_a_study_cost_the_epsilon_that_it_states(tmp_path: Path, mode: str) -> None:
    study = private_study(mode=mode, epsilon=2.0, rounds=6)
    with open_store(tmp_path) as store:
        run(books_of(store), study, 6)
        found = epsilon(spent(store, task=study.id), 1e-5).epsilon
    assert found == pytest.approx(charged(study), rel=1e-9)
    assert 1.99 < found <= 2.0


def test_a_round_is_charged_by_the_noise_that_its_header_orders() -> None:
    """Not by what the study says: z follows from sigma_loc, h and Delta_int."""
    header = header_of(private_study(), 1)
    weaker = replace(header, dp=replace(header.dp, sigma_loc=header.dp.sigma_loc / 2))
    assert round_cost(weaker) > round_cost(header)
    again = replace(header, dp=replace(header.dp, z=header.dp.z / 2))
    assert round_cost(again) > round_cost(header)
    boast = replace(header, dp=replace(header.dp, z=header.dp.z * 2))
    assert round_cost(boast) == round_cost(header)


def test_a_round_is_charged_once_though_asked_for_twice_and_after_a_restart(
    tmp_path: Path,
) -> None:
    study = private_study()
    with open_store(tmp_path) as store:
        books = books_of(store)
        run(books, study, 1)
        books.charge(study, header_of(study, 1))
    with open_store(tmp_path, life=1) as store:
        books_of(store).charge(study, header_of(study, 1))
        ledger = Ledger.open(store.ledgers, NODE, "heart", store, None)
    assert [entry.hd for entry in ledger.charges] == [header_of(study, 1).digest().hex()]
    assert ledger.spent() == round_cost(header_of(study, 1))


def test_a_round_tried_again_under_another_header_is_charged_again(tmp_path: Path) -> None:
    study = private_study(spare=1)
    with open_store(tmp_path) as store:
        books = books_of(store)
        run(books, study, 1)
        books.charge(study, header_of(study, 1, session=0x52))
        assert len(Ledger.open(store.ledgers, NODE, "heart", store, None).charges) == 2


def test_an_entry_says_what_the_cost_follows_from(tmp_path: Path) -> None:
    study = private_study()
    with open_store(tmp_path) as store:
        run(books_of(store), study, 1)
        (entry,) = Ledger.open(store.ledgers, NODE, "heart", store, None).charges
    header = header_of(study, 1)
    assert (entry.time, entry.task, entry.r, entry.mode) == (
        BEGUN,
        "study-a",
        1,
        study.privacy.dp.mode,
    )
    assert (entry.z, entry.p, entry.h) == (header.dp.z, 0.5, 2)
    assert (entry.delta_int, entry.sigma_loc) == (header.dp.delta_int, header.dp.sigma_loc)
    assert entry.session == "51" * 32


# --- when it is refused -----------------------------------------------------------------------


def test_a_study_that_does_not_fit_is_refused_before_it_is_accepted(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        told = refusal(lambda: books_of(store).admit(private_study(epsilon=3.5), accepted=False))
        assert spent(store) == accountant.NOTHING
    assert "limit is 3 at delta 1e-05 (policy.yaml:20: require.dp.epsilon_per_study)" in told.detail


def test_the_arithmetic_of_a_refusal_can_be_done_again(tmp_path: Path) -> None:
    first, second = private_study("study-a", epsilon=3.0), private_study("study-b", epsilon=2.9)
    with open_store(tmp_path) as store:
        books = books_of(store)
        run(books, first, 4)
        told = refusal(lambda: books.admit(second, accepted=False))
        before = spent(store)
    total = accountant.add(before, study_cost(second))
    figures = [epsilon(cost, 1e-5).epsilon for cost in (before, study_cost(second), total)]
    assert told.detail == (
        f"data set heart: epsilon {figures[0]:.4f} is spent, this costs {figures[1]:.4f}, together "
        f"{figures[2]:.4f}; the limit is 4 at delta 1e-05 (policy.yaml:21: "
        "require.dp.epsilon_total)"
    )
    assert figures[2] > 4.0


def test_a_header_is_refused_before_it_would_pass_the_study_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    """A coordinator that goes on beyond the rounds that the noise pays for."""
    study = private_study(rounds=3, spare=1)
    with open_store(tmp_path) as store:
        books = books_of(store)
        run(books, study, 4)
        file = store.ledgers / "heart.jsonl"
        before = file.read_bytes()
        told = refusal(lambda: books.charge(study, header_of(study, 5)))
        assert file.read_bytes() == before
        assert epsilon(spent(store), 1e-5).epsilon <= 1.0
    assert "the limit is 1 at delta 1e-05 (the study: privacy.dp.epsilon)" in told.detail


def test_two_studies_on_one_data_set_share_its_total(tmp_path: Path) -> None:
    limits = replace(LIMITS, epsilon_total=1.3)
    first, second = private_study("study-a"), private_study("study-b")
    with open_store(tmp_path) as store:
        books = books_of(store, limits)
        books.admit(first, accepted=False)
        books.admit(second, accepted=False)  # nothing is spent yet: both may begin
        for r in range(1, 5):
            books.charge(first, header_of(first, r))
        books.charge(second, header_of(second, 1))

        def rest() -> None:
            for r in (2, 3, 4):
                books.charge(second, header_of(second, r))

        told = refusal(rest)
        assert "data set heart" in told.detail
        assert epsilon(spent(store), limits.delta).epsilon <= 1.3


def test_two_data_sets_have_a_total_each(tmp_path: Path) -> None:
    limits = replace(LIMITS, epsilon_total=1.1)
    with open_store(tmp_path) as store:
        books = books_of(store, limits)
        run(books, private_study("study-a", dataset="heart"), 4)
        run(books, private_study("study-b", dataset="lungs"), 4)
        assert spent(store, "heart") == spent(store, "lungs")


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    limits = replace(LIMITS, epsilon_total=1.1)
    with open_store(tmp_path) as store:
        run(books_of(store, limits), private_study("study-a"), 4)
    with open_store(tmp_path, life=1) as store:
        books = books_of(store, limits)
        told = refusal(lambda: books.admit(private_study("study-b"), accepted=False))
    assert "data set heart" in told.detail


@pytest.mark.parametrize("key", ["epsilon_total", "epsilon_per_study"])
def test_a_policy_tightened_between_two_rounds_wins(tmp_path: Path, key: str) -> None:
    """F73: the node's own limits, whatever was accepted under the former ones."""
    study = private_study(rounds=4)
    with open_store(tmp_path) as store:
        run(books_of(store), study, 2)
        now = epsilon(spent(store), 1e-5).epsilon
    with open_store(tmp_path, life=1) as store:
        total = now * 1.01 if key == "epsilon_total" else LIMITS.epsilon_total
        own = now * 1.01 if key == "epsilon_per_study" else LIMITS.epsilon_per_study
        limits = replace(LIMITS, epsilon_total=total, epsilon_per_study=own)
        books = books_of(store, limits)
        books.admit(study, accepted=True)
        told = refusal(lambda: books.charge(study, header_of(study, 3)))
        assert f"require.dp.{key}" in told.detail


def test_weakened_terms_of_one_round_are_charged_and_then_refused(tmp_path: Path) -> None:
    """F73: half the noise costs four times as much; the study's promise ends sooner."""
    study = private_study(rounds=4)
    with open_store(tmp_path) as store:
        books = books_of(store)
        books.admit(study, accepted=False)
        header = header_of(study, 1)
        weak = replace(header, dp=replace(header.dp, sigma_loc=header.dp.sigma_loc / 3))
        refusal(lambda: books.charge(study, weak))
        assert spent(store) == accountant.NOTHING


def test_limits_name_the_lines_of_the_policy() -> None:
    text = POLICY + "  \n"
    loaded = parse_policy(
        text.replace("release:", "  dp: {epsilon_total: 4.0}\nrelease:"), "/etc/fedcare/policy.yaml"
    )
    limits = Limits.of(loaded)
    line = 1 + loaded.source.lines[("require", "dp")] - 1
    assert limits.total_at == f"policy.yaml:{line}"
    assert limits.per_study_at == f"policy.yaml:{line}"
    assert (limits.epsilon_total, limits.epsilon_per_study) == (4.0, 3.0)


def test_whose_limit_is_lower_is_the_one_that_is_named() -> None:
    nothing = Entries()
    study = private_study(epsilon=1.0)
    mine, _ = bounds(study, replace(LIMITS, epsilon_per_study=0.5), nothing, study_cost(study))
    theirs, _ = bounds(study, LIMITS, nothing, study_cost(study))
    assert (mine.rule, mine.holds) == ("require.dp.epsilon_per_study", False)
    assert (theirs.rule, theirs.holds) == ("privacy.dp.epsilon", True)


# --- ledgers that cannot be trusted -----------------------------------------------------------


def agreed(study: Study, *, accepted: bool = True) -> DecisionRecord:
    return DecisionRecord(
        RunId("run-1"), config_hash(study), canonical_json(study), accepted, (), BEGUN
    )


def test_a_data_set_that_a_study_was_accepted_on_has_a_ledger_or_lost_it(tmp_path: Path) -> None:
    """Both file and head are gone; another study comes to the same data set."""
    with open_store(tmp_path) as store:
        study = private_study("study-a")
        run(books_of(store), study, 2)
        store.save_decision(agreed(study))
        for path in store.ledgers.iterdir():
            path.unlink()
        with pytest.raises(StateError) as caught:
            books_of(store).admit(private_study("study-b"), accepted=False)
        assert caught.value.name == "LEDGER_LOST"
        assert list(store.ledgers.iterdir()) == []
        books_of(store).admit(private_study("study-c", dataset="lungs"), accepted=False)


def test_what_was_refused_or_had_no_noise_makes_no_ledger() -> None:
    study = private_study()
    plain = json.loads(canonical_json(study))
    plain["privacy"]["dp"] = {"mode": "none"}
    without = replace(agreed(study), study=json.dumps(plain).encode())
    records = (agreed(study, accepted=False), without, replace(agreed(study), study=b""))
    assert agreed_datasets(records) == frozenset()
    assert agreed_datasets((*records, agreed(study))) == {"heart"}


def test_an_accepted_study_whose_ledger_is_gone_joins_no_round(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        study = private_study()
        with pytest.raises(StateError) as caught:
            books_of(store).charge(study, header_of(study, 1))
        assert caught.value.name == "LEDGER_LOST"


def test_the_anchor_of_the_nodes_file_is_written(tmp_path: Path) -> None:
    anchor = tmp_path / "anchor"
    anchor.mkdir()
    with open_store(tmp_path / "state") as store:
        run(books_of(store, anchor=anchor), private_study(), 2)
    assert len((anchor / "heart.anchor").read_bytes().splitlines()) == 3


def test_a_ledger_is_opened_and_written_by_one_thread_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offer is judged in one thread while a round is made in another."""
    with open_store(tmp_path) as store:
        books, held = books_of(store), list[bool]()
        opened, append = Ledger.open, Ledger.append

        def open_(
            folder: Path, node: str, dataset: str, heads: Heads, begun: int | None, anchor: None
        ) -> Ledger:
            held.append(books._turn.locked())
            return opened(folder, node, dataset, heads, begun, anchor)

        def append_(ledger: Ledger, charge: Charge) -> None:
            held.append(books._turn.locked())
            append(ledger, charge)

        monkeypatch.setattr(Ledger, "open", open_)
        monkeypatch.setattr(Ledger, "append", append_)
        run(books, private_study(), 1)
        assert held == [True, True]


def test_a_list_drawn_for_more_patients_is_not_cut(tmp_path: Path) -> None:
    """One patient would push out another: twice the sensitivity (section 9.3)."""
    study = private_study()
    with open_store(tmp_path) as store:
        books = books_of(store)
        assert len(books.listed(study, "train", np.arange(100))) == 30
        terms = study.privacy.dp.model_copy(update={"max_patients": 20})
        smaller = study.model_copy(
            update={"privacy": study.privacy.model_copy(update={"dp": terms})}
        )
        with pytest.raises(Refusal, match="max_patients"):
            books.listed(smaller, "train", np.arange(100))


def test_a_list_is_drawn_by_nothing_in_the_data_and_holds_nobody_who_came_later(
    tmp_path: Path,
) -> None:
    study, patients = private_study(), np.arange(1000, 1100)
    found = []
    for place in ("one", "two"):
        with open_store(tmp_path / place) as store:
            books = books_of(store)
            drawn = books.listed(study, "train", patients)
            found.append(drawn.tolist())
            gone = drawn[:3]
            left = np.setdiff1d(np.append(patients, [5, 2000]), gone)
            assert books.listed(study, "train", left).tolist() == drawn[3:].tolist()
    assert found[0] != found[1]
    assert all(drawn[-1] > 1030 for drawn in found)


def test_a_vector_too_long_for_the_samplers_reserve_is_refused_and_not_charged(
    tmp_path: Path,
) -> None:
    study = private_study(epsilon=29.0)
    limits = Limits(30.0, 30.0, 1e-5, "p:1", "p:2")
    with open_store(tmp_path) as store:
        books = books_of(store, limits)
        books.admit(study, accepted=False)
        header = header_of(study, 1)
        with pytest.raises(Refusal, match="DP_WEAK"):
            books.charge(study, replace(header, d=2**32, r=RoundNo(2)))
        assert spent(store) == accountant.NOTHING
        books.charge(study, header)


def test_fewer_charges_than_sums_that_others_know_of_stop_the_data_set(tmp_path: Path) -> None:
    study = private_study()
    with open_store(tmp_path) as store:
        books = books_of(store)
        run(books, study, 1)
        books.witnessed({"heart": 1, "lungs": 9})
        books.charge(study, header_of(study, 2))
        books.witnessed({"heart": 3})
        books.witnessed({"heart": 0})  # what was once known is not forgotten
        with pytest.raises(StateError, match="LEDGER_ROLLED_BACK"):
            books.charge(study, header_of(study, 3))


# --- two accountants --------------------------------------------------------------------------


def test_a_wrong_accountant_is_found_before_a_study_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: sampling is squared, so the noise that follows is far too small."""
    real = accountant._sampled
    monkeypatch.setattr(accountant, "_sampled", lambda alpha, e, p: real(alpha, e, p * p))
    accountant.step_rdp.cache_clear()
    try:
        study = private_study()
        with open_store(tmp_path) as store, pytest.raises(FedError) as caught:
            books_of(store).admit(study, accepted=False)
    finally:
        accountant.step_rdp.cache_clear()
    assert caught.value.code == "FC-1106"
    assert re.search(r"charges epsilon 0?1?\.\d+, dp-accounting \d", caught.value.detail)
    assert not list(tmp_path.glob("ledger/*.jsonl"))


def test_the_second_accountant_counts_the_figures_that_a_study_pays_for() -> None:
    study = private_study(more=", evaluation_epsilon: 0.3")
    assert len(second_accountant.spending(study)) == 2
    assert second_accountant.check(study) == pytest.approx(charged(study), rel=1e-9)
    assert charged(study) > 0.99


@pytest.mark.parametrize("factor", [1.02, 0.98, float("nan"), 0.0])
def test_a_percent_is_too_much(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    study = private_study()
    right = second_accountant.check(study)
    monkeypatch.setattr(second_accountant, "charged_again", lambda *_: right * factor)
    with pytest.raises(Refusal) as caught:
        second_accountant.check(study)
    assert caught.value.name == "ACCOUNTANT"
    monkeypatch.setattr(second_accountant, "charged_again", lambda *_: right * 1.005)
    second_accountant.check(study)


def test_without_the_second_accountant_no_study_with_noise_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with open_store(tmp_path) as store, pytest.raises(FedError) as caught:
        books_of(store).admit(private_study(), accepted=False)
    assert caught.value.name == "NOT_INSTALLED"
    assert "fedcare[node]" in caught.value.fix
