"""Compile `protos/` before anything else is built; all other metadata is in pyproject.toml.

The generated modules lie beside the .proto files, at the same path as their Python
package (`fedcare.v1`), so no import is ever rewritten. They are git-ignored.

`python setup.py build_protos` does only that; it is what `make protos` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from setuptools import Command, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PROTOS = ROOT / "protos"


def outputs_of(proto: Path) -> tuple[Path, ...]:
    """The three files protoc writes for `proto`."""
    return tuple(
        proto.with_name(proto.stem + suffix) for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    )


def is_stale(protos: list[Path]) -> bool:
    """Whether an output is missing or older than the newest .proto (they import each other)."""
    newest = max(proto.stat().st_mtime_ns for proto in protos)
    return any(
        not output.exists() or output.stat().st_mtime_ns < newest
        for proto in protos
        for output in outputs_of(proto)
    )


def compile_protos() -> None:
    """Run protoc over every .proto when one is newer than its outputs.

    Raises:
        SystemExit: protoc refused a file; its own message went to standard error.
    """
    protos = sorted(PROTOS.rglob("*.proto"))
    if not protos or not is_stale(protos):
        return
    # Imported here: `pip` reads this file's metadata before the build requirements exist.
    import grpc_tools
    from grpc_tools import protoc

    status = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={PROTOS}",
            f"--pyi_out={PROTOS}",
            f"--grpc_python_out={PROTOS}",
            *(str(proto) for proto in protos),
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")


class BuildProtos(Command):
    """Generate `fedcare.v1` beside its .proto files."""

    description = "compile protos/ to Python"
    user_options: ClassVar[list[tuple[str, str, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        """Nothing to set."""

    def finalize_options(self) -> None:
        """Nothing to check."""

    def run(self) -> None:
        """Compile."""
        compile_protos()

    def get_source_files(self) -> list[str]:
        """What an sdist must carry for this step."""
        return [str(proto.relative_to(ROOT)) for proto in sorted(PROTOS.rglob("*.proto"))]


class BuildWithProtos(build):
    """The standard build, with the protos first."""

    sub_commands: ClassVar[list[tuple[str, Callable[[Any], bool] | None]]] = [
        ("build_protos", None),
        *build.sub_commands,
    ]


setup(cmdclass={"build_protos": BuildProtos, "build": BuildWithProtos})
