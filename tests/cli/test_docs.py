"""``docs/cli.md`` says what there is, and nothing else."""

import re
import tomllib

import click
import pytest

from agentrun_server.cli import commands
from agentrun_server.cli.dotenv import parse_dotenv
from agentrun_server.cli.settings import SERVER_SETTINGS, TARGET_SETTINGS
from tests.cli.reference import PAGE, between_markers, tables

TEXT = PAGE.read_text(encoding="utf-8")

NAMES = list(commands._COMMANDS)

_SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = {match[1]: match[2] for match in _SECTION.finditer(TEXT)}

_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def options(name: str) -> set[str]:
    """Return the long spellings of a command's options."""
    command = commands.cli.get_command(click.Context(commands.cli), name)
    assert command is not None
    found: set[str] = {"--help"}
    members = command.commands.values() if isinstance(command, click.Group) else ()
    for param in (param for part in (command, *members) for param in part.params):
        if isinstance(param, click.Option):
            found.update(flag for flag in (*param.opts, *param.secondary_opts) if flag.startswith("--"))
    return found


def test_the_tables_of_the_settings_are_up_to_date() -> None:
    assert between_markers(TEXT).strip() == tables().strip(), "run: python -m tests.cli.reference"


def test_there_is_a_section_for_every_command_and_no_other() -> None:
    assert set(SECTIONS) == set(NAMES)
    for name in NAMES:
        assert f"\nagentrun-server {name} " in TEXT


@pytest.mark.parametrize("name", ["run", "demo", "chat", "healthcheck", "keys"])
def test_every_option_of_a_command_is_in_its_section(name: str) -> None:
    missing = {flag for flag in options(name) - {"--help"} if f"`{flag}" not in SECTIONS[name]}
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_every_option_in_a_section_is_one_of_the_command(name: str) -> None:
    unknown = set(_FLAG.findall(SECTIONS[name])) - options(name)
    # `dev` and `config` say which options of `run` they do not have; the page's example shows `--message` elsewhere
    allowed = {"dev": {"--workers", "--reload"}, "version": set[str]()}.get(name, set())
    assert unknown <= allowed


def test_dev_and_config_have_the_options_of_run_they_say() -> None:
    assert options("run") - options("dev") == {"--workers", "--reload"}
    about_target = {flag for setting in TARGET_SETTINGS for flag in setting.flags}
    assert options("run") - options("config") == {"--reload"} | about_target
    assert options("config") - options("run") == {"--json"}


def test_every_variable_of_ours_in_the_page_is_read() -> None:
    known = {variable for name in NAMES for variable in _variables(name)}
    known |= {setting.variable for setting in (*SERVER_SETTINGS, *TARGET_SETTINGS)}
    known |= {"AGENTRUN_API_KEY", "AGENTRUN_TARGET", "AGENTRUN_MAX_CHOICES_FILE"}
    assert set(re.findall(r"\bAGENTRUN_[A-Z_]*[A-Z]\b", TEXT)) <= known


def _variables(name: str) -> set[str]:
    return {"AGENTRUN_" + flag[2:].replace("-", "_").upper() for flag in options(name)}


def test_the_examples_of_files_can_be_read() -> None:
    (env,) = re.findall(r"```sh\n(# a comment\n.*?)```", TEXT, re.DOTALL)
    assert parse_dotenv(env) == {
        "AGENTRUN_PORT": "9000",
        "OPENAI_API_KEY": "taken as it is, # and $ too",
        "GREETING": 'escapes: \n \t " \\ $',
        "COLOUR": "#fff",
    }
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert tomllib.loads(toml)["tool"]["agentrun-server"] == {"app": "my_service.agents:server"}
