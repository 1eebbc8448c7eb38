import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from qvg_engine.version import __version__

CommandLine = Callable[..., Any]


def test_version(cli: CommandLine) -> None:
    result = cli("--version")
    assert (result.code, result.out) == (0, f"qvg-engine {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["nothing", "help"])
def test_help_names_the_commands(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.code == 0
    assert "generate" in result.out
    assert "doctor" in result.out


@pytest.mark.parametrize(
    "option",
    [
        "--prompts-file",
        "--model",
        "--kv-format",
        "--seconds",
        "--num-frames",
        "--seed",
        "--max-streams",
        "--kv-memory",
        "--output-dir",
        "--json",
        "--device",
        "--batch-invariant",
    ],
)
def test_generate_has_the_option(cli: CommandLine, option: str) -> None:
    assert option in cli("generate", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["paint"], "paint"), (["--colour"], "--colour"), (["generate", "--model"], "--model")],
)
def test_usage_errors_are_one_line(cli: CommandLine, arguments: list[str], message: str) -> None:
    result = cli(*arguments)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert result.err.startswith("error: ")
    assert message in result.err


def test_the_module_runs_as_a_program() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "qvg_engine", "generate"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: no prompts")
    assert process.stderr.count("\n") == 1
