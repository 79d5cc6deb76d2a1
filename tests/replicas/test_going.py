"""A replica is told to go: what runs there comes to its end there, all else is for the other."""

import signal

from tests.replicas.reading import REPLICAS, background, begun, ended, new_key, stream
from tests.replicas.replicas import PLACES, Replicas
from tests.support.responses_oracle import check_response_stream

pytestmark = REPLICAS


async def test_a_replica_that_goes_lets_its_runs_end_and_hands_on_what_has_not_begun(restored: Replicas) -> None:
    pair = restored
    full = [await begun(pair) for _ in range(PLACES)]
    waiting_key = new_key()
    waiting = await background(pair, pair.a, waiting_key)
    first = full[0][0]
    async with (
        stream(pair, pair.a, "GET", f"/responses/{first}?stream=true") as at_a,
        stream(pair, pair.b, "GET", f"/responses/{first}?stream=true") as at_b,
    ):
        for reader in (at_a, at_b):
            await reader.until("response.output_text.delta")
        pair.a.signal(signal.SIGTERM)
        # At once: what runs may run for long.
        run = await pair.control.run(waiting_key)
        assert (run.replica, run.subject) == (pair.b.name, "alice")
        await run.finish("ran at the other")
        assert (await ended(pair, pair.b, waiting)).output_text == "ran at the other"
        for _ in range(4):  # nginx does not ask a replica that goes
            assert (await pair.openai().responses.create(model="echo", input="Hi")).output_text == "Hi"
        for _, run, _ in full:
            await run.finish(" and done")
        whole = await at_a.rest()
        assert await at_b.rest() == whole
        assert check_response_stream(whole).text == "said and done"
    assert await pair.a.ended() == -signal.SIGTERM
    for response_id, _, key in full:
        found = await pair.openai(pair.b).responses.retrieve(response_id)
        assert (found.status, found.output_text) == ("completed", "said and done")
        assert not pair.control.more(key)
    assert not pair.control.more(waiting_key)
