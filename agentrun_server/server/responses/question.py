"""Reading a request for a response, with what was said before it.

What a request refers to (`previous_response_id`, `conversation`, items by id) is looked up among its owner's objects.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from agentrun_server.config import ServerConfig
from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError, NotFoundError
from agentrun_server.invoker.agent import Agent
from agentrun_server.protocols.fields import invalid
from agentrun_server.protocols.openai_chat.decode import parse_json
from agentrun_server.protocols.openai_responses.decode import ResponsesCall, decode
from agentrun_server.protocols.openai_responses.items import Item, references, resolve, size_of
from agentrun_server.protocols.openai_responses.messages import to_messages
from agentrun_server.runs.history import (
    conversation_items,
    find_previous,
    links,
    previous_not_found,
    renamed,
    resolve_references,
    response_context,
    with_results,
    without_result,
)
from agentrun_server.runs.registry import Runs
from agentrun_server.runs.response_entry import KIND
from agentrun_server.server.agents import Agents
from agentrun_server.server.aside import aside, expanded
from agentrun_server.server.resources import owner_of
from agentrun_server.storage.contracts import ConflictError, Record, Store, Update

__all__ = ["Question", "QuestionReader", "conversation_not_found", "find_agent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that was read. Its messages are those of the whole conversation."""

    call: ResponsesCall
    agent: Agent
    owner: str
    items: Sequence[Item] = ()
    """The input, without references and compactions."""
    made: frozenset[str] = frozenset()
    """Ids of items that were made here."""
    history: Sequence[str] = ()
    """Ids of the responses before, oldest first."""
    body: Mapping[str, Any] | None = None
    """What was sent, for who runs it again: only of a run in the background."""
    sent: int = 0
    """Bytes of what was sent."""
    size: int = 0
    """Bytes of what was sent and of all items, those before it too: only of a run in the background."""


def find_agent(agents: Agents, model: str, principal: Any) -> Agent:
    """Return the agent of `model` that `principal` may use.

    Raises:
        InvalidRequestError: there is none. In Chat Completions that is a 404, as OpenAI has it.
        PermissionDeniedError: `principal` may not use it, or there is none and `principal` may not know that.
    """
    try:
        return agents.find(model, principal)
    except NotFoundError as error:
        raise InvalidRequestError(error.message, code=error.code, param="model") from None


def conversation_not_found(conversation: str) -> NotFoundError:
    """Return the answer to who names a conversation that is not there."""
    return NotFoundError(
        f"Conversation with id '{conversation}' not found.", code="conversation_not_found", param="conversation"
    )


class QuestionReader:
    """Reads requests. Without `runs` nothing is stored, and nothing stored can be referred to."""

    def __init__(self, config: ServerConfig, agents: Agents, new_id: Callable[[str], str], runs: Runs | None) -> None:
        self._config = config
        self._agents = agents
        self._new_id = new_id
        self._runs = runs

    async def read(self, body: bytes, headers: Headers, principal: Any, request_id: str) -> Question:
        """Read a request.

        Raises:
            APIError: it is malformed, refers to something that is not there, or may not be made.
            StorageError: what it refers to cannot be read now.
        """
        made: set[str] = set()
        call, kept = await aside(partial(self._decode, body, headers, made), len(body))
        call.request.principal, call.request.request_id = principal, request_id
        agent = find_agent(self._agents, call.request.model, principal)
        if self._runs is None and call.store:
            if call.background:
                raise InvalidRequestError(
                    "This server stores nothing, so nothing can run in the background.", param="background"
                )
            call = replace(call, store=False, echo={**call.echo, "store": False})
        question = Question(
            call=call, agent=agent, owner=owner_of(principal), made=frozenset(made), body=kept, sent=len(body)
        )
        return await self.with_context(question)

    def _decode(self, body: bytes, headers: Headers, made: set[str]) -> tuple[ResponsesCall, dict[str, Any] | None]:
        """Return the request, and what was sent when another worker may have to read it again."""
        raw = parse_json(body)
        # `decode` uses it up.
        kept = parse_json(body) if raw.get("background") is True else None
        call = decode(
            raw,
            headers,
            self._recording_ids(made),
            max_items=self._config.max_messages,
            strict_fields=self._config.strict_fields,
        )
        return call, kept

    async def with_context(self, question: Question) -> Question:
        """Return `question` with what was said before it, as it is now.

        Raises:
            APIError: it refers to something that is not there.
            StorageError: that cannot be read now.
        """
        call, owner, made = question.call, question.owner, set(question.made)
        referred = [*references(call.items), *without_result(call.items)]
        store: Store | None = None
        if self._runs is not None and (referred or call.previous_response_id or call.conversation):
            store = (await self._runs.storage()).store
        known = await resolve_references(store, referred, owner) if store is not None and referred else {}
        max_items = self._config.max_messages
        items = with_results(resolve(call.items, known), known)
        items = await expanded(items, self._recording_ids(made), max_items=max_items)
        if call.conversation is not None:  # each becomes an item of the conversation, which is asked for by its id
            items = renamed(items, (), self._recording_ids(made))
        context: list[Item] = []
        history: list[str] = []
        room = max_items - len(items)
        if call.previous_response_id is not None:
            context, history = await self._before_response(store, call.previous_response_id, owner, room)
        elif call.conversation is not None:
            context = await self._before_turn(store, call.conversation, owner, room)
        context = await expanded(context, self._new_id, max_items=max_items)
        call.request.messages = to_messages([*context, *items], call.instructions)
        if not call.request.messages and "prompt" not in call.echo:
            invalid("input", "it has no message, and nothing was said before it.")
        size = 0
        if call.background:
            every = [*context, *items]
            # How long the context is, nobody knows.
            measured = await aside(lambda: sum(map(size_of, every)), math.inf if context else question.sent)
            size = question.sent + measured
        return replace(question, items=items, made=frozenset(made), history=history, size=size)

    def _recording_ids(self, made: set[str]) -> Callable[[str], str]:
        def new_id(prefix: str) -> str:
            identity = self._new_id(prefix)
            made.add(identity)
            return identity

        return new_id

    async def _before_response(
        self, store: Store | None, previous: str, owner: str, room: int
    ) -> tuple[list[Item], list[str]]:
        if store is None:
            raise previous_not_found(previous)
        record = await find_previous(store, previous, owner)
        ttl, now = self._config.store_ttl, time.time()
        ageing: list[str] = []

        def used(one: Record) -> None:
            if ttl is not None and one.expires_at is not None and one.expires_at < now + ttl / 2:
                ageing.append(one.id)

        context = await response_context(store, record, owner, max_items=room, used=used)
        if ageing:
            # What a conversation goes on from lives for as long as the conversation does.
            renewed = [Update(kind=KIND, id=one, expires_at=now + (ttl or 0)) for one in ageing]
            with suppress(ConflictError):  # one was deleted just now
                await store.commit(renewed)
        return context, links(record)

    async def _before_turn(self, store: Store | None, conversation: str, owner: str, room: int) -> list[Item]:
        if store is None or await store.get("conversation", conversation, owner) is None:
            raise conversation_not_found(conversation)
        return await conversation_items(store, conversation, owner, max_items=room)
