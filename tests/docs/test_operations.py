"""What docs/operations.md shows: a line of the log, and what it says of the nginx in front."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentrun_server import AgentRequest, AgentRunServer
from tests.docs.markdown import ROOT, blocks, table_rows
from tests.support.nginx import APP_AUTH_CONF, CONF, make_certificate, needs_nginx, nginx, shipped
from tests.support.serve import serve

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
