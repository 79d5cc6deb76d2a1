"""One line for each request, and for each failure what its author needs; never a secret, never a second line."""

import asyncio
import io
import json
import logging
import logging.config
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agentrun_server import AgentError, AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.invoker.agent import AgentCallable
from agentrun_server.observability.access_log import AccessLog
from agentrun_server.observability.logs import JSONFormatter, TextFormatter, get_logger, log_config, redact
from tests.support.agents import ASYNC_STREAMS, Witness
from tests.support.clock import eventually
from tests.support.raw_client import CHAT, chat_body
from tests.support.serve import serve

KEY = "sk-proj-0123456789abcdefABCDEF"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
OPAQUE = "tok3n.of-no~shape+at/all=="
CANARIES = (KEY, JWT, OPAQUE)


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


def with_log(
    agent: AgentCallable = echo, log_format: Any = "json", **settings: Any
) -> tuple[AgentRunServer, io.StringIO]:
    """Return a server, and where its access log goes."""
    server = AgentRunServer(agent, config=ServerConfig(log_format=log_format, **settings))
    stream = io.StringIO()
    server._access_log = AccessLog(log_format, stream)
    return server, stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# --- the line of a request


async def test_a_request_is_one_line_of_json() -> None:
    server, stream = with_log()
    async with serve(server) as served:
        answer = await served.chat(model="gpt")
    (line,) = lines(stream)
    stamp = line.pop("time")
    assert abs(time.mktime(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.mktime(time.gmtime())) < 60
    assert 0 <= line.pop("duration_ms") < 5000
    assert 0 <= line.pop("first_event_ms") < 5000
    assert line == {
        "level": "info",
        "logger": "agentrun_server.access",
        "message": "request",
        "method": "POST",
        "path": CHAT,
        "status": 200,
        "client": "127.0.0.1",
        "request_id": answer.header("x-request-id"),
        "model": "gpt",
        "stream": False,
        "run": "completed",
    }


async def test_a_request_is_one_line_of_text() -> None:
    server, stream = with_log(log_format="text")
    async with serve(server) as served:
        answer = await served.chat()
    (line,) = stream.getvalue().splitlines()
    assert f"POST {CHAT} 127.0.0.1 request_id={answer.header('x-request-id')} model=m stream=False" in line
    assert " 200 " in line


async def failing(request: AgentRequest) -> AsyncIterator[str]:
    if request.stream:
        yield "p"
        await asyncio.sleep(0)
    raise AgentError("no", code="no_luck", status_code=409)


async def test_a_failure_is_in_the_line() -> None:
    server, stream = with_log(failing)
    async with serve(server) as served:
        await served.chat(stream=False)
        await served.chat(stream=True)
        await served.ask("POST", CHAT, b"{")
        await served.ask("GET", "/nope")
    whole, streamed, bad, unknown = lines(stream)
    assert (whole["status"], whole["run"], whole["error"]) == (409, "failed", "no_luck")
    assert (streamed["status"], streamed["run"], streamed["error"]) == (200, "failed", "no_luck")
    assert (bad["status"], bad["error"]) == (400, "invalid_json")
    assert unknown["status"] == 404


async def test_a_client_that_left_is_in_the_line() -> None:
    witness = Witness()
    server, stream = with_log(ASYNC_STREAMS["async generator"](witness, 0))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            client.rst()
            await witness.saw("ended")
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            await eventually(lambda: len(server._sweeper.active) == 1)
    left, never_asked = lines(stream)
    assert (left["status"], left["run"], left["stopped"]) == (499, "cancelled", "disconnected")
    assert never_asked["status"] == 499


async def test_probes_are_not_logged() -> None:
    server, stream = with_log()
    async with serve(server) as served:
        for path in ("/health", "/livez", "/readyz"):
            await served.ask("GET", path)
    assert stream.getvalue() == ""


async def test_the_access_log_can_be_turned_off(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(access_log=False))) as served:
        await served.chat()
    assert capsys.readouterr().out == ""


async def test_the_access_log_goes_to_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(AgentRunServer(echo)) as served:
        await served.chat()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["path"] == CHAT


async def test_neither_query_nor_headers_nor_body_are_logged() -> None:
    for log_format in ("json", "text"):
        server, stream = with_log(log_format=log_format)
        async with serve(server) as served:
            body = chat_body(text="private-text", user="private-user")
            await served.ask("POST", f"{CHAT}?key=private-query", body, [("x-own", "private-header")])
        assert "private" not in stream.getvalue()


HOSTILE_PATHS = {
    "/a%0aINFO%20fake": "a line break",
    "/a%0d%0a%0d%0a": "line breaks",
    "/%1b[2J%1b]0;x%07": "commands for a terminal",
    "/%E2%80%A8%C2%85": "line breaks of Unicode",
    "/%E2%80%AE": "writing turned round",
    "/%22%7D,%7B%22": "JSON",
    "/%5C%5C%22": "backslashes",
}


@pytest.mark.parametrize("path", HOSTILE_PATHS, ids=HOSTILE_PATHS.values())
@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_a_path_stays_on_its_line(path: str, log_format: str) -> None:
    server, stream = with_log(log_format=log_format)
    async with serve(server) as served:
        assert (await served.ask("GET", path)).status == 404
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()
    assert text.isascii()
    if log_format == "json":
        (line,) = lines(stream)
        assert line["status"] == 404


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_a_model_name_stays_on_its_line(log_format: str) -> None:
    server, stream = with_log(log_format=log_format)
    async with serve(server) as served:
        await served.chat(model='x\n{"level":"error"}\x1b[2J\u2028')
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.rstrip("\n").isprintable()


async def test_an_endless_path_is_cut() -> None:
    server, stream = with_log()
    async with serve(server) as served:
        await served.ask("GET", "/" + "a" * 10_000)
    assert len(stream.getvalue()) < 2000


# --- how lines are written


class Slow(io.StringIO):
    """Counts writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


SCOPE = {"method": "GET", "path": "/x", "client": ("1.2.3.4", 5)}


async def test_lines_are_written_together_and_soon() -> None:
    stream = Slow()
    log = AccessLog("json", stream)
    for number in range(100):
        log.write(SCOPE, 200, 0.001, f"req_{number}", None)
    assert stream.writes == 0
    await eventually(lambda: stream.writes == 1)
    assert [line["request_id"] for line in lines(stream)] == [f"req_{number}" for number in range(100)]


async def test_many_lines_do_not_wait() -> None:
    stream = Slow()
    log = AccessLog("json", stream)
    for number in range(300):
        log.write(SCOPE, 200, 0.001, f"req_{number}", None)
    assert stream.writes == 2
    log.flush()
    assert stream.writes == 3
    assert len(lines(stream)) == 300
    log.flush()
    assert stream.writes == 3, "there is nothing more"


def test_lines_are_written_in_every_event_loop() -> None:
    """A test client runs each request in a loop of its own, and closes it at once."""
    stream = Slow()
    log = AccessLog("json", stream)

    async def request(*, wait: bool) -> None:
        log.write(SCOPE, 200, 0.001, "req_x", None)
        if wait:
            await eventually(lambda: stream.writes > 0)

    asyncio.run(request(wait=False))
    asyncio.run(request(wait=True))
    assert len(lines(stream)) == 2


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


async def test_a_log_that_nobody_reads_fails_no_request() -> None:
    server, _ = with_log()
    server._access_log = AccessLog("json", Broken())
    async with serve(server) as served:
        assert (await served.chat()).status == 200
        server._access_log.flush()
        assert (await served.chat()).status == 200


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
async def test_the_format_follows_the_reader(stream: io.StringIO, is_json: bool) -> None:
    log = AccessLog("auto", stream)
    log.write(SCOPE, 200, 0.001, "req_x", {"model": "m", "n": 1, "ok": True, "none": None})
    log.flush()
    assert stream.getvalue().startswith("{") is is_json


@contextmanager
def handler_on(name: str, formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """Have the logger `name` write to a string."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger(name)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield stream
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


async def test_a_logger_can_take_the_lines_over(capsys: pytest.CaptureFixture[str]) -> None:
    with handler_on("agentrun_server.access", JSONFormatter()) as stream:
        async with serve(AgentRunServer(echo)) as served:
            await served.chat(model=KEY)
    (line,) = lines(stream)
    assert (line["message"], line["path"], line["status"], line["run"]) == ("request", CHAT, 200, "completed")
    assert KEY not in stream.getvalue()
    assert capsys.readouterr().out == ""


# --- failures


async def leaks(request: AgentRequest) -> str:
    raise ValueError(f"upstream said no: Authorization: Bearer {OPAQUE} for {KEY} and {JWT}")


@pytest.mark.parametrize("formatter", [JSONFormatter(), TextFormatter()], ids=["json", "text"])
async def test_a_failure_is_logged_with_its_traceback_and_no_secrets(formatter: logging.Formatter) -> None:
    with handler_on("agentrun_server", formatter) as stream:
        async with serve(AgentRunServer(leaks)) as served:
            answer = await served.chat()
    text = stream.getvalue()
    assert "Traceback (most recent call last)" in text
    assert "in leaks" in text
    assert "ValueError: upstream said no" in text
    assert answer.header("x-request-id") in text  # type: ignore[operator]
    assert not any(canary in text for canary in CANARIES)


async def test_a_failure_is_one_line_of_json() -> None:
    with handler_on("agentrun_server", JSONFormatter()) as stream:
        async with serve(AgentRunServer(leaks)) as served:
            answer = await served.chat()
            (line,) = lines(stream)
    assert line["level"] == "error"
    assert line["logger"] == "agentrun_server.agent"
    assert line["message"] == "agent failed: ValueError"
    assert line["request_id"] == answer.header("x-request-id")
    assert line["exception"].startswith("Traceback")


async def test_no_secret_reaches_any_log(caplog: pytest.LogCaptureFixture) -> None:
    """Canaries everywhere: headers, query, path, model, body, exception, and what the agent logs itself."""

    async def agent(request: AgentRequest) -> str:
        get_logger("agentrun_server.own").info("called with %s", request)
        if request.messages[0].text == "fail":
            await leaks(request)
        return ""

    caplog.set_level(logging.DEBUG)
    server, stream = with_log(agent)
    headers = [("authorization", f"Bearer {OPAQUE}"), ("api-key", KEY), ("cookie", f"session={JWT}"), ("x-own", KEY)]
    with handler_on("agentrun_server", JSONFormatter()) as log:
        async with serve(server) as served:
            for text in ("fine", "fail", KEY):
                body = chat_body(stream=False, text=text, model=KEY, user=JWT, metadata={"k": KEY})
                await served.ask("POST", f"{CHAT}?api_key={OPAQUE}", body, headers)
            await served.ask("GET", f"/v1/models/{KEY}", None, headers)
            await served.ask("GET", f"/nope/{JWT}", None, headers)
            await served.ask("POST", f"/{KEY}", b"{", headers)
            await served.ask("POST", CHAT, f'{{"{KEY}": '.encode(), headers)
            await served.ask("POST", CHAT, chat_body(n=KEY, extra={KEY: JWT}), headers)
    for written in (stream.getvalue(), log.getvalue(), caplog.text):
        assert not any(canary in written for canary in CANARIES)


async def test_lines_of_the_agent_carry_the_request_id() -> None:
    def agent(request: AgentRequest) -> Iterator[str]:
        logging.getLogger("my.agent").info("on a thread")
        yield ""

    async def on_loop(request: AgentRequest) -> str:
        logging.getLogger("my.agent").info("on the loop")
        return ""

    with handler_on("my.agent", JSONFormatter()) as stream:
        for target in (agent, on_loop):
            async with serve(AgentRunServer(target)) as served:
                answer = await served.chat()
            assert lines(stream)[-1]["request_id"] == answer.header("x-request-id")


# --- the formatters


def record(message: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("a.b", logging.WARNING, __file__, 1, message, args, None)
    vars(made).update(fields)
    return made


def test_json_lines_have_the_fields_of_the_record() -> None:
    line = json.loads(JSONFormatter().format(record("%s went", "it", count=3, thing=object, text="a\nb")))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "a.b",
        "message": "it went",
        "count": 3,
        "thing": "<class 'object'>",
        "text": "a\nb",
    }


def test_fields_are_redacted() -> None:
    for formatter in (JSONFormatter(), TextFormatter()):
        text = formatter.format(record("x", header=f"Bearer {OPAQUE}", key=KEY))
        assert not any(canary in text for canary in CANARIES)


def test_text_lines_are_for_people_and_stay_lines() -> None:
    text = TextFormatter().format(record("a\nb\x1b[2J %s", "\u2028", field="c\rd"))
    assert text.isprintable()
    assert "a\\nb\\x1b[2J" in text
    assert "field=c\\rd" in text


def test_a_traceback_in_text_moves_no_cursor() -> None:
    try:
        raise ValueError("\x1b[2J\x07")
    except ValueError as error:
        made = record("failed", exc_info=(type(error), error, error.__traceback__))
    text = TextFormatter().format(made)
    assert all(part.isprintable() for part in text.split("\n"))
    assert "ValueError: \\x1b[2J\\x07" in text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (KEY, "***"),
        (f"key {KEY}, and", "key ***, and"),
        ("ar_12345678_abcdefghijklmnop", "***"),
        (JWT, "***"),
        (f"Bearer {OPAQUE}", "Bearer ***"),
        (f"authorization: bearer {OPAQUE}", "authorization: bearer ***"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic ***"),
        ("Authorization: Digest-like", "Authorization: ***"),
        ('{"api_key": "abc"}', '{"api_key": "***"}'),
        ("{'x-api-key': 'abc', 'a': 1}", "{'x-api-key': '***', 'a': 1}"),
        ("?api-key=abc&b=c", "?api-key=***&b=c"),
        ("apikey=abc", "apikey=***"),
        ("password=hunter2 next", "password=*** next"),
        ("client_secret: s3", "client_secret: ***"),
        ("access_token=abc;x", "access_token=***;x"),
        ("max_tokens=12 and 34 prompt_tokens: 5", "max_tokens=12 and 34 prompt_tokens: 5"),
        ("unexpected token: }", "unexpected token: }"),
        ("desk-top task-force risk_assessment", "desk-top task-force risk_assessment"),
        ("a bearer of news", "a bearer of news"),
        ("", ""),
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize("piece", ["eyJ-", "eyJa.eyJa.", "a-", "api_key ", "api_key: ", "bearer ", "sk-a ", "sk-", " "])
def test_redaction_takes_little_time_whatever_the_text(piece: str) -> None:
    began = time.monotonic()
    redact(piece * (10_000_000 // len(piece)))
    assert time.monotonic() - began < 1


def test_a_logger_is_cleaned_once() -> None:
    assert get_logger("agentrun_server.twice").filters == get_logger("agentrun_server.twice").filters
    assert len(get_logger("agentrun_server.twice").filters) == 1


@pytest.mark.parametrize(("log_format", "formatter"), [("json", JSONFormatter), ("text", TextFormatter)])
def test_the_configuration_of_a_process_has_one_handler(log_format: Any, formatter: type) -> None:
    config = log_config(log_format, "debug")
    assert config["formatters"]["default"] == {"()": formatter}
    assert config["root"] == {"handlers": ["default"], "level": "DEBUG"}
    assert config["disable_existing_loggers"] is False
    logging.config.DictConfigurator(config)  # reads it without applying it


def test_the_configuration_of_a_process_follows_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert log_config("auto", "info")["formatters"]["default"]["()"] is JSONFormatter
    monkeypatch.setattr("sys.stderr", Terminal())
    assert log_config("auto", "info")["formatters"]["default"]["()"] is TextFormatter
