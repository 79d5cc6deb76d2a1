"""``agentrun-server config``: what is shown, and from where it comes."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from agentrun_server import ServerConfig
from agentrun_server.cli.config import config_command, effective
from agentrun_server.cli.settings import NETWORK_SETTINGS, SERVER_SETTINGS


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(*args: str) -> list[list[str]]:
    result = CliRunner().invoke(config_command, args)
    assert result.exit_code == 0, result.output
    return [line.split() for line in result.stdout.splitlines()]


def test_every_setting_is_shown_once() -> None:
    names = [line[0] for line in lines() if line]
    for setting in (*NETWORK_SETTINGS, *SERVER_SETTINGS):
        assert names.count(setting.name) == 1


def test_each_value_has_its_source(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / ".env").write_text("AGENTRUN_RUN_TIMEOUT=none\n")
    (project / "choices").write_text("4")
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("AGENTRUN_MAX_CHOICES_FILE", str(project / "choices"))
    shown = lines("--docs")
    assert ["docs", "true", "flag"] in shown
    assert ["port", "9000", "env", "PORT"] in shown
    assert ["run_timeout", "none", ".env", "AGENTRUN_RUN_TIMEOUT"] in shown
    assert ["max_choices", "4", "file", "AGENTRUN_MAX_CHOICES_FILE"] in shown
    assert ["host", "127.0.0.1", "default"] in shown


def test_json_holds_value_source_and_variable() -> None:
    shown = json.loads(CliRunner().invoke(config_command, ["--json", "--port", "0"]).stdout)
    assert shown["port"] == {"value": 0, "source": "flag", "variable": "AGENTRUN_PORT"}
    assert shown["heartbeat_interval"] == {
        "value": 15.0,
        "source": "default",
        "variable": "AGENTRUN_HEARTBEAT_INTERVAL",
    }


def test_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    lines("--docs", "--port", "1")
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["auth_jwt_key", "auth_keys_pepper", "rate_limit_redis_url"])
def test_a_secret_is_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = next(setting for setting in SERVER_SETTINGS if setting.name == name)
    assert [name, "none", "default"] in lines()
    monkeypatch.setenv(setting.variable, "hunter2-" * 8)
    shown = CliRunner().invoke(config_command).output + CliRunner().invoke(config_command, ["--json"]).output
    assert "********" in shown
    assert "hunter2" not in shown
    assert "hunter2" not in repr(ServerConfig())
    assert "hunter2" not in repr(effective(dict(os.environ), {}))


@pytest.mark.parametrize(
    ("home", "url", "where"),
    [
        ("state", None, "sqlite:///{here}/state/agentrun.db"),
        (None, "sqlite:///data/agent.db", "sqlite:///{here}/data/agent.db"),
        (None, "sqlite:////var/lib/agent.db", "sqlite:////var/lib/agent.db"),
        (None, "postgresql://me:hunter2@db.example:5432/agents?sslmode=require", None),
        (None, "none", "none"),
    ],
)
def test_where_things_are_kept_is_told_without_the_password(
    home: str | None, url: str | None, where: str | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "postgresql://********@db.example:5432/agents?********" if where is None else where.format(here=project)
    for variable, text in (("AGENTRUN_HOME", home), ("AGENTRUN_STORE_URL", url)):
        if text is not None:
            monkeypatch.setenv(variable, text)
    source = ["default"] if url is None else ["env", "AGENTRUN_STORE_URL"]
    assert ["store_url", where, *source] in lines()
    told = json.loads(CliRunner().invoke(config_command, ["--json"]).stdout)["store_url"]["value"]
    assert told == (None if where == "none" else where)


def test_where_the_bus_is_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_BUS_REDIS_URL", "rediss://:hunter2@redis.example/3")
    assert ["bus_redis_url", "rediss://********@redis.example/3", "env", "AGENTRUN_BUS_REDIS_URL"] in lines()


def test_what_looks_like_a_secret_is_declared_one() -> None:
    words = ("secret", "password", "jwt_key", "pepper", "redis_url")
    assert [s.name for s in SERVER_SETTINGS if any(word in s.name for word in words) and not s.secret] == []


def test_a_mistyped_variable_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRUN_MAX_BODY_BYTE", "5")
    monkeypatch.setenv("AGENTRUN_HOME", "elsewhere")  # of another part of the product
    result = CliRunner().invoke(config_command)
    assert result.stderr == (
        "Warning: AGENTRUN_MAX_BODY_BYTE is not a setting; did you mean AGENTRUN_MAX_BODY_BYTES?\n"
    )


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("AGENTRUN_MAX_BODY_BYTES", "10MB", "AGENTRUN_MAX_BODY_BYTES is not a valid value"),
        ("AGENTRUN_MAX_BODY_BYTES", "0", "max_body_bytes must be at least 1"),
        ("AGENTRUN_AGENT_EVENTS", "everything", "agent_events knows tools, steps, progress and io"),
        ("AGENTRUN_PORT", "http", "AGENTRUN_PORT is not a valid value"),
        ("AGENTRUN_STORE_URL", "mysql://me:hunter2@db/agents", "store_url is 'sqlite'"),
        ("AGENTRUN_MAX_CHOICES_FILE", "/nowhere", "AGENTRUN_MAX_CHOICES_FILE cannot be read"),
    ],
)
def test_a_value_that_cannot_work_is_told(
    variable: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    result = CliRunner().invoke(config_command)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {message}")
