"""Tools to test agents and servers: an upstream that follows a script, and a transport that really streams.

Nothing here is needed to run a server, and nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentrun_server.core.usage import Usage
    from agentrun_server.testing.clients import async_client, openai_client
    from agentrun_server.testing.fake_openai import FakeOpenAI, RecordedRequest
    from agentrun_server.testing.gate import Gate
    from agentrun_server.testing.transport import StreamingASGITransport
    from agentrun_server.testing.turns import ToolCallSpec, Turn, UpstreamError

__all__ = [
    "FakeOpenAI",
    "Gate",
    "RecordedRequest",
    "StreamingASGITransport",
    "ToolCallSpec",
    "Turn",
    "UpstreamError",
    "Usage",
    "async_client",
    "openai_client",
]

_HOMES = {
    "FakeOpenAI": "agentrun_server.testing.fake_openai",
    "Gate": "agentrun_server.testing.gate",
    "RecordedRequest": "agentrun_server.testing.fake_openai",
    "StreamingASGITransport": "agentrun_server.testing.transport",
    "ToolCallSpec": "agentrun_server.testing.turns",
    "Turn": "agentrun_server.testing.turns",
    "UpstreamError": "agentrun_server.testing.turns",
    "Usage": "agentrun_server.core.usage",
    "async_client": "agentrun_server.testing.clients",
    "openai_client": "agentrun_server.testing.clients",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return __all__
