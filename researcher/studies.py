"""Studies as the researcher's commands need them: shipped ones, other seeds, fewer rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import researcher
from common.documents import dump_yaml
from common.errors import ConfigError
from common.study import Study, completed, load_study, parse_study
from common.text import nearest, show

_FOLDER: Final = Path(researcher.__file__).resolve().parents[1] / "studies"


def shipped(name: str) -> Study:
    """Return a study that comes with the product, such as `heart-disease`.

    Raises:
        ConfigError: FILE_MISSING, or what is wrong with it.
    """
    return load_study(_FOLDER / f"{name}.yaml")


def named(text: str) -> Study:
    """Return the study of a file, or of a shipped study's bare name.

    What is no path (no such file, no slash in it, no `.yaml` at its end) is a name; a folder
    of that name, such as a model's, does not count.

    Raises:
        ConfigError: FILE_MISSING, which for a name lists what there is; or what is wrong
            with the study.
    """
    path = Path(text)
    if path.is_file() or "/" in text or text.endswith((".yaml", ".yml")):
        return load_study(path)
    names = sorted(file.stem for file in _FOLDER.glob("*.yaml"))
    if text not in names:
        guess = nearest(text, names)
        hint = f"did you mean '{guess}'?" if guess else f"shipped: {', '.join(names)}"
        raise ConfigError(
            "FILE_MISSING",
            f"there is no file and no shipped study {show(text)}; {hint}",
            fix="Give a study's path, or the name of a shipped one.",
        )
    return shipped(text)


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


def require_agreed_epsilon(study: Study) -> None:
    """Refuse a study with differential privacy on whose epsilon two accountants do not agree.

    Every hospital refuses it too; here it is said before anything is built.

    Raises:
        Refusal: ACCOUNTANT. ConfigError: NOT_INSTALLED.
    """
    if study.privacy.dp.on:
        from hospital_node.private import second_accountant  # it brings numpy

        second_accountant.check(study)
