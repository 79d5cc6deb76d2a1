"""What an answer has before it: of conversations, of responses, and by reference."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.items import MAX_BYTES, Item
from agentrun_server.runs.history import (
    conversation_items,
    find_previous,
    item_records,
    links,
    renamed,
    resolve_references,
    response_context,
    with_results,
    without_result,
)
from agentrun_server.runs.item_record import item_key, item_record
from agentrun_server.storage.contracts import Create, Delete, Record
from agentrun_server.storage.sqlite import SQLiteStore
from tests.protocols.openai_responses.answers import Counter
from tests.support.stored import ALICE, BOB, response_record


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    opened = SQLiteStore(tmp_path / "test.db", durable=False)
    yield opened
    await opened.aclose()


def user(name: str) -> Item:
    return {"type": "message", "id": name, "role": "user", "content": [], "status": "completed"}


def agent(name: str) -> Item:
    return {"type": "message", "id": name, "role": "assistant", "content": [], "status": "completed"}


def ids(items: list[Item]) -> list[str]:
    return [item["id"] for item in items]


async def converse(store: SQLiteStore, conversation: str, *items: Item, owner: str = ALICE) -> None:
    """Add items to a conversation, which is made when it is not there."""
    if await store.get("conversation", conversation, None) is None:
        await store.commit([Create(Record(kind="conversation", id=conversation, owner=owner, body={"metadata": {}}))])
    await store.commit(item_records(items, conversation, owner))


async def respond(store: SQLiteStore, name: str, **more: Any) -> Record:
    """Store the response `name`, whose input is u<name> and whose output is a<name>, each with a record."""
    record = response_record(name, question=[user(f"u{name}")], output=[agent(f"a{name}")], **more)
    await store.commit([Create(record)])
    if not record.body["conversation"]:
        await store.commit([item_record(record.owner, name, f"{k}{name}", {}) for k in "ua"])
    return record


def problem(error: pytest.ExceptionInfo[InvalidRequestError]) -> tuple[int, str | None, str | None]:
    return error.value.status_code, error.value.code, error.value.param


# --- conversations


async def test_a_conversation_is_read_in_the_order_in_which_it_was_made(store: SQLiteStore) -> None:
    await converse(store, "c", user("z"), agent("b"), user("a"))
    await converse(store, "other", user("x"))
    assert await conversation_items(store, "c", ALICE, max_items=3) == [user("z"), agent("b"), user("a")]
    assert await conversation_items(store, "c", BOB, max_items=3) == []
    assert await conversation_items(store, "nope", ALICE, max_items=3) == []


@pytest.mark.parametrize(("most", "left"), [(0, []), (1, []), (2, ["3", "4"]), (4, ["3", "4"]), (5, list("01234"))])
async def test_of_a_long_one_the_newest_turns_are_left(store: SQLiteStore, most: int, left: list[str]) -> None:
    await converse(store, "c", user("0"), agent("1"), agent("2"), user("3"), agent("4"))
    assert ids(await conversation_items(store, "c", ALICE, max_items=most)) == left


async def test_a_history_may_begin_with_what_stands_for_all_before(store: SQLiteStore) -> None:
    await converse(store, "c", user("0"), {"type": "compaction", "id": "1", "encrypted_content": ""}, agent("2"))
    assert ids(await conversation_items(store, "c", ALICE, max_items=2)) == ["1", "2"]


# --- responses


async def test_a_chain_of_responses_is_their_input_and_output(store: SQLiteStore) -> None:
    await respond(store, "1")
    await respond(store, "2", history=["1"])
    last = await respond(store, "3", history=["1", "2"])
    assert ids(await response_context(store, last, ALICE, max_items=9)) == ["u1", "a1", "u2", "a2", "u3", "a3"]
    assert ids(await response_context(store, last, ALICE, max_items=5)) == ["u2", "a2", "u3", "a3"]
    assert await response_context(store, last, ALICE, max_items=0) == []


async def test_a_chain_is_followed_by_what_each_response_says_of_some_before_it(store: SQLiteStore) -> None:
    """None names all: a conversation of n turns would need room for n * n names."""
    last = await respond(store, "0")
    for n in range(1, 200):
        last = await respond(store, str(n), history=links(last))
    assert links(last) == [str(n) for n in range(136, 200)]
    used: list[Record] = []
    items = await response_context(store, last, ALICE, max_items=400, used=used.append)
    assert ids(items) == [f"{who}{n}" for n in range(200) for who in "ua"]
    assert [record.id for record in used] == [str(n) for n in reversed(range(200))]
    used.clear()
    assert len(await response_context(store, last, ALICE, max_items=100, used=used.append)) == 100
    assert len(used) == 51, "no more is read than there is room for"


async def test_a_chain_has_a_bound_in_bytes(store: SQLiteStore) -> None:
    """What the answer goes on from is in it however large it is."""
    large = {**user("u2"), "content": [{"type": "input_text", "text": "x" * MAX_BYTES}]}
    first = await respond(store, "1")
    second = response_record("2", question=[large], output=[agent("a2")], history=["1"])
    await store.commit([Create(second)])
    third = await respond(store, "3", history=["1", "2"])
    for record, left in ((first, "u1 a1"), (second, "u2 a2"), (third, "u3 a3")):
        stored = await find_previous(store, record.id, ALICE)
        assert " ".join(ids(await response_context(store, stored, ALICE, max_items=9))) == left


async def test_a_conversation_has_a_bound_in_bytes(store: SQLiteStore) -> None:
    part = {"type": "input_text", "text": "x" * (MAX_BYTES // 3)}
    items = [{**(agent if n % 2 else user)(str(n)), "content": [part]} for n in range(6)]
    await converse(store, "c", *items[:3])
    await converse(store, "c", *items[3:])
    assert ids(await conversation_items(store, "c", ALICE, max_items=9)) == ["4", "5"]
    await store.commit([Delete("item", item_key(ALICE, "5"))])
    assert ids(await conversation_items(store, "c", ALICE, max_items=9)) == ["4"], "3 would be no beginning"


async def test_a_chain_that_lacks_a_response_is_none(store: SQLiteStore) -> None:
    await respond(store, "1")
    await respond(store, "2", owner=BOB, history=["1"])
    last = await respond(store, "3", history=["1", "2"])
    with pytest.raises(InvalidRequestError) as error:
        await response_context(store, last, ALICE, max_items=9)
    assert problem(error) == (400, "previous_response_not_found", "previous_response_id")
    assert error.value.message == "Previous response with id '2' not found."


async def test_a_turn_of_a_conversation_has_the_conversation_until_then(store: SQLiteStore) -> None:
    turn = await respond(store, "2", conversation="c")
    await converse(store, "c", user("u1"), agent("a1"), user("u2"), agent("a2"), user("u3"), agent("a3"))
    assert ids(await response_context(store, turn, ALICE, max_items=9)) == ["u1", "a1", "u2", "a2"]
    assert ids(await response_context(store, turn, ALICE, max_items=3)) == ["u2", "a2"]
    after = await respond(store, "x", history=["2"])
    assert ids(await response_context(store, after, ALICE, max_items=9)) == ["u1", "a1", "u2", "a2", "ux", "ax"]


async def test_a_turn_of_which_something_is_left_can_be_continued(store: SQLiteStore) -> None:
    turn = await respond(store, "2", conversation="c")
    await converse(store, "c", user("u1"), user("u2"), agent("a2"), user("u3"))
    await store.commit([Delete("item", item_key(ALICE, "a2"))])
    await converse(store, "other", agent("a2"))
    assert ids(await response_context(store, turn, ALICE, max_items=9)) == ["u1", "u2"]


@pytest.mark.parametrize("gone", ["conversation", "turn", "never there", "elsewhere"])
async def test_a_turn_that_is_not_in_its_conversation_cannot_be_continued(store: SQLiteStore, gone: str) -> None:
    turn = await respond(store, "2", conversation="c")
    await converse(store, "c", user("u1"))
    if gone == "elsewhere":
        await converse(store, "other", user("u2"), agent("a2"))
    elif gone != "never there":
        await converse(store, "c", user("u2"), agent("a2"))
        turn_items = [("item", item_key(ALICE, one)) for one in ("u2", "a2")]
        deleted = [("conversation", "c")] if gone == "conversation" else turn_items
        await store.commit([Delete(*one) for one in deleted])
    with pytest.raises(InvalidRequestError) as error:
        await response_context(store, turn, ALICE, max_items=9)
    assert problem(error) == (400, "previous_response_not_found", "previous_response_id")


async def test_who_goes_on_needs_a_response_of_his_own_that_has_ended(store: SQLiteStore) -> None:
    await respond(store, "1")
    await respond(store, "2", status="in_progress")
    assert (await find_previous(store, "1", ALICE)).id == "1"
    for name, owner, code in [
        ("1", BOB, "previous_response_not_found"),
        ("x", ALICE, "previous_response_not_found"),
        ("2", ALICE, "previous_response_not_completed"),
    ]:
        with pytest.raises(InvalidRequestError) as error:
            await find_previous(store, name, owner)
        assert problem(error) == (400, code, "previous_response_id")


# --- references


async def test_references_lead_to_items_of_responses_and_of_conversations(store: SQLiteStore) -> None:
    await respond(store, "1")
    await respond(store, "b", owner=BOB)
    await converse(store, "c", user("u2"))
    asked = ["a1", "u1", "u2", "ub", "nope", "\0"]
    assert await resolve_references(store, asked, ALICE) == {"a1": agent("a1"), "u1": user("u1"), "u2": user("u2")}
    assert await resolve_references(store, [], ALICE) == {}


async def test_what_references_lead_to_has_a_bound(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"type": "input_text", "text": "x" * (MAX_BYTES // 2)}
    await converse(store, "c", {**user("1"), "content": [part]}, {**user("2"), "content": [part]})
    assert len(await resolve_references(store, ["1"], ALICE)) == 1
    with pytest.raises(InvalidRequestError) as error:
        await resolve_references(store, ["1", "2"], ALICE, param="items")
    assert problem(error) == (400, "context_length_exceeded", "items")
    for name in "345":
        await respond(store, name)
    size = (await find_previous(store, "3", ALICE)).size
    monkeypatch.setattr("agentrun_server.runs.history._MAX_READ", 2 * size)
    assert len(await resolve_references(store, ["u3", "a4"], ALICE)) == 2
    with pytest.raises(InvalidRequestError) as error:
        await resolve_references(store, ["u3", "a4", "u5"], ALICE)
    assert problem(error) == (400, "context_length_exceeded", "input")


async def test_a_reference_to_what_its_response_does_not_hold_leads_nowhere(store: SQLiteStore) -> None:
    await respond(store, "1")
    await store.commit([item_record(ALICE, "1", "m", {})])
    assert await resolve_references(store, ["m"], ALICE) == {}


# --- ids


def test_an_item_keeps_an_id_that_is_free() -> None:
    items = [user("msg_a"), user("msg_b"), user("msg_a"), user("a/b"), user("x\n"), user("msg_é"), user("i" * 257)]
    assert ids(renamed(items, {"msg_b"}, Counter())) == ["msg_a", "msg_1", "msg_2", "msg_3", "msg_4", "msg_5", "msg_6"]
    assert ids(items)[:2] == ["msg_a", "msg_b"]


def test_an_approval_follows_the_request_that_got_another_id() -> None:
    request = {"type": "mcp_approval_request", "id": "mcpr_x", "name": "f"}
    other = {"type": "mcp_approval_response", "id": "r1", "approval_request_id": "mcpr_y", "approve": True}
    response = {"type": "mcp_approval_response", "id": "r2", "approval_request_id": "mcpr_x", "approve": True}
    named = renamed([request, other, response], {"mcpr_x"}, Counter())
    assert named == [{**request, "id": "mcpr_1"}, other, {**response, "approval_request_id": "mcpr_1"}]


def test_an_approval_follows_its_request_though_other_items_have_the_same_id() -> None:
    request = {"type": "mcp_approval_request", "id": "x", "name": "f"}
    response = {"type": "mcp_approval_response", "id": "x", "approval_request_id": "x", "approve": True}
    assert renamed([request, response], (), Counter()) == [request, {**response, "id": "mcpa_1"}]


def test_a_call_that_comes_back_without_its_result_is_the_one_that_is_known() -> None:
    def call(name: str, output: str | None = None, error: object = None) -> Item:
        return {"type": "mcp_call", "id": name, "arguments": "{}", "output": output, "error": error}

    known = {"known": call("known", "42"), "whole": call("whole", "of before")}
    items = [
        user("whole"),
        call("known"),
        call("unknown"),
        call("whole", "of now"),
        call("failed", error={"type": "x"}),
    ]
    assert without_result(items) == ["known", "unknown"]
    assert with_results(items, known) == [items[0], known["known"], *items[2:]]
