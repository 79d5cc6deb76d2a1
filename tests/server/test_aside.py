"""Long work is done in a thread, so that the event loop goes on."""

import threading

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.compaction import compact
from agentrun_server.server.aside import aside, expanded
from tests.protocols.openai_responses.answers import Counter
from tests.protocols.openai_responses.items import read


@pytest.mark.parametrize(("size", "here"), [(0, True), (256 * 1024, True), (256 * 1024 + 1, False)])
async def test_what_is_long_is_done_in_a_thread(size: int, here: bool) -> None:
    assert (await aside(threading.current_thread, size) is threading.current_thread()) == here


async def test_an_error_of_the_work_is_that_of_who_waits() -> None:
    def work() -> None:
        raise InvalidRequestError("no")

    for size in (0, 10**6):
        with pytest.raises(InvalidRequestError, match="no"):
            await aside(work, size)


@pytest.mark.parametrize("text", ["x", " ".join(map(str, range(1000)))])
async def test_what_was_packed_is_unpacked_in_a_thread_when_it_may_be_long(text: str) -> None:
    threads: set[threading.Thread] = set()

    def new_id(prefix: str) -> str:
        threads.add(threading.current_thread())
        return f"{prefix}1"

    packed = compact([{"type": "message", "role": "user", "content": text}], Counter())
    (item,) = await expanded([packed], new_id, max_items=9)
    assert item == {**read({"role": "user", "content": text})[0], "id": "msg_1"}
    assert threads.isdisjoint({threading.current_thread()}) == (len(text) > 1)
    assert await expanded([item], new_id, max_items=9) == [item]
