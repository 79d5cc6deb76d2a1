"""The agents every peer serves, chosen by the model name of the request. Standard library only.

Each paced agent yields its first token at once and sleeps *between* tokens, so the ideal length of a stream
is ``(tokens - 1) * interval`` and the time to the first token is the server's own. The agents ignore the
request they may be given, so that they can be registered as they are where a server takes callables.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

__all__ = [
    "BURST_TOKENS",
    "MARKER",
    "PACED_INTERVAL",
    "PACED_TOKENS",
    "SLOW_INTERVAL",
    "SYNC_INTERVAL",
    "SYNC_TOKENS",
    "TOKENS",
    "burst",
    "echo",
    "paced",
    "slow",
    "sync_tokens",
    "trickle",
]

MARKER = b"w~"
"""In every token and nowhere else in an answer: the load generator counts tokens without parsing JSON."""

BURST_TOKENS = 200
PACED_TOKENS = 50
PACED_INTERVAL = 0.02
SLOW_TOKENS = 60
SLOW_INTERVAL = 2.0
SYNC_TOKENS = 20
SYNC_INTERVAL = 0.01


TOKENS = tuple(f"w~{index % 100:02d} " for index in range(BURST_TOKENS))
"""Tokens of five characters, made beforehand: the servers are measured, not the agent."""


async def echo(text: str) -> str:
    """Answer with what was said (workloads a, e, g, h)."""
    return text


async def burst(_request: object = None) -> AsyncIterator[str]:
    """Yield tokens as fast as possible, never suspending (workload b)."""
    for text in TOKENS:
        yield text


async def trickle(_request: object = None) -> AsyncIterator[str]:
    """Suspend before each token, so that no two are ready together (workload b0)."""
    for text in TOKENS:
        await asyncio.sleep(0)
        yield text


async def paced(_request: object = None) -> AsyncIterator[str]:
    """Yield tokens at the pace of a model (workload c)."""
    for index in range(PACED_TOKENS):
        if index:
            await asyncio.sleep(PACED_INTERVAL)
        yield TOKENS[index]


async def slow(_request: object = None) -> AsyncIterator[str]:
    """Stay open for two minutes (workload d)."""
    for index in range(SLOW_TOKENS):
        if index:
            await asyncio.sleep(SLOW_INTERVAL)
        yield TOKENS[index]


def sync_tokens(_request: object = None) -> Iterator[str]:
    """Block between tokens, as agents written without asyncio do (workload f)."""
    for index in range(SYNC_TOKENS):
        if index:
            time.sleep(SYNC_INTERVAL)
        yield TOKENS[index]
