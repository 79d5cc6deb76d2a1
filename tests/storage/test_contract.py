"""One suite for every store: what `agentrun_server.storage.contracts` promises."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import pytest

from agentrun_server.storage.codec import PAGE_BYTES
from agentrun_server.storage.contracts import (
    Change,
    ConflictError,
    Create,
    Delete,
    Event,
    Lease,
    Page,
    Record,
    StorageUnavailableError,
    Update,
)
from tests.storage.contract import Backend, StoreAndLeases, append, create, everything, record, run_process
from tests.storage.worker import acknowledged, changes, is_whole
from tests.support.clock import within

ODD_IDS = ["'; DROP TABLE records; --", 'a"b', "a\\b", "a.b", "$", "%_", " ", "é\u2028", "日本", "😀", "x" * 1000]
NO_TEXT = ["a\0b", "\ud800"]
LONG = 60.0
"""Bound of waits in tests that do much."""


@pytest.fixture
async def store(backend: Backend) -> StoreAndLeases:
    return await backend.open()


async def found(store: StoreAndLeases, identity: str, kind: str = "response") -> Record:
    here = await store.get(kind, identity, None)
    assert here is not None
    return here


def ids(page: Page) -> list[str]:
    return [one.id for one in page.records]


# --- records


async def test_what_is_created_comes_back_with_version_time_and_position(store: StoreAndLeases) -> None:
    made = record("r", body={"a": [1, 2.5, None, True, {"b": "c"}]}, status="queued", expires_at=2e10)
    await store.commit([Create(made)])
    back = await found(store, "r")
    assert back.created_at > 0
    assert back.position > 0
    assert back == replace(made, version=1, created_at=back.created_at, position=back.position)


async def test_a_record_is_there_once(store: StoreAndLeases) -> None:
    await store.commit([create("r", body={"n": 1})])
    for owner in ("alice", "bob"):
        with pytest.raises(ConflictError):
            await store.commit([create("r", owner=owner, body={"n": 2})])
    assert (await found(store, "r")).body == {"n": 1}


async def test_kinds_have_names_of_their_own(store: StoreAndLeases) -> None:
    await store.commit([create("x", kind="response"), create("x", kind="completion")])
    await store.commit([Delete("completion", "x")])
    assert await store.get("response", "x", "alice") is not None
    assert await store.get("completion", "x", "alice") is None


async def test_what_others_own_is_not_there(store: StoreAndLeases) -> None:
    await store.commit([create("hers"), create("his", owner="bob"), create("nobodys", owner="")])
    assert await store.get("response", "hers", "bob") is None
    assert await store.get("response", "hers", "") is None
    assert await store.get("response", "nobodys", "alice") is None
    assert (await store.get_many("response", ["hers", "his", "none", "nobodys"], "alice")).keys() == {"hers"}
    assert (await store.get_many("response", ["hers", "his", "none"], None)).keys() == {"hers", "his"}
    assert ids(await store.list("response", "bob")) == ["his"]
    assert ids(await store.list("response", "")) == ["nobodys"]
    assert ids(await store.list("response", None)) == ["hers", "his", "nobodys"]
    with pytest.raises(KeyError):
        await store.list("response", "bob", after="hers")


async def test_an_update_changes_what_is_given_and_counts(store: StoreAndLeases) -> None:
    await store.commit([create("r", body={"n": 1}, status="queued")])
    before = await found(store, "r")
    await store.commit([Update(kind="response", id="r", status="in_progress")])
    await store.commit([Update(kind="response", id="r", body={"n": 2})])
    await store.commit([Update(kind="response", id="r", expires_at=2e10)])
    assert await found(store, "r") == replace(before, status="in_progress", body={"n": 2}, expires_at=2e10, version=4)
    await store.commit([Update(kind="response", id="r", status="")])
    assert (await found(store, "r")).status == ""


@pytest.mark.parametrize(
    "condition",
    [{"expect_status": ["completed"]}, {"expect_status": []}, {"expect_version": 2}, {"expect_version": 0}],
    ids=str,
)
async def test_an_update_whose_condition_does_not_hold_writes_nothing(
    store: StoreAndLeases, condition: dict[str, Any]
) -> None:
    await store.commit([create("r", status="queued")])
    before = await found(store, "r")
    with pytest.raises(ConflictError):
        await store.commit([Update(kind="response", id="r", status="failed", **condition)])
    assert await found(store, "r") == before


async def test_an_update_whose_condition_holds_is_made(store: StoreAndLeases) -> None:
    await store.commit([create("r", status="queued")])
    await store.commit([Update(kind="response", id="r", status="a", expect_status={"queued", "in_progress"})])
    await store.commit([Update(kind="response", id="r", status="b", expect_version=2, expect_status=("a",))])
    assert (await found(store, "r")).status == "b"


async def test_what_is_not_there_cannot_be_updated(store: StoreAndLeases) -> None:
    with pytest.raises(ConflictError):
        await store.commit([Update(kind="response", id="r", status="failed")])


async def test_cancelling_wins_over_completing_whatever_the_order(store: StoreAndLeases) -> None:
    for number in range(20):
        run = f"r{number}"
        await store.commit([create(run, status="in_progress")])

        async def end(status: str, run: str = run) -> str:
            await store.commit([Update(kind="response", id=run, status=status, expect_status=["in_progress"])])
            return status

        results = await within(
            asyncio.gather(end("cancelled"), end("completed"), end("failed"), return_exceptions=True), LONG
        )
        (winner,) = [result for result in results if isinstance(result, str)]
        assert sum(isinstance(result, ConflictError) for result in results) == 2
        assert (await found(store, run)).status == winner


async def test_a_commit_with_a_change_that_fails_writes_nothing(store: StoreAndLeases) -> None:
    await store.commit([create("old", body={"n": 1}), create("gone"), append("old", 0, b"a")])
    with pytest.raises(ConflictError):
        await store.commit(
            [
                create("new"),
                Update(kind="response", id="old", body={"n": 2}),
                Delete("response", "gone"),
                append("old", 1, b"b"),
                Update(kind="response", id="missing", status="x"),
                create("newer"),
            ]
        )
    assert ids(await store.list("response", None)) == ["old", "gone"]
    assert (await found(store, "old")).body == {"n": 1}
    assert await everything(store, "old") == [Event(0, b"a")]


async def test_changes_of_a_commit_see_those_before_them(store: StoreAndLeases) -> None:
    await store.commit(
        [
            create("r", status="queued"),
            Update(kind="response", id="r", status="done", expect_status=["queued"], expect_version=1),
            append("r", 0, b"a", b"b"),
            append("r", 2, b"c"),
            create("i", kind="item", parent="r"),
            create("temporary"),
            Delete("response", "temporary"),
            create("temporary", body={"n": 2}),
        ]
    )
    assert (await found(store, "r")).version == 2
    assert [event.data for event in await everything(store, "r")] == [b"a", b"b", b"c"]
    assert (await found(store, "temporary")).body == {"n": 2}


async def test_a_commit_of_nothing_is_one(store: StoreAndLeases) -> None:
    await store.commit([])


async def test_a_body_is_read_when_the_commit_is_called(store: StoreAndLeases) -> None:
    body = {"n": 1}
    waiting = asyncio.gather(store.commit([create("r", body=body)]))
    await asyncio.sleep(0)
    body["n"] = 2
    await within(waiting)
    assert (await found(store, "r")).body == {"n": 1}


async def test_bodies_hold_any_text(store: StoreAndLeases) -> None:
    body = {"lone": "\ud800x\udfff", "nul": "a\0b", "\udc00\0": 1, "lines": "\u2028\r\n", "big": 2**70, "": "日本😀"}
    await store.commit([create("r", body=body), create("s", body=body)])
    assert (await found(store, "r")).body == body
    # They stand in nobody's way.
    assert ids(await store.list("response", "alice", fields={"nul": "a\0b", "": "日本😀"})) == ["r", "s"]
    assert ids(await store.list("response", "alice", fields={"lone": "\ud800"})) == []
    assert ids(await store.list("response", "alice", fields={"lone": "\ud800x\udfff"})) == ["r", "s"]


async def test_bodies_may_be_long(store: StoreAndLeases) -> None:
    body = {"text": "é" * 500_000}
    data = bytes(range(256)) * 4096
    await store.commit([create("r", body=body), append("r", 0, data)])
    assert (await found(store, "r")).body == body
    assert await everything(store, "r") == [Event(0, data)]


@pytest.mark.parametrize("odd", ODD_IDS, ids=ascii)
async def test_ids_hold_odd_characters(store: StoreAndLeases, odd: str) -> None:
    await store.commit([create("plain"), create(odd, owner=odd, kind=odd, status=odd), append(odd, 0, b"x")])
    await store.commit([create("child", kind="item", owner=odd, parent=odd)])
    await store.commit([Update(kind=odd, id=odd, body={odd: odd}, expect_status=[odd])])
    back = await store.get(odd, odd, odd)
    assert back is not None
    assert back.body == {odd: odd}
    assert ids(await store.list(odd, odd, statuses=[odd], after=None)) == [odd]
    assert ids(await store.list("item", odd, parent=odd)) == ["child"]
    lease = await store.acquire(odd, odd, 10)
    assert lease is not None
    assert await store.renew(lease, 10)
    await store.commit([Delete(odd, odd)])
    assert ids(await store.list(odd, None)) == []
    assert ids(await store.list("response", None)) == ["plain"]
    assert await everything(store, odd) == []


@pytest.mark.parametrize("bad", NO_TEXT, ids=ascii)
async def test_ids_that_cannot_be_stored_are_refused_and_never_there(store: StoreAndLeases, bad: str) -> None:
    await store.commit([create("r", status="s")])
    refused: list[Change] = [
        *(create(**{name: bad}) for name in ("kind", "owner", "parent", "status")),
        create(bad),
        Update(kind=bad, id="r", status="x"),
        Update(kind="response", id=bad, status="x"),
        Update(kind="response", id="r", status=bad),
        Update(kind="response", id="r", status="x", expect_status=["s", bad]),
        Delete("response", bad),
        append(bad, 0, b""),
    ]
    for change in refused:
        with pytest.raises(ValueError, match="surrogates"):
            await store.commit([create("other"), change])
    with pytest.raises(ValueError, match="surrogates"):
        await store.acquire(bad, "h", 1)
    assert ids(await store.list("response", None)) == ["r"]
    assert await store.get("response", bad, None) is None
    assert await store.get(bad, "r", None) is None
    assert await store.get("response", "r", bad) is None
    assert (await store.get_many("response", [bad, "r"], None)).keys() == {"r"}
    assert await store.events(bad) == []
    for condition in ({"kind": bad}, {"owner": bad}, {"parent": bad}, {"statuses": [bad]}):
        arguments: dict[str, Any] = {"kind": "response", "owner": None, **condition}
        assert await store.list(**arguments) == Page([], False)
    with pytest.raises(KeyError):
        await store.list("response", None, after=bad)


# --- lists


async def test_lists_are_read_page_by_page_both_ways(store: StoreAndLeases) -> None:
    names = [f"r{number}" for number in range(7)]
    for name in names:
        await store.commit([create(name), create(f"{name}-other", kind="item")])
    for order, expected in (("asc", names), ("desc", names[::-1])):
        for limit in (1, 2, 3, 6, 7, 8):
            seen: list[str] = []
            while True:
                after = seen[-1] if seen else None
                page = await store.list("response", "alice", after=after, limit=limit, order=order)  # type: ignore[arg-type]
                seen += ids(page)
                assert page.has_more == (len(seen) < 7)
                if not page.has_more:
                    break
            assert seen == expected


async def test_a_list_grows_while_it_is_read(store: StoreAndLeases) -> None:
    await store.commit([create("a"), create("b")])
    assert await store.list("response", "alice", after="b") == Page([], False)
    await store.commit([create("c"), Delete("response", "a")])
    assert ids(await store.list("response", "alice", after="b")) == ["c"]
    with pytest.raises(KeyError):
        await store.list("response", "alice", after="a")


async def test_a_list_has_the_states_asked_for(store: StoreAndLeases) -> None:
    await store.commit(
        [create("q", status="queued"), create("p", status="in_progress"), create("n"), create("d", status="completed")]
    )
    assert ids(await store.list("response", None, statuses=["queued", "in_progress"])) == ["q", "p"]
    assert ids(await store.list("response", None, statuses=["", "queued"])) == ["q", "n"]
    assert ids(await store.list("response", None, statuses=[])) == []
    assert ids(await store.list("response", None)) == ["q", "p", "n", "d"]
    # Where a page ended may have another state by now.
    assert ids(await store.list("response", None, statuses=["completed"], after="q")) == ["d"]


async def test_a_list_has_the_children_of_one(store: StoreAndLeases) -> None:
    await store.commit([create("a"), create("b")])
    await store.commit([create(f"{parent}{n}", kind="item", parent=parent) for n in range(3) for parent in ("a", "b")])
    await store.commit([create("free", kind="item")])
    assert ids(await store.list("item", "alice", parent="a")) == ["a0", "a1", "a2"]
    assert ids(await store.list("item", "alice", parent="a", after="a1")) == ["a2"]
    assert ids(await store.list("item", "bob", parent="a")) == []
    assert ids(await store.list("item", "alice", parent="")) == ["free"]
    with pytest.raises(KeyError):
        await store.list("item", "alice", parent="a", after="b1")


async def test_a_list_has_the_members_asked_for(store: StoreAndLeases) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "plain": {"model": "m", "metadata": {"topic": "x"}},
        "other": {"model": "n", "metadata": {"topic": "x", "a.b": "dotted", 'q"\\': "quoted", "é": "ü", "": "empty"}},
        "number": {"model": 1, "metadata": {"topic": 1}},
        "none": {"model": None, "metadata": None},
        "list": {"model": ["m"], "metadata": ["topic"]},
        "flat": {"metadata.topic": "x", "metadata": "topic"},
    }
    await store.commit([create(name, body=body) for name, body in bodies.items()])
    for fields, expected in (
        ({"model": "m"}, ["plain"]),
        ({"metadata.topic": "x"}, ["plain", "other"]),
        ({"metadata.topic": "x", "model": "n"}, ["other"]),
        ({"metadata.a.b": "dotted"}, ["other"]),
        ({'metadata.q"\\': "quoted"}, ["other"]),
        ({"metadata.é": "ü"}, ["other"]),
        ({"metadata.": "empty"}, ["other"]),
        ({"metadata.topic": "1"}, []),
        ({"model": ""}, []),
        ({'model" OR 1=1 --': "m"}, []),
    ):
        assert ids(await store.list("response", "alice", fields=fields)) == expected, fields


async def test_a_filtered_list_has_full_pages(store: StoreAndLeases) -> None:
    await store.commit([create(f"r{n}", body={"model": f"m{n % 50}"}) for n in range(500)])
    for order, expected in (("asc", range(7, 500, 50)), ("desc", range(457, 0, -50))):
        names = [f"r{n}" for n in expected]
        arguments: dict[str, Any] = {"fields": {"model": "m7"}, "order": order}
        first = await store.list("response", "alice", limit=4, **arguments)
        assert (ids(first), first.has_more) == (names[:4], True)
        rest = await store.list("response", "alice", limit=6, after=names[3], **arguments)
        assert (ids(rest), rest.has_more) == (names[4:], False)


# --- events


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("fields", [{}, {"kept": "yes"}])
async def test_a_page_of_large_records_is_shorter(
    store: StoreAndLeases, order: Literal["asc", "desc"], fields: dict[str, str]
) -> None:
    """Who asks for a hundred at once does not get a gigabyte; each page has one at least."""
    half = "x" * (PAGE_BYTES // 2)
    sizes = {"a": half, "b": half * 3, "c": half, "d": half, "e": "", "f": ""}
    await store.commit([create(name, body={"text": text, "kept": "yes"}) for name, text in sizes.items()])
    pages: list[str] = []
    after, more = None, True
    while more:
        page = await store.list("response", "alice", fields=fields, order=order, after=after, limit=100)
        assert all(one.size == len(sizes[one.id]) + len('{"text":"","kept":"yes"}') for one in page.records)
        pages.append("".join(ids(page)))
        after, more = pages[-1][-1], page.has_more
    assert pages == (["ab", "cd", "ef"] if order == "asc" else ["fedc", "b", "a"])


async def test_events_are_read_after_any_number(store: StoreAndLeases) -> None:
    data = [b"", b"a\0b", b"\xff", b"", b"long" * 1000, b"\x00\x00\x00\x01", b"end"]
    await store.commit([create("r"), append("r", 0, *data[:3])])
    await store.commit([append("r", 3)])
    await store.commit([append("r", 3, data[3])])
    await store.commit([append("r", 4, *data[4:])])
    log = [Event(number, piece) for number, piece in enumerate(data)]
    for after in range(-1, 9):
        for limit in (1, 2, 7, 100):
            assert list(await store.events("r", after, limit)) == log[after + 1 :][:limit], (after, limit)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
async def test_a_log_goes_on_exactly_where_it_ended(store: StoreAndLeases, first: int) -> None:
    await store.commit([create("r"), append("r", 0, b"a", b"b")])
    with pytest.raises(ConflictError):
        await store.commit([append("r", first, b"x")])
    with pytest.raises(ConflictError):
        await store.commit([append("r", first)])
    assert [event.data for event in await everything(store, "r")] == [b"a", b"b"]


async def test_of_two_who_append_the_same_number_one_does(store: StoreAndLeases) -> None:
    await store.commit([create("r")])
    for number in range(0, 40, 2):
        results = await within(
            asyncio.gather(
                *(store.commit([append("r", number, name, name)]) for name in (b"a", b"b", b"c")),
                return_exceptions=True,
            ),
            LONG,
        )
        assert results.count(None) == 1
        assert sum(isinstance(result, ConflictError) for result in results) == 2
    log = await everything(store, "r")
    assert [event.number for event in log] == list(range(40))
    assert all(log[number].data == log[number + 1].data for number in range(0, 40, 2))


async def test_no_more_bytes_of_a_log_are_read_than_are_wanted(store: StoreAndLeases) -> None:
    """At least one event, and behind those that reach the bound none."""
    await store.commit([create("r"), append("r", 0, b"aa", b"bb"), append("r", 2, b"cc"), append("r", 3, b"dddd")])
    log = [Event(number, data) for number, data in enumerate([b"aa", b"bb", b"cc", b"dddd"])]
    for after in range(-1, 4):
        for most in (1, 2, 3, 5, 100):
            got = list(await store.events("r", after, max_bytes=most))
            assert got == log[after + 1 :][: len(got)]
            assert bool(got) == (after < 3)
            assert sum(len(event.data) for event in got[:-1]) < most
    assert await store.events("r", -1, max_bytes=100) == log
    assert await store.events("r", -1, 2, max_bytes=100) == log[:2]


async def test_a_long_log_is_read_in_pages_and_from_its_end(store: StoreAndLeases) -> None:
    data = [b"%d" % number for number in range(10_000)]
    await store.commit([create("r")])
    for first in range(0, 10_000, 64):
        await store.commit([append("r", first, *data[first : first + 64])])
    assert [event.data for event in await everything(store, "r")] == data
    assert [event.number for event in await store.events("r", 9_997)] == [9_998, 9_999]
    assert len(await store.events("r", -1, 10_001)) == 10_000


async def test_runs_have_logs_of_their_own(store: StoreAndLeases) -> None:
    await store.commit([create("a"), create("b"), append("a", 0, b"a"), append("b", 0, b"b0", b"b1")])
    assert [event.data for event in await store.events("a")] == [b"a"]
    assert [event.data for event in await store.events("b")] == [b"b0", b"b1"]
    assert await store.events("none") == []


async def test_a_log_and_children_need_the_record_they_belong_to(store: StoreAndLeases) -> None:
    for change in (append("r", 0, b"x"), append("r", 0), create("c", kind="item", parent="r"), create("r", parent="r")):
        with pytest.raises(ConflictError):
            await store.commit([change])
    await store.commit([create("r"), append("r", 0, b"x"), Delete("response", "r")])
    for change in (append("r", 0, b"x"), append("r", 1, b"x"), create("c", kind="item", parent="r")):
        with pytest.raises(ConflictError):
            await store.commit([change])
    assert await store.events("r") == []


# --- deletion


async def test_what_belongs_to_a_record_is_deleted_with_it(store: StoreAndLeases) -> None:
    await store.commit(
        [
            create("conversation", kind="conversation"),
            create("child", kind="response", parent="conversation"),
            create("grandchild", kind="item", parent="child"),
            create("stranger", kind="item", owner="bob", parent="conversation"),
            create("other", kind="item"),
            *(append(run, 0, b"x") for run in ("conversation", "child", "grandchild", "other")),
        ]
    )
    await store.commit([Delete("conversation", "conversation")])
    for kind in ("conversation", "response", "item"):
        assert ids(await store.list(kind, None)) == (["other"] if kind == "item" else [])
    for run in ("conversation", "child", "grandchild"):
        assert await store.events(run) == []
    assert len(await store.events("other")) == 1


async def test_a_long_line_of_children_is_deleted(store: StoreAndLeases) -> None:
    line = [create("0"), *(create(str(number), parent=str(number - 1)) for number in range(1, 1500))]
    await store.commit(line)
    await store.commit([Delete("response", "0")])
    assert ids(await store.list("response", None)) == []


async def test_deleting_what_is_not_there_does_nothing(store: StoreAndLeases) -> None:
    await store.commit([create("r"), create("c", kind="item", parent="r"), append("r", 0, b"x")])
    await store.commit([Delete("response", "none"), Delete("item", "r"), Delete("conversation", "r")])
    assert await store.get("item", "c", "alice") is not None
    assert len(await store.events("r")) == 1
    await store.commit([Delete("response", "r"), Delete("response", "r")])


async def test_a_sweep_deletes_what_has_expired(backend: Backend, store: StoreAndLeases) -> None:
    await store.commit([create("now")])
    now = (await found(store, "now")).created_at
    await store.commit(
        [
            create("soon", expires_at=now + 100),
            create("child", kind="item", parent="soon", expires_at=now + 50),
            create("late", expires_at=now + 1000),
            append("soon", 0, b"x"),
        ]
    )
    assert await store.sweep() == 0
    await backend.pass_time(200)
    assert await store.get("response", "soon", "alice") is not None, "until it is swept"
    assert await store.sweep() == 2
    assert ids(await store.list("response", None)) == ["now", "late"]
    assert ids(await store.list("item", None)) == []
    assert await store.events("soon") == []
    await store.commit([Update(kind="response", id="late", expires_at=now + 9000)])
    await backend.pass_time(1000)
    assert await store.sweep() == 0


async def test_an_end_may_be_never_and_come_back(backend: Backend, store: StoreAndLeases) -> None:
    await store.commit([create("now")])
    now = (await found(store, "now")).created_at
    never = float("inf")
    await store.commit([create("r", expires_at=now + 100), create("child", kind="item", parent="r")])
    await store.commit([Update(kind="response", id="r", expires_at=never)])
    assert (await found(store, "r")).expires_at == never
    await backend.pass_time(10_000)
    assert await store.sweep() == 0
    await store.commit([Update(kind="response", id="r", expires_at=now + 100)])
    await backend.pass_time(10_000)
    assert await store.sweep() == 1
    assert ids(await store.list("item", None)) == []


async def test_a_sweep_has_a_limit_and_takes_the_oldest_first(backend: Backend, store: StoreAndLeases) -> None:
    await store.commit([create("now")])
    now = (await found(store, "now")).created_at
    await store.commit([create(f"r{n}", expires_at=now + 100 - n) for n in range(10)])
    await backend.pass_time(200)
    assert await store.sweep(4) == 4
    assert ids(await store.list("response", None)) == ["now", *(f"r{n}" for n in range(6))]
    assert [await store.sweep(4), await store.sweep(4), await store.sweep(4)] == [4, 2, 0]


@pytest.mark.parametrize("kind", ["response", "completion", "run", "idempotency", "session"])
async def test_a_sweep_takes_every_kind_in_every_state(backend: Backend, store: StoreAndLeases, kind: str) -> None:
    await store.commit([create("now", kind=kind)])
    now = (await found(store, "now", kind)).created_at
    await store.commit([create("r", kind=kind, status="in_progress", expires_at=now + 100)])
    await backend.pass_time(200)
    assert await store.sweep() == 1
    assert ids(await store.list(kind, None)) == ["now"]


async def test_the_oldest_go_first_with_what_belongs_to_them(store: StoreAndLeases) -> None:
    for number in range(6):
        name, kind = f"r{number}", ("response", "completion")[number % 2]
        await store.commit([create(name, kind=kind), create(f"{name}-item", kind="item", parent=name)])
        await store.commit([create(f"{name}-grandchild", kind="item", parent=f"{name}-item"), append(name, 0, b"x")])
    assert await store.shrink(["response", "completion"], limit=3) == 3
    assert ids(await store.list("response", None)) == ["r4"]
    assert ids(await store.list("completion", None)) == ["r3", "r5"]
    assert ids(await store.list("item", None)) == [f"r{n}-{what}" for n in (3, 4, 5) for what in ("item", "grandchild")]
    assert [len(await store.events(f"r{n}")) for n in range(6)] == [0, 0, 0, 1, 1, 1]
    assert await store.shrink({"response", "completion"}) == 3
    assert await store.shrink(["response", "completion"]) == 0
    assert ids(await store.list("item", None)) == []


async def test_only_what_may_go_goes(store: StoreAndLeases) -> None:
    await store.commit(
        [
            create("queued", status="queued"),
            create("running", status="in_progress"),
            create("conversation", kind="conversation"),
            create("child", parent="conversation"),
            create("failed", status="failed"),
            create("nothing", status=""),
        ]
    )
    assert await store.shrink([]) == 0
    assert await store.shrink(["none", *NO_TEXT], keep_statuses=NO_TEXT) == 0
    # What stays takes nobody's place.
    assert await store.shrink(["response"], keep_statuses=["queued", "in_progress", *NO_TEXT], limit=1) == 1
    assert ids(await store.list("response", None)) == ["queued", "running", "child", "nothing"]
    assert await store.shrink(["response", "response"], keep_statuses={"queued", "in_progress"}) == 1
    assert ids(await store.list("response", None)) == ["queued", "running", "child"]
    assert await store.shrink(["response"]) == 2
    assert ids(await store.list("response", None)) == ["child"], "it goes with its conversation"


@pytest.mark.parametrize("way", ["delete", "sweep", "shrink"])
async def test_a_conversation_keeps_its_items_when_a_response_of_it_goes(
    backend: Backend, store: StoreAndLeases, way: str
) -> None:
    await store.commit([create("conversation", kind="conversation")])
    now = (await found(store, "conversation", "conversation")).created_at
    body = {"conversation": "conversation", "input": [{"id": "said"}], "response": {"output": [{"id": "answered"}]}}
    await store.commit(
        [
            create("r", body=body, status="completed", expires_at=now + 100),
            create("said", kind="item", parent="conversation", body={"n": 1}),
            create("answered", kind="item", parent="conversation", body={"n": 2}),
            create("own", kind="item", parent="r"),
            append("r", 0, b"x"),
        ]
    )
    await backend.pass_time(200)
    if way == "delete":
        await store.commit([Delete("response", "r")])
    elif way == "sweep":
        assert await store.sweep() == 1
    else:
        assert await store.shrink(["response", "completion", "run"]) == 1
    assert await store.get("response", "r", None) is None
    assert await store.get("conversation", "conversation", "alice") is not None
    page = await store.list("item", "alice", parent="conversation")
    assert [(one.id, one.body) for one in page.records] == [("said", {"n": 1}), ("answered", {"n": 2})]
    assert await store.get("item", "own", None) is None


async def test_a_store_knows_its_size(store: StoreAndLeases) -> None:
    before = await store.size()
    await store.commit([create("r", body={"text": "".join(map(str, range(100_000)))})])
    assert await store.size() > before >= 0
    await store.commit([append("r", 0, bytes(range(256)) * 10_000)])
    assert await store.size() > before + 300_000


async def test_a_store_gets_smaller_with_each_step_of_deletion(store: StoreAndLeases) -> None:
    await store.commit([create("first")])
    empty = await store.size()
    data = "".join(map(str, range(2000)))
    for first in range(0, 200, 20):
        names = [f"r{n}" for n in range(first, first + 20)]
        await store.commit([create(name, body={"text": data}) for name in names])
        await store.commit([append(name, 0, data.encode()) for name in names])
    full = await store.size()
    assert full - empty > 200 * len(data), "it counts what was written"
    sizes = [full]
    while await store.shrink(["response"], limit=50):
        sizes.append(await store.size())
    assert len(sizes) == 6, "201 of them, 50 at a time"
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == pytest.approx((full + empty) / 2, rel=0.1), "a hundred of two hundred are gone"
    assert sizes[-1] <= empty


# --- leases


async def held(store: StoreAndLeases, name: str, holder: str, seconds: float = 100) -> Lease:
    lease = await store.acquire(name, holder, seconds)
    assert lease is not None
    return lease


async def test_a_lease_is_held_by_one(store: StoreAndLeases) -> None:
    lease = await held(store, "run", "a")
    assert (lease.name, lease.holder) == ("run", "a")
    assert await store.acquire("run", "b", 100) is None
    assert await store.acquire("other", "b", 100) is not None
    await store.release(lease)
    later = await held(store, "run", "b")
    assert later.fence > lease.fence
    assert await store.acquire("run", "a", 100) is None


async def test_a_lease_runs_out(backend: Backend, store: StoreAndLeases) -> None:
    first = await held(store, "run", "a", 100)
    await backend.pass_time(60)
    assert await store.renew(first, 100)
    await backend.pass_time(60)
    assert await store.acquire("run", "b", 100) is None
    await backend.pass_time(60)
    assert not await store.renew(first, 100), "what has run out is lost, though nobody took it"
    second = await held(store, "run", "b", 100)
    assert second.fence > first.fence
    assert not await store.renew(first, 100)
    await store.release(first)
    assert await store.acquire("run", "a", 100) is None, "the second is held still"
    assert await store.renew(second, 100)


async def test_who_takes_a_lease_anew_has_lost_the_older_one(store: StoreAndLeases) -> None:
    first = await held(store, "run", "a")
    second = await held(store, "run", "a")
    assert second.fence > first.fence
    assert not await store.renew(first, 100)
    assert await store.renew(second, 100)


async def test_fences_grow_though_old_leases_are_swept(backend: Backend, store: StoreAndLeases) -> None:
    fences: list[int] = []
    for number in range(5):
        lease = await held(store, "run", "a", 10)
        fences.append(lease.fence)
        if number % 2:
            await store.release(lease)
        await backend.pass_time(100_000)
        await store.sweep()
    assert fences == sorted(set(fences))


async def test_who_lost_the_lease_cannot_write(backend: Backend, store: StoreAndLeases) -> None:
    lost = await held(store, "run", "a", 10)
    fenced = Update(kind="response", id="r", status="mine", fence=lost)
    await store.commit([create("r"), fenced, append("r", 0, b"x", fence=lost)])
    await backend.pass_time(20)
    for change in (fenced, append("r", 1, b"y", fence=lost)):
        with pytest.raises(ConflictError):
            await store.commit([create("other"), change])
    mine = await held(store, "run", "b")
    for change in (fenced, append("r", 1, b"y", fence=lost), append("r", 1, fence=lost)):
        with pytest.raises(ConflictError):
            await store.commit([create("other"), change])
    await store.commit([replace(fenced, fence=mine), append("r", 1, b"z", fence=mine)])
    assert [event.data for event in await everything(store, "r")] == [b"x", b"z"]
    await store.release(mine)
    with pytest.raises(ConflictError):
        await store.commit([append("r", 2, b"late", fence=mine)])


async def test_of_many_who_want_a_lease_one_gets_it(backend: Backend, store: StoreAndLeases) -> None:
    stores = [store, await backend.open()]
    for name in ("x", "y", "z"):
        wanted = [stores[n % 2].acquire(name, f"holder {n}", 100) for n in range(10)]
        leases = await within(asyncio.gather(*wanted), LONG)
        assert sum(lease is not None for lease in leases) == 1


# --- many at once


async def test_two_hundred_commits_at_once(store: StoreAndLeases) -> None:
    await store.commit([create("counter", body={"n": 0})])
    results = await within(
        asyncio.gather(*(store.commit(changes("w", number % 180)) for number in range(200)), return_exceptions=True),
        LONG,
    )
    assert results.count(None) == 180
    assert sum(isinstance(result, ConflictError) for result in results) == 20
    for number in range(180):
        assert await is_whole(store, "w", number)


async def test_a_counter_kept_by_versions_counts_right(store: StoreAndLeases, backend: Backend) -> None:
    other = await backend.open()
    await store.commit([create("counter", body={"n": 0})])

    async def count(store: StoreAndLeases) -> None:
        for _ in range(10):
            while True:
                here = await found(store, "counter")
                with suppress(ConflictError):
                    await store.commit(
                        [
                            Update(
                                kind="response",
                                id="counter",
                                body={"n": here.body["n"] + 1},
                                expect_version=here.version,
                            )
                        ]
                    )
                    break

    await within(asyncio.gather(*(count(one) for one in (store, other, store, other))), LONG)
    assert (await found(other, "counter")).body == {"n": 40}
    assert (await found(other, "counter")).version == 41


async def test_commits_that_cross_each_other_are_all_made(store: StoreAndLeases, backend: Backend) -> None:
    other = await backend.open()
    await store.commit([create("a"), create("b"), create("c")])

    async def update(store: StoreAndLeases, *names: str) -> None:
        for _ in range(20):
            await store.commit([Update(kind="response", id=name, status="x") for name in names])

    await within(
        asyncio.gather(update(store, "a", "b", "c"), update(other, "c", "b", "a"), update(store, "b", "c", "a")), LONG
    )
    assert {(await found(store, name)).version for name in "abc"} == {61}


async def test_what_one_store_wrote_another_reads(store: StoreAndLeases, backend: Backend) -> None:
    other = await backend.open()
    for number in range(20):
        writer, reader = (store, other) if number % 2 else (other, store)
        await writer.commit(changes("w", number))
        assert await is_whole(reader, "w", number)


async def test_processes_write_to_one_store(backend: Backend, store: StoreAndLeases) -> None:
    async with run_process(backend, "a", "--commits", "60") as a, run_process(backend, "b", "--commits", "60") as b:
        for process in (a, b):
            assert process.stdout is not None
            assert await within(process.stdout.readline(), LONG) == b"ready\n"
        own = asyncio.gather(*(store.commit(changes("own", number)) for number in range(60)))
        outputs = await within(asyncio.gather(a.communicate(b"\n"), b.communicate(b"\n")), LONG)
        await within(own, LONG)
        assert [a.returncode, b.returncode] == [0, 0]
    assert [sorted(acknowledged(output)) for output, _ in outputs] == [list(range(60))] * 2
    for name in ("a", "b", "own"):
        for number in range(60):
            assert await is_whole(store, name, number)


async def test_a_commit_that_is_cancelled_is_made_whole_or_not_at_all(store: StoreAndLeases) -> None:
    tasks = [asyncio.create_task(store.commit(changes("w", number))) for number in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await within(asyncio.gather(*tasks, return_exceptions=True), LONG)
    assert results[1::2] == [None] * 50
    await store.commit([create("last")])
    for number in range(100):
        here = await store.get("response", f"w-{number}", None)
        assert await is_whole(store, "w", number) if here else number % 2 == 0


async def test_a_task_cancelled_while_it_waits_ends(store: StoreAndLeases) -> None:
    task = asyncio.create_task(store.commit([create()]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    await within(store.commit([create()]))


# --- the end


async def test_closing_writes_what_was_accepted(backend: Backend, store: StoreAndLeases) -> None:
    commits = [asyncio.ensure_future(store.commit(changes("w", number))) for number in range(50)]
    await asyncio.sleep(0)
    await within(store.aclose(), LONG)
    outcome: Sequence[Any] = await within(asyncio.gather(*commits, return_exceptions=True), LONG)
    assert outcome == [None] * 50
    again = await backend.open()
    for number in range(50):
        assert await is_whole(again, "w", number)


async def test_a_closed_store_says_so(store: StoreAndLeases) -> None:
    await store.aclose()
    await store.aclose()
    for question in (store.commit([create()]), store.get("response", "r", None), store.acquire("n", "h", 1)):
        with pytest.raises(StorageUnavailableError):
            await within(question)
