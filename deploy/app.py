"""What the image serves until an app of yours takes the place of this file: an agent that needs no model."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentrun_server import AgentRunServer, OpenAIProtocolConfig, ServerConfig
from agentrun_server.cli.demo_agent import demo_agent


@asynccontextmanager
async def lifespan(_: AgentRunServer) -> AsyncIterator[None]:
    """Say in the log whose answers these are: nobody should take them for those of an agent of theirs."""
    logging.getLogger("agentrun_server.demo").warning("the demo agent is served: put an app of yours at /app/app.py")
    yield


server = AgentRunServer(
    invoke_agent=demo_agent,
    config=ServerConfig(openai=OpenAIProtocolConfig(model_name="demo")),
    lifespan=lifespan,
)
