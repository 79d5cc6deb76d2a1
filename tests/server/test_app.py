"""Ways to serve: alone, as a FastAPI app, mounted in another, behind middleware, with protocols of a user's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from agentrun_server import (
    AgentInvoker,
    AgentRequest,
    AgentRunServer,
    BaseProtocolHandler,
    ConfigurationError,
    OpenAIProtocolConfig,
    OpenAIProtocolHandler,
    ProtocolHandler,
    ServerConfig,
)
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from tests.support.agents import ASYNC_STREAMS, Witness
from tests.support.chat_oracle import check_chat_stream, check_completion
from tests.support.clock import eventually
from tests.support.raw_client import Headers
from tests.support.raw_client import Response as Answer
from tests.support.responses_oracle import check_response, check_response_stream
from tests.support.serve import Served, serve


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


class Counting:
    """ASGI middleware that notes the paths it sees, and can refuse what is not allowed."""

    def __init__(self, app: ASGIApp, *, seen: list[str], key: str | None = None) -> None:
        self._app = app
        self._seen = seen
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._seen.append(scope["path"])
        if self._key is not None and (b"authorization", self._key.encode()) not in scope["headers"]:
            if scope["type"] == "http":
                await JSONResponse({"error": "no"}, 401)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)


class Shouting(ProtocolHandler):
    """A protocol of a user's own."""

    name = "shouting"

    def as_fastapi_router(self, agent_invoker: AgentInvoker) -> APIRouter:
        router = APIRouter()

        @router.post("/shout")
        async def shout(request: Request) -> Response:
            body = await request.json()
            events = await agent_invoker.invoke(AgentRequest([{"role": "user", "content": body["text"]}]))
            return JSONResponse({"text": "".join(str(event) for event in events).upper()})

        @router.post("/whisper")
        async def whisper(request: Request) -> Response:
            body = await request.json()

            async def pieces() -> AsyncIterator[str]:
                asked = AgentRequest([{"role": "user", "content": body["text"]}], stream=True)
                async with aclosing(agent_invoker.invoke_stream(asked)) as events:
                    async for event in events:
                        yield str(event).lower()

            return StreamingResponse(pieces())

        @router.get("/fail")
        async def fail(what: str) -> Response:
            raise {"value": ValueError("secret-secret"), "exit": ConfigurationError("secret-secret")}[what]

        return router

    def get_prefix(self) -> str:
        return "/own"


async def chats(served: Served, prefix: str = "/v1") -> None:
    """See that Chat Completions work under `prefix`."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
    answer = await served.ask("POST", f"{prefix}/chat/completions", body)
    assert answer.status == 200, answer
    assert check_completion(answer.json()).text == "hi"
    assert answer.header("x-request-id")
    streamed = await served.ask("POST", f"{prefix}/chat/completions", body[:-1] + b',"stream":true}')
    assert check_chat_stream(streamed.body, include_usage=False).text == "hi"
    models = await served.ask("GET", f"{prefix}/models")
    assert [model["id"] for model in models.json()["data"]] == ["agentrun"]


async def responds(served: Served, prefix: str = "/v1", headers: Headers = ()) -> None:
    """See that responses and conversations work under `prefix`, from the first request to the last."""

    async def ask(method: str, path: str, body: Any = None, *, status: int = 200) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        answer = await served.ask(method, prefix + path, data, headers)
        assert answer.status == status, (method, path, answer)
        assert answer.header("x-request-id"), path
        return answer

    conversation = (await ask("POST", "/conversations", {"metadata": {"topic": "greetings"}})).json()["id"]
    whole = (await ask("POST", "/responses", {"model": "m", "input": "hi", "conversation": conversation})).json()
    check_response(whole)
    streamed = await ask("POST", "/responses", {"model": "m", "input": "ho", "stream": True})
    parsed = check_response_stream(streamed.body)
    assert (whole["output"][0]["content"][0]["text"], parsed.text) == ("hi", "ho")

    one = f"/responses/{parsed.response['id']}"
    assert (await ask("GET", one)).json() == parsed.response
    rest = await ask("GET", f"{one}?stream=true&starting_after=2")
    assert rest.body == streamed.body[streamed.body.index(b"event: response.content_part.added") :]
    (question,) = (await ask("GET", f"{one}/input_items")).json()["data"]
    assert question["content"][0]["text"] == "ho"
    assert (await ask("POST", f"{one}/cancel", status=400)).error()["param"] == "response_id"
    assert (await ask("DELETE", one)).json()["deleted"] is True
    assert (await ask("GET", one, status=404)).error()["code"] == "response_not_found"

    queued = (await ask("POST", "/responses", {"model": "m", "input": "hu", "background": True})).json()
    ended = check_response_stream((await ask("GET", f"/responses/{queued['id']}?stream=true")).body)
    assert (queued["status"], ended.text) == ("queued", "hu")
    assert (await ask("POST", f"/responses/{queued['id']}/cancel")).json()["status"] == "completed"

    question = {"model": "m", "input": "twelve letters"}
    assert (await ask("POST", "/responses/input_tokens", question)).json()["input_tokens"] > 0
    (summary,) = (await ask("POST", "/responses/compact", question)).json()["output"]
    assert summary["type"] == "compaction"

    one = f"/conversations/{conversation}"
    said = (await ask("GET", f"{one}/items?order=asc")).json()["data"]
    assert [item["role"] for item in said] == ["user", "assistant"]
    assert (await ask("GET", f"{one}/items/{said[0]['id']}")).json() == said[0]
    assert (await ask("DELETE", f"{one}/items/{said[0]['id']}")).json()["id"] == conversation
    await ask("POST", f"{one}/items", {"items": [{"role": "user", "content": "again"}]})
    assert (await ask("POST", one, {"metadata": {"topic": "partings"}})).json()["metadata"] == {"topic": "partings"}
    assert (await ask("DELETE", one)).json()["deleted"] is True
    assert (await ask("GET", one, status=404)).error()["code"] == "conversation_not_found"


async def stores_chats(served: Served, prefix: str = "/v1") -> None:
    """See that chat completions are stored under `prefix` and found there."""

    async def ask(method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = await served.ask(method, f"{prefix}/chat/completions{path}", data)
        assert answer.status == 200, (method, path, answer)
        return answer.json()

    messages = [{"role": "user", "content": "hi"}]
    made = await ask("POST", "", {"model": "m", "messages": messages, "store": True})
    one = f"/{made['id']}"
    assert await ask("GET", one) == {**made, "metadata": {}}
    assert (await ask("POST", one, {"metadata": {"a": "b"}}))["metadata"] == {"a": "b"}
    assert [completion["id"] for completion in (await ask("GET", "?metadata[a]=b"))["data"]] == [made["id"]]
    assert [message["content"] for message in (await ask("GET", f"{one}/messages"))["data"]] == ["hi"]
    assert (await ask("DELETE", one))["deleted"] is True


# --- each way to serve the same server


def as_itself(server: AgentRunServer) -> ASGIApp:
    return server


def as_app(server: AgentRunServer) -> ASGIApp:
    return server.app


def as_fastapi_app(server: AgentRunServer) -> ASGIApp:
    return server.as_fastapi_app()


def mounted(server: AgentRunServer) -> ASGIApp:
    app = FastAPI(lifespan=server.lifespan)
    app.mount("/agent", server)
    return app


def mounted_app(server: AgentRunServer) -> ASGIApp:
    app = FastAPI(lifespan=server.lifespan)
    app.mount("/agent", server.as_fastapi_app())
    return app


def mounted_without_lifespan(server: AgentRunServer) -> ASGIApp:
    app = FastAPI()
    app.mount("/agent", server)
    return app


def mounted_at_the_root(server: AgentRunServer) -> ASGIApp:
    app = FastAPI(lifespan=server.lifespan)

    @app.get("/mine")
    async def mine() -> str:
        return "mine"

    app.mount("/", server)
    return app


def behind_http_middleware(server: AgentRunServer) -> ASGIApp:
    """Most FastAPI apps have one of these; it runs what is behind it in a task group of its own."""
    app = FastAPI(lifespan=server.lifespan, middleware=[Middleware(BaseHTTPMiddleware, dispatch=stamp)])
    app.mount("/agent", server)
    return app


def with_router_included(server: AgentRunServer) -> ASGIApp:
    app = FastAPI(lifespan=server.lifespan)
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/agent/v1")
    return app


ALONE = [as_itself, as_app, as_fastapi_app, mounted_at_the_root]
BELOW = [mounted, mounted_app, mounted_without_lifespan, behind_http_middleware, with_router_included]
WAYS: dict[str, tuple[Callable[[AgentRunServer], ASGIApp], str]] = {
    **{way.__name__: (way, "/v1") for way in ALONE},
    **{way.__name__: (way, "/agent/v1") for way in BELOW},
}
ways = pytest.mark.parametrize("way", WAYS)


@ways
async def test_a_server_can_be_served_in_many_ways(way: str) -> None:
    make, prefix = WAYS[way]
    async with serve(make(AgentRunServer(echo))) as served:
        await chats(served, prefix)
        await served.nothing_left()


async def close(server: AgentRunServer) -> None:
    """Close the store of a server whose lifespan nobody has run."""
    assert server._runs is not None
    await server._runs.aclose()


@ways
async def test_what_is_stored_is_found_however_the_server_is_served(way: str) -> None:
    make, prefix = WAYS[way]
    server = AgentRunServer(echo)
    async with serve(make(server)) as served:
        await responds(served, prefix)
        await stores_chats(served, prefix)
        await close(server)


@ways
async def test_an_unknown_model_is_a_404_however_the_server_is_served(way: str) -> None:
    make, prefix = WAYS[way]
    async with serve(make(AgentRunServer(echo, config=ServerConfig(strict_models=True)))) as served:
        body = b'{"model":"nope","messages":[{"role":"user","content":"hi"}]}'
        for answer in (
            await served.ask("GET", f"{prefix}/models/nope"),
            await served.ask("POST", f"{prefix}/chat/completions", body),
        ):
            assert (answer.status, answer.error()["code"]) == (404, "model_not_found")


@ways
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("hang_at", [0, 2])
async def test_a_client_that_leaves_is_noticed_however_the_server_is_served(way: str, how: str, hang_at: int) -> None:
    make, prefix = WAYS[way]
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["slow clean-up"](witness, hang_at))
    async with serve(make(server)) as served:
        async with served.client() as client:
            await client.chat(path=f"{prefix}/chat/completions")
            for _ in range(hang_at):
                await client.piece()
            await witness.saw("waiting")
            client.leave(how)
            await witness.saw("ended")
        await served.nothing_left()
        assert server._sweeper.active == set()
        assert server._admission.running == 0


@ways
async def test_a_client_that_leaves_a_response_ends_it_however_the_server_is_served(way: str) -> None:
    make, prefix = WAYS[way]
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["slow clean-up"](witness, 1))
    async with serve(make(server)) as served:
        async with served.client() as client:
            await client.request("POST", f"{prefix}/responses", b'{"model":"m","input":"hi","stream":true}')
            assert (await client.head()).status == 200
            await witness.saw("waiting")
            client.rst()
            await witness.saw("ended")
        await eventually(lambda: not server._sweeper.active)
        assert server._admission.running == 0
        await close(server)


@ways
async def test_a_failure_is_told_however_the_server_is_served(way: str) -> None:
    make, prefix = WAYS[way]

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        if request.stream:
            yield "so far"
            await asyncio.sleep(0)
        raise ValueError

    async with serve(make(AgentRunServer(agent))) as served:
        for stream in (False, True):
            async with served.client() as client:
                await client.chat(path=f"{prefix}/chat/completions", stream=stream)
                answer = await client.response()
            if stream:
                assert check_chat_stream(answer.body, include_usage=False).error is not None
            else:
                assert answer.status == 500
                assert answer.error()["code"] == "agent_error"
                assert answer.header("x-should-retry") == "false"


async def test_a_mounting_app_keeps_its_own_routes() -> None:
    async with serve(mounted_at_the_root(AgentRunServer(echo))) as served:
        assert (await served.ask("GET", "/mine")).json() == "mine"
        assert (await served.ask("GET", "/readyz")).status == 200
        assert (await served.ask("GET", "/nope")).error()["code"] == "unknown_url"


@pytest.mark.parametrize("docs", [False, True])
async def test_who_mistypes_a_path_is_told_where_the_api_is(docs: bool) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(docs=docs))) as served:
        answer = await served.ask("POST", "/v1/chat/completion", b"{}")
    assert (answer.status, answer.error()["code"]) == (404, "unknown_url")
    assert "served under /v1" in answer.error()["message"]


async def test_a_server_below_a_proxy_that_keeps_the_prefix_finds_its_paths() -> None:
    async with serve(AgentRunServer(echo), root_path="/behind") as served:
        await chats(served)  # uvicorn puts the root path in front


def with_protocols(prefix: str | None = None) -> AgentRunServer:
    config = ServerConfig(openai=OpenAIProtocolConfig(prefix=prefix))
    return AgentRunServer(echo, [OpenAIProtocolHandler(config), Shouting()], config)


async def stamp(request: Request, call_next: Callable[[Request], Any]) -> Response:
    response: Response = await call_next(request)
    response.headers["x-stamp"] = "1"
    return response


def with_http_middleware_added() -> AgentRunServer:
    server = with_protocols()
    server.app.add_middleware(BaseHTTPMiddleware, dispatch=stamp)
    return server


def with_cors() -> AgentRunServer:
    return AgentRunServer(echo, config=ServerConfig(cors_origins=["https://ui.example"]))


SETTINGS: dict[str, tuple[Callable[[], AgentRunServer], str]] = {
    "own protocols, documentation and middleware": (lambda: guarded([]), "/v1"),
    "own protocols and a prefix": (lambda: with_protocols("/api"), "/api"),
    "own protocols and middleware added to the app": (with_http_middleware_added, "/v1"),
    "a prefix": (
        lambda: AgentRunServer(echo, config=ServerConfig(openai=OpenAIProtocolConfig(prefix="/api"))),
        "/api",
    ),
    "no prefix": (lambda: AgentRunServer(echo), ""),
    "CORS": (with_cors, "/v1"),
}


@pytest.mark.parametrize("setting", SETTINGS)
async def test_what_is_stored_is_found_with_each_setting(setting: str) -> None:
    make, prefix = SETTINGS[setting]
    async with serve(make()) as served:
        await responds(served, prefix)


async def test_a_server_that_serves_nothing_of_its_own_gives_its_routes_to_another_app() -> None:
    server = AgentRunServer(echo, [])
    app = FastAPI(lifespan=server.lifespan)
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/llm")
    app.mount("/agent", server)
    async with serve(app) as served:
        await responds(served, "/llm")
        assert (await served.ask("GET", "/agent/v1/responses/resp_1")).error()["code"] == "unknown_url"


async def test_stored_objects_of_an_app_that_includes_the_routes_belong_to_its_principal() -> None:
    server = AgentRunServer(echo)

    def identify(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                name = dict(scope["headers"])[b"authorization"].decode()
                scope.setdefault("state", {})["principal"] = SimpleNamespace(issuer="test", subject=name)
            await app(scope, receive, send)

        return middleware

    app = FastAPI(lifespan=server.lifespan, middleware=[Middleware(identify)])
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/{tenant}/v1")
    async with serve(app) as served:
        await responds(served, "/acme/v1", [("authorization", "alice")])
        made = await served.ask("POST", "/acme/v1/conversations", b"{}", [("authorization", "alice")])
        path = f"/acme/v1/conversations/{made.json()['id']}"
        assert (await served.ask("GET", path, None, [("authorization", "alice")])).status == 200
        assert (await served.ask("GET", path, None, [("authorization", "bob")])).status == 404


# --- lifespans


async def test_a_lifespan_of_the_users_own_is_entered_and_left() -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(server: AgentRunServer) -> AsyncIterator[None]:
        assert isinstance(server, AgentRunServer)
        steps.append("entered")
        yield
        steps.append("left")

    for make in (as_itself, as_app, mounted):
        server = AgentRunServer(echo, lifespan=lifespan)
        async with serve(make(server)):
            assert steps == ["entered"]
        assert steps == ["entered", "left"]
        steps.clear()


async def messages_of(app: ASGIApp) -> list[dict[str, Any]]:
    """Run the lifespan of `app` from start to end; return what it says."""
    sent: list[dict[str, Any]] = []
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(incoming)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except ValueError:
        sent.append({"type": "raised"})
    return sent


async def test_a_lifespan_that_fails_at_the_start_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan(server: AgentRunServer) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    sent = await messages_of(AgentRunServer(echo, lifespan=lifespan))
    assert sent == [{"type": "lifespan.startup.failed", "message": "ValueError"}, {"type": "raised"}]
    assert "no database" in caplog.text


async def test_a_lifespan_that_fails_at_the_end_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan(server: AgentRunServer) -> AsyncIterator[None]:
        yield
        raise ValueError("no database")

    sent = await messages_of(AgentRunServer(echo, lifespan=lifespan))
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.failed",
        "raised",
    ]
    assert "no database" in caplog.text


# --- middleware


def guarded(seen: list[str], key: str | None = None, **options: Any) -> AgentRunServer:
    config = ServerConfig(docs=True)
    protocols = [OpenAIProtocolHandler(config), Shouting()]
    return AgentRunServer(echo, protocols, config, middleware=[Middleware(Counting, seen=seen, key=key)], **options)


REQUESTS = [
    ("POST", "/v1/chat/completions", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'),
    ("POST", "/chat/completions/", b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'),
    ("GET", "/openai/v1/models", None),
    ("GET", "/v1/models/agentrun", None),
    ("POST", "/v1/responses", b'{"model":"m","input":"hi","store":false}'),
    ("POST", "/v1/conversations", b"{}"),
    ("GET", "/v1/chat/completions", None),
    ("POST", "/own/shout", b'{"text":"hi"}'),
    ("GET", "/docs", None),
    ("GET", "/openapi.json", None),
    ("GET", "/mine", None),
]


def with_a_route(server: AgentRunServer) -> AgentRunServer:
    @server.app.get("/mine")
    async def mine() -> str:
        return "mine"

    @server.app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        raise AssertionError("nobody may come here")

    return server


@pytest.mark.parametrize("make", [as_itself, as_app], ids=lambda make: make.__name__)
async def test_middleware_sees_each_request_once(make: Callable[[AgentRunServer], ASGIApp]) -> None:
    seen: list[str] = []
    server = with_a_route(guarded(seen))
    async with serve(make(server)) as served:
        for method, path, body in REQUESTS:
            answer = await served.ask(method, path, body)
            assert answer.status == 200, (path, answer)
            assert answer.header("x-request-id"), path
            assert seen == [path]
            seen.clear()


@pytest.mark.parametrize("make", [as_itself, as_app, mounted, mounted_app], ids=lambda make: make.__name__)
async def test_middleware_cannot_be_passed_by_another_spelling_of_a_path(
    make: Callable[[AgentRunServer], ASGIApp],
) -> None:
    """Every spelling is refused, whether it would be found or not."""
    server = with_a_route(guarded([], key="Bearer right"))
    prefix = "/agent" if make in (mounted, mounted_app) else ""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    spellings = [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "//v1/chat/completions",
        "/v1/./chat/completions",
        "/health/../v1/chat/completions",
        "/health/v1/chat/completions",
        "/v1/chat/completions?x=/health",
        "/v1/chat%2fcompletions",
        "/%76%31/chat/completions",
        "/V1/chat/completions",
        "/v1/chat/completions;/health",
        "/readyz/",
        "/health%2f",
        "/v1/responses",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/",
        "/v1/responses/../../health",
        "/v1/conversations/conv_1/items",
        "/own/shout",
        "/own/../own/shout",
        "/docs",
        "/docs/",
        "/openapi.json",
        "/mine",
        "/mine/",
        "/v1/models/agentrun",
        "/v1/models/../../health",
        "/nope",
    ]
    async with serve(make(server)) as served:
        for path in spellings:
            for method in ("GET", "POST"):
                answer = await served.ask(method, prefix + path, body if method == "POST" else None)
                assert answer.status == 401, (method, path, answer)
            allowed = await served.ask("POST", prefix + path, body, [("authorization", "Bearer right")])
            assert allowed.status != 401, path


@pytest.mark.parametrize("make", [as_itself, as_app], ids=lambda make: make.__name__)
async def test_probes_pass_middleware_by(make: Callable[[AgentRunServer], ASGIApp]) -> None:
    """A load balancer has no key. Only the exact paths; what is behind them tells nothing else."""
    seen: list[str] = []
    async with serve(make(guarded(seen, key="Bearer right"))) as served:
        for path in ("/health", "/livez", "/readyz"):
            assert (await served.ask("GET", path)).status == 200
            assert (await served.ask("HEAD", path)).status == 200
            assert (await served.ask("POST", path, b"")).status == 405
        assert seen == []


@pytest.mark.parametrize("make", [as_itself, as_app], ids=lambda make: make.__name__)
async def test_middleware_guards_websockets_that_were_added(make: Callable[[AgentRunServer], ASGIApp]) -> None:
    seen: list[str] = []
    app = make(with_a_route(guarded(seen, key="Bearer right")))
    assert await websocket(app, "/socket") == [{"type": "websocket.close", "code": 1008}]
    assert seen == ["/socket"]


async def test_a_websocket_that_was_added_is_reached() -> None:
    server = AgentRunServer(echo)

    @server.app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(4000)

    sent = await websocket(server, "/socket")
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]


async def test_a_websocket_where_there_is_none_is_closed() -> None:
    (closed,) = await websocket(AgentRunServer(echo), "/v1/chat/completions")
    assert closed == {"type": "websocket.close", "code": 1008, "reason": "unknown_url"}


async def websocket(app: ASGIApp, path: str) -> list[dict[str, Any]]:
    """Open a WebSocket at `path`; return what the app sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "subprotocols": [],
        "state": {},
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.parametrize("make", [as_itself, as_app], ids=lambda make: make.__name__)
async def test_middleware_added_to_the_app_sees_every_request(make: Callable[[AgentRunServer], ASGIApp]) -> None:
    outer: list[str] = []
    inner: list[str] = []
    server = with_a_route(guarded(inner))
    server.app.add_middleware(Counting, seen=outer)
    async with serve(make(server)) as served:
        for method, path, body in REQUESTS:
            assert (await served.ask(method, path, body)).status == 200, path
            assert outer == inner == [path]
            outer.clear()
            inner.clear()


async def test_http_middleware_added_to_the_app_may_change_answers() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["slow clean-up"](witness, 1))
    server.app.add_middleware(BaseHTTPMiddleware, dispatch=stamp)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            head = await client.head()
            assert head.header("x-stamp") == "1"
            await client.piece()
            client.rst()
            await witness.saw("ended")
        await served.nothing_left()


async def test_middleware_stands_in_the_order_given() -> None:
    order: list[str] = []

    def named(app: ASGIApp, name: str) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            order.append(name)
            await app(scope, receive, send)

        return middleware

    server = AgentRunServer(echo, middleware=[Middleware(named, "first"), Middleware(named, name="second")])
    async with serve(server) as served:
        await chats(served)
    assert order[:2] == ["first", "second"]


@pytest.mark.parametrize("started", [False, True])
async def test_middleware_that_fails_is_no_success(started: bool, caplog: pytest.LogCaptureFixture) -> None:
    def failing(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
                return
            if started:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ValueError("in middleware")

        return middleware

    async with serve(AgentRunServer(echo, middleware=[Middleware(failing)])) as served:
        if started:
            async with served.client() as client:
                await client.chat()
                assert not (await client.ended()).endswith(b"0\r\n\r\n"), "cut off, and to be seen as such"
        else:
            answer = await served.chat()
            assert answer.status == 500
            assert answer.error()["code"] == "internal_error"
            assert answer.header("x-request-id")
    assert "in middleware" in caplog.text


async def test_the_principal_of_middleware_reaches_the_agent() -> None:
    def identify(app: ASGIApp) -> ASGIApp:
        async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("state", {})["principal"] = {"sub": "alice"}
            await app(scope, receive, send)

        return middleware

    async def agent(request: AgentRequest) -> str:
        return f"{request.principal['sub']}"

    server = AgentRunServer(agent, middleware=[Middleware(identify)])
    async with serve(server) as served:
        assert check_completion((await served.chat()).json()).text == "alice"
    async with serve(AgentRunServer(lambda request: str(request.principal))) as served:
        assert check_completion((await served.chat()).json()).text == "None"


# --- protocols


async def test_a_protocol_of_the_users_own_runs_the_agent() -> None:
    server = AgentRunServer(echo, [OpenAIProtocolHandler(), Shouting()])
    async with serve(server) as served:
        assert (await served.ask("POST", "/own/shout", b'{"text":"hi"}')).json() == {"text": "HI"}
        assert (await served.ask("POST", "/own/whisper", b'{"text":"HI"}')).body == b"hi"
        await chats(served)


async def test_a_protocol_of_the_users_own_may_stand_alone() -> None:
    async with serve(AgentRunServer(echo, [Shouting()])) as served:
        assert (await served.ask("POST", "/own/shout", b'{"text":"hi"}')).json() == {"text": "HI"}
        assert (await served.chat()).status == 404


async def test_a_client_that_leaves_a_protocol_of_the_users_own_cancels_its_run() -> None:
    witness = Witness()
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1), [Shouting()])
    async with serve(server) as served:
        async with served.client() as client:
            await client.request("POST", "/own/whisper", b'{"text":"hi"}')
            await client.head()
            await client.chunk()
            client.rst()
            await witness.saw("ended")
        await served.nothing_left()


async def test_a_protocol_of_the_users_own_takes_a_place_as_others_do() -> None:
    witness = Witness()
    config = ServerConfig(max_concurrent_runs=1, max_queued_runs=0)
    server = AgentRunServer(ASYNC_STREAMS["async generator"](witness, 1), [OpenAIProtocolHandler(), Shouting()], config)
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            busy = await served.ask("POST", "/own/shout", b'{"text":"hi"}')
            assert (busy.status, busy.error()["code"]) == (429, "rate_limit_exceeded")
            assert busy.header("retry-after") == "1"
            client.fin()
            await witness.saw("ended")
        await served.nothing_left()
        async with served.client() as client:
            await client.request("POST", "/own/whisper", b'{"text":"hi"}')
            await client.head()
            await client.chunk()
            assert (await served.chat()).status == 429
        await served.nothing_left()
        assert server._admission.running == 0


async def test_a_protocol_that_fails_is_answered_in_the_shape_of_all_errors(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(AgentRunServer(echo, [OpenAIProtocolHandler(), Shouting()])) as served:
        answer = await served.ask("GET", "/own/fail?what=value")
        assert (answer.status, answer.error()["code"]) == (500, "internal_error")
        assert b"secret-secret" not in answer.body
        assert answer.header("x-request-id")
        assert "secret-secret" in caplog.text
        invalid = await served.ask("GET", "/own/fail")
        assert invalid.status == 400
        assert invalid.error()["param"] == "what"


async def test_the_openai_protocol_can_be_turned_off() -> None:
    config = ServerConfig(openai=OpenAIProtocolConfig(enable=False))
    async with serve(AgentRunServer(echo, config=config)) as served:
        assert (await served.chat()).error()["code"] == "unknown_url"
        assert (await served.ask("GET", "/health")).status == 200


async def test_the_prefix_can_be_set() -> None:
    config = ServerConfig(openai=OpenAIProtocolConfig(prefix="/api/llm"))
    async with serve(AgentRunServer(echo, config=config)) as served:
        await chats(served, "/api/llm")
        assert (await served.chat()).status == 404
        assert OpenAIProtocolHandler(config).get_prefix() == "/api/llm"
        assert OpenAIProtocolHandler().get_prefix() == "/v1"


async def test_a_base_protocol_handler_must_say_how_to_read_a_request() -> None:
    class Unfinished(BaseProtocolHandler):
        def as_fastapi_router(self, agent_invoker: AgentInvoker) -> APIRouter:
            return APIRouter()

    with pytest.raises(NotImplementedError, match="Unfinished does not implement parse_request"):
        await Unfinished().parse_request(None, {})  # type: ignore[arg-type]
    assert Unfinished().get_prefix() == ""


# --- several agents


async def test_several_agents_are_models() -> None:
    async def shout(request: AgentRequest) -> str:
        return request.messages[-1].text.upper()

    async with serve(AgentRunServer({"echo": echo, "org/shout:v1": shout})) as served:
        for model, text in [("echo", "hi"), ("org/shout:v1", "HI")]:
            assert check_completion((await served.chat(model=model, text="hi")).json()).text == text
        unknown = await served.chat(model="gpt-4o")
        assert (unknown.status, unknown.error()["code"]) == (404, "model_not_found")
        models = (await served.ask("GET", "/v1/models")).json()
        assert models["object"] == "list"
        assert [model["id"] for model in models["data"]] == ["echo", "org/shout:v1"]


@pytest.mark.parametrize(("strict", "status"), [(False, 200), (True, 404)])
async def test_one_agent_answers_to_any_name_unless_told_otherwise(strict: bool, status: int) -> None:
    config = ServerConfig(openai=OpenAIProtocolConfig(model_name="mine"), strict_models=strict)
    async with serve(AgentRunServer(echo, config=config)) as served:
        assert (await served.chat(model="mine")).status == 200
        assert (await served.chat(model="other")).status == status


@pytest.mark.parametrize("agent", [None, 42, "x", {}, {"": echo}, {1: echo}, {"m": None}, lambda: "no request"])
def test_what_is_no_agent_is_refused_at_once(agent: Any) -> None:
    with pytest.raises(ConfigurationError):
        AgentRunServer(agent)


# --- CORS

ORIGIN = ("origin", "https://ui.example")
PREFLIGHT = [
    ORIGIN,
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-os,openai-beta,idempotency-key"),
]


async def preflight(served: Served, path: str = "/v1/chat/completions", method: str = "POST") -> Answer:
    wanted = [(name, method if name == "access-control-request-method" else value) for name, value in PREFLIGHT]
    return await served.ask("OPTIONS", path, None, wanted)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/responses"), ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/conversations/conv_1")],
)
async def test_pages_may_use_what_is_stored(method: str, path: str) -> None:
    async with serve(with_cors()) as served:
        asked = await preflight(served, path, method)
        assert asked.status == 200
        assert method in (asked.header("access-control-allow-methods") or "")
        answer = await served.ask(method, path, None, [ORIGIN])
        assert answer.header("access-control-allow-origin") == "https://ui.example"


async def test_there_is_no_cors_unless_asked_for() -> None:
    async with serve(AgentRunServer(echo)) as served:
        assert (await preflight(served)).status == 405
        answer = await served.chat(headers=[ORIGIN])
        assert answer.header("access-control-allow-origin") is None


async def test_an_origin_that_is_named_may_call_with_credentials() -> None:
    config = ServerConfig(cors_origins=["https://ui.example", "http://localhost:3000"])
    async with serve(AgentRunServer(echo, config=config)) as served:
        answer = await preflight(served)
        assert answer.status == 200
        assert answer.header("access-control-allow-origin") == "https://ui.example"
        assert answer.header("access-control-allow-credentials") == "true"
        allowed = {name.strip().lower() for name in (answer.header("access-control-allow-headers") or "").split(",")}
        assert {"authorization", "content-type", "x-stainless-os", "openai-beta", "idempotency-key"} <= allowed
        answer = await served.chat(headers=[ORIGIN])
        assert answer.header("access-control-allow-origin") == "https://ui.example"
        exposed = {name.strip() for name in (answer.header("access-control-expose-headers") or "").split(",")}
        assert {"x-request-id", "retry-after", "retry-after-ms", "x-should-retry"} <= exposed
        assert "Origin" in (answer.header("vary") or "")
        stranger = await served.chat(headers=[("origin", "https://evil.example")])
        assert stranger.header("access-control-allow-origin") is None


@pytest.mark.parametrize("cookie", [[], [("cookie", "session=1")]], ids=["without cookie", "with cookie"])
async def test_any_origin_may_call_without_credentials(cookie: list[tuple[str, str]]) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(cors_origins=["*"]))) as served:
        answer = await preflight(served)
        assert answer.header("access-control-allow-origin") == "*"
        assert answer.header("access-control-allow-credentials") is None
        answer = await served.chat(headers=[ORIGIN, *cookie])
        assert answer.header("access-control-allow-credentials") is None
        assert answer.header("access-control-allow-origin") == "*"


async def test_errors_and_streams_have_cors_headers_too() -> None:
    config = ServerConfig(cors_origins=["https://ui.example"])
    async with serve(AgentRunServer(echo, config=config)) as served:
        for answer in (
            await served.chat(stream=True, headers=[ORIGIN]),
            await served.chat(n=1000, headers=[ORIGIN]),
            await served.ask("GET", "/nope", None, [ORIGIN]),
            await served.ask("GET", "/health", None, [ORIGIN]),
        ):
            assert answer.header("access-control-allow-origin") == "https://ui.example", answer


def test_any_origin_and_others_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cors_origins"):
        AgentRunServer(echo, config=ServerConfig(cors_origins=["*", "https://ui.example"]))


@pytest.mark.parametrize("make", [as_itself, as_app], ids=lambda make: make.__name__)
async def test_a_preflight_is_answered_before_authentication(make: Callable[[AgentRunServer], ASGIApp]) -> None:
    seen: list[str] = []
    config = ServerConfig(cors_origins=["https://ui.example"])
    server = AgentRunServer(echo, config=config, middleware=[Middleware(Counting, seen=seen, key="Bearer right")])
    async with serve(make(server)) as served:
        answer = await preflight(served)
        assert answer.status == 200
        assert seen == []
        refused = await served.chat(headers=[ORIGIN])
        assert refused.status == 401
        assert refused.header("access-control-allow-origin") == "https://ui.example"
