"""Streams that are cut after each event and taken up again, by the same server or by another: byte for byte."""

import asyncio
from dataclasses import dataclass

from tests.runs.faults.clients import DONE, RESPONSES, Place, Replica, Stream, resume, stream, wait_until
from tests.runs.faults.server import question

__all__ = ["Cuts", "cut_everywhere"]


@dataclass(slots=True)
class Cuts:
    """How many cuts were compared with the stream that was not cut."""

    while_running: int = 0
    afterwards: int = 0

    def __str__(self) -> str:
        return f"{self.while_running} cuts while it ran, {self.afterwards} afterwards: all bytes equal"


async def cut_everywhere(place: Place, *, pieces: int, pause: float) -> Cuts:
    """Cut streams of two servers at every event index, while their runs run and when they have ended."""
    cuts = Cuts()
    # So many readers at once may hold up whoever tells that a worker lives.
    async with place.serve(worker_lease=30) as one, place.serve(worker_lease=30) as other:
        for body in (
            {"model": "speaker", "stream": True, "input": question("r", pieces, pause)},
            {"model": "worker", "stream": True, "background": True, "input": question("r", pieces // 3, pause)},
        ):
            first = await stream(one.port, "POST", RESPONSES, body)
            assert first.is_done, first
            await _cut_while_running(one, other, body, len(first.events), cuts)
            await _cut_afterwards(one, other, first, cuts)
    return cuts


async def _cut_while_running(one: Replica, other: Replica, body: object, count: int, cuts: Cuts) -> None:
    uncut = Stream()
    running = asyncio.create_task(stream(one.port, "POST", RESPONSES, body, seen=uncut))

    async def begun() -> bool:
        return bool(uncut.events)

    async def cut(at: int, before: Replica, after: Replica) -> bytes:
        seen = await resume(before.port, uncut.id, most=at + 1)
        cuts.while_running += not uncut.is_done
        cuts.afterwards += uncut.is_done
        rest = await resume(after.port, uncut.id, at)
        return b"".join(seen.events + rest.events)

    await wait_until(begun, 10, "the stream begins")
    ways = [(one, one), (one, other), (other, other), (other, one)]
    found = await asyncio.gather(*(cut(at, *way) for at in range(count - 1) for way in ways))
    await running
    assert len(uncut.events) == count, "each run says the same"
    assert set(found) == {b"".join(uncut.events)}


async def _cut_afterwards(one: Replica, other: Replica, uncut: Stream, cuts: Cuts) -> None:
    whole = b"".join(uncut.events)
    for at in range(len(uncut.events) - 1):
        seen = b"".join(uncut.events[: at + 1])
        for replica in (one, other):
            rest = await resume(replica.port, uncut.id, at)
            assert seen + b"".join(rest.events) == whole, f"cut behind {at}"
            cuts.afterwards += 1
    for replica in (one, other):
        behind = await resume(replica.port, uncut.id, 10_000)
        assert behind.events == [DONE]
