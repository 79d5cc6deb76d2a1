"""Servers and reports of clients, each made once for the whole test session, and only for the tests selected."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.clients.expected import CLIENTS
from tests.clients.harness import DRIVER_LIMIT, Report, Server, run_driver, running_server

AT_ONCE = 2
"""Clients driven at the same time; the tests of one machine's two cores."""


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
def reports(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Iterator[Callable[[str], Report]]:
    """Return a function that gives the report of a client. All selected clients are driven as soon as one is."""
    selected = {
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and "name" in item.callspec.params
    }
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        running: dict[str, Future[Report]] = {}

        def drive(name: str) -> Future[Report]:
            if name not in running:
                client = CLIENTS[name]
                running[name] = pool.submit(run_driver, client, servers(client.server).url)
            return running[name]

        for name in CLIENTS:
            if name in selected:
                drive(name)
        # A wait may include the clients before this one, and the installation of everything.
        yield lambda name: drive(name).result(timeout=len(CLIENTS) * DRIVER_LIMIT)
