"""The Responses API over a WebSocket: lanes, memory, errors, and the end of a connection."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware

from agentrun_middleware.authentication import AuthenticationMiddleware, CredentialRefusedError
from agentrun_middleware.gateway import GatewayMiddleware
from agentrun_middleware.principal import Principal
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.responses.socket import ResponsesSocket, SocketLimits
from tests.support.clock import eventually, within
from tests.support.serve import Served, serve, serve_process
from tests.support.sse import parse_events
from tests.support.websocket import RESPONSES, WebSocket, close_frame, frame

NOT_FOUND = "previous_response_not_found"


async def recite(request: AgentRequest) -> AsyncIterator[str]:
    """Say all that was said."""
    yield " | ".join(message.text for message in request.messages)


class Speaker:
    """An agent that says what it was asked, when it may: ``go["hello"].set()``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ended: list[str] = []
        self.go: dict[str, asyncio.Event] = {}

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        text = request.messages[-1].text
        self.asked.append(text)
        event = self.go.setdefault(text, asyncio.Event())
        try:
            yield f"{text}?"
            await event.wait()
            yield f"{text}!"
        finally:
            self.ended.append(text)

    def let(self, text: str) -> None:
        self.go.setdefault(text, asyncio.Event()).set()


def make_server(agent: Any = recite, limits: SocketLimits | None = None, **settings: Any) -> AgentRunServer:
    """Return a server that stores nothing, unless it is told to."""
    middleware = settings.pop("middleware", ())
    server = AgentRunServer(agent, config=ServerConfig(**{"store_url": None, **settings}), middleware=middleware)
    if limits is not None:
        the_socket(server).limits = limits
    return server


def the_socket(server: AgentRunServer) -> ResponsesSocket:
    socket = server._keeper.socket
    assert isinstance(socket, ResponsesSocket)
    return socket


@asynccontextmanager
async def opened(served: Served, headers: Mapping[str, str] | None = None) -> AsyncIterator[WebSocket]:
    async with served.client() as client:
        websocket = WebSocket(client)
        await websocket.open(headers=(headers or {}).items())
        yield websocket


@asynccontextmanager
async def connected(
    agent: Any = recite, limits: SocketLimits | None = None, **settings: Any
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket of a server of its own, and see that it leaves nothing behind."""
    async with serve(make_server(agent, limits, **settings)) as served:
        async with opened(served) as websocket:
            yield websocket
        await served.nothing_left()


def said(event: dict[str, Any]) -> str:
    """Return the text of a response that is complete."""
    assert event["type"] == "response.completed", event
    text: str = event["response"]["output"][0]["content"][0]["text"]
    return text


def error_of(event: dict[str, Any]) -> tuple[int, str, str | None]:
    """Return status, code and param of an error event."""
    assert event["type"] == "error", event
    assert {"message", "type", "param", "code"} <= set(event["error"])
    return event["status"], event["error"]["code"], event["error"]["param"]


# --- one response


async def test_events_are_those_of_the_stream_one_message_each() -> None:
    body = {"model": "m", "input": "hello", "stream": True, "store": False}
    async with serve(make_server()) as served, opened(served) as websocket:
        answer = await served.ask("POST", RESPONSES, json.dumps(body).encode())
        streamed = [json.loads(event.data) for event in parse_events(answer.body) if event.data != "[DONE]"]
        await websocket.create(store=False)
        events = await websocket.until_end()
    assert [without_ids(event) for event in events] == [without_ids(event) for event in streamed]


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "item_id", "created_at", "completed_at")}
    return [without_ids(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/", "/openai/v1/responses", "/responses"])
async def test_it_is_where_responses_are(path: str) -> None:
    async with serve(make_server()) as served, served.client() as client:
        websocket = WebSocket(client)
        await websocket.open(path)
        assert said(await websocket.turn("hi")) == "hi"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/responses/input_tokens", 405), ("/v1/nothing", 404), ("/v1/models", 200), ("/livez", 200)],
)
async def test_elsewhere_a_handshake_is_a_request(path: str, status: int) -> None:
    async with serve(make_server()) as served, served.client() as client:
        answer = await WebSocket(client).ask(path)
    assert answer.status == status
    if status != 200:
        answer.error()


@pytest.mark.parametrize(
    ("replaced", "status"), [({"sec-websocket-key": "x"}, 400), ({"sec-websocket-version": "8"}, 426)]
)
async def test_a_malformed_handshake_is_refused_in_json(replaced: dict[str, str], status: int) -> None:
    async with serve(make_server()) as served, served.client() as client:
        answer = await WebSocket(client).ask(replaced=replaced)
    assert answer.status == status
    answer.error()


async def test_json_in_a_binary_message_is_read_too() -> None:
    async with connected() as websocket:
        await websocket.send(json.dumps({"type": "response.create", "model": "m", "input": "hi"}).encode())
        assert said((await websocket.until_end())[-1]) == "hi"


# --- lanes


async def test_a_lane_answers_one_after_the_other() -> None:
    speaker = Speaker()
    async with connected(speaker) as websocket:
        for text in ("a", "b", "c"):
            await websocket.create(text)
        speaker.let("b")
        speaker.let("c")
        assert (await websocket.event())["type"] == "response.created"
        await eventually(lambda: speaker.asked == ["a"])
        speaker.let("a")
        turns = [await websocket.until_end() for _ in range(3)]
    assert [said(events[-1]) for events in turns] == ["a?a!", "b?b!", "c?c!"]
    assert speaker.asked == speaker.ended == ["a", "b", "c"]


async def test_lanes_answer_at_the_same_time_and_say_whose_events_are_whose() -> None:
    speaker = Speaker()
    async with connected(speaker) as websocket:
        await websocket.create("a", stream_id="one")
        await websocket.create("b", stream_id="two")
        await websocket.create("c")
        await eventually(lambda: sorted(speaker.asked) == ["a", "b", "c"])
        ends: dict[str | None, str] = {}
        for text in ("c", "b", "a"):
            speaker.let(text)
            while (event := await websocket.event())["type"] != "response.completed":
                assert event.get("stream_id") in ("one", "two", None)
            ends[event.get("stream_id")] = said(event)
    assert ends == {None: "c?c!", "two": "b?b!", "one": "a?a!"}


async def test_no_more_responses_run_at_once_than_may() -> None:
    speaker = Speaker()
    async with connected(speaker, SocketLimits(max_running=2)) as websocket:
        for text in ("a", "b", "c"):
            await websocket.create(text, stream_id=text)
        await eventually(lambda: speaker.asked == ["a", "b"])
        speaker.let("b")
        while (event := await websocket.event())["type"] != "response.completed":
            pass
        assert event["stream_id"] == "b"
        await eventually(lambda: speaker.asked == ["a", "b", "c"])
        speaker.let("a")
        speaker.let("c")
        assert {(await websocket.until_end())[-1]["type"] for _ in range(2)} == {"response.completed"}


async def test_a_connection_has_no_more_lanes_than_may_and_those_go_on() -> None:
    async with connected(limits=SocketLimits(max_lanes=2)) as websocket:
        for name in ("a", "b"):
            await websocket.turn(stream_id=name)
        refused = await websocket.turn(stream_id="c")
        assert error_of(refused) == (400, "websocket_stream_limit_reached", "stream_id")
        assert refused["stream_id"] == "c"
        assert said(await websocket.turn("hi", stream_id="a")) == "hi"
        assert said(await websocket.turn("hi")) == "hi"


@pytest.mark.parametrize("limits", [SocketLimits(max_waiting=2), None], ids=["in number", "in bytes"])
async def test_what_waits_has_a_bound(limits: SocketLimits | None) -> None:
    speaker = Speaker()
    async with connected(speaker, limits, max_body_bytes=2000) as websocket:
        await websocket.create("a")
        await eventually(lambda: speaker.asked == ["a"])
        pad = {} if limits else {"metadata": {"x": "x" * 500, "y": "y" * 300}}
        for text in ("b", "c"):
            await websocket.create(text, **pad)
            speaker.let(text)
        await websocket.create("too much", stream_id="other", **pad)
        while (event := await websocket.event())["type"] != "error":
            pass
        assert error_of(event) == (429, "websocket_queue_full", None)
        assert event["stream_id"] == "other"
        assert event["error"]["headers"]["retry-after"] == "1"
        speaker.let("a")
        assert [said((await websocket.until_end())[-1]) for _ in range(3)] == ["a?a!", "b?b!", "c?c!"]


# --- memory


async def test_a_response_that_is_not_stored_can_be_continued_on_its_connection() -> None:
    server = make_server()
    async with serve(server) as served, AsyncExitStack() as stack:
        websocket = await stack.enter_async_context(opened(served))
        first = await websocket.turn("one")
        await websocket.create("two", previous_response_id=first["response"]["id"])
        events = await websocket.until_end()
        assert said(events[-1]) == "one | one | two"
        shown = [event["response"]["previous_response_id"] for event in events if "response" in event]
        assert shown == [first["response"]["id"]] * 3
        third = await websocket.turn([], previous_response_id=events[-1]["response"]["id"])
        assert said(third) == "one | one | two | one | one | two"
        async with opened(served) as another:
            missed = await another.turn("x", previous_response_id=third["response"]["id"])
            assert error_of(missed) == (400, NOT_FOUND, "previous_response_id")
            assert said(await another.turn("whole context")) == "whole context"
        await stack.aclose()
        await eventually(lambda: len(the_socket(server).open) == 0)
    assert the_socket(server).contexts.bytes == 0, "what was said ends with the connection"


async def test_half_a_character_ends_neither_the_response_nor_the_memory_of_it() -> None:
    async def split(request: AgentRequest) -> AsyncIterator[str]:
        yield "half: \ud83d" if len(request.messages) == 1 else request.messages[-2].text

    async with connected(split) as websocket:
        first = await websocket.turn("one")
        assert said(first) == "half: \ud83d"
        assert said(await websocket.turn("two", previous_response_id=first["response"]["id"])) == "half: ?"


async def test_only_the_last_response_of_a_lane_is_remembered() -> None:
    async with connected() as websocket:
        first, second = await websocket.turn("one"), await websocket.turn("two")
        assert error_of(await websocket.turn(previous_response_id=first["response"]["id"]))[1] == NOT_FOUND
        assert said(await websocket.turn("x", previous_response_id=second["response"]["id"])) == "two | two | x"


async def test_a_continuation_that_fails_ends_the_memory_of_its_own_lane_alone() -> None:
    async with connected() as websocket:
        first = (await websocket.turn("one", stream_id="a"))["response"]["id"]
        other = (await websocket.turn("two", stream_id="b"))["response"]["id"]
        bad = {"previous_response_id": first, "temperature": 99}
        assert error_of(await websocket.turn(stream_id="b", **bad))[2] == "temperature"
        assert said(await websocket.turn("x", stream_id="c", previous_response_id=first)) == "one | one | x"
        assert said(await websocket.turn("x", stream_id="b", previous_response_id=other)) == "two | two | x"
        assert error_of(await websocket.turn(stream_id="a", **bad))[2] == "temperature"
        assert error_of(await websocket.turn(stream_id="a", previous_response_id=first))[1] == NOT_FOUND


async def test_an_agent_that_fails_ends_the_memory_too() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "so far"
        if request.messages[-1].text == "fail":
            raise RuntimeError("canary")

    async with connected(agent) as websocket:
        first = (await websocket.turn("one"))["response"]["id"]
        assert (await websocket.turn("fail", previous_response_id=first))["type"] == "response.failed"
        assert error_of(await websocket.turn(previous_response_id=first))[1] == NOT_FOUND


async def test_stored_and_unstored_responses_continue_each_other() -> None:
    async with serve(make_server(store_url="sqlite")) as served, opened(served) as websocket:
        previous: str | None = None
        for number, store in enumerate((True, False, False, True, False)):
            event = await websocket.turn(str(number), store=store, previous_response_id=previous)
            previous = event["response"]["id"]
            assert event["response"]["store"] is store
        spoken = said(event).split(" | ")
        assert [text for text in spoken if text in "01234"][-1] == "4"
        assert spoken[0] == "0"
        assert len(spoken) == 2**5 - 1, "nothing twice, and nothing left out"


async def test_what_could_not_be_sent_again_is_not_remembered() -> None:
    async with connected(max_body_bytes=1000) as websocket:
        first = (await websocket.turn("x" * 800))["response"]["id"]
        assert error_of(await websocket.turn(previous_response_id=first))[1] == NOT_FOUND


async def test_a_conversation_and_a_response_before_exclude_each_other_here_too() -> None:
    async with connected() as websocket:
        first = (await websocket.turn("one"))["response"]["id"]
        both = await websocket.turn(previous_response_id=first, conversation="conv_1")
        assert error_of(both) == (400, "mutually_exclusive_parameters", "previous_response_id")


# --- warm-up


@pytest.mark.parametrize("fields", [{"input": "be prepared"}, {}, {"input": []}, {"input": None, "tools": []}])
async def test_a_warm_up_says_nothing_and_can_be_continued(fields: dict[str, Any]) -> None:
    speaker = Speaker()
    async with connected(speaker) as websocket:
        message = {"type": "response.create", "model": "m", "generate": False, "stream_id": "a", **fields}
        await websocket.send(message)
        events = await websocket.until_end()
        assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.completed"]
        assert [event["sequence_number"] for event in events] == [0, 1, 2]
        assert {event["stream_id"] for event in events} == {"a"}
        response = events[-1]["response"]
        assert (response["status"], response["output"], response["usage"]["total_tokens"]) == ("completed", [], 0)
        assert speaker.asked == []
        speaker.let("go")
        answer = await websocket.turn("go", stream_id="a", previous_response_id=response["id"])
        assert said(answer) == "go?go!"


async def test_what_a_warm_up_was_told_is_remembered_and_chained() -> None:
    async with connected() as websocket:
        first = (await websocket.turn("one"))["response"]["id"]
        warm = (await websocket.turn("two", generate=False, previous_response_id=first))["response"]
        assert warm["previous_response_id"] == first
        assert said(await websocket.turn("three", previous_response_id=warm["id"])) == "one | one | two | three"


async def test_a_warm_up_is_checked_as_a_request() -> None:
    async with connected() as websocket:
        assert error_of(await websocket.turn(generate=False, temperature=99))[2] == "temperature"


# --- errors


@pytest.mark.parametrize(
    ("message", "status", "code", "param"),
    [
        ("{", 400, "invalid_json", None),
        ("", 400, "invalid_json", None),
        ("[" * 5000, 400, "invalid_json", None),
        ('{"type":"response.create","model":"m","input":NaN}', 400, "invalid_json", None),
        ("[]", 400, "invalid_type", None),
        (b"\xff", 400, "invalid_json", None),
        ({}, 400, "missing_required_parameter", "type"),
        ({"type": "response.cancel"}, 400, "invalid_value", "type"),
        ({"type": "response.create"}, 400, "missing_required_parameter", "model"),
        ({"type": "response.create", "model": "m"}, 400, "missing_required_parameter", "input"),
        ({"type": "response.create", "model": "m", "input": 7}, 400, "invalid_type", "input"),
        (
            {"type": "response.create", "model": "m", "input": "x", "background": True},
            400,
            "invalid_value",
            "background",
        ),
        (
            {"type": "response.create", "model": "m", "input": "x", "stream_id": ""},
            400,
            "invalid_stream_id",
            "stream_id",
        ),
    ],
)
async def test_a_message_that_is_wrong_is_told_so_and_the_connection_goes_on(
    message: Any, status: int, code: str, param: str | None
) -> None:
    async with connected() as websocket:
        await websocket.send(message)
        assert error_of(await websocket.event()) == (status, code, param)
        assert said(await websocket.turn("hi")) == "hi"


async def test_fields_of_http_are_ignored() -> None:
    async with connected() as websocket:
        fields = {"stream": False, "stream_options": {"include_obfuscation": True}, "background": False}
        assert said(await websocket.turn("hi", **fields)) == "hi"


async def test_a_message_that_is_too_long_ends_the_connection() -> None:
    async with connected(max_body_bytes=1000) as websocket:
        await websocket.create("x" * 1000)
        assert await websocket.closed() == 1009


async def test_an_agent_that_fails_before_it_spoke_is_an_error_and_after_that_a_failed_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        if request.messages[-1].text == "late":
            yield "so far"
        raise RuntimeError("canary")

    async with connected(agent) as websocket:
        early = await websocket.turn("early")
        assert error_of(early) == (500, "agent_error", None)
        assert early["error"]["headers"]["x-should-retry"] == "false"
        await websocket.create("late")
        events = await websocket.until_end()
        assert [event["type"] for event in events if event["type"] in ("error", "response.failed")] == [
            "response.failed"
        ]
        assert events[-1]["response"]["error"]["code"] == "server_error"
        assert "canary" not in json.dumps([early, events])


async def test_a_server_that_fails_is_an_error_without_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    socket = the_socket(server)

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("canary")

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})

    async with serve(server) as served, opened(served) as websocket:
        for app in (broken, silent):
            socket.app = app
            told = await websocket.turn()
            assert error_of(told) == (500, "internal_error", None)
            assert "canary" not in json.dumps(told)
        socket.app = server
        assert said(await websocket.turn("hi")) == "hi"


async def test_an_error_that_no_end_follows_is_told() -> None:
    server = make_server()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        nested = {"message": "No.", "type": "server_error", "param": None, "code": "lost"}
        data = json.dumps({"type": "error", "sequence_number": 3, "error": nested})
        await send({"type": "http.response.body", "body": f"event: error\ndata: {data}\n\n".encode()})

    the_socket(server).app = app
    async with serve(server) as served, opened(served) as websocket:
        assert error_of(await websocket.turn()) == (500, "lost", None)


# --- who may


class Names:
    """Believes everybody whose name it knows."""

    def __init__(self, *names: str) -> None:
        self.names = set(names)

    def recognises(self, credential: str) -> bool:
        return True

    async def verify(self, credential: str) -> Principal:
        if credential not in self.names:
            raise CredentialRefusedError("another name")
        return Principal(credential, "names")

    async def aclose(self) -> None:
        pass


ALICE = {"authorization": "Bearer alice"}


async def test_nobody_is_let_in_without_a_credential_and_nobody_asks_on_without_a_good_one() -> None:
    async def who(request: AgentRequest) -> str:
        return str(request.principal.subject)

    names = Names("alice")
    server = make_server(who, middleware=[Middleware(AuthenticationMiddleware, verifiers=[names])])
    async with serve(server) as served:
        for headers in ({}, {"authorization": "Bearer bob"}):
            async with served.client() as client:
                answer = await WebSocket(client).ask(headers=headers.items())
                assert answer.status == 401
                assert answer.header("www-authenticate")
                assert (answer.header("x-request-id") or "").startswith("req_")
                answer.error()
        async with opened(served, ALICE) as websocket:
            assert said(await websocket.turn()) == "alice"
            names.names.clear()  # the key is withdrawn
            assert error_of(await websocket.turn())[:2] == (401, "invalid_api_key")


async def test_middleware_that_knows_requests_alone_guards_what_comes_over_a_websocket() -> None:
    class OnlyHTTP:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and (b"x-key", b"1") not in scope["headers"]:
                await send({"type": "http.response.start", "status": 403, "headers": []})
                await send({"type": "http.response.body", "body": b"Forbidden"})
            else:
                await self.app(scope, receive, send)

    async with serve(make_server(middleware=[Middleware(OnlyHTTP)])) as served:
        async with opened(served) as websocket:
            assert error_of(await websocket.turn())[:2] == (403, "refused")
        async with opened(served, {"x-key": "1"}) as websocket:
            assert said(await websocket.turn("hi")) == "hi"


async def test_who_a_gateway_has_named_is_known_to_each_response() -> None:
    async def who(request: AgentRequest) -> str:
        return str(request.principal.subject)

    gateway = Middleware(GatewayMiddleware, trusted_proxies=["127.0.0.1"])
    headers = {"x-auth-subject": "alice", "x-auth-issuer": "names"}
    async with serve(make_server(who, middleware=[gateway])) as served, opened(served, headers) as websocket:
        assert [said(await websocket.turn()) for _ in range(2)] == ["alice", "alice"]


async def test_each_response_is_counted_as_a_request() -> None:
    async with connected(rate_limit_requests=3) as websocket:  # the handshake is one
        assert [(await websocket.turn())["type"] for _ in range(2)] == ["response.completed"] * 2
        refused = await websocket.turn()
        assert error_of(refused)[:2] == (429, "rate_limit_exceeded")
        assert {"retry-after", "x-ratelimit-limit-requests"} <= set(refused["error"]["headers"])


async def test_the_tokens_of_each_response_are_taken() -> None:
    async with connected(rate_limit_tokens=10) as websocket:
        assert (await websocket.turn("x" * 400))["type"] == "response.completed"
        assert error_of(await websocket.turn())[:2] == (429, "rate_limit_exceeded")


@pytest.mark.parametrize(("origin", "status"), [("http://evil.example", 403), ("http://app.example", 101)])
async def test_pages_may_open_one_that_may_make_requests(origin: str, status: int) -> None:
    async with serve(make_server(cors_origins=["http://app.example"])) as served, served.client() as client:
        answer = await WebSocket(client).ask(headers=[("origin", origin)])
        assert answer.status == status
        if status == 403:
            assert answer.error()["code"] == "origin_not_allowed"


async def test_the_headers_of_the_handshake_are_those_of_each_request() -> None:
    async def agent(request: AgentRequest) -> str:
        own = {name: value for name, value in request.headers.items() if name.startswith(("x-own", "sec-", "upgrade"))}
        return json.dumps(own)

    async with serve(make_server(agent)) as served, opened(served, {"x-own": "1"}) as websocket:
        assert said(await websocket.turn()) == '{"x-own": "1"}'


# --- the client leaves


@pytest.mark.parametrize("how", ["close", "fin", "rst"])
async def test_a_client_that_leaves_ends_its_agents(how: str) -> None:
    speaker = Speaker()
    async with serve(make_server(speaker)) as served:
        async with opened(served) as websocket:
            await websocket.create("a", stream_id="a")
            await websocket.create("b", stream_id="b")
            await websocket.create("waits", stream_id="b")
            await eventually(lambda: len(speaker.asked) == 2)
            if how == "close":
                await websocket.client.send(close_frame())
            else:
                websocket.client.leave(how)
            await eventually(lambda: sorted(speaker.ended) == ["a", "b"])
        await served.nothing_left()
    assert "waits" not in speaker.asked


async def test_an_agent_that_may_goes_on_without_its_client() -> None:
    speaker = Speaker()
    server = make_server(speaker, on_disconnect="continue")
    async with serve(server) as served:
        async with opened(served) as websocket:
            await websocket.create("a")
            await eventually(lambda: speaker.asked == ["a"])
            websocket.client.rst()
            await eventually(lambda: all(one.disconnected for one in server._sweeper.active))  # type: ignore[attr-defined]
            assert speaker.ended == []
            speaker.let("a")
        await served.nothing_left()
    assert speaker.ended == ["a"]


# --- the server ends it


async def test_a_drain_lets_responses_finish_and_refuses_others() -> None:
    speaker = Speaker()
    server = make_server(speaker)
    drained = asyncio.Event()
    async with serve(server) as served, opened(served) as busy, opened(served) as idle:
        await busy.create("a")
        await busy.create("waits")
        await eventually(lambda: speaker.asked == ["a"])
        server.drain.begin(drained.set)
        assert await idle.closed() == 1001
        await busy.create("comes", stream_id="b")
        while (event := await busy.event())["type"] != "error":
            pass
        assert error_of(event)[:2] == (503, "server_shutting_down")
        assert event["stream_id"] == "b"
        async with served.client() as client:
            refused = await WebSocket(client).ask()
            assert (refused.status, refused.error()["code"]) == (503, "server_shutting_down")
        assert not drained.is_set()
        speaker.let("a")
        assert said((await busy.until_end())[-1]) == "a?a!"
        assert error_of(await busy.event())[:2] == (503, "server_shutting_down")
        assert await busy.closed() == 1001
        await within(drained.wait())
    assert speaker.asked == ["a"]


async def test_a_drain_waits_until_connections_are_closed_though_nothing_runs() -> None:
    server = make_server()
    drained = asyncio.Event()
    async with serve(server) as served, opened(served) as websocket:
        server.drain.begin(drained.set)
        assert not drained.is_set()
        assert await websocket.closed() == 1001
        await within(drained.wait())


async def test_a_drain_does_not_wait_for_ever() -> None:
    speaker = Speaker()
    server = make_server(speaker, drain_timeout=0.01)
    async with serve(server) as served, opened(served) as websocket:
        await websocket.create("a")
        await eventually(lambda: speaker.asked == ["a"])
        server.drain.begin()
        assert (await websocket.until_end())[-1]["type"] == "response.failed"
        assert await websocket.closed() == 1001


@pytest.mark.parametrize("busy", [False, True])
async def test_a_connection_that_is_old_is_told_to_make_place_for_another(busy: bool) -> None:
    speaker = Speaker()
    server = make_server(speaker, SocketLimits(max_age=0.05))
    async with serve(server) as served, opened(served) as websocket:
        if busy:
            await websocket.create("a")
            (connection,) = the_socket(server).open
            await eventually(lambda: connection._farewell is not None)
            await websocket.create("b")
            while (event := await websocket.event())["type"] != "error":
                pass
            assert error_of(event)[:2] == (400, "websocket_connection_limit_reached")
            speaker.let("a")
            assert said((await websocket.until_end())[-1]) == "a?a!"
        told = await websocket.event()
        assert error_of(told) == (400, "websocket_connection_limit_reached", None)
        assert "stream_id" not in told
        assert await websocket.closed() == 1000


async def test_a_connection_that_is_of_no_use_is_closed() -> None:
    async with connected(limits=SocketLimits(max_idle=0.05)) as websocket:
        assert said(await websocket.turn("hi")) == "hi"
        assert await websocket.closed() == 1000


async def test_one_that_is_of_use_is_not() -> None:
    speaker = Speaker()
    async with connected(speaker, SocketLimits(max_idle=0.01)) as websocket:
        await websocket.create("a")
        await asyncio.sleep(0.05)
        speaker.let("a")
        assert said((await websocket.until_end())[-1]) == "a?a!"


async def test_there_are_no_more_connections_than_may() -> None:
    async with serve(make_server(limits=SocketLimits(max_connections=1))) as served:
        async with opened(served), served.client() as client:
            refused = await WebSocket(client).ask()
            assert (refused.status, refused.error()["code"]) == (503, "too_many_websockets")
            assert refused.header("retry-after") == "10"
        await served.nothing_left()
        async with opened(served):
            pass


async def test_one_caller_leaves_connections_to_others() -> None:
    names = Middleware(AuthenticationMiddleware, verifiers=[Names("alice", "bob")])
    server = make_server(max_websockets=3, max_websockets_per_owner=1, middleware=[names])
    async with serve(server) as served:
        bob = {"authorization": "Bearer bob"}
        async with opened(served, ALICE), opened(served, bob), served.client() as client:
            refused = await WebSocket(client).ask(headers=ALICE.items())
            assert (refused.status, refused.error()["code"]) == (429, "too_many_websockets")
            assert (refused.error()["type"], refused.header("retry-after")) == ("rate_limit_error", "10")
        await served.nothing_left()
        async with opened(served, ALICE):
            pass


async def test_callers_that_nobody_knows_are_not_one_caller() -> None:
    server = make_server(max_websockets=3, max_websockets_per_owner=1)
    async with serve(server) as served, opened(served), opened(served) as websocket:
        assert said(await websocket.turn("hi")) == "hi"


# --- where it is served


async def test_every_response_and_the_connection_have_a_line_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    server = make_server(log_format="json", trust_request_id=True)
    async with serve(server) as served:
        async with opened(served, {"x-request-id": "connection-1"}) as websocket:
            await websocket.turn()
            await websocket.turn(temperature=99)
        await served.nothing_left()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first, second, connection = lines
    assert [(line["method"], line["status"]) for line in lines] == [("POST", 200), ("POST", 400), ("WEBSOCKET", 101)]
    assert first["websocket"] == second["websocket"] == connection["request_id"] == "connection-1"
    assert (first["model"], first["run"], second["error"], connection["responses"]) == (
        "m",
        "completed",
        "decimal_above_max_value",
        2,
    )
    assert len({line["request_id"] for line in lines}) == 3


@pytest.mark.parametrize("way", ["docs", "mounted"])
async def test_it_is_there_behind_fastapi_too(way: str) -> None:
    server = make_server(docs=way == "docs")
    app: Any = server
    path = RESPONSES
    if way == "mounted":
        app = FastAPI(lifespan=server.lifespan)
        app.mount("/agent", server.as_fastapi_app())
        app.websockets = server.websockets.__class__(frozenset({f"/agent{RESPONSES}"}))
        path = f"/agent{RESPONSES}"
    async with serve(app) as served, served.client() as client:
        websocket = WebSocket(client)
        await websocket.open(path)
        first = await websocket.turn("one")
        assert said(await websocket.turn("two", previous_response_id=first["response"]["id"])) == "one | one | two"


async def test_it_works_with_the_websockets_of_uvicorn_itself(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "from agentrun_server import AgentRunServer, ServerConfig\n"
        "server = AgentRunServer(lambda request: request.messages[-1].text, config=ServerConfig(store_url=None))\n"
    )
    arguments = ("-m", "uvicorn", "app:server", "--port", "0")
    async with serve_process(*arguments, cwd=tmp_path) as running:
        async with running.client() as client, running.client() as hostile:
            websocket = WebSocket(client)
            await websocket.open()
            assert said(await websocket.turn("hi")) == "hi"
            refused = await WebSocket(hostile).ask(headers=[("origin", "http://evil.example")])
            assert refused.status == 403
            running.signal(signal.SIGTERM)
            assert await websocket.closed() == 1001
        await running.exit_code()


def test_frames_of_the_test_client_are_masked() -> None:
    assert frame(b"x")[1] & 0x80
