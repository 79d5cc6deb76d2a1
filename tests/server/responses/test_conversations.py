"""Conversations over HTTP, as the official client uses them and as others misuse them."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem, ConversationItemList
from pydantic import TypeAdapter

from agentrun_server.runs.history import item_records
from agentrun_server.runs.item_record import item_key, item_record
from agentrun_server.server.responses.conversations import Conversations
from agentrun_server.storage.contracts import ConflictError, Delete, Record
from tests.support.stored import ALICE, Bench, answer_of, bench, response_record

HELLO = {"role": "user", "content": "Hello"}
ITEMS: list[dict[str, Any]] = [
    HELLO,
    {"role": "assistant", "content": "Hi"},
    {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "1"},
]
ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Bench]:
    def routes(services: Any, storage: Any, routes: Any) -> None:
        Conversations(services, storage).add_to(routes)

    async with bench(tmp_path, routes) as running:
        yield running


async def make(api: Bench, *items: dict[str, Any], name: str = "alice", **body: Any) -> str:
    """Make a conversation with `items`; return its id."""
    made = answer_of(
        await api.ask("POST", "/conversations", {"items": list(items), **body}, name=name), "ConversationResource"
    )
    Conversation.model_validate(made, strict=True)
    identity: str = made["id"]
    return identity


async def listed(api: Bench, path: str) -> list[dict[str, Any]]:
    """Return the items of a list that is not empty."""
    page = answer_of(await api.ask("GET", path), "ConversationItemList")
    ConversationItemList.model_validate(page, strict=True)
    items: list[dict[str, Any]] = page["data"]
    return items


# --- as it should be used


async def test_the_official_client_keeps_a_conversation(api: Bench) -> None:
    conversations = api.client().conversations
    made = await conversations.create(items=[HELLO], metadata={"topic": "x"})  # type: ignore[list-item]
    assert made.id.startswith("conv_")
    assert made.metadata == {"topic": "x"}
    assert await conversations.retrieve(made.id) == made
    changed = await conversations.update(made.id, metadata={"a": "b"})
    assert changed == made.model_copy(update={"metadata": {"a": "b"}})
    assert await conversations.retrieve(made.id) == changed
    added = await conversations.items.create(made.id, items=ITEMS)  # type: ignore[arg-type]
    assert [item.type for item in added.data] == ["message", "message", "function_call", "function_call_output"]
    assert (added.first_id, added.last_id, added.has_more) == (added.data[0].id, added.data[-1].id, False)
    newest_first = [item.id async for item in conversations.items.list(made.id, limit=2)]
    oldest_first = [item.id async for item in conversations.items.list(made.id, limit=2, order="asc")]
    assert oldest_first == newest_first[::-1]
    assert oldest_first[1:] == [item.id for item in added.data]
    last = await conversations.items.retrieve(added.last_id, conversation_id=made.id)
    assert last == added.data[-1]
    assert await conversations.items.delete(added.last_id, conversation_id=made.id) == changed
    with pytest.raises(openai.NotFoundError):
        await conversations.items.retrieve(added.last_id, conversation_id=made.id)
    deleted = await conversations.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError) as error:
        await conversations.retrieve(made.id)
    assert error.value.code == "conversation_not_found"
    for item in added.data:
        assert await api.get("item", item_key(ALICE, str(item.id))) is None


async def test_every_answer_is_what_the_specification_says(api: Bench) -> None:
    conversation = await make(api, *ITEMS, metadata={"k": "v"})
    here = f"/conversations/{conversation}"
    for item in await listed(api, f"{here}/items?order=asc&include=reasoning.encrypted_content"):
        answer = answer_of(await api.ask("GET", f"{here}/items/{item['id']}"), "ConversationItem")
        assert answer == item
        ITEM.validate_python(answer)
    page = answer_of(await api.ask("POST", f"{here}/items", {"items": ITEMS}), "ConversationItemList")
    ConversationItemList.model_validate(page, strict=True)
    assert answer_of(await api.ask("POST", here, {"metadata": {}}), "ConversationResource")["metadata"] == {}
    answer_of(await api.ask("DELETE", f"{here}/items/{page['last_id']}"), "ConversationResource")
    deleted = answer_of(await api.ask("DELETE", here), "DeletedConversationResource")
    ConversationDeletedResource.model_validate(deleted, strict=True)


async def test_a_conversation_may_begin_with_nothing(api: Bench) -> None:
    bodies: list[Any] = [None, b"", {}, {"items": None, "metadata": None}, {"items": []}]
    for body in bodies:
        made = answer_of(await api.ask("POST", "/conversations", body), "ConversationResource")
        assert made["metadata"] == {}
        assert type(made["created_at"]) is int
    page = (await api.ask("GET", f"/conversations/{made['id']}/items")).json()
    assert page == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    nothing = await api.ask("POST", f"/conversations/{made['id']}/items", {"items": []})
    assert nothing.json() == page


async def test_metadata_are_replaced_and_nothing_else(api: Bench) -> None:
    conversation = await make(api, HELLO, metadata={"a": "1", "b": "2"})
    await api.ask("POST", f"/conversations/{conversation}", {"metadata": {"b": "3"}, "items": ITEMS})
    assert (await api.ask("GET", f"/conversations/{conversation}")).json()["metadata"] == {"b": "3"}
    assert len(await listed(api, f"/conversations/{conversation}/items")) == 1


async def test_a_turn_that_runs_hinders_nobody_and_is_not_hindered(api: Bench) -> None:
    await api.put(Record(kind="conversation", id="conv_1", owner=ALICE, body={"metadata": {}}, status="w/resp_1"))
    await api.ask("POST", "/conversations/conv_1/items", {"items": ITEMS})
    await api.ask("POST", "/conversations/conv_1", {"metadata": {"k": "v"}})
    record = await api.get("conversation", "conv_1")
    assert record is not None
    assert (record.status, record.body) == ("w/resp_1", {"metadata": {"k": "v"}})
    assert len(await listed(api, "/conversations/conv_1/items")) == 4
    assert (await api.ask("DELETE", "/conversations/conv_1")).status == 200


async def test_twenty_items_are_taken(api: Bench) -> None:
    conversation = await make(api, *[HELLO] * 20)
    await api.ask("POST", f"/conversations/{conversation}/items", {"items": [HELLO] * 20})
    page = (await api.ask("GET", f"/conversations/{conversation}/items?limit=100")).json()
    assert len(page["data"]) == 40
    page = (await api.ask("GET", f"/conversations/{conversation}/items")).json()
    assert (len(page["data"]), page["has_more"]) == (20, True)


# --- ids


async def test_an_id_is_kept_once(api: Bench) -> None:
    first = await make(api, {**HELLO, "id": "msg_mine"}, {**HELLO, "id": "msg_mine"}, {**HELLO, "id": "a/b"})
    ids = [item["id"] for item in await listed(api, f"/conversations/{first}/items?order=asc")]
    assert ids[0] == "msg_mine"
    assert len(set(ids)) == 3
    assert all(identity.startswith("msg_") for identity in ids)
    third = await make(api, {**HELLO, "id": "msg_mine"})
    (item,) = await listed(api, f"/conversations/{third}/items")
    assert item["id"] not in ids


async def test_an_id_that_others_have_is_as_free_as_any(api: Bench) -> None:
    alices = await make(api, {**HELLO, "id": "msg_mine"})
    bobs = await make(api, {**HELLO, "id": "msg_mine"}, name="bob")
    (item,) = (await api.ask("GET", f"/conversations/{bobs}/items", name="bob")).json()["data"]
    assert item["id"] == "msg_mine"
    assert (await api.ask("DELETE", f"/conversations/{bobs}/items/msg_mine", name="bob")).status == 200
    assert [item["id"] for item in await listed(api, f"/conversations/{alices}/items")] == ["msg_mine"]


@pytest.mark.parametrize("name", ["alice", "bob"])
async def test_an_item_with_the_id_of_another_object_takes_nothing_of_it_along(api: Bench, name: str) -> None:
    conversation = await make(api, HELLO)
    await api.put(response_record("resp_1", question=[], output=[]), item_record(ALICE, "resp_1", "msg_a", {}).record)
    other = await make(api, {**HELLO, "id": conversation}, {**HELLO, "id": "resp_1"}, name=name)
    for identity in (conversation, "resp_1"):
        assert (await api.ask("DELETE", f"/conversations/{other}/items/{identity}", name=name)).status == 200
    assert len(await listed(api, f"/conversations/{conversation}/items")) == 1
    assert await api.get("item", item_key(ALICE, "msg_a")) is not None


async def test_an_id_that_cannot_be_stored_is_replaced(api: Bench) -> None:
    conversation = await make(api, {**HELLO, "id": "x\0y"})
    (item,) = await listed(api, f"/conversations/{conversation}/items")
    assert item["id"].startswith("msg_")


async def test_an_id_that_somebody_takes_just_now_is_replaced(api: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = await make(api)
    await api.put(Record(kind="conversation", id="conv_2", owner=ALICE, body={"metadata": {}}))
    store = (await api.storage()).store
    commit = store.commit

    async def overtaken(changes: Any) -> None:
        monkeypatch.undo()
        await commit(item_records([{"id": "msg_mine", "type": "message"}], "conv_2", ALICE))
        await commit(changes)

    monkeypatch.setattr(store, "commit", overtaken)
    answer = await api.ask("POST", f"/conversations/{conversation}/items", {"items": [{**HELLO, "id": "msg_mine"}]})
    assert answer.json()["first_id"] not in (None, "msg_mine")
    assert [item["id"] for item in await listed(api, f"/conversations/{conversation}/items")] == [
        answer.json()["first_id"]
    ]


@pytest.mark.parametrize("path", ["", "/items"])
async def test_a_conversation_that_is_deleted_just_now_is_not_there(
    api: Bench, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    conversation = await make(api)
    store = (await api.storage()).store
    commit = store.commit

    async def overtaken(changes: Any) -> None:
        await commit([Delete("conversation", conversation)])
        with pytest.raises(ConflictError):
            await commit(changes)
        raise ConflictError

    monkeypatch.setattr(store, "commit", overtaken)
    body = {"items": [HELLO], "metadata": {}}
    refused = await api.refused("POST", f"/conversations/{conversation}{path}", body)
    assert (refused["status"], refused["code"]) == (404, "conversation_not_found")


# --- references


async def test_references_are_stored_as_copies(api: Bench) -> None:
    said = {"type": "message", "id": "msg_a", "role": "assistant", "content": [], "status": "completed"}
    await api.put(response_record("resp_1", question=[], output=[said]))
    await api.put(item_record(ALICE, "resp_1", "msg_a", {}).record)
    first = await make(api, {**HELLO, "id": "msg_b"})
    references = [{"type": "item_reference", "id": "msg_a"}, {"id": "msg_b"}, {"id": "msg_b"}]
    copy = await make(api, *references)
    items = await listed(api, f"/conversations/{copy}/items?order=asc")
    assert len({"msg_a", "msg_b", *[item["id"] for item in items]}) == 5
    assert [item["role"] for item in items] == ["assistant", "user", "user"]
    await api.ask("DELETE", f"/conversations/{first}")
    assert await listed(api, f"/conversations/{copy}/items?order=asc") == items


async def test_a_reference_to_what_is_not_the_callers_is_refused(api: Bench) -> None:
    await make(api, {**HELLO, "id": "msg_bobs"}, name="bob")
    mine = await make(api)
    for path in ("/conversations", f"/conversations/{mine}/items"):
        for identity in ("msg_bobs", "msg_none", "\0"):
            refused = await api.refused("POST", path, {"items": [HELLO, {"id": identity}]})
            assert (refused["status"], refused["code"], refused["param"]) == (400, "item_not_found", "items")
            assert refused["message"].startswith(f"Item with id '{identity}' not found.")
    assert (await api.ask("GET", f"/conversations/{mine}/items")).json()["data"] == []


# --- what is not there


async def test_what_belongs_to_others_is_not_there(api: Bench) -> None:
    bobs = await make(api, {**HELLO, "id": "msg_bobs"}, name="bob")
    requests: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/items", None),
        ("POST", "/items", {"items": [HELLO]}),
        ("GET", "/items/msg_bobs", None),
        ("DELETE", "/items/msg_bobs", None),
    ]
    for method, path, body in requests:
        for identity, shown in ((bobs, bobs), ("conv_none", "conv_none"), ("%00", "\0")):
            assert await api.refused(method, f"/conversations/{identity}{path}", body) == {
                "status": 404,
                "type": "invalid_request_error",
                "code": "conversation_not_found",
                "param": None,
                "message": f"Conversation with id '{shown}' not found.",
            }
    assert (await api.ask("GET", f"/conversations/{bobs}/items/msg_bobs", name="bob")).status == 200


async def test_an_item_of_another_list_is_not_there(api: Bench) -> None:
    await make(api, {**HELLO, "id": "msg_other"})
    await make(api, {**HELLO, "id": "msg_bobs"}, name="bob")
    mine = await make(api, HELLO)
    for method, identity in itertools.product(("GET", "DELETE"), ("msg_other", "msg_bobs", "msg_none")):
        assert await api.refused(method, f"/conversations/{mine}/items/{identity}") == {
            "status": 404,
            "type": "invalid_request_error",
            "code": "item_not_found",
            "param": None,
            "message": f"Item with id '{identity}' not found.",
        }
    assert await api.get("item", item_key(ALICE, "msg_other")) is not None


async def test_a_cursor_is_an_item_of_the_same_conversation(api: Bench) -> None:
    await make(api, {**HELLO, "id": "msg_other"})
    await make(api, {**HELLO, "id": "msg_bobs"}, name="bob")
    mine = await make(api, HELLO)
    for after in ("msg_other", "msg_bobs", "msg_none", "%00"):
        refused = await api.refused("GET", f"/conversations/{mine}/items?after={after}")
        assert (refused["status"], refused["param"]) == (400, "after")


# --- what is malformed


async def test_a_malformed_query_is_refused(api: Bench) -> None:
    here = f"/conversations/{await make(api)}/items"
    for query in ("limit=0", "limit=101", "limit=x", "limit=-1", "order=up", f"after={'x' * 257}"):
        refused = await api.refused("GET", f"{here}?{query}")
        assert (refused["status"], refused["param"]) == (400, query.partition("=")[0]), query


async def test_malformed_items_are_refused(api: Bench) -> None:
    conversation = await make(api)
    cases: list[tuple[Any, str]] = [
        ([HELLO] * 21, "items"),
        ({}, "items"),
        (1, "items"),
        (["x"], "items[0]"),
        ([{"role": "user"}], "items[0].content"),
        ([HELLO, {**HELLO, "id": 1}], "items[1].id"),
    ]
    for items, param in cases:
        for path in ("/conversations", f"/conversations/{conversation}/items"):
            refused = await api.refused("POST", path, {"items": items})
            assert (refused["status"], refused["param"]) == (400, param), items
    assert (await api.ask("GET", f"/conversations/{conversation}/items")).json()["data"] == []


async def test_malformed_metadata_are_refused(api: Bench) -> None:
    conversation = await make(api, metadata={"k": "v"})
    cases: list[tuple[Any, str | None]] = [
        ({"metadata": []}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {f"k{i}": "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata.k"),
        ([], None),
        (b"{", None),
    ]
    for body, param in cases:
        for path in ("/conversations", f"/conversations/{conversation}"):
            refused = await api.refused("POST", path, body)
            assert (refused["status"], refused["param"]) == (400, param), body
    assert (await api.ask("GET", f"/conversations/{conversation}")).json()["metadata"] == {"k": "v"}


async def test_metadata_may_be_as_large_as_they_may_be(api: Bench) -> None:
    metadata = {f"{i:064d}": "v" * 512 for i in range(16)}
    conversation = await make(api, metadata=metadata)
    assert (await api.ask("GET", f"/conversations/{conversation}")).json()["metadata"] == metadata


async def test_metadata_can_be_taken_away(api: Bench) -> None:
    conversation = await make(api, metadata={"k": "v"})
    changed = await api.client().conversations.update(conversation, metadata=None)
    assert changed.metadata == {}
    assert (await api.ask("GET", f"/conversations/{conversation}")).json()["metadata"] == {}


async def test_what_is_to_be_changed_must_be_said(api: Bench) -> None:
    conversation = await make(api)
    for path, param in (("", "metadata"), ("/items", "items")):
        for body in (None, {}, {"items": None}):
            refused = await api.refused("POST", f"/conversations/{conversation}{path}", body)
            assert (refused["status"], refused["param"]) == (400, param), body
            assert refused["code"] == "missing_required_parameter"
