"""Several agents behind one address: each is a model of its own.

uvicorn several_agents:server

``GET /v1/models`` lists them, and chat UIs show them as models to choose from. Any other model name is a 404.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from agentrun_server import AgentRequest, AgentRunServer


async def shout(request: AgentRequest) -> AsyncIterator[str]:
    for word in request.messages[-1].text.split():
        yield word.upper() + " "


def reverse(request: AgentRequest) -> str:
    return request.messages[-1].text[::-1]


@dataclass
class Greeter:
    """An agent with settings of its own is an object that can be called."""

    greeting: str

    async def __call__(self, request: AgentRequest) -> str:
        return f"{self.greeting}, {request.user or 'whoever you are'}!"


server = AgentRunServer(
    invoke_agent={
        "shout": shout,
        "reverse": reverse,
        "greeter-en": Greeter("Hello"),
        "greeter-fr": Greeter("Bonjour"),
    }
)
