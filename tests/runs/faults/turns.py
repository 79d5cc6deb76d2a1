"""Turns of one conversation that come at once: one after the other, or refused; and one whose server dies."""

import asyncio
import time
from typing import Any

from tests.runs.faults.clients import Place, Replica, ask, create, text_of, wait_until
from tests.runs.faults.server import question
from tests.support.raw_client import Response

__all__ = ["check_turns"]


async def check_turns(place: Place, *, lease: float) -> str:
    """Take turns on one server and on two, in both ways, and kill the one that has the turn."""
    async with place.serve(worker_lease=lease) as one, place.serve(worker_lease=lease) as other:
        for second in (one, other):
            await _one_after_the_other(one, second)
        async with place.serve(worker_lease=lease, conversation_busy="refuse") as strict:
            await _refused(one, strict, place)
        async with place.serve(worker_lease=lease) as dying:
            waited = await _after_death(dying, other, place)
    return f"two turns at once: one after the other, or 409; the turn of a dead server passed on after {waited:.1f} s"


async def _one_after_the_other(one: Replica, other: Replica) -> None:
    conversation = await _conversation(one)
    first = asyncio.create_task(_say(one, conversation, "first", 0.3))
    await asyncio.sleep(0.15)
    second = asyncio.create_task(_say(other, conversation, "second", 0))
    answers = [await first, await second]
    assert [answer.status for answer in answers] == [200, 200], answers
    said = [text_of(answer.json()) for answer in answers]
    asked = [question("first", 1, 0.3), question("second", 1, 0)]
    assert said[1] == f"second heard: {asked[0]} / {said[0]} / {asked[1]}", said
    assert await _texts(one, conversation) == [asked[0], said[0], asked[1], said[1]]


async def _refused(one: Replica, strict: Replica, place: Place) -> None:
    conversation = await _conversation(one)
    first = asyncio.create_task(_say(one, conversation, "busy", 0.5))
    await wait_until(lambda: _has_run(place, "busy"), 10, "the first turn runs")
    began = time.monotonic()
    refused = await _say(strict, conversation, "refused", 0)
    assert (refused.status, refused.error()["code"]) == (409, "conversation_locked"), refused
    assert refused.header("retry-after") is not None, refused
    assert time.monotonic() - began < 0.4
    assert (await first).status == 200
    assert (await _say(strict, conversation, "later", 0)).status == 200
    assert not place.runs()["refused"]


async def _after_death(dying: Replica, other: Replica, place: Place) -> float:
    conversation = await _conversation(dying)
    first = asyncio.create_task(_say(dying, conversation, "dies", 60))
    await wait_until(lambda: _has_run(place, "dies"), 10, "the first turn runs")
    second = asyncio.create_task(_say(other, conversation, "lives", 0))
    died = await dying.kill()
    try:
        answer = await first
    except (OSError, EOFError):
        pass
    else:
        raise AssertionError(f"its server was killed: {answer}")
    answer = await second
    waited = time.monotonic() - died
    assert answer.status == 200, answer
    asked = question("lives", 1, 0)
    assert await _texts(other, conversation) == [asked, f"lives heard: {asked}"]
    return waited


async def _conversation(replica: Replica) -> str:
    return str((await ask(replica.port, "POST", "/v1/conversations", {})).json()["id"])


async def _say(replica: Replica, conversation: str, tag: str, pause: float) -> Response:
    return await create(replica.port, model="listener", input=question(tag, 1, pause), conversation=conversation)


async def _texts(replica: Replica, conversation: str) -> list[str]:
    page = await ask(replica.port, "GET", f"/v1/conversations/{conversation}/items?order=asc")
    items: list[Any] = page.json()["data"]
    return [part["text"] for item in items for part in item["content"]]


async def _has_run(place: Place, tag: str) -> bool:
    return place.runs()[tag] > 0
