"""How the records of items are named."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentrun_server.runs.item_record import get_item_records, item_id, item_key, item_record
from agentrun_server.storage.contracts import Create, Record
from agentrun_server.storage.sqlite import SQLiteStore

OWNERS = ["", "alice", "https://id/|alice", "https://id/|alice/x"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "store.db", durable=False)
    yield store
    await store.aclose()


@pytest.mark.parametrize("owner", OWNERS)
def test_a_record_tells_the_id_that_its_item_has_for_its_owner(owner: str) -> None:
    record = item_record(owner, "conv_1", "msg_a", {"id": "msg_a"}).record
    assert (item_id(record), record.owner, record.parent) == ("msg_a", owner, "conv_1")


def test_no_item_has_the_id_of_another_record() -> None:
    keys = {item_key(owner, item) for owner in OWNERS for item in ("conv_1", "msg_a", "resp_1")}
    assert len(keys) == 3 * len(OWNERS)
    assert all("/" in key for key in keys)


async def test_the_same_id_is_a_different_item_to_each_owner(store: SQLiteStore) -> None:
    await store.commit([Create(Record(kind="conversation", id="c", owner="", body={}))])
    await store.commit([item_record(owner, "c", "msg_a", {"of": owner}) for owner in OWNERS])
    for owner in OWNERS:
        found = await get_item_records(store, ["msg_a", "x/msg_a", "msg_b", "\0"], owner)
        assert {name: record.body for name, record in found.items()} == {"msg_a": {"of": owner}}
