"""Keys that say a request must not be done twice."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.runs.idempotency import HEADER, Claim, read_claim
from agentrun_server.storage.contracts import ConflictError, Create, Delete, Record, Store
from tests.runs.stores import Clock, Misbehaving, sqlite

TTL = 100.0
NOW = 1_000_000.0


def claim(key: str = "key", owner: str = "alice", route: str = "responses", body: bytes = b"{}") -> Claim:
    found = read_claim(Headers([(HEADER, key.encode("latin-1"))]), owner, route, body, TTL)
    assert found is not None
    return found


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with sqlite(tmp_path, Clock()) as storage:
        yield storage.store


def run(identity: str = "run_1", owner: str = "alice") -> Record:
    return Record(kind="run", id=identity, owner=owner, body={"said": identity})


async def begun(store: Store, wanted: Claim, record: Record) -> Record:
    await store.commit([Create(record), wanted.change(record.kind, record.id, NOW)])
    return record


# --- reading the header


def test_a_request_without_the_header_claims_nothing() -> None:
    assert read_claim(Headers(), "alice", "responses", b"{}", TTL) is None


@pytest.mark.parametrize("key", ["", "x" * 256, "a\x7fb", "a\tb", "schl\xfcssel"])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        claim(key)
    assert (refused.value.status_code, refused.value.param) == (400, "Idempotency-Key")


@pytest.mark.parametrize("key", ["x", "x" * 255, " ", "3f6c1a ~!"])
def test_any_short_line_of_ascii_is_a_key(key: str) -> None:
    assert claim(key).id.startswith("idem_")


def test_of_two_keys_neither_counts_unless_they_are_the_same() -> None:
    def read(*keys: bytes) -> Claim | None:
        return read_claim(Headers([(HEADER, key) for key in keys]), "alice", "responses", b"{}", TTL)

    assert read(b"key", b"key") == claim()
    with pytest.raises(InvalidRequestError) as refused:
        read(b"key", b"other")
    assert (refused.value.status_code, refused.value.param) == (400, "Idempotency-Key")


def test_a_key_belongs_to_its_owner_and_its_route() -> None:
    ids = [
        claim(*given).id
        for given in (
            ("key", "alice", "responses"),
            ("key", "bob", "responses"),
            ("key", "", "responses"),
            ("key", "alice", "chat"),
            ("other", "alice", "responses"),
            # Joined without lengths these would be the same as the first.
            ("skey", "alice", "response"),
            ("key", "aliceresponses", ""),
        )
    ]
    assert len(set(ids)) == len(ids)
    assert claim("key").id == claim("key", body=b"another").id
    assert claim("key").digest != claim("key", body=b"another").digest


def test_neither_the_key_nor_the_request_can_be_read_from_what_is_stored() -> None:
    stored = repr(claim("my-secret-key", body=b"my question").change("run", "run_1", NOW))
    assert "my-secret" not in stored
    assert "my question" not in stored


def test_an_owner_of_any_characters_has_keys() -> None:
    assert claim(owner="h\udc00|\u2028").id != claim(owner="h\udc01|\u2028").id


# --- finding the run


async def test_a_request_that_is_new_has_no_run(store: Store) -> None:
    assert await claim().find(store, NOW) is None


async def test_the_same_request_again_finds_the_run_of_the_first(store: Store) -> None:
    record = await begun(store, claim(), run())
    found = await claim().find(store, NOW + TTL - 1)
    assert found is not None
    assert (found.id, found.body) == (record.id, record.body)


async def test_another_request_with_the_key_is_refused(store: Store) -> None:
    await begun(store, claim(), run())
    with pytest.raises(InvalidRequestError) as refused:
        await claim(body=b'{"x":1}').find(store, NOW)
    assert (refused.value.status_code, refused.value.code) == (400, "idempotency_key_reused")


async def test_the_key_of_another_is_another_key(store: Store) -> None:
    await begun(store, claim(), run())
    assert await claim(owner="bob").find(store, NOW) is None
    assert await claim(route="chat").find(store, NOW) is None


async def test_a_key_is_forgotten_after_its_time_and_can_be_used_again(store: Store) -> None:
    await begun(store, claim(), run("run_1"))
    other = claim(body=b"another")
    assert await other.find(store, NOW + TTL) is None
    await begun(store, other, run("run_2"))
    found = await other.find(store, NOW)
    assert found is not None
    assert found.id == "run_2"


async def test_of_twins_that_both_see_an_old_key_one_runs(tmp_path: Path) -> None:
    async with sqlite(tmp_path, Clock()) as storage:
        store = storage.store
        await begun(store, claim(), run("run_1"))

        async def twin() -> None:
            assert await claim().find(store, NOW + TTL) is None
            await store.commit([Create(run("run_2")), claim().change("run", "run_2", NOW + TTL)])

        late = Misbehaving(storage)
        late.overtake = twin
        found = await claim().find(late.storage.store, NOW + TTL)
        assert found is not None
        assert found.id == "run_2"


async def test_a_key_whose_answer_was_deleted_does_not_run_again(store: Store) -> None:
    await begun(store, claim(), run())
    await store.commit([Delete("run", "run_1")])
    with pytest.raises(InvalidRequestError) as refused:
        await claim().find(store, NOW)
    assert refused.value.code == "idempotency_key_reused"


async def test_a_key_that_was_withdrawn_is_free(store: Store) -> None:
    await begun(store, claim(), run())
    await store.commit([claim().withdraw()])
    assert await claim(body=b"another").find(store, NOW) is None


async def test_a_key_that_is_withdrawn_while_it_is_looked_up_is_free(tmp_path: Path) -> None:
    async with sqlite(tmp_path, Clock()) as storage:
        await begun(storage.store, claim(), run())

        async def withdraw() -> None:
            await storage.store.commit([Delete("run", "run_1"), claim().withdraw()])

        late = Misbehaving(storage)
        late.overtake_reading["run"] = withdraw
        assert await claim().find(late.storage.store, NOW) is None


async def test_a_key_that_passes_to_a_twin_while_it_is_looked_up_leads_to_the_twin(tmp_path: Path) -> None:
    async with sqlite(tmp_path, Clock()) as storage:
        await begun(storage.store, claim(), run())

        async def pass_on() -> None:
            await storage.store.commit([Delete("run", "run_1"), claim().withdraw()])
            await begun(storage.store, claim(), run("run_2"))

        late = Misbehaving(storage)
        late.overtake_reading["run"] = pass_on
        found = await claim().find(late.storage.store, NOW)
        assert found is not None
        assert found.id == "run_2"


async def test_of_many_that_begin_at_once_one_does(store: Store) -> None:
    async def begin(number: int) -> bool:
        try:
            await begun(store, claim(), run(f"run_{number}"))
        except ConflictError:
            return False
        return True

    began = await asyncio.gather(*(begin(number) for number in range(20)))
    assert sum(began) == 1
    found = await claim().find(store, NOW)
    assert found is not None
    assert found.id == f"run_{began.index(True)}"
    assert len((await store.list("run", None, limit=100)).records) == 1
