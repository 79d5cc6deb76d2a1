"""Flags, variables, ``.env``: each setting has all three, and the right one wins."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from agentrun_server.cli.config import config_command
from agentrun_server.cli.run import dev_command, run_command
from agentrun_server.cli.settings import (
    _DESCRIPTIONS,
    NETWORK_SETTINGS,
    SERVER_SETTINGS,
    TARGET_SETTINGS,
    Setting,
    apply,
    origin_of,
    read_env_file,
    resolve,
    value_text,
)
from agentrun_server.config import ServerConfig
from agentrun_server.errors import ConfigurationError

EVERY = (*NETWORK_SETTINGS, *TARGET_SETTINGS, *SERVER_SETTINGS)
BY_NAME = {setting.name: setting for setting in EVERY}


def effective(*args: str) -> dict[str, dict[str, Any]]:
    """Return what ``config --json`` says with these flags."""
    result = CliRunner().invoke(config_command, ["--json", *args])
    assert result.exit_code == 0, result.output
    shown: dict[str, dict[str, Any]] = json.loads(result.stdout)
    return shown


# --- completeness ---------------------------------------------------------------------------------


def test_every_field_of_the_server_config_is_a_flag_of_run() -> None:
    fields = {f.name for f in dataclasses.fields(ServerConfig) if "parse" in f.metadata}
    assert fields == {setting.name for setting in SERVER_SETTINGS}
    secrets = {setting.name for setting in SERVER_SETTINGS if setting.secret}
    assert fields - {param.name for param in run_command.params} == secrets, "command lines are no place for secrets"
    assert fields - {param.name for param in dev_command.params} == secrets


def test_every_field_of_the_server_config_is_described() -> None:
    assert set(_DESCRIPTIONS) == {setting.name for setting in SERVER_SETTINGS}


_WITH_DEFAULT = [setting for setting in EVERY if setting.name not in {"uds", "ssl_certfile", "ssl_keyfile"}]


@pytest.mark.parametrize("setting", _WITH_DEFAULT, ids=lambda setting: setting.name)
def test_a_default_can_be_written_and_read_back(setting: Setting) -> None:
    assert setting.parse(value_text(setting.default)) == setting.default


@pytest.mark.parametrize(("value", "text"), [(2592000.0, "2592000"), (0.5, "0.5"), (30.0, "30"), (None, "none")])
def test_numbers_are_written_out(value: float | None, text: str) -> None:
    assert value_text(value) == text


def test_no_two_settings_share_a_flag() -> None:
    flags = [flag for setting in EVERY for flag in setting.flags]
    assert len(flags) == len(set(flags))


# --- which one wins -------------------------------------------------------------------------------------


def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("AGENTRUN_MAX_CHOICES=3\nAGENTRUN_MAX_MESSAGES=30\nAGENTRUN_QUEUE_TIMEOUT=3\n")
    monkeypatch.setenv("AGENTRUN_MAX_CHOICES", "2")
    monkeypatch.setenv("AGENTRUN_MAX_MESSAGES", "20")
    shown = effective("--max-choices", "1")
    assert shown["max_choices"] == {"value": 1, "source": "flag", "variable": "AGENTRUN_MAX_CHOICES"}
    assert shown["max_messages"] == {"value": 20, "source": "env", "variable": "AGENTRUN_MAX_MESSAGES"}
    assert shown["queue_timeout"] == {"value": 3.0, "source": ".env", "variable": "AGENTRUN_QUEUE_TIMEOUT"}
    assert shown["max_body_bytes"]["source"] == "default"


def test_a_named_env_file_takes_the_place_of_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("AGENTRUN_MAX_CHOICES=3\nAGENTRUN_MAX_MESSAGES=3\n")
    (tmp_path / "prod.env").write_text("AGENTRUN_MAX_CHOICES=5\n")
    shown = effective("--env-file", "prod.env")
    assert shown["max_choices"]["value"] == 5
    assert shown["max_messages"]["source"] == "default"


def test_a_secret_file_of_the_environment_wins_over_the_env_file() -> None:
    environ = {"AGENTRUN_MAX_CHOICES_FILE": "/somewhere"}
    origins = apply(EVERY, environ, flags={}, env_file={"AGENTRUN_MAX_CHOICES": "3"})
    assert origin_of(BY_NAME["max_choices"], environ, origins) == ("AGENTRUN_MAX_CHOICES_FILE", "file")


def test_a_setting_can_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "name"
    secret.write_text("ask_a_human\n")
    assert resolve(BY_NAME["human_input_tool"], {"AGENTRUN_HUMAN_INPUT_TOOL_FILE": str(secret)}) == "ask_a_human"


def test_a_platforms_port_wins_over_a_port_in_the_env_file() -> None:
    environ = {"PORT": "9001"}
    apply(EVERY, environ, flags={}, env_file={"AGENTRUN_PORT": "7000"})
    assert resolve(BY_NAME["port"], environ) == 9001


def test_our_own_variable_wins_over_the_standard_one() -> None:
    assert resolve(BY_NAME["port"], {"PORT": "9001", "AGENTRUN_PORT": "9002"}) == 9002


def test_both_spellings_in_the_env_file_do_not_shadow_each_other() -> None:
    environ: dict[str, str] = {}
    apply(EVERY, environ, flags={}, env_file={"PORT": "1", "AGENTRUN_PORT": "2"})
    assert environ == {"PORT": "1", "AGENTRUN_PORT": "2"}


def test_a_preset_yields_to_everything_else() -> None:
    environ = {"AGENTRUN_DEBUG": "false"}
    origins = apply(
        EVERY,
        environ,
        flags={"AGENTRUN_LOG_FORMAT": "json"},
        env_file={"AGENTRUN_DRAIN_TIMEOUT": "7"},
        presets={
            "AGENTRUN_DEBUG": "true",
            "AGENTRUN_LOG_FORMAT": "text",
            "AGENTRUN_DRAIN_TIMEOUT": "1",
            "AGENTRUN_DOCS": "true",
        },
    )
    assert environ == {
        "AGENTRUN_DEBUG": "false",
        "AGENTRUN_LOG_FORMAT": "json",
        "AGENTRUN_DRAIN_TIMEOUT": "7",
        "AGENTRUN_DOCS": "true",
    }
    assert origins["AGENTRUN_DOCS"] == "preset"


def test_variables_that_are_no_settings_are_taken_from_the_env_file_too() -> None:
    environ = {"OPENAI_API_KEY": "from the environment"}
    apply(EVERY, environ, flags={}, env_file={"OPENAI_API_KEY": "x", "DATABASE_URL": "y"})
    assert environ == {"OPENAI_API_KEY": "from the environment", "DATABASE_URL": "y"}


# --- standard variables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variable", "text", "value"),
    [
        ("port", "PORT", "8080", 8080),
        ("host", "HOST", "0.0.0.0", "0.0.0.0"),
        ("host", "HOST", "::", "::"),
        ("host", "HOST", "localhost", "localhost"),
        ("workers", "WEB_CONCURRENCY", "3", 3),
        ("log_level", "LOG_LEVEL", "WARN", "warning"),
    ],
)
def test_standard_variables_are_honoured(name: str, variable: str, text: str, value: object) -> None:
    assert resolve(BY_NAME[name], {variable: text}) == value


@pytest.mark.parametrize(
    ("name", "variable", "text"),
    [
        ("host", "HOST", "x86_64-conda-linux-gnu"),  # conda's compilers
        ("host", "HOST", "my-laptop"),  # tcsh
        ("port", "PORT", "http"),
        ("workers", "WEB_CONCURRENCY", "0"),
        ("log_level", "LOG_LEVEL", "verbose"),
        ("port", "AGENTRUN_PORT", "tcp://10.0.0.7:80"),  # Kubernetes, for a service called "agentrun"
    ],
)
def test_what_other_programs_put_there_is_ignored(name: str, variable: str, text: str) -> None:
    setting = BY_NAME[name]
    assert resolve(setting, {variable: text}) == setting.default
    assert origin_of(setting, {variable: text}, {}) == ("", "default")


def test_a_host_name_of_the_shell_does_not_keep_the_env_file_out() -> None:
    environ = {"HOST": "my-laptop"}
    apply(EVERY, environ, flags={}, env_file={"AGENTRUN_HOST": "0.0.0.0"})
    assert resolve(BY_NAME["host"], environ) == "0.0.0.0"


@pytest.mark.parametrize(
    ("name", "text"), [("port", "http"), ("port", "99999"), ("workers", "0"), ("log_level", "loud")]
)
def test_our_own_variable_is_refused_when_it_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"AGENTRUN_{name.upper()} is not a valid value"):
        resolve(BY_NAME[name], {f"AGENTRUN_{name.upper()}": text})


# --- flags ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--docs"], "docs", True),
        (["--no-access-log"], "access_log", False),
        (["--cors-origin", "https://a.example", "--cors-origin", "https://b.example"], "cors_origins",
         ["https://a.example", "https://b.example"]),
        (["--agent-events", "tools,steps"], "agent_events", ["tools", "steps"]),
        (["--heartbeat-interval", "none"], "heartbeat_interval", None),
        (["--run-timeout", "2.5"], "run_timeout", 2.5),
        (["--on-disconnect", "Continue"], "on_disconnect", "continue"),
        (["--uds", "/run/agent.sock"], "uds", "/run/agent.sock"),
        (["--root-path", "/agents/"], "root_path", "/agents"),
    ],
)  # fmt: skip
def test_a_flag_is_read(
    args: list[str], name: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = effective(*args)[name]
    assert (shown["value"], shown["source"]) == (value, "flag")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--port", "http"], "Invalid value for '--port': 'http' is not a number"),
        (["--port", "70000"], "Invalid value for '--port': expected a whole number from 0 to 65535"),
        (["--max-body-bytes", "10MB"], "Invalid value for '--max-body-bytes': expected a whole number"),
        (["--run-timeout", "soon"], "Invalid value for '--run-timeout': expected a number"),
        (["--on-disconnect", "panic"], "Invalid value for '--on-disconnect': expected one of cancel, continue"),
        (["--log-level", "loud"], "Invalid value for '--log-level': expected one of critical, error"),
        (["--ssl-certfile", "missing.pem"], "Invalid value for '--ssl-certfile': there is no file 'missing.pem'"),
        (["--root-path", "agents"], "Invalid value for '--root-path': must start with '/'"),
        (["--max-bodybytes", "1"], "No such option"),
        (["--env-file", "missing.env"], "missing.env cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_flag_is_told_by_its_name(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(config_command, args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_value_that_cannot_work_is_told_without_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, args in ((config_command, []), (run_command, ["app:agent"])):
        result = CliRunner().invoke(command, [*args, "--max-choices", "0"])
        assert (result.exit_code, result.stderr) == (1, "Error: max_choices must be at least 1\n")


# --- the file -----------------------------------------------------------------------------------------------


def test_without_an_env_file_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_env_file(None) == {}


def test_a_folder_called_env_is_no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").mkdir()
    assert read_env_file(None) == {}


def test_an_env_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.env"
    file.write_bytes(b"KEY=\xff\xfe")
    with pytest.raises(click.UsageError, match="is not UTF-8 text"):
        read_env_file(str(file))


def test_an_env_file_with_a_broken_line_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.env"
    file.write_text("KEY=1\nnonsense\n")
    with pytest.raises(click.UsageError, match="line 2: expected KEY=VALUE"):
        read_env_file(str(file))
