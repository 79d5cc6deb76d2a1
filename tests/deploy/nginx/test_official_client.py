"""The official client through nginx, with a token as its key and the certificate that the script has made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from agentrun_server import AgentRequest
from tests.deploy.nginx.behind import Speaker, both, guarded, scripted, token
from tests.support.clock import within
from tests.support.nginx import InFront, Nginx, needs_nginx
from tests.support.serve import serve

pytestmark = needs_nginx

QUESTION: Any = {"model": "agent", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def trusts_the_certificate(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "fullchain.pem"))
    monkeypatch.setenv("NO_PROXY", "*")


@asynccontextmanager
async def client_of(front: Nginx, key: str, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key=key, **options) as client:
        yield client


@both
async def test_it_streams_and_the_agent_knows_who_asks(conf: Path, in_front: InFront) -> None:
    speaker = Speaker()
    async with (
        serve(guarded(speaker)) as served,
        in_front(served.port, conf=conf) as front,
        client_of(front, token("models:*")) as client,
    ):
        assert [model.id async for model in await client.models.list()] == ["agentrun"]
        speaker.say("one")  # the head of a stream waits for it
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        pieces = aiter(stream)
        for said in ("one", "two"):
            while not (piece := (await within(anext(pieces))).choices[0].delta.content):
                pass
            assert piece == said
            speaker.say("two")
        assert speaker.requests[0].principal.subject == "alice"
        await stream.close()
        await within(speaker.ended.wait())


@both
async def test_it_knows_the_errors_for_what_they_are(conf: Path, in_front: InFront) -> None:
    async def agent(request: AgentRequest) -> str:
        return "ok"

    server = guarded(agent, auth_required_scopes=["use"])
    async with serve(server) as served, in_front(served.port, conf=conf) as front:
        for key, error, code in (
            ("sk-nonsense", openai.AuthenticationError, "invalid_api_key"),
            (token("other"), openai.PermissionDeniedError, "insufficient_scope"),
        ):
            async with client_of(front, key, max_retries=0) as client:
                with pytest.raises(error) as raised:
                    await client.chat.completions.create(**QUESTION)
                assert raised.value.code == code
        async with client_of(front, token("use")) as client:
            long: Any = {**QUESTION, "messages": [{"role": "user", "content": "x" * 11_000_000}]}
            with pytest.raises(openai.APIStatusError) as too_long:
                await client.chat.completions.create(**long)
            assert (too_long.value.status_code, too_long.value.code) == (413, "request_too_large")
            assert (await client.chat.completions.create(**QUESTION)).choices[0].message.content == "ok"


@both
async def test_it_does_not_repeat_what_may_have_run(conf: Path, in_front: InFront) -> None:
    runs: list[str] = []

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        runs.append("run")
        writer.close()

    async with (
        scripted(script) as port,
        in_front(port, conf=conf) as front,
        client_of(front, "key", max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(**QUESTION)
    assert (raised.value.status_code, raised.value.code) == (502, "bad_gateway")
    assert runs == ["run"]


@both
async def test_it_raises_when_the_server_dies_in_mid_stream(conf: Path, in_front: InFront) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        writer.transport.abort()

    async with (
        scripted(script) as port,
        in_front(port, conf=conf) as front,
        client_of(front, "key") as client,
    ):
        stream = await client.chat.completions.create(**QUESTION, stream=True)
        pieces = aiter(stream)
        await within(anext(pieces))
        with pytest.raises(Exception, match=r"incomplete chunked read|peer closed connection|Connection error"):
            await within(anext(pieces))
