"""Protocols: the OpenAI one, and the base classes for protocols of a user's own.

A protocol is a FastAPI router. `ProtocolHandler.as_fastapi_router` is given an `AgentInvoker` that runs the agent.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from agentrun_server.config import OpenAIProtocolConfig, ServerConfig
from agentrun_server.core.events import TypedEvent
from agentrun_server.core.request import AgentRequest
from agentrun_server.invoker.threads import Threads
from agentrun_server.server.admission import Admission
from agentrun_server.server.agents import Agents
from agentrun_server.server.asgi import ASGIApp

if TYPE_CHECKING:
    from fastapi import APIRouter, Request, Response

    from agentrun_server.server.routing import Routes

__all__ = ["AgentInvoker", "BaseProtocolHandler", "OpenAIProtocolHandler", "ProtocolHandler", "caller"]

DEFAULT_PREFIXES = ("/v1", "/openai/v1", "")
"""``/v1`` is what clients are told; ``/openai/v1`` is the AgentRun SDK's; no prefix is a base URL someone mistyped."""


caller: ContextVar[Any] = ContextVar("agentrun_server_caller", default=None)
"""Who makes the request that a route of a user's own answers: its `AgentRequest` need not say so to be held to it."""


class AgentInvoker:
    """Runs the server's agents for protocols of a user's own."""

    def __init__(
        self, agents: Agents, threads: Threads, chat: ASGIApp, routes: "Callable[[], Routes]", admission: Admission
    ) -> None:
        self.agents = agents
        self.chat = chat
        """Chat Completions as an ASGI app, for any path."""
        self._routes = routes
        self._threads = threads
        self._admission = admission

    @property
    def routes(self) -> "Routes":
        """What else there is of the OpenAI API, beside `chat` and models."""
        return self._routes()

    async def invoke_stream(self, request: AgentRequest) -> AsyncGenerator[str | TypedEvent, None]:
        """Run the agent that `request.model` names, or the first; yield what it says, piece by piece.

        Close the generator (``aclosing``) to stop the agent. `request.session` is None unless the
        protocol has set it: it alone knows what names a conversation.

        Raises:
            APIError: there is no such agent, no place for another run, or the server is shutting down.
        """
        if request.principal is None:
            request.principal = caller.get()
        agent = self.agents.find(request.model or self.agents.first_model, request.principal)
        if not self._admission.try_enter():
            await self._admission.enter()
        events = agent.run(request, self._threads)
        try:
            async for event in events:
                yield event
        finally:
            request._cancel()
            try:
                await events.aclose()
            finally:
                self._admission.leave()

    async def invoke(self, request: AgentRequest) -> list[str | TypedEvent]:
        """Run the agent to its end and return all it said."""
        return [event async for event in self.invoke_stream(request)]


class ProtocolHandler(ABC):
    """A protocol of a user's own. Set `name`, and build the router."""

    name: str = ""

    @abstractmethod
    def as_fastapi_router(self, agent_invoker: AgentInvoker) -> "APIRouter":
        """Return the protocol's routes; they use `agent_invoker` to run the agent."""

    def get_prefix(self) -> str:
        """Return the path under which the routes stand, such as ``/my/v1``."""
        return ""


class BaseProtocolHandler(ProtocolHandler):
    """A protocol that separates reading a request from the routes."""

    async def parse_request(
        self, request: "Request", request_data: dict[str, Any]
    ) -> tuple[AgentRequest, dict[str, Any]]:
        """Return the agent's request for a request body, and whatever the answer will need."""
        raise NotImplementedError(f"{type(self).__name__} does not implement parse_request")

    def stream_events(self, events: "AsyncIterable[Any]", *, heartbeat_interval: float = 15.0) -> "Response":
        """Answer with server-sent events: each item a `str` (its data), or a dict with ``data``, ``event``, ``id``.

        By sse-starlette: heartbeat comments, no buffering, and the iterator is closed when the client leaves or the
        server stops. The OpenAI protocol writes its own bytes instead, for the cost of each event.
        """
        from sse_starlette import EventSourceResponse, ServerSentEvent

        return EventSourceResponse(
            events,
            sep="\n",
            ping=max(1, round(heartbeat_interval)),
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            headers={"Cache-Control": "no-cache, no-transform"},
        )


class OpenAIProtocolHandler(BaseProtocolHandler):
    """Chat Completions, Responses, conversations, models. Part of every server unless `protocols` leaves it out."""

    name = "openai_chat_completions"

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = (config.openai if config else None) or OpenAIProtocolConfig()

    def get_prefix(self) -> str:
        """Return the prefix that was configured, or ``/v1``."""
        return self.config.prefix if self.config.prefix is not None else DEFAULT_PREFIXES[0]

    def get_model_name(self) -> str | None:
        """Return the id under which a single agent is listed."""
        return self.config.model_name

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Every prefix under which the routes stand."""
        return DEFAULT_PREFIXES if self.config.prefix is None else (self.config.prefix,)

    def as_fastapi_router(self, agent_invoker: AgentInvoker) -> "APIRouter":
        """Return the routes, documented. A server answers them itself, before FastAPI is asked."""
        from agentrun_server.server.openai_routes import openai_router

        return openai_router(agent_invoker.chat, agent_invoker.agents, agent_invoker.routes)
