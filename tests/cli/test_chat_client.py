"""The client behind ``chat``: what it reads from a stream, and what it makes of bad servers."""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.cli import chat_client
from agentrun_server.cli.chat_client import (
    Activity,
    ChatClient,
    ChatError,
    ChatEvent,
    ChatOptions,
    Finished,
    Reasoning,
    SSEDecoder,
    Text,
    ToolRequest,
    base_url,
    is_loopback,
)
from agentrun_server.testing import FakeOpenAI, Gate, ToolCallSpec, Turn

QUESTION = [{"role": "user", "content": "hi"}]
Handler = Callable[[httpx2.Request], httpx2.Response]


def ask(handler: Handler, *, options: ChatOptions | None = None, **client: Any) -> list[ChatEvent]:
    """Return the events of an answer that `handler` gives."""
    with ChatClient("http://server", transport=httpx2.MockTransport(handler), **client) as chat:
        return list(chat.ask("m", QUESTION, options or ChatOptions()))


def stream(*frames: str | dict[str, Any], status: int = 200) -> Handler:
    """Return a server that answers with these events."""
    body = "".join(f"data: {frame if isinstance(frame, str) else json.dumps(frame)}\n\n" for frame in frames).encode(
        "utf-8", "surrogatepass"
    )
    return lambda _: httpx2.Response(status, content=body, headers={"content-type": "text/event-stream"})


def document(body: Any, status: int = 200, **headers: str) -> Handler:
    """Return a server that answers with one JSON document."""
    return lambda _: httpx2.Response(status, json=body, headers=headers)


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def error_of(handler: Handler, **options: Any) -> str:
    with pytest.raises(ChatError) as caught:
        ask(handler, **options)
    return str(caught.value)


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/chat/completions", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/models", "http://127.0.0.1:8000/v1"),
        ("https://agents.example/openai/v1", "https://agents.example/openai/v1"),
        ("https://agents.example/compatible/api", "https://agents.example/compatible/api"),
        ("localhost:8000", "http://localhost:8000/v1"),
        (" localhost ", "http://localhost/v1"),
        ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_completed(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://host", "is not an http:// or https:// address"),
        ("", "is not an http:// or https:// address"),
        ("http://", "is not an http:// or https:// address"),
        ("http://host:port", "is not a URL"),
        ("http://[::1", "is not a URL"),
        ("http://user:pass@host", "a key goes into --api-key"),
        ("http://host/v1?key=1", "a key goes into --api-key"),
    ],
)
def test_what_is_no_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        base_url(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("http://a.localhost", True),
        ("http://192.168.0.1", False),
        ("http://localhost.example", False),
    ],
)
def test_this_machine_is_recognised(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


# --- the event stream --------------------------------------------------------------------------------------


def decode(*pieces: bytes) -> list[str]:
    decoder = SSEDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata: c\n\n", ["a", "b", "c"]),
        (b": comment\n\ndata: a\n: comment\n\n", ["a"]),
        (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", ["a"]),
        (b"id: 1\n\n: keep-alive\n\ndata: a\n\n", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data:  two spaces\n\n", [" two spaces"]),
        (b"data\n\n", [""]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"data: not ended\n", []),
        (b"data: \xff\n\n", ["\ufffd"]),
    ],
)
def test_events_are_read(text: bytes, events: list[str]) -> None:
    assert decode(text) == events


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.data(),
)
def test_it_does_not_matter_where_a_stream_is_cut(texts: list[str], end: str, data: st.DataObject) -> None:
    raw = "".join(f"data: {text}{end}{end}" for text in texts).encode() + b": end\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    assert decode(*[raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]) == texts


def test_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_EVENT", 1000)
    with pytest.raises(ChatError, match="event of more than"):
        decode(*[b"data: " + b"x" * 50 + b"\n"] * 100)
    with pytest.raises(ChatError, match="event of more than"):
        decode(*[b"x" * 50] * 100)


# --- answers ----------------------------------------------------------------------------------------------------


def test_a_stream_is_read_piece_by_piece() -> None:
    events = ask(
        stream(
            delta(role="assistant", content=""),
            delta(reasoning_content="hm", reasoning="hm"),
            {"choices": [], "x_agent": {"type": "step.started", "name": "s"}},
            delta(content="Hel"),
            delta(content="lo", refusal=None),
            delta("stop"),
            {"choices": [], "usage": {"total_tokens": 1}},
            "[DONE]",
        )
    )
    assert events == [
        Reasoning("hm"),
        Activity({"type": "step.started", "name": "s"}),
        Text("Hel"),
        Text("lo"),
        Finished("stop"),
    ]


def test_tool_calls_are_put_together() -> None:
    events = ask(
        stream(
            delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
            delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
            delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]),
            delta("tool_calls"),
            "[DONE]",
        )
    )
    assert events == [ToolRequest("f", '{"a":1}'), ToolRequest("g", "{}"), Finished("tool_calls")]


def test_an_answer_in_one_piece_is_read() -> None:
    message = {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = {
        "choices": [{"message": message, "finish_reason": "tool_calls"}],
        "x_agent": {"events": [{"type": "progress", "label": "x"}]},
    }
    assert ask(document(body), options=ChatOptions(stream=False)) == [
        Activity({"type": "progress", "label": "x"}),
        Reasoning("hm"),
        Text("Hello"),
        ToolRequest("f", "{}"),
        Finished("tool_calls"),
    ]


def test_a_refusal_is_an_answer() -> None:
    assert ask(stream(delta(refusal="I will not."), delta("stop"))) == [Text("I will not."), Finished("stop")]


def test_the_request_says_what_was_asked_for() -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return stream(delta("stop"), "[DONE]")(request)

    ask(handler, options=ChatOptions(events=True), api_key="secret")
    assert str(seen[0].url) == "http://server/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    assert seen[0].headers["x-agent-events"] == "tools,steps,progress,io"
    assert json.loads(seen[0].content) == {"model": "m", "messages": QUESTION, "stream": True}
    ask(handler, options=ChatOptions(stream=False))
    assert "authorization" not in seen[1].headers
    assert "x-agent-events" not in seen[1].headers
    assert json.loads(seen[1].content)["stream"] is False


@pytest.mark.parametrize("key", ["two words", "naïve", "line\nbreak"])
def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(ChatError) as caught:
        ChatClient("http://server", api_key=key)
    assert key not in str(caught.value)


# --- bad servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (stream(delta(content="Hel")), "the stream ended before the answer was complete"),
        (stream(delta(content="Hel"), "[DONE]"), "the stream ended before the answer was complete"),
        (stream(), "the stream ended before the answer was complete"),
        (stream("{nonsense"), "the server sent something that is not JSON"),
        (stream("[1, 2]"), "the server sent JSON that is not an object"),
        (stream("[" * 100_000), "the server sent something that is not JSON"),
        (stream({"error": {"message": "it broke", "code": "agent_error"}}), "it broke (agent_error)"),
        (stream({"error": "it broke"}), "it broke"),
        (stream({"error": {}, "choices": []}), "the stream ended before the answer was complete"),
        (stream({"error": {"code": 7}}), "the server gave no reason"),
        (document({"choices": []}), "the server's answer holds no message"),
        (document({"choices": [{"message": None}]}), "the server's answer holds no message"),
        (document([1]), "the server sent JSON that is not an object"),
        (document({"error": {"message": "late", "code": None}}), "late"),
        (
            document({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429, **{"retry-after": "3"}),
            "429 Too Many Requests: slow down (rate_limit_exceeded); try again in 3 s",
        ),
        (
            document({"error": {"message": "no", "code": None}}, 500, **{"x-request-id": "req_1"}),
            "500 Internal Server Error: no [req_1]",
        ),
        (document({"detail": "Not Found"}, 404), "404 Not Found"),
        (lambda _: httpx2.Response(502, text="<html>bad gateway"), "502 Bad Gateway"),
        (
            lambda _: httpx2.Response(307, headers={"location": "https://elsewhere.example/"}),
            "307 Temporary Redirect; the server wants you to go to https://elsewhere.example/",
        ),
    ],
)
def test_what_goes_wrong_is_one_line(handler: Handler, message: str) -> None:
    assert error_of(handler) == message


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": None},
        {"choices": [None]},
        {"choices": [{"delta": None}]},
        {"choices": [{"delta": {"content": 7, "reasoning": [], "tool_calls": {"a": 1}}}]},
        {"choices": [{"delta": {"tool_calls": [None, {"function": "f"}, {"index": "x", "function": {"name": None}}]}}]},
        {"x_agent": "busy"},
        {},
    ],
)
def test_fields_of_the_wrong_kind_are_passed_over(chunk: dict[str, Any]) -> None:
    events = ask(stream(chunk, delta("stop", content="ok")))
    assert Text("ok") in events
    assert events[-1] == Finished("stop")


def test_a_redirect_is_not_followed() -> None:
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        return httpx2.Response(302, headers={"location": "http://elsewhere/"})

    error_of(handler, api_key="secret")
    assert seen == ["http://server/v1/chat/completions"]


def test_too_large_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_EVENT", 1000)
    assert "the server sent more than" in error_of(document({"x": "y" * 2000}))


def failing(error: Exception) -> Handler:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ConnectError("[Errno 111] Connection refused"),
         "cannot reach http://server/v1: Connection refused. Is the server running?"),
        (httpx2.ReadTimeout("x"), "http://server/v1 did not answer in time"),
        (httpx2.RemoteProtocolError("peer closed"), "the connection to http://server/v1 failed: peer closed"),
        (httpx2.ReadError(""), "the connection to http://server/v1 failed: ReadError"),
    ],
)  # fmt: skip
def test_a_network_that_fails_is_told(error: Exception, message: str) -> None:
    assert error_of(failing(error)) == message


def test_a_connection_that_breaks_in_the_stream_is_told() -> None:
    def body() -> Iterator[bytes]:
        yield b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
        raise httpx2.RemoteProtocolError("incomplete chunked read")

    handler: Handler = lambda _: httpx2.Response(  # noqa: E731
        200, content=body(), headers={"content-type": "text/event-stream"}
    )
    with ChatClient("http://server", transport=httpx2.MockTransport(handler)) as chat:
        events = chat.ask("m", QUESTION, ChatOptions())
        assert next(events) == Text("Hel")
        with pytest.raises(ChatError, match="the connection to http://server/v1 failed"):
            next(events)


# --- models -------------------------------------------------------------------------------------------------------


def models(handler: Handler) -> list[str]:
    with ChatClient("http://server", transport=httpx2.MockTransport(handler)) as chat:
        return chat.models()


def test_models_are_listed() -> None:
    assert models(document({"data": [{"id": "a"}, {"id": 7}, None, {"id": "b"}]})) == ["a", "b"]


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (document({"data": []}), "http://server/v1/models lists no model; name one with --model"),
        (document({}), "http://server/v1/models lists no model; name one with --model"),
        (document({"error": {"message": "who are you?", "code": None}}, 401), "401 Unauthorized: who are you?"),
        (lambda _: httpx2.Response(200, text="hello"), "the server sent something that is not JSON"),
        (failing(httpx2.ConnectError("nobody")), "cannot reach http://server/v1: nobody. Is the server running?"),
    ],
)
def test_a_list_of_models_that_does_not_come_is_told(handler: Handler, message: str) -> None:
    with pytest.raises(ChatError) as caught:
        models(handler)
    assert str(caught.value) == message


# --- over a socket --------------------------------------------------------------------------------------------------


def test_a_real_stream_arrives_as_it_is_sent() -> None:
    gate = Gate()
    fake = FakeOpenAI(Turn(["Hello", " there"], gate=gate, gate_at=1))
    with fake.serve() as url, ChatClient(url) as client:
        events = client.ask(client.models()[0], QUESTION, ChatOptions())
        assert next(events) == Text("Hello")
        gate.open()
        assert list(events) == [Text(" there"), Finished("stop")]


def test_a_client_that_closes_the_stream_hangs_up() -> None:
    fake = FakeOpenAI(Turn(["Hello", " there"], gate=Gate(), gate_at=1))
    with fake.serve() as url, ChatClient(url) as client:
        events = client.ask("m", QUESTION, ChatOptions())
        assert next(events) == Text("Hello")
        events.close()
        assert fake.requests[0].ended_sync() == "disconnected"


def test_a_silent_server_is_given_up() -> None:
    fake = FakeOpenAI(Turn("Hello", gate=Gate()))
    with (
        fake.serve() as url,
        ChatClient(url, timeout=0.2) as client,
        pytest.raises(ChatError, match="did not answer in time"),
    ):
        list(client.ask("m", QUESTION, ChatOptions()))


def test_a_tool_call_of_a_real_server_is_read() -> None:
    fake = FakeOpenAI(Turn(tool_calls=[ToolCallSpec("get_weather", {"city": "Paris"})]))
    with fake.serve() as url, ChatClient(url) as client:
        events = list(client.ask("m", QUESTION, ChatOptions()))
    assert [type(event) for event in events] == [ToolRequest, Finished]


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with FakeOpenAI("Hello").serve() as url, ChatClient(url) as client:
        assert Text("Hello") in list(client.ask("m", QUESTION, ChatOptions()))
