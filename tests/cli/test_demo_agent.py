"""The demo agent: what it does for each kind of message, and that no message breaks it."""

import json
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun_server import AgentRunServer, ServerConfig
from agentrun_server.cli.demo_agent import DemoAgent, _words, find_zone, plan, tool_arguments
from agentrun_server.core.events import (
    FunctionCall,
    FunctionCallOutput,
    Progress,
    ReasoningDelta,
    Step,
    TypedEvent,
)
from agentrun_server.core.messages import Tool
from agentrun_server.core.request import AgentRequest
from agentrun_server.errors import AgentError
from agentrun_server.testing import openai_client

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

WEATHER = Tool(
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    "days": {"type": "integer"},
                },
                "required": ["city"],
            },
        },
    }
)
MAIL = Tool({"type": "function", "function": {"name": "sendEmail"}})


def ask(text: str, **options: Any) -> AgentRequest:
    return AgentRequest([{"role": "user", "content": text}], **options)


def pieces(request: AgentRequest) -> list[str | TypedEvent]:
    return list(plan(request, NOON))


def text_of(request: AgentRequest) -> str:
    return "".join(piece for piece in pieces(request) if isinstance(piece, str))


def calls_of(request: AgentRequest) -> list[tuple[str, Any]]:
    return [(p.name, json.loads(p.arguments)) for p in pieces(request) if isinstance(p, FunctionCall)]


# --- tools of its own -------------------------------------------------------------------------------------


def test_a_calculation_goes_through_the_calculator() -> None:
    said = pieces(ask("What is 12 * (3 + 4)?"))
    call = next(p for p in said if isinstance(p, FunctionCall))
    assert call.id is not None
    assert said == [
        ReasoningDelta("This is arithmetic: 12 * (3 + 4). My calculator will be quicker than I am."),
        Step("calculator", "started"),
        FunctionCall("calculator", '{"expression": "12 * (3 + 4)"}', call.id),
        Progress("Running calculator", 0.5),
        FunctionCallOutput(call.id, {"result": "84", "answer": "12 * (3 + 4) = 84"}, "calculator"),
        Step("calculator", "finished"),
        "12 * (3 + 4) = 84",
    ]


def test_a_tool_that_fails_says_so() -> None:
    said = pieces(ask("1/0"))
    output = next(p for p in said if isinstance(p, FunctionCallOutput))
    assert output.is_error
    assert said[-1] == "I cannot work out 1 / 0: division by zero has no answer."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("What time is it in Tokyo?", "It is 21:00 on Sunday, 22 November 2026 (Asia/Tokyo)."),
        ("time in new york please", "It is 07:00 on Sunday, 22 November 2026 (America/New_York)."),
        ("the time in Europe/Paris", "It is 13:00 on Sunday, 22 November 2026 (Europe/Paris)."),
        ("what is the time", "It is 12:00 on Sunday, 22 November 2026 (UTC). Name a city, and I tell you its time."),
        ("东京现在几点", "现在是 21:00，2026 年 11 月 22 日，星期日（Asia/Tokyo）。"),  # noqa: RUF001
        ("Count the words in: to be or not to be", "6 words, 18 characters."),
        ("count the words: one", "1 word, 3 characters."),
        ("how many words are in 'a b c'", "3 words, 5 characters."),
        ("统计字数：生存还是毁灭", "共 6 个字（词），6 个字符。"),  # noqa: RUF001
        ("3加4等于多少", "3 + 4 = 7"),
        ("1除以0", "我算不出 1 / 0：division by zero has no answer。"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_a_question_has_its_answer(text: str, answer: str) -> None:
    assert text_of(ask(text)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("tell me a story", 'You said: tell me a story\n\n(Say "help" to see what I can do.)'),
        ("讲个故事", "你说：讲个故事\n\n（输入“帮助”看看我会什么。）"),  # noqa: RUF001
        ("count to 5", "1 2 3 4 5"),
        ("数到 3", "1、2、3"),
    ],
)
def test_the_rest_is_said_back(text: str, answer: str) -> None:
    said = pieces(ask(text))
    assert isinstance(said[0], ReasoningDelta)
    assert "".join(p for p in said if isinstance(p, str)) == answer


@pytest.mark.parametrize("text", ["help", "Help!", "hi", "", "   ", "what can you do?"])
def test_it_helps(text: str) -> None:
    assert "What is 12 * (3 + 4)?" in text_of(ask(text))


def test_it_helps_in_chinese() -> None:
    assert text_of(ask("你会什么？")).startswith("我是一个不用模型的演示智能体")  # noqa: RUF001


def test_it_can_fail_before_and_after_it_began() -> None:
    with pytest.raises(AgentError, match="failed, as you asked"):
        pieces(ask("fail"))
    later = plan(ask("fail later"), NOON)
    assert isinstance(next(later), str)
    with pytest.raises(AgentError, match="after it had begun"):
        next(later)


def test_counting_has_an_end() -> None:
    assert text_of(ask("count to 9999")).split()[-1] == "1000"


def test_a_zone_that_is_not_known_here_is_utc() -> None:
    assert find_zone("the time on the moon") == "UTC"


# --- tools of the client ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("What is the weather in Paris?", {"city": "Paris"}),
        ("weather for New York in fahrenheit, please", {"city": "New York", "unit": "fahrenheit"}),
        ("What is the weather in Paris for 3 days?", {"city": "Paris", "days": 3}),
        ('weather "San José"', {"city": "San José"}),
        ("北京天气怎么样", {"city": "北京"}),
        ("get_weather", {"city": "get_weather"}),
    ],
)
def test_a_tool_that_is_mentioned_is_called(text: str, arguments: dict[str, Any]) -> None:
    said = pieces(ask(text, tools=[MAIL, WEATHER]))
    assert isinstance(said[0], ReasoningDelta)
    assert calls_of(ask(text, tools=[MAIL, WEATHER])) == [("get_weather", arguments)]
    assert isinstance(said[-1], FunctionCall)  # the turn ends: the client runs it


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (None, []),
        ("auto", []),
        ("none", []),
        ("required", ["get_weather"]),
        ({"type": "function", "function": {"name": "sendEmail"}}, ["sendEmail"]),
        ({"type": "function", "function": {"name": "other"}}, []),
        ({"type": "allowed_tools"}, []),
    ],
)
def test_the_clients_choice_is_honoured(choice: Any, called: list[str]) -> None:
    request = ask("tell me a story", tools=[WEATHER, MAIL], tool_choice=choice)
    assert [name for name, _ in calls_of(request)] == called


def test_a_tool_is_not_called_when_the_client_says_none() -> None:
    assert calls_of(ask("the weather in Paris", tools=[WEATHER], tool_choice="none")) == []


def test_a_tool_of_the_client_takes_the_place_of_ours() -> None:
    theirs = Tool({"type": "function", "function": {"name": "calculator"}})
    said = pieces(ask("1 + 1", tools=[theirs]))
    assert isinstance(said[-1], FunctionCall)
    assert not [p for p in said if isinstance(p, FunctionCallOutput)]


def test_a_custom_tool_gets_the_message_itself() -> None:
    tool = Tool({"type": "custom", "custom": {"name": "shell"}})
    call = pieces(ask("use the shell to list files", tools=[tool]))[-1]
    assert isinstance(call, FunctionCall)
    assert call.arguments == "use the shell to list files"


def test_the_result_of_a_tool_is_passed_on() -> None:
    request = AgentRequest(
        [
            {"role": "user", "content": "weather in Paris"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
                    {"id": "b", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "rain"}]},
        ],
        tools=[WEATHER],
        tool_choice="required",
    )
    assert text_of(request) == "Your tools say:\n- get_weather: sunny\n- get_weather: rain"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELD = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "null"]) | _JSON,
        "enum": _JSON,
        "default": _JSON,
        "minimum": _JSON,
    },
)


@given(
    st.dictionaries(st.text(max_size=8), _FIELD | _JSON, max_size=4) | _JSON,
    st.lists(st.text(max_size=8), max_size=3) | _JSON,
    st.text(max_size=80),
)
@settings(max_examples=200)
def test_any_schema_is_filled_with_json(properties: Any, required: Any, text: str) -> None:
    tool = Tool(
        {
            "type": "function",
            "function": {"name": "t", "parameters": {"properties": properties, "required": required}},
        }
    )
    json.dumps(tool_arguments(tool, text))


# --- any message at all --------------------------------------------------------------------------------------


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_no_message_breaks_it(text: str) -> None:
    try:
        said = pieces(ask(text, tools=[WEATHER]))
    except AgentError:
        return
    assert said


@given(st.text())
def test_words_are_the_text_again(text: str) -> None:
    assert "".join(_words(text)) == text


async def test_it_streams_word_by_word() -> None:
    agent = DemoAgent(pause=0, now=lambda: NOON)
    said = [piece async for piece in agent(ask("tell me a story"))]
    assert [p for p in said if isinstance(p, str)][:5] == ["You", " said:", " tell", " me", " a"]
    assert len([p for p in said if isinstance(p, ReasoningDelta)]) > 5


async def test_a_request_without_messages_is_answered() -> None:
    agent = DemoAgent(pause=0, now=lambda: NOON)
    assert [piece async for piece in agent(AgentRequest())]


# --- as a response -----------------------------------------------------------------------------------------


OWN_TOOL = ["reasoning", "mcp_call", "message"]
TEXT = ["reasoning", "message"]


@pytest.mark.parametrize(
    ("text", "answer", "items"),
    [
        ("What is 12 * (3 + 4)?", "12 * (3 + 4) = 84", OWN_TOOL),
        ("1/0", "I cannot work out 1 / 0: division by zero has no answer.", OWN_TOOL),
        ("Count the words in: to be", "2 words, 5 characters.", OWN_TOOL),
        ("东京现在几点", "现在是 21:00，2026 年 11 月 22 日，星期日（Asia/Tokyo）。", OWN_TOOL),  # noqa: RUF001
        ("count to 5", "1 2 3 4 5", TEXT),
        ("tell me a story", 'You said: tell me a story\n\n(Say "help" to see what I can do.)', TEXT),
        ("What is the weather in Paris?", "", ["reasoning", "function_call"]),
        ("Run sendEmail", "", ["reasoning", "custom_tool_call"]),
    ],
)
async def test_a_response_has_what_a_chat_has(text: str, answer: str, items: list[str]) -> None:
    weather = {"type": "function", "name": WEATHER.name, "parameters": WEATHER.parameters}
    tools: Any = [weather, {"type": "custom", "name": "sendEmail"}]
    server = AgentRunServer(DemoAgent(pause=0, now=lambda: NOON), config=ServerConfig(store_url=None))
    async with openai_client(server) as client:
        whole = await client.responses.create(model="demo", input=text, tools=tools)
        async with client.responses.stream(model="demo", input=text, tools=tools) as stream:
            streamed = await stream.get_final_response()
    for response in (whole, streamed):
        assert (response.status, response.output_text) == ("completed", answer)
        assert [item.type for item in response.output] == items


async def test_a_response_that_fails_says_so() -> None:
    server = AgentRunServer(DemoAgent(pause=0), config=ServerConfig(store_url=None))
    async with openai_client(server) as client:
        for text in ("fail", "fail later"):
            with pytest.raises(openai.InternalServerError, match="as you asked"):
                await client.responses.create(model="demo", input=text)
        stream = await client.responses.create(model="demo", input="fail later", stream=True)
        begun = await anext(event async for event in stream if event.type == "response.output_text.delta")
        assert begun.delta == "This"
        with pytest.raises(openai.APIError, match="as you asked"):
            _ = [event async for event in stream]
