"""The scripted upstream, seen by the official client and by the judge of chat answers."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from agentrun_server.testing import (
    FakeOpenAI,
    Gate,
    StreamingASGITransport,
    ToolCallSpec,
    Turn,
    UpstreamError,
    Usage,
    async_client,
    openai_client,
)
from agentrun_server.testing.turns import BEFORE_HEAD
from tests.support.chat_oracle import check_chat_stream, check_completion
from tests.support.sse import parse_events

HI: list[Any] = [{"role": "user", "content": "Hi"}]
WEATHER = ToolCallSpec("get_weather", {"city": "Paris"})
CHAT_TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
TOOL: Any = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": None}
RESPONSE_KEYS = {
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id"),
    *("instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "background"),
    *("max_output_tokens", "max_tool_calls", "store", "service_tier", "metadata", "safety_identifier"),
    "prompt_cache_key",
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def chat_bytes(fake: FakeOpenAI, **fields: Any) -> bytes:
    async with async_client(fake) as client:
        body = {"model": "m", "messages": HI, "stream": True, **fields}
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return response.content


async def response_events(fake: FakeOpenAI, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a Responses stream, checked for what holds for each of them."""
    async with async_client(fake) as client:
        body = {"model": "m", "input": "Hi", "stream": True, **fields}
        events = parse_events((await client.post("/v1/responses", json=body)).content)
    assert events.pop().data == "[DONE]"
    parsed = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == [data["type"] for data in parsed]
    assert [data["sequence_number"] for data in parsed] == list(range(len(parsed)))
    for data in parsed:
        EVENTS.validate_python(data)
    return parsed


class TestChat:
    async def test_text_in_one_body(self) -> None:
        async with openai_client(FakeOpenAI("Hello there")) as client:
            completion = await client.chat.completions.create(model="any-model", messages=HI)
        assert completion.choices[0].message.content == "Hello there"
        assert completion.model == "any-model"
        assert completion.usage is not None
        ChatCompletion.model_validate(completion.model_dump(), strict=True)
        check_completion(json.loads(completion.model_dump_json(exclude_unset=True)))

    async def test_text_as_a_stream(self) -> None:
        async with openai_client(FakeOpenAI("Hello there, you")) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            chunks = [chunk async for chunk in stream]
        assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hello", " there,", " you", None]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)

    async def test_the_helper_of_the_official_client_puts_a_stream_together(self) -> None:
        usage = Usage(input_tokens=10, output_tokens=5, cached_tokens=4, reasoning_tokens=2)
        turn = Turn("Let me look. ", reasoning="Weather?", tool_calls=[WEATHER, WEATHER], usage=usage)
        async with (
            openai_client(FakeOpenAI(turn)) as client,
            client.chat.completions.stream(
                model="m", messages=HI, tools=[CHAT_TOOL], stream_options={"include_usage": True}
            ) as stream,
        ):
            kinds = [event.type async for event in stream]
            final = await stream.get_final_completion()
        message = final.choices[0].message
        assert message.content == "Let me look. "
        assert message.tool_calls is not None
        assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Paris"}'] * 2
        assert len({call.id for call in message.tool_calls}) == 2
        assert final.choices[0].finish_reason == "tool_calls"
        assert final.usage is not None
        assert (final.usage.total_tokens, final.usage.prompt_tokens_details.cached_tokens) == (15, 4)  # type: ignore[union-attr]
        assert kinds.count("tool_calls.function.arguments.done") == 2

    async def test_reasoning_stands_in_the_fields_asked_for(self) -> None:
        turn = Turn("42", reasoning="6 times 7")
        for fields in (("reasoning_content", "reasoning"), ("reasoning",), ()):
            fake = FakeOpenAI([turn, turn], reasoning_fields=fields)
            parsed = check_chat_stream(await chat_bytes(fake), include_usage=False)
            assert parsed.choices[0].reasoning == ("6 times 7" if fields else "")
            async with async_client(fake) as client:
                answer = await client.post("/v1/chat/completions", json={"model": "m", "messages": HI})
            assert set(fields) == {"reasoning", "reasoning_content"} & answer.json()["choices"][0]["message"].keys()

    async def test_a_refusal(self) -> None:
        async with openai_client(FakeOpenAI([Turn(refusal="I will not.")] * 2)) as client:
            completion = await client.chat.completions.create(model="m", messages=HI)
            async with client.chat.completions.stream(model="m", messages=HI) as stream:
                streamed = await stream.get_final_completion()
        assert completion.choices[0].message.refusal == "I will not."
        assert completion.choices[0].message.content is None
        assert streamed.choices[0].message.refusal == "I will not."

    async def test_several_choices_and_logprobs(self) -> None:
        fake = FakeOpenAI(["one two"] * 2)
        options = {"n": 2, "logprobs": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}
        body = await chat_bytes(fake, **options)
        streamed = check_chat_stream(body, include_usage=True, n=2, logprobs=True, obfuscation=True)
        async with async_client(fake) as client:
            request = {"model": "m", "messages": HI, "n": 2, "logprobs": True}
            answer = await client.post("/v1/chat/completions", json=request)
        whole = check_completion(answer.json(), n=2, logprobs=True)
        assert whole.choices == streamed.choices
        assert [token["token"] for token in whole.choices[1].logprobs] == ["one", " two"]

    async def test_texts_are_split_as_asked(self) -> None:
        def pieces(body: bytes) -> list[str]:
            chunks = check_chat_stream(body, include_usage=False).chunks
            return [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1]]

        assert pieces(await chat_bytes(FakeOpenAI("a bc  d\n"))) == ["a", " bc", "  d\n"]
        assert pieces(await chat_bytes(FakeOpenAI("abcde", split=2))) == ["ab", "cd", "e"]
        assert pieces(await chat_bytes(FakeOpenAI("a-b", split=lambda text: list(text)))) == ["a", "-", "b"]
        assert pieces(await chat_bytes(FakeOpenAI(Turn(["exactly ", "these"]), split=1))) == ["exactly ", "these"]

    async def test_a_script_gives_the_same_bytes_in_every_run(self) -> None:
        runs = [await chat_bytes(FakeOpenAI(Turn(tool_calls=[WEATHER]))) for _ in range(2)]
        assert runs[0] == runs[1]


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CALLS = st.builds(ToolCallSpec, st.from_regex(r"[a-z_]{1,8}", fullmatch=True), TEXTS)
TURNS = st.one_of(
    st.builds(
        Turn,
        TEXTS | st.lists(TEXTS, max_size=4),
        reasoning=TEXTS,
        tool_calls=st.lists(CALLS, max_size=3),
        usage=st.none() | st.builds(Usage, *[st.integers(0, 10**6)] * 4),
    ),
    st.builds(Turn, reasoning=TEXTS, refusal=TEXTS),
    st.builds(Turn, TEXTS, finish_reason=st.sampled_from(["stop", "length", "content_filter"])),
)


def bounded(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run in a loop of its own, which the watchdog of these tests does not see."""

    async def run() -> None:
        async with asyncio.timeout(30):
            await coroutine

    asyncio.run(run())


# No deadline for an example: each runs an app and an event loop, and how long that takes says nothing of the answer.
without_deadline = settings(deadline=None)


class TestAnyTurn:
    @without_deadline
    @given(turn=TURNS, n=st.integers(1, 3), usage=st.booleans(), split=st.none() | st.integers(1, 5))
    def test_a_chat_stream_keeps_every_rule_and_says_what_the_body_says(
        self, turn: Turn, n: int, usage: bool, split: int | None
    ) -> None:
        async def run() -> None:
            fake = FakeOpenAI([turn, turn], split=split)
            options = {"stream_options": {"include_usage": True}} if usage else {}
            streamed = check_chat_stream(await chat_bytes(fake, n=n, **options), include_usage=usage, n=n)
            async with async_client(fake) as client:
                answer = await client.post("/v1/chat/completions", json={"model": "m", "messages": HI, "n": n})
            whole = check_completion(answer.json(), n=n)
            assert numbered(whole.choices) == numbered(streamed.choices)
            if usage:
                assert whole.usage == streamed.usage

        def numbered(choices: Any) -> str:
            """The two answers have different ids, and so do their calls."""
            text = repr(choices)
            return text.replace("call_000000000002", "call_000000000001")

        bounded(run())

    @without_deadline
    @given(turn=TURNS, split=st.none() | st.integers(1, 5))
    def test_a_responses_stream_ends_with_what_it_streamed(self, turn: Turn, split: int | None) -> None:
        bounded(check_responses_stream(turn, split))


async def check_responses_stream(turn: Turn, split: int | None) -> None:
    events = await response_events(FakeOpenAI(turn, split=split))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    items: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    open_item = False
    for event in events[2:-1]:
        if event["type"] == "response.output_item.added":
            assert not open_item
            assert event["output_index"] == len(items)
            open_item = True
            item = event["item"]
            assert item["status"] == "in_progress"
            assert not any(item.get(key) for key in ("content", "summary", "arguments"))
            texts[item["id"]] = ""
            continue
        assert open_item
        assert event["output_index"] == len(items)
        if event["type"] == "response.output_item.done":
            items.append(event["item"])
            assert event["item"]["id"] == item["id"]
            open_item = False
        else:
            assert event["item_id"] == item["id"]
            texts[item["id"]] += event["delta"] if event["type"].endswith(".delta") else ""
    final = events[-1]["response"]
    assert not open_item
    assert items == final["output"]
    for item in items:
        match item["type"]:
            case "reasoning":
                whole = item["summary"][0]["text"]
            case "message":
                whole = item["content"][0].get("text", item["content"][0].get("refusal"))
            case _:
                whole = item["arguments"]
        assert texts[item["id"]] == whole


class TestResponses:
    async def test_text_in_one_body(self) -> None:
        async with openai_client(FakeOpenAI("Hello there")) as client:
            response = await client.responses.create(model="m", input="Hi", instructions="Be brief.", tools=[TOOL])
        assert response.output_text == "Hello there"
        assert (response.status, response.instructions) == ("completed", "Be brief.")
        assert response.tools[0].to_dict() == {**TOOL, "description": None}
        Response.model_validate(response.model_dump(warnings=False))

    async def test_the_response_object_has_every_key(self) -> None:
        events = await response_events(FakeOpenAI("x"))
        for event in (events[0], events[1], events[-1]):
            assert event["response"].keys() >= RESPONSE_KEYS
        assert events[0]["response"]["usage"] is None
        assert events[-1]["response"]["usage"]["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}

    async def test_the_helper_of_the_official_client_reads_the_stream(self) -> None:
        turn = Turn("Let me look.", reasoning="Weather?", tool_calls=[WEATHER])
        async with (
            openai_client(FakeOpenAI(turn)) as client,
            client.responses.stream(model="m", input="Hi", tools=[TOOL]) as stream,
        ):
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
        assert final.output_text == "Let me look."
        assert kinds[-1] == "response.completed"
        assert "response.function_call_arguments.delta" in kinds

    async def test_the_order_of_a_tool_call(self) -> None:
        events = await response_events(FakeOpenAI(Turn(tool_calls=[ToolCallSpec("f", "{}", id="call_x")])))
        assert [event["type"] for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        item = events[-1]["response"]["output"][0]
        assert (item["call_id"], item["name"], item["arguments"]) == ("call_x", "f", "{}")

    async def test_the_order_of_a_refusal(self) -> None:
        events = await response_events(FakeOpenAI(Turn(refusal="No.")))
        assert [event["type"].removeprefix("response.") for event in events[3:-2]] == [
            "content_part.added",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
        ]

    async def test_an_answer_that_was_cut_off_is_incomplete(self) -> None:
        events = await response_events(FakeOpenAI(Turn("Once upon", finish_reason="length")))
        response = events[-1]["response"]
        assert events[-1]["type"] == "response.incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][0]["status"] == "incomplete"

    async def test_what_the_request_said_is_echoed(self) -> None:
        fields: dict[str, Any] = {
            "temperature": 0.5,
            "metadata": {"a": "b"},
            "text": {"format": {"type": "json_object"}},
            "reasoning": {"effort": "low"},
            "conversation": "conv_1",
            "user": "ada",
        }
        response = (await response_events(FakeOpenAI("x"), **fields))[-1]["response"]
        assert (response["temperature"], response["metadata"]) == (0.5, {"a": "b"})
        assert response["text"] == {"format": {"type": "json_object"}}
        assert response["reasoning"] == {"effort": "low", "summary": None}
        assert (response["conversation"], response["user"]) == ({"id": "conv_1"}, "ada")


class TestScript:
    async def test_an_agent_loop_runs_through_a_script(self) -> None:
        fake = FakeOpenAI([Turn(tool_calls=[WEATHER]), "Sunny."])
        async with openai_client(fake) as client:
            first = await client.chat.completions.create(model="m", messages=HI, tools=[CHAT_TOOL])
            message = first.choices[0].message
            assert message.tool_calls is not None
            result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
            messages: list[Any] = [*HI, message.to_dict(), result]
            second = await client.chat.completions.create(model="m", messages=messages)
        assert second.choices[0].message.content == "Sunny."
        fake.assert_finished()
        assert [len(request.json["messages"]) for request in fake.requests] == [1, 3]
        assert fake.requests[0].headers["authorization"] == "Bearer test"
        assert [request.outcome for request in fake.requests] == ["finished", "finished"]

    async def test_a_script_may_be_a_function_of_the_request(self) -> None:
        async def answer(request: dict[str, Any]) -> Turn:
            return Turn(f"You said {request['messages'][-1]['content']}.")

        def brief(request: dict[str, Any]) -> str:
            return request["model"].upper()  # type: ignore[no-any-return]

        for script, expected in ((answer, "You said Hi."), (brief, "M")):
            body = await chat_bytes(FakeOpenAI(script))
            assert check_chat_stream(body, include_usage=False).text == expected

    async def test_a_request_after_the_end_says_so_and_is_not_retried(self) -> None:
        fake = FakeOpenAI("only one")
        async with openai_client(fake, max_retries=2) as client:
            await client.chat.completions.create(model="m", messages=HI)
            with pytest.raises(openai.InternalServerError, match="the script has 1 turn, and request 2 came"):
                await client.chat.completions.create(model="m", messages=HI)
        assert len(fake.requests) == 2
        with pytest.raises(AssertionError, match="1 requests came after the end"):
            fake.assert_finished()

    async def test_unused_turns_are_noticed(self) -> None:
        with pytest.raises(AssertionError, match="1 of 1 turns of the script were not used"):
            FakeOpenAI("x").assert_finished()

    async def test_the_last_turn_can_be_repeated(self) -> None:
        fake = FakeOpenAI(["first", "rest"], repeat_last=True)
        texts = [check_chat_stream(await chat_bytes(fake), include_usage=False).text for _ in range(4)]
        assert texts == ["first", "rest", "rest", "rest"]
        fake.assert_finished()

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda: Turn("text", refusal="no"),
            lambda: Turn(error_at=1),
            lambda: FakeOpenAI("x", split=0),
            lambda: Turn("abc").pieces(lambda text: [text, text]),
        ],
    )
    def test_a_script_that_cannot_be_is_refused(self, wrong: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=r"refusal|error_at|split|pieces"):
            wrong()


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "expected", "code"),
        [
            (401, openai.AuthenticationError, "invalid_api_key"),
            (429, openai.RateLimitError, "rate_limit_exceeded"),
            (500, openai.InternalServerError, "server_error"),
            (503, openai.InternalServerError, "server_error"),
        ],
    )
    @pytest.mark.parametrize("stream", [False, True])
    async def test_an_error_is_raised_as_the_official_client_does(
        self, status: int, expected: type[openai.APIStatusError], code: str, stream: bool
    ) -> None:
        async with openai_client(FakeOpenAI(Turn(error=(status, "no luck")))) as client:
            with pytest.raises(expected, match="no luck") as raised:
                await client.chat.completions.create(model="m", messages=HI, stream=stream)
        assert raised.value.code == code

    async def test_an_error_can_be_written_out(self) -> None:
        error = UpstreamError(
            429, "slow down", code="tokens", type="tokens", param="model", headers={"retry-after-ms": "1"}
        )
        fake = FakeOpenAI([Turn(error=error), Turn("ok")])
        async with openai_client(fake, max_retries=1) as client:
            completion = await client.chat.completions.create(model="m", messages=HI)
        assert completion.choices[0].message.content == "ok"
        assert fake.requests[1].headers["x-stainless-retry-count"] == "1"
        assert error.body() == {"error": {"message": "slow down", "type": "tokens", "param": "model", "code": "tokens"}}
        assert Turn(error=(400, "m", "my_code")).failure == UpstreamError(400, "m", "my_code")

    async def test_an_error_in_the_middle_of_a_chat_stream(self) -> None:
        turn = Turn("one two three", error=(500, "it broke"), error_at=2)
        parsed = check_chat_stream(await chat_bytes(FakeOpenAI(turn)), include_usage=False)
        assert parsed.text == "one two"
        assert parsed.error is not None
        async with openai_client(FakeOpenAI(turn)) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            with pytest.raises(openai.APIError, match="it broke"):
                async for _ in stream:
                    pass

    async def test_an_error_in_the_middle_of_a_responses_stream(self) -> None:
        turn = Turn("one two", reasoning="hm", error=(500, "it broke"), error_at=2)
        events = await response_events(FakeOpenAI(turn))
        error, failed = events[-2:]
        assert (error["type"], error["code"], error["error"]["message"]) == ("error", "server_error", "it broke")
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"] == {"code": "server_error", "message": "it broke"}
        assert [item["type"] for item in failed["response"]["output"]] == ["reasoning"], "what was done"
        async with openai_client(FakeOpenAI(turn)) as client:
            stream = await client.responses.create(model="m", input="Hi", stream=True)
            with pytest.raises(openai.APIError, match="it broke"):
                async for _ in stream:
                    pass

    async def test_an_error_after_the_last_piece_comes_before_the_end(self) -> None:
        turn = Turn("one two", error=(500, "it broke"), error_at=2)
        parsed = check_chat_stream(await chat_bytes(FakeOpenAI(turn)), include_usage=False)
        assert (parsed.text, parsed.choices[0].finish_reason) == ("one two", None)

    async def test_the_connection_can_break_in_the_middle(self) -> None:
        fake = FakeOpenAI([Turn("one two", disconnect_at=1)] * 2)
        async with openai_client(fake) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            chunks = stream.__aiter__()
            texts = [(await anext(chunks)).choices[0].delta.content for _ in range(2)]
            with pytest.raises(openai.APIConnectionError):
                await anext(chunks)
            assert texts == ["", "one"]
            with pytest.raises(openai.APIConnectionError):
                await client.chat.completions.create(model="m", messages=HI)
        assert [request.outcome for request in fake.requests] == ["broken off", "broken off"]


class TestPace:
    async def test_a_gate_holds_a_piece_until_it_is_opened(self) -> None:
        gate = Gate()
        async with openai_client(FakeOpenAI(Turn("one two", gate=gate, gate_at=1))) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            chunks = stream.__aiter__()
            assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "one"]
            await gate.arrived()
            held = asyncio.ensure_future(anext(chunks))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not held.done()
            gate.open()
            assert (await held).choices[0].delta.content == " two"
            await stream.close()

    async def test_a_gate_can_hold_the_head_and_the_end(self) -> None:
        head, end = Gate(), asyncio.Event()
        turns = [Turn("x", gate=head, gate_at=BEFORE_HEAD), Turn("x", gate=end, gate_at=1), Turn("x", gate=Gate())]
        fake = FakeOpenAI(turns)
        async with openai_client(fake) as client:
            request = asyncio.create_task(client.chat.completions.create(model="m", messages=HI, stream=True))
            await head.arrived()
            assert not request.done()
            head.open()
            assert [chunk.choices[0].finish_reason async for chunk in await request] == [None, None, "stop"]
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            chunks = stream.__aiter__()
            assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "x"]
            end.set()
            assert [chunk.choices[0].finish_reason async for chunk in chunks] == ["stop"]
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=HI, timeout=0.05)
        assert await fake.requests[2].ended() == "disconnected"

    async def test_a_gate_that_nobody_opens_is_an_error(self) -> None:
        fake = FakeOpenAI(Turn("x", gate=Gate()), gate_timeout=0.02)
        async with async_client(fake) as client:
            with pytest.raises(AssertionError, match="a gate was not opened"):
                await client.post("/v1/chat/completions", json={"model": "m", "messages": HI, "stream": True})

    async def test_a_client_that_leaves_at_a_gate_is_noticed(self) -> None:
        gate = Gate()
        fake = FakeOpenAI(Turn("one two", gate=gate, gate_at=1))
        transport = StreamingASGITransport(fake)
        async with openai_client(transport) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            await gate.arrived()
            await stream.close()
            assert await fake.requests[0].ended() == "disconnected"
        assert transport.cancelled == 0

    async def test_a_delay_is_waited_before_each_piece(self) -> None:
        fake = FakeOpenAI([Turn("a b c", delay=0.01)] * 2)
        loop = asyncio.get_running_loop()
        for stream in (True, False):
            before = loop.time()
            async with async_client(fake) as client:
                body = {"model": "m", "messages": HI, "stream": stream}
                await client.post("/v1/chat/completions", json=body)
            assert loop.time() - before >= 0.029

    async def test_waiting_for_the_end_of_a_request_is_bounded(self) -> None:
        gate = Gate()
        fake = FakeOpenAI(Turn("x", gate=gate))
        async with async_client(fake) as client:
            request = asyncio.create_task(client.post("/v1/responses", json={"model": "m", "input": "Hi"}))
            await gate.arrived()
            with pytest.raises(TimeoutError, match="still answers"):
                fake.requests[0].ended_sync(0.01)
            with pytest.raises(TimeoutError):
                await fake.requests[0].ended(0.01)
            gate.open()
            await request
            assert fake.requests[0].ended_sync() == "finished"

    async def test_a_gate_serves_any_number_of_loops(self) -> None:
        gate = Gate()
        threads = [threading.Thread(target=lambda: asyncio.run(gate.wait())) for _ in range(3)]
        for thread in threads:
            thread.start()
        await gate.arrived()
        gate.open()
        for thread in threads:
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()
        await gate.wait()

    async def test_a_client_that_leaves_during_a_delay_is_noticed(self) -> None:
        fake = FakeOpenAI([Turn("one two", delay=60), Turn("one", delay=60)])
        async with openai_client(fake) as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            await anext(stream.__aiter__())
            await stream.close()
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(model="m", messages=HI, timeout=0.02)
        assert [await request.ended() for request in fake.requests] == ["disconnected"] * 2

    async def test_a_gate_times_out_for_those_who_wait_for_an_arrival(self) -> None:
        with pytest.raises(TimeoutError):
            await Gate().arrived(0.01)
        with pytest.raises(TimeoutError, match="nobody came"):
            Gate().arrived_sync(0.01)


def two_calls() -> Any:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    return {"role": "assistant", "tool_calls": [call, {**call, "id": "b"}]}


def tool(ident: str) -> dict[str, str]:
    return {"role": "tool", "tool_call_id": ident, "content": "x"}


class TestRefusedRequests:
    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"messages": []}, "messages"),
            ({"messages": "Hi"}, "messages"),
            ({"messages": [1]}, "messages[0].role"),
            ({"messages": [{"role": "robot"}]}, "messages[0].role"),
            ({"model": None}, "model"),
            ({"n": 0}, "n"),
            ({"stream_options": {"include_usage": True}}, "stream_options"),
            ({"messages": [*HI, tool("a")]}, "messages[1].role"),
            ({"messages": [two_calls(), tool("a"), *HI]}, "messages"),
            ({"messages": [two_calls()]}, "messages"),
            (
                {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}]},
                "messages[0].tool_calls",
            ),
            ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].type"),
            ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
            ({"tools": ["f"]}, "tools[0].type"),
            ({"tool_choice": "auto"}, "tool_choice"),
        ],
    )
    async def test_chat_refuses_what_openai_refuses(self, fields: dict[str, Any], param: str) -> None:
        fake = FakeOpenAI("x")
        async with async_client(fake) as client:
            body = {"model": "m", "messages": HI, **fields}
            response = await client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert fake.requests[0].outcome == "refused"
        with pytest.raises(AssertionError, match="1 of 1 turns"):
            fake.assert_finished()

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"input": None}, "input"),
            ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
            ({"model": ""}, "model"),
            ({"tools": [CHAT_TOOL]}, "tools[0].name"),
            ({"tools": [1]}, "tools[0].type"),
            ({"input": ["x"]}, "input[0]"),
            ({"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]}, "input"),
        ],
    )
    async def test_responses_refuses_what_openai_refuses(self, fields: dict[str, Any], param: str) -> None:
        async with async_client(FakeOpenAI("x")) as client:
            response = await client.post("/v1/responses", json={"model": "m", "input": "Hi", **fields})
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)

    async def test_answered_calls_are_fine_in_both_protocols(self) -> None:
        fake = FakeOpenAI(["ok", "ok"])
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "c", "output": "x"}
        async with async_client(fake) as client:
            messages = [*HI, two_calls(), tool("b"), tool("a"), *HI]
            chat = await client.post("/v1/chat/completions", json={"model": "m", "messages": messages})
            responses = await client.post("/v1/responses", json={"model": "m", "input": [call, output]})
        assert (chat.status_code, responses.status_code) == (200, 200)

    async def test_strictness_can_be_turned_off(self) -> None:
        fake = FakeOpenAI("ok", strict=False)
        async with async_client(fake) as client:
            body = {"model": "m", "messages": [tool("nobody asked")]}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200

    async def test_a_body_that_is_not_json_is_refused(self) -> None:
        async with async_client(FakeOpenAI("x", strict=False)) as client:
            for content in (b"{", b"[]", b"\xff"):
                response = await client.post("/v1/chat/completions", content=content)
                assert response.status_code == 400

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/v1/nothing", 404, "unknown_url"),
            ("GET", "/v1/chat/completions", 405, "method_not_supported"),
            ("POST", "/v1/models", 405, "method_not_supported"),
            ("GET", "/v1/models/other", 404, "model_not_found"),
        ],
    )
    async def test_other_paths_and_methods(self, method: str, path: str, status: int, code: str) -> None:
        async with async_client(FakeOpenAI("x")) as client:
            response = await client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)

    async def test_models_are_listed(self) -> None:
        async with openai_client(FakeOpenAI(models=["a/b", "c"])) as client:
            assert [model.id async for model in client.models.list()] == ["a/b", "c"]
            assert (await client.models.retrieve("a/b")).id == "a/b"

    async def test_a_key_can_be_demanded(self) -> None:
        fake = FakeOpenAI("ok", api_key="sk-right")
        async with openai_client(fake, api_key="sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
                await client.chat.completions.create(model="m", messages=HI)
        async with openai_client(fake, api_key="sk-right") as client:
            await client.chat.completions.create(model="m", messages=HI)

    async def test_base_urls_without_a_version_work(self) -> None:
        async with openai_client(FakeOpenAI("ok"), base_url="http://upstream/") as client:
            assert (await client.responses.create(model="m", input="Hi")).output_text == "ok"


def open_when_reached(gate: Gate) -> None:
    gate.arrived_sync()
    gate.open()


class TestServed:
    async def test_on_a_socket_in_the_loop_of_the_test(self) -> None:
        gate = Gate()
        fake = FakeOpenAI([Turn("one two", gate=gate, gate_at=1), "bye"])
        async with fake.serve() as base_url, openai.AsyncOpenAI(base_url=base_url, api_key="x") as client:
            assert base_url.startswith("http://127.0.0.1:")
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            await gate.arrived()
            gate.open()
            texts = [chunk.choices[0].delta.content async for chunk in stream]
            assert texts == ["", "one", " two", None]
            assert (await client.responses.create(model="m", input="Hi")).output_text == "bye"

    def test_on_a_socket_in_a_thread_for_code_that_blocks(self) -> None:
        gate = Gate()
        fake = FakeOpenAI([Turn("one two", gate=gate, gate_at=1), Turn("x", disconnect_at=0)])
        with fake.serve() as base_url, openai.OpenAI(base_url=base_url, api_key="x", max_retries=0) as client:
            opener = threading.Thread(target=open_when_reached, args=(gate,))
            opener.start()
            stream = client.chat.completions.create(model="m", messages=HI, stream=True)
            assert [chunk.choices[0].delta.content for chunk in stream] == ["", "one", " two", None]
            opener.join(5)
            with pytest.raises(openai.APIConnectionError):
                list(client.chat.completions.create(model="m", messages=HI, stream=True))
            assert fake.requests[1].ended_sync() == "broken off"
        assert "served app" not in [thread.name for thread in threading.enumerate()]

    async def test_a_client_that_leaves_is_noticed_over_a_socket(self) -> None:
        gate = Gate()
        fake = FakeOpenAI(Turn("one two", gate=gate, gate_at=1))
        async with fake.serve() as base_url, openai.AsyncOpenAI(base_url=base_url, api_key="x") as client:
            stream = await client.chat.completions.create(model="m", messages=HI, stream=True)
            await gate.arrived()
            await stream.close()
            assert await fake.requests[0].ended() == "disconnected"

    async def test_leaving_ends_answers_that_are_still_held(self) -> None:
        gate = Gate()
        fake = FakeOpenAI(Turn("one two", gate=gate, gate_at=1))
        async with openai.AsyncOpenAI(base_url="http://replaced", api_key="x", max_retries=0) as client:
            async with fake.serve() as base_url:
                stream = await client.with_options(base_url=base_url).chat.completions.create(
                    model="m", messages=HI, stream=True
                )
                await gate.arrived()
            with pytest.raises(openai.APIConnectionError):
                async for _ in stream:
                    pass

    async def test_two_servers_can_share_a_script(self) -> None:
        fake = FakeOpenAI(["a", "b"])
        async with fake.serve() as one, fake.serve() as two, httpx2.AsyncClient() as client:
            body = {"model": "m", "messages": HI}
            answers = [(await client.post(f"{url}/chat/completions", json=body)).json() for url in (one, two)]
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == ["a", "b"]

    async def test_websockets_are_refused(self) -> None:
        async def receive() -> Any:
            raise NotImplementedError

        async def send(message: Any) -> None:
            raise NotImplementedError

        with pytest.raises(RuntimeError, match="HTTP only"):
            await FakeOpenAI()({"type": "websocket"}, receive, send)


async def test_a_request_is_only_read_once_its_client_has_sent_it() -> None:
    fake = FakeOpenAI("ok")

    async def upload() -> AsyncIterator[bytes]:
        yield b'{"model": "m", '
        assert fake.requests == []
        yield b'"messages": [{"role": "user", "content": "Hi"}]}'

    async with async_client(fake) as client:
        assert (await client.post("/v1/chat/completions", content=upload())).status_code == 200
