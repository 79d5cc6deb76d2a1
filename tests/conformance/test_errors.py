"""Every failure is an answer the official clients understand."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from agentrun_server import AgentError, AgentEvent, AgentRequest, AgentRunServer, APIError, EventType, ServerConfig
from tests.conformance.asking import CHAT, asking, body_of, messages_of
from tests.conformance.requirements import requirement
from tests.support.chat_oracle import check_chat_stream
from tests.support.clock import after, eventually, within
from tests.support.serve import the_request


async def hello(request: AgentRequest) -> str:
    return "Hello"


async def secretive(request: AgentRequest) -> AsyncIterator[str]:
    raise ValueError("hunter2")
    yield ""


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the error object of an answer, after a look at its form."""
    assert response.headers["content-type"].startswith("application/json")
    body: dict[str, Any] = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


class TestBadRequests:
    @requirement("chat.error.bad-request", "chat.error.object", "chat.request.required")
    @pytest.mark.parametrize(
        ("fields", "param", "code"),
        [
            ({"model": None}, "model", "missing_required_parameter"),
            ({"messages": None}, "messages", "missing_required_parameter"),
            ({"messages": []}, "messages", "empty_array"),
            ({"temperature": "hot"}, "temperature", "invalid_type"),
            ({"temperature": 3}, "temperature", "decimal_above_max_value"),
            ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "invalid_value"),
            ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "invalid_type"),
            ({"stream": "yes"}, "stream", "invalid_type"),
        ],
    )
    async def test_a_400_tells_what_is_wrong_and_where(self, fields: dict[str, Any], param: str, code: str) -> None:
        async with asking(hello) as server:
            response = await server.post(**fields)
        assert response.status_code == 400
        error = error_of(response)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)

    @requirement("chat.request.strict-json", "chat.request.openai-errors")
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"null",
            b"[]",
            b'"text"',
            b"{",
            b'{"model": NaN}',
            b"\xff\xfe{}",
            b'{"model": "\\ud800"}',
            b"[" * 50_000,
            b'{"a":' * 50_000 + b"1",
            b'{"temperature": ' + b"9" * 100_000 + b"}",
            b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": ' + b"9" * 400 + b"}",
            b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
            b'{"model": {}, "messages": {}}',
            b'{"model": "m", "messages": [[[[]]]]}',
        ],
        ids=lambda content: repr(content[:20]),
    )
    async def test_bad_input_is_a_400_and_the_next_request_is_answered(self, content: bytes) -> None:
        async with asking(hello) as server:
            response = await server.post(content)
            assert response.status_code == 400
            error_of(response)
            assert (await server.whole()).text == "Hello"

    @requirement("chat.error.unknown-model")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_unknown_model_is_a_404(self, stream: bool) -> None:
        async with asking({"known": hello}) as server:
            response = await server.post(model="unknown", stream=stream)
        assert response.status_code == 404
        error = error_of(response)
        assert (error["code"], error["param"]) == ("model_not_found", None)

    @requirement("chat.error.unknown-path")
    async def test_unknown_paths_and_methods_are_answered_in_json(self) -> None:
        async with asking(hello) as server:
            unknown = await server.get("/v1/nowhere")
            method = await within(server.client.put(CHAT))
            wrong = await within(server.client.delete("/v1/models"))
        assert (unknown.status_code, error_of(unknown)["code"]) == (404, "unknown_url")
        assert (method.status_code, error_of(method)["code"]) == (405, "method_not_allowed")
        assert method.headers["allow"] == "GET, POST"
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")

    @requirement("chat.error.too-large")
    async def test_a_body_that_is_too_long_is_a_413(self) -> None:
        async def chunked() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b" " * 300

        async with asking(hello, max_body_bytes=1000) as server:
            declared = await server.post(b" " * 1001)
            undeclared = await within(server.client.post(CHAT, content=chunked()))
            fits = await server.post(json.dumps(body_of({})).encode().ljust(1000))
        assert (declared.status_code, undeclared.status_code, fits.status_code) == (413, 413, 200)
        assert error_of(declared)["type"] == error_of(undeclared)["type"] == "invalid_request_error"

    @requirement("chat.error.slow-request")
    async def test_a_body_that_does_not_come_is_a_408(self) -> None:
        read = asyncio.Event()

        async def never_whole() -> AsyncIterator[bytes]:
            yield b"{"
            read.set()
            await asyncio.Event().wait()

        async with asking(hello, body_timeout=10) as server:
            asked = asyncio.create_task(server.client.post(CHAT, content=never_whole()))
            await within(read.wait())
            await eventually(lambda: the_request(server.server).body_received)
            server.pass_time(11)
            response = await within(asked)
        assert response.status_code == 408
        assert error_of(response)["code"] == "request_timeout"

    @requirement("chat.error.media-type")
    @pytest.mark.parametrize(
        "headers", [{"content-encoding": "gzip"}, {"content-type": "multipart/form-data; boundary=x"}]
    )
    async def test_a_body_that_cannot_be_read_is_a_415(self, headers: dict[str, str]) -> None:
        async with asking(hello) as server:
            response = await server.post(gzip.compress(json.dumps(body_of({})).encode()), headers=headers)
        assert response.status_code == 415
        error_of(response)


class TestAgentFailures:
    @requirement("chat.error.agent-failed")
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("error", [ValueError("hunter2"), SystemExit("hunter2"), KeyError("hunter2")])
    async def test_a_failed_agent_is_a_500_that_is_not_tried_again_and_tells_nothing(
        self, stream: bool, error: BaseException
    ) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            raise error
            yield ""

        async with asking(agent) as server:
            response = await server.post(stream=stream)
        assert response.status_code == 500
        assert response.headers["x-should-retry"] == "false"
        said = error_of(response)
        assert (said["type"], said["code"]) == ("server_error", "agent_error")
        assert "hunter2" not in response.text
        assert type(error).__name__ not in response.text

    @requirement("chat.error.agent-failed")
    @pytest.mark.parametrize("said", [5, b"x", {"a": 1}, object()], ids=lambda said: type(said).__name__)
    async def test_an_answer_that_is_none_is_a_500(self, said: Any) -> None:
        async def agent(request: AgentRequest) -> Any:
            return said

        async with asking(agent) as server:
            response = await server.post()
        assert response.status_code == 500
        assert response.headers["x-should-retry"] == "false"
        assert type(said).__name__ not in error_of(response)["message"]

    @requirement("chat.error.agent-error")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_agent_chooses_its_error(self, stream: bool) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            raise AgentError("Out of credit.", status_code=402, code="no_credit", param="user")
            yield ""

        async with asking(agent) as server:
            response = await server.post(stream=stream)
        assert response.status_code == 402
        error = error_of(response)
        assert (error["message"], error["code"], error["param"]) == ("Out of credit.", "no_credit", "user")

    @requirement("chat.error.agent-error", "chat.http.held-head")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_an_error_event_is_an_error_that_is_not_tried_again(self, stream: bool) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[AgentEvent]:
            yield AgentEvent(EventType.ERROR, {"message": "Broken.", "code": "broken"})

        async with asking(agent) as server:
            response = await server.post(stream=stream)
        assert response.status_code == 500
        assert response.headers["x-should-retry"] == "false"
        assert (error_of(response)["message"], error_of(response)["code"]) == ("Broken.", "broken")

    @requirement("chat.error.mid-stream", "chat.stream.loud-end")
    @pytest.mark.parametrize("how", ["raises", "says", "breaks the grammar", "says nonsense", "has a nameless call"])
    async def test_after_the_first_event_a_failure_is_an_error_frame(self, how: str) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[Any]:
            yield "Hel"
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if how == "raises":
                raise ValueError("hunter2")
            if how == "says":
                yield AgentEvent(EventType.ERROR, {"message": "Broken."})
            if how == "breaks the grammar":
                yield AgentEvent(EventType.TOOL_CALL, {"id": "1", "name": "f", "args": {}})
                yield AgentEvent(EventType.TOOL_CALL_CHUNK, {"id": "1", "args_delta": "{}"})
            if how == "says nonsense":
                yield 5
            if how == "has a nameless call":
                yield AgentEvent(EventType.TOOL_CALL_CHUNK, {"id": "1", "args_delta": "{}"})

        async with asking(agent) as server:
            response = await server.post(stream=True)
        assert response.status_code == 200
        assert "hunter2" not in response.text
        parsed = check_chat_stream(response.content, include_usage=False)
        assert parsed.error is not None
        assert parsed.error["type"] == "server_error"
        assert parsed.choices[0].content == "Hel"
        assert parsed.choices[0].finish_reason is None

    @requirement("chat.error.timeout")
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("limit", ["first_event_timeout", "run_timeout"])
    async def test_an_agent_that_takes_too_long_is_a_504(self, stream: bool, limit: str) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            await asyncio.Event().wait()
            yield ""

        async with asking(agent, response_hold=1000, **{limit: 100}) as server:
            asked = asyncio.create_task(server.post(stream=stream))
            await eventually(lambda: server.server._admission.running == 1)
            server.pass_time(101)
            response = await within(asked)
        assert response.status_code == 504
        assert error_of(response)["code"] == "agent_timeout"
        assert response.headers["x-should-retry"] == "false"


class Unread:
    """A connection, as uvicorn has it, whose client reads nothing: the first part of a body fills it."""

    def __init__(self) -> None:
        self.full, self.aborted = asyncio.Event(), asyncio.Event()
        self.transport = self

    def abort(self) -> None:
        self.aborted.set()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.full.set()
            await self.aborted.wait()


class TestOverload:
    @requirement("chat.error.busy", "chat.error.retry-after-limit")
    async def test_no_place_left_is_a_429_that_says_when_to_come_back(self) -> None:
        go_on = asyncio.Event()

        async def agent(request: AgentRequest) -> str:
            await go_on.wait()
            return "Hello"

        async with asking(agent, max_concurrent_runs=1, max_queued_runs=0) as server:
            first = asyncio.create_task(server.post())
            await eventually(lambda: server.server._admission.running == 1)
            second = await server.post()
            go_on.set()
            assert (await within(first)).status_code == 200
        assert second.status_code == 429
        error = error_of(second)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 1 <= int(second.headers["retry-after"]) <= 60
        assert 0 < int(second.headers["retry-after-ms"]) <= 60_000
        assert "x-should-retry" not in second.headers

    @requirement("chat.error.slow-reader")
    async def test_a_client_that_reads_nothing_holds_the_agent_back_and_is_cut_off(self) -> None:
        made: list[int] = []
        ended = asyncio.Event()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            try:
                for i in range(100_000):
                    made.append(i)
                    yield "x" * 1000
            finally:
                ended.set()

        server = AgentRunServer(agent, config=ServerConfig(access_log=False, write_timeout=60))
        connection = Unread()
        call = asyncio.create_task(messages_of(server, {"stream": True}, send=connection.send))
        await within(connection.full.wait())
        before = len(made)
        await asyncio.sleep(0)
        assert len(made) == before < 1000
        after(server, 61)
        await within(call)
        assert connection.aborted.is_set()
        assert ended.is_set()

    @requirement("chat.error.shutting-down", "chat.error.retry-after-limit")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_server_that_shuts_down_is_a_503(self, stream: bool) -> None:
        async with asking(hello) as server:
            server.server._admission.close()
            response = await server.post(stream=stream)
        assert response.status_code == 503
        assert error_of(response)["type"] == "server_error"
        assert 1 <= int(response.headers["retry-after"]) <= 60

    @requirement("chat.error.retry-after-limit")
    @pytest.mark.parametrize(
        ("seconds", "whole", "milliseconds"),
        [(0, b"1", b"50"), (-5, b"1", b"50"), (0.5, b"1", b"500"), (2.2, b"3", b"2200"), (3600, b"60", b"60000")],
    )
    def test_the_time_to_come_back_is_bounded(self, seconds: float, whole: bytes, milliseconds: bytes) -> None:
        headers = dict(APIError("busy").retry_after(seconds).headers)
        assert headers == {b"retry-after": whole, b"retry-after-ms": milliseconds}
