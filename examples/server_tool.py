"""An agent that runs a tool itself. Clients see the answer, and the tool only when they ask for it.

uvicorn server_tool:server

A client asks with the header ``X-Agent-Events: tools,progress``, or ``io`` for arguments and results too.
"""

import datetime as dt
import json
from collections.abc import AsyncIterator

from agentrun_server import AgentEventItem, AgentRequest, AgentRunServer, events


def weekday(date: str) -> str:
    return dt.date.fromisoformat(date).strftime("%A")


async def invoke_agent(request: AgentRequest) -> AsyncIterator[AgentEventItem]:
    date = request.messages[-1].text.strip()
    yield events.Progress("Looking at the calendar")
    yield events.FunctionCall("weekday", json.dumps({"date": date}), id="call_1")
    try:
        day = weekday(date)
    except ValueError as error:
        yield events.FunctionCallOutput("call_1", str(error), is_error=True)
        yield "Please give me a date, as in 2026-01-31."
    else:
        yield events.FunctionCallOutput("call_1", day)
        yield f"{date} is a {day}."


server = AgentRunServer(invoke_agent=invoke_agent)
