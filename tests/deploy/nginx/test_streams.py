"""Streams through nginx: each event at once, over every protocol; who leaves and who reads slowly is felt behind it."""

import asyncio
import json
import shutil
import signal
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentrun_server import AgentRequest
from tests.deploy.nginx.behind import GOOD, Echo, Speaker, bearer, both, guarded
from tests.support.clock import eventually, within
from tests.support.nginx import CONF, ONE_WORKER, InFront, Nginx, needs_nginx, shipped
from tests.support.raw_client import CHAT, chat_body
from tests.support.serve import serve, the_request

pytestmark = needs_nginx

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
WORDS = [f"word{i}" for i in range(5)]


@asynccontextmanager
async def curl(front: Nginx, *options: str, path: str = CHAT) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run curl with a streamed question; it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--no-buffer", "--noproxy", "*", "--max-time", "20", "--cacert", str(front.certificate)),
        *("--header", f"authorization: {bearer()[0][1]}", "--json", chat_body().decode(), *options),
        front.url + path,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await within(process.wait())


async def word(reader: asyncio.StreamReader) -> str:
    """Read on to the next piece of answer text."""
    while True:
        line = await within(reader.readline())
        assert line, "the stream has ended"
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                if text := choice["delta"].get("content"):
                    return str(text)


def text_of(answer: bytes) -> str:
    """Return what can be read so far of the body of a chunked answer, which may be compressed."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return (zlib.decompressobj(31).decompress(body) if b"Content-Encoding: gzip" in head else body).decode()


# --- each event at once


@both
async def test_every_event_passes_before_the_next_is_made(conf: Path, in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, conf=conf) as front,
        front.client() as client,
    ):
        await client.chat(headers=bearer())
        for said in WORDS:
            speaker.say(said)
            assert await client.piece() == said
        speaker.finish()
        assert (await client.rest())[-1] == "[DONE]"
        assert client.answer is not None
        assert client.answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert client.answer.header("transfer-encoding") == "chunked"
        await client.request("GET", "/v1/models", headers=bearer())
        assert (await client.response()).status == 200, "the connection goes on"


@needs_curl
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
async def test_every_event_passes_at_once_in_every_version_of_http(version: str, in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port) as front,
        curl(front, version) as process,
    ):
        assert process.stdout is not None
        for said in WORDS:
            speaker.say(said)
            assert await word(process.stdout) == said
        speaker.finish()
        assert (await within(process.stdout.read())).endswith(b"data: [DONE]\n\n")
        assert await within(process.wait()) == 0
        protocol = {"--http1.0": "HTTP/1.0", "--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"}[version]
        assert (await front.logged(path=CHAT))["protocol"] == protocol


@both
async def test_nothing_is_compressed_and_the_server_is_not_asked_to(conf: Path, in_front: InFront) -> None:
    speaker, echo = Speaker(), Echo()
    asks = (("accept-encoding", "gzip, br, zstd, deflate"),)
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, conf=conf) as front,
        front.client() as client,
    ):
        await client.chat(headers=bearer() + asks)
        speaker.say("word")
        assert await client.piece() == "word"
        assert client.answer is not None
        assert client.answer.header("content-encoding") is None
    async with serve(echo) as served, in_front(served.port, conf=conf) as front:
        answer = await front.ask("GET", "/v1/models", headers=GOOD + asks)
        assert answer.header("content-encoding") is None
        assert "accept-encoding" not in echo.calls[0].headers


BUFFERED = {"proxy_buffering off;": "", "proxy_max_temp_file_size 0;": ""}
COMPRESSED = {"gzip off;": "gzip on; gzip_types *; gzip_min_length 1;"}
DEAF = {"proxy_ignore_headers X-Accel-Redirect;": "proxy_ignore_headers X-Accel-Buffering;"}
"""It does not listen to the server, which asks not to be buffered."""


@pytest.mark.parametrize(
    ("edits", "comes"),
    [({}, True), (BUFFERED | COMPRESSED, True), (BUFFERED | COMPRESSED | DEAF, False)],
    ids=["shipped", "buffered", "buffered and deaf"],
)
async def test_trap_8_compression_and_buffering_hold_events_back(
    edits: dict[str, str], comes: bool, in_front: InFront
) -> None:
    """What the file prevents, and the server once more by what it says of its streams."""
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, edits=ONE_WORKER | edits) as front,
        front.client() as client,
    ):
        await client.chat(headers=(*bearer(), ("accept-encoding", "gzip")))
        for said in WORDS:
            speaker.say(said)
            await front.has_caught_up()
        assert (WORDS[-1] in text_of(client.arrived())) == comes


# --- who leaves


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("words", [0, 1, 3])
async def test_an_agent_ends_when_its_client_leaves(how: str, words: int, in_front: InFront) -> None:
    """Also while it is silent, also before its first word, when the head of the answer is still held back."""
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port) as front,
        front.client() as client,
    ):
        await client.chat(headers=bearer())
        await within(speaker.started.wait())
        for said in WORDS[:words]:
            speaker.say(said)
            assert await client.piece() == said
        client.leave(how)
        await within(speaker.ended.wait())
        await eventually(lambda: not served.requests)
        line = await front.logged(path=CHAT)
        assert (line["status"], line["client_left"]) == (200 if words else 499, True)


@needs_curl
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_an_agent_ends_when_its_client_is_killed(version: str, in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port) as front,
        curl(front, version) as process,
    ):
        assert process.stdout is not None
        speaker.say("word")
        assert await word(process.stdout) == "word"
        process.kill()
        await within(speaker.ended.wait())


async def test_an_answer_that_is_no_stream_ends_with_its_client_too(in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port) as front,
        front.client() as client,
    ):
        await client.chat(stream=False, headers=bearer())
        await within(speaker.started.wait())
        client.leave("fin")
        await within(speaker.ended.wait())


async def test_trap_9_without_client_abort_a_silent_agent_is_left_running(in_front: InFront) -> None:
    """What the file prevents: nobody tells the agent; it goes on until it says something to nobody."""
    speaker = Speaker()
    edits = ONE_WORKER | {"proxy_ignore_client_abort off;": "proxy_ignore_client_abort on;"}
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, edits=edits) as front,
    ):
        async with front.client() as client:
            await client.chat(headers=bearer())
            speaker.say("word")
            assert await client.piece() == "word"
            client.rst()
        await front.has_caught_up()
        assert served.requests == 1
        assert not speaker.ended.is_set()
        speaker.finish()
        await within(speaker.ended.wait())


# --- who reads slowly

PIECE = "x" * 16_000
TOO_MUCH = 40 * 1024 * 1024
"""More than the buffers of the kernel and of nginx hold, on both sides."""


class Talker:
    """An agent that says more than a slow reader takes."""

    def __init__(self) -> None:
        self.said = 0
        self.ended = asyncio.Event()

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        try:
            while self.said < TOO_MUCH:
                self.said += len(PIECE)
                await asyncio.sleep(0)
                yield PIECE
        finally:
            self.ended.set()


@both
async def test_a_slow_reader_holds_its_agent_back_and_fills_no_file(conf: Path, in_front: InFront) -> None:
    talker = Talker()
    server = guarded(talker)
    async with (
        serve(server) as served,
        in_front(served.port, conf=conf) as front,
        front.client(receive_buffer=4096) as client,
    ):
        await client.chat(headers=bearer())
        await eventually(lambda: the_request(server).blocked_since > 0)
        assert talker.said < TOO_MUCH
        assert not talker.ended.is_set()
        assert front.temporary_files() == []
        client.rst()
        await within(talker.ended.wait())
        assert talker.said < TOO_MUCH


async def test_trap_8_buffering_lets_the_agent_run_ahead_into_a_file(in_front: InFront) -> None:
    """What the file prevents: the agent runs to its end although nobody reads, and all it said is on the disk."""
    talker = Talker()
    async with (
        serve(guarded(talker)) as served,
        in_front(served.port, edits=BUFFERED | DEAF) as front,
        front.client(receive_buffer=4096) as client,
    ):
        await client.chat(headers=bearer())
        await within(talker.ended.wait(), 20)
        assert talker.said >= TOO_MUCH
        assert front.temporary_files() != []


# --- reload


async def test_a_reload_lets_streams_end_and_serves_others_meanwhile(in_front: InFront) -> None:
    speaker = Speaker()
    async with serve(guarded(speaker)) as served, in_front(served.port) as front:
        old = front.workers()
        async with front.client() as client:
            await client.chat(headers=bearer())
            speaker.say("before")
            assert await client.piece() == "before"
            front.signal(signal.SIGHUP)
            await eventually(lambda: len(front.workers() - old) == len(old) and len(front.workers() & old) == 1)
            speaker.say("after")
            assert await client.piece() == "after"
            assert (await front.ask("GET", "/v1/models", headers=bearer())).status == 200
            speaker.finish()
            assert (await client.rest())[-1] == "[DONE]"
        await eventually(lambda: not front.workers() & old)


async def test_a_stop_in_good_order_lets_streams_end(in_front: InFront) -> None:
    speaker = Speaker()
    async with serve(guarded(speaker)) as served, in_front(served.port) as front:
        async with front.client() as client:
            await client.chat(headers=bearer())
            speaker.say("before")
            assert await client.piece() == "before"
            front.signal(signal.SIGQUIT)
            await eventually(lambda: len(front.workers()) == 1)
            speaker.say("after")
            assert await client.piece() == "after"
            speaker.finish()
            assert (await client.rest())[-1] == "[DONE]"
        await front.ended()


async def test_old_workers_do_not_stay_for_ever(in_front: InFront) -> None:
    assert "worker_shutdown_timeout 1h;" in shipped(CONF)
    speaker = Speaker()
    edits = {"worker_shutdown_timeout 1h;": "worker_shutdown_timeout 10ms;"}
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, edits=edits) as front,
    ):
        old = front.workers()
        async with front.client() as client:
            await client.chat(headers=bearer())
            speaker.say("before")
            assert await client.piece() == "before"
            front.signal(signal.SIGHUP)
            await within(speaker.ended.wait())
            await client.ended()
        await eventually(lambda: not front.workers() & old)
