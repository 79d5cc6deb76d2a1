"""What outlives a request: stored chats, responses, conversations, sessions, and the runs behind them.

All of it is made together, with the first request that asks for any of it, or when the server starts.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from agentrun_server.errors import NotFoundError
from agentrun_server.runs.registry import Runs
from agentrun_server.runs.sessions import Sessions
from agentrun_server.runs.turns import Turns
from agentrun_server.server.asgi import ASGIApp
from agentrun_server.server.chat.completions import Completions
from agentrun_server.server.chat.kept import KeptChat
from agentrun_server.server.drain import Drain
from agentrun_server.server.resources import ResourceCall, resource
from agentrun_server.server.responses.conversations import Conversations
from agentrun_server.server.responses.handler import ResponsesHandler
from agentrun_server.server.responses.reading import ResponseReading
from agentrun_server.server.responses.socket import ResponsesSocket
from agentrun_server.server.responses.stored import StoredResponses
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Record
from agentrun_server.storage.opening import Storage, open_storage, storage_is_there

__all__ = ["Keeper"]


class Keeper:
    """Keeps what outlives a request, and answers requests for it.

    Args:
        services: of the server.
        prefixes: of the OpenAI routes.
        memory: under which name sessions are kept; None: they are off.
        app: the server itself.
        drain: of the server.
        shared: the storage, when it is others' too; None: one of our own, as the settings say.
    """

    def __init__(
        self,
        services: Services,
        prefixes: tuple[str, ...],
        memory: str | None,
        app: ASGIApp,
        drain: Drain,
        shared: Storage | None = None,
    ) -> None:
        config = services.config
        self.runs = runs = _make_runs(services, shared)
        if runs is not None and memory is not None:
            services = replace(services, sessions=_make_sessions(runs, memory, config.session_ttl))
        self._services = services
        self._chat = None if runs is None else KeptChat(services, runs)
        self.routes = Routes(prefixes)
        """Responses, conversations and stored chats."""
        self._add_routes(services, runs)
        self.socket = ResponsesSocket(app, config, drain, services.new_id)
        """Responses over a WebSocket."""

    @property
    def chat(self) -> KeptChat:
        """Who answers chats that are kept. There is a store."""
        assert self._chat is not None, "there is a store"
        return self._chat

    def _add_routes(self, services: Services, runs: Runs | None) -> None:
        routes = self.routes
        storage = _nothing_stored if runs is None else runs.storage
        responses = ResponsesHandler(services, runs)
        routes.add("POST", "/responses", lambda _: responses)
        completions = Completions(services, storage)
        completions.add_to(routes)
        routes.add("GET", "/chat/completions", resource(completions.list_completions, services))
        Conversations(services, storage).add_to(routes)
        StoredResponses(services, storage, _not_stopped if runs is None else runs.delete).add_to(routes)
        if runs is not None:
            ResponseReading(services, runs).add_to(routes)
        else:
            for method, path in (("GET", "/responses/{response_id}"), ("POST", "/responses/{response_id}/cancel")):
                routes.add(method, path, resource(_nothing_to_show, services))


def _make_runs(services: Services, shared: Storage | None) -> Runs | None:
    config = services.config
    if shared is not None:
        return Runs(config, services.new_id, services.sweeper, partial(_lent, shared))
    url = config.store_url
    if url is None:
        return None
    opener = partial(open_storage, url, bus_redis_url=config.bus_redis_url, durable=config.store_durable)
    return Runs(config, services.new_id, services.sweeper, opener, is_there=partial(storage_is_there, url))


async def _lent(shared: Storage) -> Storage:
    return shared.lent()


def _make_sessions(runs: Runs, collection: str, ttl: float | None) -> Sessions:
    async def turns() -> Turns:
        await runs.storage()
        return runs.turns

    return Sessions(runs.storage, turns, collection, ttl=ttl)


async def _nothing_stored() -> Storage:
    raise NotFoundError("This server stores nothing.", code="storage_disabled")


async def _nothing_to_show(_: ResourceCall) -> dict[str, Any]:
    raise NotFoundError("This server stores nothing.", code="storage_disabled")


async def _not_stopped(_: Record) -> None:
    raise AssertionError("nothing is stored")
