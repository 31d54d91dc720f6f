"""Rules about the source tree itself, those that neither ruff nor import-linter can state.

Import contracts stand in pyproject.toml and run in `make lint`; here is what needs a look
into the syntax tree, the proto files, the lock or git's list of files.
"""

from __future__ import annotations

import ast
import builtins
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common import errors

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "coordinator", "hospital_node", "researcher")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Contract patterns whose module comes with a later change; empty this as they appear.
NOT_YET = {"*.privacy"}

# Dotted names that shipped code may not use: each runs code found in data.
LOADS_CODE = re.compile(
    r"""(builtins\.)?(eval|exec|compile|__import__)
      | (pickle|cPickle|_pickle|marshal|shelve|dill|cloudpickle|joblib)(\..*)?
      | torch\.(load|hub\..*|jit\.load)
      | yaml\.(load|load_all|full_load|full_load_all|unsafe_load|unsafe_load_all
              |Loader|FullLoader|UnsafeLoader|CLoader|CFullLoader|CUnsafeLoader)
      | numpy\.load | os\.system | os\.popen""",
    re.VERBOSE,
)
# General-purpose generators: never near a mask, a key or a noise sample.
GENERAL_RANDOM = re.compile(r"(random|numpy\.random|torch\.(manual_seed|rand\w*|normal))(\..*)?")
NEAR_MASKS = ("common/secagg/", "common/privacy/", "common/quantise.py", "common/entropy.py")


def names_used(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported module, imported name and dotted use, with aliases resolved."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                first = item.name.split(".", maxsplit=1)[0]
                aliases[item.asname or first] = item.name if item.asname else first
                yield node.lineno, item.name
        elif isinstance(node, ast.ImportFrom):
            for item in node.names:
                full = f"{node.module}.{item.name}"
                aliases[item.asname or item.name] = full
                yield node.lineno, full
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
            dotted = ast.unparse(node)
            first, dot, rest = dotted.partition(".")
            if first in aliases or hasattr(builtins, first):  # not somebody's own variable
                yield node.lineno, aliases.get(first, first) + dot + rest


def offences(source: str, forbidden: re.Pattern[str]) -> list[str]:
    """Lines of `source` that use a forbidden name."""
    used = names_used(ast.parse(source))
    return sorted({f"line {line}: {name}" for line, name in used if forbidden.fullmatch(name)})


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: needs a clone and git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


# ---------------------------------------------------------------- what tests may leave out


def left_out(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, call, reason) of every test that may be skipped."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if (call := node.func.attr) not in ("skip", "skipif", "importorskip"):
            continue
        given = [word.value for word in node.keywords if word.arg == "reason"]
        given += node.args[:1] if call == "skip" else []
        yield node.lineno, call, ast.unparse(given[0]) if given else ""


def test_a_test_that_is_left_out_says_what_is_missing_and_how_to_get_it() -> None:
    how = re.compile(r"install|needs|no FEDCARE_")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for line, call, reason in left_out(path.read_text("utf-8")):
            said = how.search(reason) if call != "skip" else reason
            assert said, f"{relative(path)}:{line}: {call} without a reason that helps"


# ---------------------------------------------------------------- what code may use


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "import numpy as np\nnp.load('x')",
    ],
)
def test_the_check_sees_every_way_to_load_code(source: str) -> None:
    assert offences(source, LOADS_CODE)


@pytest.mark.parametrize(
    "source",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import yaml\nyaml.safe_load('x')",
        "import yaml\nclass Strict(yaml.SafeLoader): ...",
        "import json\njson.load(f)",
        "pickle = jar.lid\npickle.load()",
        "from safetensors.numpy import load",
    ],
)
def test_the_check_lets_safe_code_pass(source: str) -> None:
    assert offences(source, LOADS_CODE) == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_shipped_code_never_loads_code_from_data(path: Path) -> None:
    assert offences(path.read_text(), LOADS_CODE) == []


@pytest.mark.parametrize("source", ["import random", "import numpy as np\nnp.random.default_rng()"])
def test_the_check_sees_general_purpose_randomness(source: str) -> None:
    assert offences(source, GENERAL_RANDOM)


def test_no_general_purpose_randomness_near_masks_and_noise() -> None:
    near = [path for path in SOURCES if relative(path).startswith(NEAR_MASKS)]
    assert near
    found = {relative(path): offences(path.read_text(), GENERAL_RANDOM) for path in near}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_in_common_only_transport_speaks_grpc() -> None:
    grpc = re.compile(r"grpc(\..*)?|fedcare\.v1\.\w+_pb2_grpc(\..*)?")
    outside = [
        path
        for path in (ROOT / "common").rglob("*.py")
        if not relative(path).startswith("common/transport/")
    ]
    found = {relative(path): offences(path.read_text(), grpc) for path in outside}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_input_check_is_an_assert() -> None:
    # Python -O removes asserts; ruff's S101 says the same, this holds without ruff.
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_every_module_opens_by_saying_what_it_is() -> None:
    silent = [
        relative(path)
        for path in SOURCES
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_every_import_contract_covers_a_module() -> None:
    modules = {relative(path).removesuffix(".py").removesuffix("/__init__") for path in SOURCES}
    modules |= {relative(path.parent) for path in SOURCES}
    patterns = {
        pattern
        for contract in SETTINGS["tool"]["importlinter"]["contracts"]
        for pattern in contract.get("source_modules", [])
    }
    empty = {
        pattern
        for pattern in patterns - NOT_YET
        if not any(Path(module).match(pattern.replace(".", "/")) for module in modules)
    }
    assert empty == set()


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = ("torch", "polars", "pandas", "numpy", "sqlalchemy", "grpc", "pydantic", "matplotlib")
    code = f"import sys, common.cli; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# ---------------------------------------------------------------- the error catalogue


def test_every_catalogue_row_has_its_own_name_and_code() -> None:
    rows = errors._ROWS
    assert [name for name, n in Counter(row.name for row in rows).items() if n > 1] == []
    assert [code for code, n in Counter(row.code for row in rows).items() if n > 1] == []
    assert len(errors.CATALOGUE) == len(errors.BY_CODE) == len(rows)


def test_codes_and_names_have_the_documented_form() -> None:
    for row in errors.CATALOGUE.values():
        assert re.fullmatch(r"FC-[1-79]\d{3}", row.code), row.code
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", row.name), row.name


# ---------------------------------------------------------------- the wire


@pytest.mark.parametrize("path", PROTOS, ids=relative)
def test_every_bytes_field_says_what_it_holds(path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = [
        f"line {number}: {line.strip()}"
        for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), start=1)
        if re.match(r"\s*(repeated\s+|optional\s+)?bytes\s+\w+\s*=", line)
        and "//" not in line
        and not before.strip().startswith("//")
    ]
    assert bare == []


@pytest.mark.parametrize("path", PROTOS, ids=relative)
def test_every_enum_starts_with_unspecified(path: Path) -> None:
    for name, first in re.findall(
        r"enum\s+(\w+)\s*\{\s*(?://[^\n]*\s*)*(\w+)\s*=\s*0", path.read_text()
    ):
        assert first.endswith("_UNSPECIFIED"), f"{name}: {first}"


@pytest.mark.parametrize("path", PROTOS, ids=relative)
def test_the_package_is_the_folder(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT / "protos").parts)
    assert f"package {package};" in path.read_text()


def test_no_two_methods_share_a_request_or_a_response() -> None:
    signature = re.compile(
        r"rpc\s+\w+\s*\((?:stream\s+)?(\w+)\)\s*returns\s*\((?:stream\s+)?(\w+)\)"
    )
    used = Counter(
        name for path in PROTOS for pair in signature.findall(path.read_text()) for name in pair
    )
    assert [name for name, n in used.items() if n > 1] == []


# ---------------------------------------------------------------- the repository


def test_nothing_generated_secret_or_belonging_to_a_patient_is_committed() -> None:
    never = re.compile(
        r".*_pb2(_grpc)?\.pyi?|.*\.(data|pem|key|p12|db|sqlite|safetensors|pt|pkl|npz|parquet)"
        r"|.*heart.*\.csv|(.*/)?(\.venv|build|dist|__pycache__)/.*"
    )
    assert [name for name in map(relative, tracked_files()) if never.fullmatch(name)] == []


def test_no_path_of_somebodys_machine_is_committed() -> None:
    machine = re.compile(r"(?<![\w./])/(?:root|home|Users)/[\w.]+")
    found = [
        relative(path)
        for path in tracked_files()
        if path.is_file() and machine.search(path.read_text(errors="ignore"))
    ]
    assert found == []


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_the_lock_pins_every_requirement_within_its_bounds() -> None:
    project = SETTINGS["project"]
    stated = [
        *SETTINGS["build-system"]["requires"],
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    pins = locked()
    for requirement in map(Requirement, stated):
        name = canonicalize_name(requirement.name)
        if name not in {"fedcare", "torch"}:
            assert name in pins, f"{name} is not in requirements.lock: run `make lock`"
            assert requirement.specifier.contains(pins[name]), f"{requirement}: {pins[name]}"


def test_torch_is_pinned_apart_within_its_bounds() -> None:
    lines = (ROOT / "requirements-torch.txt").read_text().splitlines()
    (pin,) = (Requirement(line) for line in lines if line and not line.startswith("#"))
    (stated,) = (
        requirement
        for requirement in map(Requirement, SETTINGS["project"]["optional-dependencies"]["train"])
        if requirement.name == "torch"
    )
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert stated.specifier.contains(exact.version)
    assert "torch" not in locked()


def test_the_lock_has_hashes_and_names_no_index_or_folder() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked())
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.findall(r"--(?:index-url|extra-index-url|find-links)|file:|@\s", text) == []
