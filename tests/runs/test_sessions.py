"""What an agent can keep: every promise of `agentrun_server.core.session`, over a real store."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.core.messages import Message
from agentrun_server.core.session import Session
from agentrun_server.runs.sessions import (
    MAX_MESSAGE_BYTES,
    MAX_MESSAGES,
    MAX_STATE_BYTES,
    Sessions,
    StoredSession,
    what_was_said,
)
from agentrun_server.runs.turns import ConversationLockedError, Turns
from agentrun_server.storage.contracts import Record, StorageUnavailableError
from agentrun_server.storage.opening import Storage
from tests.runs.stores import Clock, Misbehaving, opened, sqlite
from tests.support.clock import within

HELLO = Message(role="user", content="Hello")
HI = Message(role="assistant", content="Hi!")
DAY = 24 * 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def storage(tmp_path: Path, clock: Clock) -> AsyncIterator[Storage]:
    async with sqlite(tmp_path, clock) as storage:
        yield storage


@pytest.fixture
def sessions(storage: Storage, clock: Clock) -> Sessions:
    return sessions_in(storage, clock)


@pytest.fixture
async def session(sessions: Sessions) -> StoredSession:
    return sessions.open("chat-1")


def sessions_in(storage: Storage, clock: Clock, collection: str = "memory", *, ttl: float | None = None) -> Sessions:
    turns = Turns(opened(storage), "w1", look_every=60.0)

    async def find_turns() -> Turns:
        return turns

    return Sessions(opened(storage), find_turns, collection, ttl=ttl, clock=clock)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def texts(messages: list[Message]) -> list[str]:
    return [message.text for message in messages]


async def stored(storage: Storage) -> list[Record]:
    sessions = await storage.store.list("session", None, limit=1000)
    messages = await storage.store.list("session_message", None, limit=1000)
    return [*sessions.records, *messages.records]


def test_a_stored_session_is_what_agents_are_promised(session: StoredSession) -> None:
    promised: Session = session
    assert promised.id == "chat-1"
    assert "chat-1" not in repr(session)  # which may be all that protects it


# --- messages


async def test_what_was_appended_is_loaded_by_the_next_request(sessions: Sessions) -> None:
    await sessions.open("chat-1").append_async(HELLO, {"role": "assistant", "content": None, "tool_calls": []})
    loaded = await sessions.open("chat-1").load_async()
    assert loaded == [HELLO, Message(role="assistant", content=None, tool_calls=[])]
    assert all(isinstance(message, Message) for message in loaded)


async def test_the_newest_are_loaded_oldest_first(session: StoredSession) -> None:
    await session.append_async(*(user(str(number)) for number in range(5)))
    assert texts(await session.load_async()) == ["0", "1", "2", "3", "4"]
    assert texts(await session.load_async(2)) == ["3", "4"]
    assert texts(await session.load_async(99)) == ["0", "1", "2", "3", "4"]
    assert await session.load_async(0) == []
    with pytest.raises(ValueError, match="negative"):
        await session.load_async(-1)


async def test_a_new_session_is_empty_and_leaves_nothing_behind(session: StoredSession, storage: Storage) -> None:
    assert await session.load_async() == []
    assert await session.get_state_async() == {}
    await session.append_async()
    await session.clear_async()
    await session.end_turn()
    assert await stored(storage) == []


async def test_a_message_is_kept_as_it_was_when_it_was_appended(session: StoredSession) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "half of \ud83d, \0"}], "x": {"y": [1, 2.5, None]}}
    appending = session.append_async(message)
    await appending
    message["role"] = "changed"
    assert await session.load_async() == [
        {"role": "user", "content": [{"type": "text", "text": "half of \ud83d, \0"}], "x": {"y": [1, 2.5, None]}}
    ]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("Hello", TypeError),
        (None, TypeError),
        ({"content": "Hello"}, ValueError),
        ({"role": None, "content": "Hello"}, ValueError),
        ({"role": "user", "content": object()}, TypeError),
        ({"role": "user", "content": float("nan")}, TypeError),
        ({"role": "user", "content": "x" * MAX_MESSAGE_BYTES}, ValueError),
    ],
    ids=["text", "none", "no role", "empty role", "no JSON", "no number", "too long"],
)
async def test_messages_are_added_all_or_none(session: StoredSession, message: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="message"):
        await session.append_async(HELLO, message)
    assert await session.load_async() == []
    assert not session.kept_by_agent


async def test_appends_at_once_are_all_kept_each_in_one_piece(sessions: Sessions) -> None:
    async def append(request: StoredSession, name: str) -> None:
        for number in range(3):
            await request.append_async(user(f"{name}{number}a"), user(f"{name}{number}b"))

    requests = [sessions.open("chat-1") for _ in range(4)]
    await within(asyncio.gather(*(append(request, "pqrs"[at]) for at, request in enumerate(requests))))
    await within(asyncio.gather(*(requests[0].append_async(user(f"t{at}a"), user(f"t{at}b")) for at in range(30))))
    said = texts(await requests[0].load_async())
    assert len(said) == 84
    assert all(first[:-1] == second[:-1] for first, second in zip(said[::2], said[1::2], strict=True))
    assert said[24:] == [f"t{at}{letter}" for at in range(30) for letter in "ab"]


async def test_of_a_long_conversation_the_newest_messages_are_kept(session: StoredSession, storage: Storage) -> None:
    for start in range(0, MAX_MESSAGES + 200, 71):
        await session.append_async(*(user(str(number)) for number in range(start, start + 71)))
    loaded = texts(await session.load_async())
    last = int(loaded[-1])
    assert loaded == [str(number) for number in range(last - MAX_MESSAGES + 1, last + 1)]
    assert len(await stored(storage)) <= 1 + MAX_MESSAGES + 64


# --- whose it is


async def test_long_messages_are_all_loaded(session: StoredSession) -> None:
    """A page of the store ends before its limit when what it holds is large."""
    long = Message(role="user", content="x" * (MAX_MESSAGE_BYTES - 100))
    for _ in range(5):
        await session.append_async(*[long] * 9)
    await session.append_async(HELLO)
    assert await session.load_async() == [*[long] * 45, HELLO]
    assert await session.load_async(40) == [*[long] * 39, HELLO]


async def test_nobody_finds_the_session_of_another(storage: Storage, clock: Clock) -> None:
    places = [
        sessions_in(storage, clock).open("chat-1", owner="issuer|alice", user="u"),
        sessions_in(storage, clock).open("chat-1", owner="issuer|bob", user="u"),
        sessions_in(storage, clock).open("chat-1", owner="issuer|alice", user="v"),
        sessions_in(storage, clock).open("chat-1", owner="issuer|alice"),
        sessions_in(storage, clock, "other").open("chat-1", owner="issuer|alice", user="u"),
        sessions_in(storage, clock).open("chat-2", owner="issuer|alice", user="u"),
        sessions_in(storage, clock).open("u", owner="issuer|alice", user="chat-1"),
        sessions_in(storage, clock).open('"chat-1"', owner="issuer|alice", user='u", "'),
        sessions_in(storage, clock).open("chat-1", owner="issuer|alice", user="u,u"),
        sessions_in(storage, clock).open("u,chat-1", owner="issuer|alice", user="u"),
    ]
    for number, place in enumerate(places):
        await place.append_async(user(str(number)))
        await place.update_state_async(number=number)
    for number, place in enumerate(places):
        assert texts(await place.load_async()) == [str(number)]
        assert await place.get_state_async() == {"number": number}
    owners = {record.owner for record in await stored(storage)}
    assert owners == {"issuer|alice", "issuer|bob"}


async def test_what_is_stored_says_what_it_is(session: StoredSession, storage: Storage) -> None:
    await session.append_async(HELLO)
    record, message = await stored(storage)
    assert record.body == {"collection": "memory", "session_id": "chat-1", "user": "", "state": {}}
    assert (record.kind, record.status, record.expires_at) == ("session", "", None)
    assert record.id.startswith("sess_")
    assert message.id.startswith("smsg_")
    assert (message.parent, message.body) == (record.id, HELLO)


# --- state


async def test_members_of_the_state_are_set_one_by_one(sessions: Sessions) -> None:
    session = sessions.open("chat-1")
    assert await session.update_state_async(city="Rome", visits=[1]) == {"city": "Rome", "visits": [1]}
    assert await session.update_state_async(visits=[1, 2]) == {"city": "Rome", "visits": [1, 2]}
    assert await session.update_state_async(city=None, gone=None) == {"visits": [1, 2]}
    assert await session.update_state_async(self="a name", method="another") == {
        "visits": [1, 2],
        "self": "a name",
        "method": "another",
    }
    assert list(await sessions.open("chat-1").get_state_async()) == ["visits", "self", "method"]


async def test_a_returned_state_is_a_copy(session: StoredSession) -> None:
    given: dict[str, Any] = {"inner": [1]}
    returned = await session.update_state_async(given=given)
    given["inner"].append(2)
    assert returned == {"given": {"inner": [1]}}
    returned["given"]["inner"].append(3)
    (await session.get_state_async())["given"] = 4
    assert await session.get_state_async() == {"given": {"inner": [1]}}


async def test_of_updates_at_once_none_is_lost(sessions: Sessions) -> None:
    requests = [sessions.open("chat-1") for _ in range(4)]
    updates = [requests[number % 4].update_state_async(**{f"n{number}": number}) for number in range(40)]
    await within(asyncio.gather(*updates))
    assert await sessions.open("chat-1").get_state_async() == {f"n{number}": number for number in range(40)}


async def test_the_state_is_small_json(session: StoredSession) -> None:
    await session.update_state_async(small="x" * 1000)
    with pytest.raises(ValueError, match=str(MAX_STATE_BYTES)):
        await session.update_state_async(large="x" * MAX_STATE_BYTES)
    with pytest.raises(TypeError, match="state of a session must be JSON"):
        await session.update_state_async(thing=object())
    assert await session.get_state_async() == {"small": "x" * 1000}


async def test_messages_and_state_do_not_touch_each_other(session: StoredSession) -> None:
    await asyncio.gather(session.update_state_async(a=1), session.append_async(HELLO), session.update_state_async(b=2))
    assert await session.get_state_async() == {"a": 1, "b": 2}
    assert await session.load_async() == [HELLO]


# --- forgetting


async def test_a_cleared_session_has_nothing_of_before(session: StoredSession, storage: Storage) -> None:
    await session.take_turn("r1", wait=0)
    await session.append_async(*(user("secret") for _ in range(MAX_MESSAGES + 100)))
    await session.update_state_async(secret=1)
    await session.clear_async()
    (record,) = await stored(storage)
    assert "secret" not in str(record)
    assert record.status == "w1/r1"  # the turn goes on
    assert await session.load_async() == []
    assert await session.get_state_async() == {}
    await session.append_async(HELLO)
    assert await session.load_async() == [HELLO]


async def test_what_is_added_while_a_session_is_cleared_is_cleared_too(storage: Storage, clock: Clock) -> None:
    store = Misbehaving(storage)
    session = sessions_in(store.storage, clock).open("chat-1")
    await session.append_async(HELLO)
    store.overtake = lambda: sessions_in(storage, clock).open("chat-1").append_async(HI)
    await session.clear_async()
    assert await session.load_async() == []


async def test_what_another_says_meanwhile_is_cleared_or_kept_whole(sessions: Sessions) -> None:
    one, other = sessions.open("chat-1"), sessions.open("chat-1")
    await one.append_async(HELLO)
    await within(
        asyncio.gather(one.clear_async(), *(other.append_async(user(f"{n}a"), user(f"{n}b")) for n in range(5)))
    )
    said = texts(await one.load_async())
    assert "Hello" not in said
    assert len(said) % 2 == 0


# --- sync agents


async def test_a_thread_uses_the_same_session(session: StoredSession) -> None:
    def agent() -> tuple[list[Message], dict[str, Any], dict[str, Any]]:
        session.append(HELLO, HI)
        state = session.update_state(seen=1)
        said = session.load(1)
        before = session.get_state()
        session.clear()
        return said, state, before

    assert await within(asyncio.to_thread(agent)) == ([HI], {"seen": 1}, {"seen": 1})
    assert await session.load_async() == []


@pytest.mark.parametrize("name", ["load", "append", "get_state", "update_state", "clear"])
async def test_on_the_event_loop_a_sync_method_says_what_to_write(session: StoredSession, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"session\.{name} would block .* await session\.{name}_async"):
        getattr(session, name)()


async def test_an_event_loop_of_the_agents_own_can_use_it_too(storage: Storage, sessions: Sessions) -> None:
    loops: set[asyncio.AbstractEventLoop] = set()

    async def open_storage() -> Storage:
        loops.add(asyncio.get_running_loop())
        return storage

    session = Sessions(open_storage, sessions.turns, "memory").open("chat-1")

    async def agent() -> list[Message]:
        await session.append_async(HELLO)
        return await session.load_async()

    assert await within(asyncio.to_thread(lambda: asyncio.run(agent()))) == [HELLO]
    assert loops == {asyncio.get_running_loop()}


async def test_errors_come_to_the_thread(session: StoredSession) -> None:
    with pytest.raises(ValueError, match="role"):
        await within(asyncio.to_thread(session.append, {"content": "no role"}))


def test_when_the_server_has_stopped_a_thread_hears_of_it(tmp_path: Path, clock: Clock) -> None:
    async def serve() -> StoredSession:
        async with sqlite(tmp_path, clock) as storage:
            return sessions_in(storage, clock).open("chat-1")

    session = asyncio.run(serve())
    with pytest.raises(StorageUnavailableError, match="stopped"):
        session.load()


async def test_a_thread_does_not_wait_for_ever(session: StoredSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrun_server.runs.sessions._LONGEST_WAIT", 0.01)
    release = threading.Event()
    asyncio.get_running_loop().call_soon(release.wait, 0.2)  # the event loop is busy with something else
    with pytest.raises(StorageUnavailableError, match="does not answer"):
        await within(asyncio.to_thread(session.append, HELLO))
    await session.update_state_async(later=1)  # behind it, if it went on
    assert await session.load_async() == []


# --- a turn of the session


@pytest.mark.parametrize(
    ("before", "answer", "said"),
    [
        ([HELLO], "Hi!", [HELLO, HI]),
        ([HELLO], "", [HELLO]),
        ([Message(role="system", content="Be kind."), HELLO], "Hi!", [HELLO, HI]),
        ([HELLO, HI, user("How"), user("are you?")], "Well.", [user("How"), user("are you?")]),
        ([HELLO, Message(role="assistant", tool_calls=[]), Message(role="tool", content="42")], "42", []),
        ([HELLO, HI], "Hi!", []),
        ([], "Hi!", []),
    ],
    ids=["first", "no answer", "instructions", "several", "tool", "continued", "nothing"],
)
def test_what_was_said_is_what_is_new(before: list[Message], answer: str, said: list[Message]) -> None:
    if answer and said[-1:] != [HI]:
        said = [*said, Message(role="assistant", content=answer)]
    assert what_was_said(before, answer) == said


async def test_what_was_said_is_remembered_and_the_turn_released(sessions: Sessions, storage: Storage) -> None:
    session = sessions.open("chat-1")
    await session.take_turn("r1", wait=0)
    with pytest.raises(ConversationLockedError):
        await sessions.open("chat-1").take_turn("r2", wait=0)
    waiting = asyncio.create_task((second := sessions.open("chat-1")).take_turn("r2", wait=60))
    await session.end_turn([HELLO, HI])
    await within(waiting)
    assert await second.load_async() == [HELLO, HI]
    await second.end_turn()
    assert (await stored(storage))[0].status == ""


async def test_an_agent_that_keeps_its_own_memory_is_left_to_it(sessions: Sessions, storage: Storage) -> None:
    keeping: list[tuple[str, Callable[[StoredSession], Awaitable[object]], list[str]]] = [
        ("append", lambda session: session.append_async(user("mine")), ["mine"]),
        ("clear", lambda session: session.clear_async(), []),
        ("state", lambda session: session.update_state_async(a=1), ["Hello", "Hi!"]),
    ]
    for name, use, kept in keeping:
        session = sessions.open(name)
        await session.take_turn("r1", wait=0)
        await use(session)
        await session.end_turn([HELLO, HI])
        assert texts(await session.load_async()) == kept, name
    assert {record.status for record in await stored(storage)} == {""}


async def test_a_turn_is_ended_once(sessions: Sessions) -> None:
    session = sessions.open("chat-1")
    await session.take_turn("r1", wait=0)
    await session.end_turn([HELLO])
    await (other := sessions.open("chat-1")).take_turn("r2", wait=0)
    await session.end_turn()
    with pytest.raises(ConversationLockedError):
        await sessions.open("chat-1").take_turn("r3", wait=0)
    await other.end_turn()


async def test_a_run_that_lost_its_turn_adds_nothing(
    sessions: Sessions, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    session = sessions.open("chat-1")
    await session.take_turn("r1", wait=0)
    record, *_ = await stored(storage)
    others = Turns(opened(storage), "w2")
    await others.take("session", record.id, "r2", wait=0)  # no lease says that w1 lives
    await session.end_turn([HELLO, HI])
    assert await session.load_async() == []
    assert "lost the turn" in caplog.text
    assert (await stored(storage))[0].status == "w2/r2"


async def test_what_is_too_long_to_be_remembered_is_kept_as_its_text_cut(session: StoredSession) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * MAX_MESSAGE_BYTES}}
    seen = Message(role="user", content=[{"type": "text", "text": "What is this?"}, picture])
    long = Message(role="assistant", content='"\n日' * MAX_MESSAGE_BYTES)
    await session.end_turn([seen, long])
    question, answer = await session.load_async()
    assert question == {"role": "user", "content": "What is this?"}
    assert long.text.startswith(answer.text)
    assert len(answer.text) > MAX_MESSAGE_BYTES // 8


async def test_what_is_no_json_is_kept_as_its_text(session: StoredSession) -> None:
    await session.end_turn([Message(role="user", content="Hello", score=float("inf"), tags={"a", "b"})])
    assert await session.load_async() == [{"role": "user", "content": "Hello"}]


async def test_a_store_that_is_away_does_not_spoil_an_answer(
    storage: Storage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = Misbehaving(storage)
    sessions = sessions_in(store.storage, clock)
    session = sessions.open("chat-1")
    await session.take_turn("r1", wait=0)
    store.away = True
    await session.end_turn([HELLO, HI])
    assert "a session cannot be written" in caplog.text
    store.away = False
    await (await sessions.turns()).retry()
    assert [record.status for record in await stored(storage)] == [""]


async def test_an_end_that_is_cancelled_releases_the_turn_later(storage: Storage, clock: Clock) -> None:
    store = Misbehaving(storage)
    sessions = sessions_in(store.storage, clock)
    session = sessions.open("chat-1")
    await session.take_turn("r1", wait=0)
    store.silent = True
    ending = asyncio.create_task(session.end_turn([HELLO]))
    await within(store.wrote.wait())
    ending.cancel()
    await within(asyncio.wait([ending]))
    assert ending.cancelled()
    store.silent = False
    await sessions.open("chat-1").take_turn("r2", wait=0)


# --- sessions without an id of the client


async def test_a_session_nobody_can_know_is_not_locked_and_stays_a_day(
    sessions: Sessions, storage: Storage, clock: Clock
) -> None:
    session = sessions.open("made-up", given=False)
    await session.take_turn("r1", wait=0)
    assert await stored(storage) == []
    await session.end_turn([HELLO, HI])
    assert await session.load_async() == [HELLO, HI]
    clock.now += DAY + 1
    await storage.store.sweep()
    assert await stored(storage) == []


async def test_a_session_a_client_comes_back_to_stays(sessions: Sessions, storage: Storage, clock: Clock) -> None:
    await sessions.open("made-up", given=False).end_turn([HELLO, HI])
    back = sessions.open("made-up")
    await back.take_turn("r2", wait=0)
    await back.end_turn([user("Still there?")])
    clock.now += 400 * DAY
    await storage.store.sweep()
    assert texts(await back.load_async()) == ["Hello", "Hi!", "Still there?"]


# --- how long a session stays

TTL = 100 * DAY


@pytest.fixture
def ageing(storage: Storage, clock: Clock) -> Sessions:
    """Return sessions that stay for a hundred days."""
    return sessions_in(storage, clock, ttl=TTL)


async def age(storage: Storage, clock: Clock, days: float) -> list[Record]:
    """Let days pass, and sweep; return what is left."""
    clock.now += days * DAY
    while await storage.store.sweep():
        pass
    return await stored(storage)


async def writes(storage: Storage, clock: Clock, doing: Callable[[], Awaitable[object]]) -> int:
    """Return how often the session was written in so doing."""
    before = await storage.store.list("session", None)
    await doing()
    after = await storage.store.list("session", None)
    return after.records[0].version - before.records[0].version


async def test_a_session_that_nobody_uses_goes_with_all_that_is_in_it(
    ageing: Sessions, storage: Storage, clock: Clock
) -> None:
    session = ageing.open("chat-1")
    await session.take_turn("r", wait=0)
    await session.update_state_async(visits=1)
    await session.end_turn([HELLO, HI])
    assert len(await age(storage, clock, 99)) == 3
    assert await age(storage, clock, 2) == []
    assert await ageing.open("chat-1").get_state_async() == {}


async def test_every_turn_is_a_use(ageing: Sessions, storage: Storage, clock: Clock) -> None:
    for number in range(5):
        session = ageing.open("chat-1")
        await session.take_turn(f"r{number}", wait=0)
        await session.end_turn()
        assert len(await age(storage, clock, 99)) == 1
    assert await age(storage, clock, 2) == []


@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.append_async(HELLO),
        lambda session: session.update_state_async(n=1),
        lambda session: session.load_async(),
        lambda session: session.get_state_async(),
    ],
    ids=["append", "update_state", "load", "get_state"],
)
async def test_so_is_what_an_agent_does_without_a_turn(
    ageing: Sessions, storage: Storage, clock: Clock, use: Callable[[StoredSession], Awaitable[object]]
) -> None:
    await ageing.open("chat-1").append_async(HELLO)
    for _ in range(3):
        assert await age(storage, clock, 99)
        await use(ageing.open("chat-1"))
    assert await age(storage, clock, 101) == []


async def test_reading_writes_once_in_a_tenth_of_the_time(ageing: Sessions, storage: Storage, clock: Clock) -> None:
    session = ageing.open("chat-1")
    await session.append_async(HELLO)

    async def read() -> None:
        for _ in range(10):
            await session.load_async()
            await session.get_state_async()

    assert await writes(storage, clock, read) == 0
    clock.now += 9 * DAY
    assert await writes(storage, clock, read) == 0
    clock.now += 2 * DAY
    assert await writes(storage, clock, read) == 1


async def test_who_has_the_turn_writes_no_more_for_it(ageing: Sessions, storage: Storage, clock: Clock) -> None:
    session = ageing.open("chat-1")
    await session.append_async(HELLO)
    clock.now += 50 * DAY
    await session.take_turn("r", wait=0)

    async def read_and_add() -> None:
        await session.load_async()
        await session.get_state_async()
        await session.append_async(HI)

    assert await writes(storage, clock, read_and_add) == 0
    await session.end_turn()


async def test_a_session_that_cannot_be_written_can_be_read(storage: Storage, clock: Clock) -> None:
    store = Misbehaving(storage)
    sessions = sessions_in(store.storage, clock, ttl=TTL)
    await sessions.open("chat-1").append_async(HELLO)
    clock.now += 50 * DAY
    store.away = True
    assert await sessions.open("chat-1").load_async() == [HELLO]
    assert await sessions.open("chat-1").get_state_async() == {}


@pytest.mark.parametrize(("ttl", "days"), [(TTL, 1), (None, 1), (DAY / 2, 0.5)])
async def test_one_that_nobody_can_know_stays_a_day_at_most(
    storage: Storage, clock: Clock, ttl: float | None, days: float
) -> None:
    session = sessions_in(storage, clock, ttl=ttl).open("made-up", given=False)
    await session.append_async(HELLO)
    await session.update_state_async(n=1)
    await session.load_async()
    assert await age(storage, clock, days - 0.1)
    await session.get_state_async()
    assert await age(storage, clock, 0.2) == []


@pytest.mark.parametrize(("ttl", "left"), [(TTL, 0), (None, 2)])
async def test_one_a_client_comes_back_to_stays_as_long_as_any_without_a_turn(
    storage: Storage, clock: Clock, ttl: float | None, left: int
) -> None:
    sessions = sessions_in(storage, clock, ttl=ttl)
    await sessions.open("made-up", given=False).append_async(HELLO)
    await sessions.open("made-up").load_async()
    assert len(await age(storage, clock, 99)) == 2
    assert len(await age(storage, clock, 2)) == left


async def test_a_setting_that_is_changed_holds_from_the_next_use_on(storage: Storage, clock: Clock) -> None:
    await sessions_in(storage, clock).open("chat-1").append_async(HELLO)
    await sessions_in(storage, clock).open("chat-2").append_async(HELLO)
    await sessions_in(storage, clock, ttl=DAY).open("chat-1").get_state_async()
    assert [record.body.get("session_id") for record in await age(storage, clock, 2)] == ["chat-2", None]
    await sessions_in(storage, clock, ttl=DAY).open("chat-2").load_async()
    await sessions_in(storage, clock).open("chat-2").get_state_async()
    assert len(await age(storage, clock, 1000)) == 2
