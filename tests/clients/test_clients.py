"""Real clients drive a real server: every client, every scenario, one test for each cell of the tables.

`expected` and `responses_expected` hold the tables, `agents_app` and `responses_app` the agents, `drivers/` and `node/`
what runs in the clients' environments.
"""

import json
import ssl
import urllib.request
from collections.abc import Callable

import pytest

from tests.clients.cells import Client, Table
from tests.clients.expected import CHAT
from tests.clients.harness import Report, Server
from tests.clients.responses_expected import REPLICAS, RESPONSES
from tests.clients.table import BEGIN, README, markdown
from tests.support.nginx import needs_nginx
from tests.support.postgres_server import needs_postgres
from tests.support.redis_server import needs_redis

pytestmark = pytest.mark.clients

TABLES = {
    "chat": (CHAT, []),
    "responses": (RESPONSES, []),
    "replicas": (REPLICAS, [needs_nginx, needs_postgres, needs_redis]),
}
CELLS = [
    pytest.param(table, name, scenario, id=f"{label}-{name}-{scenario}", marks=marks)
    for label, (table, marks) in TABLES.items()
    for name, scenario in table.cells
]
ROWS = [
    pytest.param(table, name, id=f"{label}-{name}", marks=marks)
    for label, (table, marks) in TABLES.items()
    for name in table.clients
]
ONE_PROCESS = [pytest.param(table, id=label) for label, (table, marks) in TABLES.items() if not marks]


@pytest.mark.parametrize(("table", "name", "scenario"), CELLS)
def test_a_client_sees_what_the_agent_said(
    table: Table, name: str, scenario: str, reports: Callable[[Client], Report]
) -> None:
    report = reports(table.clients[name])

    if scenario in report.crashes:
        pytest.fail(report.crashes[scenario])
    assert report.results[scenario] == table.expected(name, scenario)


@pytest.mark.parametrize(("table", "name"), ROWS)
def test_a_client_plays_every_scenario_that_is_not_excused(
    table: Table, name: str, reports: Callable[[Client], Report]
) -> None:
    assert reports(table.clients[name]).scenarios == set(table.played_by(name))


@pytest.mark.parametrize("table", ONE_PROCESS)
def test_a_server_that_served_them_all_logs_no_failure_of_its_own(
    table: Table, servers: Callable[[str], Server], reports: Callable[[Client], Report]
) -> None:
    for client in table.clients.values():
        reports(client)

    for kind in {client.server for client in table.clients.values()}:
        log = "".join(servers(kind).log)
        for complaint in ("Exception in ASGI application", "was never retrieved", "was destroyed", "Warning:"):
            assert complaint not in log


def test_the_quiet_agent_makes_the_server_send_comments_before_its_answer_and_within(
    servers: Callable[[str], Server],
) -> None:
    body = json.dumps({"model": "quiet", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
    request = urllib.request.Request(f"{servers('uvicorn').url}/chat/completions", body.encode())

    with urllib.request.urlopen(request, timeout=30) as response:
        before, _, rest = response.read().partition(b"first ")

    within = rest.partition(b"second")[0]
    assert before.startswith(b": keep-alive\n\n")
    assert b": keep-alive\n\n" in within


@needs_nginx
@needs_postgres
@needs_redis
def test_the_requests_of_clients_go_to_both_replicas(servers: Callable[[str], Server]) -> None:
    server = servers("replicas")
    trusted = ssl.create_default_context(cafile=server.environment["SSL_CERT_FILE"])
    headers = {"authorization": f"Bearer {server.environment['OPENAI_API_KEY']}"}
    body = json.dumps({"model": "where", "input": "hello"}).encode()

    def ask() -> str:
        request = urllib.request.Request(f"{server.url}/responses", body, headers)
        with urllib.request.urlopen(request, timeout=30, context=trusted) as response:
            text: str = json.load(response)["output"][0]["content"][0]["text"]
        return text

    assert len({ask() for _ in range(4)}) == 2


@pytest.mark.parametrize("table", [CHAT, RESPONSES, REPLICAS], ids=list(TABLES))
def test_every_excuse_names_a_scenario_and_every_scenario_has_a_client(table: Table) -> None:
    for client in table.clients.values():
        assert set(client.lacks) | set(client.differs) <= set(table.scenarios)
        assert not set(client.lacks) & set(client.differs)
    assert {scenario for _, scenario in table.cells} == set(table.scenarios)


def test_the_page_holds_the_table() -> None:
    assert README.read_text(encoding="utf-8").partition(BEGIN)[2] == f"\n{markdown()}", (
        "write it anew with: python -m tests.clients.table"
    )
