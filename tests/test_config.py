"""Settings: from arguments, from the environment, from files, and never from values that cannot work."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.config import ENV_PREFIX, OpenAIProtocolConfig, ProtocolConfig, ServerConfig, parse_setting
from agentrun_server.errors import ConfigurationError

FIELDS = {field.name: field for field in dataclasses.fields(ServerConfig) if "parse" in field.metadata}


class TestEnvironment:
    @pytest.mark.parametrize("name", FIELDS)
    def test_every_setting_has_its_default(self, name: str) -> None:
        assert getattr(ServerConfig(), name) == FIELDS[name].metadata["default"]

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("max_body_bytes", "5", 5),
            ("response_hold", "2.5", 2.5),
            ("heartbeat_interval", "off", None),
            ("heartbeat_interval", " None ", None),
            ("heartbeat_interval", "", None),
            ("run_timeout", "7", 7.0),
            ("strict_models", "Yes", True),
            ("strict_models", "off", False),
            ("debug", "1", True),
            ("debug", " false ", False),
            ("cors_origins", "https://a.example, https://b.example ,", ("https://a.example", "https://b.example")),
            ("cors_origins", "", ()),
            ("agent_events", "tools,steps", ("tools", "steps")),
            ("reasoning_field", "REASONING", "reasoning"),
            ("on_disconnect", "continue", "continue"),
            ("log_format", "json", "json"),
            ("human_input_tool", "ask", "ask"),
        ],
    )
    def test_a_variable_is_read_when_the_config_is_built(
        self, monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
    ) -> None:
        monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
        assert getattr(ServerConfig(), name) == value

    def test_an_argument_wins_over_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AGENTRUN_MAX_BODY_BYTES", "5")
        assert ServerConfig(max_body_bytes=6).max_body_bytes == 6

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("max_body_bytes", "many"),
            ("max_body_bytes", "1.5"),
            ("response_hold", "long"),
            ("strict_models", "maybe"),
            ("reasoning_field", "thoughts"),
            ("on_disconnect", "cry"),
        ],
    )
    def test_a_variable_that_cannot_be_read_is_named(
        self, monkeypatch: pytest.MonkeyPatch, name: str, text: str
    ) -> None:
        monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
        with pytest.raises(ConfigurationError, match=f"{ENV_PREFIX}{name.upper()} is not a valid value"):
            ServerConfig()

    def test_a_value_may_stand_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "size"
        file.write_text(" 5\n", encoding="utf-8")
        assert parse_setting("size", int, 1, {"AGENTRUN_SIZE_FILE": str(file)}) == 5
        assert parse_setting("size", int, 1, {"AGENTRUN_SIZE_FILE": str(file), "AGENTRUN_SIZE": "6"}) == 6
        assert parse_setting("size", int, 1, {}) == 1

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="AGENTRUN_SIZE_FILE cannot be read: No such file"):
            parse_setting("size", int, 1, {"AGENTRUN_SIZE_FILE": str(tmp_path / "none")})


class TestChecks:
    @pytest.mark.parametrize("value", [0, -1])
    @pytest.mark.parametrize(
        "name",
        [
            "max_concurrent_runs", "max_sync_threads", "max_body_bytes", "max_header_bytes", "max_header_count",
            "max_messages", "max_choices", "max_output_bytes", "heartbeat_interval", "first_event_timeout",
            "run_timeout", "write_timeout", "body_timeout", "header_timeout",
        ],
    )  # fmt: skip
    def test_what_must_be_more_than_nothing(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=name):
            ServerConfig(**{name: value})

    @pytest.mark.parametrize("value", [0, -1, 30.5, math.nan, math.inf])
    def test_a_run_waits_for_its_store_no_longer_than_it_is_its_worker_s(self, value: float) -> None:
        assert ServerConfig(store_patience=30, worker_lease=30).store_patience == 30
        with pytest.raises(ConfigurationError, match="store_patience"):
            ServerConfig(store_patience=value, worker_lease=30)

    @pytest.mark.parametrize(
        "name", ["max_queued_runs", "queue_timeout", "cancel_grace", "drain_timeout", "response_hold"]
    )
    def test_what_may_be_nothing_but_no_less(self, name: str) -> None:
        assert getattr(ServerConfig(**{name: 0}), name) == 0  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=f"{name} must be a finite number, not negative"):
            ServerConfig(**{name: -1})  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["queue_timeout", "response_hold", "run_timeout", "heartbeat_interval"])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_time_that_never_ends_is_refused(self, name: str, value: float) -> None:
        with pytest.raises(ConfigurationError, match=name):
            ServerConfig(**{name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["heartbeat_interval", "first_event_timeout", "run_timeout", "write_timeout"])
    def test_limits_that_can_be_off(self, name: str) -> None:
        assert getattr(ServerConfig(**{name: None}), name) is None  # type: ignore[arg-type]

    def test_kinds_of_activity_must_be_known(self) -> None:
        assert ServerConfig(agent_events=("tools", "io")).agent_events == ("tools", "io")
        with pytest.raises(ConfigurationError, match=r"not \['colours'\]"):
            ServerConfig(agent_events=("tools", "colours"))

    def test_a_config_cannot_be_changed_and_is_built_by_keyword(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            ServerConfig().debug = True  # type: ignore[misc]
        with pytest.raises(TypeError):
            ServerConfig(OpenAIProtocolConfig())  # type: ignore[call-arg]


class TestProtocols:
    @pytest.mark.parametrize("prefix", [None, "", "/v1", "/a/b"])
    def test_a_prefix_is_a_path(self, prefix: str | None) -> None:
        assert ProtocolConfig(prefix=prefix).prefix == prefix

    @pytest.mark.parametrize("prefix", ["v1", "/v1/", "/"])
    def test_a_prefix_that_is_none_is_refused(self, prefix: str) -> None:
        with pytest.raises(ConfigurationError, match="must start with '/' and not end with one"):
            OpenAIProtocolConfig(prefix=prefix)

    def test_a_protocol_is_on_and_its_model_has_no_name_unless_told_otherwise(self) -> None:
        config = OpenAIProtocolConfig()
        assert (config.enable, config.model_name, config.prefix) == (True, None, None)
