"""What docs/operations.md shows: a line of the log, and nginx in front of a stream."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.docs.markdown import ROOT, blocks
from tests.support.clock import eventually, within
from tests.support.serve import serve

PAGE = ROOT / "docs" / "operations.md"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

QUESTION = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
ASK = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(QUESTION), QUESTION)


async def test_a_line_of_the_log_has_the_fields_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    async def invoke_agent(_: AgentRequest) -> AsyncIterator[str]:
        yield "Hello"

    async with serve(AgentRunServer(invoke_agent=invoke_agent)) as served:
        await served.ask("GET", "/livez")
        await served.chat(stream=True)
    shown = next(json.loads(block.text) for block in blocks(PAGE) if block.language == "json")
    [written] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(written) == list(shown)
    assert {key: type(value) for key, value in written.items()} == {key: type(value) for key, value in shown.items()}


# --- nginx


class TalkativeAgent:
    """Says one word, and the second when it is allowed to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()
        self.request_id = ""

    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        self.request_id = request.request_id
        try:
            yield "one"
            await self.go_on.wait()
            yield "two"
        finally:
            self.ended.set()


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[Path]:
    """Run nginx with the configuration of the page in front of the port `upstream`; give the socket it listens on."""
    shown = next(block.text for block in blocks(PAGE) if block.language == "nginx")
    listening = folder / "nginx.sock"
    site = shown.replace("127.0.0.1:8000", f"127.0.0.1:{upstream}").replace("listen 80;", f"listen unix:{listening};")
    assert site.count(str(upstream)) == site.count(str(listening)) == 1
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; worker_processes 1;\n"
        f"events {{}}\nhttp {{\naccess_log off; gzip on; gzip_types *;\n{paths}{site}}}\n",
        "utf-8",
    )
    assert NGINX is not None
    process = await asyncio.create_subprocess_exec(
        NGINX, "-p", str(folder), "-e", "stderr", "-c", "nginx.conf", stderr=asyncio.subprocess.PIPE
    )
    try:

        def listens() -> None:
            assert process.returncode is None, "nginx has ended"
            assert listening.exists()

        await eventually(listens)
        yield listening
    finally:
        if process.returncode is None:
            process.terminate()
        assert process.stderr is not None
        said = (await within(process.stderr.read())).decode()
        assert await within(process.wait()) == 0, said


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_nginx_as_the_page_sets_it_up_passes_each_event_at_once_and_tells_who_left(tmp_path: Path) -> None:
    agent = TalkativeAgent()
    server = AgentRunServer(invoke_agent=agent, config=ServerConfig(trust_request_id=True))
    async with serve(server) as served, nginx(tmp_path, served.port) as address:
        reader, writer = await within(asyncio.open_unix_connection(str(address)))
        writer.write(ASK)
        head = (await within(reader.readuntil(b"\r\n\r\n"))).decode().lower()
        assert "transfer-encoding: chunked" in head
        assert "content-encoding" not in head
        assert f"x-request-id: {agent.request_id}\r\n" in head
        assert len(agent.request_id) == 32, "the id is the one nginx made"
        assert b"two" not in await within(reader.readuntil(b'"one"'))
        agent.go_on.set()
        await within(reader.readuntil(b"data: [DONE]\n\n"))

        agent.go_on.clear()
        agent.ended.clear()
        writer.write(ASK)
        await within(reader.readuntil(b'"one"'))
        writer.close()
        await within(agent.ended.wait())
        await within(writer.wait_closed())
