"""Real clients drive a real server: every client, every scenario, one test for each cell of the table.

`expected` holds the table, `agents_app` the agents, `drivers/` and `node/` what runs in the clients' environments.
"""

import json
import urllib.request
from collections.abc import Callable

import pytest

from tests.clients.expected import CLIENTS, SCENARIOS
from tests.clients.harness import Report, Server
from tests.clients.table import BEGIN, README, markdown

pytestmark = pytest.mark.clients

CELLS = [(name, scenario) for name, client in CLIENTS.items() for scenario in client.scenarios]


@pytest.mark.parametrize(("name", "scenario"), CELLS)
def test_a_client_sees_what_the_agent_said(name: str, scenario: str, reports: Callable[[str], Report]) -> None:
    report = reports(name)

    if scenario in report.crashes:
        pytest.fail(report.crashes[scenario])
    assert report.results[scenario] == CLIENTS[name].expected(scenario)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_plays_every_scenario_that_is_not_excused(name: str, reports: Callable[[str], Report]) -> None:
    assert reports(name).scenarios == set(CLIENTS[name].scenarios)


@pytest.mark.parametrize("kind", ["uvicorn", "cli"])
def test_a_server_that_served_them_all_logs_no_failure_of_its_own(
    kind: str, servers: Callable[[str], Server], reports: Callable[[str], Report]
) -> None:
    for name, client in CLIENTS.items():
        if client.server == kind:
            reports(name)

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


def test_every_excuse_names_a_scenario_and_every_scenario_has_a_client() -> None:
    for client in CLIENTS.values():
        assert set(client.lacks) | set(client.differs) <= set(SCENARIOS)
        assert not set(client.lacks) & set(client.differs)
    assert {scenario for _, scenario in CELLS} == set(SCENARIOS)


def test_the_page_holds_the_table() -> None:
    assert README.read_text(encoding="utf-8").partition(BEGIN)[2] == f"\n{markdown()}", (
        "write it anew with: python -m tests.clients.table"
    )
