"""Who lives and who is dead among the processes of one store."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.runs.worker import Worker, worker_topic
from agentrun_server.storage.contracts import Lease, StorageUnavailableError
from agentrun_server.storage.opening import Storage
from tests.runs.doubles import Counter
from tests.runs.stores import Clock, sqlite

SECONDS = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def storage(tmp_path: Path, clock: Clock) -> AsyncIterator[Storage]:
    async with sqlite(tmp_path, clock) as storage:
        yield storage


@pytest.fixture
def new_id() -> Counter:
    return Counter()


async def joined(storage: Storage, new_id: Counter) -> Worker:
    worker = Worker(storage.store, storage.leases, new_id, SECONDS)
    await worker.join()
    return worker


async def dead(worker: Worker) -> list[str]:
    async with aclosing(worker.dead()) as found:
        return [identity async for identity, _ in found]


async def test_a_worker_lives_as_long_as_it_says_so(storage: Storage, clock: Clock, new_id: Counter) -> None:
    one, other = await joined(storage, new_id), await joined(storage, new_id)
    assert one.id != other.id
    assert worker_topic(one.id) != worker_topic(other.id)
    for _ in range(3):
        clock.now += SECONDS - 1
        assert await one.renew()
        assert await other.renew()
    assert await dead(one) == []
    clock.now += SECONDS + 1
    assert not await one.renew()
    assert await dead(one) == [other.id]


async def test_who_was_taken_for_dead_goes_on_as_another(storage: Storage, clock: Clock, new_id: Counter) -> None:
    worker = await joined(storage, new_id)
    before = worker.id
    clock.now += SECONDS + 1
    assert not await worker.renew()
    await worker.join()
    assert worker.id != before
    assert await worker.renew()
    assert await dead(worker) == [before]


async def test_who_leaves_is_found_at_once(storage: Storage, new_id: Counter) -> None:
    one, other = await joined(storage, new_id), await joined(storage, new_id)
    await one.leave()
    await one.leave()
    assert one.lease is None
    assert not await one.renew()
    assert await dead(other) == [one.id]


async def test_only_one_finds_a_dead_worker_at_a_time(storage: Storage, new_id: Counter) -> None:
    one, other, gone = [await joined(storage, new_id) for _ in range(3)]
    await gone.leave()
    async with aclosing(one.dead()) as found:
        assert (await anext(found))[0] == gone.id
        assert await dead(other) == []
    assert await dead(other) == [gone.id], "its lease was given back"


async def test_its_lease_is_the_right_to_write_in_its_stead(storage: Storage, new_id: Counter) -> None:
    one, gone = await joined(storage, new_id), await joined(storage, new_id)
    lost = gone.lease
    assert isinstance(lost, Lease)
    await gone.leave()
    async with aclosing(one.dead()) as found:
        _, lease = await anext(found)
        assert lease.name == lost.name
        assert lease.fence > lost.fence


async def test_who_is_buried_is_not_found_again(storage: Storage, new_id: Counter) -> None:
    one, gone = await joined(storage, new_id), await joined(storage, new_id)
    await gone.leave()
    await one.bury(gone.id)
    assert await dead(one) == []


async def test_an_heir_is_a_worker_that_nobody_is(storage: Storage, new_id: Counter) -> None:
    one, other = await joined(storage, new_id), await joined(storage, new_id)
    heir = one.heir()
    await storage.store.commit([heir])
    assert await dead(other) == [heir.record.id]


async def test_many_workers_are_looked_at_page_by_page(storage: Storage, new_id: Counter) -> None:
    one = await joined(storage, new_id)
    heirs = [one.heir() for _ in range(120)]
    await storage.store.commit(heirs)
    assert await dead(one) == [heir.record.id for heir in heirs]


async def test_a_list_whose_last_one_was_buried_meanwhile_goes_on_the_next_time(
    storage: Storage, new_id: Counter
) -> None:
    one = await joined(storage, new_id)
    await storage.store.commit([one.heir() for _ in range(120)])
    seen = 0
    async with aclosing(one.dead()) as found:
        async for identity, _ in found:
            await one.bury(identity)
            seen += 1
    assert seen == 99  # and itself
    assert len(await dead(one)) == 21


async def test_a_store_that_is_away_does_not_keep_a_worker_from_leaving(storage: Storage, new_id: Counter) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            return getattr(storage.leases, name)

        async def release(self, lease: Lease) -> None:
            raise StorageUnavailableError("away")

    away: Any = Away()
    worker = Worker(storage.store, away, new_id, SECONDS)
    await worker.join()
    await worker.leave()
    assert worker.lease is None
