"""A protocol of one's own beside Chat Completions: plain text in, plain text out.

uvicorn own_protocol:server

curl http://127.0.0.1:8000/plain/ask -d 'How are you?'
"""

from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from agentrun_middleware import principal_of
from agentrun_server import (
    AgentInvoker,
    AgentRequest,
    AgentRunServer,
    OpenAIProtocolHandler,
    ProtocolHandler,
)


class PlainTextProtocol(ProtocolHandler):
    """``POST /plain/ask``."""

    name = "plain_text"

    def get_prefix(self) -> str:
        return "/plain"

    def as_fastapi_router(self, agent_invoker: AgentInvoker) -> APIRouter:
        router = APIRouter()

        @router.post("/ask")
        async def ask(request: Request) -> StreamingResponse:
            question = (await request.body()).decode("utf-8", "replace")
            messages = [{"role": "user", "content": question}]
            agent_request = AgentRequest(
                messages, protocol=self.name, stream=True, principal=principal_of(request.scope)
            )
            return StreamingResponse(self.answer(agent_invoker, agent_request), media_type="text/plain")

        return router

    async def answer(self, agent_invoker: AgentInvoker, request: AgentRequest) -> AsyncIterator[str]:
        # `aclosing` stops the agent when the client leaves.
        async with aclosing(agent_invoker.invoke_stream(request)) as events:
            async for event in events:
                if isinstance(event, str):  # answer text; everything else is a typed event
                    yield event


async def invoke_agent(request: AgentRequest) -> AsyncIterator[str]:
    yield "You said: "
    yield request.messages[-1].text


server = AgentRunServer(
    invoke_agent=invoke_agent,
    protocols=[OpenAIProtocolHandler(), PlainTextProtocol()],
)
