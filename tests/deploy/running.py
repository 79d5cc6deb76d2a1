"""What tests ask of a container that serves an agent."""

import asyncio
from collections.abc import Iterable

import pytest

from agentrun_server.cli.settings import NETWORK_SETTINGS
from tests.support.image import Container, why_not_here
from tests.support.raw_client import RawClient, Response

__all__ = ["PORT", "ask", "carried_out", "ready", "stored"]

PORT: int = next(setting.default for setting in NETWORK_SETTINGS if setting.name == "port")

carried_out = pytest.mark.skipif(bool(why_not_here()), reason=why_not_here())
"""Marks tests that build the image or run a container."""


async def ask(
    container: Container, method: str, path: str, headers: Iterable[tuple[str, str]] = (), body: bytes | None = None
) -> Response:
    """Make one request on a connection of its own; return the answer."""
    async with container.inside_network(lambda: RawClient(PORT)) as client:
        await client.request(method, path, body, headers)
        return await client.response()


async def stored(container: Container, headers: Iterable[tuple[str, str]] = ()) -> str:
    """Have a response made, which is stored; return the path where it is."""
    made = await ask(container, "POST", "/v1/responses", headers, b'{"model": "demo", "input": "Hi"}')
    assert made.json()["store"] is True, made
    return f"/v1/responses/{made.json()['id']}"


async def ready(container: Container) -> None:
    """Wait until it is."""
    async with asyncio.timeout(20):
        while True:
            try:
                if (await ask(container, "GET", "/readyz")).status == 200:
                    return
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
