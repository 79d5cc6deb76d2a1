import asyncio
import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from agentrun_middleware.asgi import Message, Receive, Scope, Send
from agentrun_middleware.body_limit import BodyLimitMiddleware
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import Behind, body_in, call, http_scope, websocket_scope
from tests.support.clock import eventually, within
from tests.support.properties import EXAMPLES
from tests.support.raw_client import CHAT
from tests.support.serve import serve

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip
from hypothesis import strategies as st  # isort: skip

LIMIT = 10
TOO_LONG = (413, "invalid_request_error", "request_too_large")
MALFORMED = (400, "invalid_request_error", "invalid_http_request")
DISCONNECT = {"type": "http.disconnect"}


class Reader:
    """An app that reads until there is no more, and answers with the length of what it has read."""

    def __init__(self, *, answer_first: bool = False) -> None:
        self.read: list[Message] = []
        self._answer_first = answer_first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._answer_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            message = await receive()
            self.read.append(message)
            if not message.get("more_body", False):
                break
        if not self._answer_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        size = sum(len(message.get("body", b"")) for message in self.read)
        await send({"type": "http.response.body", "body": b"%d" % size})


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


class TestDeclaredLength:
    @pytest.mark.parametrize("length", ["0", "10", "0010", " 10\t", "000000000000000000000000000000000000000000010"])
    async def test_a_body_up_to_the_limit_passes(self, length: str) -> None:
        app = Behind()
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(headers=[("content-length", length)]))
        assert (answer.status, answer.body) == (200, b"ok")

    @pytest.mark.parametrize("length", ["11", "00011", "9" * 20, "9" * 21, "1" * 5000])
    async def test_a_longer_one_is_refused_before_the_app_runs_or_anything_is_read(self, length: str) -> None:
        app = Behind()
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(headers=[("content-length", length)]))
        assert answer.refusal() == TOO_LONG
        assert (app.scopes, answer.read) == ([], 0)

    @pytest.mark.parametrize(
        "length",
        ["", " ", "-1", "+5", "1_0", "0x5", "5.0", "1e1", "5, 5", "5 5", "\N{SUPERSCRIPT TWO}", "ten", "5\x00"],
    )
    async def test_what_is_no_number_is_refused(self, length: str) -> None:
        app = Behind()
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(headers=[("content-length", length)]))
        assert answer.refusal() == MALFORMED
        assert app.scopes == []

    @pytest.mark.parametrize("lengths", [("5", "5"), ("5", "500"), ("500", "5")])
    async def test_more_than_one_is_refused_even_if_they_agree(self, lengths: tuple[str, str]) -> None:
        app = Behind()
        headers = [("content-length", length) for length in lengths]
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(headers=headers))
        assert answer.refusal() == MALFORMED
        assert app.scopes == []

    async def test_the_smallest_limit_is_one_byte(self) -> None:
        limited = BodyLimitMiddleware(Behind(), max_bytes=1)
        statuses = [
            (await call(limited, http_scope(headers=[("content-length", length)]))).status for length in ("1", "2")
        ]
        assert statuses == [200, 413]


class TestCountedLength:
    @given(pieces=st.lists(st.binary(max_size=6), min_size=1, max_size=6))
    @settings(max_examples=EXAMPLES)
    def test_the_app_reads_each_piece_as_it_is_until_the_limit(self, pieces: list[bytes]) -> None:
        async def story() -> None:
            app = Reader()
            sent = body_in(*pieces)
            answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(), sent)
            if sum(map(len, pieces)) <= LIMIT:
                assert (answer.status, answer.body) == (200, b"%d" % sum(map(len, pieces)))
                assert all(given is message for given, message in zip(app.read, sent, strict=True))
            else:
                *whole, last = app.read
                assert all(given is message for given, message in zip(whole, sent, strict=False))
                assert sum(len(message["body"]) for message in whole) <= LIMIT
                assert last == DISCONNECT
                assert answer.refusal() == TOO_LONG

        asyncio.run(story())

    async def test_the_answer_of_an_app_that_goes_on_is_dropped(self) -> None:
        answer = await call(BodyLimitMiddleware(Reader(), max_bytes=LIMIT), http_scope(), body_in(b"6bytes", b"6bytes"))
        assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.body"]
        assert answer.refusal() == TOO_LONG

    async def test_a_length_that_lies_does_not_help(self) -> None:
        app = Reader()
        scope = http_scope(headers=[("content-length", "5")])
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), scope, body_in(b"x" * 11))
        assert answer.refusal() == TOO_LONG
        assert app.read == [DISCONNECT]

    async def test_once_the_answer_has_begun_the_app_reads_a_disconnect_and_ends_its_answer_itself(self) -> None:
        app = Reader(answer_first=True)
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(), body_in(b"6bytes", b"6bytes"))
        assert app.read[-1] == DISCONNECT
        assert (answer.status, answer.body) == (200, b"6")

    async def test_after_that_there_is_nothing_but_the_disconnect(self) -> None:
        read = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            read.extend([await receive() for _ in range(4)])

        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(), body_in(b"x" * 11, b"y", b"z"))
        assert read == [DISCONNECT] * 4
        assert answer.read == 1, "the rest of the body was not read for an app that is told that it has ended"

    async def test_two_tasks_that_read_get_one_refusal(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert list(await asyncio.gather(receive(), receive())) == [DISCONNECT] * 2

        incoming = body_in(b"x" * 11, b"x" * 11)
        answer = await call(BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(), incoming)
        assert answer.refusal() == TOO_LONG
        assert len(answer.messages) == 2

    async def test_nothing_is_read_ahead_of_the_app(self) -> None:
        go_on = asyncio.Event()
        app = Reader()
        first, second = body_in(b"first", b"last")

        async def receive() -> Message:
            if not app.read:
                return first
            go_on.set()
            return second

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await within(BodyLimitMiddleware(app, max_bytes=LIMIT)(http_scope(), receive, send))
        assert go_on.is_set()
        assert app.read == [first, second]

    async def test_a_client_that_leaves_is_told_to_the_app(self) -> None:
        app = Reader()
        answer = await call(
            BodyLimitMiddleware(app, max_bytes=LIMIT), http_scope(), [*body_in(b"a", b"")[:1], DISCONNECT]
        )
        assert app.read[-1] is DISCONNECT
        assert answer.status == 200


@pytest.mark.parametrize("scope", [websocket_scope(headers=[("content-length", "99")]), {"type": "lifespan"}])
async def test_what_is_no_http_request_passes_untouched(scope: Scope) -> None:
    given = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        given.extend([scope, receive, send])

    async def receive() -> Message:
        raise NotImplementedError

    async def send(message: Message) -> None:
        raise NotImplementedError

    await BodyLimitMiddleware(app, max_bytes=LIMIT)(scope, receive, send)
    assert all(a is b for a, b in zip(given, [scope, receive, send], strict=True))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_that_lets_nothing_pass_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BodyLimitMiddleware(Behind(), max_bytes=limit)


class TestOnTheWire:
    async def test_its_answer_is_the_servers_own(self, http: str) -> None:
        """A client must not be able to tell which of the two has refused."""

        def agent(request: AgentRequest) -> str:
            raise NotImplementedError

        own = AgentRunServer(agent, config=ServerConfig(max_body_bytes=64))
        ours = BodyLimitMiddleware(AgentRunServer(agent), max_bytes=64)
        stream = [("transfer-encoding", "chunked"), ("content-type", "application/json")]
        answers = []
        for app in (own, ours):
            async with serve(app, http=http) as served:
                answers.append(await served.ask("POST", CHAT, b"x" * 65))
                answers.append(await served.ask("POST", CHAT, chunked(b"x" * 40, b"x" * 40), stream))
        assert [answer.status for answer in answers] == [413] * 4
        assert [answer.error() for answer in answers] == [answers[0].error()] * 4

    async def test_a_framework_that_reads_a_chunked_body_sees_no_whole_one(self, http: str) -> None:
        seen = []

        async def endpoint(request: Request) -> PlainTextResponse:
            seen.append(await request.body())
            return PlainTextResponse("never")

        app = BodyLimitMiddleware(Starlette(routes=[Route("/", endpoint, methods=["POST"])]), max_bytes=LIMIT)
        async with serve(app, http=http) as served:
            stream = [("transfer-encoding", "chunked")]
            answer = await served.ask("POST", "/", chunked(b"6bytes", b"6bytes"), stream)
            assert answer.status == 413
            assert answer.error()["code"] == "request_too_large"
            await eventually(lambda: not served.requests)
        assert seen == []

    async def test_a_client_that_asks_first_never_sends_the_body(self, http: str) -> None:
        app = Behind()
        limited = BodyLimitMiddleware(app, max_bytes=LIMIT)
        async with serve(limited, http=http, lifespan=False) as served, served.client() as client:
            await client.request("POST", "/", None, [("content-length", "11"), ("expect", "100-continue")])
            assert (await client.response()).status == 413
        assert app.scopes == []

    async def test_the_connection_serves_the_next_request(self) -> None:
        limited = BodyLimitMiddleware(Behind(), max_bytes=LIMIT)
        async with serve(limited, http="plain", lifespan=False) as served, served.client() as client:
            await client.request("POST", "/", b"x" * 11)
            assert (await client.response()).error()["code"] == "request_too_large"
            await client.request("POST", "/", b"x" * 10)
            assert (await client.response()).status == 200

    async def test_the_servers_agent_never_runs_and_nothing_is_called_a_failure(
        self, http: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def agent(request: AgentRequest) -> str:
            raise NotImplementedError

        caplog.set_level(logging.INFO)
        async with serve(BodyLimitMiddleware(AgentRunServer(agent), max_bytes=LIMIT), http=http) as served:
            stream = [("transfer-encoding", "chunked"), ("content-type", "application/json")]
            answer = await served.ask("POST", CHAT, chunked(b'{"model":', b'"m","messages":[]}'), stream)
            assert answer.status == 413
        assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
