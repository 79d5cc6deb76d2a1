"""The server that clients of the Responses API talk to: the agents of `agents_app`, and those that only it can show.

The tests start it as ``uvicorn tests.clients.responses_app:server``. What the agents say is written down in
`tests.clients.responses_expected`.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from agentrun_server import AgentRequest, AgentRunServer, events
from agentrun_server.core.messages import Message
from tests.clients import agents_app
from tests.clients.agents_app import Events
from tests.clients.ledger import entry_of


def recall(request: AgentRequest) -> str:
    """Answer with everything that was said so far, a line for each thing."""
    return "\n".join(line for message in request.messages for line in _lines(message))


def _lines(message: Message) -> Iterator[str]:
    if message.get("reasoning_content"):
        yield f"thought: {message['reasoning_content']}"
    if message.content is not None:
        yield f"{message.role}: {message.text}"
    if message.get("refusal"):
        yield f"refused: {message['refusal']}"
    for call in message.tool_calls or ():
        yield f"called: {call.name}({call.arguments})"


async def custom_tool(request: AgentRequest) -> Events:
    """Call the client's custom tool, whose input is text in pieces; then answer from what it said."""
    answers = [message.text for message in request.messages if message.role == "tool"]
    if answers:
        yield f"It printed {answers[-1]}."
        return
    yield events.FunctionCallDelta(name="run_code", id="call_code")
    yield events.FunctionCallDelta("print(6 ")
    yield events.FunctionCallDelta("* 7)")


async def broken_tool(request: AgentRequest) -> Events:
    """Run a tool of the agent's own that fails, and answer without it."""
    yield events.FunctionCall("search", '{"query": "weather"}', id="call_search")
    yield events.FunctionCallOutput("call_search", "no connection", is_error=True)
    yield "I could not look."


async def counted(request: AgentRequest) -> Events:
    """Say which run of its key this is: each one says something else."""
    entry = entry_of(request)
    entry.start()
    yield f"run {entry.started}"


async def thorough(request: AgentRequest) -> Events:
    """Do a bit of everything."""
    yield events.ReasoningDelta("Let me see.")
    yield "Let me look. "
    yield events.FunctionCall("search", '{"query": "weather"}', id="call_search")
    yield events.FunctionCallOutput("call_search", "3 hits")
    yield "I found "
    yield "3 hits."


async def stepwise(request: AgentRequest) -> Events:
    """Think, look and answer; the last word only when the client says so."""
    entry = entry_of(request)
    entry.start()
    yield events.ReasoningDelta("Let me see.")
    yield events.FunctionCall("search", '{"query": "weather"}', id="call_search")
    yield events.FunctionCallOutput("call_search", "3 hits")
    yield "first "
    await entry.wait_released()
    yield "second"


def where(request: AgentRequest) -> str:
    """Answer with the process that this is."""
    return str(os.getpid())


AGENTS: Mapping[str, Any] = {
    **agents_app.AGENTS,
    "recall": recall,
    "custom-tool": custom_tool,
    "broken-tool": broken_tool,
    "counted": counted,
    "stepwise": stepwise,
    "thorough": thorough,
    "where": where,
}

server = AgentRunServer(invoke_agent=AGENTS)
