"""What is PostgreSQL's own: connections that are cut, servers that are away, locks, migrations."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from agentrun_server.storage import postgres as postgres_module
from agentrun_server.storage import postgres_schema
from agentrun_server.storage.contracts import ConflictError, Delete, SchemaVersionError, StorageUnavailableError, Update
from agentrun_server.storage.postgres import PostgresStore
from tests.storage.contract import PostgresBackend, StoreAndLeases, append, create
from tests.storage.worker import changes, is_whole
from tests.support.clock import eventually, within
from tests.support.postgres_server import PostgresServer, needs_postgres, postgres_server

pytestmark = needs_postgres

LONG = 60.0


@pytest.fixture
async def store(postgres: PostgresBackend) -> StoreAndLeases:
    return await postgres.open()


@pytest.fixture(scope="module")
def mortal_postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL that the tests of this file stop and start; all leave it running."""
    with postgres_server() as server:
        yield server


@asynccontextmanager
async def locked(backend: PostgresBackend, statement: str) -> AsyncIterator[None]:
    """Hold what `statement` locks, from a connection of its own."""
    import asyncpg  # type: ignore[import-untyped]

    connection = await asyncpg.connect(backend.server.url, server_settings={"search_path": backend.schema})
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


async def waiting(backend: PostgresBackend) -> int:
    """Return how many statements wait for a lock."""
    import asyncpg

    connection = await asyncpg.connect(backend.server.url)
    try:
        count: int = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return count
    finally:
        await connection.close()


async def until_waiting(backend: PostgresBackend, count: int = 1) -> None:
    async def look() -> None:
        while await waiting(backend) < count:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)

    await within(look())


async def test_a_connection_that_is_cut_is_an_error_and_the_next_call_works(
    postgres: PostgresBackend, store: StoreAndLeases
) -> None:
    await store.commit([create("r", status="queued")])
    async with locked(postgres, "SELECT 1 FROM records FOR UPDATE"):
        task = asyncio.create_task(store.commit([Update(kind="response", id="r", status="cut")]))
        await until_waiting(postgres)
        await postgres.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        with pytest.raises(StorageUnavailableError):
            await within(task)
    await within(store.commit([Update(kind="response", id="r", status="next", expect_status=["queued"])]))


async def test_connections_that_were_cut_while_idle_are_replaced(
    postgres: PostgresBackend, store: StoreAndLeases
) -> None:
    await asyncio.gather(*(store.commit([create()]) for _ in range(8)))
    await postgres.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'agentrun-server' AND pid <> pg_backend_pid()"
    )

    async def again() -> None:
        # A connection whose end has not been heard of yet is an error once; each is found out but once.
        for _ in range(8):
            try:
                await store.commit([create()])
            except StorageUnavailableError:
                continue
            return
        raise AssertionError("it does not come back")

    await within(again())
    await within(asyncio.gather(*(store.get("response", "r", None) for _ in range(2))))


async def test_a_server_that_is_away_is_an_error_until_it_is_back(
    mortal_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentrun_server.storage")
    backend = PostgresBackend(mortal_postgres, "away")
    store = await backend.open()
    await store.commit(changes("w", 0))
    mortal_postgres.stop()
    try:
        for _ in range(3):
            with pytest.raises(StorageUnavailableError):
                await within(store.commit(changes("w", 1)))
            with pytest.raises(StorageUnavailableError):
                await within(store.get("response", "w-0", None))
        with pytest.raises(StorageUnavailableError):
            await within(backend.open())
    finally:
        mortal_postgres.start()
    await within(store.commit(changes("w", 2)))
    assert await is_whole(store, "w", 0)
    assert await is_whole(store, "w", 2)
    assert await store.get("response", "w-1", None) is None
    messages = [record.message for record in caplog.records]
    # Once for the store, and once for the one that could not be opened.
    assert messages == [*["the store cannot be used"] * 2, "the store can be used again"]
    await backend.aclose()


async def test_a_statement_that_takes_too_long_is_given_up(postgres: PostgresBackend) -> None:
    store = await PostgresStore.open(postgres.server.url, schema=postgres.schema, timeout=0.3, max_connections=1)
    await store.commit([create("r")])
    async with locked(postgres, "SELECT 1 FROM records FOR UPDATE"):
        first = asyncio.create_task(store.commit([Update(kind="response", id="r", status="x")]))
        await until_waiting(postgres)
        second = asyncio.create_task(store.get("response", "r", None))  # waits for the only connection
        with pytest.raises(StorageUnavailableError):
            await within(first)
        await asyncio.wait([second], timeout=LONG)
    await within(store.commit([Update(kind="response", id="r", status="y", expect_status=[""])]))
    await store.aclose()


async def test_who_stands_still_in_the_middle_of_a_commit_does_not_hold_up_the_others(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_LONGEST_PAUSE", 0.2)
    still = await postgres.open()
    assert isinstance(still, PostgresStore)
    other = await postgres.open()
    await other.commit([create("r")])

    async def stand_still() -> None:
        async with still._connection() as connection, connection.transaction():
            await connection.execute("SELECT FROM records WHERE id = 'r' FOR UPDATE")
            await within(other.commit([Update(kind="response", id="r", status="done")]))
            await connection.execute("UPDATE records SET status = 'late' WHERE id = 'r'")

    with pytest.raises(StorageUnavailableError):
        await stand_still()
    record = await still.get("response", "r", None)
    assert record is not None
    assert record.status == "done"


async def test_closing_does_not_wait_for_ever(postgres: PostgresBackend) -> None:
    store = await PostgresStore.open(postgres.server.url, schema=postgres.schema, timeout=0.3)
    await store.commit([create("r")])
    async with locked(postgres, "SELECT 1 FROM records FOR UPDATE"):
        task = asyncio.create_task(store.commit([Update(kind="response", id="r", status="x")]))
        await until_waiting(postgres)
        await within(asyncio.gather(store.aclose(), store.aclose()))
        with pytest.raises(StorageUnavailableError):
            await within(task)


async def test_connections_are_bounded(postgres: PostgresBackend) -> None:
    store = await PostgresStore.open(postgres.server.url, schema=postgres.schema, max_connections=2)
    await store.commit([create("r")])
    async with locked(postgres, "SELECT 1 FROM records FOR UPDATE"):
        tasks = [asyncio.create_task(store.commit([Update(kind="response", id="r", status="x")])) for _ in range(20)]
        await until_waiting(postgres, 2)
        assert await waiting(postgres) == 2
    await within(asyncio.gather(*tasks))
    await store.aclose()


async def test_too_much_that_waits_is_refused(postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentrun_server.storage import postgres as module

    monkeypatch.setattr(module, "_MAX_WAITING", 5)
    store = await postgres.open()
    results = await within(asyncio.gather(*(store.commit([create()]) for _ in range(9)), return_exceptions=True))
    assert results[:5] == [None] * 5
    assert all(isinstance(result, StorageUnavailableError) for result in results[5:])
    await store.commit([create()])


async def test_a_lease_is_not_taken_over_before_what_it_fences_is_written(
    postgres: PostgresBackend, store: StoreAndLeases
) -> None:
    await store.commit([create("r")])
    lease = await store.acquire("run", "a", 100)
    assert lease is not None
    async with locked(postgres, "SELECT 1 FROM records FOR UPDATE"):
        # It has looked at its lease, and waits for the record.
        write = asyncio.create_task(store.commit([Update(kind="response", id="r", status="mine", fence=lease)]))
        await until_waiting(postgres)
        release = asyncio.create_task(store.release(lease))
        await until_waiting(postgres, 2)
        assert not release.done()
    await within(write)
    await within(release)
    assert await store.acquire("run", "b", 100) is not None


async def test_nothing_is_left_by_who_appends_while_the_record_is_deleted(store: StoreAndLeases) -> None:
    for number in range(10):
        run = f"r{number}"
        await store.commit([create(run), append(run, 0, b"first")])
        results = await within(
            asyncio.gather(
                store.commit([append(run, 1, b"second")]),
                store.commit([Delete("response", run)]),
                store.commit([create(f"{run}-item", kind="item", parent=run)]),
                return_exceptions=True,
            ),
            LONG,
        )
        assert results[1] is None
        assert all(result is None or isinstance(result, ConflictError) for result in results)
        assert await store.events(run) == []
    assert not (await store.list("item", None)).records


async def test_what_is_in_use_is_not_among_the_oldest(postgres: PostgresBackend, store: StoreAndLeases) -> None:
    await store.commit([create(f"r{n}", status="completed") for n in range(4)])
    async with locked(postgres, "SELECT 1 FROM records WHERE id IN ('r0', 'r2') FOR UPDATE"):
        assert await within(store.shrink(["response"], limit=3)) == 1, "of the three oldest, two are"
    assert [record.id for record in (await store.list("response", None)).records] == ["r0", "r2", "r3"]


async def test_the_size_of_a_large_table_is_estimated_from_a_part_of_it(
    store: StoreAndLeases, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentrun_server.storage import postgres as module

    text = "".join(map(str, range(300)))
    await store.commit([create(f"r{n}", body={"text": text}) for n in range(1000)])
    exact = await store.size()
    assert exact > 1000 * len(text)
    monkeypatch.setattr(module, "_SAMPLE_BYTES", 200_000)
    estimated = await store.size()
    assert estimated == pytest.approx(exact, rel=0.3)
    assert estimated == await store.size(), "the same each time"
    assert await store.shrink(["response"], limit=500) == 500
    assert await store.size() == pytest.approx(exact / 2, rel=0.3)


async def test_the_size_is_about_what_the_tables_take_without_what_is_dead(
    postgres: PostgresBackend, store: StoreAndLeases
) -> None:
    import asyncpg

    for number in range(150):
        await store.commit(changes("w", number, 100 if number % 3 else 3000))
    await store.shrink(["response"], limit=50)
    await postgres.ask(f"VACUUM FULL {postgres.schema}.records")
    await postgres.ask(f"VACUUM FULL {postgres.schema}.events")
    connection = await asyncpg.connect(postgres.server.url, server_settings={"search_path": postgres.schema})
    try:
        taken: int = await connection.fetchval(
            "SELECT pg_total_relation_size('records') + pg_total_relation_size('events')"
        )
    finally:
        await connection.close()
    assert await store.size() == pytest.approx(taken, rel=0.3)


async def test_many_may_open_a_new_schema_at_once(postgres: PostgresBackend) -> None:
    stores = await within(asyncio.gather(*(postgres.open() for _ in range(6))), LONG)
    await asyncio.gather(*(store.commit(changes("w", number)) for number, store in enumerate(stores)))
    for number in range(6):
        assert await is_whole(stores[0], "w", number)


async def test_a_schema_of_a_newer_release_is_refused(
    postgres: PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (*postgres_schema.MIGRATIONS, "CREATE TABLE future (x integer)")
    store = await postgres.open()
    await store.commit(changes("w", 0))
    with monkeypatch.context() as patch:
        patch.setattr(postgres_schema, "MIGRATIONS", (*steps, "CREATE TABLE more (x integer); NO SQL"))
        with pytest.raises(Exception, match="syntax"):
            await postgres.open()
        patch.setattr(postgres_schema, "MIGRATIONS", steps)
        newer = await postgres.open()  # all steps or none: the table was not there
        assert await is_whole(newer, "w", 0)
    with pytest.raises(SchemaVersionError, match="newer"):
        await postgres.open()


@pytest.mark.parametrize("version", range(1, len(postgres_schema.MIGRATIONS)))
async def test_the_schema_of_each_older_release_can_be_used(
    postgres: PostgresBackend, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = create("msg_a", kind="item", owner="w", parent="w-0")
    with monkeypatch.context() as patch:
        patch.setattr(postgres_schema, "MIGRATIONS", postgres_schema.MIGRATIONS[:version])
        await (await postgres.open()).commit([*changes("w", 0), item])
    again = await postgres.open()
    assert await is_whole(again, "w", 0)
    assert await again.get("item", "w/msg_a", "w") is not None
    assert await again.shrink(["response"]) == 1


@pytest.mark.parametrize("schema", ["", 'a"b', "Upper", "1", "x" * 64, "a;b"])
async def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        await PostgresStore.open("postgresql://unused", schema=schema)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://u:secret@127.0.0.1:{port}/db", StorageUnavailableError),
        ("nonsense://u:secret@x", ValueError),
        ("postgresql://u:secret/1@h/", ValueError),
    ],
)
async def test_a_url_that_does_not_work_is_an_error_without_the_password(
    url: str, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(error) as raised:
        await within(PostgresStore.open(url.format(port=port)))
    assert "secret" not in str(raised.value)
    assert error is StorageUnavailableError or raised.value.__suppress_context__
    assert "secret" not in caplog.text


async def test_a_server_that_is_frozen_is_given_up(mortal_postgres: PostgresServer) -> None:
    with mortal_postgres.frozen(), pytest.raises(StorageUnavailableError):
        await within(PostgresStore.open(mortal_postgres.url, schema="frozen", timeout=0.2))


async def test_no_connection_is_left_when_a_store_is_closed(mortal_postgres: PostgresServer) -> None:
    import asyncpg

    backend = PostgresBackend(mortal_postgres, "closed")
    store = await backend.open()
    await asyncio.gather(*(store.commit([create()]) for _ in range(8)))
    await store.aclose()
    connection = await asyncpg.connect(mortal_postgres.url)
    try:
        left = [1]

        async def look() -> None:
            while left[0]:
                left[0] = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agentrun-server'"
                )

        await within(look())
    finally:
        await connection.close()
    await eventually(lambda: not left[0])
