"""HTTP around Chat Completions: what every answer carries, where it is served, when its head is sent."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.conformance.asking import CHAT, asking, body_of, messages_of
from tests.conformance.requirements import requirement
from tests.support.chat_oracle import check_chat_stream
from tests.support.clock import eventually, within
from tests.support.sse import parse_events


async def hello(request: AgentRequest) -> AsyncIterator[str]:
    yield "Hello, "
    yield "world"


async def failing(request: AgentRequest) -> AsyncIterator[str]:
    raise ValueError("secret")
    yield ""


class TestHeaders:
    @requirement("chat.http.stream-headers")
    @pytest.mark.parametrize("encoding", ["identity", "gzip, br, zstd"])
    async def test_a_stream_is_not_cached_buffered_or_compressed(self, encoding: str) -> None:
        async with asking(hello) as server:
            response = await server.post(stream=True, headers={"accept-encoding": encoding})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in response.headers["cache-control"]
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        assert "content-length" not in response.headers

    @requirement("chat.http.json-content-type", "chat.error.object")
    async def test_every_body_is_json_and_says_so(self) -> None:
        async with asking(hello) as server:
            responses = [
                await server.post(),
                await server.post(b"{"),
                await server.get("/v1/models"),
                await server.get("/v1/models/none"),
                await server.get("/nowhere"),
                await within(server.client.delete(CHAT)),
                await server.get("/health"),
            ]
        assert [r.status_code for r in responses] == [200, 400, 200, 404, 404, 405, 200]
        for response in responses:
            assert response.headers["content-type"].startswith("application/json")
            assert int(response.headers["content-length"]) == len(response.content)
            body = response.json()
            if response.status_code >= 400:
                assert body.keys() == {"error"}
                assert body["error"].keys() == {"message", "type", "param", "code"}
                assert isinstance(body["error"]["message"], str)

    @requirement("chat.http.request-id")
    async def test_every_answer_has_an_id_of_its_own(self) -> None:
        async with asking(hello) as server:
            responses = [
                await server.post(stream=True),
                await server.post(),
                await server.post(b"{"),
                await server.get("/v1/models"),
                await server.get("/nowhere"),
            ]
        async with asking(failing) as server:
            responses.append(await server.post())
        for response in responses:
            name, _, digits = response.headers["x-request-id"].partition("_")
            assert name == "req"
            assert len(digits) == 32
            assert int(response.headers["openai-processing-ms"]) >= 0
            assert response.headers["openai-version"] == "2020-10-01"
        assert len({response.headers["x-request-id"] for response in responses}) == len(responses)

    async def test_the_agent_knows_the_id_of_its_answer(self) -> None:
        async def agent(request: AgentRequest) -> str:
            return request.request_id

        async with asking(agent) as server:
            response = await server.post()
        assert response.json()["choices"][0]["message"]["content"] == response.headers["x-request-id"]

    @requirement("chat.http.ignores-accept")
    @pytest.mark.parametrize("accept", ["application/json", "*/*", "text/event-stream", "image/png", "q=;;"])
    async def test_accept_decides_nothing(self, accept: str) -> None:
        async with asking(hello) as server:
            stream = await server.post(stream=True, headers={"accept": accept})
            whole = await server.post(headers={"accept": accept})
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert whole.headers["content-type"].startswith("application/json")

    @requirement("chat.http.any-content-type")
    @pytest.mark.parametrize(
        "kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", "x", ""]
    )
    async def test_the_body_is_json_whatever_it_is_called(self, kind: str) -> None:
        async with asking(hello) as server:
            response = await server.post(headers={"content-type": kind})
        assert response.status_code == 200

    @requirement("chat.http.cors")
    async def test_configured_origins_may_use_the_sdks_headers(self) -> None:
        wanted = "authorization,content-type,openai-beta,x-stainless-lang,x-stainless-retry-count,idempotency-key"
        async with asking(hello, cors_origins=["https://app.example"]) as server:
            preflight = await within(
                server.client.options(
                    CHAT,
                    headers={
                        "origin": "https://app.example",
                        "access-control-request-method": "POST",
                        "access-control-request-headers": wanted,
                    },
                )
            )
            answer = await server.post(headers={"origin": "https://app.example"})
            foreign = await server.post(headers={"origin": "https://evil.example"})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert all(name in allowed for name in wanted.split(","))
        exposed = answer.headers["access-control-expose-headers"].lower()
        assert all(name in exposed for name in ("x-request-id", "retry-after", "retry-after-ms", "x-should-retry"))
        assert "access-control-allow-origin" not in foreign.headers

    @requirement("chat.http.any-key")
    @pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer sk-any"}, {"api-key": "any"}])
    async def test_any_key_is_accepted(self, headers: dict[str, str]) -> None:
        async with asking(hello) as server:
            assert (await server.post(headers=headers)).status_code == 200


class TestPaths:
    @requirement("chat.http.aliases")
    @pytest.mark.parametrize("prefix", ["/v1", "/openai/v1", ""])
    @pytest.mark.parametrize("slash", ["", "/"])
    async def test_the_routes_stand_where_base_urls_point(self, prefix: str, slash: str) -> None:
        async with asking(hello) as server:
            chat = await within(server.client.post(f"{prefix}/chat/completions{slash}", json=body_of({})))
            models = await server.get(f"{prefix}/models{slash}")
            model = await server.get(f"{prefix}/models/agentrun{slash}")
        assert (chat.status_code, models.status_code, model.status_code) == (200, 200, 200)

    @requirement("chat.models")
    async def test_models_are_listed_and_retrieved(self) -> None:
        agents = {"plain": hello, "vendor/model:tag": hello, "名": hello}
        async with asking(agents) as server:
            listed = (await server.get("/v1/models")).json()
            assert [model["id"] for model in listed["data"]] == list(agents)
            assert listed["object"] == "list"
            for model in listed["data"]:
                assert model.keys() == {"id", "object", "created", "owned_by"}
                assert model["object"] == "model"
                assert isinstance(model["created"], int)
                assert (await server.get(f"/v1/models/{model['id']}")).json() == model
            assert (await server.get("/v1/models/vendor%2Fmodel%3Atag")).json()["id"] == "vendor/model:tag"
            unknown = await server.get("/v1/models/other")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


class TestHead:
    @requirement("chat.http.held-head")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_failure_before_the_first_event_has_a_real_status(self, stream: bool) -> None:
        async with asking(failing) as server:
            response = await server.post(stream=stream)
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"

    @requirement("chat.http.held-head", "chat.http.hold-limit", "chat.stream.heartbeat")
    async def test_the_head_waits_for_the_first_event_but_not_for_ever(self) -> None:
        speak = asyncio.Event()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            await speak.wait()
            yield "Hello"

        async with asking(agent, response_hold=10, heartbeat_interval=15) as server:
            request = server.client.build_request("POST", CHAT, json=body_of({"stream": True}))
            answer = asyncio.create_task(server.client.send(request, stream=True))
            await eventually(lambda: server.server._admission.running == 1)
            server.pass_time(9)
            await asyncio.sleep(0)
            assert not answer.done()
            server.pass_time(2)
            response = await within(answer)
            assert response.status_code == 200
            pieces = response.aiter_raw()
            assert await within(anext(pieces)) == b": keep-alive\n\n"
            server.pass_time(16)
            assert await within(anext(pieces)) == b": keep-alive\n\n"
            speak.set()
            rest = b"".join([piece async for piece in pieces])
            await response.aclose()
        assert check_chat_stream(rest, include_usage=False).text == "Hello"

    @requirement("chat.stream.heartbeat")
    async def test_a_silent_stream_gets_comments_and_nothing_else(self) -> None:
        speak = asyncio.Event()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            yield "Hello"
            await speak.wait()
            yield ", world"

        async with asking(agent, heartbeat_interval=15) as server:
            request = server.client.build_request("POST", CHAT, json=body_of({"stream": True}))
            response = await within(server.client.send(request, stream=True))
            pieces = response.aiter_raw()
            body = await within(anext(pieces))
            for _ in range(3):
                server.pass_time(16)
                beat = await within(anext(pieces))
                assert beat == b": keep-alive\n\n"
                body += beat
            speak.set()
            body += b"".join([piece async for piece in pieces])
            await response.aclose()
        parsed = check_chat_stream(body, include_usage=False)
        assert parsed.text == "Hello, world"
        assert parsed.comments == ["keep-alive"] * 3

    @requirement("chat.stream.whole-events", "chat.stream.frames")
    async def test_every_write_holds_whole_events(self) -> None:
        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            for i in range(300):
                if i % 7 == 0:
                    await asyncio.sleep(0)
                yield f"piece {i} " * (i % 5 + 1) * (400 if i % 50 == 0 else 1)

        server = AgentRunServer(agent, config=ServerConfig(access_log=False))
        start, *bodies = await messages_of(server, {"stream": True, "stream_options": {"include_usage": True}})
        assert start["status"] == 200
        assert len(bodies) > 10
        for message in bodies:
            body = message["body"]
            assert body == b"" or body.endswith(b"\n\n")
            assert b"\r" not in body
            assert all(event.data.startswith(("{", "[DONE]")) for event in parse_events(body))
        assert [message.get("more_body", False) for message in bodies] == [True] * (len(bodies) - 1) + [False]
        whole = check_chat_stream(b"".join(m["body"] for m in bodies), include_usage=True)
        assert whole.text.startswith("piece 0 ")


class TestDisconnect:
    @requirement("chat.http.disconnect")
    @pytest.mark.parametrize("stream", [True, False])
    @pytest.mark.parametrize("spoke", [True, False])
    async def test_a_client_that_leaves_stops_an_async_agent(self, stream: bool, spoke: bool) -> None:
        waiting, ended = asyncio.Event(), asyncio.Event()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            try:
                if spoke:
                    yield "Hello"
                waiting.set()
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                assert request.is_cancelled
                ended.set()

        async with asking(agent) as server:
            asked = asyncio.create_task(server.post(stream=stream))
            await within(waiting.wait())
            asked.cancel()
            await within(ended.wait())
            with pytest.raises(asyncio.CancelledError):
                await within(asked)
            await eventually(lambda: server.server._admission.running == 0)

    @requirement("chat.http.disconnect")
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_client_that_leaves_closes_a_sync_generator_on_its_own_thread(self, stream: bool) -> None:
        waiting, threads = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def agent(request: AgentRequest) -> Iterator[str]:
            threads.append(threading.get_ident())
            try:
                yield "Hello"
                loop.call_soon_threadsafe(waiting.set)
                request.wait_cancelled(30)
                yield "too late"
            finally:
                threads.append(threading.get_ident())

        async with asking(agent) as server:
            asked = asyncio.create_task(server.post(stream=stream))
            await within(waiting.wait())
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(asked)
            await eventually(lambda: server.server._threads.running == 0)
        assert len(threads) == 2
        assert len(set(threads)) == 1


@requirement("chat.stream.no-named-events", "chat.stream.no-id-no-retry", "chat.stream.loud-end")
@pytest.mark.parametrize("fails", [True, False])
async def test_a_stream_has_data_lines_only_and_ends_loudly(fails: bool) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[Any]:
        yield "event: ping\nid: 5\nretry: 1\n\n"
        await asyncio.sleep(0)
        if fails:
            raise ValueError("no")

    async with asking(agent) as server:
        response = await server.post(stream=True)
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert ('"finish_reason":"stop"' in response.text) is not fails
    assert ('{"error":' in response.text) is fails
