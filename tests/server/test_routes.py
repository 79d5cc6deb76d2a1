"""Which paths, methods and bodies are taken, what every answer carries, and what the agent sees of the request."""

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer, OpenAIProtocolConfig, ServerConfig
from agentrun_server.invoker.agent import AgentCallable
from tests.support.agents import Witness
from tests.support.chat_oracle import check_chat_stream, check_completion
from tests.support.clock import eventually, within
from tests.support.raw_client import CHAT, Response, chat_body
from tests.support.serve import serve

REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
BODY = chat_body(stream=False, text="hi")


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


async def ask(
    method: str,
    path: str,
    body: bytes | None = None,
    headers: list[tuple[str, str]] | None = None,
    *,
    agent: AgentCallable = echo,
    config: ServerConfig | None = None,
    docs_too: bool = False,
) -> Response:
    """Ask a fresh server once; with `docs_too`, one that has a FastAPI app behind it."""
    config = config if config is not None else ServerConfig(docs=docs_too)
    async with serve(AgentRunServer(agent, config=config)) as served:
        return await served.ask(method, path, body, headers or [])


behind_fastapi = pytest.mark.parametrize("docs_too", [False, True], ids=["alone", "with FastAPI"])

# --- paths


@behind_fastapi
@pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", ""])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_chat_completions_stand_under_every_prefix(prefix: str, slash: str, docs_too: bool) -> None:
    answer = await ask("POST", f"{prefix}/chat/completions{slash}", BODY, docs_too=docs_too)
    assert check_completion(answer.json()).text == "hi"


@behind_fastapi
@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models", "/models", "/v1/models/", "/models/"])
async def test_models_are_listed_under_every_prefix(path: str, docs_too: bool) -> None:
    answer = await ask("GET", path, docs_too=docs_too)
    assert answer.status == 200
    (model,) = answer.json()["data"]
    assert answer.json()["object"] == "list"
    assert model.keys() == {"id", "object", "created", "owned_by"}
    assert (model["id"], model["object"]) == ("agentrun", "model")


@behind_fastapi
@pytest.mark.parametrize(
    "path",
    ["/v1/models/org/my-model:v1", "/v1/models/org%2Fmy-model:v1", "/openai/v1/models/org%2fmy-model%3Av1/"],
)
async def test_a_model_id_may_hold_a_slash(path: str, docs_too: bool) -> None:
    config = ServerConfig(docs=docs_too, openai=OpenAIProtocolConfig(model_name="org/my-model:v1"))
    answer = await ask("GET", path, config=config)
    assert answer.status == 200
    assert answer.json()["id"] == "org/my-model:v1"


@pytest.mark.parametrize("name", ["nope", "", "agentrun/x", "%00", "..%2f..%2fetc%2fpasswd", "a" * 5000])
async def test_a_model_that_is_not_there_is_a_404(name: str) -> None:
    answer = await ask("GET", f"/v1/models/{name}x")
    assert answer.status in (404, 400)
    assert answer.error()["code"] in ("model_not_found", "invalid_http_request")
    assert b"passwd" not in answer.body


@behind_fastapi
@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/chat", "/v1/completions", "/v2/models", "/favicon.ico", "/docs/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_unknown_path_is_a_404_in_openais_shape(method: str, path: str, docs_too: bool) -> None:
    answer = await ask(method, path, docs_too=docs_too)
    assert answer.status == 404
    assert answer.error()["code"] == "unknown_url"
    assert answer.error()["type"] == "invalid_request_error"


@behind_fastapi
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_another_method_is_a_405_that_names_the_right_one(method: str, docs_too: bool) -> None:
    for path, allowed in [(CHAT, "GET, POST"), ("/v1/models", "GET"), ("/v1/models/x", "GET"), ("/health", "GET")]:
        if method in allowed:
            continue
        answer = await ask(method, path, docs_too=docs_too)
        assert answer.status == 405
        assert answer.header("allow") == allowed
        assert answer.error()["code"] == "method_not_allowed"


@behind_fastapi
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/agentrun", "/health", "/livez", "/readyz"])
async def test_head_is_get_without_the_body(path: str, docs_too: bool, http: str) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(docs=docs_too)), http=http) as served:
        async with served.client() as client:
            await client.request("HEAD", path)
            head = await client.response(head_only=True)
            await client.request("GET", path)
            whole = await client.response()
        assert head.status == whole.status == 200
        assert head.header("content-length") == whole.header("content-length") == str(len(whole.body))


async def test_head_of_chat_completions_is_that_of_the_list() -> None:
    assert (await ask("HEAD", CHAT)).status == 200


async def test_probes_say_how_it_is() -> None:
    async with serve(AgentRunServer(echo)) as served:
        assert (await served.ask("GET", "/health")).json() == {"status": "ok"}
        assert (await served.ask("GET", "/livez")).json() == {"status": "ok"}
        assert (await served.ask("GET", "/readyz")).json() == {"status": "ready"}


async def test_documentation_is_there_when_asked_for() -> None:
    assert (await ask("GET", "/docs")).status == 404
    assert (await ask("GET", "/openapi.json")).status == 404
    answer = await ask("GET", "/openapi.json", docs_too=True)
    paths = answer.json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/v1/models/{model}", "/health", "/readyz"} <= paths.keys()
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema, "the body is documented"
    assert (await ask("GET", "/docs", docs_too=True)).header("content-type") == "text/html; charset=utf-8"


# --- bodies


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded", "text/plain", ""],
)
async def test_json_is_read_whatever_it_is_called(content_type: str) -> None:
    """``curl -d`` calls it a form."""
    answer = await ask("POST", CHAT, BODY, [("content-type", content_type)])
    assert check_completion(answer.json()).text == "hi"


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "Multipart/Mixed"])
async def test_a_multipart_body_is_a_415(content_type: str) -> None:
    answer = await ask("POST", CHAT, BODY, [("content-type", content_type)])
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "GZIP", "identity, gzip"])
async def test_a_compressed_body_is_a_415(coding: str) -> None:
    answer = await ask("POST", CHAT, gzip.compress(BODY), [("content-encoding", coding)])
    assert (answer.status, answer.error()["code"]) == (415, "unsupported_media_type")


async def test_identity_is_no_compression() -> None:
    assert (await ask("POST", CHAT, BODY, [("content-encoding", "identity")])).status == 200


async def test_a_body_that_is_declared_too_long_is_a_413(http: str) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(max_body_bytes=1000)), http=http) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n")
            answer = await client.response()
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
        assert (await served.chat()).status == 200


async def test_a_body_that_grows_too_long_is_a_413(http: str) -> None:
    async with serve(AgentRunServer(echo, config=ServerConfig(max_body_bytes=1000)), http=http) as served:
        async with served.client() as client:
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(11):
                await client.send(b"64\r\n" + b" " * 100 + b"\r\n")
            answer = await client.response()
        assert (answer.status, answer.error()["code"]) == (413, "request_too_large")
        assert (await served.chat()).status == 200


async def test_a_body_may_come_in_chunks(http: str) -> None:
    async with serve(AgentRunServer(echo), http=http) as served, served.client() as client:
        await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for byte in BODY:
            await client.send(b"1\r\n" + bytes([byte]) + b"\r\n")
        await client.send(b"0\r\n\r\n")
        assert check_completion((await client.response()).json()).text == "hi"


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"a":NaN}', b"[" * 100_000])
async def test_a_body_that_is_no_json_object_is_a_400(body: bytes, http: str) -> None:
    async with serve(AgentRunServer(echo), http=http) as served:
        answer = await served.ask("POST", CHAT, body)
        assert answer.status == 400
        assert answer.error()["type"] == "invalid_request_error"
        assert answer.header("x-should-retry") is None
        assert (await served.chat()).status == 200


async def test_a_connection_serves_many_requests(http: str) -> None:
    async with serve(AgentRunServer(echo), http=http) as served, served.client() as client:
        for i in range(5):
            await client.chat(text=f"{i}", stream=False)
            assert check_completion((await client.response()).json()).text == f"{i}"
            await client.chat(text=f"{i}")
            assert check_chat_stream((await client.response()).body, include_usage=False).text == f"{i}"
            await client.request("POST", CHAT, b"{")
            assert (await client.response()).status == 400
        await eventually(lambda: served.requests == 0)


# --- headers of every answer


@behind_fastapi
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT, BODY),
        ("POST", CHAT, chat_body()),
        ("POST", CHAT, b"{"),
        ("GET", CHAT, None),
        ("GET", "/v1/models", None),
        ("GET", "/v1/models/nope", None),
        ("GET", "/nope", None),
        ("GET", "/health", None),
    ],
)
async def test_every_answer_has_an_id_a_time_and_a_version(
    method: str, path: str, body: bytes | None, docs_too: bool
) -> None:
    answer = await ask(method, path, body, docs_too=docs_too)
    assert REQUEST_ID.fullmatch(answer.header("x-request-id") or "")
    assert (answer.header("openai-processing-ms") or "").isdigit()
    assert answer.header("openai-version") == "2020-10-01"


async def test_ids_are_never_the_same() -> None:
    async with serve(AgentRunServer(echo)) as served:
        ids = {(await served.ask("GET", "/health")).header("x-request-id") for _ in range(20)}
    assert len(ids) == 20


GIVEN = [("x-request-id", "abc-123_X")]


@pytest.mark.parametrize("trust", [False, True])
async def test_an_id_is_taken_over_only_when_trusted(trust: bool) -> None:
    seen: list[str] = []

    async def agent(request: AgentRequest) -> str:
        seen.append(request.request_id)
        return ""

    answer = await ask("POST", CHAT, BODY, GIVEN, agent=agent, config=ServerConfig(trust_request_id=trust))
    assert (answer.header("x-request-id") == "abc-123_X") is trust
    assert seen == [answer.header("x-request-id")]


@pytest.mark.parametrize("bad", ["", "a" * 65, "a b", "a;b", "é", "a/../b", "<script>"])
async def test_an_id_that_is_no_id_is_never_taken_over(bad: str) -> None:
    answer = await ask("GET", "/health", None, [("x-request-id", bad)], config=ServerConfig(trust_request_id=True))
    assert REQUEST_ID.fullmatch(answer.header("x-request-id") or "")


async def test_a_model_name_of_any_text_breaks_no_header() -> None:
    answer = await ask("POST", CHAT, chat_body(stream=True, model="a\r\nset-cookie: x=1\r\n\r\n\u2028"))
    assert answer.header("set-cookie") is None
    assert check_chat_stream(answer.body, include_usage=False).model == "a\r\nset-cookie: x=1\r\n\r\n\u2028"


# --- what the agent sees


async def test_the_raw_request_can_be_read_and_read_again() -> None:
    seen: list[Any] = []

    async def agent(request: AgentRequest) -> str:
        raw = request.raw_request
        seen.append(await raw.json())
        seen.append(await raw.json())
        seen.append(json.loads(await raw.body()))
        seen.append(await request.raw_request.json())
        assert raw.headers["x-own"] == "own"
        assert raw.query_params["session"] == "7"
        assert raw.client is not None
        assert raw.client.host == "127.0.0.1"
        assert raw.method == "POST"
        assert raw.url.path == CHAT
        return ""

    body = chat_body(stream=False, text="hi", own_field={"a": 1})
    answer = await ask("POST", f"{CHAT}?session=7", body, [("X-Own", "own")], agent=agent)
    assert answer.status == 200
    assert seen == [json.loads(body)] * 4


async def test_the_raw_request_can_be_read_as_a_stream() -> None:
    async def agent(request: AgentRequest) -> str:
        pieces = [piece async for piece in request.raw_request.stream()]
        assert b"".join(pieces) == BODY
        return ""

    assert (await ask("POST", CHAT, BODY, agent=agent)).status == 200


@pytest.mark.parametrize("on_disconnect", ["cancel", "continue"])
async def test_the_raw_request_knows_whether_the_client_is_there(on_disconnect: Any, http: str) -> None:
    """Code written for FastAPI asks it between pieces; a wrong yes would cut answers short."""
    witness = Witness()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        raw = request.raw_request
        await raw.body()
        for i in range(3):
            assert not await raw.is_disconnected()
            assert not await request.raw_request.is_disconnected()
            yield f"p{i}"
        witness.note("waiting")
        if on_disconnect == "cancel":
            await witness.hang()
        while not await raw.is_disconnected():  # noqa: ASYNC110 - as code written for FastAPI does
            await asyncio.sleep(0.001)
        witness.note("gone")

    server = AgentRunServer(agent, config=ServerConfig(on_disconnect=on_disconnect, store_url=None))
    async with serve(server, http=http) as served:
        async with served.client() as client:
            await client.chat()
            assert [await client.piece() for _ in range(3)] == ["p0", "p1", "p2"]
            await witness.saw("waiting")
            client.fin()
            await witness.saw("cancelled" if on_disconnect == "cancel" else "gone")
        await served.nothing_left()


async def test_an_agent_may_wait_for_the_client_to_leave() -> None:
    witness = Witness()

    async def agent(request: AgentRequest) -> str:
        raw = request.raw_request
        await raw.body()
        witness.note("waiting")
        message = await raw.receive()
        witness.note(message["type"])
        return ""

    server = AgentRunServer(agent, config=ServerConfig(on_disconnect="continue", store_url=None))
    async with serve(server) as served:
        async with served.client() as client:
            await client.chat()
            await witness.saw("waiting")
            client.fin()
            await witness.saw("http.disconnect")
        await served.nothing_left()


async def test_the_agent_sees_headers_in_any_case_and_repeated() -> None:
    async def agent(request: AgentRequest) -> str:
        headers = request.headers
        assert headers["x-own"] == headers["X-Own"] == "one"
        assert headers.getlist("x-own") == ["one", "two"]
        assert headers.get("x-none") is None
        assert "x-none" not in headers
        return headers["host"]

    answer = await ask("POST", CHAT, BODY, [("X-OWN", "one"), ("x-own", "two")], agent=agent)
    assert check_completion(answer.json()).text == "localhost"


async def test_a_sync_agent_can_read_its_request_too() -> None:
    loop = asyncio.get_running_loop()

    def agent(request: AgentRequest) -> str:
        body = asyncio.run_coroutine_threadsafe(request.raw_request.json(), loop).result(5)
        return f"{body['messages'][0]['content']} {request.headers['host']} {request.request_id[:4]}"

    answer = await within(ask("POST", CHAT, BODY, agent=agent))
    assert check_completion(answer.json()).text == "hi localhost req_"


async def test_a_request_that_did_not_come_over_http_has_no_raw_request() -> None:
    with pytest.raises(RuntimeError, match="did not come over HTTP"):
        _ = AgentRequest([{"role": "user", "content": "x"}]).raw_request
