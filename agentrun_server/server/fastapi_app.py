"""The server as a FastAPI app: the same routes, documented, and whatever a user adds.

Imported only when wanted: FastAPI takes longer to import than the rest of the server together.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from agentrun_server.core.ids import IdSource
from agentrun_server.errors import AgentFailedError, APIError, InvalidRequestError
from agentrun_server.protocols.openai_chat import schema
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, Exchange
from agentrun_server.server.protocols import AgentInvoker, OpenAIProtocolHandler, ProtocolHandler

if TYPE_CHECKING:
    from agentrun_server.server.app import AgentRunServer

__all__ = ["build_app", "openai_router"]


def build_app(server: "AgentRunServer", protocols: Sequence[ProtocolHandler], invoker: AgentInvoker) -> FastAPI:
    """Return the FastAPI app of `server`. Its middleware is the server's, so nothing is open that should not be."""
    docs = server.config.docs
    app = FastAPI(
        title="AgentRun Server",
        docs_url="/docs" if docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs else None,
        lifespan=server.lifespan,
        middleware=[Middleware(server.through_stack)],
    )
    for protocol in protocols:
        router = protocol.as_fastapi_router(invoker)
        if isinstance(protocol, OpenAIProtocolHandler):
            if protocol.config.enable:
                for i, prefix in enumerate(protocol.prefixes):
                    app.include_router(router, prefix=prefix, include_in_schema=i == 0)
        else:
            app.include_router(router, prefix=protocol.get_prefix())
    for path, handler in server.probes.items():
        app.add_api_route(path, _delegate(handler), methods=["GET"], tags=["health"], name=path[1:])
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_exception)
    return app


def openai_router(invoker: AgentInvoker) -> APIRouter:
    """Return the OpenAI routes as a router that documents them."""
    router = APIRouter(tags=["openai"])
    chat = _delegate(invoker.chat)
    for path, shown in (("/chat/completions", True), ("/chat/completions/", False)):
        router.add_api_route(
            path,
            chat,
            methods=["POST"],
            include_in_schema=shown,
            name="create_chat_completion",
            summary="Create a chat completion",
            openapi_extra=schema.CHAT_OPERATION,
        )

    async def list_models() -> JSONResponse:
        """List the agents."""
        return JSONResponse(invoker.agents.list())

    async def get_model(model: str) -> Response:
        """Describe one agent."""
        try:
            return JSONResponse(invoker.agents.describe(model))
        except APIError as error:  # an app of the user's own does not know how to answer it
            return _error_response(error)

    router.add_api_route("/models", list_models, methods=["GET"], summary="List models")
    router.add_api_route("/models/", list_models, methods=["GET"], include_in_schema=False)
    router.add_api_route("/models/{model:path}", get_model, methods=["GET"], summary="Retrieve a model")
    return router


class _Delegate(Response):
    """A response that is an ASGI app: it takes the request over from FastAPI."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if EXCHANGE not in scope:  # the router was included in an app of the user's own
            exchange = Exchange(send, _new_id("req_"))
            scope[EXCHANGE], send = exchange, exchange.send
        await self._app(scope, receive, send)


_new_id = IdSource()


def _delegate(app: ASGIApp) -> Any:
    async def endpoint() -> Response:
        return _Delegate(app)

    return endpoint


def _error_response(error: APIError) -> Response:
    response = JSONResponse(error.body(), error.status_code)
    response.raw_headers.extend(error.headers)
    return response


async def _on_api_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, APIError), "registered for APIError"
    return _error_response(exc)


async def _on_http_exception(_: Request, exc: Exception) -> Response:
    """Answer Starlette's own errors (404, 405 …) and those a user's route raises, in OpenAI's shape."""
    assert isinstance(exc, HTTPException), "registered for HTTPException"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(exc.status_code)
    kind = "server_error" if exc.status_code >= 500 else "invalid_request_error"
    error = APIError(str(exc.detail), status_code=exc.status_code, type=kind, code=code)
    response = _error_response(error)
    response.headers.update(exc.headers or {})
    return response


async def _on_exception(_: Request, __: Exception) -> Response:
    """Answer for a user's route that raised. The exception goes on to the server, which logs it."""
    return _error_response(AgentFailedError("The server had an error.", code="internal_error"))


async def _on_validation_error(_: Request, exc: Exception) -> Response:
    """Answer bad input to a user's route; the input itself is not repeated: it may not even be encodable."""
    assert isinstance(exc, RequestValidationError), "registered for RequestValidationError"
    first: dict[str, Any] = exc.errors()[0] if exc.errors() else {}
    param = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    message = f"Invalid request: {first.get('msg', 'it does not have the expected form')}."
    return _error_response(InvalidRequestError(message, param=param))
