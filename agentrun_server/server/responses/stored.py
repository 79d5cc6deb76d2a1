"""``…/responses/{id}``: responses that were stored; and what can be said of a request without running an agent."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from agentrun_server.core.request import AgentRequest
from agentrun_server.core.usage import Usage, estimate_tokens
from agentrun_server.errors import NotFoundError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.compaction import compact
from agentrun_server.protocols.openai_responses.decode import ResponsesCall, decode
from agentrun_server.protocols.openai_responses.items import Item, references, resolve
from agentrun_server.protocols.openai_responses.messages import to_messages
from agentrun_server.protocols.openai_responses.queries import read_page
from agentrun_server.runs.entry import CANCELLING, OPEN
from agentrun_server.runs.history import (
    conversation_items,
    find_previous,
    is_kept,
    resolve_references,
    response_context,
)
from agentrun_server.runs.run import RunStatus
from agentrun_server.runs.turns import OpenStorage
from agentrun_server.server.aside import expanded
from agentrun_server.server.handler import prompt_tokens
from agentrun_server.server.listing import part_of
from agentrun_server.server.resources import ResourceCall, resource
from agentrun_server.server.responses.conversations import find_conversation
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Delete, Record, Store

__all__ = ["StoredResponses", "find_response", "response_of"]


class StoredResponses:
    """Answers requests for stored responses, counts and compactions.

    Args:
        services: those of the server.
        storage: opens the storage.
        stop: ends the run of a response that is about to be deleted.
    """

    def __init__(self, services: Services, storage: OpenStorage, stop: Callable[[Record], Awaitable[None]]) -> None:
        self._services = services
        self._storage = storage
        self._stop = stop
        self._new_id = services.new_id

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        one = "/responses/{response_id}"
        for method, path, handle in (
            ("DELETE", one, self.delete),
            ("GET", f"{one}/input_items", self.list_input),
            ("POST", "/responses/input_tokens", self.count_tokens),
            ("POST", "/responses/compact", self.compact),
        ):
            routes.add(method, path, resource(handle, self._services))

    # --- stored responses

    async def delete(self, call: ResourceCall) -> dict[str, Any]:
        """Delete a response for good; its run, if it has not ended, is stopped before."""
        record = await self._find(call)
        if record.status in OPEN:
            await self._stop(record)
        await (await self._store()).commit([Delete("response", record.id)])
        return objects.response_deleted(record.id)

    async def list_input(self, call: ResourceCall) -> dict[str, Any]:
        """Return some of the items of the input, newest first unless asked for otherwise."""
        wanted = read_page(call.query)
        return part_of((await self._find(call)).body["input"], wanted)

    # --- requests that run nothing

    async def count_tokens(self, call: ResourceCall) -> dict[str, Any]:
        """Return the estimated size of a request, with what it goes on from and its tools."""
        asked = await self._decode(call, self._services.agents.first_model)
        return objects.input_tokens(_tokens(asked, await self._items(asked, call.owner)))

    async def compact(self, call: ResourceCall) -> dict[str, Any]:
        """Return one item that stands for the input, with what it goes on from. Nothing is stored."""
        asked = await self._decode(call, None)
        items = await self._items(asked, call.owner)
        usage = Usage(input_tokens=_tokens(asked, items))
        item_id = self._new_id("cmp_")
        # Ten megabytes take a tenth of a second and more.
        item = await asyncio.to_thread(compact, items, lambda _: item_id)
        call.count(usage.input_tokens)  # it is used, says the answer
        return objects.compaction(self._new_id("resp_"), int(time.time()), [item], usage)

    async def _decode(self, call: ResourceCall, default_model: str | None) -> ResponsesCall:
        config = self._services.config
        # The model may be any: none is asked, and clients that compact by themselves name one of OpenAI's.
        return await call.decoded(
            lambda body: decode(
                body,
                call.headers,
                self._new_id,
                max_items=config.max_messages,
                strict_fields=config.strict_fields,
                default_model=default_model,
            )
        )

    async def _items(self, asked: ResponsesCall, owner: str) -> list[Item]:
        """Return the whole input: what was before it, and references and compactions in full."""
        limit = self._services.config.max_messages
        items: list[Item] = []
        room = limit - len(asked.items)
        named = references(asked.items)
        if asked.previous_response_id is not None:
            store = await self._store()
            previous = await find_previous(store, asked.previous_response_id, owner)
            items = await response_context(store, previous, owner, max_items=room)
        elif asked.conversation is not None:
            store = await self._store()
            conversation = await find_conversation(store, asked.conversation, owner, param="conversation")
            items = await conversation_items(store, conversation.id, owner, max_items=room)
        known = await resolve_references(await self._store(), named, owner) if named else {}
        return await expanded([*items, *resolve(asked.items, known)], self._new_id, max_items=limit)

    # --- the store

    async def _store(self) -> Store:
        return (await self._storage()).store

    async def _find(self, call: ResourceCall) -> Record:
        return await find_response(await self._store(), call.params["response_id"], call.owner)


async def find_response(store: Store, response_id: str, owner: str) -> Record:
    """Return a response of `owner`, for a request whose path names it.

    Raises:
        NotFoundError: there is none of that id.
    """
    record = await store.get("response", response_id, owner)
    if record is None or not is_kept(record):
        raise NotFoundError(f"Response with id '{response_id}' not found.", code="response_not_found")
    return record


def response_of(record: Record) -> dict[str, Any]:
    """Return a stored response as callers see it: cancelled from the moment it was asked for, empty until its end."""
    status = RunStatus.CANCELLED.value if record.status == CANCELLING else record.status
    response = {**record.body["response"], "status": status}
    return response | {"output": []} if record.status in OPEN else response


def _tokens(asked: ResponsesCall, items: list[Item]) -> int:
    request: AgentRequest = asked.request
    request.messages = to_messages(items, asked.instructions)
    return prompt_tokens(request) + (estimate_tokens(dumps(request.tools)) if request.tools else 0)
