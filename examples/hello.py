"""The smallest agent: an async generator.

uvicorn hello:server
"""

from collections.abc import AsyncIterator

from agentrun_server import AgentRequest, AgentRunServer


async def invoke_agent(request: AgentRequest) -> AsyncIterator[str]:
    yield "Hello, "
    yield request.messages[-1].text


server = AgentRunServer(invoke_agent=invoke_agent)
