"""Looks at commands of the documentation without running them."""

import os
import re
import shlex
from collections.abc import Sequence

import click

from agentrun_server.cli.commands import cli
from agentrun_server.cli.settings import NETWORK_SETTINGS, SERVER_SETTINGS, TARGET_SETTINGS
from tests.docs.markdown import ROOT

__all__ = ["VARIABLES", "check_command"]

_OTHERS = frozenset(
    {"cd", "git", "pip", "npm", "python", "python3", "uv", "source", "export", "kill", "nginx", "apt", "sudo", "ls"}
)
"""Commands that are not ours."""

_MORE_VARIABLES = frozenset({"AGENTRUN_API_KEY", "AGENTRUN_HOME", "AGENTRUN_TARGET", "AGENTRUN_TEST_CACHE"})
VARIABLES = _MORE_VARIABLES | {setting.variable for setting in (*NETWORK_SETTINGS, *TARGET_SETTINGS, *SERVER_SETTINGS)}


def check_command(line: str, where: str) -> None:
    """Raise `AssertionError` when a command of ours in `line`, an option or a variable of it does not exist."""
    for variable in re.findall(r"\bAGENTRUN_[A-Z_]+", line):
        assert variable.removesuffix("_FILE") in VARIABLES, f"{where}: there is no {variable}"
    for command in re.split(r"\s*(?:&&|\|\||[|;&])\s*", line):
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            _check_words(words, where)


def _check_words(words: Sequence[str], where: str) -> None:
    name = words[0].removeprefix(".venv/bin/")
    if name == "agentrun-server":
        _check_options(cli, words[1:], where)
    elif name == "uvicorn":
        import uvicorn

        _check_options(uvicorn.main, words[1:], where)
    elif name.startswith(("scripts/", ".ci/", "benchmarks/")):
        assert os.access(ROOT / name, os.X_OK), f"{where}: {name} cannot be run"
    else:
        assert name in _OTHERS, f"{where}: nobody knows the command {name!r}"


def _check_options(command: click.Command, words: Sequence[str], where: str) -> None:
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        assert below is not None, f"{where}: there is no command {words[0]!r}"
        command, words = below, words[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    for word in words:
        if re.match(r"--?\w", word):
            assert word.partition("=")[0] in known, f"{where}: {command.name} has no option {word}"
