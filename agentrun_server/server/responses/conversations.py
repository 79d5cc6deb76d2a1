"""``…/conversations``: items that are kept, and what is said goes on from there.

A turn that is running hinders nobody here: it works with what it has read, and adds its items when it ends.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentrun_server.errors import NotFoundError
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.decode import decode_conversation, decode_items, decode_metadata
from agentrun_server.protocols.openai_responses.items import Item, references, resolve
from agentrun_server.protocols.openai_responses.queries import read_page
from agentrun_server.runs.history import item_records, renamed, resolve_references
from agentrun_server.runs.item_record import KIND as ITEM
from agentrun_server.runs.item_record import get_item_records, item_key
from agentrun_server.runs.turns import OpenStorage
from agentrun_server.server.listing import read_records
from agentrun_server.server.resources import ResourceCall, resource
from agentrun_server.server.routing import Routes
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Change, ConflictError, Create, Delete, Record, Store, Update

__all__ = ["Conversations", "find_conversation"]


class Conversations:
    """Answers requests for conversations and their items."""

    def __init__(self, services: Services, storage: OpenStorage) -> None:
        self._services = services
        self._storage = storage
        self._new_id = services.new_id

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        one = "/conversations/{conversation_id}"
        for method, path, handle in (
            ("POST", "/conversations", self.create),
            ("GET", one, self.retrieve),
            ("POST", one, self.update),
            ("DELETE", one, self.delete),
            ("POST", f"{one}/items", self.add_items),
            ("GET", f"{one}/items", self.list_items),
            ("GET", f"{one}/items/{{item_id}}", self.retrieve_item),
            ("DELETE", f"{one}/items/{{item_id}}", self.delete_item),
        ):
            routes.add(method, path, resource(handle, self._services))

    # --- conversations

    async def create(self, call: ResourceCall) -> dict[str, Any]:
        """Make a conversation, with its first items."""
        items, metadata = await call.decoded(lambda body: decode_conversation(body, self._new_id))
        store = await self._store()
        items = await _in_full(store, items, call.owner)
        record = Record(kind="conversation", id=self._new_id("conv_"), owner=call.owner, body={"metadata": metadata})
        await self._add(store, [Create(record)], items, record)
        # When it was made, the store says.
        return _shown(await find_conversation(store, record.id, call.owner))

    async def retrieve(self, call: ResourceCall) -> dict[str, Any]:
        """Return a conversation."""
        return _shown(await self._find(call))

    async def update(self, call: ResourceCall) -> dict[str, Any]:
        """Replace the metadata."""
        body = {"metadata": decode_metadata(await call.json())}
        record = await self._find(call)
        try:
            await (await self._store()).commit([Update(kind="conversation", id=record.id, body=body)])
        except ConflictError:  # it was deleted just now
            raise _not_found(record.id) from None
        return objects.conversation(record.id, int(record.created_at), body["metadata"])

    async def delete(self, call: ResourceCall) -> dict[str, Any]:
        """Delete a conversation and its items for good."""
        record = await self._find(call)
        await (await self._store()).commit([Delete("conversation", record.id)])
        return objects.conversation_deleted(record.id)

    # --- items

    async def add_items(self, call: ResourceCall) -> dict[str, Any]:
        """Add items at the end."""
        items = await call.decoded(lambda body: decode_items(body, self._new_id))
        record = await self._find(call)
        store = await self._store()
        items = await _in_full(store, items, call.owner)
        return objects.item_list(await self._add(store, [], items, record), has_more=False)

    async def list_items(self, call: ResourceCall) -> dict[str, Any]:
        """Return some of the items, newest first unless asked for otherwise."""
        wanted = read_page(call.query)
        record = await self._find(call)
        if wanted.after is not None:
            wanted = replace(wanted, after=item_key(call.owner, wanted.after))
        page = await read_records(await self._store(), ITEM, call.owner, wanted, parent=record.id)
        return objects.item_list([dict(item.body) for item in page.records], has_more=page.has_more)

    async def retrieve_item(self, call: ResourceCall) -> dict[str, Any]:
        """Return an item."""
        _, item = await self._find_item(call)
        return dict(item.body)

    async def delete_item(self, call: ResourceCall) -> dict[str, Any]:
        """Delete an item; return the conversation."""
        record, item = await self._find_item(call)
        await (await self._store()).commit([Delete(ITEM, item.id)])
        return _shown(record)

    # --- the store

    async def _store(self) -> Store:
        return (await self._storage()).store

    async def _find(self, call: ResourceCall) -> Record:
        return await find_conversation(await self._store(), call.params["conversation_id"], call.owner)

    async def _find_item(self, call: ResourceCall) -> tuple[Record, Record]:
        """Return the conversation and the item that the path names."""
        record = await self._find(call)
        item_id = call.params["item_id"]
        item = await (await self._store()).get(ITEM, item_key(call.owner, item_id), call.owner)
        if item is None or item.parent != record.id:
            raise NotFoundError(f"Item with id '{item_id}' not found.", code="item_not_found")
        return record, item

    async def _add(self, store: Store, first: Sequence[Change], items: list[Item], conversation: Record) -> list[Item]:
        """Commit the changes `first` and add `items` to a conversation; return the items, with their ids."""
        taken = set(await get_item_records(store, [item["id"] for item in items], conversation.owner))
        for _ in range(2):
            items = renamed(items, taken, self._new_id)
            changes = [*first, *item_records(items, conversation.id, conversation.owner)]
            try:
                if changes:
                    await store.commit(changes)
            except ConflictError:
                # Somebody took an id just now, and new ones are nobody's; or the conversation was deleted.
                taken = {item["id"] for item in items}
            else:
                return items
        raise _not_found(conversation.id)


async def find_conversation(store: Store, conversation_id: str, owner: str, *, param: str | None = None) -> Record:
    """Return a conversation of `owner`; `param` is the field that names it, where it is not the path.

    Raises:
        NotFoundError: there is none of that id.
    """
    record = await store.get("conversation", conversation_id, owner)
    if record is None:
        raise _not_found(conversation_id, param)
    return record


def _not_found(conversation_id: str, param: str | None = None) -> NotFoundError:
    return NotFoundError(
        f"Conversation with id '{conversation_id}' not found.", code="conversation_not_found", param=param
    )


async def _in_full(store: Store, items: Sequence[Item], owner: str) -> list[Item]:
    """Return `items` with those in place of references that they mean."""
    known = await resolve_references(store, references(items), owner, param="items")
    return resolve(items, known, param="items")


def _shown(record: Record) -> dict[str, Any]:
    return objects.conversation(record.id, int(record.created_at), record.body["metadata"])
