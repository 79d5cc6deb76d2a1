"""The in-process transport behaves to an app as a server, and to a client as a network."""

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentrun_server.testing import StreamingASGITransport, async_client
from agentrun_server.testing.serving import Served


def client_of(app: ASGIApp, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=StreamingASGITransport(app, **options), base_url="http://app")


async def read_all(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


async def start(send: Send, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def http_only(handler: Callable[[Scope, Receive, Send], Any]) -> ASGIApp:
    """An app without lifespan, as the smallest ones are."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await handler(scope, receive, send)

    return app


class TestStreaming:
    async def test_the_head_arrives_before_the_first_byte_of_the_body(self) -> None:
        go_on = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send, (b"X-Custom", b"1"), status=202)
            await go_on.wait()
            await body(send, b"late", more=False)

        async with client_of(app) as client, client.stream("GET", "/") as response:
            assert (response.status_code, response.headers["x-custom"]) == (202, "1")
            assert not go_on.is_set()
            go_on.set()
            assert await response.aread() == b"late"

    async def test_each_send_is_one_chunk_and_arrives_while_the_app_waits(self) -> None:
        turns: asyncio.Queue[bytes | None] = asyncio.Queue()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            while (chunk := await turns.get()) is not None:
                await body(send, chunk)
            await body(send, b"", more=False)

        async with client_of(app) as client, client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            for sent in (b"one", b"two\n\n", b"three"):
                turns.put_nowait(sent)
                assert await anext(chunks) == sent
            turns.put_nowait(None)
            assert [chunk async for chunk in chunks] == []

    async def test_a_slow_reader_holds_the_app_back(self) -> None:
        sent: list[int] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            for index in range(10):
                await body(send, b"x" * 100)
                sent.append(index)
            await body(send, b"", more=False)

        async with client_of(app, buffer_bytes=350) as client, client.stream("GET", "/") as response:
            await let_everything_run()
            assert sent == [0, 1, 2], "three are buffered, the fourth waits for room"
            chunks = response.aiter_raw()
            await anext(chunks)
            await let_everything_run()
            assert sent == [0, 1, 2, 3]
            assert len([chunk async for chunk in chunks]) == 9

    async def test_without_a_buffer_each_send_waits_for_its_reader(self) -> None:
        sent: list[int] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            for index in range(3):
                await body(send, b"x")
                sent.append(index)
            await body(send, b"", more=False)

        async with client_of(app, buffer_bytes=0) as client, client.stream("GET", "/") as response:
            await let_everything_run()
            assert sent == []
            async for _ in response.aiter_raw():
                await let_everything_run()
            assert sent == [0, 1, 2]

    async def test_many_streams_run_side_by_side(self) -> None:
        together = asyncio.Barrier(20)

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await together.wait()
            await body(send, scope["path"].encode(), more=False)

        async with client_of(app) as client:
            answers = await asyncio.gather(*(client.get(f"/{index}") for index in range(20)))
        assert [answer.text for answer in answers] == [f"/{index}" for index in range(20)]

    async def test_the_body_of_a_head_request_is_dropped(self) -> None:
        async def page(request: Request) -> Response:
            return PlainTextResponse("hello")

        async with async_client(Starlette(routes=[Route("/", page)])) as client:
            response = await client.head("/")
        assert (response.headers["content-length"], response.content) == ("5", b"")


class TestRequest:
    async def test_the_scope_is_the_one_uvicorn_gives(self) -> None:
        seen: list[dict[str, Any]] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            seen.append(dict(scope))
            await start(send, (b"content-length", b"0"))
            await body(send, b"", more=False)

        request = {"headers": {"X-Mixed": "A", "host": "app"}, "json": {"a": 1}}
        target = "/caf%C3%A9/a%2Fb?q=1&q=%20"
        async with client_of(app) as client:
            await client.post(target, **request)  # type: ignore[arg-type]
        async with Served(app, before_stop=lambda: None) as url, httpx2.AsyncClient() as client:
            await client.post(url.removesuffix("/v1") + target, **request)  # type: ignore[arg-type]
        ours, uvicorns = seen
        for scope in seen:
            del scope["server"], scope["client"]
            scope["headers"] = sorted(scope["headers"])
        assert ours == uvicorns

    async def test_root_path_stands_before_the_path(self) -> None:
        async def page(request: Request) -> Response:
            return PlainTextResponse(f"{request.scope['root_path']} {request.url.path}")

        app = Starlette(routes=[Route("/page", page)])
        async with client_of(app, root_path="/mounted") as client:
            assert (await client.get("/page")).text == "/mounted /mounted/page"

    async def test_a_long_body_arrives_in_pieces(self) -> None:
        sizes: list[tuple[int, bool]] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                sizes.append((len(message["body"]), more))
            await start(send)
            await body(send, b"", more=False)

        async with client_of(app) as client:
            await client.post("/", content=b"x" * 150_000)
        assert sizes == [(65536, True), (65536, True), (18928, False)]

    async def test_a_short_body_is_one_message(self) -> None:
        messages: list[Message] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            messages.append(await receive())
            await start(send)
            await body(send, b"", more=False)

        async with client_of(app) as client:
            await client.post("/", content=b"hello")
            await client.get("/")
        assert messages == [
            {"type": "http.request", "body": b"hello", "more_body": False},
            {"type": "http.request", "body": b"", "more_body": False},
        ]

    async def test_request_and_response_stream_at_the_same_time(self) -> None:
        questions: asyncio.Queue[bytes | None] = asyncio.Queue()

        @http_only
        async def echo(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            more = True
            while more:
                message = await receive()
                more = message["more_body"]
                await body(send, message["body"].upper(), more=more)

        async def upload() -> AsyncIterator[bytes]:
            while (question := await questions.get()) is not None:
                yield question

        async with client_of(echo) as client, client.stream("POST", "/", content=upload()) as response:
            answers = response.aiter_raw()
            for word in (b"ping", b"pong"):
                questions.put_nowait(word)
                assert await anext(answers) == word.upper()
            questions.put_nowait(None)
            assert [answer async for answer in answers] == []

    async def test_a_client_that_sends_faster_than_the_app_reads_has_to_wait(self) -> None:
        sent = 0
        read = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read.wait()
            await read_all(receive)
            await start(send)
            await body(send, b"", more=False)

        async def upload() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(10):
                yield b"x" * 1000
                sent += 1

        async with client_of(app, buffer_bytes=2500) as client:
            request = asyncio.create_task(client.post("/", content=upload()))
            await let_everything_run()
            assert sent == 2
            read.set()
            assert (await request).status_code == 200
        assert sent == 10

    async def test_an_app_may_answer_without_reading_the_body(self) -> None:
        closed = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send, status=413)
            await body(send, b"too large", more=False)

        async def upload() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                closed.set()

        async with client_of(app) as client:
            assert (await client.post("/", content=upload())).status_code == 413
        await closed.wait()

    async def test_an_error_of_the_clients_own_body_reaches_the_client_and_disconnects_the_app(self) -> None:
        messages: list[str] = []
        read = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while not messages or messages[-1] != "http.disconnect":
                messages.append((await receive())["type"])
                read.set()

        async def upload() -> AsyncIterator[bytes]:
            yield b"x"
            await read.wait()
            raise OSError("the file is gone")

        async with client_of(app) as client:
            with pytest.raises(OSError, match="the file is gone"):
                await client.post("/", content=upload())
        assert messages == ["http.request", "http.disconnect"]

    async def test_it_does_so_also_when_the_response_has_begun(self) -> None:
        begun = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            begun.set()
            while (await receive())["type"] != "http.disconnect":
                pass

        async def upload() -> AsyncIterator[bytes]:
            yield b"x"
            await begun.wait()
            raise OSError("the file is gone")

        async with client_of(app) as client:
            with pytest.raises(OSError, match="the file is gone"):
                await client.post("/", content=upload())

    async def test_a_body_shorter_than_its_content_length_is_an_error_of_the_client(self) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def upload() -> AsyncIterator[bytes]:
            yield b"12345"

        async with client_of(app) as client:
            with pytest.raises(httpx2.LocalProtocolError):
                await client.post("/", content=upload(), headers={"content-length": "10"})

    async def test_the_app_does_not_see_the_clients_context(self) -> None:
        where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="outside")

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, where.get().encode(), more=False)

        async with client_of(app) as client:
            where.set("in the test")
            assert (await client.get("/")).text == "outside"


class TestDisconnect:
    async def test_closing_the_response_early_tells_the_app(self) -> None:
        heard = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            await start(send)
            await body(send, b"one")
            assert await receive() == {"type": "http.disconnect"}
            await body(send, b"nobody hears this")
            await body(send, b"nor this", more=False)
            heard.set()

        async with client_of(app) as client:
            async with client.stream("GET", "/") as response:
                assert await anext(response.aiter_raw()) == b"one"
            assert heard.is_set(), "closing waits until the app has ended"

    async def test_an_app_that_waits_for_room_goes_on_when_the_client_leaves(self) -> None:
        ended = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            for _ in range(100):
                await body(send, b"x" * 1000)
            ended.set()

        async with client_of(app, buffer_bytes=1000) as client:
            async with client.stream("GET", "/"):
                await let_everything_run()
                assert not ended.is_set()
            assert ended.is_set()

    async def test_receive_says_disconnect_after_the_response_is_complete(self) -> None:
        last: list[Message] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"all", more=False)
            last.append(await receive())

        async with client_of(app) as client:
            assert (await client.get("/")).text == "all"
        assert last == [{"type": "http.disconnect"}]

    @pytest.mark.parametrize("after_head", [False, True])
    async def test_a_cancelled_client_is_a_client_that_left(self, after_head: bool) -> None:
        reached, heard = asyncio.Event(), asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            if after_head:
                await start(send)
            reached.set()
            assert await receive() == {"type": "http.disconnect"}
            heard.set()

        async with client_of(app) as client:
            request = asyncio.create_task(client.get("/"))
            await reached.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert heard.is_set()

    async def test_a_client_cancelled_again_and_again_leaves_nothing_behind(self) -> None:
        reached, let_go, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            reached.set()
            await receive()
            await let_go.wait()
            heard.set()

        async with client_of(app) as client:
            request = asyncio.create_task(client.get("/"))
            await reached.wait()
            for _ in range(3):
                request.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await request
            let_go.set()
        assert heard.is_set(), "closing the client waits for what is still ending"

    async def test_an_app_that_does_not_listen_is_cancelled(self) -> None:
        cancelled = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        transport = StreamingASGITransport(app, close_timeout=0.05)
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            async with client.stream("GET", "/"):
                assert transport.running == 1
            assert (transport.cancelled, transport.running, cancelled.is_set()) == (1, 0, True)

    async def test_an_app_that_cannot_be_cancelled_is_an_error_and_not_a_hang(self) -> None:
        let_go = asyncio.Event()
        tasks: list[asyncio.Task[None] | None] = []

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            tasks.append(asyncio.current_task())
            await start(send)
            while not let_go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await let_go.wait()

        async with client_of(app, close_timeout=0.05) as client:
            with pytest.raises(RuntimeError, match="still runs"):
                async with client.stream("GET", "/"):
                    pass
            let_go.set()
            assert tasks[0] is not None
            await tasks[0]

    async def test_an_iterator_dropped_in_the_middle_disconnects_the_app(self) -> None:
        heard = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            await start(send)
            await body(send, b"one")
            await receive()
            heard.set()

        async with client_of(app) as client:
            response = await client.send(client.build_request("GET", "/"), stream=True)
            async for _ in response.aiter_raw():
                break
            gc.collect()
            await heard.wait()

    async def test_what_follows_a_complete_response_may_go_on_until_the_transport_closes(self) -> None:
        go_on, done = asyncio.Event(), asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"answer", more=False)
            await go_on.wait()
            done.set()

        async with client_of(app) as client:
            assert (await client.get("/")).text == "answer"
            assert not done.is_set()
            go_on.set()
        assert done.is_set()

    async def test_starlettes_streaming_response_ends_its_generator(self) -> None:
        closed = asyncio.Event()

        async def endless(request: Request) -> Response:
            async def ticks() -> AsyncIterator[bytes]:
                try:
                    while True:
                        yield b"tick"
                        await asyncio.sleep(0)
                finally:
                    closed.set()

            return StreamingResponse(ticks())

        transport = StreamingASGITransport(Starlette(routes=[Route("/", endless)]))
        async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
            async with client.stream("GET", "/") as response:
                chunks = response.aiter_raw()
                assert [await anext(chunks) for _ in range(3)] == [b"tick"] * 3
            await closed.wait()
        assert transport.cancelled == 0


class TestTimeouts:
    async def test_an_app_that_sends_no_head_runs_into_the_read_timeout(self) -> None:
        heard = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            await receive()
            heard.set()

        async with client_of(app) as client:
            with pytest.raises(httpx2.ReadTimeout) as raised:
                await client.get("/", timeout=0.02)
            assert raised.value.request.url == "http://app/"
            assert heard.is_set()

    async def test_an_app_that_falls_silent_runs_into_the_read_timeout(self) -> None:
        heard = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            await start(send)
            await body(send, b"one")
            await receive()
            heard.set()

        async with client_of(app) as client:
            async with client.stream("GET", "/", timeout=0.02) as response:
                chunks = response.aiter_raw()
                assert await anext(chunks) == b"one"
                with pytest.raises(httpx2.ReadTimeout):
                    await anext(chunks)
            assert heard.is_set()

    async def test_an_app_that_does_not_read_runs_into_the_write_timeout(self) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await asyncio.Event().wait()

        async def upload() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 65536

        async with client_of(app, close_timeout=0.05) as client:
            with pytest.raises(httpx2.WriteTimeout):
                await client.post("/", content=upload(), timeout=httpx2.Timeout(5, write=0.02))

    async def test_a_body_that_fits_does_not_wait_for_the_app_to_read_it(self) -> None:
        async with client_of(answers_without_reading) as client:
            timeout = httpx2.Timeout(5, write=0.001)
            assert (await client.post("/", content=b"small", timeout=timeout)).text == "done"


@http_only
async def answers_without_reading(scope: Scope, receive: Receive, send: Send) -> None:
    await let_everything_run()
    await start(send)
    await body(send, b"done", more=False)


@http_only
async def fails_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise LookupError("before the head")


@http_only
async def fails_after_a_chunk(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await body(send, b"one")
    raise LookupError("after a chunk")


@http_only
async def fails_when_complete(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await body(send, b"all", more=False)
    raise LookupError("when complete")


@http_only
async def says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    return


@http_only
async def stops_in_the_middle(scope: Scope, receive: Receive, send: Send) -> None:
    await start(send)
    await body(send, b"one")


class TestFailures:
    async def test_an_exception_before_the_head_reaches_the_caller(self) -> None:
        async with client_of(fails_at_once) as client:
            with pytest.raises(LookupError, match="before the head"):
                await client.get("/")

    async def test_or_it_is_a_500_as_over_a_socket(self, caplog: pytest.LogCaptureFixture) -> None:
        async with client_of(fails_at_once, raise_app_exceptions=False) as client:
            response = await client.get("/")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        errors = [record for record in caplog.records if record.levelname == "ERROR" and record.exc_info]
        assert [str(record.exc_info[1]) for record in errors if record.exc_info] == ["before the head"]

    async def test_an_exception_in_the_middle_comes_after_what_was_sent(self) -> None:
        async with client_of(fails_after_a_chunk) as client, client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"one"
            with pytest.raises(LookupError, match="after a chunk"):
                await anext(chunks)

    async def test_or_the_connection_breaks_as_over_a_socket(self) -> None:
        app = fails_after_a_chunk
        async with client_of(app, raise_app_exceptions=False) as client, client.stream("GET", "/") as response:
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"one"
            with pytest.raises(httpx2.RemoteProtocolError):
                await anext(chunks)

    async def test_an_exception_after_a_complete_response_is_not_lost(self) -> None:
        async with client_of(fails_when_complete) as client:
            with pytest.raises(LookupError, match="when complete"):
                await client.get("/")
        async with client_of(fails_when_complete, raise_app_exceptions=False) as client:
            assert (await client.get("/")).text == "all"

    async def test_an_exception_after_the_response_was_closed_is_raised_when_the_transport_closes(self) -> None:
        go_on = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"all", more=False)
            await go_on.wait()
            raise LookupError("much later")

        client = client_of(app)
        assert (await client.get("/")).text == "all"
        go_on.set()
        with pytest.raises(LookupError, match="much later"):
            await client.aclose()

    async def test_it_does_not_hide_the_exception_of_the_test_itself(self, caplog: pytest.LogCaptureFixture) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"all", more=False)
            await let_everything_run()
            raise LookupError("of the app")

        client = client_of(app)
        await client.__aenter__()
        await client.get("/")
        await let_everything_run(100)
        await client.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert "of the app" in caplog.text

    async def test_an_exception_on_disconnect_is_raised_by_closing(self) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            await start(send)
            await receive()
            raise LookupError("in the cleanup")

        async with client_of(app) as client:
            with pytest.raises(LookupError, match="in the cleanup"):
                async with client.stream("GET", "/"):
                    pass

    @pytest.mark.parametrize("streaming", [False, True])
    async def test_an_exception_on_disconnect_does_not_hide_why_the_client_left(
        self, streaming: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await read_all(receive)
            if streaming:
                await start(send)
            await receive()
            raise LookupError("in the cleanup")

        async with client_of(app) as client:
            with pytest.raises(httpx2.ReadTimeout):
                await client.get("/", timeout=0.02)
        assert "in the cleanup" in caplog.text

    async def test_several_late_exceptions_are_raised_together(self) -> None:
        go_on = asyncio.Event()

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"all", more=False)
            await go_on.wait()
            raise LookupError(scope["path"])

        client = client_of(app)
        await asyncio.gather(client.get("/1"), client.get("/2"))
        go_on.set()
        with pytest.raises(ExceptionGroup) as raised:
            await client.aclose()
        assert sorted(str(error) for error in raised.value.exceptions) == ["/1", "/2"]

    async def test_an_app_that_returns_without_an_answer_is_an_error(self) -> None:
        async with client_of(says_nothing) as client:
            with pytest.raises(RuntimeError, match="without sending a response"):
                await client.get("/")
        async with client_of(says_nothing, raise_app_exceptions=False) as client:
            assert (await client.get("/")).status_code == 500

    @pytest.mark.parametrize("raises", [True, False])
    async def test_an_app_that_stops_in_the_middle_is_a_broken_connection(self, raises: bool) -> None:
        async with client_of(stops_in_the_middle, raise_app_exceptions=raises) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.get("/")

    async def test_an_app_that_cancels_itself_is_a_failure_not_a_cancelled_client(self) -> None:
        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise asyncio.CancelledError

        async with client_of(app) as client:
            with pytest.raises(RuntimeError, match="was cancelled"):
                await client.get("/")

    @pytest.mark.parametrize(
        ("messages", "complaint"),
        [
            ([("http.response.body", {"body": b"x"})], "expected the ASGI message 'http.response.start'"),
            ([("start", {}), ("start", {})], "expected the ASGI message 'http.response.body'"),
            ([("start", {}), ("end", {}), ("end", {})], "already complete"),
            ([("start", {"headers": [(b"content-length", b"2")]}), ("end", {"body": b"abc"})], "longer"),
            ([("start", {"headers": [(b"content-length", b"9")]}), ("end", {"body": b"abc"})], "shorter"),
            ([("start", {"status": 204}), ("end", {"body": b"abc"})], "longer"),
            ([("start", {"headers": [(b"x", b"a\r\nset-cookie: b")]})], "invalid value"),
            ([("start", {"headers": [(b"a b", b"c")]})], "invalid name"),
            ([("start", {"headers": [("x", "y")]})], "are bytes"),
        ],
    )
    async def test_an_app_that_breaks_the_protocol_hears_of_it(
        self, messages: list[tuple[str, dict[str, Any]]], complaint: str
    ) -> None:
        names = {"start": "http.response.start", "end": "http.response.body"}

        @http_only
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            for kind, fields in messages:
                await send({"type": names.get(kind, kind), "status": 200, **fields})

        async with client_of(app) as client:
            with pytest.raises((RuntimeError, TypeError), match=complaint):
                await client.get("/")


class RecordingApp:
    """An app with a lifespan that notes what happens to it."""

    def __init__(self, *, fail: str = "", hang: str = "") -> None:
        self.events: list[str] = []
        self.fail = fail
        self.hang = hang

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(scope, receive, send)
            return
        self.events.append("request")
        scope["state"]["count"] = scope["state"].get("count", 0) + 1
        await start(send)
        await body(send, f"{scope['state']}".encode(), more=False)

    async def lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        for phase in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{phase}"
            self.events.append(phase)
            if phase == self.hang:
                await asyncio.Event().wait()
            if phase == self.fail:
                await send({"type": f"lifespan.{phase}.failed", "message": "no database"})
                return
            scope["state"]["db"] = "open"
            await send({"type": f"lifespan.{phase}.complete"})


class TestLifespan:
    async def test_entering_starts_the_app_and_leaving_shuts_it_down(self) -> None:
        app = RecordingApp()
        async with StreamingASGITransport(app):
            assert app.events == ["startup"]
        assert app.events == ["startup", "shutdown"]

    async def test_the_first_request_starts_an_app_that_was_not_entered(self) -> None:
        app = RecordingApp()
        client = client_of(app)
        assert app.events == []
        await asyncio.gather(client.get("/"), client.get("/"))
        await client.aclose()
        assert app.events == ["startup", "request", "request", "shutdown"]

    async def test_each_request_gets_its_own_copy_of_the_state(self) -> None:
        async with client_of(RecordingApp()) as client:
            answers = [(await client.get("/")).text for _ in range(2)]
        assert answers == ["{'db': 'open', 'count': 1}"] * 2

    async def test_clients_may_come_and_go_while_the_transport_is_entered(self) -> None:
        app = RecordingApp()
        async with StreamingASGITransport(app) as transport:
            for _ in range(2):
                async with async_client(transport) as client:
                    await client.get("/")
            other = async_client(transport)
            await other.get("/")
            await other.aclose()
            assert app.events == ["startup", "request", "request", "request"]
        assert app.events[-1] == "shutdown"

    async def test_an_app_without_lifespan_is_fine_unless_one_is_demanded(self) -> None:
        async with client_of(answers_without_reading) as client:
            assert (await client.get("/")).text == "done"
        with pytest.raises(NotImplementedError):
            async with client_of(answers_without_reading, lifespan="on"):
                raise AssertionError("not reached")

    async def test_an_app_that_knows_lifespans_can_be_run_without(self) -> None:
        app = RecordingApp()
        async with StreamingASGITransport(app, lifespan="off"):
            pass
        assert app.events == []

    async def test_a_failed_start_reaches_every_caller(self) -> None:
        client = client_of(RecordingApp(fail="startup"))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="failed to start: no database"):
                await client.get("/")
        await client.aclose()

    async def test_a_start_that_took_too_long_is_not_a_start(self) -> None:
        client = client_of(RecordingApp(hang="startup"), startup_timeout=0.02, close_timeout=0.02)
        for _ in range(2):
            with pytest.raises(TimeoutError, match="did not start"):
                await client.get("/")
        await client.aclose()

    @pytest.mark.parametrize("phase", ["startup", "shutdown"])
    async def test_an_app_that_breaks_the_lifespan_protocol_hears_of_it(self, phase: str) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await receive()
            if phase == "shutdown":
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.done"})

        with pytest.raises(RuntimeError, match=r"unexpected ASGI message 'lifespan\.done'"):
            async with client_of(app, lifespan="on"):
                pass

    async def test_a_failed_shutdown_is_raised(self) -> None:
        with pytest.raises(RuntimeError, match="failed to shut down: no database"):
            async with client_of(RecordingApp(fail="shutdown")):
                pass

    @pytest.mark.parametrize("phase", ["startup", "shutdown"])
    async def test_a_hanging_lifespan_ends(self, phase: str) -> None:
        with pytest.raises(TimeoutError, match="within"):
            async with client_of(RecordingApp(hang=phase), startup_timeout=0.05, close_timeout=0.05):
                pass

    async def test_starlettes_lifespan_runs_in_one_task(self) -> None:
        tasks: list[Any] = []

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
            tasks.append(asyncio.current_task())
            async with asyncio.TaskGroup():
                yield {"name": "state"}
            tasks.append(asyncio.current_task())

        async def page(request: Request) -> Response:
            return PlainTextResponse(request.state.name)

        async with async_client(Starlette(routes=[Route("/", page)], lifespan=lifespan)) as client:
            assert (await client.get("/")).text == "state"
        assert tasks[0] is tasks[1]

    async def test_an_exception_in_starlettes_startup_is_told(self) -> None:
        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            raise LookupError("no database")
            yield

        with pytest.raises(RuntimeError, match="no database"):
            async with async_client(Starlette(lifespan=lifespan)):
                raise AssertionError("not reached")


async def let_everything_run(rounds: int = 20) -> None:
    """Let every task that can run do so: nothing here waits for anything but other tasks."""
    for _ in range(rounds):
        await asyncio.sleep(0)
