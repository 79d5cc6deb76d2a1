"""The command line as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun_server import __version__
from agentrun_server.cli import commands
from agentrun_server.cli.commands import cli
from tests.cli.processes import command, environment


def test_every_command_is_listed_with_its_purpose() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name in commands._COMMANDS:
        assert f"\n  {name} " in result.output
    assert "..." not in result.output.partition("Commands:")[2]


@pytest.mark.parametrize("name", list(commands._COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: cli {name}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["app:server"], "No such command 'app:server'. To serve it: agentrun-server run app:server"),
        (["app.py"], "No such command 'app.py'. To serve it: agentrun-server run app.py"),
        (["frobnicate"], "No such command 'frobnicate'."),
        (["--nonsense"], "No such option"),
    ],
)
def test_a_mistyped_command_is_answered_with_a_hint(args: list[str], message: str) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("args", [["--version"], ["-V"], ["version"]])
def test_the_version_is_told(args: list[str]) -> None:
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0
    assert result.output.startswith("agentrun-server ")
    assert "unknown" in result.output or __version__ in result.output


def test_version_tells_what_it_runs_on() -> None:
    output = CliRunner().invoke(cli, ["version"]).output
    for name in ("python ", "uvicorn ", "uvloop ", "httptools ", "starlette ", "fastapi ", "pydantic "):
        assert f"\n{name}" in output


def test_the_package_can_be_run(tmp_path: Path) -> None:
    result = command("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("Usage: python -m agentrun_server")


def test_starting_the_command_line_imports_no_framework(tmp_path: Path) -> None:
    code = (
        "import sys; from agentrun_server.cli import commands\n"
        "for name in ('run', 'healthcheck', 'config', 'chat'): commands.cli.get_command(None, name)\n"
        "heavy = [m for m in ('fastapi', 'pydantic', 'httpx2', 'starlette', 'uvicorn') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        timeout=30,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
