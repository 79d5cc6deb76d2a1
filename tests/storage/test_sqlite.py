"""What is SQLite's own: kills, full disks, files and what is left in them, other processes."""

import asyncio
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.storage import sqlite, sqlite_schema
from agentrun_server.storage.codec import PAGE_BYTES
from agentrun_server.storage.contracts import Delete, Record, SchemaVersionError, StorageUnavailableError, Update
from agentrun_server.storage.sqlite import SQLiteStore
from tests.storage.contract import SQLiteBackend, append, create, other_process_writes, run_process
from tests.storage.faults import FAIL_POINTS, Kills, damage, throughput
from tests.storage.worker import changes, is_whole
from tests.support.clock import eventually, within

LONG = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend(tmp_path: Path) -> SQLiteBackend:
    return SQLiteBackend(tmp_path)


# --- kills


async def test_thirty_kills_at_random_lose_nothing_that_was_acknowledged(backend: SQLiteBackend) -> None:
    kills = Kills(backend)
    for _ in range(15):
        await asyncio.gather(kills.at_random(), kills.at_random())  # both write to one file
        assert damage(backend.path) == "ok"
    assert (kills.lost, kills.partial) == ([], [])
    assert kills.kills == 30
    assert kills.commits > 0


@pytest.mark.parametrize("point", FAIL_POINTS)
async def test_a_kill_at_a_fail_point_loses_nothing_that_was_acknowledged(backend: SQLiteBackend, point: str) -> None:
    kills = Kills(backend)
    await kills.at(point)
    assert (kills.lost, kills.partial) == ([], [])
    assert damage(backend.path) == "ok"


# --- a full disk


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount two megabytes at `place`."""
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this system does not let a small disk be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


async def test_a_full_disk_is_an_error_until_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "disk"
    with small_disk(place):
        ballast = place / "ballast"
        ballast.write_bytes(bytes(1_000_000))
        store = SQLiteStore(place / "store.db")
        written = 0
        with suppress(StorageUnavailableError):
            while written < 100:
                await within(store.commit(changes("w", written, 30_000)), LONG)
                written += 1
        assert 0 < written < 100
        with pytest.raises(StorageUnavailableError):
            await within(store.commit(changes("again", 0, 60_000)), LONG)
        assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
            "the store cannot be written"
        ], "once, not for each"
        for number in range(written):
            assert await is_whole(store, "w", number), "what was written can be read"
        assert await store.get("response", f"w-{written}", None) is None
        ballast.unlink()
        for number in range(5):
            await within(store.commit(changes("later", number, 30_000)), LONG)
        assert await is_whole(store, "later", 4)
        await within(store.aclose(), LONG)
        assert damage(place / "store.db") == "ok"


FILE_LIMIT = """
import asyncio, resource, sys
from agentrun_server.storage.contracts import StorageUnavailableError
from agentrun_server.storage.sqlite import SQLiteStore
from tests.storage.worker import changes, is_whole

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.commit(changes("w", 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        await store.commit(changes("w", 1, 300_000))
    except StorageUnavailableError:
        print("refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.commit(changes("w", 2, 300_000))
    print(await is_whole(store, "w", 0), await store.get("response", "w-1", None), await is_whole(store, "w", 2))
    await store.aclose()

asyncio.run(main())
"""


def test_a_file_that_may_not_grow_is_an_error_until_it_may(backend: SQLiteBackend) -> None:
    command = [sys.executable, "-c", FILE_LIMIT, str(backend.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, cwd=ROOT, check=True)
    assert done.stdout.split("\n") == ["refused", "True None True", ""]
    assert damage(backend.path) == "ok"


# --- the file


def size(path: Path) -> int:
    return path.stat().st_size


def move(path: Path, to: Path) -> None:
    path.rename(to)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


async def test_files_are_for_their_owner_alone(backend: SQLiteBackend) -> None:
    before = os.umask(0)
    try:
        store = await backend.open()
        await store.commit([create()])
        files = sorted(backend.path.parent.iterdir())
    finally:
        os.umask(before)
    assert mode(backend.path.parent) == "0o700"
    names = ["store.db", "store.db-shm", "store.db-wal", "store.db.lock"]
    assert [(path.name, mode(path)) for path in files] == [(name, "0o600") for name in names]
    await backend.aclose()


@pytest.mark.parametrize(("bits", "told"), [(0o600, 0), (0o640, 1), (0o604, 1)])
async def test_a_file_that_is_open_to_others_is_told(
    backend: SQLiteBackend, bits: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    await SQLiteStore(backend.path).aclose()
    os.chmod(backend.path, bits)  # noqa: PTH101 - in an async function
    assert [record.message for record in caplog.records] == []
    store = SQLiteStore(backend.path)
    assert [record.message for record in caplog.records] == ["the file of the store is open to others"] * told
    await store.aclose()


async def test_a_link_to_the_file_is_another_name_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lock and log, or two processes would not take turns, and the log would grow without a bound."""
    monkeypatch.setattr(sqlite, "_CHECKPOINT_BYTES", 100_000)
    real, link = tmp_path / "disk" / "real.db", tmp_path / "store.db"
    link.symlink_to(real)
    store = SQLiteStore(link)
    names = ["real.db", "real.db-shm", "real.db-wal", "real.db.lock"]
    for number in range(40):
        await store.commit(changes("w", number, 15_000))
        assert size(Path(f"{real}-wal")) < 300_000
    assert [(path.name, mode(path)) for path in sorted(real.parent.iterdir())] == [(name, "0o600") for name in names]
    await store.aclose()


async def test_what_makes_it_durable_is_set_on_every_connection(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connections.append(connect(*arguments, **options))
        return connections[-1]

    monkeypatch.setattr(sqlite3, "connect", connected)
    for durable, synchronous in ((True, 2), (False, 1)):
        connections.clear()
        store = SQLiteStore(backend.path, durable=durable)
        assert len(connections) == 2
        for connection in connections:
            settings = {
                name: connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "secure_delete", "mmap_size")
            }
            assert settings == {
                "journal_mode": "wal",
                "synchronous": synchronous,
                "wal_autocheckpoint": 0,
                "secure_delete": 1,
                "mmap_size": 0,
            }
        await store.aclose()


async def test_a_file_of_a_newer_release_is_refused_and_left_alone(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = (*sqlite_schema.MIGRATIONS, "CREATE TABLE future (x);\n")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", newer)
        store = await backend.open()
        await store.commit(changes("w", 0))
        await backend.aclose()
    before = backend.path.read_bytes()
    with pytest.raises(SchemaVersionError, match="newer"):
        SQLiteStore(backend.path)
    assert backend.path.read_bytes() == before
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", newer)
    again = SQLiteStore(backend.path)
    assert await is_whole(again, "w", 0)
    await again.aclose()


async def test_an_older_file_is_brought_up_to_date(backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await backend.open()
    await store.commit(changes("w", 0))
    await backend.aclose()
    known = len(sqlite_schema.MIGRATIONS)
    steps = (*sqlite_schema.MIGRATIONS, "CREATE TABLE more (x);\n", "CREATE TABLE and_more (x);\nNO SQL;\n")
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", steps)
    with pytest.raises(StorageUnavailableError, match="NO"):
        SQLiteStore(backend.path)
    assert schema(backend.path) == (known, set()), "all steps or none"
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*steps[:-1], "CREATE TABLE and_more (x);\n"))
    again = SQLiteStore(backend.path)
    assert await is_whole(again, "w", 0)
    await again.aclose()
    assert schema(backend.path) == (known + 2, {"more", "and_more"})


@pytest.mark.parametrize("version", range(1, len(sqlite_schema.MIGRATIONS)))
async def test_the_file_of_each_older_release_can_be_used(
    backend: SQLiteBackend, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = create("msg_a", kind="item", owner="w", parent="w-0")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "MIGRATIONS", sqlite_schema.MIGRATIONS[:version])
        store = await backend.open()
        await store.commit([*changes("w", 0), item])
        await backend.aclose()
    again = await backend.open()
    assert await is_whole(again, "w", 0)
    assert await again.get("item", "w/msg_a", "w") is not None
    assert await again.shrink(["response"]) == 1
    await backend.aclose()


def schema(path: Path) -> tuple[int, set[str]]:
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        return version, tables & {"more", "and_more"}
    finally:
        connection.close()


@pytest.mark.parametrize("version", [0, 1])
def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match="another program"):
        SQLiteStore(path)
    assert path.read_bytes() == before
    assert not Path(f"{path}-wal").exists()


def open_files() -> int:
    place = Path("/proc/self/fd")
    return len(list(place.iterdir())) if place.is_dir() else 0


@pytest.mark.parametrize("kind", ["text", "folder", "below a file"])
def test_what_is_no_store_cannot_be_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store.db"
    if kind == "text":
        path.write_text("this is not a database, but it is long enough to be looked at\n" * 100)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text("")
        path = path / "store.db"
    before = open_files()
    with pytest.raises(StorageUnavailableError):
        SQLiteStore(path)
    assert open_files() == before


async def test_nothing_is_left_when_a_store_is_closed(backend: SQLiteBackend) -> None:
    before = set(threading.enumerate())
    store = SQLiteStore(backend.path)
    await store.commit(changes("w", 0))
    assert {thread.name for thread in threading.enumerate()} >= {"sqlite-reader", "sqlite-writer"}
    await within(asyncio.gather(store.aclose(), store.aclose()))
    assert not any(thread.name.startswith("sqlite-") for thread in set(threading.enumerate()) - before)
    assert sorted(path.name for path in backend.path.parent.iterdir()) == ["store.db", "store.db.lock"]


async def test_opening_a_second_store_leaves_the_locks_of_the_first(backend: SQLiteBackend) -> None:
    stores = [await backend.open(), await backend.open()]
    for store in stores:
        await store.commit([create()])
    assert another_process_without_log(backend.path) == "database is locked"
    await backend.aclose()
    assert another_process_without_log(backend.path) == "delete"


def another_process_without_log(path: Path) -> str:
    """Have another process do what only who is alone with the file may do; return what SQLite says."""
    code = (
        "import sqlite3, sys\n"
        "try: print(sqlite3.connect(sys.argv[1], timeout=0).execute('PRAGMA journal_mode = DELETE').fetchone()[0])\n"
        "except sqlite3.OperationalError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# --- deletion


def traces(folder: Path, *texts: str) -> list[str]:
    """Return which of `texts` stand in the files of a store, read by a process of its own: see `sqlite`."""
    code = (
        "import sys; from pathlib import Path\n"
        "data = b''.join(path.read_bytes() for path in Path(sys.argv[1]).iterdir())\n"
        "print(*(text for text in sys.stdin.read().split() if text.encode() in data))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], input=" ".join(texts), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize("way", ["delete", "shrink"])
async def test_what_is_deleted_is_in_no_file_when_that_is_acknowledged(backend: SQLiteBackend, way: str) -> None:
    store = await backend.open()
    await store.commit(
        [
            create("kept", kind="conversation", body={"text": "kept-text"}),
            create("gone", owner="gone-owner", body={"text": "gone-body " * 1000}),
            create("gone-item", kind="item", owner="gone-owner", parent="gone", body={"text": "gone-small"}),
            append("gone", 0, b"gone-event", b"gone-long " * 2000),
        ]
    )
    await store.commit([Update(kind="response", id="gone", body={"text": "gone-again"}, status="gone-state")])
    texts = ["gone-owner", "gone-body", "gone-small", "gone-event", "gone-long", "gone-again", "gone-state"]
    assert traces(backend.path.parent, *texts, "kept-text") == [*texts, "kept-text"]
    if way == "delete":
        await store.commit([Delete("response", "gone")])
    else:
        assert await store.shrink(["response"]) == 1
    assert traces(backend.path.parent, *texts, "kept-text") == ["kept-text"]
    await backend.aclose()


async def test_what_is_deleted_is_nowhere_between_rows_after_a_sweep(backend: SQLiteBackend) -> None:
    # What moves rows from page to page: small and large ones, that grow, shrink and go.
    store = SQLiteStore(backend.path, durable=False)
    rnd = random.Random(0)
    alive: dict[str, str] = {}
    dead: list[str] = []
    number = 0
    for _ in range(1500):
        if not alive or rnd.random() < 0.75:
            number += 1
            name, mark = f"secretid{number:05d}z", f"secretbody{number:05d}z"
            size = rnd.choice([50, 300, 1500, 3000, 9000, 40000])
            body = {"t": mark * (size // len(mark) + 1)}
            event = f"secretevt{number:05d}z".encode() * (size // 14 + 1)
            owner = f"secretown{number:05d}z"
            items = [
                create(f"{name}-{n}", kind="i", owner=owner, parent=name, body={"t": mark})
                for n in range(rnd.randrange(4))
            ]
            await store.commit([create(name, kind="r", owner=owner, body=body), append(name, 0, event), *items])
            alive[name] = mark
        elif rnd.random() < 0.3:
            name = rnd.choice(list(alive))
            body = {"t": alive[name] * rnd.choice([1, 10, 200])}
            await store.commit([Update(kind="r", id=name, status=f"secretstat{name[8:]}", body=body)])
        else:
            names = rnd.sample(list(alive), min(len(alive), rnd.choice([1, 1, 1, 3])))
            await store.commit([Delete("r", name) for name in names])
            dead += [alive.pop(name) for name in names]
    await store.sweep()
    assert traces(backend.path.parent, *dead) == []
    assert len(traces(backend.path.parent, *alive.values())) == len(alive)
    await store.aclose()


async def test_who_reads_an_older_state_does_not_hold_up_deletion_and_its_log_is_emptied_later(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_CHECKPOINT_PAUSE", 0.01)
    store = await backend.open()
    await store.commit([create("gone", body={"text": "gone-body"})])
    reader = sqlite3.connect(backend.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM records").fetchall() == [(1,)]
    await within(store.commit([Delete("response", "gone")]))
    await within(store.commit([create("next")]))
    assert traces(backend.path.parent, "gone-body") == ["gone-body"]
    reader.execute("COMMIT")
    log = Path(f"{backend.path}-wal")
    await eventually(lambda: size(log) == 0)
    assert traces(backend.path.parent, "gone-body") == []
    reader.close()
    await backend.aclose()


async def test_who_reads_an_older_state_does_not_make_the_store_larger(backend: SQLiteBackend) -> None:
    store = await backend.open()
    for number in range(20):
        await store.commit(changes("w", number, 30_000))
    before = await store.size()
    reader = sqlite3.connect(backend.path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM records").fetchall()
    log = Path(f"{backend.path}-wal")
    logged = size(log)
    # What is overwritten stands in the log once more, and cannot leave it.
    assert await store.shrink(["response"], limit=10) == 10
    assert size(log) > logged
    assert size(backend.path) + size(log) > before
    assert await store.size() < before - 10 * 30_000
    reader.close()
    await backend.aclose()


async def test_room_that_was_freed_is_used_again(backend: SQLiteBackend) -> None:
    store = SQLiteStore(backend.path, durable=False)
    largest = 0
    for number in range(60):
        await store.commit(changes("w", number, 30_000))
        if number >= 10:
            assert await store.shrink(["response"], limit=1) == 1
        if number == 20:
            largest = size(backend.path)
    assert 0 < size(backend.path) <= largest * 1.1
    await store.aclose()


@pytest.mark.parametrize("kind", ["response", "part", "none"])
async def test_the_oldest_are_found_by_an_index(backend: SQLiteBackend, kind: str) -> None:
    store = await backend.open()
    await store.commit(changes("w", 0))
    statements: list[str] = []
    connections: list[sqlite3.Connection] = []

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(statements.append)
        connections.append(connection)

    await store._ask(store._writes, trace)  # type: ignore[attr-defined]
    await store.shrink([kind])
    (query,) = [statement for statement in statements if "created_at" in statement]
    assert kind in query
    plan = " ".join(row[3] for row in connections[0].execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "USING INDEX records_by_age (kind=?)" in plan
    assert "TEMP B-TREE" not in plan, "nor are they sorted"
    await backend.aclose()


async def test_the_log_has_a_bound(backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_CHECKPOINT_BYTES", 200_000)
    store = await backend.open()
    log = Path(f"{backend.path}-wal")
    largest = 0
    for number in range(60):
        await store.commit(changes("w", number, 15_000))
        largest = max(largest, size(log))
    assert 200_000 <= largest < 400_000
    assert await is_whole(store, "w", 59)
    await backend.aclose()


@pytest.mark.parametrize("gone", ["", "-wal"], ids=["file", "log"])
async def test_what_goes_into_a_file_that_was_deleted_is_not_acknowledged(
    backend: SQLiteBackend, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await backend.open()
    await store.commit([create("before")])
    move(Path(f"{backend.path}{gone}"), Path(f"{backend.path}.moved"))
    for name in ("r1", "r2"):
        with pytest.raises(StorageUnavailableError):
            await store.commit([create(name)])
    (told,) = [record for record in caplog.records if record.message == "the store cannot be written"]
    assert "No such file" in vars(told)["reason"]
    await backend.aclose()


# --- what waits


async def test_too_much_that_waits_is_refused(backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_MAX_WAITING", 10)
    store = SQLiteStore(backend.path)
    with other_process_writes(backend.path):
        waiting = [asyncio.create_task(store.commit([create(f"r{n}")])) for n in range(40)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=LONG)
        assert done
        for task in done:
            with pytest.raises(StorageUnavailableError, match="too much"):
                await task
    results = await within(asyncio.gather(*waiting, return_exceptions=True), LONG)
    assert 10 <= results.count(None) <= 39
    await store.aclose()


async def test_a_store_whose_turn_does_not_come_says_so_and_goes_on(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_TURN_WAIT", 0.05)
    store = await backend.open()
    await store.commit([create("before")])
    with other_process_writes(backend.path):
        with pytest.raises(StorageUnavailableError):
            await within(store.commit([create("meanwhile")]))
        assert await within(store.get("response", "before", None)) is not None, "reading goes on"
        with pytest.raises(StorageUnavailableError):
            SQLiteStore(backend.path)
    await within(store.commit([create("after")]))
    assert await store.get("response", "meanwhile", None) is None
    await backend.aclose()


async def test_a_store_that_does_not_answer_is_given_up(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLiteStore(backend.path)
    await store.commit([create("before")])  # so that the thread waits for nothing else
    monkeypatch.setattr(sqlite, "_LONGEST_WAIT", 0.05)
    with other_process_writes(backend.path):
        first = asyncio.create_task(store.commit([create("first")]))
        await asyncio.sleep(0)
        await eventually(store._writes.empty)  # the thread has taken it, and waits for its turn
        second = asyncio.create_task(store.commit([create("second")]))
        for task in (first, second):
            with pytest.raises(StorageUnavailableError, match="answer"):
                await within(task)
    monkeypatch.undo()
    await store.commit([create("third")])
    assert await store.get("response", "second", None) is None, "it was not begun, and nobody waits for it"
    await store.aclose()


async def test_a_value_that_cannot_be_stored_fails_its_own_commit_alone(backend: SQLiteBackend) -> None:
    store = await backend.open()
    with other_process_writes(backend.path):  # so that all wait together
        tasks = [
            asyncio.create_task(store.commit([create(f"r{n}"), create(f"x{n}", expires_at=2**70 if n == 2 else None)]))
            for n in range(5)
        ]
        await asyncio.sleep(0)
    results = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [type(result) for result in results] == [type(None), type(None), OverflowError, type(None), type(None)]
    page = await store.list("response", None)
    assert {record.id for record in page.records} == {f"{name}{n}" for n in (0, 1, 3, 4) for name in "rx"}
    await backend.aclose()


async def test_commits_that_wait_together_are_synced_together(backend: SQLiteBackend) -> None:
    store = await backend.open()
    began = asyncio.gather(*(store.commit(changes("w", number)) for number in range(64)))
    await within(began, LONG)
    # Each page of the log is written once for all of them: 64 transactions would write the indexes 64 times.
    assert size(Path(f"{backend.path}-wal")) < 64 * 4 * 4096
    await backend.aclose()


def test_who_left_with_the_event_loop_does_not_stop_the_store(backend: SQLiteBackend) -> None:
    store = SQLiteStore(backend.path)

    async def leave() -> None:
        with other_process_writes(backend.path):
            task = asyncio.create_task(store.commit([create("left")]))
            await asyncio.sleep(0)
            await asyncio.sleep(0.01)  # the thread has begun, or not: both must do
            task.cancel()

    asyncio.run(leave())

    async def look() -> None:
        await within(store.commit([create("later")]))
        assert await store.get("response", "later", None) is not None
        await store.aclose()

    asyncio.run(look())


async def test_a_process_that_writes_all_the_time_lets_others_write(backend: SQLiteBackend) -> None:
    store = await backend.open()
    async with run_process(backend, "greedy") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await within(process.stdout.readline(), LONG)
        process.stdin.write(b"\n")
        await within(process.stdout.readline(), LONG)
        for number in range(30):
            await within(store.commit(changes("own", number)))
        process.kill()
        await within(process.stdout.read(), LONG)
    for number in range(30):
        assert await is_whole(store, "own", number)
    await backend.aclose()


async def test_no_more_large_records_are_read_than_a_page_has(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await backend.open()
    body = {"text": "x" * (PAGE_BYTES // 2)}
    for number in range(6):
        await store.commit([create(str(number), body=body)])
    read: list[str] = []
    to_record = sqlite._record

    def noted(row: tuple[Any, ...]) -> Record:
        read.append(row[2])
        return to_record(row)

    monkeypatch.setattr(sqlite, "_record", noted)
    page = await store.list("response", "alice", limit=100)
    assert ([one.id for one in page.records], page.has_more) == (["0", "1"], True)
    assert read == ["0", "1", "2"], "the third tells that there is more"
    await backend.aclose()


async def test_the_throughput_can_be_measured(tmp_path: Path) -> None:
    assert await throughput(tmp_path, 0.05, 4) > 0
