"""Where a running server finds keys: what it sees, when, and what it does when it cannot see."""

import asyncio
import contextvars
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentrun_middleware.authentication import VerifierUnavailableError
from agentrun_middleware.key_file import KeyFile, KeyFileError, KeyFileMissingError, KeyFileState
from agentrun_middleware.key_record import KeyRecord, new_pepper
from agentrun_middleware.key_store import AskedKeys, FileKeys
from tests.support.clock import LIMIT, eventually, within


class Clock:
    """Seconds, which pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# --- a file


class CountingKeyFile(KeyFile):
    """Counts how often it is read."""

    reads = 0

    def read(self) -> KeyFileState:
        self.reads += 1
        return super().read()


@pytest.fixture
def file(tmp_path: Path) -> CountingKeyFile:
    return CountingKeyFile(tmp_path / "keys.json")


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


async def test_a_new_key_and_a_revocation_are_seen_after_a_second(file: CountingKeyFile, clock: Clock) -> None:
    first = file.create("first").record
    stores = [FileKeys(KeyFile(file.path), clock=clock) for _ in range(2)]  # as two workers
    second = file.create("second").record
    revoked = file.revoke(first.id)
    clock.now += 0.99
    for store in stores:
        assert await store.find(first.id) == first
        assert await store.find(second.id) is None
    clock.now += 0.01
    for store in stores:
        assert await store.find(first.id) == revoked
        assert await store.find(second.id) == second


async def test_the_file_is_looked_at_once_a_second_and_read_when_it_changed(
    file: CountingKeyFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id = file.create("laptop").record.id
    store = FileKeys(file, clock=clock)
    reads, looks = file.reads, 0
    real_stat = Path.stat

    def stat(path: Path, *arguments: Any, **options: Any) -> Any:
        nonlocal looks
        looks += path == file.path
        return real_stat(path, *arguments, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for _ in range(10):
        clock.now += 1
        for _ in range(10):
            await store.find(key_id)
    assert (looks, file.reads) == (10, reads)
    file.create("another")
    reads = file.reads
    clock.now += 1
    await store.find(key_id)
    assert file.reads == reads + 1


async def test_an_edit_that_keeps_size_and_time_of_the_file_is_seen(file: CountingKeyFile, clock: Clock) -> None:
    key_id = file.create("laptop").record.id
    store = FileKeys(file, clock=clock)
    before = file.path.stat()
    file.path.write_text(file.path.read_text().replace("laptop", "tablet"))
    os.utime(file.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    clock.now += 1
    found = await store.find(key_id)
    assert found is not None
    assert found.name == "tablet"


def test_a_server_does_not_start_without_its_keys(file: CountingKeyFile) -> None:
    with pytest.raises(KeyFileMissingError, match="there is no file"):
        FileKeys(file)
    file.create("laptop")
    with pytest.raises(KeyFileError, match="another pepper"):
        FileKeys(KeyFile(file.path, new_pepper()))
    file.path.write_text("{")
    with pytest.raises(KeyFileError, match="is not JSON"):
        FileKeys(KeyFile(file.path))


BROKEN = [
    pytest.param(lambda file: file.path.write_text("{"), id="half an edit"),
    pytest.param(lambda file: file.path.write_text(file.path.read_text().replace("revoked_at", "x")), id="a slip"),
    pytest.param(lambda file: (file.path.unlink(), file.path.mkdir()), id="not a file"),
    pytest.param(
        lambda file: file.path.write_text(file.path.read_text().replace(file.pepper().check, "0" * 64)),
        id="another pepper",
    ),
]


@pytest.mark.parametrize("broken", BROKEN)
async def test_when_the_file_breaks_its_last_good_content_goes_on_counting(
    broken: Callable[[KeyFile], object],
    file: CountingKeyFile,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = file.create("good").record, file.create("bad").record
    revoked = file.revoke(bad.id)
    content = file.path.read_bytes()
    store = FileKeys(file, clock=clock)
    broken(file)
    for _ in range(120):
        clock.now += 1
        assert await store.find(good.id) == good
        assert await store.find(bad.id) == revoked
        assert await store.find("00000000") is None
    assert complaints(caplog) == ["the key file cannot be used: its last good content goes on counting"] * 2

    if file.path.is_dir():
        file.path.rmdir()
    file.path.write_bytes(content)
    after = file.revoke(good.id)
    clock.now += 1
    assert await store.find(good.id) == after
    assert len(complaints(caplog)) == 2


async def test_when_the_file_is_gone_nobody_passes_until_it_is_back(
    file: CountingKeyFile, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    record = file.create("laptop").record
    store = FileKeys(file, clock=clock)
    content = file.path.read_bytes()

    async def check_nobody_passes(complained: int) -> None:
        clock.now += 1
        for key_id in (record.id, "00000000"):
            with pytest.raises(VerifierUnavailableError, match="the key file is missing"):
                await store.find(key_id)
        assert len(complaints(caplog)) == complained

    file.path.unlink()
    await check_nobody_passes(1)
    file.path.write_text("{")  # what was good before does not come back with a broken file
    await check_nobody_passes(2)
    file.path.unlink()
    await check_nobody_passes(3)
    await check_nobody_passes(3)
    clock.now += 60
    await check_nobody_passes(4)
    file.path.write_bytes(content)
    clock.now += 1
    assert await store.find(record.id) == record


async def test_a_file_that_vanishes_while_it_is_looked_at_is_gone(
    file: CountingKeyFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id = file.create("laptop").record.id
    store = FileKeys(file, clock=clock)
    file.create("another")
    real_read = KeyFile.read

    def read(self: KeyFile) -> KeyFileState:
        self.path.unlink()
        return real_read(self)

    monkeypatch.setattr(KeyFile, "read", read)
    clock.now += 1
    with pytest.raises(VerifierUnavailableError):
        await store.find(key_id)


async def test_a_file_that_is_back_as_it_was_counts_again(
    file: CountingKeyFile, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a mount that was gone for a while."""
    record = file.create("laptop").record
    store = FileKeys(file, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(file, "path", file.path.with_name("nowhere"))
        clock.now += 1
        with pytest.raises(VerifierUnavailableError):
            await store.find(record.id)
    clock.now += 1
    assert await store.find(record.id) == record


async def test_it_is_told_when_others_can_read_the_file(
    file: CountingKeyFile, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    file.create("laptop")
    FileKeys(file, clock=clock)
    assert not caplog.records
    file.path.chmod(0o644)
    FileKeys(file, clock=clock)
    assert [record.message for record in caplog.records] == ["the key file may be read or changed by others"]


async def test_the_path_is_that_of_the_start(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = KeyFile("keys.json")
    record = file.create("laptop").record
    store = FileKeys(file, clock=clock)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    revoked = KeyFile(tmp_path / "keys.json").revoke(record.id)
    clock.now += 1
    assert await store.find(record.id) == revoked


# --- a function


def record(key_id: str = "00000000", **fields: Any) -> KeyRecord:
    return KeyRecord(**{"id": key_id, "hash": "a" * 64, "name": "laptop", "created_at": 1.0, **fields})


class Table:
    """A store that counts what it is asked, and can be held."""

    def __init__(self, *ids: str) -> None:
        self.records = {key_id: record(key_id) for key_id in ids}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0

    async def __call__(self, key_id: str) -> KeyRecord | None:
        self.asked.append(key_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.records.get(key_id)


@pytest.fixture
def table() -> Table:
    return Table("00000000", "11111111")


async def test_any_kind_of_function_is_asked(clock: Clock) -> None:
    found = record()
    threads: list[threading.Thread] = []

    def sync(key_id: str) -> KeyRecord | None:
        threads.append(threading.current_thread())
        return found if key_id == found.id else None

    async def coroutine(key_id: str) -> KeyRecord | None:
        threads.append(threading.current_thread())
        return sync(key_id)

    def awaitable(key_id: str) -> Awaitable[KeyRecord | None]:
        return coroutine(key_id)

    class Holder:
        def __call__(self, key_id: str) -> KeyRecord | None:
            return sync(key_id)

        async def method(self, key_id: str) -> KeyRecord | None:
            return sync(key_id)

    here = threading.current_thread()
    for function, runs_here in (
        (sync, False),
        (Holder(), False),
        (partial(sync), False),
        ({found.id: found}.get, None),
        (coroutine, True),
        (Holder().method, True),
        (partial(coroutine), True),
        (Table(found.id), None),
        (awaitable, True),
    ):
        threads.clear()
        store = AskedKeys(function, clock=clock)
        answer = await within(store.find(found.id))
        assert answer is not None
        assert answer.id == found.id
        assert await within(store.find("99999999")) is None
        if runs_here is not None:
            assert {thread is here for thread in threads} == {runs_here}


async def test_an_answer_counts_for_its_time_from_when_it_was_asked(table: Table, clock: Clock) -> None:
    store = AskedKeys(table, ttl=30, clock=clock)
    table.gate.clear()
    question = asyncio.create_task(store.find("00000000"))
    await eventually(lambda: table.asked == ["00000000"])
    clock.now += 10  # the answer was on its way for so long
    table.gate.set()
    assert await within(question) == record()
    table.records.clear()
    clock.now += 19.9
    assert await store.find("00000000") == record()
    clock.now += 0.1
    assert await store.find("00000000") is None
    assert table.asked == ["00000000"] * 2


async def test_a_key_that_does_not_exist_is_remembered_shortly(table: Table, clock: Clock) -> None:
    store = AskedKeys(table, ttl=30, clock=clock)
    assert await store.find("22222222") is None
    table.records["22222222"] = record("22222222")
    clock.now += 4.9
    assert await store.find("22222222") is None
    clock.now += 0.1
    assert await store.find("22222222") == record("22222222")


async def test_without_a_cache_every_request_asks(table: Table, clock: Clock) -> None:
    store = AskedKeys(table, ttl=0, clock=clock)
    for _ in range(3):
        await store.find("00000000")
        await store.find("22222222")
    assert len(table.asked) == 6


async def test_requests_that_come_together_ask_once(table: Table) -> None:
    store = AskedKeys(table, ttl=0)
    table.gate.clear()
    questions = [asyncio.create_task(store.find("00000000")) for _ in range(100)]
    await eventually(lambda: bool(table.asked))
    table.gate.set()
    assert await within(asyncio.gather(*questions)) == [record()] * 100
    assert table.asked == ["00000000"]


async def test_a_caller_who_leaves_takes_the_answer_from_nobody(table: Table) -> None:
    store = AskedKeys(table)
    table.gate.clear()
    leaving, staying = (asyncio.create_task(store.find("00000000")) for _ in range(2))
    await eventually(lambda: bool(table.asked))
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    table.gate.set()
    assert await within(staying) == record()


async def test_a_flood_of_unknown_keys_drives_no_good_one_out(table: Table, clock: Clock) -> None:
    store = AskedKeys(table, clock=clock)
    await store.find("00000000")
    for number in range(3000):
        await store.find(f"x{number:07}")
    table.asked.clear()
    await store.find("00000000")
    assert table.asked == []
    assert len(store._unknown._answers) == 1024


async def test_only_so_many_good_keys_are_remembered_and_the_oldest_go(clock: Clock) -> None:
    ids = [f"{number:08}" for number in range(1025)]
    table = Table(*ids)
    store = AskedKeys(table, clock=clock)
    for key_id in ids:
        await store.find(key_id)
    assert len(store._known._answers) == 1024
    table.asked.clear()
    await store.find(ids[1])
    assert table.asked == []
    await store.find(ids[0])
    assert table.asked == [ids[0]]


async def test_a_function_that_takes_too_long_is_given_up(table: Table) -> None:
    store = AskedKeys(table, timeout=0.01)
    table.gate.clear()
    with pytest.raises(VerifierUnavailableError, match=r"did not answer within 0\.01 s"):
        await within(store.find("00000000"))
    assert table.cancelled == 1
    table.gate.set()
    assert await within(AskedKeys(table).find("00000000")) == record()


async def test_a_thread_that_takes_too_long_is_given_up_and_still_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrun_middleware.key_store._MAX_ASKED", 2)
    gate, ended = threading.Event(), threading.Semaphore(0)

    def hangs(key_id: str) -> KeyRecord | None:
        try:
            assert gate.wait(LIMIT)
            return record(key_id)
        finally:
            ended.release()

    store = AskedKeys(hangs, timeout=0.01)
    for key_id in ("00000000", "11111111"):
        with pytest.raises(VerifierUnavailableError, match="did not answer"):
            await within(store.find(key_id))
    with pytest.raises(VerifierUnavailableError, match="too many questions"):
        await within(store.find("22222222"))
    gate.set()
    assert ended.acquire(timeout=LIMIT)
    assert ended.acquire(timeout=LIMIT)
    await eventually(lambda: store._threads == 0)
    assert await within(AskedKeys(hangs).find("22222222")) == record("22222222")


async def test_only_so_many_questions_are_open_and_known_keys_pass_meanwhile(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrun_middleware.key_store._MAX_ASKED", 2)
    store = AskedKeys(table)
    await store.find("00000000")
    table.gate.clear()
    questions = [asyncio.create_task(store.find(key_id)) for key_id in ("22222222", "33333333")]
    await eventually(lambda: len(table.asked) == 3)
    with pytest.raises(VerifierUnavailableError, match="too many questions"):
        await store.find("11111111")
    assert await store.find("00000000") == record()
    table.gate.set()
    await within(asyncio.gather(*questions))
    assert await store.find("11111111") == record("11111111")


class DatabaseError(Exception):
    pass


def _raise(error: BaseException) -> Callable[[str], KeyRecord | None]:
    def function(key_id: str) -> KeyRecord | None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (DatabaseError("password=hunter2"), "DatabaseError"),
        (StopIteration(), "RuntimeError"),
        (KeyError("00000000"), "KeyError"),
        (SystemExit(1), "RuntimeError"),
    ],
)
async def test_a_function_that_fails_is_a_store_that_is_unavailable(error: BaseException, name: str) -> None:
    store = AskedKeys(_raise(error))
    with pytest.raises(VerifierUnavailableError, match=f"^the key store failed: {name}$"):
        await within(store.find("00000000"))
    assert store._threads == 0


async def test_a_failure_is_not_remembered(table: Table) -> None:
    failing = True

    async def function(key_id: str) -> KeyRecord | None:
        if failing:
            raise DatabaseError
        return await table(key_id)

    store = AskedKeys(function)
    with pytest.raises(VerifierUnavailableError):
        await store.find("00000000")
    failing = False
    assert await store.find("00000000") == record()


@pytest.mark.parametrize("answer", [record("11111111"), {"id": "00000000"}, "00000000", True, False, ()])
async def test_an_answer_that_is_not_the_record_asked_for_is_a_failure(answer: Any) -> None:
    async def function(key_id: str) -> KeyRecord | None:
        found: KeyRecord | None = answer
        return found

    store = AskedKeys(function)
    for _ in range(2):
        with pytest.raises(VerifierUnavailableError, match="something else"):
            await store.find("00000000")


async def test_nothing_is_left_when_every_caller_has_gone_and_the_store_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked, gate = asyncio.Event(), asyncio.Event()

    async def function(key_id: str) -> KeyRecord | None:
        asked.set()
        await gate.wait()
        raise DatabaseError

    store = AskedKeys(function)
    caller = asyncio.create_task(store.find("00000000"))
    await within(asked.wait())
    caller.cancel()
    gate.set()
    await eventually(lambda: not store._questions)
    del caller
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_closing_gives_up_what_is_being_asked(table: Table) -> None:
    before = asyncio.all_tasks()
    store = AskedKeys(table)
    table.gate.clear()
    question = asyncio.create_task(store.find("00000000"))
    await eventually(lambda: bool(table.asked))
    await within(store.aclose())
    assert table.cancelled == 1
    with pytest.raises(asyncio.CancelledError):
        await question
    assert asyncio.all_tasks() == before
    table.gate.set()
    assert await within(store.find("00000000")) == record()  # a server may be started again


async def test_a_question_that_is_closed_before_it_was_asked_can_be_asked_again(table: Table) -> None:
    store = AskedKeys(table)
    question = asyncio.create_task(store.find("00000000"))
    await asyncio.sleep(0)  # the caller has run, its question has not
    await within(store.aclose())
    with pytest.raises(asyncio.CancelledError):
        await question
    assert table.asked == []
    assert await within(store.find("00000000")) == record()


async def test_context_variables_reach_the_function() -> None:
    trace = contextvars.ContextVar("trace", default="")
    trace.set("abc")
    seen: list[str] = []

    def function(key_id: str) -> None:
        seen.append(trace.get())

    await within(AskedKeys(function).find("00000000"))
    assert seen == ["abc"]


@pytest.mark.parametrize(
    "arguments", [{"ttl": -1}, {"ttl": float("nan")}, {"ttl": 3601}, {"timeout": 0}, {"timeout": float("inf")}]
)
def test_bounds_that_are_none_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="key"):
        AskedKeys(lambda key_id: None, **arguments)
