"""Every kind of agent is one for a type checker. This file is checked, never run."""

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from agentrun_server import (
    AgentEvent,
    AgentEventItem,
    AgentRequest,
    AgentReturnType,
    AgentRunServer,
    AsyncAgentEventGenerator,
    AsyncAgentResultGenerator,
    EventType,
    InvokeAgentHandler,
    SyncAgentEventGenerator,
    events,
)


def sync_function(request: AgentRequest) -> str:
    return request.messages[-1].text


async def async_function(request: AgentRequest) -> str:
    return request.model


def sync_generator(request: AgentRequest) -> Iterator[str]:
    yield "a"


async def async_generator(request: AgentRequest) -> AsyncIterator[str]:
    yield "a"


async def with_events(request: AgentRequest) -> AsyncIterator[AgentEventItem]:
    yield "a"
    yield events.ReasoningDelta("hm")
    yield events.Usage(1, 2)
    yield AgentEvent(EventType.TEXT, {"delta": "a"}, addition={"k": 1}, addition_merge_options={"no_new_field": True})


def sdk_sync(request: AgentRequest) -> SyncAgentEventGenerator:
    yield "a"
    yield AgentEvent(event=EventType.TOOL_CALL, data={"id": "1", "name": "f", "args": {}})


async def sdk_async(request: AgentRequest) -> AsyncAgentEventGenerator:
    yield "a"


async def sdk_result(request: AgentRequest) -> AsyncAgentResultGenerator:
    yield "a"


async def either(request: AgentRequest) -> AgentReturnType:
    if request.stream:
        return async_generator(request)
    return ["a", AgentEvent(EventType.TEXT, {"delta": "b"})]


class Callable:
    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        yield "a"


def with_option(option: int, request: AgentRequest) -> dict[str, Any]:
    return {"role": "assistant", "content": str(option)}


AgentRunServer(sync_function)
AgentRunServer(async_function)
AgentRunServer(sync_generator)
AgentRunServer(async_generator)
AgentRunServer(with_events)
AgentRunServer(sdk_sync)
AgentRunServer(sdk_async)
AgentRunServer(sdk_result)
AgentRunServer(invoke_agent=either)
AgentRunServer(Callable())
AgentRunServer(partial(with_option, 1))
AgentRunServer({"a": sync_function, "b": async_generator, "c": Callable()})

AgentRunServer("no agent")  # type: ignore[arg-type]
AgentRunServer()  # type: ignore[call-arg]

handler: InvokeAgentHandler = either
handler = sync_function
