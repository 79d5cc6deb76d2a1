"""Stored chat completions over HTTP, as the official client uses them and as others misuse them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionDeleted

from agentrun_server.protocols.openai_chat.encode import plain_completion
from agentrun_server.server.chat.completions import Completions, completion_record
from agentrun_server.server.resources import resource
from agentrun_server.storage.contracts import Delete, Record
from tests.support.stored import ALICE, BOB, Bench, answer_of, bench, check_schema

HERE = "/chat/completions"
QUESTION = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Bench]:
    def routes(services: Any, storage: Any, routes: Any) -> None:
        completions = Completions(services, storage)
        completions.add_to(routes)
        routes.add("GET", HERE, resource(completions.list_completions, services))

    async with bench(tmp_path, routes) as running:
        yield running


def completion(identity: str, model: str = "m") -> dict[str, Any]:
    text = plain_completion("Hi", id=identity, created=1, model=model, prompt_tokens=1)
    made: dict[str, Any] = json.loads(text)
    return made


def record(
    identity: str,
    *,
    owner: str = ALICE,
    model: str = "m",
    messages: list[dict[str, Any]] | None = None,
    metadata: dict[str, str] | None = None,
) -> Record:
    return completion_record(
        completion(identity, model), messages or QUESTION, owner=owner, metadata=metadata, ttl=60, now=1000.0
    )


def test_the_record_of_a_completion() -> None:
    made = record("chatcmpl-1", metadata={"k": "v"})
    assert (made.kind, made.id, made.owner, made.expires_at) == ("completion", "chatcmpl-1", ALICE, 1060.0)
    kept = {"completion": completion("chatcmpl-1"), "messages": QUESTION, "metadata": {"k": "v"}, "run": ""}
    assert made.body == kept
    bare = completion_record(completion("chatcmpl-1"), [], owner="", metadata=None, ttl=None, now=1.0)
    assert (bare.expires_at, bare.body["metadata"]) == (None, {})


# --- as it should be used


async def test_the_official_client_reads_what_was_stored(api: Bench) -> None:
    await api.put(record("chatcmpl-1", metadata={"topic": "x"}))
    completions = api.client().chat.completions
    found = await completions.retrieve("chatcmpl-1")
    assert found.choices[0].message.content == "Hi"
    changed = await completions.update("chatcmpl-1", metadata={"topic": "y", "k": "v"})
    assert changed.to_dict()["metadata"] == {"topic": "y", "k": "v"}
    assert await completions.retrieve("chatcmpl-1") == changed
    assert [one.id async for one in completions.list(metadata={"topic": "y"})] == ["chatcmpl-1"]
    assert [one.id async for one in completions.list(metadata={"topic": "x"})] == []
    (message,) = [one async for one in completions.messages.list("chatcmpl-1")]
    assert (message.id, message.content, message.role) == ("chatcmpl-1-0", "Hello", "user")
    deleted = await completions.delete("chatcmpl-1")
    assert (deleted.id, deleted.deleted) == ("chatcmpl-1", True)
    with pytest.raises(openai.NotFoundError) as error:
        await completions.retrieve("chatcmpl-1")
    assert error.value.code == "completion_not_found"
    assert await api.get("completion", "chatcmpl-1") is None


async def test_every_answer_is_what_the_specification_says(api: Bench) -> None:
    await api.put(record("chatcmpl-1"))
    here = f"{HERE}/chatcmpl-1"
    found = answer_of(await api.ask("GET", here), "CreateChatCompletionResponse")
    ChatCompletion.model_validate(found, strict=True)
    assert found == {**completion("chatcmpl-1"), "metadata": {}}
    assert answer_of(await api.ask("POST", here, {"metadata": {"k": "v"}}), "CreateChatCompletionResponse") == {
        **found,
        "metadata": {"k": "v"},
    }
    page = answer_of(await api.ask("GET", HERE), "ChatCompletionList")
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("chatcmpl-1", "chatcmpl-1", False)
    deleted = answer_of(await api.ask("DELETE", here), "ChatCompletionDeleted")
    ChatCompletionDeleted.model_validate(deleted, strict=True)
    nothing = {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}
    assert (await api.ask("GET", HERE)).json() == nothing


LISTS = {
    "": "12345",
    "order=desc": "54321",
    "limit=2": "12+",
    "limit=2&after=c2": "34+",
    "limit=2&after=c2&order=desc": "1",
    "model=a": "135",
    "model=": "12345",
    "model=none": "",
    "metadata[topic]=x": "145",
    "metadata%5Btopic%5D=x&model=a": "15",
    "metadata[topic]=x&metadata[a.b]=c": "5",
    "metadata[topic]=x&after=c2&limit=1": "4+",
    "metadata[]=x": "",
    "unknown=x": "12345",
}


async def test_a_list_is_what_was_asked_for(api: Bench) -> None:
    await api.put(record("c1", model="a", metadata={"topic": "x"}), record("b1", owner=BOB, model="a"))
    await api.put(record("c2", model="b"), record("c3", model="a", metadata={"topic": "y"}))
    await api.put(
        record("c4", model="b", metadata={"topic": "x"}),
        record("c5", model="a", metadata={"topic": "x", "a.b": "c"}),
        Record(kind="response", id="r1", owner=ALICE, body={}),
    )
    for query, expected in LISTS.items():
        page = (await api.ask("GET", f"{HERE}?{query}")).json()
        found = "".join(one["id"][1:] for one in page["data"]) + "+" * page["has_more"]
        assert found == expected, query


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]},
    {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    {"role": "assistant", "refusal": "No."},
]  # fmt: skip


async def test_messages_have_an_id_and_parts(api: Bench) -> None:
    await api.put(record("c", messages=MESSAGES))
    page = (await api.ask("GET", f"{HERE}/c/messages")).json()
    # Its messages can only be an assistant's, while its example has a user's.
    check_schema("ChatCompletionMessageList", {**page, "data": [{**m, "role": "assistant"} for m in page["data"]]})
    plain = {"refusal": None, "content_parts": None}
    assert page["data"] == [
        {**plain, **MESSAGES[0], "id": "c-0"},
        {**plain, **MESSAGES[1], "id": "c-1", "content": None, "content_parts": MESSAGES[1]["content"]},
        {**plain, **MESSAGES[2], "id": "c-2"},
        {**plain, **MESSAGES[3], "id": "c-3"},
        {**plain, **MESSAGES[4], "id": "c-4", "content": None},
    ]
    page = (await api.ask("GET", f"{HERE}/c/messages?limit=2&order=desc&after=c-4")).json()
    assert [one["id"] for one in page["data"]] == ["c-3", "c-2"]
    assert page["has_more"] is True
    assert len([one async for one in api.client().chat.completions.messages.list("c", limit=2)]) == 5


# --- what is not there


async def test_what_belongs_to_others_is_not_there(api: Bench) -> None:
    await api.put(record("chatcmpl-bobs", owner=BOB))
    requests: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("POST", "", {"metadata": {}}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
    ]
    for method, path, body in requests:
        for identity, shown in (("chatcmpl-bobs",) * 2, ("chatcmpl-none",) * 2, ("%00", "\0")):
            assert await api.refused(method, f"{HERE}/{identity}{path}", body) == {
                "status": 404,
                "type": "invalid_request_error",
                "code": "completion_not_found",
                "param": None,
                "message": f"Chat completion with id '{shown}' not found.",
            }
    kept = await api.get("completion", "chatcmpl-bobs")
    assert kept is not None
    assert kept.version == 1


async def test_a_completion_that_is_deleted_just_now_is_not_there(api: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.put(record("c"))
    store = (await api.storage()).store
    commit = store.commit

    async def overtaken(changes: Any) -> None:
        await commit([Delete("completion", "c")])
        await commit(changes)

    monkeypatch.setattr(store, "commit", overtaken)
    refused = await api.refused("POST", f"{HERE}/c", {"metadata": {}})
    assert (refused["status"], refused["code"]) == (404, "completion_not_found")


# --- what is malformed


async def test_a_malformed_query_is_refused(api: Bench) -> None:
    await api.put(record("c"), record("bobs", owner=BOB))
    for path in (HERE, f"{HERE}/c/messages"):
        for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=none", "after=bobs", "after=%00"):
            refused = await api.refused("GET", f"{path}?{query}")
            assert (refused["status"], refused["param"]) == (400, query.partition("=")[0]), query


async def test_a_malformed_filter_is_refused(api: Bench) -> None:
    many = "&".join(f"metadata[k{i}]=x" for i in range(17))
    long = f"metadata[k]={'v' * 513}"
    for query in ("metadata=x", "metadata[topic=x", f"metadata[{'k' * 65}]=x", long, many):
        refused = await api.refused("GET", f"{HERE}?{query}")
        assert (refused["status"], refused["param"].partition(".")[0]) == (400, "metadata"), query


async def test_a_malformed_body_is_refused(api: Bench) -> None:
    await api.put(record("c", metadata={"k": "v"}))
    cases: list[tuple[Any, str | None]] = [
        (None, "metadata"),
        ({}, "metadata"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"metadata": {f"k{i}": "" for i in range(17)}}, "metadata"),
        (b"[]", None),
    ]
    for body, param in cases:
        refused = await api.refused("POST", f"{HERE}/c", body)
        assert (refused["status"], refused["param"]) == (400, param), body
    assert (await api.ask("GET", f"{HERE}/c")).json()["metadata"] == {"k": "v"}
