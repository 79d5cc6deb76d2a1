"""`AgentRunServer`: the whole server on one screen.

A request passes: this object (request id, log line) → CORS → the middleware, unless it is a probe → `_dispatch`, which
knows the few paths of its own by a dictionary. FastAPI is asked only for what is left: protocols of a user's own,
documentation, routes added to `.app`. It is imported when one of these is wanted; a plain server never does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.errors import (
    AgentFailedError,
    APIError,
    ConfigurationError,
    MethodNotAllowedError,
    NotFoundError,
    ServiceUnavailableError,
)
from agentrun_server.invoker.agent import AgentCallable
from agentrun_server.invoker.threads import Threads
from agentrun_server.observability.access_log import AccessLog
from agentrun_server.observability.logs import get_logger, request_id
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_chat.decode import warm_up
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.admission import Admission, shutting_down
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.chat.handler import ChatHandler
from agentrun_server.server.drain import Drain
from agentrun_server.server.exchange import (
    EXCHANGE,
    HANDSHAKE,
    Exchange,
    answer,
    answer_error,
    client_request_id,
    principal_of,
    refuse_websocket,
)
from agentrun_server.server.front import VERIFY_PATH, authentication, rate_limit, trusted_hosts, verify
from agentrun_server.server.protocols import AgentInvoker, OpenAIProtocolHandler, ProtocolHandler, caller
from agentrun_server.server.services import Services
from agentrun_server.server.websocket.origin import OriginGuard

if TYPE_CHECKING:
    from fastapi import FastAPI

    from agentrun_server.runs.registry import Runs
    from agentrun_server.server.http.protocol import HttpLimits
    from agentrun_server.server.keeper import Keeper
    from agentrun_server.server.websocket.head import WebSockets
    from agentrun_server.storage.opening import Storage

__all__ = ["AgentRunServer", "MiddlewareEntry"]

logger = get_logger("agentrun_server.server")

_AZURE = ("/openai/deployments/", "/chat/completions")
"""Azure's client puts the model into the path, besides the body, where it is read."""
_RATE_LIMIT = ("limit", "remaining", "reset")

INNER = "agentrun_server.inner"
"""Key of the ASGI scope: the app that stands behind the middleware for this request, when it is not `_dispatch`."""


class MiddlewareEntry(Protocol):
    """What Starlette's `Middleware` is: a class and its arguments."""

    @property
    def cls(self) -> Any:
        """The middleware class, or a function that takes the app."""
        ...

    @property
    def args(self) -> Any:
        """Positional arguments behind the app."""
        ...

    @property
    def kwargs(self) -> Any:
        """Keyword arguments."""
        ...


class AgentRunServer:
    """An agent behind the OpenAI API, as an ASGI app: ``uvicorn app:server``.

    Args:
        invoke_agent: the agent, or agents by model id. Called with one `AgentRequest`; may be a sync or async function
            or generator function, a callable object, a partial; returns or yields text, typed events, `AgentEvent`,
            OpenAI chunks, objects with ``.content``, or lists of these.
        protocols: the protocols to serve; the OpenAI protocol when left out.
        config: settings; see `ServerConfig`, which also reads ``AGENTRUN_*`` variables.
        memory_collection_name: turns sessions on (`AgentRequest.session`); their memory is kept under this name.
        middleware: ASGI middleware, outermost first, as Starlette's ``Middleware(cls, …)``. It stands in front of every
            route but the probes, between the authentication and the rate limit that the settings ask for.
        lifespan: an async context manager that is entered with this server at start and left at shutdown.
        store: where responses, conversations and sessions are kept, in place of what the settings say: a URL as in
            ``store_url``; or a `Storage` that is open, as `open_storage` returns it, which several servers of one event
            loop may share, and which stays open when this one stops.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    def __init__(
        self,
        invoke_agent: AgentCallable | Mapping[str, AgentCallable],
        protocols: Sequence[ProtocolHandler] | None = None,
        config: ServerConfig | None = None,
        memory_collection_name: str | None = None,
        *,
        middleware: Iterable[MiddlewareEntry] = (),
        lifespan: "Callable[[AgentRunServer], AbstractAsyncContextManager[Any]] | None" = None,
        store: "Storage | str | None" = None,
    ) -> None:
        config = config if config is not None else ServerConfig()
        if isinstance(store, str):
            config, store = replace(config, store_url=store), None
        self.config = config
        self._shared = store
        protocols = [OpenAIProtocolHandler(config)] if protocols is None else list(protocols)
        openai = next((p for p in protocols if isinstance(p, OpenAIProtocolHandler)), None)
        self._protocols = protocols
        self._user_lifespan = lifespan
        self._new_id = IdSource()
        self._access_log = AccessLog(config.log_format) if config.access_log else None
        self._sweeper = Sweeper(config)
        self._admission = Admission(
            config.max_concurrent_runs, max_queued=config.max_queued_runs, timeout=config.queue_timeout
        )
        threads = Threads(
            config.max_sync_threads,
            max_waiting=config.max_queued_runs,
            timeout=config.queue_timeout,
            grace=config.cancel_grace,
        )
        self._threads = threads
        self.drain = Drain(self._sweeper, self._admission, timeout=config.drain_timeout, grace=config.cancel_grace)
        model_name = openai.get_model_name() if openai is not None else None
        agents = Agents(
            invoke_agent,
            model_name,
            strict=config.strict_models,
            scopes_required=config.auth_model_scopes == "required",
        )
        self._memory = memory_collection_name or config.memory_collection_name
        self._check_store()
        self._services = Services(config, agents, self._admission, threads, self._sweeper, self._new_id)
        keeps = None if store is None and config.store_url is None else lambda: self._keeper.chat
        chat = ChatHandler(self._services, keeps, remembers=self._memory is not None)
        self._agents = agents
        served = openai if openai is not None and openai.config.enable else None
        self._prefixes = () if served is None else served.prefixes
        self.agent_invoker = AgentInvoker(agents, threads, chat, lambda: self._keeper.routes, self._admission)
        self.probes: Mapping[str, ASGIApp] = {
            "/health": self._health,
            "/livez": self._health,
            "/readyz": self._ready,
        }
        self._routes: dict[str, tuple[str, ASGIApp]] = {path: ("GET", app) for path, app in self.probes.items()}
        self._routes[VERIFY_PATH] = ("GET", self._verify)
        for prefix in self._prefixes:
            self._add(f"{prefix}/chat/completions", "POST", chat)
            self._add(f"{prefix}/models", "GET", self._models)
        self._model_paths = tuple(f"{prefix}/models/" for prefix in self._prefixes)
        self._socket_paths = frozenset(f"{prefix}/responses{end}" for prefix in self._prefixes for end in ("", "/"))
        self._serves_azure = served is not None and served.config.prefix is None
        self._stack = self._build_stack([*authentication(config), *middleware, *rate_limit(config)])
        self._app: FastAPI | None = None
        # Protocols of a user's own are FastAPI routers, and so is the documentation.
        self._needs_app = config.docs or any(p is not openai for p in protocols)

    def _check_store(self) -> None:
        config = self.config
        if self._shared is not None:
            from agentrun_server.storage.opening import Storage

            if not isinstance(self._shared, Storage):
                raise ConfigurationError("store is a URL, or a Storage as open_storage returns it")
        elif config.store_url is None:
            if self._memory is not None:
                raise ConfigurationError("memory_collection_name needs a store: store_url is none")
        elif config.store_url != "sqlite" or config.bus_redis_url is not None:  # else there is no URL to look at
            from agentrun_server.storage.opening import check_storage

            check_storage(config.store_url, config.bus_redis_url)

    @cached_property
    def _keeper(self) -> "Keeper":
        """What outlives a request. Half of this package is behind it, which is imported when it is used or served."""
        from agentrun_server.server.keeper import Keeper

        return Keeper(self._services, self._prefixes, self._memory, self, self.drain, self._shared)

    @property
    def _runs(self) -> "Runs | None":
        return self._keeper.runs

    def _add(self, path: str, method: str, handler: ASGIApp) -> None:
        self._routes[path] = self._routes[f"{path}/"] = (method, handler)

    def _build_stack(self, middleware: Sequence[MiddlewareEntry]) -> ASGIApp:
        """Return `_dispatch` behind the middleware, with a way past it for the probes. Before both: hosts, CORS."""
        stack = _behind(middleware, self._dispatch)
        if middleware:
            stack = self._past_probes(stack)
        return _behind([*trusted_hosts(self.config, self.probes), *_cors(self.config)], stack)

    def _past_probes(self, stack: ASGIApp) -> ASGIApp:
        def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:  # no coroutine of its own
            is_probe = scope["type"] == "http" and _path(scope) in self.probes
            return (self._dispatch if is_probe else stack)(scope, receive, send)

        return app

    # --- ASGI

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the process's lifespan."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            await self._serve_websocket(scope, receive, send)
        elif INNER not in scope and (self._app is not None or self._needs_app):
            await self.app(scope, receive, send)
        else:
            await self._stack(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: give it an id, catch what nobody caught, log it."""
        exchange = self._open_exchange(scope, send)
        try:
            if INNER in scope or (self._app is None and not self._needs_app):
                await self._stack(scope, receive, exchange.send)
            else:
                await self._serve_with_fastapi(scope, receive, exchange.send)
        except Exception:
            logger.exception("request failed")
            if exchange.status:
                raise  # too late for an answer: the server closes the connection
            await answer_error(exchange.send, AgentFailedError("The server had an error.", code="internal_error"))
        finally:
            self._close_exchange(scope, exchange)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket: give it an id, and log it when it has ended."""
        scope[HANDSHAKE] = {**scope, "headers": list(scope["headers"])}
        exchange = self._open_exchange(scope, send)
        try:
            direct = INNER in scope or (self._app is None and not self._needs_app)
            guard = OriginGuard(self._stack if direct else self.app, self.config.cors_origins or ())
            await guard(scope, receive, exchange.send)
        finally:
            self._close_exchange({**scope, "method": "WEBSOCKET"}, exchange)

    def _open_exchange(self, scope: Scope, send: Send) -> Exchange:
        state = scope.get("state") or {}
        # An id in the state is that of a middleware in front, never the client's.
        given = state.get("request_id") or (client_request_id(scope) if self.config.trust_request_id else None)
        exchange = Exchange(send, given or self._new_id("req_"))
        scope[EXCHANGE] = exchange
        scope["state"] = {**state, "request_id": exchange.request_id}
        request_id.set(exchange.request_id)
        return exchange

    def _close_exchange(self, scope: Scope, exchange: Exchange) -> None:
        exchange.close()
        if self._access_log is not None and not exchange.quiet:
            principal = scope["state"].get("principal")
            if principal is not None:
                exchange.note_caller(principal)
            self._access_log.write(
                scope, exchange.status or 499, exchange.elapsed(), exchange.request_id, exchange.facts
            )

    async def _serve_with_fastapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        # Middleware that was added to the FastAPI app must see every request, so then everything goes through it.
        path = _path(scope)
        if len(app.user_middleware) == 1 and (
            self._find(path)[1] is not None or self._keeper.routes.find(path) is not None
        ):
            await self._stack(scope, receive, send)
        else:
            await app(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The end of the middleware stack: answer the request, or pass it to FastAPI when it came from there."""
        inner: ASGIApp | None = scope.pop(INNER, None)
        if scope["type"] == "lifespan":
            await (inner or self._serve_lifespan)(scope, receive, send)
            return
        if scope["type"] != "http":
            socket = self._keeper.socket if _path(scope) in self._socket_paths else None
            # One that was added to the FastAPI app may speak WebSocket too.
            await (socket or inner or _no_websocket)(scope, receive, send)
            return
        path, wanted = _path(scope), scope["method"]
        method, handler = self._find(path)
        if handler is not None and (wanted == method or (wanted == "HEAD" and method == "GET")):
            await handler(scope, receive, send)
        elif (match := self._keeper.routes.find(path)) is not None:
            app = match.app(wanted)
            if app is not None:
                await app(scope, receive, send)
            else:
                methods = {*match.methods, method} - {""}
                await answer_error(send, method_not_allowed(", ".join(sorted(methods))))
        elif handler is not None:
            await answer_error(send, method_not_allowed(method))
        else:
            caller.set(principal_of(scope))
            with self.drain.guest():
                await (inner or _unknown_url)(scope, receive, send)

    def _find(self, path: str) -> tuple[str, ASGIApp | None]:
        route = self._routes.get(path)
        if route is not None:
            return route
        for prefix in self._model_paths:
            if path.startswith(prefix):
                return "GET", self._model
        if self._serves_azure and path.startswith(_AZURE[0]) and path.endswith(_AZURE[1]):
            return "POST", self.agent_invoker.chat
        return "", None

    # --- routes

    async def _models(self, scope: Scope, _: Receive, send: Send) -> None:
        await answer(send, 200, dumps(self._agents.list(principal_of(scope))).encode())

    async def _model(self, scope: Scope, _: Receive, send: Send) -> None:
        path = _path(scope)
        prefix = next(prefix for prefix in self._model_paths if path.startswith(prefix))
        try:
            model = self._agents.describe(path[len(prefix) :].removesuffix("/"), principal_of(scope))
        except APIError as error:
            await answer_error(send, error)
        else:
            await answer(send, 200, dumps(model).encode())

    async def _verify(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.drain.serving:
            await verify(scope, receive, send)
        else:  # a gateway with several servers asks the next one, and sends the request there
            await answer_error(send, shutting_down())

    async def _health(self, scope: Scope, _: Receive, send: Send) -> None:
        scope[EXCHANGE].quiet = True
        await answer(send, 200, b'{"status":"ok"}')

    async def _ready(self, scope: Scope, _: Receive, send: Send) -> None:
        scope[EXCHANGE].quiet = True
        reason = self.not_ready()
        if reason is None:
            await answer(send, 200, b'{"status":"ready"}')
        else:
            await answer_error(send, ServiceUnavailableError(reason, code="not_ready").retry_after(1.0))

    @cached_property
    def http_limits(self) -> "HttpLimits":
        """What one request may cost; read by `agentrun_server.server.http.protocol`."""
        from agentrun_server.server.http.protocol import HttpLimits

        return HttpLimits.from_config(self.config)

    @cached_property
    def websockets(self) -> "WebSockets":
        """Where WebSockets are, and what one may cost; read by `agentrun_server.server.http.protocol`."""
        from agentrun_server.server.websocket.head import WebSocketLimits, WebSockets

        return WebSockets(self._socket_paths, WebSocketLimits.from_config(self.config))

    def not_ready(self) -> str | None:
        """Return why a load balancer should send nothing here, None when it may."""
        if not self.drain.serving:
            return "The server is shutting down."
        if self._threads.zombies * 2 >= self.config.max_sync_threads:
            return "Too many agents did not end when they were cancelled."
        if self._runs is not None and self._runs.failing:
            return "The store cannot be reached."
        return None

    # --- lifespan

    @asynccontextmanager
    async def lifespan(self, _: Any = None) -> AsyncIterator[None]:
        """Start and stop what stands beside the requests.

        For mounting: ``FastAPI(lifespan=server.lifespan)``. Without it the server works too, but does not drain.
        """
        warm_up()
        self.drain.reopen()
        async with AsyncExitStack() as stack:
            if self._user_lifespan is not None:
                await stack.enter_async_context(self._user_lifespan(self))
            self.drain.catch_signals()
            stack.callback(self.drain.release_signals)
            if self._access_log is not None:
                stack.callback(self._access_log.flush)
            if self._runs is not None:
                # What another life of this server has left is looked after at once, not with the first request.
                self._runs.open_soon()
                stack.push_async_callback(self._runs.aclose)
            yield
            await self._end_runs()

    async def _end_runs(self) -> None:
        """Wait until nothing is open: the last guard, when the server shut down without a signal."""
        ended = asyncio.Event()
        self.drain.begin(ended.set)
        await ended.wait()

    async def _serve_lifespan(self, _: Scope, receive: Receive, send: Send) -> None:
        await receive()
        phase = "startup"
        try:
            async with self.lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except Exception as exc:
            logger.exception("lifespan failed")
            await send({"type": f"lifespan.{phase}.failed", "message": type(exc).__name__})
            raise
        await send({"type": "lifespan.shutdown.complete"})

    # --- other ways to serve

    @property
    def app(self) -> "FastAPI":
        """The server as a FastAPI app, documented; routes and middleware can be added to it."""
        if self._app is None:
            from agentrun_server.server.fastapi_app import build_app

            self._app = build_app(
                self._protocols,
                self.agent_invoker,
                probes=self.probes,
                lifespan=self.lifespan,
                stack=self._through_stack,
                unknown_url=unknown_url,
                docs=self.config.docs,
            )
        return self._app

    def as_fastapi_app(self) -> "FastAPI":
        """Return the FastAPI app, for mounting: ``app.mount("/agent", server.as_fastapi_app())``."""
        return self.app

    def _through_stack(self, inner: ASGIApp) -> ASGIApp:
        """Return an app that sends requests through this server's middleware to `inner`."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[INNER] = inner
            if EXCHANGE in scope or scope["type"] == "lifespan":
                await self._stack(scope, receive, send)
            else:  # the FastAPI app is served by itself, without this object in front
                await self(scope, receive, send)

        return app

    # The AgentRun SDK's default, and what a container needs.
    def start(self, host: str = "0.0.0.0", port: int = 9000, log_level: str = "info", **options: Any) -> None:  # noqa: S104
        """Serve until SIGTERM or SIGINT; `options` are those of `agentrun_server.server.serve.run`, then uvicorn's."""
        from agentrun_server.server.serve import run

        run(self, host=host, port=port, log_level=log_level, **options)


def _behind(middleware: Sequence[MiddlewareEntry], app: ASGIApp) -> ASGIApp:
    """Return `app` behind the middleware, of which the first is the outermost."""
    for entry in reversed(middleware):
        try:
            app = entry.cls(app, *entry.args, **entry.kwargs)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
    return app


def unknown_url() -> NotFoundError:
    """Return the answer to a path that does not exist."""
    return NotFoundError("Unknown request URL. Please check the URL for typos; the API is served under /v1.")


async def _unknown_url(_scope: Scope, _: Receive, send: Send) -> None:
    await answer_error(send, unknown_url())


async def _no_websocket(scope: Scope, _: Receive, send: Send) -> None:
    await refuse_websocket(scope, send, unknown_url())


def method_not_allowed(allowed: str) -> MethodNotAllowedError:
    """Return the answer to a method that the path does not have."""
    return MethodNotAllowedError(f"Not allowed here. Use {allowed}.", headers=((b"allow", allowed.encode()),))


def _path(scope: Scope) -> str:
    """Return the path below the point where the server is mounted."""
    path: str = scope["path"]
    root: str | None = scope.get("root_path")
    return path[len(root) :] if root and path.startswith(root) else path


def _cors(config: ServerConfig) -> list[MiddlewareEntry]:
    """Return the CORS middleware, outermost: it answers preflights before any authentication."""
    origins = list(config.cors_origins or ())
    if not origins:
        return []
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware

    if "*" in origins and len(origins) > 1:
        raise ConfigurationError('cors_origins: "*" allows every origin already; name origins or use "*" alone')
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_credentials="*" not in origins,
            allow_methods=["GET", "POST", "DELETE", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "retry-after",
                "retry-after-ms",
                "x-should-retry",
                "openai-processing-ms",
                "www-authenticate",
                "x-conversation-id",
                "idempotent-replayed",
                *(f"x-ratelimit-{what}-{of}" for what in _RATE_LIMIT for of in ("requests", "tokens")),
            ],
        )
    ]
