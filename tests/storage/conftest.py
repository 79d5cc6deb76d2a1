"""The stores that the tests of this folder run on."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.storage.contract import Backend, PostgresBackend, SQLiteBackend
from tests.support.postgres_server import PostgresServer, needs_postgres, postgres_server

_schemas = itertools.count()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL that must be left running; each test has a schema of its own."""
    with postgres_server() as server:
        yield server


@pytest.fixture
async def postgres(shared_postgres: PostgresServer) -> AsyncIterator[PostgresBackend]:
    """Return an empty schema of a shared server."""
    backend = PostgresBackend(shared_postgres, f"test_{next(_schemas)}")
    yield backend
    await backend.aclose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """Run the test on each store."""
    if request.param == "postgres":
        backend: Backend = PostgresBackend(request.getfixturevalue("shared_postgres"), f"test_{next(_schemas)}")
    else:
        backend = SQLiteBackend(tmp_path)
    yield backend
    await backend.aclose()
