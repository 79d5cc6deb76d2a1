import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from agentrun_middleware.access_log import AccessLogMiddleware, clean
from agentrun_middleware.asgi import ASGIApp, Message, Receive, Scope, Send
from agentrun_middleware.authentication import AuthenticationMiddleware
from agentrun_middleware.client_address import ClientAddressMiddleware
from agentrun_middleware.principal import Principal
from agentrun_middleware.request_id import RequestIDMiddleware
from agentrun_middleware.state import PRINCIPAL, set_state
from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.middleware.calls import CONNECT, Answer, Behind, body_in, call, http_scope, websocket_scope
from tests.support.clock import eventually, within
from tests.support.properties import EXAMPLES, any_text
from tests.support.serve import serve

# After `properties`: it says how often each property is tried.
from hypothesis import given, settings  # isort: skip

DISCONNECT: Message = {"type": "http.disconnect"}
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLWNhbmFyeQ"


class Clock:
    """Time that passes when an app says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    """The fields of each line that was logged."""

    STANDARD = frozenset(vars(logging.makeLogRecord({})))

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.getLogger("tests.access_log")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        self.logger.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the one line."""
        (record,) = self.records
        assert (record.levelname, record.getMessage()) == ("INFO", "request")
        return {key: value for key, value in vars(record).items() if key not in self.STANDARD}


def sending(*messages: Message | float, clock: Clock, after: Callable[[], None] = lambda: None) -> ASGIApp:
    """Return an app that sends messages, and lets so many seconds pass where a number stands."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            if isinstance(message, int | float):
                clock.now += message
            else:
                await send(message)
        after()

    return app


def start(status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def logged(app: ASGIApp, scope: Scope | None = None, **options: Any) -> tuple[dict[str, Any], Answer]:
    """Call `app` behind the middleware; return the fields of its line, and the answer."""
    lines = Lines()
    incoming = options.pop("incoming", None)
    served = AccessLogMiddleware(app, logger=lines.logger, **options)
    answer = await call(served, scope or http_scope(), incoming, keep_error=True)
    return lines.fields, answer


class TestRequests:
    async def test_a_line_says_what_happened_when_all_is_over(self) -> None:
        clock = Clock()
        app = sending(0.25, start(201), body(b"four", more=True), 0.5, body(b"six..."), clock=clock)
        fields, _ = await logged(app, http_scope("/v1/models", method="POST"), clock=clock)
        assert fields == {
            "method": "POST",
            "path": "/v1/models",
            "status": 201,
            "bytes_sent": 10,
            "duration_ms": 750.0,
            "ttft_ms": 250.0,
            "complete": True,
            "client": "203.0.113.7",
        }

    async def test_there_is_no_line_before_the_end(self) -> None:
        lines, go_on = Lines(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start())
            await send(body(b"first", more=True))
            await go_on.wait()
            await send(body(b"last"))

        task = asyncio.create_task(call(AccessLogMiddleware(app, logger=lines.logger), http_scope()))
        await asyncio.sleep(0)
        assert lines.records == []
        go_on.set()
        await within(task)
        assert lines.fields["bytes_sent"] == 9

    async def test_messages_pass_as_they_are_in_both_directions(self) -> None:
        (first,) = body_in(b"question")
        read = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            read.append(await receive())
            for message in said:
                await send(message)

        said = [start(), body(b"answer")]
        _, answer = await logged(app, incoming=[first])
        assert read[0] is first
        assert all(a is b for a, b in zip(answer.messages, said, strict=True))

    async def test_an_app_that_fails_before_an_answer_is_a_500(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise RuntimeError("secret of the app")

        fields, answer = await logged(app)
        assert isinstance(answer.error, RuntimeError), "it is the server's to handle"
        assert (fields["status"], fields["complete"], fields["bytes_sent"]) == (500, False, 0)
        assert "secret" not in str(fields)

    async def test_so_is_one_that_says_nothing(self) -> None:
        fields, _ = await logged(sending(clock=Clock()))
        assert (fields["status"], fields["complete"]) == (500, False)

    async def test_one_that_fails_in_the_middle_keeps_its_status(self) -> None:
        def fail() -> None:
            raise RuntimeError

        fields, answer = await logged(sending(start(), body(b"half", more=True), clock=Clock(), after=fail))
        assert answer.error is not None
        assert (fields["status"], fields["complete"], fields["bytes_sent"]) == (200, False, 4)

    async def test_a_body_without_an_end_is_not_complete(self) -> None:
        fields, _ = await logged(sending(start(), body(b"half", more=True), clock=Clock()))
        assert fields["complete"] is False

    @pytest.mark.parametrize("raises", [True, False])
    async def test_a_client_that_leaves_before_an_answer_is_a_499(self, raises: bool) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            assert await receive() is DISCONNECT
            if raises:
                raise RuntimeError("the client has left")

        fields, _ = await logged(app, incoming=[DISCONNECT])
        assert (fields["status"], fields["complete"]) == (499, False)

    async def test_an_answer_to_nobody_is_none(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send(start())
            await send(body(b"to nobody"))

        fields, _ = await logged(app, incoming=[DISCONNECT])
        assert (fields["status"], fields["complete"], fields["bytes_sent"]) == (499, False, 0)
        assert "ttft_ms" not in fields

    async def test_a_client_that_leaves_in_the_middle_keeps_the_status_and_what_it_got(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start())
            await send(body(b"four", more=True))
            await receive()
            await send(body(b"to nobody"))

        fields, _ = await logged(app, incoming=[DISCONNECT])
        assert (fields["status"], fields["complete"], fields["bytes_sent"]) == (200, False, 4)

    async def test_the_disconnect_after_the_end_is_no_leaving(self) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send(start())
            await send(body(b"all"))
            await receive()

        fields, _ = await logged(app, incoming=[DISCONNECT])
        assert (fields["status"], fields["complete"]) == (200, True)

    async def test_a_server_that_raises_on_sending_says_that_the_client_has_left(self) -> None:
        lines = Lines()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise BrokenPipeError

        served = AccessLogMiddleware(sending(start(), body(b"all"), clock=Clock()), logger=lines.logger)
        with pytest.raises(BrokenPipeError):
            await served(http_scope(), asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert (lines.fields["status"], lines.fields["complete"]) == (200, False)

    @pytest.mark.parametrize(("said", "status", "complete"), [((), 499, False), ((start(), body(b"all")), 200, True)])
    async def test_a_request_that_is_cancelled_gets_its_line(
        self, said: Iterable[Message], status: int, complete: bool
    ) -> None:
        lines, waiting = Lines(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for message in said:
                await send(message)
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(call(AccessLogMiddleware(app, logger=lines.logger), http_scope()))
        await within(waiting.wait())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert (lines.fields["status"], lines.fields["complete"]) == (status, complete)

    async def test_the_answer_to_head_has_no_bytes(self) -> None:
        fields, _ = await logged(sending(start(), body(b"dropped"), clock=Clock()), http_scope(method="HEAD"))
        assert (fields["bytes_sent"], fields["complete"]) == (0, True)
        assert "ttft_ms" not in fields

    async def test_a_file_that_the_server_sends_is_complete(self) -> None:
        sent = sending(start(), {"type": "http.response.pathsend", "path": "/f"}, clock=Clock())
        fields, _ = await logged(sent)
        assert fields["complete"] is True

    async def test_an_address_that_is_not_known_is_empty(self) -> None:
        fields, _ = await logged(Behind(), http_scope(client=None))
        assert fields["client"] == ""


class TestFirstToken:
    """`ttft_ms` is when the caller could first read something."""

    PING = b": ping\n\n"

    @pytest.mark.parametrize(
        "silence",
        [
            [PING],
            [PING, PING],
            [b":", b" pi", b"ng", b"\n", b"\n"],
            [b"\n\r\n\r"],
            [b":a\r:b\r\n:c\n\r\n"],
            [b"", b""],
            [b":" * 100],
            [b": data: no"],
        ],
    )
    async def test_comments_of_an_event_stream_do_not_count(self, silence: list[bytes]) -> None:
        clock = Clock()
        app = sending(
            start(headers=EVENTS),
            *(body(piece, more=True) for piece in silence),
            2.0,
            body(b"\ndata: first\n\n", more=True),
            3.0,
            body(b"data: last\n\n"),
            clock=clock,
        )
        fields, _ = await logged(app, clock=clock)
        assert (fields["ttft_ms"], fields["duration_ms"]) == (2000.0, 5000.0)
        assert fields["bytes_sent"] == sum(map(len, silence)) + len(b"\ndata: first\n\ndata: last\n\n")

    @pytest.mark.parametrize("piece", [b"data: x\n\n", b": ping\n\ndata: x", b"\n\nid: 1", b":c\revent: x", b"retry"])
    async def test_everything_else_does_even_behind_a_comment(self, piece: bytes) -> None:
        clock = Clock()
        app = sending(start(headers=EVENTS), 1.0, body(piece, more=True), 1.0, body(b"data: y\n\n"), clock=clock)
        fields, _ = await logged(app, clock=clock)
        assert fields["ttft_ms"] == 1000.0

    async def test_a_line_that_goes_on_is_no_new_comment(self) -> None:
        """Only the beginning of the stream is looked at: ``data`` has come, whatever follows."""
        clock = Clock()
        app = sending(
            start(headers=EVENTS), body(b":c", more=True), 1.0, body(b"\nd:", more=True), 1.0, body(b""), clock=clock
        )
        fields, _ = await logged(app, clock=clock)
        assert fields["ttft_ms"] == 1000.0

    async def test_a_stream_of_comments_alone_has_none(self) -> None:
        fields, _ = await logged(sending(start(headers=EVENTS), body(self.PING, more=True), body(b""), clock=Clock()))
        assert "ttft_ms" not in fields

    async def test_what_is_no_event_stream_has_no_comments(self) -> None:
        clock = Clock()
        app = sending(start(), 1.0, body(self.PING, more=True), 1.0, body(b"data"), clock=clock)
        fields, _ = await logged(app, clock=clock)
        assert fields["ttft_ms"] == 1000.0

    async def test_an_empty_piece_is_no_byte(self) -> None:
        clock = Clock()
        app = sending(start(), body(b"", more=True), 1.0, body(b"x"), clock=clock)
        fields, _ = await logged(app, clock=clock)
        assert fields["ttft_ms"] == 1000.0


ACCEPT: Message = {"type": "websocket.accept"}


class TestWebSockets:
    async def socket(self, *said: Message, then: Message | None = None, denial: bool = False) -> dict[str, Any]:
        clock = Clock()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            for message in said:
                clock.now += 1
                await send(message)
            if then is not None:
                await receive()

        incoming = [CONNECT] if then is None else [CONNECT, then]
        fields, _ = await logged(app, websocket_scope(denial=denial), clock=clock, incoming=incoming)
        return fields

    async def test_one_line_tells_of_the_whole_connection(self) -> None:
        fields = await self.socket(
            ACCEPT,
            {"type": "websocket.send", "text": "h\N{LATIN SMALL LETTER E WITH ACUTE}llo"},
            {"type": "websocket.send", "bytes": b"four", "text": None},
            {"type": "websocket.close", "code": 1000},
        )
        assert fields == {
            "method": "WEBSOCKET",
            "path": "/ws",
            "status": 101,
            "bytes_sent": 10,
            "duration_ms": 4000.0,
            "ttft_ms": 2000.0,
            "complete": True,
            "client": "203.0.113.7",
        }

    @pytest.mark.parametrize(("code", "complete"), [(1000, True), (1001, True), (1005, True), (1006, False)])
    async def test_it_is_complete_if_the_client_closed_it_in_good_order(self, code: int, complete: bool) -> None:
        fields = await self.socket(ACCEPT, then={"type": "websocket.disconnect", "code": code})
        assert (fields["status"], fields["complete"]) == (101, complete)

    async def test_a_handshake_that_is_closed_is_refused(self) -> None:
        fields = await self.socket({"type": "websocket.close", "code": 1008})
        assert (fields["status"], fields["complete"]) == (403, True)

    async def test_a_handshake_that_is_answered_has_the_status_of_the_answer(self) -> None:
        fields = await self.socket(
            {"type": "websocket.http.response.start", "status": 401, "headers": []},
            {"type": "websocket.http.response.body", "body": b"no"},
            denial=True,
        )
        assert (fields["status"], fields["complete"], fields["bytes_sent"]) == (401, True, 2)

    async def test_a_client_that_leaves_before_the_handshake_is_answered_is_a_499(self) -> None:
        fields = await self.socket(then={"type": "websocket.disconnect", "code": 1005})
        assert (fields["status"], fields["complete"]) == (499, False)

    async def test_an_app_that_says_nothing_is_a_500_and_one_that_does_not_close_is_not_complete(self) -> None:
        assert (await self.socket())["status"] == 500
        fields = await self.socket(ACCEPT)
        assert (fields["status"], fields["complete"]) == (101, False)

    async def test_half_a_surrogate_pair_is_counted_and_left_to_the_server(self) -> None:
        fields = await self.socket(ACCEPT, {"type": "websocket.send", "text": "\ud800"})
        assert fields["bytes_sent"] == 3


class TestWho:
    async def test_the_id_and_the_caller_are_told_by_those_behind(self) -> None:
        def known(app: ASGIApp) -> ASGIApp:
            async def authenticated(scope: Scope, receive: Receive, send: Send) -> None:
                set_state(scope, PRINCIPAL, Principal("alice|1", "https://issuer.example/"))
                await app(scope, receive, send)

            return authenticated

        app = RequestIDMiddleware(
            ClientAddressMiddleware(known(Behind()), trusted_proxies=["203.0.113.0/24"]), new_id=lambda: "req_1"
        )
        fields, _ = await logged(app, http_scope(headers=[("x-forwarded-for", "192.0.2.1")]))
        assert fields["request_id"] == "req_1"
        assert (fields["subject"], fields["issuer"]) == ("alice|1", "https://issuer.example/")
        assert fields["client"] == "192.0.2.1"

    async def test_a_request_that_is_refused_has_its_line_too(self) -> None:
        class Nobody:
            def recognises(self, credential: str) -> bool:
                return False

            async def verify(self, credential: str) -> Principal:
                raise NotImplementedError

            async def aclose(self) -> None:
                raise NotImplementedError

        app = AuthenticationMiddleware(Behind(), verifiers=[Nobody()])
        fields, _ = await logged(app, http_scope(headers=[("authorization", "Bearer canary")]))
        assert fields["status"] == 401
        assert "subject" not in fields
        assert "canary" not in str(fields)

    async def test_what_stands_in_the_state_for_other_reasons_is_not_taken_for_it(self) -> None:
        fields, _ = await logged(Behind(), http_scope(state={"principal": "root", "request_id": 7}))
        assert "subject" not in fields
        assert "request_id" not in fields


class TestWhatIsLogged:
    @pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
    async def test_probes_are_not(self, path: str) -> None:
        lines = Lines()
        app = Behind()
        await call(AccessLogMiddleware(app, logger=lines.logger), http_scope(path))
        assert (len(app.scopes), lines.records) == (1, [])

    @pytest.mark.parametrize("path", ["/health/", "/HEALTH", "//health", "/healthz", "/v1/health", ""])
    async def test_paths_that_are_almost_probes_are(self, path: str) -> None:
        fields, _ = await logged(Behind(), http_scope(path))
        assert fields["path"] == path

    async def test_other_paths_can_be_left_out(self) -> None:
        fields, _ = await logged(Behind(), http_scope("/health"), exclude_paths=["/metrics"])
        assert fields["path"] == "/health"
        with pytest.raises(ValueError, match="not one string"):
            AccessLogMiddleware(Behind(), exclude_paths="/metrics")

    async def test_nothing_is_watched_while_nobody_wants_the_lines(self) -> None:
        lines = Lines()
        lines.logger.setLevel(logging.WARNING)
        seen = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(send)

        async def send(message: Message) -> None:
            raise NotImplementedError

        await AccessLogMiddleware(app, logger=lines.logger)(http_scope(), asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert seen == [send]
        assert lines.records == []

    async def test_the_lifespan_passes_without_a_line(self) -> None:
        lines = Lines()
        app = Behind()
        await call(AccessLogMiddleware(app, logger=lines.logger), {"type": "lifespan"})
        assert (len(app.scopes), lines.records) == (1, [])

    async def test_a_logger_of_that_name_is_used_unless_there_is_another(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "agentrun_middleware.access")
        await call(AccessLogMiddleware(Behind()), http_scope())
        assert [(record.name, record.message) for record in caplog.records] == [
            ("agentrun_middleware.access", "request")
        ]


class TestSafety:
    """What a client writes is shown, but does nothing, and gives nothing away."""

    SHOWN = re.compile(r"[!-~]*")

    @given(path=any_text, method=any_text, client=any_text)
    @settings(max_examples=EXAMPLES)
    def test_no_text_of_a_client_ends_a_line_or_looks_like_a_field(self, path: str, method: str, client: str) -> None:
        scope = http_scope("/" + path, method=method, client=(client, 1), state={"request_id": path})
        fields, _ = asyncio.run(logged(Behind(), scope))
        for name in ("path", "method", "client", "request_id"):
            assert self.SHOWN.fullmatch(fields[name]), fields
            assert not set(fields[name]) & set("\"'<>{}\\"), fields

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/v1/models/org/name:tag@1", "/v1/models/org/name:tag@1"),
            ("/a b", "/a%20b"),
            ('/x\r\n{"level":"error"}', "/x%0D%0A%7B%22level%22:%22error%22%7D"),
            ("/\x1b[2J\x85\u2028", "/%1B%5B2J%C2%85%E2%80%A8"),
            ("/%0a", "/%250a"),
            ("/\ud800", "/%5Cud800"),
            ("/中", "/%E4%B8%AD"),
            ("/../etc//passwd", "/../etc//passwd"),
            ("/" + "a" * 9999, "/" + "a" * 511),
        ],
    )
    async def test_a_path_is_percent_encoded_and_cut(self, path: str, shown: str) -> None:
        fields, _ = await logged(Behind(), http_scope(path))
        assert fields["path"] == shown

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("/v1/sk-CANARYcanary0123456789", "/v1/***"),
            ("/v1/sk-proj-CANARY_canary-0123456789/x", "/v1/***/x"),
            ("/SK-CANARYcanary0123456789", "/***"),
            ("/v1:ar_k3f9x2ab_CANARYcanary0123456789CANARY", "/v1:***"),
            ("/ghp_CANARYcanary0123456789", "/***"),
            (f"/v1/{JWT}/chat", "/v1/***/chat"),
            (f"/v1/Bearer-{JWT}", "/v1/Bearer-***"),
            (f"/v1/{JWT[:60]}", "/v1/***"),
            (f"/{'a' * 500}/{JWT}", f"/{'a' * 500}/***"),
            ("/Bearer CANARY", "/Bearer%20***"),
            ("/v1?api_key=CANARY&x=1", "/v1%3Fapi_key=***%26x=1"),
            ("/v1;access_token=CANARY;x=1", "/v1%3Baccess_token=***%3Bx=1"),
            ("/v1?my_token=CANARY", "/v1%3Fmy_token=***"),
            ("/v1&Token=CANARY", "/v1%26Token=***"),
        ],
    )
    async def test_what_looks_like_a_credential_is_hidden(self, path: str, shown: str) -> None:
        fields, _ = await logged(Behind(), http_scope(path, state={"request_id": path}))
        assert fields["path"] == shown
        assert "canary" not in str(fields).lower()
        assert JWT[:20] not in str(fields)

    @pytest.mark.parametrize(
        "path",
        ["/v1/models/risk-assessment-agent", "/v1/models/ar-large-language-model", "/sk-short", "/keyjournalofscience",
         "/v1/chat/completions", "/tokens/count", "/basic/documents", "/v1/responses/resp_0123456789abcdef0123"],
    )  # fmt: skip
    async def test_an_ordinary_path_is_shown_as_it_is(self, path: str) -> None:
        fields, _ = await logged(Behind(), http_scope(path))
        assert fields["path"] == path

    async def test_query_headers_and_bodies_are_never_told(self) -> None:
        headers = [(name, "canary") for name in ("authorization", "cookie", "user-agent", "referer", "host", "x-any")]
        scope = http_scope("/v1", query=b"q=canary", headers=headers, raw_path=b"/canary", root_path="/canary")
        fields, answer = await logged(Behind([("set-cookie", "canary")]), scope, incoming=body_in(b"canary"))
        assert answer.status == 200
        assert "canary" not in str(fields)

    def test_a_text_of_a_megabyte_is_cut_before_it_is_searched(self) -> None:
        assert clean("a" * 2**20) == "a" * 512
        assert clean("\N{SNOWMAN}" * 2**20) == "%E2%98%83" * 512


class TestOnTheWire:
    async def test_a_stream_through_a_real_server(self, http: str) -> None:
        async def agent(request: AgentRequest) -> Any:
            yield "one"
            yield "two"

        lines = Lines()
        server = AgentRunServer(agent, config=ServerConfig(trust_request_id=True, access_log=False))
        app = AccessLogMiddleware(RequestIDMiddleware(server), logger=lines.logger)
        async with serve(app, http=http) as served:
            answer = await served.chat(stream=True)
            await served.ask("GET", "/health")
        fields = lines.fields
        assert fields["status"] == 200
        assert fields["bytes_sent"] == len(answer.body)
        assert fields["complete"] is True
        assert 0 < fields["ttft_ms"] <= fields["duration_ms"]
        assert fields["request_id"] == answer.header("x-request-id")
        assert fields["client"] == "127.0.0.1"

    @pytest.mark.parametrize("how", ["fin", "rst"])
    async def test_a_client_that_leaves_a_real_server(self, http: str, how: str) -> None:
        async def agent(request: AgentRequest) -> Any:
            yield "one"
            await asyncio.Event().wait()

        lines = Lines()
        app = AccessLogMiddleware(AgentRunServer(agent, config=ServerConfig(access_log=False)), logger=lines.logger)
        async with serve(app, http=http) as served, served.client() as client:
            await client.chat()
            assert await client.piece() == "one"
            client.leave(how)
            await eventually(lambda: len(lines.records) == 1)
        assert lines.fields["status"] == 200
        assert lines.fields["complete"] is False

    async def test_one_that_leaves_before_the_answer(self, http: str) -> None:
        waiting = asyncio.Event()

        async def agent(request: AgentRequest) -> str:
            waiting.set()
            await asyncio.Event().wait()
            raise NotImplementedError

        lines = Lines()
        app = AccessLogMiddleware(AgentRunServer(agent, config=ServerConfig(access_log=False)), logger=lines.logger)
        async with serve(app, http=http) as served, served.client() as client:
            await client.chat(stream=False)
            await within(waiting.wait())
            client.rst()
            await eventually(lambda: len(lines.records) == 1)
        assert (lines.fields["status"], lines.fields["complete"]) == (499, False)
