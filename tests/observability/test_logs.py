"""Log lines: one each, with fields, and never a secret."""

import json
import logging
import logging.config
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentrun_server.observability.logs import (
    JSONFormatter,
    TextFormatter,
    get_logger,
    log_config,
    redact,
    request_id,
)

SECRETS = [
    "sk-proj-0123456789abcdef",
    "ar_0123456789abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
    "Authorization: Bearer abcdef123456",
    "authorization: basic dXNlcjpwYXNz",
    '{"api_key": "abcdef123456"}',
    "api-key=abcdef123456",
    "access_token=abcdef123456&x=1",
    "password='abcdef123456'",
]


def record(message: str, *args: Any, **fields: Any) -> logging.LogRecord:
    return logging.getLogger("agentrun_server.test").makeRecord(
        "agentrun_server.test", logging.INFO, "file.py", 1, message, args, fields.pop("exc_info", None), extra=fields
    )


def raised(message: str) -> Any:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


class TestRedact:
    @pytest.mark.parametrize("text", SECRETS)
    def test_what_looks_like_a_secret_is_replaced(self, text: str) -> None:
        clean = redact(f"before {text} after")
        assert "***" in clean
        assert clean.startswith("before ")
        for secret in re.findall(r"abcdef123456|0123456789abcdef|c2lnbmF0dXJl|dXNlcjpwYXNz", text):
            assert secret not in clean

    @pytest.mark.parametrize(
        "text",
        ["", "agent failed: ValueError", "skill-level", "the password was wrong", "model sk-1", "eyJ", "token=5x"],
    )
    def test_what_does_not_is_left_alone(self, text: str) -> None:
        assert redact(text) == text

    @pytest.mark.parametrize("text", ["a" * 10_000_000, "Bearer " * 1_000_000, "eyJ" * 1_000_000, "sk-" * 1_000_000])
    def test_a_very_long_text_is_cut_and_does_not_take_long(self, text: str) -> None:
        started = time.monotonic()
        assert len(redact(text)) < 100_000
        assert time.monotonic() - started < 5


@pytest.fixture
def caught() -> Iterator[list[logging.LogRecord]]:
    """Records that a logger of ours hands to a handler of the user's own."""
    records: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = get_logger("agentrun_server.test"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)


class TestLoggers:
    def test_a_logger_cleans_its_records_before_any_handler_sees_them(self, caught: list[logging.LogRecord]) -> None:
        get_logger("agentrun_server.test").info("key %s", "sk-proj-0123456789abcdef")
        assert caught[0].getMessage() == "key ***"

    def test_it_cleans_tracebacks_too(self, caught: list[logging.LogRecord]) -> None:
        logger = get_logger("agentrun_server.test")
        try:
            raise ValueError("key sk-proj-0123456789abcdef")
        except ValueError:
            logger.exception("failed")
        assert caught[0].exc_text is not None
        assert "ValueError: key ***" in caught[0].exc_text
        assert "0123456789" not in caught[0].exc_text

    def test_asking_twice_gives_one_logger_that_cleans_once(self) -> None:
        first, second = get_logger("agentrun_server.test"), get_logger("agentrun_server.test")
        assert first is second
        assert len(first.filters) == 1


class TestFormatters:
    def test_json_is_one_object_on_one_line_with_the_fields(self) -> None:
        line = JSONFormatter().format(record("said %s", "a\nb\u2028", model="m", count=3, odd={1}))
        assert len(line.splitlines()) == 1
        read = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", read.pop("time"))
        assert read == {
            "level": "info",
            "logger": "agentrun_server.test",
            "message": "said a\nb\u2028",
            "model": "m",
            "count": 3,
            "odd": "{1}",
        }

    @pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()])
    def test_neither_shows_a_secret(self, formatter: logging.Formatter) -> None:
        line = formatter.format(
            record(
                "key %s",
                "sk-proj-0123456789abcdef",
                header="Bearer abcdef123456",
                exc_info=raised("ar_0123456789abcdef"),
            )
        )
        assert "0123456789" not in line
        assert "abcdef123456" not in line
        assert "ValueError" in line

    def test_text_stays_on_its_line(self) -> None:
        line = TextFormatter().format(record("said %s", "a\n12:00:00 ERROR fake\x1b[2J", path="/\r\n"))
        assert "\n" not in line
        assert "\x1b" not in line
        assert re.match(r"\d\d:\d\d:\d\d INFO    said a\\n12:00:00 ERROR fake\\x1b\[2J path=/\\r\\n$", line)

    @pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()])
    def test_a_line_of_a_request_has_its_id(self, formatter: logging.Formatter) -> None:
        token = request_id.set("req_1")
        try:
            assert "req_1" in formatter.format(record("said"))
        finally:
            request_id.reset(token)
        assert "req_1" not in formatter.format(record("said"))

    def test_the_configuration_for_a_process_that_serves_is_valid(self) -> None:
        for name, kind in (("json", JSONFormatter), ("text", TextFormatter)):
            config = log_config(name, "info")  # type: ignore[arg-type]
            assert config["formatters"]["default"]["()"] is kind
            assert config["root"]["level"] == "INFO"
            logging.config.DictConfigurator(config)  # reads it without changing anything
