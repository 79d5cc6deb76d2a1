"""The replicas of these tests: one pair for all of them. Whoever stops a part starts it again."""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.replicas.reading import nothing_open
from tests.replicas.replicas import Replicas, replicas


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pair() -> AsyncIterator[Replicas]:
    """Return two replicas behind nginx, both up."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AGENTRUN_"):
                patch.delenv(name)
        async with replicas() as running:
            yield running


@pytest_asyncio.fixture(loop_scope="session")
async def restored(pair: Replicas) -> AsyncIterator[Replicas]:
    """Return the replicas; both are up again afterwards, and no run is left open."""
    yield pair
    for replica in pair.replicas:
        await replica.revive()
    await nothing_open(pair)
