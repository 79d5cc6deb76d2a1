"""The documentation of the routes: complete, and true."""

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI

from agentrun_server import AgentRequest, AgentRunServer, OpenAIProtocolConfig, OpenAIProtocolHandler, ServerConfig
from agentrun_server.protocols.openai_chat.schema import CHAT_OPERATIONS
from agentrun_server.protocols.openai_responses.schema import CONVERSATION_OPERATIONS, RESPONSE_OPERATIONS
from tests.support.serve import Served, serve

jsonschema: Any = pytest.importorskip("jsonschema")

OPERATIONS = {*CHAT_OPERATIONS, *RESPONSE_OPERATIONS, *CONVERSATION_OPERATIONS}
NAMES_A_MODEL = ["/chat/completions", "/responses", "/responses/compact"]


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


def documented(prefix: str | None = None, **settings: Any) -> AgentRunServer:
    return AgentRunServer(echo, config=ServerConfig(docs=True, openai=OpenAIProtocolConfig(prefix=prefix), **settings))


async def operations(served: Served, prefix: str = "/v1") -> dict[str, Any]:
    """Return what is documented: ``METHOD /path`` → operation, without models and probes."""
    paths = (await served.ask("GET", "/openapi.json")).json()["paths"]
    return {
        f"{method.upper()} {path.removeprefix(prefix)}": operation
        for path, methods in paths.items()
        for method, operation in methods.items()
        if path.startswith(f"{prefix}/") and not path.startswith(f"{prefix}/models")
    }


async def test_every_route_is_documented_once_and_no_other() -> None:
    async with serve(documented()) as served:
        assert (await operations(served)).keys() == OPERATIONS
        assert [path for path in (await served.ask("GET", "/openapi.json")).json()["paths"] if "/v1/" not in path] == [
            "/health",
            "/livez",
            "/readyz",
        ]
    async with serve(documented("/api")) as served:
        assert (await operations(served, "/api")).keys() == OPERATIONS


async def test_a_server_without_a_store_has_the_same_operations_and_says_what_is_missing() -> None:
    async with serve(documented(store_url=None)) as served:
        assert (await operations(served)).keys() == OPERATIONS
        assert (await served.ask("GET", "/v1/responses/resp_1")).error()["code"] == "storage_disabled"


async def test_each_operation_says_what_its_path_holds_and_has_a_name_of_its_own() -> None:
    async with serve(documented()) as served:
        found = await operations(served)
    for name, operation in found.items():
        inside = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"]
        assert inside == [part[1:-1] for part in name.split("/") if part.startswith("{")], name
        assert operation["tags"] == [name.split("/")[1]]
    for key in ("operationId", "summary"):
        assert len({operation[key] for operation in found.values()}) == len(found), key


async def test_each_operation_answers_with_what_is_documented() -> None:
    """Asked for an id that nobody has, with a body that has nothing but a model."""
    async with serve(documented()) as served:
        for name, operation in (await operations(served)).items():
            method, path = name.split(" ")
            body = {"model": "m"} if path in NAMES_A_MODEL else {}
            data = json.dumps(body).encode() if method == "POST" else None
            answer = await served.ask(method, f"/v1{path}".replace("{", "").replace("}", ""), data)
            assert str(answer.status) in operation["responses"], (name, answer)
            assert answer.status in (200, 400, 404), (name, answer)
            schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), schema)
            if answer.status == 404:
                assert answer.error()["code"] != "unknown_url", name


MESSAGE = {"role": "user", "content": "hi"}
MADE: list[tuple[str, str, Any]] = [
    ("/chat/completions", "messages", {"model": "m", "messages": [MESSAGE], "store": True}),
    ("/responses", "input_items", {"model": "m", "input": "hi", "metadata": {"a": "b"}}),
    ("/responses", "input_items", {"model": "m", "input": [MESSAGE], "background": True}),
    ("/conversations", "items", {"items": [MESSAGE], "metadata": {"a": "b"}}),
]


async def test_objects_are_as_they_are_documented() -> None:
    """Made, retrieved, listed and deleted."""
    async with serve(documented()) as served:
        described = await operations(served)

        async def ask(name: str, identity: str = "", body: Any = None) -> Any:
            data = None
            if body is not None:
                jsonschema.validate(body, described[name]["requestBody"]["content"]["application/json"]["schema"])
                data = json.dumps(body).encode()
            method, path = name.split(" ")
            answer = await served.ask(method, "/v1" + re.sub("{.*}", identity, path), data)
            assert answer.status == 200, (name, answer)
            schema = described[name]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), schema)
            return answer.json()

        for path, parts, body in MADE:
            identity = (await ask(f"POST {path}", "", body))["id"]
            one = f"{path}/{{{path.split('/')[-1].removesuffix('s')}_id}}"
            await ask(f"GET {one}", identity)
            assert len((await ask(f"GET {one}/{parts}", identity))["data"]) == 1
            await ask(f"DELETE {one}", identity)
        for path in ("/responses/input_tokens", "/responses/compact"):
            await ask(f"POST {path}", "", {"model": "m", "input": [MESSAGE]})


async def test_an_app_that_includes_the_routes_documents_them() -> None:
    app = FastAPI()
    server = AgentRunServer(echo)
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/llm")
    async with serve(app) as served:
        assert (await operations(served, "/llm")).keys() == OPERATIONS


@pytest.mark.parametrize("body", [b"{", b'{"model": "m"}'])
async def test_fastapi_has_no_say_in_what_is_a_good_request(body: bytes) -> None:
    app = FastAPI()
    server = AgentRunServer(echo)
    app.include_router(OpenAIProtocolHandler().as_fastapi_router(server.agent_invoker), prefix="/llm")
    async with serve(app) as served:
        for path in ("/llm/responses", "/llm/responses/"):
            assert (await served.ask("POST", path, body)).error()["type"] == "invalid_request_error"
