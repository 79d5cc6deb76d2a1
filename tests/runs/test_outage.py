"""A PostgreSQL that is stopped while it is used, and started again: runs wait for it, and all that was said is kept."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agentrun_server.runs import patience
from agentrun_server.runs.patience import SHORT
from tests.support.clock import eventually, within
from tests.support.kept import Told, keeping
from tests.support.postgres_server import PostgresServer, needs_postgres, postgres_server
from tests.support.raw_client import Response
from tests.support.response_stream import ResponseStream
from tests.support.responses_oracle import check_response_stream
from tests.support.serve import Served, serve

pytestmark = needs_postgres

PATH = "/v1/responses"


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL that may be stopped."""
    with postgres_server() as server:
        yield server


def question(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "input": "hi", **fields}).encode()


async def ask(served: Served, model: str, **fields: Any) -> Response:
    return await within(served.ask("POST", PATH, question(model, **fields)))


async def test_runs_wait_for_postgresql_and_what_was_said_is_kept_once(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.05,))
    agents = {name: Told() for name in ("attached", "background", "cancelled", "refused")}
    server = keeping(agents, store_url=postgres.url)
    async with serve(server) as served, served.client() as one, served.client() as two, served.client() as three:
        await one.request("POST", PATH, question("attached", stream=True))
        await two.request("POST", PATH, question("background", stream=True, background=True))
        cancelled = (await ask(served, "cancelled", background=True)).json()["id"]
        for agent in agents.values():
            agent.say("one ")
        attached, background, reader = ResponseStream(one), ResponseStream(two), ResponseStream(three)
        ids = [(await stream.until("response.created"))["response"]["id"] for stream in (attached, background)]
        await three.request("GET", f"{PATH}/{ids[1]}?stream=true")
        for stream in (attached, background, reader):
            await stream.until("response.output_text.delta")
        assert server._runs is not None
        local = server._runs.local
        await eventually(lambda: local[cancelled].journal.written > 3)

        await asyncio.to_thread(postgres.stop)
        stopped = time.monotonic()
        for agent in agents.values():
            agent.say("two ")
        agents["attached"].end("three")
        asked: list[dict[str, bool]] = [
            {},
            {"stream": True},
            {"background": True},
            {"background": True, "stream": True},
        ]
        agents["refused"].end()
        agents["refused"].end()
        for refused in await asyncio.gather(*(ask(served, "refused", **fields) for fields in asked)):
            assert (refused.status, refused.error()["code"]) == (503, "storage_unavailable"), refused
        refused = await served.ask("POST", f"{PATH}/{cancelled}/cancel", b"")
        assert (refused.status, refused.header("retry-after")) == (503, "1")
        await eventually(lambda: agents["cancelled"].requests[0].is_cancelled)
        await eventually(lambda: time.monotonic() > stopped + SHORT + 0.5)
        assert local.keys() == {*ids, cancelled}, "they wait"
        await asyncio.to_thread(postgres.start)

        agents["background"].end("three")
        bodies = [await stream.rest() for stream in (attached, background, reader)]
        for response_id, body in zip([*ids, ids[1]], bodies, strict=True):
            parsed = check_response_stream(body)
            assert (parsed.response["status"], parsed.text) == ("completed", "one two three")
            assert (await served.ask("GET", f"{PATH}/{response_id}")).json() == parsed.response
            assert (await served.ask("GET", f"{PATH}/{response_id}?stream=true")).body == body
        await eventually(lambda: not local)
        found = (await served.ask("GET", f"{PATH}/{cancelled}")).json()
        assert (found["status"], found["output"][0]["content"][0]["text"]) == ("cancelled", "one two ")


async def test_a_server_whose_postgresql_is_away_stops_all_the_same(postgres: PostgresServer) -> None:
    agent = Told()
    server = keeping(agent, store_url=postgres.url, drain_timeout=0.0, cancel_grace=0.2)
    async with serve(server) as served, served.client() as client:
        await client.request("POST", PATH, question("m", stream=True))
        agent.say("one")
        await ResponseStream(client).until("response.output_text.delta")
        await asyncio.to_thread(postgres.stop)
        agent.say("two")
        server.drain.begin()
        rest = b"".join([chunk async for chunk in client.chunks()])
        assert b'"code":"server_shutting_down"' in rest
    assert agent.requests[0].is_cancelled
    await eventually(lambda: not [task for task in asyncio.all_tasks() if "Journal" in repr(task)])
