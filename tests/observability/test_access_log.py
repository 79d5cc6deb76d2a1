"""One line for every request, soon, in order, and without what a client might hide in it."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from agentrun_server.observability.access_log import AccessLog
from tests.support.clock import eventually

SCOPE = {"method": "POST", "path": "/v1/chat/completions", "client": ("127.0.0.1", 5)}


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line_of(kind: Literal["auto", "json", "text"] = "json", **changes: Any) -> str:
    """Return the line for one request."""
    stream = changes.pop("stream", None) or io.StringIO()
    facts = changes.pop("facts", None)
    log = AccessLog(kind, stream)

    async def write() -> None:
        log.write({**SCOPE, **changes}, 200, 0.0125, "req_1", facts)
        log.flush()

    asyncio.run(write())
    text: str = stream.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    return text


class TestLines:
    def test_a_line_of_json(self) -> None:
        facts = {"model": 'm"\u2028', "stream": True, "run": "completed", "error": None, "first_event_ms": 1.5, "n": 2}
        read = json.loads(line_of(facts=facts))
        assert read.pop("time").endswith("Z")
        assert read == {
            "level": "info",
            "logger": "agentrun_server.access",
            "message": "request",
            "method": "POST",
            "path": "/v1/chat/completions",
            "status": 200,
            "duration_ms": 12.5,
            "client": "127.0.0.1",
            "request_id": "req_1",
            **facts,
        }

    def test_a_line_for_people(self) -> None:
        line = line_of("text", facts={"model": "m", "error": None})
        assert line[8:] == " 200     12.5 ms  POST /v1/chat/completions 127.0.0.1 request_id=req_1 model=m\n"

    def test_the_form_depends_on_who_reads_it(self) -> None:
        assert line_of("auto").startswith("{")
        assert not line_of("auto", stream=Terminal()).startswith("{")

    @pytest.mark.parametrize("kind", ["json", "text"])
    @pytest.mark.parametrize(
        "path", ["/a\nb", "/\x1b[2J", "/\u2028", "/\ud800", '/"quoted"', "/sk-0123456789abcdef", "/" * 5000]
    )
    def test_a_path_cannot_leave_its_line(self, kind: Any, path: str) -> None:
        line = line_of(kind, path=path, facts={"model": path})
        assert line.isascii()
        assert "\x1b" not in line
        assert "0123456789abcdef" not in line
        assert len(line) < 4000

    def test_a_request_without_an_address_has_a_line_too(self) -> None:
        assert json.loads(line_of(client=None))["client"] == ""


class TestWriting:
    async def test_lines_are_written_together_a_moment_later(self) -> None:
        stream = io.StringIO()
        log = AccessLog("json", stream)
        for i in range(3):
            log.write(SCOPE, 200, 0.0, f"req_{i}", None)
        assert stream.getvalue() == ""
        await eventually(lambda: stream.getvalue() != "")
        assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == [
            "req_0",
            "req_1",
            "req_2",
        ]

    async def test_very_many_lines_are_not_held_back(self) -> None:
        stream = io.StringIO()
        log = AccessLog("json", stream)
        for i in range(256):
            log.write(SCOPE, 200, 0.0, f"req_{i}", None)
        assert len(stream.getvalue().splitlines()) == 256

    async def test_flushing_writes_what_is_left_and_nothing_twice(self) -> None:
        stream = io.StringIO()
        log = AccessLog("json", stream)
        log.write(SCOPE, 200, 0.0, "req_1", None)
        log.flush()
        log.flush()
        assert len(stream.getvalue().splitlines()) == 1

    async def test_a_reader_that_has_gone_fails_no_request(self) -> None:
        log = AccessLog("json", Closed())
        log.write(SCOPE, 200, 0.0, "req_1", None)
        log.flush()


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    found: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    logger, handler = logging.getLogger("agentrun_server.access"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(before)


async def test_a_logger_with_handlers_takes_over(records: list[logging.LogRecord]) -> None:
    stream = io.StringIO()
    log = AccessLog("json", stream)
    log.write(SCOPE, 503, 0.0125, "req_1", {"model": "m"})
    log.flush()
    (record,) = records
    fields = vars(record)
    assert stream.getvalue() == ""
    assert {name: fields[name] for name in ("status", "duration_ms", "client", "request_id", "model")} == {
        "status": 503,
        "duration_ms": 12.5,
        "client": "127.0.0.1",
        "request_id": "req_1",
        "model": "m",
    }
