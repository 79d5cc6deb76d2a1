"""The Responses API as its clients see it: over real sockets, by bytes and by the official client."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.responses import Response as OpenAIResponse

from agentrun_server import AgentRequest, AgentRunServer, events
from tests.conformance.requirements import requirement
from tests.conformance.response_asking import Asking, asking
from tests.support.clock import eventually, within
from tests.support.kept import Told, as_caller, keeping, official
from tests.support.response_stream import ResponseStream
from tests.support.serve import serve
from tests.support.sse import parse_events

FUNCTION: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}}


async def agent(request: AgentRequest) -> AsyncIterator[Any]:
    """Do what the last message names; tell of what was said before."""
    last = request.messages[-1]
    match last.text.split():
        case ["everything"]:
            yield events.ReasoningDelta("hm")
            yield "Let me "
            await asyncio.sleep(0)
            yield "see."
            yield events.FunctionCall("own", '{"a": 1}', id="call_1")
            yield events.FunctionCallOutput("call_1", "seen")
            yield events.FunctionCall("own", "{}", id="call_2")
            yield events.FunctionCallOutput("call_2", "broken", is_error=True)
            yield "Done."
            yield events.Annotation.url_citation("https://e.com", "E", 0, 5)
            yield events.Usage(3, 4, cached_tokens=1, reasoning_tokens=2)
        case ["call", *names]:
            for name in names:
                yield events.FunctionCall(name, "" if name == "f" else "text", id=f"call_{name}")
        case ["fail", when]:
            if when == "late":
                yield "It is"
                await asyncio.sleep(0)
            raise ValueError("a secret")
        case ["cut"]:
            yield "cut"
            yield events.Finish("length")
        case ["tell", name]:
            value = request.messages if name == "messages" else getattr(request, name, None)
            yield json.dumps(value)
        case _:
            yield " ".join(message.text for message in request.messages)


@pytest.fixture
async def api() -> AsyncIterator[Asking]:
    async with asking(agent) as running:
        yield running


async def told(api: Asking, what: str, **fields: Any) -> Any:
    """Return what the agent's request holds under the name `what`."""
    response = await api.client.responses.create(model="agent", **{"input": f"tell {what}", **fields})
    return json.loads(response.output_text)


class TestStreams:
    @requirement("responses.stream.frames", "responses.stream.sequence", "responses.stream.done")
    async def test_an_event_is_a_named_block_with_the_next_number(self, api: Asking) -> None:
        answer = await api.create(input="everything", stream=True)
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert b"\r" not in answer.body
        *blocks, end = answer.body.decode().split("\n\n")[:-1]
        for number, block in enumerate(blocks):
            name, data = block.split("\n")
            event = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            assert event["sequence_number"] == number
        assert end == "data: [DONE]"

    @requirement("responses.stream.order", "responses.stream.output-index", "responses.stream.items")
    async def test_every_item_is_opened_grows_and_is_closed_before_the_next(self, api: Asking) -> None:
        parsed = await api.streamed(input="everything")
        assert parsed.types[:2] == ["created", "in_progress"]
        assert parsed.types[-1] == "completed"
        added = [event for event in parsed.events if event["type"] == "response.output_item.added"]
        assert [event["output_index"] for event in added] == list(range(5))
        kinds = ["reasoning", "message", "mcp_call", "mcp_call", "message"]
        assert [event["item"]["type"] for event in added] == kinds
        assert [item["type"] for item in parsed.response["output"]] == kinds
        assert [item.get("phase") for item in parsed.response["output"] if item["type"] == "message"] == [
            "commentary",
            "final_answer",
        ]

    @requirement("responses.stream.function-call", "responses.request.tools")
    async def test_arguments_come_by_deltas_even_when_there_are_none(self, api: Asking) -> None:
        tools = [FUNCTION, {"type": "custom", "name": "sh"}]
        parsed = await api.streamed(input="call f sh", tools=tools)
        call = [event for event in parsed.events if event.get("output_index") == 0]
        added, delta, done, closed = call
        assert (added["item"]["arguments"], delta["delta"]) == ("", "{}")
        assert (done["name"], done["arguments"], closed["item"]["arguments"]) == ("f", "{}", "{}")
        assert parsed.response["output"][1]["type"] == "custom_tool_call"
        assert parsed.response["output"][1]["input"] == "text"

    @requirement("responses.stream.same-as-body")
    async def test_a_stream_and_a_body_say_the_same(self, api: Asking) -> None:
        parsed, whole = await api.streamed(input="everything"), await api.whole(input="everything")

        def told_without_ids(response: dict[str, Any]) -> dict[str, Any]:
            output = [{key: value for key, value in item.items() if key != "id"} for item in response["output"]]
            return {**response, "output": output, "id": "", "created_at": 0, "completed_at": 0}

        assert told_without_ids(parsed.response) == told_without_ids(whole)

    @requirement("responses.stream.heartbeat")
    async def test_silence_is_filled_with_comments(self) -> None:
        speaker = Told()
        async with asking(speaker, heartbeat_interval=0.02, response_hold=0.02) as api, api.served.client() as client:
            body = json.dumps({"model": "agent", "input": "Hi", "stream": True}).encode()
            await client.request("POST", "/v1/responses", body, as_caller("alice"))
            stream = ResponseStream(client)
            await stream.until("response.in_progress")
            await asyncio.sleep(0.1)
            speaker.end("Hello")
            api_stream = await stream.rest()
        assert stream.comments
        assert b"Hello" in api_stream

    @requirement("responses.stream.created-first", "responses.stream.client")
    async def test_the_stream_helper_puts_the_response_together(self, api: Asking) -> None:
        async with api.client.responses.stream(model="agent", input="everything") as stream:
            seen = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert seen[0] == "response.created"
        assert final.output_text == "Let me see.Done."


class TestObjects:
    @requirement("responses.object.keys", "responses.object.usage")
    async def test_every_key_is_there_whatever_was_asked(self, api: Asking) -> None:
        whole = await api.whole(input="everything")
        assert whole["usage"] == {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 7,
        }
        parsed = await api.streamed()
        begun = parsed.events[0]["response"]
        assert begun["usage"] is None
        assert begun.keys() == parsed.response.keys() == whole.keys()
        OpenAIResponse.model_validate(whole, strict=True)

    @requirement("responses.object.echo")
    async def test_what_was_asked_is_repeated_with_its_defaults(self, api: Asking) -> None:
        whole = await api.whole(tools=[FUNCTION], text={}, reasoning={"effort": "low"}, metadata={"a": "b"})
        assert whole["tools"] == [{**FUNCTION, "description": None, "strict": True}]
        assert whole["text"] == {"format": {"type": "text"}}
        assert whole["reasoning"] == {"effort": "low", "summary": None}
        assert whole["metadata"] == {"a": "b"}
        assert (whole["temperature"], whole["truncation"], whole["tool_choice"]) == (1.0, "disabled", "auto")

    @requirement("responses.object.incomplete")
    async def test_an_answer_that_was_cut_says_why(self, api: Asking) -> None:
        whole = await api.whole(input="cut")
        assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})

    @requirement("responses.tools.own")
    @pytest.mark.parametrize("shown", [True, False])
    async def test_tools_of_the_agent_are_mcp_calls_or_hidden(self, shown: bool) -> None:
        async with asking(agent, server_tool_items="mcp_call" if shown else "hidden", server_label="me") as api:
            output = (await api.whole(input="everything"))["output"]
        calls = [item for item in output if item["type"] == "mcp_call"]
        assert not any(item["type"] == "function_call" for item in output)
        if not shown:
            assert not calls
            return
        assert [(call["server_label"], call["status"], call["output"]) for call in calls] == [
            ("me", "completed", "seen"),
            ("me", "failed", None),
        ]
        assert calls[1]["error"]["content"] == [{"type": "text", "text": "broken"}]


class TestErrors:
    @requirement("responses.error.before-first-event")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_failure_before_the_first_event_is_a_status(self, api: Asking, stream: bool) -> None:
        answer = await api.create(input="fail early", stream=stream)
        assert (answer.status, answer.header("x-should-retry")) == (500, "false")
        assert answer.error()["code"] == "agent_error"
        assert b"secret" not in answer.body

    @requirement("responses.error.mid-stream")
    async def test_a_failure_behind_it_is_an_error_in_both_shapes_then_failed_then_the_end(self, api: Asking) -> None:
        answer = await api.create(input="fail late", stream=True)
        parsed = api.judged(answer)
        error = parsed.events[-2]
        nested = {"message": error["message"], "type": "server_error", "param": None, "code": "agent_error"}
        assert (error["type"], error["code"], error["error"]) == ("error", "agent_error", nested)
        assert parsed.types[-1] == "failed"
        assert parsed.response["error"] == {"code": "server_error", "message": error["message"]}
        assert parse_events(answer.body)[-1].data == "[DONE]"
        assert b"secret" not in answer.body

    @requirement("responses.error.client-raises")
    @pytest.mark.parametrize(("when", "stream"), [("early", False), ("early", True), ("late", False), ("late", True)])
    async def test_the_official_client_raises(self, api: Asking, when: str, stream: bool) -> None:
        with pytest.raises(openai.APIError) as raised:  # noqa: PT012 - the call or the stream
            answer: Any = await api.client.responses.create(model="agent", input=f"fail {when}", stream=stream)
            _ = [event async for event in answer]
        assert raised.value.code == "agent_error"

    @requirement("responses.error.bad-request")
    @pytest.mark.parametrize(
        ("fields", "code", "param"),
        [
            ({"model": None}, "missing_required_parameter", "model"),
            ({"input": None}, "missing_required_parameter", "input"),
            ({"input": [{"role": "nobody", "content": "Hi"}]}, "invalid_value", "input[0].role"),
            ({"temperature": 3}, "decimal_above_max_value", "temperature"),
            ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
            ({"background": True, "store": False}, "invalid_value", "background"),
        ],
    )
    async def test_a_malformed_request_is_a_400_that_names_the_field(
        self, api: Asking, fields: dict[str, Any], code: str, param: str
    ) -> None:
        error = (answer := await api.create(**fields)).error()
        assert (answer.status, error["code"], error["param"]) == (400, code, param)


class TestRequests:
    @requirement("responses.request.input")
    async def test_input_is_text_or_items_whatever_they_leave_out(self, api: Asking) -> None:
        items: list[Any] = [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
            {"role": "user", "content": "tell messages"},
        ]
        messages = await told(api, "messages", input=items)
        assert [(message["role"], message["content"]) for message in messages] == [
            ("developer", "d"),
            ("user", "u"),
            ("assistant", "a"),
            ("tool", "1"),
            ("user", "tell messages"),
        ]

    @requirement("responses.request.unknown-items")
    async def test_items_of_unknown_types_are_kept(self, api: Asking) -> None:
        made = await api.whole(input=[{"type": "new_thing", "x": 1}, {"role": "user", "content": "Hi"}])
        listed = (await api.ask("GET", f"/responses/{made['id']}/input_items?order=asc")).json()["data"]
        assert [item["type"] for item in listed] == ["new_thing", "message"]
        assert listed[0]["x"] == 1

    @requirement("responses.request.include", "responses.request.null-is-absent")
    async def test_what_to_include_and_null_are_accepted(self, api: Asking) -> None:
        nothing = dict.fromkeys(
            ("instructions", "tools", "tool_choice", "conversation", "previous_response_id", "text", "reasoning")
        )
        made = await api.whole(include=["reasoning.encrypted_content", "something.new"], **nothing)
        assert made["status"] == "completed"

    @requirement("responses.request.tools")
    async def test_tools_reach_the_agent_as_in_chats_and_unknown_ones_as_they_are(self, api: Asking) -> None:
        tools = [{**FUNCTION, "strict": None}, {"type": "web_search"}]
        assert await told(api, "tools", tools=tools) == [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": None}},
            {"type": "web_search"},
        ]

    @requirement("responses.request.metadata")
    async def test_metadata_is_kept_and_given_to_the_agent_within_bounds(self, api: Asking) -> None:
        assert await told(api, "metadata", metadata={"a": "b"}) == {"a": "b"}
        for metadata in ({"a" * 65: "b"}, {"a": "b" * 513}, {f"{n}": "" for n in range(17)}):
            assert (await api.create(metadata=metadata)).status == 400

    @requirement("responses.request.protocol")
    async def test_the_agent_knows_which_protocol_it_answers(self, api: Asking) -> None:
        assert await told(api, "protocol") == "openai_responses"
        assert await told(api, "max_completion_tokens", max_output_tokens=20) == 20

    @requirement("responses.http.aliases")
    @pytest.mark.parametrize("path", ["/v1/responses/", "/openai/v1/responses", "/responses"])
    async def test_it_stands_under_every_prefix(self, api: Asking, path: str) -> None:
        answer = await api.served.ask("POST", path, b'{"model": "agent", "input": "Hi"}', as_caller("alice"))
        assert answer.status == 200


class TestState:
    @requirement("responses.store.retrieve", "responses.store.delete")
    async def test_a_response_is_kept_until_it_is_deleted(self, api: Asking) -> None:
        made = await api.whole(input="everything")
        path = f"/responses/{made['id']}"
        assert (await api.ask("GET", path)).json() == made
        assert (await api.ask("DELETE", path)).json() == {"id": made["id"], "object": "response", "deleted": True}
        assert await api.refused("GET", path) == (404, "response_not_found", None)
        assert await api.refused("DELETE", path) == (404, "response_not_found", None)

    @requirement("responses.store.off")
    async def test_what_is_not_stored_is_not_there(self, api: Asking) -> None:
        made = await api.whole(store=False)
        assert made["store"] is False
        assert await api.refused("GET", f"/responses/{made['id']}") == (404, "response_not_found", None)

    @requirement("responses.store.disabled")
    async def test_a_server_that_stores_nothing_answers_all_the_same_and_says_so(self) -> None:
        async with asking(agent, store_url=None) as api:
            made = await api.whole()
            assert made["store"] is False
            for method, path in (
                ("GET", f"/responses/{made['id']}"),
                ("DELETE", f"/responses/{made['id']}"),
                ("POST", f"/responses/{made['id']}/cancel"),
                ("GET", f"/responses/{made['id']}/input_items"),
                ("POST", "/conversations"),
                ("GET", "/chat/completions"),
            ):
                assert (await api.refused(method, path))[:2] == (404, "storage_disabled")
            body = {"model": "agent", "input": "Hi"}
            assert (await api.refused("POST", "/responses", {**body, "background": True}))[0] == 400
            assert (await api.refused("POST", "/responses", {**body, "previous_response_id": made["id"]}))[0] == 400

    @requirement("responses.store.previous", "responses.store.instructions")
    async def test_a_response_goes_on_from_another_without_its_instructions(self, api: Asking) -> None:
        first = await api.whole(input="One.", instructions="Be brief.")
        second = await api.whole(input="Two.", previous_response_id=first["id"])
        assert second["previous_response_id"] == first["id"]
        assert second["output"][0]["content"][0]["text"] == "One. Be brief. One. Two."
        again = await api.whole(input="Three.", previous_response_id=first["id"])
        assert again["output"][0]["content"][0]["text"].endswith("Three.")

    @requirement("responses.store.previous-errors")
    async def test_what_it_goes_on_from_must_be_there_and_one_thing(self, api: Asking) -> None:
        body = {"model": "agent", "input": "Hi", "previous_response_id": "resp_none"}
        found = await api.refused("POST", "/responses", body)
        assert found == (400, "previous_response_not_found", "previous_response_id")
        found = await api.refused("POST", "/responses", {**body, "conversation": "conv_none"})
        assert found == (400, "mutually_exclusive_parameters", "previous_response_id")
        unstored = await api.whole(store=False)
        found = await api.refused("POST", "/responses", {**body, "previous_response_id": unstored["id"]})
        assert found == (400, "previous_response_not_found", "previous_response_id")
        first = await api.whole()
        second = await api.whole(previous_response_id=first["id"])
        await api.client.responses.delete(first["id"])
        found = await api.refused("POST", "/responses", {**body, "previous_response_id": second["id"]})
        assert found == (400, "previous_response_not_found", "previous_response_id")

    @requirement("responses.store.item-reference")
    async def test_an_item_is_found_by_its_id(self, api: Asking) -> None:
        made = await api.whole(input="One.")
        reference = {"type": "item_reference", "id": made["output"][0]["id"]}
        messages = await told(api, "messages", input=[reference, {"role": "user", "content": "tell messages"}])
        assert messages[0] == {"role": "assistant", "content": "One."}
        body = {"model": "agent", "input": [{**reference, "id": "msg_none"}]}
        assert await api.refused("POST", "/responses", body) == (400, "item_not_found", "input")

    @requirement("responses.input-items.paging")
    async def test_input_items_are_listed_page_by_page_newest_first(self, api: Asking) -> None:
        texts = ["a", "b", "c"]
        made = await api.whole(input=[{"role": "user", "content": text} for text in texts])
        path = f"/responses/{made['id']}/input_items"
        page = (await api.ask("GET", f"{path}?limit=2")).json()
        assert page["object"] == "list"
        assert page["has_more"]
        assert (page["first_id"], page["last_id"]) == tuple(item["id"] for item in page["data"])
        assert all(item["status"] == "completed" for item in page["data"])
        listed = [item.to_dict() async for item in api.client.responses.input_items.list(made["id"], limit=2)]
        assert [item["content"][0]["text"] for item in listed] == texts[::-1]  # type: ignore[index]
        for query in ("limit=0", "limit=101", "order=up", "after=msg_none"):
            assert (await api.refused("GET", f"{path}?{query}"))[0] == 400

    @requirement("responses.owner")
    async def test_what_is_somebody_elses_is_not_there(self, api: Asking) -> None:
        made = await api.whole(background=True)
        conversation = await api.client.conversations.create()
        async with official(api.served, "bob") as bob:
            asked: list[Awaitable[Any]] = [
                bob.responses.retrieve(made["id"]),
                bob.responses.cancel(made["id"]),
                bob.responses.delete(made["id"]),
                bob.responses.input_items.list(made["id"]),
                bob.conversations.retrieve(conversation.id),
                bob.responses.create(model="agent", input="Hi", conversation=conversation.id),
            ]
            for one in asked:
                with pytest.raises(openai.NotFoundError):
                    await one
            with pytest.raises(openai.BadRequestError, match="Previous response with id"):
                await bob.responses.create(model="agent", input="Hi", previous_response_id=made["id"])
        assert (await api.ask("GET", f"/responses/{made['id']}")).status == 200

    @requirement("responses.conversation.grows", "responses.conversation.items")
    async def test_a_conversation_has_what_was_said_in_it(self, api: Asking) -> None:
        items: Any = [{"role": "user", "content": "One."}]
        conversation = await api.client.conversations.create(items=items, metadata={"a": "b"})
        answer = await api.client.responses.create(model="agent", input="Two.", conversation=conversation.id)
        assert answer.output_text == "One. Two."
        assert answer.conversation is not None
        assert answer.conversation.id == conversation.id
        path = f"/conversations/{conversation.id}"
        listed = (await api.ask("GET", f"{path}/items?order=asc")).json()
        assert [item["role"] for item in listed["data"]] == ["user", "user", "assistant"]
        gone = f"{path}/items/{listed['data'][0]['id']}"
        assert (await api.ask("DELETE", gone)).json()["object"] == "conversation"
        assert (await api.refused("GET", gone))[0] == 404
        assert (await api.ask("POST", path, {"metadata": {}})).json()["metadata"] == {}
        too_many = {"items": items * 21}
        assert (await api.refused("POST", f"{path}/items", too_many))[0] == 400
        deleted = {"id": conversation.id, "object": "conversation.deleted", "deleted": True}
        assert (await api.ask("DELETE", path)).json() == deleted
        assert (await api.refused("GET", path))[:2] == (404, "conversation_not_found")

    @requirement("responses.conversation.one-turn")
    async def test_of_two_turns_the_second_waits_or_is_refused(self) -> None:
        speaker = Told()
        async with asking(speaker, conversation_busy="refuse") as api:
            conversation = (await api.client.conversations.create()).id
            first = asyncio.create_task(api.create(conversation=conversation))
            await speaker.ran()
            assert await api.refused(
                "POST", "/responses", {"model": "agent", "input": "Hi", "conversation": conversation}
            ) == (409, "conversation_locked", None)
            speaker.end("Hello")
            assert (await within(first)).status == 200

    @requirement("responses.input-tokens", "responses.compact")
    async def test_input_is_counted_and_packed_without_running_anything(self, api: Asking) -> None:
        made = await api.whole(input="One.")
        counted = await api.client.responses.input_tokens.count(model="agent", input="eight characters")
        assert counted.input_tokens == 4
        packed = await api.client.responses.compact(model="agent", previous_response_id=made["id"])
        assert [item.type for item in packed.output] == ["compaction"]
        items: Any = [packed.output[0].to_dict(), {"role": "user", "content": "Two."}]
        assert (await api.client.responses.create(model="agent", input=items)).output_text == "One. One. Two."


@asynccontextmanager
async def asleep(server: AgentRunServer) -> AsyncIterator[None]:
    """Have `server` tell nobody that it lives, while its agents go on; afterwards they are gone."""
    assert server._runs is not None
    agents = {recording.task for recording in server._runs.local.values()}
    for task in server._runs._tasks - agents:
        task.cancel()
    try:
        yield
    finally:
        for agent_task in agents:
            assert agent_task is not None
            agent_task.cancel()
        await server._runs.aclose()


class TestRuns:
    @requirement("responses.background.polled")
    async def test_a_background_response_is_answered_at_once_and_polled(self) -> None:
        speaker = Told()
        async with asking(speaker) as api:
            made = await api.whole(background=True)
            assert (made["status"], made["output"], made["background"]) == ("queued", [], True)
            await speaker.ran()
            running = await api.client.responses.retrieve(made["id"])
            assert running.status == "in_progress"
            speaker.end("Hello")
            done = await self.ended(api, made["id"])
        assert (done.status, done.output_text) == ("completed", "Hello")

    async def ended(self, api: Asking, response_id: str) -> OpenAIResponse:
        async with asyncio.timeout(5):
            while True:
                found = await api.client.responses.retrieve(response_id)
                if found.status not in ("queued", "in_progress"):
                    return found
                await asyncio.sleep(0.005)

    @requirement("responses.background.client-leaves", "responses.resume")
    async def test_a_stream_is_taken_up_behind_any_event_and_is_the_same(self) -> None:
        speaker = Told()
        async with asking(speaker) as api:
            stream = await api.client.responses.create(model="agent", input="Hi", background=True, stream=True)
            response_id, last = "", 0
            async for event in stream:
                last = event.sequence_number
                if event.type == "response.created":
                    response_id = event.response.id
                    speaker.say("Hel")
                elif event.type == "response.output_text.delta":
                    await stream.close()
                    break
            taken_up = asyncio.create_task(
                api.ask("GET", f"/responses/{response_id}?stream=true&starting_after={last}")
            )
            speaker.end("lo")
            rest = (await within(taken_up)).body
            whole = await api.ask("GET", f"/responses/{response_id}?stream=true")
            parsed = api.judged(whole)
            assert whole.body.endswith(rest)
            assert parsed.text == "Hello"
            blocks = whole.body.split(b"\n\n")
            for after in range(len(parsed.events)):
                answer = await api.ask("GET", f"/responses/{response_id}?stream=true&starting_after={after}")
                assert answer.body == b"\n\n".join(blocks[after + 1 :])

    @requirement("responses.background.cancel")
    async def test_a_cancelled_run_stays_cancelled_and_keeps_what_it_said(self) -> None:
        speaker = Told()
        async with asking(speaker) as api:
            made = await api.whole(background=True)
            speaker.say("Hel")
            await speaker.ran()
            await eventually(lambda: speaker._said.empty())
            first = await api.client.responses.cancel(made["id"])
            speaker.end("lo")
            second = await api.client.responses.cancel(made["id"])
            assert (first.status, first.output_text) == ("cancelled", "Hel")
            assert first.to_dict() == second.to_dict() == (await api.client.responses.retrieve(made["id"])).to_dict()
            parsed = api.judged(await api.ask("GET", f"/responses/{made['id']}?stream=true"))
            assert (parsed.types[-1], parsed.response["status"]) == ("incomplete", "cancelled")
            speaker.end("Hello")
            stored = await api.whole()
            assert (await api.refused("POST", f"/responses/{stored['id']}/cancel"))[0] == 400

    @requirement("responses.background.worker-lost")
    async def test_when_a_process_dies_its_runs_fail_or_run_again_elsewhere(self) -> None:
        said, said_again = Told(), Told()
        settings: dict[str, Any] = {"worker_lease": 0.3, "idempotent_models": ["again"], "access_log": False}
        dying = keeping(dict.fromkeys(("once", "again"), said), **settings)
        other = keeping(dict.fromkeys(("once", "again"), said_again), **settings)
        async with serve(dying, lifespan=False) as first, official(first) as client:
            once, again = [
                (await client.responses.create(model=model, input="Hi", background=True)).id
                for model in ("once", "again")
            ]
            await said.ran(2)
            async with asleep(dying), serve(other) as second, official(second) as client_of_other:
                api = Asking(other, second, client_of_other)
                lost = await self.ended(api, once)
                assert (lost.status, lost.error.code if lost.error else "") == ("failed", "server_error")
                judged = api.judged(await api.ask("GET", f"/responses/{once}?stream=true"))
                assert judged.events[-2]["code"] == "worker_lost"
                said_again.end("Hello")
                found = await self.ended(api, again)
                assert (found.status, found.output_text) == ("completed", "Hello")
                api.judged(await api.ask("GET", f"/responses/{again}?stream=true"))
        assert [request.model for request in said_again.requests] == ["again"]

    @requirement("responses.idempotency-key", "chat.request.idempotency-key")
    @pytest.mark.parametrize("protocol", ["responses", "chat"])
    @pytest.mark.parametrize("stream", [True, False])
    async def test_of_requests_with_one_key_one_runs_and_all_get_its_answer(self, protocol: str, stream: bool) -> None:
        speaker = Told()
        key = ("idempotency-key", "order-42")
        path = "/responses" if protocol == "responses" else "/chat/completions"
        body: dict[str, Any] = {"model": "agent", "stream": stream}
        body |= {"input": "Hi"} if protocol == "responses" else {"messages": [{"role": "user", "content": "Hi"}]}
        async with asking(speaker) as api:
            asked = [asyncio.create_task(api.ask("POST", path, body, key)) for _ in range(5)]
            await speaker.ran()
            speaker.end("Hello")
            answers = [await within(one) for one in asked]
            answers.append(await api.ask("POST", path, body, key))
            assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
            assert b"Hello" in answers[0].body
            other = await api.ask("POST", path, {**body, "temperature": 1}, key)
            assert (other.status, other.error()["code"]) == (400, "idempotency_key_reused")
        assert len(speaker.requests) == 1


class TestStoredChats:
    @requirement("chat.stored.objects")
    async def test_a_stored_answer_is_listed_read_labelled_and_deleted(self, api: Asking) -> None:
        chats = api.client.chat.completions
        messages: Any = [{"role": "user", "content": "Hi"}]
        made = [
            await chats.create(model="agent", messages=messages, store=True, metadata={"n": str(n)}) for n in range(3)
        ]
        assert [one.id async for one in chats.list(limit=2)] == [one.id for one in made]
        assert [one.id async for one in chats.list(metadata={"n": "1"})] == [made[1].id]
        assert (await chats.retrieve(made[0].id)).choices == made[0].choices
        assert [one.content async for one in chats.messages.list(made[0].id)] == ["Hi"]
        assert (await chats.update(made[0].id, metadata={"n": "9"})).metadata == {"n": "9"}
        assert (await chats.delete(made[0].id)).deleted
        with pytest.raises(openai.NotFoundError):
            await chats.retrieve(made[0].id)

    @requirement("chat.stored.only-when-asked")
    async def test_nothing_is_stored_unless_it_is_asked_for(self, api: Asking) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        await api.client.chat.completions.create(model="agent", messages=messages)
        page = (await api.ask("GET", "/chat/completions")).json()
        assert page == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


@requirement("responses.websocket")
async def test_a_response_is_asked_for_over_a_websocket_by_the_official_client(api: Asking) -> None:
    async with api.client.responses.connect() as connection:
        await connection.response.create(model="agent", input="One.")
        seen = []
        async for event in connection:
            seen.append(event)
            if event.type in ("response.completed", "response.failed", "error"):
                break
        assert seen[0].type == "response.created"
        assert seen[-1].type == "response.completed"
        assert seen[-1].response.output_text == "One."
