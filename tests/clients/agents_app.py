"""One server with a small agent for every thing that clients must get right; each is a model of its own.

The tests start it as ``uvicorn tests.clients.agents_app:server`` and let real clients talk to it. What the agents say
is written down in `tests.clients.expected`.

A caller that wants to know what became of its runs begins its first message with a key of its own and asks the model
`ledger` about that key.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from agentrun_server import AgentError, AgentRequest, AgentRunServer, TypedEvent, Usage, events
from tests.clients.ledger import entry_of, ledger

Events = AsyncIterator[str | TypedEvent]

QUIET: Final = 0.8
"""Seconds of silence; longer than the server of the tests holds its head or stays without a heartbeat."""


# --- answers


def echo(request: AgentRequest) -> str:
    """Answer with the last message: a plain function that returns a plain string."""
    return f"You said: {request.messages[-1].text}"


async def stream(request: AgentRequest) -> Events:
    """Answer in pieces that are hard on parsers: not ASCII, line ends of every kind, what looks like the protocol."""
    for piece in ("Hel", "lo, wörld", " — 日本語 ", "🎉", "\n\ndata: [DONE]\r\n\n", '\u2028{"quoted": \\} ', "end."):
        yield piece


def reason(request: AgentRequest) -> Iterator[str | TypedEvent]:
    """Think first, then answer: a sync generator."""
    yield events.ReasoningDelta("Six times ")
    yield events.ReasoningDelta("seven.")
    yield "The answer "
    yield "is 42."


async def refuse(request: AgentRequest) -> Events:
    """Refuse, in pieces."""
    yield events.RefusalDelta("I cannot ")
    yield events.RefusalDelta("help with that.")


async def cite(request: AgentRequest) -> Events:
    """Name the sources of the answer."""
    yield "Paris is the "
    yield events.Annotation.url_citation("https://example.org/paris", "Paris", 0, 5)
    yield "capital of France."
    yield events.Annotation.url_citation("https://example.org/france", "France", 24, 30)


async def usage(request: AgentRequest) -> Events:
    """Report the tokens of two model calls."""
    yield Usage(input_tokens=11, output_tokens=7, cached_tokens=3, reasoning_tokens=2)
    yield "Counted."
    yield Usage(input_tokens=4, output_tokens=1)


async def length(request: AgentRequest) -> Events:
    """Stop in the middle of the answer."""
    yield "Cut of"
    yield events.Finish("length")


async def json_answer(request: AgentRequest) -> Events:
    """Answer in the format the client asked for; the schema must have arrived whole."""
    wanted = request.response_format or {}
    schema = wanted.get("json_schema", {}).get("schema", {})
    if set(schema.get("properties", ())) != {"city", "degrees"}:
        raise AgentError(f"unexpected response_format: {wanted}", status_code=400, code="bad_format")
    yield '{"city": "Pa'
    yield 'ris", "degr'
    yield 'ees": 21}'


def params(request: AgentRequest) -> str:
    """Answer with what arrived."""
    return json.dumps(
        {
            "params": dict(request.params),
            "extra": dict(request.extra),
            "messages": request.messages,
            "metadata": request.metadata,
            "user": request.user,
            "response_format": request.response_format,
            "tool_choice": request.tool_choice,
            "tools": [tool.name for tool in request.tools or ()],
        }
    )


# --- tools


def tool_answers(request: AgentRequest) -> dict[str, str]:
    """Return what the client's tools answered, by the city each was asked about."""
    calls = [call for message in request.messages for call in message.tool_calls or () if call.name == "get_weather"]
    cities = {call.id: json.loads(call.arguments)["city"] for call in calls}
    said = {message.tool_call_id: message.text for message in request.messages if message.role == "tool"}
    return {city: said[call_id] for call_id, city in cities.items()}


async def client_tool(request: AgentRequest) -> Events:
    """Call the client's tool, then answer from what it said."""
    answers = tool_answers(request)
    if not answers:
        yield events.FunctionCall("get_weather", '{"city": "Paris"}')
        return
    yield "It is "
    yield f"{answers['Paris']} in Paris."


def two_tools(request: AgentRequest) -> Iterator[str | TypedEvent]:
    """Call the client's tool twice in one turn, with arguments in pieces."""
    answers = tool_answers(request)
    if answers:
        yield ", ".join(f"{city}: {answer}" for city, answer in answers.items())
        return
    yield events.FunctionCallDelta(name="get_weather", id="call_paris")
    yield events.FunctionCallDelta('{"ci')
    yield events.FunctionCallDelta('ty": "Paris"}')
    yield events.FunctionCallDelta(name="get_weather", id="call_rome")
    yield events.FunctionCallDelta('{"city": ')
    yield events.FunctionCallDelta('"Rome"}')


async def server_tool(request: AgentRequest) -> Events:
    """Run a tool of the agent's own, which is none of the client's business."""
    yield "Let me look. "
    yield events.FunctionCall("search", '{"query": "weather"}', id="call_search")
    yield events.FunctionCallOutputDelta("call_search", "3 ")
    yield events.FunctionCallOutput("call_search", "3 hits")
    yield "I found 3 hits."


async def mixed(request: AgentRequest) -> Events:
    """Run a tool of the agent's own, then call one of the client's."""
    answers = tool_answers(request)
    if answers:
        yield f"It is {answers['Paris']} in Paris."
        return
    yield events.FunctionCallDelta(name="search", id="call_search")
    yield events.FunctionCallDelta('{"query": ')
    yield events.FunctionCallDelta('"weather"}')
    yield events.FunctionCallOutput("call_search", "ask the user's own thermometer")
    yield "Let me ask. "
    yield events.FunctionCallDelta(name="get_weather", id="call_weather")
    yield events.FunctionCallDelta('{"city": "Paris"}')


# --- failures


def fail_before(request: AgentRequest) -> str:
    """Raise before there is anything to send."""
    entry_of(request).start()
    raise RuntimeError("secret detail")


async def fail_status(request: AgentRequest) -> str:
    """Fail on purpose, with a status and a code that the caller is meant to see."""
    entry_of(request).start()
    raise AgentError("Out of credit.", status_code=429, code="insufficient_quota")


async def fail_mid(request: AgentRequest) -> Events:
    """Raise after three pieces, without a pause in which the server could have sent one."""
    entry_of(request).start()
    for piece in ("one ", "two ", "three "):
        yield piece
    raise RuntimeError("secret detail")


async def fail_late(request: AgentRequest) -> Events:
    """Raise when the client has proved that it holds the first piece."""
    entry = entry_of(request)
    entry.start()
    yield "one "
    await entry.wait_released()
    raise RuntimeError("secret detail")


async def give_up(request: AgentRequest) -> Events:
    """Say why the answer ends here."""
    entry_of(request).start()
    yield "one "
    yield events.Failure("The upstream is down.", code="upstream_down")


async def fail_quiet(request: AgentRequest) -> Events:
    """Raise before the first event, but so late that the server has begun to answer."""
    entry_of(request).start()
    await asyncio.sleep(QUIET)
    raise RuntimeError("secret detail")
    yield ""  # makes this a generator


# --- time


async def quiet(request: AgentRequest) -> Events:
    """Be silent before and within the answer, so that the server has to keep the stream alive."""
    await asyncio.sleep(QUIET)
    yield "first "
    await asyncio.sleep(QUIET / 2)
    yield "second"


async def slow(request: AgentRequest) -> Events:
    """Say one word, and the next only when the client has proved that it holds the first."""
    entry = entry_of(request)
    entry.start()
    yield "first "
    await entry.wait_released()
    yield "second"


async def stall(request: AgentRequest) -> Events:
    """Say one word and then nothing, until the client is gone."""
    entry = entry_of(request)
    entry.start()
    yield "first "
    await entry.stall()


async def stuck(request: AgentRequest) -> str:
    """Say nothing at all, until the client is gone."""
    entry = entry_of(request)
    entry.start()
    await entry.stall()
    return "the client never left"


AGENTS: Mapping[str, Any] = {
    "ledger": ledger,
    "echo": echo,
    "stream": stream,
    "reason": reason,
    "refuse": refuse,
    "cite": cite,
    "usage": usage,
    "length": length,
    "json": json_answer,
    "params": params,
    "client-tool": client_tool,
    "two-tools": two_tools,
    "server-tool": server_tool,
    "mixed": mixed,
    "fail-before": fail_before,
    "fail-status": fail_status,
    "fail-mid": fail_mid,
    "fail-late": fail_late,
    "fail-quiet": fail_quiet,
    "give-up": give_up,
    "quiet": quiet,
    "slow": slow,
    "stall": stall,
    "stuck": stuck,
}

server = AgentRunServer(invoke_agent=AGENTS)
