"""``…/chat/completions`` that were stored: lists of them, their metadata, their messages, their end."""

from collections.abc import Mapping, Sequence
from typing import Any

from agentrun_server.errors import NotFoundError
from agentrun_server.protocols.fields import invalid, metadata
from agentrun_server.protocols.openai_responses.decode import decode_metadata
from agentrun_server.protocols.openai_responses.objects import item_list
from agentrun_server.protocols.openai_responses.queries import read_page
from agentrun_server.runs.turns import OpenStorage
from agentrun_server.server.listing import part_of, read_records
from agentrun_server.server.resources import ResourceCall, resource
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import ConflictError, Delete, Record, Store, Update

__all__ = ["Completions", "completion_record"]


def completion_record(
    completion: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    owner: str,
    metadata: Mapping[str, str] | None,
    ttl: float | None,
    now: float,
    run: str = "",
) -> Record:
    """Return the record that keeps an answer.

    Args:
        completion: the answer, as it is on the wire.
        messages: those of the request.
        owner: whose it is.
        metadata: of the request.
        ttl: seconds that it is kept; None: until it is deleted.
        now: seconds since the epoch.
        run: id of the run that holds the answer too, for who comes again with its key.
    """
    return Record(
        kind="completion",
        id=completion["id"],
        owner=owner,
        body={"completion": completion, "messages": list(messages), "metadata": dict(metadata or {}), "run": run},
        expires_at=None if ttl is None else now + ttl,
    )


class Completions:
    """Answers requests for stored completions."""

    def __init__(self, services: Services, storage: OpenStorage) -> None:
        self._services = services
        self._storage = storage

    def add_to(self, routes: Routes) -> None:
        """Add the routes, but for that of `list_completions`, whose path is the one that makes completions."""
        one = "/chat/completions/{completion_id}"
        for method, path, handle in (
            ("GET", one, self.retrieve),
            ("POST", one, self.update),
            ("DELETE", one, self.delete),
            ("GET", f"{one}/messages", self.list_messages),
        ):
            routes.add(method, path, resource(handle, self._services))

    async def list_completions(self, call: ResourceCall) -> dict[str, Any]:
        """Return some of the completions, oldest first unless asked for otherwise."""
        wanted = read_page(call.query, order="asc")
        fields = _read_filter(call.query)
        page = await read_records(await self._store(), "completion", call.owner, wanted, fields=fields)
        return item_list([_shown(record) for record in page.records], has_more=page.has_more)

    async def retrieve(self, call: ResourceCall) -> dict[str, Any]:
        """Return a completion."""
        return _shown(await self._find(call))

    async def update(self, call: ResourceCall) -> dict[str, Any]:
        """Replace the metadata."""
        new = decode_metadata(await call.json())
        record = await self._find(call)
        body = {**record.body, "metadata": new}
        try:
            await (await self._store()).commit([Update(kind="completion", id=record.id, body=body)])
        except ConflictError:  # it was deleted just now
            raise _not_found(record.id) from None
        return {**record.body["completion"], "metadata": new}

    async def delete(self, call: ResourceCall) -> dict[str, Any]:
        """Delete a completion for good."""
        record = await self._find(call)
        changes = [Delete("completion", record.id)]
        if record.body["run"]:
            changes.append(Delete("run", record.body["run"]))
        await (await self._store()).commit(changes)
        return {"object": "chat.completion.deleted", "id": record.id, "deleted": True}

    async def list_messages(self, call: ResourceCall) -> dict[str, Any]:
        """Return some of the messages of the request, oldest first unless asked for otherwise."""
        wanted = read_page(call.query, order="asc")
        record = await self._find(call)
        messages = [_message(f"{record.id}-{place}", one) for place, one in enumerate(record.body["messages"])]
        return part_of(messages, wanted)

    async def _store(self) -> Store:
        return (await self._storage()).store

    async def _find(self, call: ResourceCall) -> Record:
        completion_id = call.params["completion_id"]
        record = await (await self._store()).get("completion", completion_id, call.owner)
        if record is None:
            raise _not_found(completion_id)
        return record


def _not_found(completion_id: str) -> NotFoundError:
    return NotFoundError(f"Chat completion with id '{completion_id}' not found.", code="completion_not_found")


def _read_filter(query: Mapping[str, str]) -> dict[str, str]:
    """Return the members of a record that ``model`` and ``metadata[topic]`` name, for `Store.list`."""
    topics: dict[str, str] = {}
    for name, value in query.items():
        outer, bracket, rest = name.partition("[")
        if outer == "metadata":
            if not bracket or not rest.endswith("]"):
                invalid("metadata", "expected pairs like 'metadata[topic]=weather'.")
            topics[rest[:-1]] = value
    fields = {f"metadata.{topic}": value for topic, value in metadata(topics, "metadata").items()}
    return fields | {"completion.model": query["model"]} if query.get("model") else fields


def _shown(record: Record) -> dict[str, Any]:
    return {**record.body["completion"], "metadata": record.body["metadata"]}


def _message(message_id: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    is_list = isinstance(content, list)
    return {
        "refusal": None,
        **message,
        "id": message_id,
        "content": None if is_list else content,
        "content_parts": content if is_list else None,
    }
