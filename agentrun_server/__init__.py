"""Put any Python agent behind the OpenAI API.

::

    from agentrun_server import AgentRequest, AgentRunServer


    async def invoke_agent(request: AgentRequest):
        yield "Hello, "
        yield request.messages[-1].text


    server = AgentRunServer(invoke_agent=invoke_agent)  # uvicorn app:server
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, TypeAlias

from agentrun_server.config import OpenAIProtocolConfig, ProtocolConfig, ServerConfig
from agentrun_server.core import events
from agentrun_server.core.events import AgentEvent, AgentResult, EventType, MergeOptions, TypedEvent
from agentrun_server.core.messages import Message, MessageRole, Tool, ToolCall
from agentrun_server.core.request import AgentRequest
from agentrun_server.core.session import Session
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentError, AgentRunServerError, APIError, ConfigurationError
from agentrun_server.server.app import AgentRunServer
from agentrun_server.server.protocols import (
    AgentInvoker,
    BaseProtocolHandler,
    OpenAIProtocolHandler,
    ProtocolHandler,
)

__version__ = "0.1.0"

AgentEventItem: TypeAlias = str | AgentEvent | TypedEvent
AgentResultItem: TypeAlias = AgentEventItem
SyncAgentEventGenerator: TypeAlias = Generator[AgentEventItem, None, None]
SyncAgentResultGenerator: TypeAlias = SyncAgentEventGenerator
AsyncAgentEventGenerator: TypeAlias = AsyncGenerator[AgentEventItem, None]
AsyncAgentResultGenerator: TypeAlias = AsyncAgentEventGenerator
AgentReturnType: TypeAlias = (
    AgentEventItem
    | list[AgentEventItem]
    | dict[str, Any]
    | Iterator[AgentEventItem]
    | AsyncIterator[AgentEventItem]
    | None
)
SyncInvokeAgentHandler: TypeAlias = Callable[[AgentRequest], AgentReturnType]
AsyncInvokeAgentHandler: TypeAlias = Callable[[AgentRequest], Awaitable[AgentReturnType]]
InvokeAgentHandler: TypeAlias = SyncInvokeAgentHandler | AsyncInvokeAgentHandler

__all__ = [
    "APIError",
    "AgentError",
    "AgentEvent",
    "AgentEventItem",
    "AgentInvoker",
    "AgentRequest",
    "AgentResult",
    "AgentResultItem",
    "AgentReturnType",
    "AgentRunServer",
    "AgentRunServerError",
    "AsyncAgentEventGenerator",
    "AsyncAgentResultGenerator",
    "AsyncInvokeAgentHandler",
    "BaseProtocolHandler",
    "ConfigurationError",
    "EventType",
    "InvokeAgentHandler",
    "MergeOptions",
    "Message",
    "MessageRole",
    "OpenAIProtocolConfig",
    "OpenAIProtocolHandler",
    "ProtocolConfig",
    "ProtocolHandler",
    "ServerConfig",
    "Session",
    "SyncAgentEventGenerator",
    "SyncAgentResultGenerator",
    "SyncInvokeAgentHandler",
    "Tool",
    "ToolCall",
    "TypedEvent",
    "Usage",
    "__version__",
    "events",
]
