"""PostgreSQL is restarted: who needs it is told, who does not goes on, and afterwards everything is in order."""

import asyncio
from typing import Any

import openai

from tests.replicas.reading import BURIED, REPLICAS, begun, ended, new_key, question, stream
from tests.replicas.replicas import Replicas
from tests.support.clock import within
from tests.support.raw_client import chat_body
from tests.support.response_stream import DONE, ResponseStream

pytestmark = REPLICAS


async def test_postgresql_is_away_for_a_while(restored: Replicas) -> None:
    pair = restored
    response_id, run, _ = await begun(pair)
    made = await pair.openai(pair.a).responses.create(model="echo", input="Hi")
    chat_key, key = new_key(), new_key()
    async with (
        stream(pair, None, "POST", "/chat/completions", chat_body(model="told", text=chat_key)) as chat,
        stream(pair, None, "POST", "/responses", question(key, stream=True)) as stored,
    ):
        chat_run, stored_run = await pair.control.run(chat_key), await pair.control.run(key)
        await chat_run.say("one")
        await stored_run.say("one")
        assert '"one"' in await words(chat, 2)
        stored_id = (await stored.until("response.created"))["response"]["id"]
        await stored.until("response.output_text.delta")
        await asyncio.to_thread(pair.postgres.stop)
        try:
            await refusals(pair, made.id)
            # Who stores nothing needs none.
            await chat_run.say(" two")
            assert '" two"' in await words(chat, 1)
            for at in pair.replicas:
                unstored = await pair.openai(at).responses.create(model="echo", input="Hi", store=False)
                assert unstored.output_text == "Hi"
                said = await pair.openai(at).chat.completions.create(
                    model="echo", messages=[{"role": "user", "content": "Ho"}]
                )
                assert said.choices[0].message.content == "Ho"
            # What cannot be written down cannot be shown: its caller is told.
            await stored_run.say(" two")
            await within(stored.rest(), 10)
            assert "storage_unavailable" in stored.blocks[-3]
            await stored_run.ended()
        finally:
            await asyncio.to_thread(pair.postgres.start)
        await chat_run.finish()
        assert (await chat.rest()).endswith(f"data: {DONE}\n\n".encode())
    for at in pair.replicas:
        await back(pair, at)
    lost = await ended(pair, pair.a, stored_id, BURIED)
    assert (lost.status, lost.output_text) == ("failed", "one")
    await run.finish()
    found: Any = await ended(pair, pair.b, response_id, BURIED)
    assert found.status in ("completed", "failed")


async def words(chat: ResponseStream, count: int) -> str:
    """Read so many events of a chat stream; return the last."""
    return [await chat.event() for _ in range(count)][-1]


async def refusals(pair: Replicas, response_id: str) -> None:
    """Check that whatever needs the store is answered 503, soon, and says that it may be tried again."""
    asked = [
        (at, *call)
        for at in pair.replicas
        for call in (
            ("POST", "/responses", question("Hi", "echo")),
            ("POST", "/responses", question("Hi", "echo", stream=True)),
            ("POST", "/responses", question("Hi", "echo", background=True)),
            ("POST", "/responses", question("Hi", "echo", previous_response_id=response_id)),
            ("GET", f"/responses/{response_id}", None),
            ("GET", f"/responses/{response_id}?stream=true", None),
            ("POST", f"/responses/{response_id}/cancel", None),
            ("DELETE", f"/responses/{response_id}", None),
            ("GET", f"/responses/{response_id}/input_items", None),
            ("POST", "/conversations", b"{}"),
        )
    ]
    answers = await within(asyncio.gather(*(pair.ask(*call) for call in asked)), 10)
    for call, answer in zip(asked, answers, strict=True):
        assert (answer.status, answer.error()["code"]) == (503, "storage_unavailable"), call


async def back(pair: Replicas, at: Any) -> None:
    """Wait until a replica can store again."""
    async with asyncio.timeout(BURIED):
        while True:
            try:
                made = await pair.openai(at).responses.create(model="echo", input="Hi")
            except openai.InternalServerError:
                await asyncio.sleep(0.05)
            else:
                assert made.output_text == "Hi"
                return
