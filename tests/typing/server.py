"""The server, as a type checker sees it. This file is checked, never run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, assert_type

from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

from agentrun_server import (
    AgentError,
    AgentInvoker,
    AgentRequest,
    AgentRunServer,
    OpenAIProtocolConfig,
    OpenAIProtocolHandler,
    ProtocolHandler,
    ServerConfig,
    TypedEvent,
    Usage,
)
from agentrun_server.storage.opening import open_storage


async def agent(request: AgentRequest) -> str:
    raise AgentError("No.", status_code=402, code="no_credit")


@asynccontextmanager
async def lifespan(server: AgentRunServer) -> AsyncIterator[None]:
    yield


server = AgentRunServer(
    agent,
    [OpenAIProtocolHandler()],
    ServerConfig(
        openai=OpenAIProtocolConfig(prefix="/v1", model_name="m", enable=True),
        cors_origins=["https://app.example"],
        heartbeat_interval=None,
        reasoning_field="reasoning",
        on_disconnect="continue",
    ),
    middleware=[Middleware(GZipMiddleware, minimum_size=500)],
    lifespan=lifespan,
)
asgi: ASGIApp = server
assert_type(server.app, FastAPI)
assert_type(server.as_fastapi_app(), FastAPI)
FastAPI(lifespan=server.lifespan).mount("/agent", server.as_fastapi_app())

AgentRunServer(agent, store="sqlite")
AgentRunServer(agent, store=object())  # type: ignore[arg-type]


async def shared() -> None:
    storage = await open_storage("sqlite")
    AgentRunServer(agent, store=storage)
    await storage.aclose()


ServerConfig(reasoning_field="thoughts")  # type: ignore[arg-type]
ServerConfig(unknown=1)  # type: ignore[call-arg]


class Mine(ProtocolHandler):
    name = "mine"

    def as_fastapi_router(self, agent_invoker: AgentInvoker) -> APIRouter:
        router = APIRouter()

        @router.get("/ask")
        async def ask(question: str) -> dict[str, Any]:
            request = AgentRequest([{"role": "user", "content": question}], protocol=self.name)
            said = await agent_invoker.invoke(request)
            assert_type(said, list[str | TypedEvent])
            async for item in agent_invoker.invoke_stream(request):
                assert_type(item, str | TypedEvent)
            return {"usage": sum((item for item in said if isinstance(item, Usage)), Usage())}

        return router


AgentRunServer(agent, [Mine(), OpenAIProtocolHandler()])
