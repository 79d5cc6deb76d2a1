"""The OpenAI routes as a FastAPI router, documented; the answers are the server's own.

Imported only when wanted, like FastAPI itself.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from agentrun_server.core.ids import IdSource
from agentrun_server.errors import APIError
from agentrun_server.protocols.openai_chat import schema
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, Exchange, principal_of

__all__ = ["delegate", "error_response", "openai_router"]


def openai_router(chat: ASGIApp, agents: Agents) -> APIRouter:
    """Return the OpenAI routes as a router that documents them."""
    router = APIRouter(tags=["openai"])
    answer_chat = delegate(chat)
    for path, shown in (("/chat/completions", True), ("/chat/completions/", False)):
        router.add_api_route(
            path,
            answer_chat,
            methods=["POST"],
            include_in_schema=shown,
            name="create_chat_completion",
            summary="Create a chat completion",
            openapi_extra=schema.CHAT_OPERATION,
        )

    async def list_models(request: Request) -> JSONResponse:
        """List the agents."""
        return JSONResponse(agents.list(principal_of(request.scope)))

    async def get_model(request: Request, model: str) -> Response:
        """Describe one agent."""
        try:
            return JSONResponse(agents.describe(model, principal_of(request.scope)))
        except APIError as error:  # an app of the user's own does not know how to answer it
            return error_response(error)

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


def delegate(app: ASGIApp) -> Any:
    """Return a FastAPI endpoint that hands its request to `app`."""

    async def endpoint() -> Response:
        return _Delegate(app)

    return endpoint


def error_response(error: APIError) -> Response:
    """Return `error` as a response."""
    response = JSONResponse(error.body(), error.status_code)
    response.raw_headers.extend(error.headers)
    return response
