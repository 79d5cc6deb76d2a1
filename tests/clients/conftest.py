"""Servers and reports of clients, each made once for the whole test session, and only for the tests selected."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

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
    selected: list[Client] = []
    for item in request.session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        table = params.get("table")
        if isinstance(table, Table):
            names = [params["name"]] if "name" in params else list(table.clients)
            selected += [table.clients[name] for name in names]
    with driven(dict.fromkeys(selected), servers) as report:
        yield report
