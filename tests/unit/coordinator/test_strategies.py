"""Server rules against the papers' algorithms, one value at a time, over several rounds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InternalError
from common.layouts import model_schema
from common.model_file import model_header
from common.secagg import codec
from common.study import Study
from common.vectors import ParameterSchema, TensorSpec, TensorType
from coordinator.aggregate import ModelUpdate, Moments, NextModel, weighted_mean
from coordinator.objects import ObjectStore
from coordinator.run_state import ModelMade, ModelRef, decode_fact, encode_fact
from coordinator.strategies import Adagrad, Adam, Mean, Momentum, Yogi, tensor_rules
from coordinator.strategies.rule import ServerRule
from tests.learning import study

F32 = TensorType.FLOAT32
SCHEMA = ParameterSchema(
    (
        TensorSpec("preprocess.centre", F32, (3,)),
        TensorSpec("layers.0.weight", F32, (5, 3)),
        TensorSpec("norms.0.running_var", F32, (4,)),
        TensorSpec("layers.1.bias", F32, (2,)),
    )
)
RANGES = (1.0, 0.7, 1.0, 3.0)
WEIGHT = 2**20 + 77
ETA, BETA1, BETA2, TAU = 0.05, 0.9, 0.8, 0.01

MLP = "{kind: mlp, hidden: [4], norm: batch}"


def terms(strategy: str, model: str = MLP) -> Study:
    return study(model=model, federation=f"{{strategy: {{{strategy}}}, rounds: 3}}")


def single(value: float) -> float:
    return float(np.float32(value))


class Slow:
    """Algorithm 2 of Reddi et al. 2021, and FedAvgM, for one weight in Python floats."""

    def __init__(self, name: str, weight: float) -> None:
        self.name, self.weight = name, weight
        self.m, self.v = 0.0, single(TAU**2)

    def round(self, delta: float) -> None:
        if self.name == "fedavgm":
            momentum = BETA1 * self.m + delta
            step = ETA * momentum
        else:
            momentum = BETA1 * self.m + (1 - BETA1) * delta
            square = delta * delta
            sign = math.copysign(1.0, self.v - square) if self.v != square else 0.0
            second = {
                "fedadagrad": self.v + square,
                "fedyogi": self.v - (1 - BETA2) * square * sign,
                "fedadam": BETA2 * self.v + (1 - BETA2) * square,
            }[self.name]
            step = ETA * momentum / (math.sqrt(second) + TAU)
            self.v = single(second)
        self.m = single(momentum)
        self.weight = single(self.weight + step)


RULES: dict[str, ServerRule] = {
    "fedavgm": Momentum(ETA, BETA1),
    "fedadagrad": Adagrad(ETA, BETA1, TAU),
    "fedyogi": Yogi(ETA, BETA1, TAU, BETA2),
    "fedadam": Adam(ETA, BETA1, TAU, BETA2),
}


def rules_of(name: str) -> tuple[ServerRule, ...]:
    return (RULES[name], RULES[name], Mean(), RULES[name])


def one_round(
    store: ObjectStore,
    model: ModelRef,
    words: np.ndarray,
    rules: tuple[ServerRule, ...],
    block: int,
) -> NextModel:
    before = model.moments_sha256
    with store.open(model.object_sha256) as reader, store.writer() as writer:
        previous = None if before is None else store.open(before)
        with store.writer() as kept:
            update = ModelUpdate(
                SCHEMA, weighted_mean(RANGES, WEIGHT), reader, writer, None, rules,
                Moments(previous, kept),
            )  # fmt: skip
            for start in range(0, words.size, block):
                later = update.take(start, words[start : start + block])
                assert later is not None
                later()
            return update.finish()


def files(made: NextModel) -> tuple[object, ...]:
    return made.object_sha256, made.model_sha256, made.moments_sha256


def trained(
    folder: Path, name: str, blocks: list[int]
) -> tuple[np.ndarray, list[np.ndarray], list[NextModel], np.ndarray]:
    """Return the first model, the words of each round, what was made, and the last model."""
    rng = np.random.default_rng(3)
    store = ObjectStore(folder)
    first = rng.normal(size=SCHEMA.parameters).astype("<f4")
    head = model_header(SCHEMA)
    address = store.put(head + first.tobytes())
    model, made, sums = ModelRef(address, address), [], []
    for block in blocks:
        words = rng.integers(-(2**20), 2**20, SCHEMA.parameters, dtype=np.int64)
        sums.append(words)
        found = one_round(store, model, words.astype(np.int32), rules_of(name), block)
        made.append(found)
        model = ModelRef(
            found.object_sha256, found.model_sha256, found.rms, moments_sha256=found.moments_sha256
        )
    with store.open(model.object_sha256) as reader:
        last = SCHEMA.flat(reader.read(len(head), SCHEMA.byte_size))
    return first, sums, made, last


@pytest.mark.parametrize("name", RULES)
def test_three_streamed_rounds_are_the_papers_algorithm_value_by_value(
    tmp_path: Path, name: str
) -> None:
    first, sums, made, last = trained(tmp_path, name, [7, 5, 24])
    place = 0
    for tensor, spec in enumerate(SCHEMA.tensors):
        for at in range(place, place + spec.size):
            slow = Slow(name, float(first[at]))
            plain = float(first[at])
            for words in sums:
                delta = float(words[at]) * RANGES[tensor] / WEIGHT
                slow.round(delta)
                plain = single(plain + delta)
            # Constants stay, running statistics are averaged, weights follow the optimiser.
            wanted = (first[at], slow.weight, plain, slow.weight)[tensor]
            assert last[at] == pytest.approx(wanted, rel=2e-6, abs=2e-7)
        place += spec.size
    assert last[:3].tobytes() == first[:3].tobytes()
    means = sums[-1][3:18] * RANGES[1] / WEIGHT
    assert made[-1].rms[1] == pytest.approx(np.sqrt(np.mean(means**2)))


@pytest.mark.parametrize("name", RULES)
def test_block_borders_do_not_matter(tmp_path: Path, name: str) -> None:
    one = trained(tmp_path / "a", name, [24, 24, 24])[2]
    other = trained(tmp_path / "b", name, [1, 5, 11])[2]
    assert [files(made) for made in one] == [files(made) for made in other]


def test_a_voided_round_leaves_what_the_server_remembers(tmp_path: Path) -> None:
    """The same moments, read again for the next try, give the same model."""
    store = ObjectStore(tmp_path)
    address = store.put(model_header(SCHEMA) + bytes(4 * SCHEMA.parameters))
    words = np.arange(SCHEMA.parameters, dtype=np.int32) * 1000
    begun = one_round(store, ModelRef(address, address), words, rules_of("fedadam"), 8)
    model = ModelRef(
        begun.object_sha256, begun.model_sha256, (), moments_sha256=begun.moments_sha256
    )
    with (
        store.open(model.object_sha256) as reader,
        store.writer() as writer,
        store.writer() as kept,
    ):
        assert model.moments_sha256 is not None
        moments = Moments(store.open(model.moments_sha256), kept)
        update = ModelUpdate(
            SCHEMA,
            weighted_mean(RANGES, WEIGHT),
            reader,
            writer,
            None,
            rules_of("fedadam"),
            moments,
        )
        update.take(0, words[:8])  # then a word is out of range: nothing is committed
    again = one_round(store, model, words, rules_of("fedadam"), 5)
    assert files(again) == files(one_round(store, model, words, rules_of("fedadam"), 24))


def test_a_rule_that_remembers_without_a_place_for_it_is_a_mistake(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    address = store.put(model_header(SCHEMA) + bytes(4 * SCHEMA.parameters))
    with store.open(address) as reader, store.writer() as writer, pytest.raises(InternalError):
        ModelUpdate(SCHEMA, weighted_mean(RANGES, 1), reader, writer, None, rules_of("fedadam"))


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.floats(0, 0.99), st.floats(0, 0.99), st.floats(1e-6, 1.0),
)  # fmt: skip
@settings(max_examples=60)
def test_second_moments_stay_positive_and_steps_finite(
    means: list[float], beta1: float, beta2: float, tau: float
) -> None:
    for rule in (Adam(1.0, beta1, tau, beta2), Yogi(1.0, beta1, tau, beta2), Adagrad(1.0, 0, tau)):
        moments = np.array([rule.first])
        for mean in means:
            step = rule.step(np.array([mean]), moments)
            moments = moments.astype(np.float32).astype(np.float64)
            assert np.isfinite(step).all()
            assert moments[0, 1] >= 0


def test_each_strategy_has_its_rule_and_statistics_are_always_averaged() -> None:
    adam = terms("name: fedadam, server_lr: 0.5, beta1: 0.1, beta2: 0.2, tau: 0.3")
    schema = model_schema(adam)
    rules = tensor_rules(adam, schema, survivors=3, hospitals=4)
    by_name = {t.name: rule for t, rule in zip(schema.tensors, rules, strict=True)}
    assert by_name["layers.0.weight"] == Adam(0.5, 0.1, 0.3, 0.2)
    assert by_name["norms.0.weight"] == by_name["layers.0.weight"]
    assert by_name["norms.0.running_var"] == by_name["norms.0.running_mean"] == Mean()

    scaffold = terms("name: scaffold, server_lr: 0.5")
    schema = model_schema(scaffold)
    rules = tensor_rules(scaffold, schema, survivors=3, hospitals=4)
    by_name = {t.name: rule for t, rule in zip(schema.tensors, rules, strict=True)}
    assert by_name["layers.0.weight"] == Mean(0.5)
    assert by_name["control.layers.0.weight"] == Mean(0.75)
    assert tensor_rules(terms("name: fedprox"), model_schema(terms("name: fedprox")),
                        survivors=3, hospitals=4)[3] == Mean()  # fmt: skip


def test_facts_of_models_that_were_written_before_moments_still_read() -> None:
    fact = ModelMade(ModelRef(b"a" * 32, b"b" * 32, (1.0,)))  # type: ignore[arg-type]
    now = encode_fact(fact)
    before = now.replace(b',"moments_sha256":null', b"")
    assert before != now
    assert decode_fact(before) == fact
    with_moments = ModelMade(ModelRef(b"a" * 32, b"b" * 32, (), moments_sha256=b"c" * 32))  # type: ignore[arg-type]
    assert decode_fact(encode_fact(with_moments)) == with_moments
    assert codec.added() == {"added": True}
