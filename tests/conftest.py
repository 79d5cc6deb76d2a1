"""What every test can use. Fixtures of one part of the tests stand beside them."""

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping

import pytest
import uvloop

LoopFactories = Mapping[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> LoopFactories:
    """Run the tests of the server on the event loop it is served with."""
    if "tests/server/" in item.path.as_posix():
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


_TOGETHER = ("tests/clients/", "tests/deploy/nginx/", "tests/replicas/", "tests/storage/")
"""Folders whose tests share servers that take long to start: one process runs them all."""

_homes = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share servers in one process, when several run the tests."""
    for item in items:
        path = item.path.as_posix()
        for folder in _TOGETHER:
            if f"/{folder}" in path:
                item.add_marker(pytest.mark.xdist_group(folder))


@pytest.fixture(autouse=True)
def settings_are_those_of_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Take away what the machine's environment would tell a `ServerConfig`, and give each test a store of its own."""
    for name in list(os.environ):
        if name.startswith("AGENTRUN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTRUN_HOME", str(tmp_path_factory.getbasetemp() / f"home{next(_homes)}"))


@pytest.fixture(params=["plain", "guarded"])
def http(request: pytest.FixtureRequest) -> str:
    """Run the test over uvicorn's own HTTP protocol, then over ours; see `tests.support.serve.serve`."""
    name: str = request.param
    return name
