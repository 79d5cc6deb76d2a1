"""Ids are random, unguessable and cheap."""

import multiprocessing
import os
import re
from concurrent.futures import ThreadPoolExecutor

from agentrun_server.core.ids import IdSource


def test_an_id_is_its_prefix_and_32_hexadecimal_digits() -> None:
    new_id = IdSource()
    assert re.fullmatch(r"call_[0-9a-f]{32}", new_id("call_"))
    assert re.fullmatch(r"[0-9a-f]{32}", new_id())


def test_ids_are_all_different_over_many_batches() -> None:
    new_id = IdSource()
    assert len({new_id() for _ in range(5000)}) == 5000


def test_two_sources_do_not_repeat_each_other() -> None:
    first, second = IdSource(), IdSource()
    assert not {first() for _ in range(300)} & {second() for _ in range(300)}


def test_threads_that_make_ids_at_once_make_different_ones() -> None:
    new_id = IdSource()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [new_id() for _ in range(2000)], range(8)))
    assert len({identity for some in made for identity in some}) == 16_000


def test_a_forked_worker_does_not_repeat_the_ids_of_its_parent() -> None:
    new_id = IdSource()
    new_id()  # the batch is there now, and a child would inherit it
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=lambda: os.write(writer, "".join(new_id() for _ in range(4)).encode()))
    child.start()
    child.join(10)
    theirs = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)
    ours = "".join(new_id() for _ in range(4))
    assert len(theirs) == len(ours) == 128
    assert theirs != ours
