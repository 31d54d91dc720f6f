"""The command line: one envelope or one line, the documented exit code, and nothing heavy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from common import cli
from common.cli import EXTRAS, HELP, debug, main, understand
from common.commands import JsonFlag, Outcome, command, group
from common.errors import CATALOGUE, ConnectError, ExitCode, FedError, RoundError
from tests.study_texts import HEART, altered

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]

app = group("Commands for these tests.")


FAULTS: dict[str, BaseException] = {
    "connect": ConnectError("UNREACHABLE", "no answer from coordinator.example.org:443"),
    "deadline": RoundError("ENROLMENT", "2 of 3 hospitals answered"),
    "bug": ValueError("patient 4711 has cholesterol 233"),
    "missing": FileNotFoundError(2, "No such file or directory", "/nowhere/at\nall.yaml"),
    "full": OSError(28, "No space left on device", "/var/lib/x"),
    "port": OSError(98, "Address already in use"),
    "torch": ModuleNotFoundError("No module named 'torch'", name="torch"),
    "interrupt": KeyboardInterrupt(),
    "abort": typer.Abort(),
    "escape": FedError("BAD_VALUE", "value \x1b[31m of a file", fix="do \x1b[0m this"),
}


@app.command()
@command
def act(
    kind: Annotated[str, typer.Argument()] = "",
    *,
    number: Annotated[int, typer.Option(min=1)] = 1,
    as_json: JsonFlag = False,
) -> Outcome:
    """Do what a test asks for."""
    sys.stdout.write("progress that a library printed\n")
    if kind in FAULTS:
        raise FAULTS[kind].with_traceback(None)
    code = ExitCode.WAITING if kind == "wait" else ExitCode.OK
    return Outcome({"number": number, "path": Path("a/b"), "digest": b"\x01\xff"}, "done", code)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = EntryPoint("try", f"{__name__}:app", cli.GROUP)
    monkeypatch.setattr(EntryPoint, "load", _load(EntryPoint.load))
    real = cli._entry_points
    monkeypatch.setattr(cli, "_entry_points", lambda: {**real(), "try": here, **ABSENT})


ABSENT = {"absent": EntryPoint("absent", "fedcare_absent_module:app", cli.GROUP)}


def _load(real: Callable[[EntryPoint], Any]) -> Callable[[EntryPoint], Any]:
    return lambda entry: app if entry.name == "try" else real(entry)


def failure(capsys: Capture) -> dict[str, str]:
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    body = json.loads(out)
    assert list(body) == ["schema", "ok", "error"]
    assert (body["schema"], body["ok"]) == ("fedcare.cli/v1", False)
    assert list(body["error"]) == ["code", "message", "fix"]
    found: dict[str, str] = body["error"]
    return found


def test_success_prints_text_for_people(capsys: Capture) -> None:
    assert main(["try", "act"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "done"


def test_json_prints_one_envelope_and_moves_everything_else_to_stderr(capsys: Capture) -> None:
    assert main(["try", "act", "--number", "3", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "schema": "fedcare.cli/v1",
        "ok": True,
        "data": {"number": 3, "path": "a/b", "digest": "01ff"},
    }
    assert out.count("\n") == 1
    assert "progress" in err


def test_waiting_for_a_person_has_its_exit_code(capsys: Capture) -> None:
    assert main(["try", "act", "wait", "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["ok"] is True


FAILURES = [
    ("connect", 2, "FC-2001"),
    ("deadline", 3, "FC-6005"),
    ("bug", 5, "FC-9001"),
    ("missing", 4, "FC-1001"),
    ("full", 1, "FC-7003"),
    ("port", 4, "FC-2002"),
    ("torch", 4, "FC-1008"),
    ("abort", 1, "FC-6003"),
    ("interrupt", 130, "FC-6003"),
]


@pytest.mark.parametrize(("kind", "exit_code", "code"), FAILURES)
def test_a_failure_is_one_envelope_with_the_documented_exit_code(
    kind: str, exit_code: int, code: str, capsys: Capture
) -> None:
    assert main(["try", "act", kind, "--json"]) == exit_code
    error = failure(capsys)
    assert error["code"] == code
    assert error["fix"]


@pytest.mark.parametrize(("kind", "exit_code", "code"), FAILURES)
def test_a_failure_is_two_lines_for_people_and_no_traceback(
    kind: str, exit_code: int, code: str, capsys: Capture
) -> None:
    assert main(["try", "act", kind]) == exit_code
    err = capsys.readouterr().err
    assert err.startswith(f"error {code} ")
    assert err.splitlines()[1].startswith("fix: ")
    assert len(err.splitlines()) == 2


def test_a_bug_tells_its_place_but_not_its_text(capsys: Capture) -> None:
    main(["try", "act", "bug"])
    err = capsys.readouterr().err
    assert "ValueError at test_cli.py:" in err
    assert "4711" not in err


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_debug_shows_the_traceback_wherever_it_stands(place: int, capsys: Capture) -> None:
    args = ["try", "act", "bug"]
    args.insert(place, "--debug")
    assert main(args) == 5
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "4711" in err
    assert "Traceback" not in out
    assert debug.get() is False


def test_after_two_dashes_nothing_is_a_switch_of_ours(capsys: Capture) -> None:
    assert main(["try", "act", "--", "--debug"]) == 0
    assert main(["try", "act", "--", "--json"]) == 0
    assert "done" in capsys.readouterr().out


def test_control_characters_do_not_reach_the_terminal(capsys: Capture) -> None:
    main(["try", "act", "escape"])
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "\\x1b[31m" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["try", "act", "--nmber", "3"], "No such option"),
        (["try", "act", "--number", "many"], "--number"),
        (["try", "act", "--number", "0"], "--number"),
        (["try", "act", "a", "b"], "extra argument"),
        (["try", "acct"], "Did you mean 'act'?"),
        (["try"], "a command is missing"),
        (["stdy"], "did you mean 'study'?"),
        (["zzzzz"], "there are demo, sim"),
        (["--verbose"], "no such option: --verbose"),
        (["study", "lint"], "Missing argument"),
    ],
)
def test_bad_arguments_exit_with_4(args: list[str], words: str, capsys: Capture) -> None:
    assert main(args) == 4
    err = capsys.readouterr().err
    assert "error FC-1010 BAD_ARGUMENT: " in err
    assert words in err
    assert main([*args, "--json"]) == 4
    assert failure(capsys)["code"] == "FC-1010"


def test_a_command_that_is_not_installed_says_so(capsys: Capture) -> None:
    assert main(["absent"]) == 4
    assert "FC-1008 NOT_INSTALLED: command 'absent'" in capsys.readouterr().err


def test_a_checkout_that_is_not_installed_says_so(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_entry_points", dict)
    assert main(["study"]) == 4
    assert "make install" in capsys.readouterr().err


def test_a_library_of_an_extra_is_named_with_its_extra() -> None:
    error = understand(ModuleNotFoundError("x", name="torch.nn"))
    assert "'torch'" in error.detail
    assert "fedcare[train]" in error.fix


def test_every_extra_that_is_named_exists() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(EXTRAS.values()) <= set(settings["project"]["optional-dependencies"])


def test_every_registered_command_has_its_help_line() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["project"]["entry-points"][cli.GROUP]) == set(HELP)


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_commands_without_importing_them(args: list[str], capsys: Capture) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in HELP)


def test_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedcare {cli.version()}\n"


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_help_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; from common.cli import main; main(['--help']);"
        "heavy = 'typer rich pydantic yaml numpy grpc sqlalchemy torch polars structlog'.split();"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    assert run_python(code).stderr.strip() == "[]"


def test_lint_imports_no_network_and_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(HEART)
    code = (
        "import sys; from common.cli import main; main(['study', 'lint', sys.argv[1]]);"
        "heavy = 'numpy grpc sqlalchemy torch polars structlog'.split();"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    assert run_python(code, str(path)).stderr.strip() == "[]"


@pytest.mark.parametrize("args", [["explain"], ["--help"], ["nonsense", "--json"]])
def test_a_closed_pipe_is_no_bug(args: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from common.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_of_seven_bits_is_no_bug(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(altered(HEART, "Angiographic", "\u5fc3"))
    done = subprocess.run(
        [sys.executable, "-c", "from common.cli import main; main(['study', 'lint', 's.yaml'])"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u5fc3" in done.stdout


# --- explain ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["FC-1004", "fc-1004", "UNKNOWN_KEY", "unknown-key"])
def test_explain_finds_a_code_or_name(word: str, capsys: Capture) -> None:
    assert main(["explain", word, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["code"], data["name"], data["exit_code"]) == ("FC-1004", "UNKNOWN_KEY", 4)


def test_explain_without_a_word_lists_the_whole_catalogue(capsys: Capture) -> None:
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CATALOGUE)


def test_explain_of_nothing_known_suggests_the_nearest(capsys: Capture) -> None:
    assert main(["explain", "UNKNOWN_KYE"]) == 4
    assert "did you mean 'UNKNOWN_KEY'?" in capsys.readouterr().err


ENDLESS = """
import asyncio, signal, sys
from common import cli

async def work():
    try:
        print("working", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleaned", flush=True)

if sys.argv[1] == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
cli._run = lambda args: asyncio.run(work())
sys.exit(cli.main(["x", "--json"]))
"""


@pytest.mark.parametrize("ctrl_c", ["default", "ignored"])
def test_a_command_that_is_asked_to_end_cleans_up_and_says_so(ctrl_c: str) -> None:
    """`ignored` is how a script's background jobs start."""
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, ctrl_c], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        child.terminate()
        cleaned, envelope = child.stdout.read().splitlines()
    assert cleaned == "cleaned"
    assert json.loads(envelope)["error"]["code"] == "FC-6003"
    assert child.returncode == 130


def test_the_signal_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before
