"""An agent on top of a model that speaks the OpenAI API: the model's chunks are yielded as they come.

OPENAI_API_KEY=… OPENAI_BASE_URL=https://api.example.com/v1 MODEL=… uvicorn openai_upstream:server

Text, reasoning, tool calls, refusals, log probabilities and token counts pass through.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai

from agentrun_server import AgentError, AgentRequest, AgentRunServer

INSTRUCTIONS = {"role": "system", "content": "Answer in one short sentence."}
PASSED_ON = ("temperature", "top_p", "max_completion_tokens", "stop", "seed", "reasoning_effort")

client: openai.AsyncOpenAI


@asynccontextmanager
async def lifespan(_: AgentRunServer) -> AsyncIterator[None]:
    """Open the client with the server and close it with the server."""
    global client
    async with openai.AsyncOpenAI() as client:
        yield


async def invoke_agent(request: AgentRequest) -> AsyncIterator[Any]:
    # Messages and tools are dictionaries in OpenAI's shape: they go on as they came.
    call: dict[str, Any] = {
        "model": os.environ.get("MODEL", "gpt-test"),
        "messages": [INSTRUCTIONS, *request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.tools:
        call |= {"tools": request.tools, "tool_choice": request.tool_choice or "auto"}
    if request.response_format:
        call["response_format"] = request.response_format
    # A parameter is an attribute of the request only when the client sent it.
    call |= {name: getattr(request, name) for name in PASSED_ON if hasattr(request, name)}
    try:
        chunks = await client.chat.completions.create(**call)
    except openai.RateLimitError:
        raise AgentError("The model is busy. Please try again.", status_code=429, code="model_busy") from None
    async with chunks:  # closed with the agent: when our client leaves, the model stops too
        async for chunk in chunks:
            yield chunk


server = AgentRunServer(invoke_agent=invoke_agent, lifespan=lifespan)
