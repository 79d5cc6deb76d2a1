"""What a request for a response refers to: found among what its caller has stored, or refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrun_server import AgentRequest
from agentrun_server.storage.contracts import Update
from tests.server.storing import Api, Speaker, storing

MAX = 8


async def history(request: AgentRequest) -> str:
    """Tell what has been said so far."""
    return json.dumps([[message.role, message.text] for message in request.messages])


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
async def api(speaker: Speaker) -> AsyncIterator[Api]:
    agents = {"m": history, "speaker": speaker}
    async with storing(agents, max_messages=MAX, store_ttl=1000.0) as running:
        yield running


async def said(api: Api, **fields: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """Ask; return the response, and what the agent was told."""
    made = await api.made(**fields)
    return made, json.loads(text_of(made))


def text_of(made: dict[str, Any]) -> str:
    text: str = made["output"][0]["content"][0]["text"]
    return text


def item(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


# --- what is not there


async def test_a_request_goes_on_from_one_thing_only(api: Api) -> None:
    body = {"model": "m", "input": "x", "previous_response_id": "resp_1", "conversation": "conv_1"}
    assert (await api.refused("POST", "/responses", body))[:2] == (400, "mutually_exclusive_parameters")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"previous_response_id": "resp_none"}, (400, "previous_response_not_found", "previous_response_id")),
        ({"previous_response_id": "%00\0"}, (400, "previous_response_not_found", "previous_response_id")),
        ({"input": [{"type": "item_reference", "id": "msg_none"}]}, (400, "item_not_found", "input")),
        ({"input": [item("x")] * (MAX + 1)}, (400, "array_above_max_length", "input")),
        ({"input": []}, (400, "empty_array", "input")),
        ({"model": "other"}, (400, "model_not_found", "model")),
    ],
)
@pytest.mark.parametrize("store", [True, False])
async def test_what_is_not_there_is_refused(
    api: Api, fields: dict[str, Any], expected: tuple[Any, ...], store: bool
) -> None:
    body = {"model": "m", "input": "x", "store": store, **fields}
    assert await api.refused("POST", "/responses", body) == expected


@pytest.mark.parametrize("conversation", ["conv_none", {"id": "conv_none"}])
async def test_a_conversation_that_is_not_there_is_refused(api: Api, conversation: Any) -> None:
    body = {"model": "m", "input": "x", "conversation": conversation}
    assert await api.refused("POST", "/responses", body) == (404, "conversation_not_found", "conversation")


@pytest.mark.parametrize("items", [[{"type": "reasoning", "summary": []}], [{"type": "hologram"}]])
async def test_a_request_without_any_message_is_refused(api: Api, items: list[dict[str, Any]]) -> None:
    conversation = (await api.ask("POST", "/conversations", {})).json()["id"]
    for fields in ({"input": items}, {"conversation": conversation}):
        assert await api.refused("POST", "/responses", {"model": "m", **fields}) == (400, "invalid_value", "input")
    # What a prompt says, the agent knows.
    assert (await said(api, input=items, prompt={"id": "greeting"}))[1] == []


async def test_a_model_must_be_there_only_where_it_is_asked(api: Api) -> None:
    refused = await api.refused("POST", "/responses", {"model": "other", "input": "x"})
    assert refused == (400, "model_not_found", "model")
    for path in ("/responses/input_tokens", "/responses/compact"):  # clients compact with a model of OpenAI's
        assert (await api.ask("POST", path, {"model": "other", "input": "x"})).status == 200


async def test_what_belongs_to_another_is_not_there(api: Api) -> None:
    made = await api.made(name="bob")
    conversation = (await api.ask("POST", "/conversations", {"items": [item("x")]}, name="bob")).json()["id"]
    for fields, code in (
        ({"previous_response_id": made["id"]}, "previous_response_not_found"),
        ({"conversation": conversation}, "conversation_not_found"),
        ({"input": [{"id": made["output"][0]["id"]}]}, "item_not_found"),
    ):
        unknown = json.loads(json.dumps(fields).replace(made["id"], "resp_none").replace(conversation, "conv_none"))
        for given in (fields, unknown):
            refused = await api.refused("POST", "/responses", {"model": "m", "input": "x", **given})
            if "input" not in given or given is fields:
                assert refused[1] == code
    assert (await api.create(name="bob", previous_response_id=made["id"])).status == 200


async def test_a_response_that_has_not_ended_cannot_be_continued(api: Api, speaker: Speaker) -> None:
    made = await api.made(model="speaker", background=True)
    body = {"model": "m", "input": "x", "previous_response_id": made["id"]}
    await speaker.started()
    assert await api.refused("POST", "/responses", body) == (
        400,
        "previous_response_not_completed",
        "previous_response_id",
    )
    speaker.finish("said")
    await api.ended(made["id"])
    assert (await api.ask("POST", "/responses", body)).status == 200


async def test_a_response_whose_past_was_deleted_cannot_be_continued(api: Api) -> None:
    first, _ = await said(api, input="one")
    second, _ = await said(api, input="two", previous_response_id=first["id"])
    await api.ask("DELETE", f"/responses/{first['id']}")
    refused = await api.refused(
        "POST", "/responses", {"model": "m", "input": "three", "previous_response_id": second["id"]}
    )
    assert refused == (400, "previous_response_not_found", "previous_response_id")


async def test_a_response_that_was_not_stored_cannot_be_continued(api: Api) -> None:
    made = await api.made(store=False)
    assert made["store"] is False
    refused = await api.refused("POST", "/responses", {"model": "m", "input": "x", "previous_response_id": made["id"]})
    assert refused == (400, "previous_response_not_found", "previous_response_id")


# --- what was said before


async def test_instructions_are_those_of_the_request_alone(api: Api) -> None:
    first, told = await said(api, input="one", instructions="be brief")
    assert told == [["system", "be brief"], ["user", "one"]]
    _, told = await said(api, input="two", previous_response_id=first["id"], instructions="be kind")
    assert told == [["system", "be kind"], ["user", "one"], ["assistant", text_of(first)], ["user", "two"]]


async def test_a_conversation_that_forks_has_two_futures(api: Api) -> None:
    first, _ = await said(api, input="one")
    pasts = [(await said(api, input=text, previous_response_id=first["id"]))[1] for text in ("left", "right")]
    assert [told[-1] for told in pasts] == [["user", "left"], ["user", "right"]]
    assert pasts[0][:-1] == pasts[1][:-1] == [["user", "one"], ["assistant", text_of(first)]]


async def test_what_is_not_stored_may_go_on_from_what_is(api: Api) -> None:
    first, _ = await said(api, input="one")
    made, told = await said(api, input="two", previous_response_id=first["id"], store=False)
    assert told == [["user", "one"], ["assistant", text_of(first)], ["user", "two"]]
    assert (await api.ask("GET", f"/responses/{made['id']}")).status == 404


async def test_items_are_referred_to_in_any_order(api: Api) -> None:
    first, _ = await said(api, input=[item("one"), item("two")])
    listed = (await api.ask("GET", f"/responses/{first['id']}/input_items?order=asc")).json()["data"]
    ids = [one["id"] for one in listed]
    _, told = await said(api, input=[{"id": ids[1]}, item("x"), {"type": "item_reference", "id": ids[0]}])
    assert told == [["user", "two"], ["user", "x"], ["user", "one"]]


async def test_an_item_with_an_id_of_the_clients_is_not_found_by_it(api: Api) -> None:
    """It comes again with each request, and would be found in many responses."""
    await said(api, input=[item("one", id="msg_mine")])
    refused = await api.refused("POST", "/responses", {"model": "m", "input": [{"id": "msg_mine"}]})
    assert refused[:2] == (400, "item_not_found")


@pytest.mark.parametrize("conversation", [False, True])
async def test_a_history_has_a_bound(api: Api, conversation: bool) -> None:
    """What is too much loses its beginning, up to where a user speaks."""
    follow: dict[str, Any] = {}
    if conversation:
        follow = {"conversation": (await api.ask("POST", "/conversations", {})).json()["id"]}
    for turn in range(6):
        made, told = await said(api, input=f"{turn}", **follow)
        if not conversation:
            follow = {"previous_response_id": made["id"]}
        assert told[-1] == ["user", f"{turn}"]
        assert len(told) == min(2 * turn + 1, MAX - 1)
        assert told[0][0] == "user"


@pytest.mark.parametrize("conversation", [False, True])
@pytest.mark.parametrize("count", [MAX - 1, MAX])
async def test_an_input_as_long_as_it_may_be_leaves_no_room_for_a_history(
    api: Api, conversation: bool, count: int
) -> None:
    fields: dict[str, Any] = {}
    if conversation:
        fields = {"conversation": (await api.ask("POST", "/conversations", {})).json()["id"]}
    first, _ = await said(api, input="one", **fields)
    for follow in ({"previous_response_id": first["id"]}, fields or {"previous_response_id": first["id"]}):
        _, told = await said(api, input=[item(f"{n}") for n in range(count)], **follow)
        assert told == [["user", f"{n}"] for n in range(count)]


# --- what is kept


async def test_what_a_conversation_goes_on_from_lives_as_long_as_it_does(api: Api) -> None:
    first, _ = await said(api, input="one")
    second, _ = await said(api, input="two", previous_response_id=first["id"])
    store = await api.store()
    expected = (await api.record(second["id"])).expires_at
    assert expected is not None
    soon = expected - 900.0
    for made in (first, second):
        await store.commit([Update(kind="response", id=made["id"], expires_at=soon)])
    await said(api, input="three", previous_response_id=second["id"])
    for made in (first, second):
        found = (await api.record(made["id"])).expires_at
        assert found is not None
        assert found >= expected


async def test_the_request_is_kept_only_of_what_another_may_have_to_run(api: Api, speaker: Speaker) -> None:
    made = await api.made(model="speaker", background=True, input="the question", metadata={"a": "b"})
    await speaker.started()
    body = (await api.record(made["id"])).body
    assert body["call"] == {
        "model": "speaker", "input": "the question", "background": True, "metadata": {"a": "b"},
    }  # fmt: skip
    assert body["principal"] == {"subject": "alice", "issuer": "test", "scopes": ["use"], "claims": {"t": 1}}
    speaker.finish("said")
    await api.ended(made["id"])
    body = (await api.record(made["id"])).body
    assert {"call", "principal", "worker"}.isdisjoint(body)
    assert "call" not in (await api.record((await api.made())["id"])).body


# --- a server that stores nothing


async def test_without_a_store_nothing_is_kept_and_nothing_found() -> None:
    async with storing(history, store_url=None) as api:
        made = await api.made(store=True)
        assert made["store"] is False
        for method, path, body, expected in (
            ("POST", "/responses", {"background": True}, (400, "invalid_value", "background")),
            ("POST", "/responses", {"previous_response_id": "r"}, (400, "previous_response_not_found",
                                                                   "previous_response_id")),
            ("POST", "/responses", {"conversation": "c"}, (404, "conversation_not_found", "conversation")),
            ("POST", "/responses", {"input": [{"id": "m"}]}, (400, "item_not_found", "input")),
        ):  # fmt: skip
            refused = await api.refused(method, path, {"model": "m", "input": "x", **body})
            assert (refused[0], refused[2]) == (expected[0], expected[2])
        assert (await api.ask("GET", f"/responses/{made['id']}")).status in (404, 405)
