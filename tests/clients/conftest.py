"""Servers and reports of clients, each made once for the whole test session, and only for the tests selected."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, cast

import pytest

from tests.clients.cells import Client, Table
from tests.clients.harness import Report, Server, driven, running_server


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], Server]]:
    """Return a function that gives the running server of a kind."""
    with ExitStack() as stack:
        running: dict[str, Server] = {}

        def server(kind: str) -> Server:
            if kind not in running:
                running[kind] = stack.enter_context(running_server(kind))
            return running[kind]

        yield server


@pytest.fixture(scope="session")
def reports(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Iterator[Callable[[Client], Report]]:
    """Return a function that gives the report of a client. All selected clients are driven as soon as one is."""
    selected = [client for item in request.session.items for client in _clients_of(item)]
    with driven(dict.fromkeys(selected), servers) as report:
        yield report


def _clients_of(item: pytest.Item) -> Iterator[Client]:
    """Yield the clients whose reports a test wants, unless it is skipped."""
    if not isinstance(item, pytest.Function) or "reports" not in item.fixturenames:
        return
    if any(mark.args[0] for mark in item.iter_markers("skipif")):
        return
    params = cast("Mapping[str, Any]", item.callspec.params)
    table: Table = params["table"]
    for name in [params["name"]] if "name" in params else table.clients:
        yield table.clients[name]
