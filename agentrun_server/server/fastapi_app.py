"""The server as a FastAPI app: the same routes, documented, and whatever a user adds.

Imported only when wanted: FastAPI takes longer to import than the rest of the server together.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from agentrun_server.errors import AgentFailedError, APIError, InvalidRequestError
from agentrun_server.server.asgi import ASGIApp
from agentrun_server.server.openai_routes import delegate, error_response
from agentrun_server.server.protocols import AgentInvoker, OpenAIProtocolHandler, ProtocolHandler

__all__ = ["build_app"]


def build_app(
    protocols: Sequence[ProtocolHandler],
    invoker: AgentInvoker,
    *,
    probes: Mapping[str, ASGIApp],
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]],
    stack: Callable[[ASGIApp], ASGIApp],
    unknown_url: Callable[[], APIError],
    docs: bool,
) -> FastAPI:
    """Return a server as a FastAPI app.

    Args:
        protocols: of the server.
        invoker: what the protocols run agents with.
        probes: apps by path.
        lifespan: of the server.
        stack: puts the server's middleware in front of an app, so that nothing is open that should not be.
        unknown_url: returns the answer to a path that does not exist.
        docs: serve ``/docs`` and ``/openapi.json``.
    """
    app = FastAPI(
        title="AgentRun Server",
        docs_url="/docs" if docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs else None,
        lifespan=lifespan,
        middleware=[Middleware(stack)],
    )
    for protocol in protocols:
        if not isinstance(protocol, OpenAIProtocolHandler) or protocol.config.enable:
            app.include_router(protocol.as_fastapi_router(invoker), prefix=protocol.get_prefix())
    for path, handler in probes.items():
        app.add_api_route(path, delegate(handler), methods=["GET"], tags=["health"], name=path[1:])
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(HTTPException, partial(_on_http_exception, unknown_url))
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_exception)
    return app


async def _on_api_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, APIError), "registered for APIError"
    return error_response(exc)


async def _on_http_exception(unknown_url: Callable[[], APIError], _: Request, exc: Exception) -> Response:
    """Answer Starlette's own errors (404, 405 …) and those a user's route raises, in OpenAI's shape."""
    assert isinstance(exc, HTTPException), "registered for HTTPException"
    if (exc.status_code, exc.detail) == (HTTPStatus.NOT_FOUND, HTTPStatus.NOT_FOUND.phrase):
        return error_response(unknown_url())
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(exc.status_code)
    kind = "server_error" if exc.status_code >= 500 else "invalid_request_error"
    error = APIError(str(exc.detail), status_code=exc.status_code, type=kind, code=code)
    response = error_response(error)
    response.headers.update(exc.headers or {})
    return response


async def _on_exception(_: Request, __: Exception) -> Response:
    """Answer for a user's route that raised. The exception goes on to the server, which logs it."""
    return error_response(AgentFailedError("The server had an error.", code="internal_error"))


async def _on_validation_error(_: Request, exc: Exception) -> Response:
    """Answer bad input to a user's route; the input itself is not repeated: it may not even be encodable."""
    assert isinstance(exc, RequestValidationError), "registered for RequestValidationError"
    first: dict[str, Any] = exc.errors()[0] if exc.errors() else {}
    param = ".".join(str(part) for part in first.get("loc", ())[1:]) or None
    message = f"Invalid request: {first.get('msg', 'it does not have the expected form')}."
    return error_response(InvalidRequestError(message, param=param))
