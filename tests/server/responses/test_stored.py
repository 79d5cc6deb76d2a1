"""Stored responses, counts and compactions over HTTP."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import CompactedResponse, Response, ResponseItem
from pydantic import TypeAdapter

from agentrun_server.core.request import Headers
from agentrun_server.core.usage import Usage
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.compaction import compact, expand
from agentrun_server.protocols.openai_responses.decode import decode
from agentrun_server.protocols.openai_responses.items import read_items
from agentrun_server.runs.history import item_records
from agentrun_server.runs.item_record import item_key, item_record
from agentrun_server.server.resources import ResourceCall, resource
from agentrun_server.server.responses.stored import StoredResponses, find_response, response_of
from agentrun_server.storage.contracts import Record
from tests.protocols.openai_responses.answers import Counter
from tests.support.responses_oracle import check_response
from tests.support.stored import ALICE, BOB, Bench, answer_of, bench, response_record

ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
SAID = {
    "type": "message",
    "id": "msg_out",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hi there", "annotations": [], "logprobs": []}],
    "phase": "final_answer",
}


@dataclass
class Stopping:
    """Who stops runs: remembers which, and what was there at that time."""

    api: "Bench | None" = None
    stopped: list[str] = field(default_factory=list[str])

    async def __call__(self, record: Record) -> None:
        assert self.api is not None
        assert await self.api.get("response", record.id) is not None
        self.stopped.append(record.id)


@pytest.fixture
def stopping() -> Stopping:
    return Stopping()


@pytest.fixture
async def api(tmp_path: Path, stopping: Stopping) -> AsyncIterator[Bench]:
    def routes(services: Any, storage: Any, routes: Any) -> None:
        async def read(call: ResourceCall) -> dict[str, Any]:
            return response_of(await find_response((await storage()).store, call.params["response_id"], call.owner))

        StoredResponses(services, storage, stopping).add_to(routes)
        routes.add("GET", "/responses/{response_id}", resource(read, services))

    async with bench(tmp_path, routes, max_messages=8) as running:
        stopping.api = running
        yield running


def question(*texts: str) -> list[dict[str, Any]]:
    items = [{"id": f"msg_{text}", "role": "user", "content": text} for text in texts]
    return read_items(items, Counter(), max_items=99)


def stored(identity: str = "resp_1", *, status: str = "completed", **more: Any) -> Record:
    """Return the record of a response as the wire has it."""
    call = decode({"model": "m", "input": "Hi"}, Headers(), Counter())
    shown: Any = "cancelled" if status == "cancelling" else status
    over = status not in ("queued", "in_progress", "cancelling")
    response = objects.response(
        call.echo,
        id=identity,
        created_at=1,
        status=shown,
        usage=Usage(1, 2) if over else None,
        completed_at=2 if status == "completed" else None,
    )
    more = {"question": question("a"), "output": [SAID], **more}
    return response_record(identity, status=status, response=response, **more)


# --- stored responses


async def test_the_official_client_reads_and_deletes_a_response(api: Bench, stopping: Stopping) -> None:
    await api.put(stored(question=question(*"abc")))
    responses = api.client().responses
    assert (await responses.retrieve("resp_1", include=["reasoning.encrypted_content"])).output_text == "Hi there"
    newest_first = [item.id async for item in responses.input_items.list("resp_1", limit=2)]
    assert newest_first == ["msg_c", "msg_b", "msg_a"]
    await responses.delete("resp_1")
    with pytest.raises(openai.NotFoundError) as error:
        await responses.retrieve("resp_1")
    assert error.value.code == "response_not_found"
    assert not stopping.stopped


async def test_every_answer_is_what_the_specification_says(api: Bench) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "sh", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "1"},
        {"type": "mcp_call", "name": "f", "server_label": "s", "arguments": "{}"},
    ]
    await api.put(stored(question=read_items(items, Counter(), max_items=99)))
    found = answer_of(await api.ask("GET", "/responses/resp_1"), "Response")
    check_response(found)
    Response.model_validate(found, strict=True)
    page = answer_of(await api.ask("GET", "/responses/resp_1/input_items?order=asc"), "ResponseItemList")
    assert [item["type"] for item in page["data"]] == [item.get("type", "message") for item in items]
    for item in page["data"]:
        assert item["id"]
        assert item["status"] == "completed"
        ITEM.validate_python(item)
    deleted = await api.ask("DELETE", "/responses/resp_1")
    assert deleted.json() == {"id": "resp_1", "object": "response", "deleted": True}


@pytest.mark.parametrize(
    ("status", "shown", "output"),
    [
        ("queued", "queued", []),
        ("in_progress", "in_progress", []),
        ("cancelling", "cancelled", []),
        ("completed", "completed", [SAID]),
        ("incomplete", "incomplete", [SAID]),
        ("failed", "failed", [SAID]),
        ("cancelled", "cancelled", [SAID]),
    ],
)
async def test_a_response_is_shown_as_it_is_now(
    api: Bench, stopping: Stopping, status: str, shown: str, output: list[Any]
) -> None:
    await api.put(stored(status=status))
    found = (await api.ask("GET", "/responses/resp_1")).json()
    assert (found["status"], found["output"]) == (shown, output)
    page = (await api.ask("GET", "/responses/resp_1/input_items")).json()
    assert page["first_id"] == "msg_a"
    assert (await api.ask("DELETE", "/responses/resp_1")).status == 200
    assert stopping.stopped == ([] if output else ["resp_1"])
    assert await api.get("response", "resp_1") is None


async def test_the_items_of_a_response_go_with_it(api: Bench) -> None:
    await api.put(stored(), item_record(ALICE, "resp_1", "msg_a", {}).record)
    await api.ask("DELETE", "/responses/resp_1")
    assert await api.get("item", item_key(ALICE, "msg_a")) is None


async def test_what_belongs_to_others_is_not_there(api: Bench, stopping: Stopping) -> None:
    await api.put(stored("resp_bobs", owner=BOB, status="in_progress"))
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
        for identity, shown in (("resp_bobs",) * 2, ("resp_none",) * 2, ("%00", "\0")):
            assert await api.refused(method, f"/responses/{identity}{path}") == {
                "status": 404,
                "type": "invalid_request_error",
                "code": "response_not_found",
                "param": None,
                "message": f"Response with id '{shown}' not found.",
            }
    assert await api.get("response", "resp_bobs") is not None
    assert not stopping.stopped


async def test_a_part_of_the_input_is_what_was_asked_for(api: Bench) -> None:
    await api.put(stored(question=question(*"abc")))
    for query, expected in (
        ("", "cba"),
        ("order=asc", "abc"),
        ("limit=1&after=msg_c", "b+"),
        ("order=asc&after=msg_c", ""),
    ):
        page = (await api.ask("GET", f"/responses/resp_1/input_items?{query}")).json()
        found = "".join(item["id"].removeprefix("msg_") for item in page["data"]) + "+" * page["has_more"]
        assert found == expected, query


async def test_a_malformed_query_is_refused(api: Bench) -> None:
    await api.put(stored())
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_out", "after=%00"):
        refused = await api.refused("GET", f"/responses/resp_1/input_items?{query}")
        assert (refused["status"], refused["param"]) == (400, query.partition("=")[0]), query


# --- counting


async def count(api: Bench, name: str = "alice", **body: Any) -> int:
    answer = answer_of(await api.ask("POST", "/responses/input_tokens", body, name=name), "TokenCountsResource")
    assert answer["object"] == "response.input_tokens"
    size: int = answer["input_tokens"]
    return size


async def test_the_official_client_counts(api: Bench) -> None:
    counted = await api.client().responses.input_tokens.count(model="m", input="12345678")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", 2)


async def test_four_bytes_are_a_token(api: Bench) -> None:
    assert await count(api, input="123456789") == 3
    assert await count(api, input="你好", instructions="ab") == 2
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    size = len(json.dumps({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
                          separators=(",", ":"))) + 2  # fmt: skip
    assert await count(api, input="1234", tools=[tool]) == 1 + (size + 3) // 4
    assert await api.get("response", "x") is None


async def test_what_goes_before_counts(api: Bench) -> None:
    await api.put(stored("resp_1", question=question("1234")))
    await api.put(stored("resp_2", question=question("12345678"), history=["resp_1"]))
    assert await count(api, previous_response_id="resp_1") == 1 + 2
    assert await count(api, previous_response_id="resp_2", input="1234") == 3 + 4 + 1
    await api.put(Record(kind="conversation", id="conv_1", owner=ALICE, body={"metadata": {}}))
    store = (await api.storage()).store
    await store.commit(item_records(question("abcd", "efgh"), "conv_1", ALICE))
    assert await count(api, conversation={"id": "conv_1"}, input=[{"id": "msg_abcd"}]) == 3
    packed = compact(question("1234", "5678"), Counter())
    assert await count(api, input=[packed, {"role": "user", "content": "x"}]) == 3


async def test_no_more_counts_than_an_agent_would_see(api: Bench) -> None:
    await api.put(stored("resp_1", question=question(*"abcdefg"), output=[]))
    await api.put(stored("resp_2", question=question("h"), history=["resp_1"]))
    # Eight is the limit here: of nine items before it and one now, the two oldest are left out.
    assert await count(api, previous_response_id="resp_2", input="1234") == (6 + len("Hi there") + 4 + 3) // 4


# --- compaction


async def test_the_official_client_compacts(api: Bench) -> None:
    await api.put(stored())
    compacted = await api.client().responses.compact(
        model="m", previous_response_id="resp_1", input=[{"role": "user", "content": "And now?"}]
    )
    (item,) = compacted.output
    assert item.type == "compaction"
    items = expand([item.to_dict()], Counter(), max_items=9)
    assert [one["id"] for one in items][:2] == ["msg_a", "msg_out"]
    assert items[2]["content"] == [{"type": "input_text", "text": "And now?"}]
    assert (compacted.usage.input_tokens, compacted.usage.output_tokens) == ((1 + 8 + 8 + 3) // 4, 0)
    assert await api.get("response", compacted.id) is None


async def test_a_compaction_is_what_the_specification_says_and_can_be_compacted(api: Bench) -> None:
    first = answer_of(await api.ask("POST", "/responses/compact", {"model": "m", "input": "Hi"}), "CompactResource")
    CompactedResponse.model_validate(first, strict=True)
    again = [*first["output"], {"role": "assistant", "content": "Ho"}]
    second = answer_of(await api.ask("POST", "/responses/compact", {"model": "m", "input": again}), "CompactResource")
    items = expand(second["output"], Counter(), max_items=9)
    assert [item["role"] for item in items] == ["user", "assistant"]


# --- what is malformed


MALFORMED: list[tuple[Any, int, str, str | None]] = [
    ({}, 400, "missing_required_parameter", "input"),
    ({"input": []}, 400, "empty_array", "input"),
    ({"input": 1}, 400, "invalid_type", "input"),
    ({"input": [1]}, 400, "invalid_type", "input[0]"),
    ({"input": "x", "tools": "x"}, 400, "invalid_type", "tools"),
    ({"input": [{"role": "user", "content": "x"}] * 9}, 400, "array_above_max_length", "input"),
    ({"previous_response_id": "resp_none"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": "resp_bobs"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"previous_response_id": "resp_runs"}, 400, "previous_response_not_completed", "previous_response_id"),
    ({"previous_response_id": "resp_orphan"}, 400, "previous_response_not_found", "previous_response_id"),
    ({"conversation": "conv_none"}, 404, "conversation_not_found", "conversation"),
    ({"conversation": "conv_bobs"}, 404, "conversation_not_found", "conversation"),
    ({"conversation": "c", "previous_response_id": "r"}, 400, "mutually_exclusive_parameters", None),
    ({"input": [{"id": "msg_bobs"}]}, 400, "item_not_found", "input"),
    ({"input": [{"id": "msg_none"}]}, 400, "item_not_found", "input"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, 400, "invalid_compaction", "input"),
    (
        {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
        400,
        "invalid_value",
        "input",
    ),
    (b"", 400, "missing_required_parameter", None),
    (b"[]", 400, "invalid_type", None),
]


async def test_a_malformed_request_is_refused(api: Bench) -> None:
    await api.put(
        stored("resp_bobs", owner=BOB),
        stored("resp_runs", status="in_progress"),
        stored("resp_orphan", history=["resp_none"]),
        Record(kind="conversation", id="conv_bobs", owner=BOB, body={"metadata": {}}),
        item_record(BOB, "resp_bobs", "msg_bobs", {}).record,
    )
    for path in ("/responses/input_tokens", "/responses/compact"):
        for case, status, code, param in MALFORMED:
            body = case if isinstance(case, bytes) else {"model": "m", **case}
            refused = await api.refused("POST", path, body)
            assert (refused["status"], refused["code"]) == (status, code), case
            assert param is None or refused["param"] == param, case


async def test_a_compaction_needs_a_model_and_a_count_none(api: Bench) -> None:
    refused = await api.refused("POST", "/responses/compact", {"input": "x"})
    assert (refused["status"], refused["param"], refused["code"]) == (400, "model", "missing_required_parameter")
    assert await count(api, input="x") == 1


async def test_what_names_nothing_stored_opens_no_store(api: Bench) -> None:
    await count(api, input="x")
    await api.ask("POST", "/responses/compact", {"model": "m", "input": "x"})
    assert api.storage.opened is None
