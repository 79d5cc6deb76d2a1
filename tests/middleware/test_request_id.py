import asyncio
import logging
import re
from contextvars import copy_context

import pytest

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.request_id import RequestIDMiddleware, new_request_id, request_id
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import CONNECT, Behind, call, http_scope, websocket_scope
from tests.support.raw_client import CHAT, chat_body
from tests.support.serve import serve

MADE = "req_00000000000000000000000000000001"


def middleware(app: Behind, *, trust: bool = False, header: str = "x-request-id") -> RequestIDMiddleware:
    """Return the middleware with an id that is known."""
    return RequestIDMiddleware(app, trust=trust, header=header, new_id=lambda: MADE)


def ids_in(scope: Scope, header: bytes = b"x-request-id") -> list[bytes]:
    return [value for name, value in scope["headers"] if name == header]


def test_an_id_is_128_random_bits() -> None:
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", one) for one in made)


async def test_the_app_the_client_and_the_state_have_the_same_id() -> None:
    app = Behind()
    answer = await call(middleware(app), http_scope())
    assert answer.header("x-request-id") == MADE
    assert ids_in(app.scope) == [MADE.encode()]
    assert app.scope["state"] == {"request_id": MADE}


async def test_each_request_gets_one_of_its_own() -> None:
    app = Behind()
    served = RequestIDMiddleware(app)
    answers = [await call(served, http_scope()) for _ in range(3)]
    assert len({answer.header("x-request-id") for answer in answers}) == 3


async def test_a_clients_id_is_replaced() -> None:
    app = Behind()
    scope = http_scope(headers=[("x-request-id", "theirs"), ("accept", "*/*"), ("X-Request-ID", "again")])
    answer = await call(middleware(app), scope)
    assert answer.header("x-request-id") == MADE
    assert app.scope["headers"] == [(b"accept", b"*/*"), (b"x-request-id", MADE.encode())]


@pytest.mark.parametrize("theirs", ["a", "A-z_0-9", "x" * 64])
async def test_a_clients_id_is_taken_over_when_clients_are_trusted(theirs: str) -> None:
    app = Behind()
    answer = await call(middleware(app, trust=True), http_scope(headers=[("x-request-id", theirs)]))
    assert answer.header("x-request-id") == theirs
    assert ids_in(app.scope) == [theirs.encode()]
    assert app.scope["state"]["request_id"] == theirs


@pytest.mark.parametrize(
    "theirs",
    ["", "x" * 65, "a b", "a\tb", "a.b", "a:b", "é", "a\n", "\na", "a\r\nset-cookie: x", "a\x00", "<script>", "٣",
     "a,b"],
)  # fmt: skip
async def test_what_has_not_the_form_of_an_id_is_never_taken_over(theirs: str) -> None:
    app = Behind()
    scope = http_scope()
    scope["headers"] = [(b"x-request-id", theirs.encode())]
    answer = await call(middleware(app, trust=True), scope)
    assert answer.header("x-request-id") == MADE
    assert ids_in(app.scope) == [MADE.encode()]


async def test_two_ids_are_none() -> None:
    app = Behind()
    scope = http_scope(headers=[("x-request-id", "one"), ("x-request-id", "two")])
    answer = await call(middleware(app, trust=True), scope)
    assert answer.header("x-request-id") == MADE
    assert ids_in(app.scope) == [MADE.encode()]


@pytest.mark.parametrize("name", ["x-request-id", "X-Request-ID"])
async def test_an_app_that_sends_an_id_of_its_own_is_overruled(name: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.encode(), b"other"), (b"x-kept", b"1"), (name.encode(), b"another")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answer = await call(RequestIDMiddleware(app, new_id=lambda: MADE), http_scope())
    assert answer.headers == [(b"x-kept", b"1"), (b"x-request-id", MADE.encode())]


async def test_a_head_that_the_app_sends_again_and_again_is_not_changed() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": ((b"x-kept", b"1"),)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start)

    for _ in range(2):
        await call(RequestIDMiddleware(app), http_scope())
    assert start == {"type": "http.response.start", "status": 200, "headers": ((b"x-kept", b"1"),)}


async def test_only_the_head_of_an_answer_is_touched() -> None:
    body: Message = {"type": "http.response.body", "body": b"", "more_body": False}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send(body)

    answer = await call(RequestIDMiddleware(app, new_id=lambda: MADE), http_scope())
    assert answer.headers == [(b"x-request-id", MADE.encode())]
    assert answer.messages[1] is body


async def test_the_state_of_other_requests_is_left_alone() -> None:
    shared = {"database": "one"}
    app = Behind()
    await call(middleware(app), http_scope(state=shared))
    assert shared == {"database": "one"}
    assert app.scope["state"] == {"database": "one", "request_id": MADE}


async def test_an_id_that_was_given_in_front_is_kept_and_not_sent_a_second_time() -> None:
    app = Behind()
    scope = http_scope(state={"request_id": "req_front"}, headers=[("x-request-id", "theirs")])
    seen = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request_id.get())
        await app(scope, receive, send)

    answer = await call(RequestIDMiddleware(noting), scope)
    assert answer.header("x-request-id") is None, "who gave it sends it"
    assert app.scope["state"] == {"request_id": "req_front"}
    assert seen == ["req_front"]


async def test_one_inside_another_changes_nothing() -> None:
    app = Behind()
    answer = await call(middleware(middleware(app)), http_scope())  # type: ignore[arg-type]
    assert answer.header("x-request-id") == MADE
    assert ids_in(app.scope) == [MADE.encode()]


async def test_another_header_can_be_chosen() -> None:
    app = Behind()
    scope = http_scope(headers=[("x-correlation-id", "theirs"), ("x-request-id", "not looked at")])
    answer = await call(middleware(app, trust=True, header="X-Correlation-ID"), scope)
    assert answer.header("x-correlation-id") == "theirs"
    assert ids_in(app.scope) == [b"not looked at"]


@pytest.mark.parametrize("header", ["", "x request id", "x-id:", "x-id\r\nset-cookie", "ä", "x-id\n"])
def test_what_is_no_name_of_a_header_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        RequestIDMiddleware(Behind(), header=header)


class TestWebSockets:
    async def test_a_handshake_has_an_id_and_its_answer_too(self) -> None:
        app = Behind()
        answer = await call(middleware(app), websocket_scope(headers=[("x-request-id", "theirs")]))
        assert answer.header("x-request-id") == MADE
        assert ids_in(app.scope) == [MADE.encode()]
        assert app.scope["state"] == {"request_id": MADE}

    async def test_so_has_one_that_is_refused_with_an_answer(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
            await send({"type": "websocket.http.response.body", "body": b""})

        answer = await call(RequestIDMiddleware(app, new_id=lambda: MADE), websocket_scope(denial=True))
        assert (answer.status, answer.header("x-request-id")) == (401, MADE)

    async def test_its_messages_pass_as_they_are(self) -> None:
        said: list[Message] = [
            {"type": "websocket.accept"},
            {"type": "websocket.send", "text": "hi"},
            {"type": "websocket.close", "code": 1000},
        ]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in said:
                await send(message)

        answer = await call(RequestIDMiddleware(app), websocket_scope(), [CONNECT])
        assert answer.messages[1] is said[1]
        assert answer.messages[2] is said[2]


async def test_the_lifespan_passes() -> None:
    app = Behind()
    scope: Scope = {"type": "lifespan"}
    await call(RequestIDMiddleware(app), scope)
    assert app.scope is scope
    assert scope == {"type": "lifespan"}


class TestContextVariable:
    async def test_it_holds_the_id_while_the_app_runs_and_only_then(self) -> None:
        seen = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(request_id.get())
            await asyncio.create_task(self.note(seen))

        await call(RequestIDMiddleware(app, new_id=lambda: MADE), http_scope())
        assert seen == [MADE, MADE], "tasks of the app have it too"
        assert request_id.get() == ""

    async def note(self, seen: list[str]) -> None:
        seen.append(request_id.get())

    async def test_an_app_that_fails_does_not_leave_it_behind(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise OSError

        with pytest.raises(OSError):
            await call(RequestIDMiddleware(app), http_scope())
        assert request_id.get() == ""

    async def test_requests_at_the_same_time_do_not_see_each_others(self) -> None:
        met = asyncio.Barrier(2)
        seen = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await met.wait()
            seen.append((scope["state"]["request_id"], request_id.get()))

        served = RequestIDMiddleware(app)
        calls = [asyncio.create_task(call(served, http_scope()), context=copy_context()) for _ in range(2)]
        await asyncio.gather(*calls)
        assert len({one for one, _ in seen}) == 2
        assert all(in_state == in_context for in_state, in_context in seen)


class TestWithTheServer:
    """In front of an `AgentRunServer`, which gives ids of its own."""

    @pytest.mark.parametrize("trust_request_id", [True, False])
    async def test_an_answer_has_one_id_however_both_are_set(self, http: str, trust_request_id: bool) -> None:
        async def agent(request: AgentRequest) -> str:
            return request.request_id

        server = AgentRunServer(agent, config=ServerConfig(trust_request_id=trust_request_id))
        async with serve(RequestIDMiddleware(server, new_id=lambda: MADE), http=http) as served:
            answers = [
                await served.chat(headers=[("x-request-id", "theirs")]),
                await served.chat(stream=True),
                await served.ask("GET", "/health"),
                await served.ask("GET", "/nowhere"),
                await served.ask("POST", CHAT, b"no json"),
            ]
        assert [answer.header("x-request-id") for answer in answers] == [MADE] * 5
        if trust_request_id:
            assert answers[0].json()["choices"][0]["message"]["content"] == MADE

    async def test_the_servers_log_and_the_agent_have_it_too(self, http: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.ERROR)

        def agent(request: AgentRequest) -> str:
            raise ValueError("an agent that fails")

        server = AgentRunServer(agent, config=ServerConfig(trust_request_id=True))
        async with serve(RequestIDMiddleware(server), http=http) as served:
            answer = await served.ask("POST", CHAT, chat_body(stream=False))
        assert answer.status == 500
        assert [vars(record)["request_id"] for record in caplog.records] == [answer.header("x-request-id")]
