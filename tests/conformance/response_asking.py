"""Asking a server for responses over a real socket; each answer is held against the rules and the published schemas.

The schemas are not part of this repository: ``OPENAI_SCHEMAS`` and ``OPEN_RESPONSES_SCHEMAS`` name files with them, as
in `tests.protocols.openai_responses.test_schemas`. Without these the rules of `tests.support.responses_oracle` remain.
"""

import json
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openai
import pytest

from agentrun_server import AgentRunServer
from agentrun_server.invoker.agent import AgentCallable
from tests.support.kept import as_caller, keeping, official
from tests.support.raw_client import Response
from tests.support.responses_oracle import ParsedResponse, check_response, check_response_stream
from tests.support.serve import Served, serve

__all__ = ["Asking", "asking", "check_event_schema", "check_schema"]


@dataclass(frozen=True, slots=True)
class Asking:
    """A server, and `client`, the official one, of the caller ``alice``."""

    server: AgentRunServer
    served: Served
    client: openai.AsyncOpenAI

    async def ask(self, method: str, path: str, body: Any = None, *headers: tuple[str, str]) -> Response:
        """Make one request, of the caller ``alice``."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        return await self.served.ask(method, f"/v1{path}", data, as_caller("alice", *headers))

    async def create(self, *headers: tuple[str, str], **fields: Any) -> Response:
        """Ask for a response."""
        return await self.ask("POST", "/responses", {"model": "agent", "input": "Hi", **fields}, *headers)

    async def whole(self, **fields: Any) -> dict[str, Any]:
        """Ask for a response in one body, which must be right."""
        answer = await self.create(**fields)
        assert answer.status == 200, answer
        response: dict[str, Any] = answer.json()
        check_response(response)
        check_schema("Response", "ResponseResource", response)
        return response

    async def streamed(self, **fields: Any) -> ParsedResponse:
        """Ask for a stream, which must be right."""
        return self.judged(await self.create(stream=True, **fields))

    def judged(self, answer: Response) -> ParsedResponse:
        """Return what a stream says, which must be right from its first event."""
        assert answer.status == 200, answer
        parsed = check_response_stream(answer.body)
        for event in parsed.events:
            check_event_schema(event)
        return parsed

    async def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str, str | None]:
        """Make a request that is refused; return status, code and param."""
        answer = await self.ask(method, path, body)
        error = answer.error()
        assert error["type"] == "invalid_request_error"
        return answer.status, error["code"], error["param"]


@asynccontextmanager
async def asking(agent: AgentCallable, **settings: Any) -> AsyncIterator[Asking]:
    """Serve `agent`, with a store of its own."""
    server = keeping(agent, access_log=False, **settings)
    async with serve(server) as served, official(served) as client:
        yield Asking(server, served, client)


# --- schemas

_NOT_IN_OPEN = re.compile('mcp_call|custom_tool_call|"custom"')
"""Types of tools and items that Open Responses does not know."""


def check_event_schema(event: dict[str, Any]) -> None:
    """Hold an event of a stream against both specifications."""
    kind = event["type"]
    # Open Responses has a schema for each event, named after it.
    words = re.split(r"[._]", kind.replace("summary_text", "summary"))
    name = "".join(word.capitalize() for word in words) + "StreamingEvent"
    check_schema("ResponseErrorEvent" if kind == "error" else "ResponseStreamEvent", name, event)


def check_schema(openai_name: str, open_name: str, value: Any) -> None:
    """Hold a value against schemas of both specifications, as far as these are at hand."""
    _check("OPENAI_SCHEMAS", openai_name, _without_null_usage(value))
    if not _NOT_IN_OPEN.search(json.dumps(value)):
        _check("OPEN_RESPONSES_SCHEMAS", open_name, value)


def _without_null_usage(value: dict[str, Any]) -> dict[str, Any]:
    """Leave out a usage of null: OpenAI's specification has none, while the real API and Open Responses have."""
    if "response" in value:
        return {**value, "response": _without_null_usage(value["response"])}
    return {key: inner for key, inner in value.items() if key != "usage" or inner is not None}


def _check(variable: str, name: str, value: Any) -> None:
    path = os.environ.get(variable)
    if path:
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in _validator(path, name)(value)]
        assert not errors, f"{name}: {errors}"


@cache
def _validator(path: str, name: str) -> Callable[[Any], Any]:
    jsonschema = pytest.importorskip("jsonschema")
    schemas = json.loads(Path(path).read_text(encoding="utf-8"))["components"]["schemas"]
    assert name in schemas, name
    schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    checked: Callable[[Any], Any] = jsonschema.Draft202012Validator(schema).iter_errors
    return checked
