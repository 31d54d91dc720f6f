"""The sample files load as they are, and the full ones show every key with its default."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from common.config import Loaded, Section
from common.policy import Policy, load_policy
from common.site import Site, load_site
from common.study import Study, load_study
from coordinator.config import CoordinatorConfig
from hospital_node.config import NodeConfig

CONFIG = Path(__file__).parents[2] / "deploy" / "config"

LOADERS: dict[str, tuple[type[Section], Callable[[Path], object]]] = {
    "coordinator.yaml": (CoordinatorConfig, CoordinatorConfig.read),
    "node.yaml": (NodeConfig, NodeConfig.read),
    "policy.yaml": (Policy, load_policy),
    "site.yaml": (Site, load_site),
    "study.yaml": (Study, load_study),
}

Keys = dict[str, Any]

OTHER_CHOICES = {
    "column",  # split: {column: ..}
    "size",  # model: {kind: vector, size: ..}
    "time",  # target: {type: survival, ..}, which no version runs yet
    "event",
}


@pytest.fixture(params=["basic", "full"])
def samples(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one set, with the table that its site manifest names."""
    name: str = request.param
    folder = tmp_path / name
    shutil.copytree(CONFIG / name, folder)
    (folder / "cleveland.csv").write_text("age,sex,num\n60,1,0\n", encoding="utf-8")
    return folder


def test_every_sample_loads(samples: Path) -> None:
    assert sorted(path.name for path in samples.glob("*.yaml")) == sorted(LOADERS)
    for name, (_, load) in LOADERS.items():
        load(samples / name)


def sections(kind: object) -> Iterator[type[BaseModel]]:
    """Yield every schema class that an annotation speaks of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for field in kind.model_fields.values():
            yield from sections(field.annotation)
            for extra in field.metadata:
                yield from sections(extra)
    for part in get_args(kind):
        yield from sections(part)


@pytest.mark.parametrize("name", LOADERS)
def test_full_samples_mention_every_key_of_their_schema(name: str) -> None:
    text = (CONFIG / "full" / name).read_text(encoding="utf-8")
    for section in sections(LOADERS[name][0]):
        for field_name, field in section.model_fields.items():
            key = field.alias or field_name
            if key not in OTHER_CHOICES:
                assert re.search(rf"\b{key}:", text), f"{name} lacks {section.__name__}.{key}"


def test_the_walk_finds_the_schemas_inside_unions() -> None:
    names = {section.__name__ for section in sections(Study)}
    assert {"Feature", "BinaryTarget", "RandomSplit", "MlpModel", "SecureAggregation"} <= names


NOT_DEFAULTS: dict[str, set[tuple[str, ...]]] = {
    "policy.yaml": {("allow", "owners")},
    "study.yaml": {("target",), ("model",)},
}
"""Keys that only other keys' values make required."""


@pytest.mark.parametrize("name", ["coordinator.yaml", "node.yaml", "policy.yaml", "study.yaml"])
def test_values_that_a_full_sample_calls_defaults_are_the_defaults(
    name: str, tmp_path: Path
) -> None:
    """Leaving out a key that has a default gives the same file."""
    text = (CONFIG / "full" / name).read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    _, load = LOADERS[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    whole = value_of(load(path))
    for section, keys in optional_keys(LOADERS[name][0], data):
        for key in keys:
            if (*section, key) in NOT_DEFAULTS.get(name, set()) or section[:1] == ("features",):
                continue
            path.write_text(yaml.safe_dump(without(data, (*section, key))), encoding="utf-8")
            assert value_of(load(path)) == whole, (
                f"{name}: {'.'.join((*section, key))} is not the default"
            )


def value_of(loaded: object) -> object:
    """Return the section itself where a loader returns it with its lines."""
    return loaded.value if isinstance(loaded, Loaded) else loaded


def optional_keys(
    kind: type[BaseModel], data: Keys, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield each section's path with those of its keys that have a default."""
    names = {field.alias or name: field for name, field in kind.model_fields.items()}
    yield (
        path,
        [
            key
            for key in data
            if names[key].default is not PydanticUndefined or names[key].default_factory is not None
        ],
    )
    for key, value in data.items():
        if isinstance(value, dict):
            inner = [
                one
                for one in sections(names[key].annotation)
                if set(value) <= {f.alias or n for n, f in one.model_fields.items()}
            ]
            if inner:
                yield from optional_keys(inner[0], value, (*path, key))


def without(data: Keys, path: tuple[str, ...]) -> Keys:
    """Return a copy that lacks one key."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in data.items() if key != first}
    return {**data, first: without(data[first], tuple(rest))}
