"""The WebSocket of the Responses API through nginx, and nothing else that wants to be one."""

import asyncio
from pathlib import Path

import pytest

from agentrun_server import AgentRequest
from tests.deploy.nginx.behind import GOOD, Echo, Headers, Speaker, bearer, both, guarded
from tests.support.clock import eventually, within
from tests.support.nginx import CONF, InFront, needs_nginx
from tests.support.serve import serve
from tests.support.websocket import KEY, RESPONSES, WebSocket

pytestmark = needs_nginx


async def who(request: AgentRequest) -> str:
    return f"{request.principal.subject}: {request.messages[-1].text}"


PATHS = ("/v1/responses", "/v1/responses/", "/openai/v1/responses", "/responses", "/responses?a=b")


@both
async def test_responses_come_through(conf: Path, in_front: InFront) -> None:
    async with serve(guarded(who)) as served, in_front(served.port, conf=conf) as front:
        for path in PATHS:
            async with front.client() as client:
                websocket = WebSocket(client)
                answer = await websocket.open(path, bearer())
                for text in ("one", "x" * 200_000):
                    event = await websocket.turn(text, store=False)
                    assert event["response"]["output"][0]["content"][0]["text"] == f"alice: {text}"
            await front.logged(request_id=answer.header("x-request-id"), path=path.partition("?")[0], status=101)


@both
async def test_events_come_when_they_are_said_and_who_leaves_ends_the_agent(conf: Path, in_front: InFront) -> None:
    speaker = Speaker()
    async with serve(guarded(speaker)) as served, in_front(served.port, conf=conf) as front:
        async with front.client() as client:
            websocket = WebSocket(client)
            await websocket.open(headers=bearer())
            await websocket.create("hi", store=False)
            for word in ("one", "two"):
                speaker.say(word)
                while (event := await websocket.event())["type"] != "response.output_text.delta":
                    pass
                assert event["delta"] == word
        await within(speaker.ended.wait())


@both
@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer wrong"),)])
async def test_a_handshake_without_a_good_credential_is_refused(
    headers: Headers, conf: Path, in_front: InFront
) -> None:
    speaker = Speaker()
    async with serve(guarded(speaker)) as served, in_front(served.port, conf=conf) as front, front.client() as client:
        answer = await WebSocket(client).ask(headers=headers)
        assert answer.status == 401
        assert answer.header("www-authenticate")
        answer.error()
    assert speaker.requests == []


@both
async def test_another_version_is_told_the_right_one(conf: Path, in_front: InFront) -> None:
    async with serve(guarded(who)) as served, in_front(served.port, conf=conf) as front, front.client() as client:
        answer = await WebSocket(client).ask(headers=bearer(), replaced={"sec-websocket-version": "8"})
        assert (answer.status, answer.header("sec-websocket-version")) == (426, "13")


@both
async def test_a_drain_closes_in_good_order(conf: Path, in_front: InFront) -> None:
    server = guarded(who)
    drained = asyncio.Event()
    async with serve(server) as served, in_front(served.port, conf=conf) as front, front.client() as client:
        websocket = WebSocket(client)
        await websocket.open(headers=bearer())
        server.drain.begin(drained.set)
        assert await websocket.closed() == 1001
        await within(drained.wait())


NO_WEBSOCKETS = (
    ("POST", RESPONSES, "websocket"),
    ("GET", RESPONSES, "h2c"),
    ("GET", RESPONSES, "websocket, h2c"),
    ("GET", "/v1/responses/x", "websocket"),
    ("GET", "/v1/responses%2f", "websocket"),
    ("GET", "/v1/x/../responses", "websocket"),
    ("GET", "//v1/responses", "websocket"),
    ("GET", "/v1/realtime", "websocket"),
    ("GET", "/v1/realtime?/v1/responses", "websocket"),
    ("GET", "/V1/RESPONSES", "websocket"),
)


@both
async def test_nothing_else_is_upgraded(conf: Path, in_front: InFront) -> None:
    app = Echo()
    async with serve(app) as served, in_front(served.port, conf=conf) as front:
        for method, path, upgrade in NO_WEBSOCKETS:
            headers: Headers = (
                *GOOD,
                ("connection", "Upgrade"),
                ("upgrade", upgrade),
                ("sec-websocket-version", "13"),
                ("sec-websocket-key", KEY),
            )
            body = b"{}" if method == "POST" else None
            assert (await front.ask(method, path, body, headers)).status == 200, (method, path, upgrade)
            assert not {"upgrade", "connection"} & set(app.calls[-1].headers), (method, path, upgrade)


async def test_a_websocket_goes_to_the_replica_that_vouched_for_it(in_front: InFront) -> None:
    first, second = guarded(who), guarded(who)
    async with serve(first) as one, serve(second) as two, in_front(one.port, two.port, conf=CONF) as front:
        first.drain.begin()
        for _ in range(2):
            async with front.client() as client:
                websocket = WebSocket(client)
                await websocket.open(headers=bearer())
                assert (await websocket.turn("hi", store=False))["type"] == "response.completed"
        await eventually(lambda: two.requests == 0)
