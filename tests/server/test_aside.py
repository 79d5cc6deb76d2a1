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


async def test_what_was_packed_is_unpacked_in_a_thread_since_it_may_be_long() -> None:
    threads: set[threading.Thread] = set()

    def new_id(prefix: str) -> str:
        threads.add(threading.current_thread())
        return f"{prefix}1"

    items = read({"role": "user", "content": "x" * 10_000}, {"role": "user", "content": "y"})
    packed = compact(items, Counter())
    assert await expanded([packed], new_id, max_items=9) == items
    assert await expanded(items, new_id, max_items=9) == items
    assert not threads, "they have ids"
    unnamed = compact([{key: value for key, value in items[0].items() if key != "id"}], Counter())
    unnamed["encrypted_content"] += ""
    (item,) = await expanded([unnamed], new_id, max_items=9)
    assert item["id"] == "msg_1"
