"""What an agent is given, as a type checker sees it. This file is checked, never run."""

from typing import Any, assert_type

from starlette.requests import Request

from agentrun_server import AgentRequest, Message, Tool, ToolCall
from agentrun_server.core.request import Headers


def read(request: AgentRequest) -> None:
    assert_type(request.messages, list[Message])
    assert_type(request.model, str)
    assert_type(request.stream, bool)
    assert_type(request.protocol, str)
    assert_type(request.tools, list[Tool] | None)
    assert_type(request.metadata, dict[str, Any] | None)
    assert_type(request.response_format, dict[str, Any] | None)
    assert_type(request.user, str | None)
    assert_type(request.headers, Headers)
    assert_type(request.headers["x-a"], str)
    assert_type(request.headers.getlist("x-a"), list[str])
    assert_type(request.request_id, str)
    assert_type(request.deadline, float | None)
    assert_type(request.remaining(), float | None)
    assert_type(request.is_cancelled, bool)
    assert_type(request.wait_cancelled(1.0), bool)
    assert_type(request.raw_request, Request)
    assert_type(request.extra["top_k"], Any)
    # Parameters of the protocol are there when they were sent; a checker cannot know.
    assert_type(request.temperature, Any)
    assert_type(getattr(request, "seed", None), Any | None)


def read_message(message: Message) -> None:
    assert_type(message.role, str)
    assert_type(message.text, str)
    assert_type(message.content, str | list[dict[str, Any]] | None)
    assert_type(message.name, str | None)
    assert_type(message.tool_calls, list[ToolCall] | None)
    assert_type(message.tool_call_id, str | None)
    assert_type(message.reasoning_content, str | None)
    assert_type(message["content"], Any)
    assert_type(message.model_dump(), dict[str, Any])
    as_dict: dict[str, Any] = message  # a message goes wherever a dict goes
    del as_dict


def read_tools(tool: Tool, call: ToolCall) -> None:
    assert_type(tool.name, str)
    assert_type(tool.description, str | None)
    assert_type(tool.parameters, dict[str, Any] | None)
    assert_type((call.id, call.name, call.arguments), tuple[str, str, str])


AgentRequest([{"role": "user", "content": "Hi"}], model="m", params={"temperature": 1})
AgentRequest([Message(role="user", content="Hi")])
AgentRequest(model=5)  # type: ignore[arg-type]
AgentRequest().modell = "m"  # type: ignore[attr-defined]
