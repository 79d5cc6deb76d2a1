"""The Responses API over a WebSocket, as its official client and the compliance tests of Open Responses use it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.resources.responses.responses import AsyncResponsesConnection

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.support.clock import within
from tests.support.serve import serve
from tests.support.websocket import WebSocket

pytest.importorskip("websockets")


async def recite(request: AgentRequest) -> AsyncIterator[str]:
    for message in request.messages:
        yield f"{message.text}. "


def server(**settings: Any) -> AgentRunServer:
    return AgentRunServer(recite, config=ServerConfig(access_log=False, **{"store_url": None, **settings}))


@asynccontextmanager
async def connection() -> AsyncIterator[AsyncResponsesConnection]:
    async with (
        serve(server()) as served,
        openai.AsyncOpenAI(api_key="x", base_url=f"{served.url}/v1") as client,
        client.responses.connect() as connected,
    ):
        yield connected


async def ends(connected: AsyncResponsesConnection, *lanes: str | None) -> dict[str | None, Any]:
    """Return the last event of each of `lanes`, which each belongs to one."""
    last: dict[str | None, Any] = {}
    while set(lanes) - set(last):
        event: Any = await within(connected.recv())
        assert event.stream_id in lanes
        if event.type in ("response.completed", "response.failed", "response.incomplete", "error"):
            last[event.stream_id] = event
    return last


async def test_the_official_client_reads_every_event_as_one_of_its_own() -> None:
    async with connection() as connected:
        await connected.response.create(model="m", input="Hi", store=False, stream_id="main")
        events = []
        async for event in connected:
            events.append(event)
            if event.type == "response.completed":
                break
    assert {type(event).__module__.startswith("openai.types.responses.") for event in events} == {True}
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert {event.stream_id for event in events} == {"main"}
    assert events[-1].response.output_text == "Hi. "  # type: ignore[union-attr]


async def test_conversations_run_at_once_and_fork_as_in_the_guide() -> None:
    async with connection() as connected:
        for lane, text in (("planner", "Plan"), ("research", "Risks")):
            await connected.response.create(model="m", input=text, store=False, stream_id=lane)
        first = await ends(connected, "planner", "research")
        plan = first["planner"].response.id
        for lane, text in (("critic", "Gaps?"), ("planner", "More.")):
            await connected.response.create(
                model="m", input=text, store=False, stream_id=lane, previous_response_id=plan
            )
            if lane == "critic":  # let the fork load its parent before the lane goes on
                while (await within(connected.recv())).type != "response.in_progress":
                    pass
        second = await ends(connected, "critic", "planner")
    assert second["critic"].response.output_text == "Plan. Plan. . Gaps?. "
    assert second["planner"].response.output_text == "Plan. Plan. . More.. "
    assert {event.response.previous_response_id for event in second.values()} == {plan}


async def test_errors_are_events_with_a_status_and_the_client_goes_on() -> None:
    async with connection() as connected:
        await connected.response.create(model="m", input="Hi", previous_response_id="resp_x", stream_id="main")
        error = (await ends(connected, "main"))["main"]
        assert (error.status, error.error.code, error.error.param) == (
            400,
            "previous_response_not_found",
            "previous_response_id",
        )
        assert error.error.headers["x-request-id"].startswith("req_")
        await connected.response.create(model="m", input="Hi")
        assert (await ends(connected, None))[None].response.output_text == "Hi. "


class TestOpenResponses:
    """The compliance tests whose names begin with ``websocket-``, message for message."""

    async def test_websocket_failed_continuation_evicts_cache(self) -> None:
        async with serve(server()) as served, served.client() as client:
            websocket = WebSocket(client)
            await websocket.open()
            first = await websocket.turn("Remember the code word: ember. Reply with OK.", store=False)
            previous = {"store": False, "previous_response_id": first["response"]["id"]}
            output = {"type": "function_call_output", "call_id": "call_openresponses_missing", "output": "None."}
            failed = await websocket.turn([output], **previous)
            assert failed["type"] in ("error", "response.failed")
            retried = await websocket.turn("Try to continue after the failed turn.", **previous)
            assert retried["error"]["code"] == "previous_response_not_found"

    async def test_websocket_reconnect_store_false_recovery(self) -> None:
        async with serve(server()) as served:
            async with served.client() as client:
                websocket = WebSocket(client)
                await websocket.open()
                first = await websocket.turn("Remember the code word: copper. Reply with OK.", store=False)
            async with served.client() as client:
                websocket = WebSocket(client)
                await websocket.open()
                missed = await websocket.turn("Try.", store=False, previous_response_id=first["response"]["id"])
                assert missed["error"]["code"] == "previous_response_not_found"
                recovered = await websocket.turn([{"type": "message", "role": "user", "content": "New."}], store=False)
                assert recovered["response"]["status"] == "completed"

    async def test_websocket_compact_new_chain(self) -> None:
        said: list[dict[str, Any]] = [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "The word is slate."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "OK."}]},
        ]
        async with serve(server()) as served, served.client() as client:
            body = json.dumps({"model": "m", "input": said}).encode()
            compacted = (await served.ask("POST", "/v1/responses/compact", body)).json()["output"]
            websocket = WebSocket(client)
            await websocket.open()
            ask = {"type": "message", "role": "user", "content": "Continue from here."}
            event = await websocket.turn([*compacted, ask], store=False, tools=[])
            assert event["response"]["status"] == "completed"
            assert "slate" in event["response"]["output"][0]["content"][0]["text"]
