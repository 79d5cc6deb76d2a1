"""A Chat Completions request that was read, and what the settings say of its answer."""

from dataclasses import dataclass

from agentrun_server.config import ServerConfig
from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.invoker.agent import Agent
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.turn import ChatSettings

__all__ = ["ChatQuestion", "chat_settings", "is_stored"]


@dataclass(frozen=True, slots=True)
class ChatQuestion:
    """A request that was read."""

    agent: Agent
    request: AgentRequest
    options: ChatOptions
    headers: Headers
    body: bytes


def chat_settings(config: ServerConfig) -> ChatSettings:
    """Return what answers look like."""
    return ChatSettings(config.reasoning_field, config.human_input_tool, config.max_output_bytes)


def is_stored(request: AgentRequest, config: ServerConfig) -> bool:
    """Tell whether the answer can be fetched by its id."""
    store = request.params.get("store")
    # A stream that may lose its client, unless the client does not want it to be stored.
    return store is True or (store is None and config.on_disconnect == "continue" and request.stream)
