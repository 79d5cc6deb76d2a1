"""What docs/operations.md shows: lines of the log, what it says of the store, and of the nginx in front."""

import asyncio
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from tests.docs.markdown import ROOT, blocks, table_rows
from tests.support.kept import Told
from tests.support.nginx import APP_AUTH_CONF, CONF, make_certificate, needs_nginx, nginx, shipped
from tests.support.raw_client import Response
from tests.support.serve import Served, serve

PAGE = ROOT / "docs" / "operations.md"


async def invoke_agent(_: AgentRequest) -> AsyncIterator[str]:
    yield "Hello"


async def test_a_line_of_the_log_has_the_fields_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(AgentRunServer(invoke_agent=invoke_agent)) as served:
        await served.ask("GET", "/livez")
        await served.chat(stream=True)
    shown = next(json.loads(block.text) for block in blocks(PAGE) if block.language == "json")
    [written] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(written) == list(shown)
    assert {key: type(value) for key, value in written.items()} == {key: type(value) for key, value in shown.items()}


# --- what is stored


def home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Have servers keep what they store in `folder`; return the file."""
    monkeypatch.setenv("AGENTRUN_HOME", str(folder))
    return folder / "agentrun.db"


async def respond(served: Served, **fields: Any) -> Response:
    """Ask for a response."""
    body = json.dumps({"model": "m", "input": "Hi", **fields}).encode()
    return await served.ask("POST", "/v1/responses", body)


async def test_the_copy_that_the_page_makes_of_a_store_in_use_is_whole_and_ends_what_was_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [command] = [block.text for block in blocks(PAGE) if "VACUUM INTO" in block.text]
    statement = re.search(r"\"(VACUUM INTO '.*')\"", command)
    assert statement is not None
    (tmp_path / "backup").mkdir()
    copy = home(monkeypatch, tmp_path / "backup")
    file = home(monkeypatch, tmp_path / "home")
    agent = Told()
    config = ServerConfig(access_log=False, worker_lease=0.3)
    async with serve(AgentRunServer(agent, config=config)) as served:
        agent.end("Hello")
        made = (await respond(served)).json()
        running = (await respond(served, background=True)).json()
        await agent.ran(2)
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True)) as connection:
            connection.execute(statement[1].replace("/backup/agentrun.db", str(copy)))
        agent.end("Hello")
    home(monkeypatch, copy.parent)
    async with serve(AgentRunServer(agent, config=config)) as served:
        assert (await served.ask("GET", f"/v1/responses/{made['id']}")).json() == made
        async with asyncio.timeout(5):
            while True:
                found = (await served.ask("GET", f"/v1/responses/{running['id']}")).json()
                if found["status"] == "failed":
                    break
                await asyncio.sleep(0.01)
        assert "was lost" in found["error"]["message"]


@pytest.mark.parametrize("stored", [True, False])
async def test_a_store_of_a_newer_release_is_left_alone_and_what_needs_none_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stored: bool
) -> None:
    file = home(monkeypatch, tmp_path)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute(f"PRAGMA application_id = {0x41475253}")
        connection.execute("PRAGMA user_version = 99")
    async with serve(AgentRunServer(invoke_agent, config=ServerConfig(access_log=False))) as served:
        answer = await respond(served, store=stored)
        found = await served.ask("GET", "/v1/responses/resp_1")
        assert (await served.ask("GET", "/readyz")).status == 503
    assert answer.status == (503 if stored else 200)
    assert (found.status, found.error()["code"]) == (503, "storage_unavailable")
    [line] = [vars(record) for record in caplog.records if record.msg == "the store cannot be opened"]
    assert line["reason"].startswith("the store has schema 99")
    assert line["exc_info"] is None


async def test_a_server_starts_where_it_may_not_look_for_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home(monkeypatch, tmp_path / ("x" * 300))  # a name that no file system takes
    async with serve(AgentRunServer(invoke_agent, config=ServerConfig(access_log=False))) as served:
        assert (await served.chat(stream=False)).status == 200
        answer = await respond(served)
        assert (answer.status, answer.header("retry-after")) == (503, "1")
    assert "the store cannot be opened" in caplog.text


def test_each_line_of_the_log_that_the_page_explains_is_written_somewhere() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "agentrun_server").rglob("*.py"))
    rows = [row for row in table_rows(PAGE) if len(row) == 2 and " " in row[0] and row[0].startswith("`")]
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row[0])]
    assert len(lines) > 5
    assert all(f'"{line}"' in source for line in lines)


# --- what stands in front


@pytest.mark.parametrize("conf", [CONF, APP_AUTH_CONF], ids=["nginx", "app-auth"])
def test_the_page_has_a_row_for_each_part_of_nginx_conf(conf: Path) -> None:
    parts = re.findall(r"^    # --- (.*)$", shipped(conf), re.MULTILINE)
    rows = [row[0] for row in table_rows(PAGE)]
    first = rows.index(parts[0])
    assert rows[first : first + len(parts)] == parts


@needs_nginx
async def test_with_the_settings_of_the_page_both_logs_name_the_same_client_and_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "".join(block.text for block in blocks(PAGE) if block.text.startswith("export "))
    settings = dict(re.findall(r"(AGENTRUN_\w+)=(\S+)", said))
    assert len(settings) == 2
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    certificate = make_certificate(tmp_path / "tls")
    async with (
        serve(AgentRunServer(invoke_agent=invoke_agent), proxy_headers=False) as served,
        nginx(tmp_path, certificate, served.port, conf=APP_AUTH_CONF) as front,
    ):
        client = front.client()
        client._socket.bind(("127.0.0.2", 0))
        async with client:
            await client.chat(stream=False)
            answer = await client.response()
        line = await front.logged(status=200)
    [written] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert written["client"] == line["client"] == "127.0.0.2"
    assert written["request_id"] == line["request_id"] == answer.header("x-request-id")
