"""What a run says to one reader, and nobody keeps."""

import asyncio

from agentrun_server.runs.entry import Outcome, RecordEntry
from agentrun_server.runs.relay import Relay
from agentrun_server.runs.run import RunStatus
from tests.support.clock import within

DONE = Outcome(RunStatus.COMPLETED, {})


def relay() -> Relay:
    return Relay(RecordEntry(kind="response", id="resp_1", owner=""))


async def read(source: Relay) -> list[bytes]:
    return [event async for batch in source.follow() for event in batch]


async def test_a_reader_gets_everything_in_order_and_then_the_end() -> None:
    source = relay()
    reading = asyncio.create_task(read(source))
    source.append([b"0", b"1"])
    await asyncio.sleep(0)
    source.append([b"2"])
    source.finish([b"3"], DONE)
    assert await within(reading) == [b"0", b"1", b"2", b"3"]
    assert source.settled


async def test_what_is_said_before_anybody_reads_is_read() -> None:
    source = relay()
    source.finish([b"all"], DONE)
    assert await within(read(source)) == [b"all"]


async def test_a_run_that_leaves_ends_the_stream_without_an_end() -> None:
    source = relay()
    reading = asyncio.create_task(read(source))
    source.append([b"0"])
    source.leave()
    source.append([b"too late"])
    assert await within(reading) == [b"0"]
    assert not source.settled


async def test_the_agent_waits_until_the_reader_has_taken_what_was_said() -> None:
    source = relay()
    source.append([b"x" * 100_000])
    waiting = asyncio.create_task(source.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    events = source.follow()
    assert await within(anext(events)) == [b"x" * 100_000]
    await within(waiting)
    await events.aclose()


async def test_nobody_waits_for_room_in_what_has_ended() -> None:
    source = relay()
    source.append([b"x" * 100_000])
    waiting, closing = asyncio.create_task(source.room()), asyncio.create_task(source.wait_closed())
    await asyncio.sleep(0)
    source.leave()
    await within(asyncio.gather(waiting, closing))


async def test_a_run_that_waited_for_its_turn_may_always_go_on() -> None:
    source = relay()
    assert await source.proceed([b"0"])
    source.finish([], DONE)
    assert await within(read(source)) == [b"0"]
