"""The OpenAI routes as a FastAPI router, documented; the answers are the server's own.

Imported only when wanted, like FastAPI itself.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from agentrun_server.core.ids import IdSource
from agentrun_server.errors import APIError
from agentrun_server.protocols.openai_chat.schema import CHAT_OPERATIONS
from agentrun_server.protocols.openai_responses.schema import CONVERSATION_OPERATIONS, RESPONSE_OPERATIONS
from agentrun_server.protocols.schema import Operation
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.exchange import EXCHANGE, Exchange, principal_of
from agentrun_server.server.routing import MakeApp

__all__ = ["delegate", "error_response", "openai_router"]

_OPERATIONS: Final[Mapping[str, Operation]] = {**CHAT_OPERATIONS, **RESPONSE_OPERATIONS, **CONVERSATION_OPERATIONS}
_VARYING: Final = re.compile(r"{(\w+)}")


def openai_router(chat: ASGIApp, agents: Agents, routes: Iterable[tuple[str, Mapping[str, MakeApp]]]) -> APIRouter:
    """Return the OpenAI routes as a router that documents them.

    Args:
        chat: makes chat completions.
        agents: the models.
        routes: templates of all other paths, with what answers to which method.
    """
    router = APIRouter()
    _add(router, "/chat/completions", "POST", lambda _: chat)
    _add_models(router, agents)
    for template, methods in routes:
        for method, make in methods.items():
            _add(router, template, method, make)
    return router


def _add(router: APIRouter, template: str, method: str, make: MakeApp) -> None:
    operation = _OPERATIONS[f"{method} {template}"]
    inside = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _VARYING.findall(template)
    ]
    described = {**operation, "parameters": [*inside, *operation.get("parameters", ())]}
    for path, shown in ((template, True), (f"{template}/", False)):
        router.add_api_route(
            path,
            _endpoint(make),
            methods=[method],
            tags=[template.split("/")[1]],
            include_in_schema=shown,
            name=operation["summary"],
            openapi_extra=described,
        )


def _add_models(router: APIRouter, agents: Agents) -> None:
    async def list_models(request: Request) -> JSONResponse:
        """List the agents."""
        return JSONResponse(agents.list(principal_of(request.scope)))

    async def get_model(request: Request, model: str) -> Response:
        """Describe one agent."""
        try:
            return JSONResponse(agents.describe(model, principal_of(request.scope)))
        except APIError as error:  # an app of the user's own does not know how to answer it
            return error_response(error)

    models = APIRouter(tags=["models"])
    models.add_api_route("/models", list_models, methods=["GET"], summary="List models")
    models.add_api_route("/models/", list_models, methods=["GET"], include_in_schema=False)
    models.add_api_route("/models/{model:path}", get_model, methods=["GET"], summary="Retrieve a model")
    router.include_router(models)


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


def _endpoint(make: MakeApp) -> Any:
    """Return a FastAPI endpoint that hands its request to what `make` makes for its path."""

    async def endpoint(request: Request) -> Response:
        return _Delegate(make(request.path_params))

    return endpoint


def error_response(error: APIError) -> Response:
    """Return `error` as a response."""
    response = JSONResponse(error.body(), error.status_code)
    response.raw_headers.extend(error.headers)
    return response
