"""Two replicas behind one nginx: one may be dead, or about to go, or die; a request is run once, or not at all."""

import asyncio
import inspect
import itertools
import re
from pathlib import Path

import pytest

from agentrun_server import AgentRequest
from agentrun_server.server.serve import build_config
from tests.deploy.nginx.behind import GOOD, Echo, Speaker, bearer, both, guarded, scripted
from tests.support.clock import eventually, within
from tests.support.nginx import APP_AUTH_CONF, ONE_WORKER, InFront, needs_nginx, shipped
from tests.support.raw_client import CHAT
from tests.support.serve import serve

pytestmark = needs_nginx


class Replica:
    """A server that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.server = guarded(self.agent)

    async def agent(self, request: AgentRequest) -> str:
        self.runs += 1
        return "ok"


@both
async def test_replicas_take_turns(conf: Path, in_front: InFront) -> None:
    """Also when one request comes after the other, and each is one more for its check."""
    first, second = Replica(), Replica()
    async with (
        serve(first.server) as one,
        serve(second.server) as two,
        in_front(one.port, two.port, conf=conf) as front,
    ):
        for _ in range(10):
            assert (await front.chat(headers=bearer())).status == 200
    assert (first.runs, second.runs) == (5, 5)


@both
async def test_one_replica_is_dead_and_nobody_notices(conf: Path, in_front: InFront) -> None:
    alive = Replica()
    async with serve(Echo()) as gone:
        dead = gone.port
    async with serve(alive.server) as served:
        for ports in ((dead, served.port), (served.port, dead)):
            async with in_front(*ports, conf=conf) as front:
                for _ in range(8):
                    assert (await front.chat(headers=bearer())).status == 200
                assert (await front.ask("GET", "/readyz")).status == 200
    assert alive.runs == 16


async def test_a_replica_that_drains_gets_nothing_new_and_nobody_notices(in_front: InFront) -> None:
    speaker, other = Speaker(), Replica()
    draining = guarded(speaker)
    async with (
        serve(draining) as one,
        serve(other.server) as two,
        in_front(one.port, two.port, edits=ONE_WORKER) as front,
        front.client() as client,
    ):
        await client.chat(headers=bearer())
        await within(speaker.started.wait())
        draining.drain.begin(lambda: None)
        for _ in range(6):
            assert (await front.chat(headers=bearer())).status == 200
        for _ in range(6):
            assert (await front.ask("GET", "/readyz")).status == 200
        assert len(speaker.requests) == 1
        speaker.say("last words")
        assert await client.piece() == "last words"
        speaker.finish()
        assert (await client.rest())[-1] == "[DONE]"
    assert other.runs >= 6


async def test_all_replicas_are_dead(in_front: InFront) -> None:
    async with serve(Echo()) as one, serve(Echo()) as two:
        ports = one.port, two.port
    async with in_front(*ports) as front:
        for _ in range(3):
            answer = await front.chat(headers=GOOD)
            assert (answer.status, answer.header("retry-after")) == (503, "1")


@both
async def test_a_failure_is_not_held_against_a_replica(conf: Path, in_front: InFront) -> None:
    """One request that makes the server close must not take the replicas from everybody else."""
    calls = itertools.count()

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(calls) < 4:
            writer.close()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with (
        scripted(script) as one,
        scripted(script) as two,
        in_front(one, two, conf=conf) as front,
    ):
        found = [(await front.chat()).status for _ in range(6)]
    assert found == [502, 502, 502, 502, 200, 200]


async def test_a_check_that_failed_is_not_held_against_a_replica_either(in_front: InFront) -> None:
    calls = itertools.count()

    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"auth" in await _line(reader) and next(calls) >= 4:
            writer.write(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with (
        await asyncio.start_server(listener, "127.0.0.1", 0) as one,
        await asyncio.start_server(listener, "127.0.0.1", 0) as two,
    ):
        ports = [server.sockets[0].getsockname()[1] for server in (one, two)]
        async with in_front(*ports) as front:
            found = [(await front.chat()).status for _ in range(4)]
    assert found == [503, 503, 401, 401]


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


# --- once


@pytest.mark.parametrize("method", ["POST", "PUT", "GET", "DELETE"])
async def test_what_a_replica_had_is_not_given_to_another(method: str, in_front: InFront) -> None:
    runs: list[str] = []

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        runs.append("run")
        writer.close()

    async with scripted(script) as one, scripted(script) as two:
        async with in_front(one, two) as front:
            assert (await front.ask(method, "/v1/x", b"")).status == 502
        assert runs == ["run"]
        edits = {
            "proxy_pass http://$replica;": "proxy_pass http://agents;",
            "proxy_next_upstream off;": "proxy_next_upstream error non_idempotent;",
        }
        async with in_front(one, two, edits=edits) as front:
            assert (await front.ask(method, "/v1/x", b"")).status == 502
    assert runs == ["run"] * 3, "the next one would have run it again"


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_kept_connection_that_breaks_is_no_reason_to_ask_again(method: str, in_front: InFront) -> None:
    """Though nginx cannot tell whether the server closed it before or after it took the request."""
    runs: list[str] = []

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        runs.append("run")
        if len(runs) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        else:
            writer.close()

    async with scripted(script) as port, in_front(port) as front, front.client() as client:
        for status in (200, 502):
            await client.request(method, "/v1/x", b"")
            assert (await client.response()).status == status
    assert runs == ["run"] * 2


async def test_of_the_small_file_a_post_is_run_once_too(in_front: InFront) -> None:
    runs: list[str] = []

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        runs.append("run")
        writer.close()

    async with (
        scripted(script) as one,
        scripted(script) as two,
        in_front(one, two, conf=APP_AUTH_CONF) as front,
    ):
        answer = await front.chat()
        assert (answer.status, answer.header("x-should-retry")) == (502, "false")
    assert runs == ["run"]


@both
async def test_a_replica_that_dies_in_mid_stream_leaves_no_end(conf: Path, in_front: InFront) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"b\r\ndata: one\n\n\r\n")
        await writer.drain()
        writer.transport.abort()

    async with scripted(script) as port, in_front(port, conf=conf) as front:
        async with front.client() as client:
            await client.chat()
            assert await client.event() == "one"
            assert await client.ended() == b"", "and no chunk that says that this was all"
        assert not (await front.logged(path=CHAT))["client_left"]


# --- connections to the replicas


@both
async def test_connections_to_the_server_are_kept(conf: Path, in_front: InFront) -> None:
    app = Echo()
    times = 6

    async def ask() -> int:
        app.clients.clear()
        async with front.client() as client:
            for _ in range(times):
                await client.request("POST", "/v1/x", b"{}", GOOD)
                assert (await client.response()).status == 200
        return len(app.clients)

    async with serve(app, proxy_headers=False) as served:
        async with in_front(served.port, conf=conf) as front:
            assert await ask() <= 2, "one for checks, one for requests"
        closed = {'default   "";                     # kept open': "default   close;"}
        async with in_front(served.port, conf=conf, edits=closed) as front:
            assert await ask() >= times


@both
async def test_trap_10_nginx_closes_a_connection_before_the_server_does(conf: Path, in_front: InFront) -> None:
    text = shipped(conf)
    kept = {int(seconds) for seconds in re.findall(r"keepalive_timeout (\d+)s;  # less", text)}
    assert kept == {50}
    assert max(kept) < inspect.signature(build_config).parameters["timeout_keep_alive"].default
    assert len(re.findall(r"^    upstream ", text, re.MULTILINE)) == text.count("keepalive_timeout 50s;")
    app = Echo()
    edits = {"keepalive_timeout 50s;  # less": "keepalive_timeout 20ms;  # less"}
    async with serve(app) as served, in_front(served.port, conf=conf, edits=edits) as front:
        assert (await front.ask("GET", "/livez")).status == 200
        await eventually(lambda: not served._server.server_state.connections)
