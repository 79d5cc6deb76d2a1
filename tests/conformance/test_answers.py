"""What a request asks for, and the answer it gets: the stream and the body, judged by the same rules."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrun_server import AgentEvent, AgentRequest, EventType, events
from tests.conformance.asking import asking
from tests.conformance.requirements import requirement
from tests.support.chat_oracle import ParsedChoice

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CITATION = events.Annotation.url_citation("https://e.com", "E", 0, 5)


def saying(*items: Any) -> Any:
    """Return an agent that says `items`, waiting before each, as agents do."""

    async def agent(request: AgentRequest) -> AsyncIterator[Any]:
        for item in items:
            await asyncio.sleep(0)
            yield item

    return agent


async def both(agent: Any, /, settings: dict[str, Any] | None = None, **fields: Any) -> ParsedChoice:
    """Ask for a stream and for a body; check that both are right and say the same; return the only choice."""
    async with asking(agent, **(settings or {})) as server:
        streamed = await server.streamed(**fields)
        whole = await server.whole(**fields)
    (choice,), (same,) = streamed.choices, whole.choices
    for one in (choice, same):
        # A character whose halves came in two pieces is one for every reader that joins them.
        one.content = one.content.encode("utf-16", "surrogatepass").decode("utf-16")
        for call in one.tool_calls:
            call.id = "made up" if call.id.startswith("call_") and len(call.id) == 37 else call.id
    assert choice == same
    assert streamed.x_agent == whole.x_agent
    return choice


@requirement("chat.completion.same-as-stream", "chat.stream.envelope", "chat.stream.role-once")
async def test_text_in_pieces_is_one_answer() -> None:
    choice = await both(saying("Hel", "lo", ", \u2028", "\ud83d", "\ude00 wörld"))
    assert choice.content == "Hello, \u2028😀 wörld"
    assert choice.finish_reason == "stop"


@requirement("chat.stream.envelope")
async def test_every_answer_has_an_id_of_its_own_and_the_model_that_was_asked_for() -> None:
    async with asking(saying("a")) as server:
        answers = [await server.streamed(model="any/model"), await server.whole(model="any/model")]
    assert answers[0].id != answers[1].id
    assert [answer.model for answer in answers] == ["any/model"] * 2


@requirement("chat.stream.empty-answer", "chat.stream.finish-chunk")
@pytest.mark.parametrize("items", [(), ("",), (None,), ([],)])
async def test_an_agent_that_says_nothing_has_answered(items: tuple[Any, ...]) -> None:
    choice = await both(saying(*items))
    assert (choice.content, choice.finish_reason) == ("", "stop")


@requirement("chat.completion.finish-reasons", "chat.completion.same-as-stream")
@pytest.mark.parametrize("kind", ["async generator", "async function", "sync function"])
async def test_an_answer_that_is_too_long_ends_with_length_whatever_made_it(kind: str) -> None:
    async def function(request: AgentRequest) -> str:
        return "x" * 100

    agents = {"async generator": saying("x" * 100), "async function": function, "sync function": lambda _: "x" * 100}
    choice = await both(agents[kind], {"max_output_bytes": 10})
    assert (choice.content, choice.finish_reason) == ("x" * 10, "length")


class TestUsage:
    @requirement("chat.stream.usage-asked", "chat.completion.usage")
    async def test_with_include_usage_the_stream_tells_what_the_body_tells(self) -> None:
        async with asking(saying("a", events.Usage(5, 6, 1, 2))) as server:
            streamed = await server.streamed(stream_options={"include_usage": True})
            whole = await server.whole()
        assert streamed.usage == whole.usage
        assert streamed.usage is not None
        assert (streamed.usage["prompt_tokens"], streamed.usage["total_tokens"]) == (5, 11)

    @requirement("chat.stream.usage-unasked")
    @pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
    async def test_without_it_the_stream_has_none(self, options: Any) -> None:
        async with asking(saying("a")) as server:
            assert (await server.streamed(stream_options=options)).usage is None

    @requirement("chat.completion.usage")
    async def test_it_is_estimated_from_question_and_answer(self) -> None:
        async with asking(saying("x" * 40)) as server:
            usage = (await server.whole(messages=[{"role": "user", "content": "y" * 80}])).usage
        assert usage is not None
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 10)

    @requirement("chat.request.stream-options")
    async def test_stream_options_without_a_stream_are_ignored(self) -> None:
        async with asking(saying("a")) as server:
            assert (await server.whole(stream_options={"include_usage": True})).text == "a"


class TestTools:
    CALL = events.FunctionCall("weather", '{"city":"Paris"}', "call_x")

    @requirement("chat.stream.tool-calls", "chat.completion.tool-turn", "chat.stream.tool-finish")
    async def test_a_call_of_the_clients_tool_ends_the_turn(self) -> None:
        choice = await both(saying(self.CALL), tools=[WEATHER])
        (call,) = choice.tool_calls
        assert (call.id, call.name, json.loads(call.arguments)) == ("call_x", "weather", {"city": "Paris"})
        assert choice.finish_reason == "tool_calls"

    @requirement("chat.stream.tool-calls")
    @pytest.mark.parametrize(
        "pieces",
        [
            [AgentEvent(EventType.TOOL_CALL, {"id": "c", "name": "weather", "args": {"city": "Paris"}})],
            [
                AgentEvent(EventType.TOOL_CALL_CHUNK, {"id": "c", "name": "weather", "args_delta": '{"city"'}),
                AgentEvent(EventType.TOOL_CALL_CHUNK, {"id": "c", "args_delta": ': "Paris"}'}),
            ],
            [
                {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "weather"}}]}}]},
                {
                    "choices": [
                        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Paris"}'}}]}}
                    ]
                },
                {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
            ],
            [{"content": "", "tool_calls": [{"id": "c", "name": "weather", "args": {"city": "Paris"}}]}],
        ],
        ids=["event", "event pieces", "upstream chunks", "message"],
    )
    async def test_whatever_form_it_comes_in_it_is_the_same_call(self, pieces: list[Any]) -> None:
        choice = await both(saying(*pieces), tools=[WEATHER])
        (call,) = choice.tool_calls
        assert (call.id, call.name, call.arguments) == ("c", "weather", '{"city": "Paris"}')

    @requirement("activity.ownership", "activity.mixed-turns")
    async def test_the_agents_own_tools_are_invisible(self) -> None:
        own = [
            events.FunctionCall("search", '{"q":"x"}', "own"),
            events.FunctionCallOutput("own", ["hit"]),
        ]
        choice = await both(saying("Looking. ", *own, "Found."), tools=[WEATHER])
        assert (choice.content, choice.tool_calls, choice.finish_reason) == ("Looking. Found.", [], "stop")
        choice = await both(saying(*own, self.CALL), tools=[WEATHER])
        assert [call.name for call in choice.tool_calls] == ["weather"]
        assert choice.finish_reason == "tool_calls"

    @requirement("activity.ownership")
    async def test_without_tools_in_the_request_nothing_is_the_clients(self) -> None:
        choice = await both(saying(self.CALL, "a"))
        assert (choice.content, choice.tool_calls, choice.finish_reason) == ("a", [], "stop")

    @requirement("activity.mixed-turns", "chat.request.calls-answered")
    async def test_the_answer_to_a_call_reaches_the_agent(self) -> None:
        async def agent(request: AgentRequest) -> Any:
            last = request.messages[-1]
            return f"It is {last.text}." if last.role == "tool" else self.CALL

        turn = [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_x", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "call_x", "content": "sunny"},
        ]
        choice = await both(agent, tools=[WEATHER], messages=turn)
        assert (choice.content, choice.finish_reason) == ("It is sunny.", "stop")

    @requirement("chat.stream.legacy-function-call", "chat.request.legacy-functions")
    async def test_deprecated_functions_are_answered_in_their_own_form(self) -> None:
        choice = await both(saying(self.CALL), functions=[WEATHER["function"]], function_call="auto")
        assert choice.function_call is not None
        assert (choice.function_call.name, choice.function_call.arguments) == ("weather", '{"city":"Paris"}')
        assert choice.finish_reason == "function_call"

    @requirement("activity.human-input")
    async def test_a_question_to_a_human_is_a_call_or_text(self) -> None:
        ask = AgentEvent(EventType.HITL, {"id": "h", "prompt": "Sure?", "options": ["yes", "no"]})
        tool = {"type": "function", "function": {"name": "request_human_input"}}
        assert (await both(saying(ask))).content == "Sure?\n- yes\n- no"
        (call,) = (await both(saying(ask), tools=[tool])).tool_calls
        assert json.loads(call.arguments) == {"prompt": "Sure?", "type": "input", "options": ["yes", "no"]}


class TestParameters:
    @requirement("chat.request.parameters", "chat.request.unknown-fields", "chat.request.max-tokens")
    async def test_what_the_client_sent_reaches_the_agent(self) -> None:
        seen: list[AgentRequest] = []

        async def agent(request: AgentRequest) -> str:
            seen.append(request)
            return "a"

        async with asking(agent) as server:
            await server.whole(temperature=0.5, max_completion_tokens=9, seed=None, top_k=4, user="u")
        (request,) = seen
        assert (request.temperature, request.max_completion_tokens, request.user) == (0.5, 9, "u")
        assert not hasattr(request, "seed")
        assert not hasattr(request, "max_tokens")
        assert dict(request.extra) == {"top_k": 4}

    @requirement("chat.request.stop")
    @pytest.mark.parametrize("stop", ["END", ["END", "never"], ["x", "EN"]])
    async def test_stop_ends_the_answer_and_closes_the_agent(self, stop: Any) -> None:
        closed = asyncio.Event()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            try:
                for piece in ("Hello E", "ND", " more"):
                    yield piece
                await asyncio.Event().wait()
            finally:
                closed.set()

        choice = await both(agent, stop=stop)
        assert (choice.content, choice.finish_reason) == ("Hello ", "stop")
        assert closed.is_set()

    @requirement("chat.request.n", "chat.stream.choice-order")
    async def test_n_runs_the_agent_n_times(self) -> None:
        runs: list[int] = []

        async def agent(request: AgentRequest) -> str:
            runs.append(len(runs))
            return f"answer {runs[-1]}"

        async with asking(agent) as server:
            streamed = await server.streamed(n=3, stream_options={"include_usage": True})
            assert [choice.content for choice in streamed.choices] == ["answer 0", "answer 1", "answer 2"]
            whole = await server.whole(n=2)
            assert [choice.content for choice in whole.choices] == ["answer 3", "answer 4"]

    @requirement("chat.stream.logprobs")
    async def test_logprobs_are_sent_when_asked_for(self) -> None:
        token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
        agent = saying(events.TextDelta("a", {"content": [token]}))
        assert (await both(agent, logprobs=True)).logprobs == [token]
        assert (await both(agent)).logprobs == []

    @requirement("chat.stream.obfuscation")
    async def test_obfuscation_is_sent_when_asked_for(self) -> None:
        async with asking(saying("a")) as server:
            padded = await server.streamed(stream_options={"include_obfuscation": True})
            assert any("obfuscation" in chunk for chunk in padded.chunks)
            plain = await server.streamed()
            assert not any("obfuscation" in chunk for chunk in plain.chunks)


class TestBesideTheText:
    @requirement("activity.reasoning")
    @pytest.mark.parametrize("field", ["both", "reasoning_content", "reasoning", "none"])
    async def test_reasoning_is_apart_from_the_content(self, field: str) -> None:
        agent = saying(AgentEvent(EventType.REASONING, {"delta": "hm"}), "a")
        choice = await both(agent, {"reasoning_field": field})
        assert (choice.reasoning, choice.content) == ("" if field == "none" else "hm", "a")

    @requirement("chat.stream.refusal")
    async def test_a_refusal_is_no_content(self) -> None:
        choice = await both(saying(events.RefusalDelta("I "), events.RefusalDelta("can't")))
        assert (choice.refusal, choice.content, choice.finish_reason) == ("I can't", "", "stop")

    @requirement("activity.sources")
    async def test_sources_come_with_the_answer(self) -> None:
        choice = await both(saying(CITATION, "a", CITATION))
        assert choice.annotations == [CITATION.data, CITATION.data]

    @requirement("chat.stream.mergeable")
    async def test_added_fields_come_with_the_delta(self) -> None:
        choice = await both(saying(AgentEvent(EventType.TEXT, {"delta": "a"}, {"tag": "x", "role": "user"}), "b"))
        assert (choice.content, choice.extra) == ("ab", {"tag": "x"})

    @requirement("chat.completion.finish-reasons")
    @pytest.mark.parametrize("reason", ["length", "content_filter"])
    async def test_the_agent_may_say_why_it_ends(self, reason: Any) -> None:
        assert (await both(saying("a", events.Finish(reason)))).finish_reason == reason


class TestActivity:
    ITEMS = (
        events.Step("search"),
        events.FunctionCall("search", '{"q":"secret"}', "own"),
        events.FunctionCallOutput("own", "secret"),
        events.Progress("Reading", 0.5),
        AgentEvent(EventType.CUSTOM, {"name": "mine", "value": 1}),
        AgentEvent(EventType.STATE, {"snapshot": {"a": 1}}),
        "a",
    )

    @requirement("activity.opt-in", "activity.in-body")
    @pytest.mark.parametrize(
        ("headers", "body", "setting"),
        [
            ({"x-agent-events": "steps"}, {}, ()),
            ({"X-Agent-Events": "Steps , unknown"}, {}, ()),
            ({}, {"x_agent": {"include": ["steps"]}}, ()),
            ({}, {}, ("steps",)),
        ],
        ids=["header", "odd header", "body", "configuration"],
    )
    async def test_it_is_sent_to_those_who_asked(self, headers: Any, body: Any, setting: Any) -> None:
        async with asking(saying(*self.ITEMS), agent_events=setting) as server:
            for parsed in (await server.streamed(headers=headers, **body), await server.whole(headers=headers, **body)):
                assert [event["type"] for event in parsed.x_agent] == ["step.started", "custom", "state"]
                assert parsed.text == "a"

    @requirement("activity.opt-in")
    async def test_it_is_not_sent_to_others(self) -> None:
        async with asking(saying(*self.ITEMS)) as server:
            assert (await server.streamed()).x_agent == []
            response = await server.post()
        assert "x_agent" not in response.json()

    @requirement("activity.io", "activity.chunks")
    async def test_arguments_and_results_need_asking_for_by_name(self) -> None:
        async with asking(saying(*self.ITEMS)) as server:
            shy = await server.post(stream=True, headers={"x-agent-events": "tools,steps,progress"})
            assert "secret" not in shy.text
            open_ = await server.streamed(headers={"x-agent-events": "tools,io"})
        assert [(event["type"], event.get("arguments"), event.get("output")) for event in open_.x_agent] == [
            ("tool_call.started", '{"q":"secret"}', None),
            ("tool_call.completed", '{"q":"secret"}', "secret"),
        ]


class TestRequests:
    @requirement("chat.request.audio")
    async def test_audio_is_refused(self) -> None:
        async with asking(saying("a")) as server:
            response = await server.post(modalities=["text", "audio"], audio={"voice": "alloy", "format": "mp3"})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "modalities")

    @requirement("chat.request.metadata")
    async def test_metadata_reaches_the_agent_within_its_limits(self) -> None:
        async def agent(request: AgentRequest) -> str:
            return json.dumps(request.metadata)

        async with asking(agent) as server:
            assert (await server.whole(metadata={"k": "v"})).text == '{"k": "v"}'
            for bad in ({"k": 5}, {"k": "v" * 513}, {"k" * 65: "v"}, {str(i): "v" for i in range(17)}):
                assert (await server.post(metadata=bad)).status_code == 400

    @requirement("chat.request.response-format")
    async def test_the_response_format_reaches_the_agent(self) -> None:
        async def agent(request: AgentRequest) -> str:
            return json.dumps(request.response_format)

        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
        async with asking(agent) as server:
            assert json.loads((await server.whole(response_format=form)).text) == form

    @requirement("chat.request.content", "chat.request.roles")
    async def test_messages_reach_the_agent_as_they_came(self) -> None:
        async def agent(request: AgentRequest) -> str:
            return json.dumps(request.messages)

        messages = [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": None, "refusal": None},
            {"role": "user", "content": "\u2028 😀", "vendor": 1},
        ]
        async with asking(agent) as server:
            assert json.loads((await server.whole(messages=messages)).text) == messages

    @requirement("chat.request.tools", "chat.request.tool-choice")
    async def test_tools_and_the_choice_reach_the_agent(self) -> None:
        async def agent(request: AgentRequest) -> str:
            return json.dumps([request.tools, request.tool_choice])

        choice = {"type": "function", "function": {"name": "weather"}}
        async with asking(agent) as server:
            said = (await server.whole(tools=[WEATHER], tool_choice=choice)).text
        assert json.loads(said) == [[WEATHER], choice]
