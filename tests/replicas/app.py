"""The app of the replicas: ``uvicorn tests.replicas.app:server``."""

import json

from agentrun_server import AgentRequest, AgentRunServer
from tests.replicas.control import told

__all__ = ["server"]


async def echo(request: AgentRequest) -> str:
    """Say what was said last."""
    return request.messages[-1].text


async def history(request: AgentRequest) -> str:
    """Tell what has been said so far."""
    return json.dumps([[message.role, message.text] for message in request.messages])


server = AgentRunServer({"echo": echo, "history": history, "told": told, "again": told})
