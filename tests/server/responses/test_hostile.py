"""Callers who mean harm to what is stored: refused in good order, told nothing of others, and a burden to nobody."""

import asyncio
import base64
import json
import os
import re
import stat
import zlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer
from agentrun_server.core.events import (
    Annotation,
    Custom,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    Interrupt,
    Progress,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
    TextDelta,
)
from agentrun_server.protocols.openai_responses.items import MAX_BYTES
from agentrun_server.runs.item_record import item_record
from agentrun_server.storage.codec import PAGE_BYTES
from tests.server.storing import ALICE, Api, Speaker, storing
from tests.support.clock import eventually, within
from tests.support.raw_client import Response
from tests.support.response_stream import DONE, ResponseStream
from tests.support.responses_oracle import check_response_stream
from tests.support.serve import owned, serve

PLAIN = re.compile(r"[\w-]{1,256}", re.ASCII)
ODD = [
    "\0", "a\0b", "\r\nX-Evil: 1", "\u2028", "\x85", "\x1b[31m", "../../etc/passwd", "..%2f..%2f", "a/b", "a?b#c", ".",
    "x" * 256, "é", "日本", "\U0001f600", " ", "%", "'; DROP TABLE records; --", '"', "\\", "data: [DONE]\n\n",
]  # fmt: skip
"""Ids that JSON can hold."""


async def echo(request: AgentRequest) -> AsyncIterator[Any]:
    """Say how much was said before."""
    yield str(len(request.messages))


async def use_tool(_: AgentRequest) -> AsyncIterator[Any]:
    """Use a tool of its own that returns a lot."""
    yield FunctionCall("own", "{}", "call_1")
    yield FunctionCallOutput("call_1", "x" * 1_000_000)
    yield "done"


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
async def api(speaker: Speaker) -> AsyncIterator[Api]:
    agents = {"m": echo, "speaker": speaker, "tool": use_tool, "names": call_names}
    async with storing(agents, max_background_runs=5) as running:
        yield running


async def each(api: Api, requests: Iterable[tuple[str, str, bytes | None]], **headers: str) -> list[Response]:
    """Make requests one after the other, on one connection for as long as the server keeps it."""
    answers: list[Response] = []
    named = [("authorization", "Bearer alice"), *headers.items()]
    left = list(requests)
    while left:
        async with api.served.client() as client:
            while left:
                method, path, body = left.pop(0)
                await client.request(method, f"/v1{path}", body, named)
                answers.append(await client.response(head_only=method == "HEAD"))
                if answers[-1].header("connection") == "close":
                    break
    return answers


def is_in_order(answer: Response) -> bool:
    """Tell whether an answer is one of an API in good health, and a refusal does not repeat what was sent."""
    if answer.status == 200:
        return True
    assert 400 <= answer.status < 500, answer
    answer.error()
    return len(answer.body) < 2000


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


# --- what is sent


FIELDS = [
    "model", "input", "instructions", "previous_response_id", "conversation", "store", "background", "stream",
    "stream_options", "include", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "max_output_tokens",
    "temperature", "top_p", "top_logprobs", "text", "reasoning", "truncation", "metadata", "user", "safety_identifier",
    "prompt_cache_key", "prompt_cache_options", "service_tier", "prompt", "moderation", "context_management", "own",
]  # fmt: skip
READ_BY_ALL = ["model", "input", "previous_response_id", "conversation", "tools", "text"]
VALUES = [
    "true", "-1", "1e999", "NaN", "9" * 5000, "[]", "{}", "[null]", "[{}]", '{"id":1}', '{"type":"x"}', '"\\ud800"',
    '"a\\u0000b"', '"\\r\\n\\u2028"', '"../../etc/passwd"', f'"{"x" * 70_000}"', "[" * 150 + "]" * 150,
    '{"a":' * 150 + "1" + "}" * 150, '[{"role":"user","content":{}}]', '[{"type":"item_reference","id":"\\u0000"}]',
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields"),
    [("/responses", FIELDS), ("/responses/input_tokens", READ_BY_ALL), ("/responses/compact", READ_BY_ALL)],
)
async def test_any_value_of_a_field_is_read_or_refused(api: Api, path: str, fields: list[str]) -> None:
    requests: list[tuple[str, str, bytes | None]] = []
    for field in fields:
        others = json.dumps({key: value for key, value in {"model": "m", "input": "x"}.items() if key != field})
        requests += [("POST", path, f'{others[:-1]}, "{field}": {value}}}'.encode()) for value in VALUES]
    for request, answer in zip(requests, await each(api, requests), strict=True):
        assert is_in_order(answer), request
    assert (await api.create()).status == 200


async def test_what_is_said_to_a_conversation_can_be_asked_for_whatever_its_id(api: Api) -> None:
    """Else it could neither be read nor be deleted, or not even be written down."""
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    said = [user(str(place), id=identity) for place, identity in enumerate([*ODD, "plain", "plain"])]
    await api.made(conversation=conversation, input=said)
    added = await api.ask("POST", f"/conversations/{conversation}/items", {"items": said[:20]})
    assert added.status == 200
    items: list[dict[str, Any]] = []
    after = ""
    while True:
        page = (await api.ask("GET", f"/conversations/{conversation}/items?limit=100&order=asc{after}")).json()
        items += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"
    told = [item["content"][0]["text"] for item in items if item["role"] == "user"]
    assert told == [one["content"] for one in (*said, *said[:20])]
    assert all(PLAIN.fullmatch(item["id"]) for item in items)
    assert len({item["id"] for item in items}) == len(items)
    paths = [f"/conversations/{conversation}/items/{item['id']}" for item in items]
    for method in ("GET", "DELETE"):
        assert {answer.status for answer in await each(api, [(method, path, None) for path in paths])} == {200}


async def test_values_that_databases_do_not_have_are_kept(api: Api) -> None:
    odd = "".join(ODD)
    made = await api.made(input=[user(odd)], metadata={odd[:64]: odd}, instructions=odd, user=odd)
    kept = (await api.ask("GET", f"/responses/{made['id']}")).json()
    assert kept == made
    (item,) = (await api.ask("GET", f"/responses/{made['id']}/input_items")).json()["data"]
    assert item["content"][0]["text"] == odd
    goes_on = await api.made(previous_response_id=made["id"])
    assert goes_on["output"][0]["content"][0]["text"] == "3"


SEGMENTS = [
    "%2e%2e", "..%2f..%2fetc", "%00", "a%00b", "%0d%0aX:1", "%E2%80%A8", "x" * 300, "x" * 8000, "%F0%9F%98%80", ".",
    "a%2Fb", "%20", "'", "%22", "%5c", "*", ";x=1", "+", "%25", "resp_%30",
]  # fmt: skip
ROUTES = [
    ("GET", "/responses/{}"), ("GET", "/responses/{}?stream=true"), ("DELETE", "/responses/{}"),
    ("POST", "/responses/{}/cancel"), ("GET", "/responses/{}/input_items"), ("GET", "/conversations/{}"),
    ("POST", "/conversations/{}"), ("DELETE", "/conversations/{}"), ("GET", "/conversations/{}/items"),
    ("POST", "/conversations/{}/items"), ("GET", "/conversations/CONV/items/{}"),
    ("DELETE", "/conversations/CONV/items/{}"), ("GET", "/chat/completions/{}"), ("POST", "/chat/completions/{}"),
    ("DELETE", "/chat/completions/{}"), ("GET", "/chat/completions/{}/messages"),
]  # fmt: skip


async def test_no_path_leads_out_of_what_is_stored(api: Api) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    body = json.dumps({"metadata": {}, "items": [user("x")]}).encode()
    requests = [
        (method, path.replace("CONV", conversation).format(segment), body if method == "POST" else None)
        for method, path in ROUTES
        for segment in SEGMENTS
    ]
    for request, answer in zip(requests, await each(api, requests), strict=True):
        assert answer.status in (400, 404, 405), (request, answer)
        assert "code" in answer.error()


@pytest.mark.parametrize(
    "path",
    ["/responses//{}", "//responses/{}", "/responses/{}//cancel", "/responses/{}/cancel/x", "/responses/{}/Cancel"],
)
async def test_a_path_that_only_looks_like_one_is_none(api: Api, path: str) -> None:
    made = await api.made()
    (answer,) = await each(api, [("GET", path.format(made["id"]), None)])
    assert answer.status == 404


async def test_methods_that_a_path_does_not_have_are_refused_with_those_it_has(api: Api) -> None:
    made = await api.made()
    for path, allowed in [
        (f"/responses/{made['id']}", "DELETE, GET"),
        (f"/responses/{made['id']}/cancel", "POST"),
        ("/conversations", "POST"),
        ("/conversations/x/items", "GET, POST"),
        ("/chat/completions", "GET, POST"),
    ]:
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            answer = await api.ask(method, path)
            assert (answer.status, answer.header("allow")) == (405, allowed), (method, path)
    head = (await each(api, [("HEAD", f"/responses/{made['id']}", None)]))[0]
    assert (head.status, head.body) == (200, b"")
    assert (await api.ask("GET", f"/responses/{made['id']}/")).status == 200


QUERIES = [
    "limit=0", "limit=-1", "limit=101", "limit=1e3", "limit=%D9%A1", "limit=+5", "limit=99999999999999999999",
    "order=x", "order=ASC", "after=x", "after=%00", "after=%ff", f"after={'x' * 300}", "%ff=x",
    "&".join(f"f{n}=x" for n in range(65)),
]  # fmt: skip
FILTERS = [
    "metadata=x", "metadata[=x", "metadata[a]b=x", f"metadata[{'x' * 65}]=x", f"metadata[a]={'x' * 513}",
    "&".join(f"metadata[{n}]=x" for n in range(17)),
]  # fmt: skip
RESUMES = ["stream=maybe", "starting_after=1", "stream=1&starting_after=-1", "stream=1&starting_after=9007199254740993"]


async def test_queries_that_make_no_sense_are_refused(api: Api) -> None:
    made = await api.made(stream=False)
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    lists = [f"/responses/{made['id']}/input_items", f"/conversations/{conversation}/items", "/chat/completions"]
    paths = [f"{path}?{query}" for path in lists for query in QUERIES]
    paths += [f"/chat/completions?{query}" for query in FILTERS]
    paths += [f"/responses/{made['id']}?{query}" for query in RESUMES]
    for path, answer in zip(paths, await each(api, [("GET", path, None) for path in paths]), strict=True):
        assert answer.status == 400, path
        assert is_in_order(answer)


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-encoding": "gzip"},
        {"content-encoding": "identity, br"},
    ],
    ids=str,
)
async def test_bodies_that_are_no_plain_json_are_not_looked_at(api: Api, headers: dict[str, str]) -> None:
    paths = ["/responses", "/responses/compact", "/conversations", "/conversations/x/items", "/chat/completions/x"]
    body = zlib.compress(b'{"model":"m","input":"x"}')
    for answer in await each(api, [("POST", path, body) for path in paths], **headers):
        assert answer.status == 415
        answer.error()


async def test_a_web_page_cannot_ask_in_the_name_of_who_looks_at_it() -> None:
    """A page of any site may send forms and text without asking first (CORS); where the browser is may be enough."""
    body = json.dumps({"model": "m", "input": "x", "messages": [user("x")]}).encode()
    origin = ("origin", "https://evil.example")
    async with serve(AgentRunServer(echo)) as served:
        for path in ("/v1/responses", "/v1/conversations", "/v1/chat/completions", "/v1/responses/compact"):
            for kind in ("text/plain", "Text/Plain;charset=UTF-8", "application/x-www-form-urlencoded", ""):
                answer = await served.ask("POST", path, body, [origin, ("content-type", kind)])
                assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type"), (path, kind)
                assert (await served.ask("POST", path, body, [("content-type", kind)])).status == 200, "it is curl's"
            # What a browser has asked for before: JSON, or a header of its own.
            for asked in (("content-type", "application/json"), ("authorization", "Bearer x"), ("api-key", "x")):
                headers = (
                    [origin, ("content-type", "text/plain"), asked] if asked[0] != "content-type" else [origin, asked]
                )
                assert (await served.ask("POST", path, body, headers)).status == 200
        assert (await served.ask("GET", "/v1/chat/completions", None, [origin])).status == 200


# --- whose it is


async def test_what_is_somebody_elses_is_not_there(api: Api) -> None:
    """No verb tells a foreign id from one that never was."""
    response = await api.made()
    background = (await api.create(model="speaker", background=True)).json()
    conversation = (await api.ask("POST", "/conversations", {"items": [user("x")]})).json()["id"]
    item = (await api.ask("GET", f"/conversations/{conversation}/items")).json()["data"][0]["id"]
    chat = {"model": "m", "store": True, "messages": [user("x")]}
    completion = (await api.ask("POST", "/chat/completions", chat)).json()["id"]
    mine = (await api.ask("POST", "/conversations", {}, name="bob")).json()["id"]
    my_response = (await api.made(name="bob"))["id"]

    async def ask(method: str, path: str, identity: str, body: Any) -> tuple[Any, ...]:
        sent = json.loads(json.dumps(body).replace("ID", identity))
        answer = await api.ask(method, path.replace("ID", identity), sent, name="bob")
        told = [name for name, _ in answer.headers]
        return answer.status, told, answer.body.decode().replace(identity, "ID")

    objects: dict[str, list[tuple[str, str, Any]]] = {
        "response": [
            ("GET", "/responses/ID", None),
            ("GET", "/responses/ID?stream=true", None),
            ("GET", "/responses/ID/input_items", None),
            ("POST", "/responses/ID/cancel", None),
            ("DELETE", "/responses/ID", None),
            ("POST", "/responses", {"model": "m", "input": "x", "previous_response_id": "ID"}),
            ("POST", "/responses/input_tokens", {"model": "m", "input": "x", "previous_response_id": "ID"}),
            ("POST", "/responses/compact", {"model": "m", "previous_response_id": "ID"}),
        ],
        "conversation": [
            ("GET", "/conversations/ID", None),
            ("POST", "/conversations/ID", {"metadata": {}}),
            ("DELETE", "/conversations/ID", None),
            ("GET", "/conversations/ID/items", None),
            ("POST", "/conversations/ID/items", {"items": [user("x")]}),
            ("GET", f"/conversations/ID/items/{item}", None),
            ("DELETE", f"/conversations/ID/items/{item}", None),
            ("POST", "/responses", {"model": "m", "input": "x", "conversation": "ID"}),
            ("POST", "/responses/input_tokens", {"model": "m", "input": "x", "conversation": "ID"}),
        ],
        "item": [
            ("GET", f"/conversations/{mine}/items/ID", None),
            ("DELETE", f"/conversations/{mine}/items/ID", None),
            ("GET", f"/conversations/{mine}/items?after=ID", None),
            ("GET", f"/responses/{my_response}/input_items?after=ID", None),
            ("POST", f"/conversations/{mine}/items", {"items": [{"type": "item_reference", "id": "ID"}]}),
            ("POST", "/responses", {"model": "m", "input": [{"type": "item_reference", "id": "ID"}]}),
        ],
        "completion": [
            ("GET", "/chat/completions/ID", None),
            ("POST", "/chat/completions/ID", {"metadata": {}}),
            ("DELETE", "/chat/completions/ID", None),
            ("GET", "/chat/completions/ID/messages", None),
            ("GET", "/chat/completions?after=ID", None),
        ],
    }
    ids = {"response": [response["id"], background["id"]], "conversation": [conversation], "item": [item]}
    for kind, requests in objects.items():
        for identity in ids.get(kind, [completion]):
            unknown = identity[:-32] + "0" * 32
            for method, path, body in requests:
                foreign = await ask(method, path, identity, body)
                assert foreign[0] in (400, 404), (method, path, foreign)
                assert foreign == await ask(method, path, unknown, body), (method, path)
    assert (await api.ask("GET", "/chat/completions", name="bob")).json()["data"] == []
    ended = (await api.ask("POST", f"/responses/{background['id']}/cancel")).json()
    assert ended["status"] == "cancelled", "it ran until now"
    assert (await api.ask("GET", f"/conversations/{conversation}/items")).json()["data"][0]["id"] == item


async def test_a_key_belongs_to_its_owner_and_its_route(api: Api) -> None:
    key = ("idempotency-key", "k")
    first = (await api.create(key)).json()
    assert (await api.create(key)).json() == first
    assert (await api.create(key, name="bob")).json()["id"] != first["id"]
    assert (await api.create(key, input="other")).error()["code"] == "idempotency_key_reused"
    assert (await api.create(key, input="other", name="bob")).error()["code"] == "idempotency_key_reused"
    chat = {"model": "m", "messages": [user("x")]}
    assert (await api.ask("POST", "/chat/completions", chat, key)).status == 200


@pytest.mark.parametrize("path", ["/responses", "/chat/completions"])
async def test_keys_are_plain_text_and_one(api: Api, path: str) -> None:
    body = {"model": "m", **({"input": "x"} if path == "/responses" else {"messages": [user("x")]})}
    for keys in (["a", "b"], [""], ["x" * 256], ["\xe9"], ["a\tb"]):
        answer = await api.ask("POST", path, body, *[("idempotency-key", key) for key in keys])
        assert (answer.status, answer.error()["param"]) == (400, "Idempotency-Key"), keys
    assert await api.stored() == []
    same = await api.ask("POST", path, body, ("idempotency-key", "a"), ("idempotency-key", "a"))
    assert same.status == 200


# --- how much it is


async def test_an_item_that_is_referred_to_again_and_again_is_not_made_a_thousand_of(api: Api) -> None:
    made = await api.made(input="x" * 1_000_000)
    (item,) = (await api.ask("GET", f"/responses/{made['id']}/input_items")).json()["data"]
    refers = {"type": "item_reference", "id": item["id"]}
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    assert (await api.create(input=[refers] * 3)).status == 200
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/responses", {"model": "m", "input": [refers] * 2000}),
        ("/responses", {"model": "m", "input": [refers] * 2000, "store": False}),
        ("/responses/compact", {"model": "m", "input": [refers] * 2000}),
        ("/responses/input_tokens", {"model": "m", "input": [refers] * 2000}),
        (f"/conversations/{conversation}/items", {"items": [refers] * 20}),
    ]
    for path, body in asked:
        param = "items" if "items" in body else "input"
        assert await api.refused("POST", path, body) == (400, "context_length_exceeded", param)


async def test_a_call_that_is_sent_back_without_its_result_again_and_again_is_not_made_a_thousand_of(api: Api) -> None:
    made = await api.made(model="tool")
    call = next(item for item in made["output"] if item["type"] == "mcp_call")
    bare = {"type": "mcp_call", "id": call["id"], "name": "own", "arguments": "{}"}
    assert (await api.create(input=[bare, user("x")])).status == 200
    body = {"model": "m", "input": [bare] * 2000}
    assert await api.refused("POST", "/responses", body) == (400, "context_length_exceeded", "input")


async def test_different_items_that_are_referred_to_have_the_same_bound(api: Api) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    await keep_items(api, conversation, *["x" * (MAX_BYTES // 3)] * 3)
    refers = [{"type": "item_reference", "id": f"item_{n}"} for n in range(3)]
    assert (await api.create(input=refers[:2], store=False)).status == 200
    body = {"model": "m", "input": refers, "store": False}
    assert await api.refused("POST", "/responses", body) == (400, "context_length_exceeded", "input")


async def keep_items(api: Api, conversation: str, *texts: str) -> None:
    """Add messages to a conversation, larger ones than a request may have."""
    for n, text in enumerate(texts):
        content = [{"type": "input_text", "text": text}]
        body = {"type": "message", "id": f"item_{n}", "role": "user", "content": content, "status": "completed"}
        await (await api.store()).commit([item_record(ALICE, conversation, f"item_{n}", body)])


def packed(text: bytes) -> dict[str, Any]:
    content = base64.urlsafe_b64encode(zlib.compress(text, 9)).decode()
    return {"type": "compaction", "encrypted_content": f"agentrun1.{content}"}


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([packed(b'[{"type":"x","v":"' + b"x" * 6_000_000 + b'"}]')] * 3, "invalid_compaction"),
        ([packed(b'[{"type":"x","v":[' + b"{}," * 2_000_000 + b"{}]}]")], "too_many_values"),
        ([packed(b'[{"type":"x","v":[' + b"1," * 2_000_000 + b"1]}]")], "too_many_values"),
        ([packed(b"[" + b",".join([b'{"role":"user","content":"x"}'] * 1500) + b"]")] * 2, "array_above_max_length"),
        ([packed(b'[{"type":"x","v":' + b"[" * 900 + b"]" * 900 + b"}]")], "invalid_json"),
        ([packed(b'[{"type":"x","v":1e999}]')], "invalid_json"),
        ([packed(json.dumps([packed(b"[]")]).encode())], "invalid_compaction"),
        ([packed(b'[{"type":"item_reference","id":"x"}]')], "invalid_compaction"),
    ],
    ids=["three halves", "objects", "numbers", "items", "depth", "infinity", "nested", "reference"],
)
async def test_a_compaction_is_no_bomb(api: Api, items: list[dict[str, Any]], code: str) -> None:
    for path in ("/responses", "/responses/compact"):
        assert (await api.refused("POST", path, {"model": "m", "input": items}))[:2] == (400, code)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/responses", "input"),
        ("/responses", "own"),
        ("/responses/compact", "input"),
        ("/responses/input_tokens", "tools"),
        ("/conversations", "items"),
        ("/chat/completions", "messages"),
    ],
)
async def test_a_body_of_very_many_values_is_refused(api: Api, path: str, field: str) -> None:
    """Ten megabytes of them would hold up everybody for seconds."""
    body = b'{"model":"m","%s":[%s{}]}' % (field.encode(), b"{}," * 200_000)
    assert (await api.refused("POST", path, body))[:2] == (400, "too_many_values")


async def test_large_objects_are_read_a_few_at_a_time(api: Api) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    await keep_items(api, conversation, *["x" * (PAGE_BYTES * 2 // 3)] * 4)
    path = f"/conversations/{conversation}/items?limit=100&order=asc"
    first = (await api.ask("GET", path)).json()
    assert ([item["id"] for item in first["data"]], first["has_more"]) == (["item_0", "item_1"], True)
    rest = (await api.ask("GET", f"{path}&after=item_1")).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (["item_2", "item_3"], False)
    made = await api.made(conversation=conversation)
    assert made["output"][0]["content"][0]["text"] == "3", "as much history as there is room for, and the question"


async def test_a_long_conversation_costs_no_more_with_each_turn(api: Api) -> None:
    made = await api.made()
    for _ in range(90):
        made = await api.made(previous_response_id=made["id"])
    assert made["output"][0]["content"][0]["text"] == str(2 * 90 + 1)
    record = await api.record(made["id"])
    assert record.size < 10_000
    assert len(record.body["history"]) < 90


async def test_there_are_never_more_runs_in_the_background_than_allowed(api: Api, speaker: Speaker) -> None:
    await api.made()
    before = owned()
    answers = await within(asyncio.gather(*(api.create(model="speaker", background=True) for _ in range(20))))
    statuses = [answer.status for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (5, 15)
    assert (await api.create()).status == 200, "others are served"
    for answer in answers:
        if answer.status == 200:
            assert (await api.ask("POST", f"/responses/{answer.json()['id']}/cancel")).json()["status"] == "cancelled"
        else:
            assert answer.header("retry-after") is not None
    await api.quiet()

    def nothing_left() -> None:
        left = [thing for kind, things in owned().items() for thing in things - before[kind]]
        assert not left

    await eventually(nothing_left)


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_many_who_follow_a_run_all_hear_of_its_end(api: Api, speaker: Speaker, how: str) -> None:
    made = (await api.create(model="speaker", background=True)).json()
    await speaker.started()
    speaker.say("word")
    followers = [api.served.client() for _ in range(30)]
    try:
        streams: list[ResponseStream] = []
        for client in followers:
            await client.__aenter__()
            await client.request(
                "GET", f"/v1/responses/{made['id']}?stream=true", None, [("authorization", "Bearer alice")]
            )
            streams.append(ResponseStream(client))
        await within(asyncio.gather(*(stream.until("response.output_text.delta") for stream in streams)))
        path = f"/responses/{made['id']}"
        ended = api.ask("POST", f"{path}/cancel") if how == "cancel" else api.ask("DELETE", path)
        assert (await ended).status == 200
        rests = await within(asyncio.gather(*(stream.rest() for stream in streams)))
        assert len(set(rests)) == 1
        assert b"event: response.incomplete" in rests[0]
    finally:
        for client in followers:
            await client.__aexit__(None, None, None)
    await api.quiet()


async def test_who_asks_for_what_comes_after_the_end_gets_the_end(api: Api) -> None:
    made = await api.made(background=True)
    await api.ended(made["id"])
    answer = await api.ask("GET", f"/responses/{made['id']}?stream=true&starting_after={2**53}")
    assert answer.body.decode() == f"data: {DONE}\n\n"


async def test_a_follower_holds_no_more_than_a_piece_of_a_long_stream(api: Api, speaker: Speaker) -> None:
    made = (await api.create(model="speaker", background=True)).json()
    speaker.finish(*["x" * 60_000] * 50)
    await api.ended(made["id"])
    runs = api.server._runs
    assert runs is not None
    batches = [batch async for batch in runs.follow(await api.record(made["id"]), -1)]
    # The last events repeat all that was said: each may be as long as that.
    assert max(sum(map(len, batch[:-1])) for batch in batches) < 2 * 1024 * 1024


# --- what an agent says


def events(name: str) -> list[Any]:
    """Return events with `name` wherever an agent can put text of its own."""
    return [
        ReasoningDelta(name), Step(name), Progress(name), Custom(name or "x", name), StateUpdate({name: name}),
        FunctionCall(f"own{name}", json.dumps(name), f"o{name}"), FunctionCallOutput(f"o{name}", name, f"own{name}"),
        TextDelta(name), Annotation({"type": "url_citation", "url": name, "title": name, name: name}),
        RefusalDelta(name), FunctionCallDelta(name, "f", f"c{name}", 0),
        Interrupt(f"i{name}", name, "input", None, [name], {name: name}, name),
    ]  # fmt: skip


async def call_names(request: AgentRequest) -> AsyncIterator[Any]:
    odd = [*ODD, "\ud800", "\udfff\ud800", "\n\nevent: response.completed\ndata: {}\n\n"]
    for event in events(odd[int(request.messages[-1].text)]):
        yield event


async def test_no_name_that_an_agent_makes_up_breaks_a_stream(api: Api) -> None:
    tools = [{"type": "function", "name": "f"}]
    for place in range(len(ODD) + 3):
        answer = await api.create(model="names", input=str(place), stream=True, tools=tools)
        parsed = check_response_stream(answer.body)
        again = await api.ask("GET", f"/responses/{parsed.response['id']}?stream=true")
        assert again.body == answer.body


# --- what is left behind


def home() -> Path:
    return Path(os.environ["AGENTRUN_HOME"])


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home().iterdir()}


def modes() -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home(), *home().iterdir())}


async def test_only_its_owner_can_read_what_is_stored(api: Api) -> None:
    await api.made()
    found = modes()
    assert found.pop(home().name) == 0o700
    assert {"agentrun.db", "agentrun.db-wal"} <= found.keys()
    assert set(found.values()) == {0o600}


async def test_no_credential_is_stored_and_nothing_that_was_said_is_logged(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    said = {"input": "canary-said", "instructions": "canary-said", "metadata": {"a": "canary-said"}}
    token = "canary-" + "token"
    more = [("idempotency-key", "canary-key"), ("x-conversation-id", "canary-session"), ("cookie", "canary-cookie")]
    await api.create(*more, name=token, **said)
    await api.create(name=token, background=True, **said)
    await api.create(name=token, input=[{"role": "canary-said", "content": "canary-said"}])
    await api.ask("POST", "/responses", b'{"model":"m","input":canary-said', name=token)
    await api.ask("GET", "/responses/canary-said?stream=canary-said", name=token)
    stored = b"".join(files().values())
    assert b"canary-said" in stored
    assert f"test|{token}".encode() in stored, "whose it is: the subject, which is the token in these tests"
    for secret in (b"Bearer", b"canary-key", b"canary-cookie"):
        assert secret not in stored
    logged = [json.dumps(vars(one), default=str) for one in caplog.records if one.name.startswith("agentrun_server")]
    assert logged
    assert "canary" not in "".join(logged)


async def test_what_is_deleted_is_gone_from_the_disk(api: Api) -> None:
    conversation = (await api.ask("POST", "/conversations", {"items": [user("canary-1")]})).json()["id"]
    made = [
        await api.made(input="canary-2", metadata={"canary-3": "canary-4"}, instructions="canary-5"),
        await api.made(input="canary-6", conversation=conversation),
        (await api.create(("idempotency-key", "canary-7"), input="canary-8", stream=False)).json(),
        (await api.create(input="canary-9", background=True)).json(),
    ]
    await api.ended(made[-1]["id"])
    chat = {"model": "m", "store": True, "messages": [user("canary-10")], "metadata": {"canary-11": "x"}}
    completion = (await api.ask("POST", "/chat/completions", chat)).json()["id"]
    assert b"canary" in b"".join(files().values())
    paths = [f"/responses/{one['id']}" for one in made]
    for path in (*paths, f"/conversations/{conversation}", f"/chat/completions/{completion}"):
        assert (await api.ask("DELETE", path)).status == 200

    def gone() -> None:
        left = {name: re.findall(rb"canary-\d+", data) for name, data in files().items() if b"canary" in data}
        assert not left

    await eventually(gone)


async def test_a_completion_is_gone_from_the_disk_though_it_had_a_key(api: Api, speaker: Speaker) -> None:
    chat = {"model": "speaker", "store": True, "messages": [user("x")]}
    speaker.finish("canary")
    made = await api.ask("POST", "/chat/completions", chat, ("idempotency-key", "k"))
    assert (await api.ask("DELETE", f"/chat/completions/{made.json()['id']}")).status == 200
    await eventually(lambda: b"canary" not in b"".join(files().values()), limit=0.5)
