"""Studies as the researcher's commands need them: shipped ones, other seeds, fewer rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import researcher
from common.documents import dump_yaml
from common.errors import ConfigError
from common.study import Study, completed, load_study, parse_study


def shipped(name: str) -> Study:
    """Return a study that comes with the product, such as `heart-disease`.

    Raises:
        ConfigError: FILE_MISSING, or what is wrong with it.
    """
    return load_study(Path(researcher.__file__).resolve().parents[1] / "studies" / f"{name}.yaml")


def with_seed(study: Study, seed: int | None) -> Study:
    """Return the study with another training seed; unchanged without one."""
    return study if seed is None else changed(study, {"seed": seed})


def with_rounds(study: Study, rounds: int | None) -> Study:
    """Return the study with another number of rounds; unchanged without one."""
    if rounds is None:
        return study
    federation = {**completed(study)["federation"], "rounds": rounds}
    return changed(study, {"federation": federation})


def changed(study: Study, keys: dict[str, Any]) -> Study:
    """Return the study with some top-level keys replaced, checked anew as a whole.

    Raises:
        ConfigError: the result is not a study.
    """
    data = {**completed(study), **keys}
    return parse_study(dump_yaml({key: value for key, value in data.items() if value is not None}))


def require_positive(value: int | None, option: str, least: int = 1) -> None:
    """Refuse an option's number below `least`.

    Raises:
        ConfigError: BAD_ARGUMENT.
    """
    if value is not None and value < least:
        raise ConfigError("BAD_ARGUMENT", f"{option} must be at least {least}, not {value}")
