"""An agent that calls a tool of its client: the client runs it and comes back with the result.

uvicorn client_tool:server

A call of a tool that the client declared in ``tools`` ends the turn with finish reason ``tool_calls``.
"""

from collections.abc import AsyncIterator

from agentrun_server import AgentEventItem, AgentRequest, AgentRunServer, events


async def invoke_agent(request: AgentRequest) -> AsyncIterator[AgentEventItem]:
    last = request.messages[-1]
    if last.role == "tool":
        yield f"Your position is {last.text}."
    elif any(tool.name == "get_position" for tool in request.tools or ()):
        yield "I will ask your device. "
        yield events.FunctionCall("get_position", '{"exact": true}')
    else:
        yield "I cannot know where you are: you did not give me the tool get_position."


server = AgentRunServer(invoke_agent=invoke_agent)
