"""Sessions: what `request.session` is, over a `Store`.

A session is a record whose id is made of whose it is and how the client names it, so that nobody finds another's; its
messages are records below it. They are numbered, and a number can be made once: of two appends at once, one is made
again behind the other. Both come into being with the first write.

A run that has the session's turn (`agentrun_server.runs.turns`) ends it in one commit with what was said, so that a run
which lost its turn adds nothing. A session whose id the server has made up is not locked, since nobody else knows it
yet, and is deleted after a day unless a client comes back with the id: requests without one would pile up otherwise.

A session is deleted `ttl` seconds after it was last used, with all that is in it. What is written anyway, its turn
above all, moves the end; one that is only read is written to when a tenth of its time is over, and not each time.

Bounds: `MAX_MESSAGES` are kept, of `MAX_MESSAGE_BYTES` each, and `MAX_STATE_BYTES` of state, all as JSON in ASCII.
"""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, cast

from agentrun_server.core.messages import Message
from agentrun_server.observability.logs import get_logger
from agentrun_server.runs.turns import OpenStorage, Turns, released
from agentrun_server.storage.contracts import (
    Change,
    ConflictError,
    Create,
    Delete,
    Record,
    StorageError,
    StorageUnavailableError,
    Store,
    Update,
)

__all__ = ["MAX_MESSAGES", "MAX_MESSAGE_BYTES", "MAX_STATE_BYTES", "Sessions", "StoredSession", "what_was_said"]

logger = get_logger("agentrun_server.run")

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])
P = ParamSpec("P")
T = TypeVar("T")

MAX_MESSAGES: Final = 512
MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_STATE_BYTES: Final = 64 * 1024

_SESSION: Final = "session"
_MESSAGE: Final = "session_message"
_UNCLAIMED: Final = 24 * 3600.0
"""Seconds that a session stays whose id no client has sent yet."""
_TENTH: Final = 0.1
"""The part of a session's time that may pass before it is written down that it was read."""
_TRIM: Final = 64
"""How many old messages are deleted together: a deletion makes SQLite rewrite its log."""
_TRIES: Final = 16
_LONGEST_WAIT: Final = 60.0


def what_was_said(messages: Sequence[Message], answer: str) -> list[Message]:
    """Return what a turn adds to a conversation: the user's messages since the last answer, and `answer`, if any."""
    behind = max((at for at, message in enumerate(messages, 1) if message.role == "assistant"), default=0)
    said = [message for message in messages[behind:] if message.role == "user"]
    return [*said, Message(role="assistant", content=answer)] if answer else said


class Sessions:
    """The sessions of one server.

    Args:
        storage: where they are kept.
        turns: returns who hands out turns now: a worker that was taken for dead is another one.
        collection: the name they are kept under; those of another name are others.
        ttl: seconds after which one that nobody uses is deleted; None: never.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        storage: OpenStorage,
        turns: Callable[[], Awaitable[Turns]],
        collection: str,
        *,
        ttl: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.ttl = math.inf if ttl is None else ttl
        self.storage = storage
        self.turns = turns
        self.collection = collection
        self.clock = clock

    def open(self, session_id: str, *, owner: str = "", user: str = "", given: bool = True) -> "StoredSession":
        """Return a session, on the event loop of the server. Nothing is read or written yet.

        Args:
            session_id: how the client names it.
            owner: ``issuer|subject`` of who asks; empty where nobody is authenticated.
            user: the end user, as a trusted front end names them; each has sessions of their own.
            given: the client has sent the id. False: it was made up for this request.
        """
        return StoredSession(self, session_id, owner, user, given=given)


class _Turn(NamedTuple):
    """A turn that was taken, of whom, and the run that has it."""

    turns: Turns
    run: str


def _on_its_loop(method: F) -> F:
    """Run `method` on the loop of the server, to which the store belongs: a sync agent may run one of its own."""

    @wraps(method)
    async def hopping(self: "StoredSession", /, *args: Any, **kwargs: Any) -> Any:
        running = method(self, *args, **kwargs)
        if asyncio.get_running_loop() is self.loop:
            return await running
        return await asyncio.wrap_future(self._submit(running))

    return cast("F", hopping)


class StoredSession:
    """One session during one request; an `agentrun_server.core.session.Session`, with its turn for the server."""

    def __init__(self, sessions: Sessions, session_id: str, owner: str, user: str, *, given: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self._sessions = sessions
        self._id = session_id
        self._owner = owner
        self._user = user
        self._given = given
        name = json.dumps([sessions.collection, owner, user, session_id])
        self._digest = hashlib.sha256(name.encode()).hexdigest()
        self._record_id = f"sess_{self._digest}"
        self._turn: _Turn | None = None
        self._writing = asyncio.Lock()
        self.kept_by_agent = False
        """The agent has added messages, or cleared the session: what was said is its business in this turn."""

    def __repr__(self) -> str:
        return f"<Session {self._record_id[:13]}>"  # the id itself may be all that protects it

    @property
    def id(self) -> str:
        """How the client names it."""
        return self._id

    # --- for agents

    def load(self, limit: int | None = None) -> list[Message]:
        """Return what was said before, oldest first: the newest `limit` messages, or all that are kept."""
        return self._wait(self.load_async, limit)

    @_on_its_loop
    async def load_async(self, limit: int | None = None) -> list[Message]:
        """Do what `load` does, without blocking the event loop."""
        count = MAX_MESSAGES if limit is None else min(limit, MAX_MESSAGES)
        if count < 0:
            raise ValueError("the limit is negative")
        if count == 0:
            return []
        store = await self._store()
        newest: list[Message] = []
        after: str | None = None
        while len(newest) < count:  # a page may end before its limit
            try:
                page = await store.list(
                    _MESSAGE,
                    self._owner,
                    parent=self._record_id,
                    after=after,
                    limit=count - len(newest),
                    order="desc",
                )
            except KeyError:
                break  # what is older has been forgotten just now
            newest += [Message(record.body) for record in page.records]
            if not page.has_more:
                break
            after = page.records[-1].id
        if self._given and self._turn is None and newest:  # whoever has the turn has said that it is used
            await self._note_use(store, await store.get(_SESSION, self._record_id, self._owner))
        return newest[::-1]

    def append(self, *messages: Message | Mapping[str, Any]) -> None:
        """Add messages to what was said, all or none."""
        self._wait(self.append_async, *messages)

    @_on_its_loop
    async def append_async(self, *messages: Message | Mapping[str, Any]) -> None:
        """Do what `append` does, without blocking the event loop."""
        checked = [_checked(message) for message in messages]

        async def plan(store: Store, record: Record | None) -> list[Change]:
            return await self._adding(store, record, checked)

        if checked:
            await self._change(plan)
        self.kept_by_agent = True

    def get_state(self) -> dict[str, Any]:
        """Return the agent's own object, empty at first."""
        return self._wait(self.get_state_async)

    @_on_its_loop
    async def get_state_async(self) -> dict[str, Any]:
        """Do what `get_state` does, without blocking the event loop."""
        store = await self._store()
        record = await store.get(_SESSION, self._record_id, self._owner)
        await self._note_use(store, record)
        return {} if record is None else dict(record.body["state"])

    def update_state(self, /, **changes: Any) -> dict[str, Any]:
        """Set members of the agent's own object, and return the whole. None removes a member."""
        return self._wait(self.update_state_async, **changes)

    @_on_its_loop
    async def update_state_async(self, /, **changes: Any) -> dict[str, Any]:
        """Do what `update_state` does, without blocking the event loop."""
        written = _json(changes, "state")
        state: dict[str, Any] = {}

        async def plan(_: Store, record: Record | None) -> list[Change]:
            nonlocal state
            # Read anew each time: nobody shares parts of it with the caller.
            members = {**({} if record is None else record.body["state"]), **json.loads(written)}
            state = {name: value for name, value in members.items() if value is not None}
            if len(_json(state, "state")) > MAX_STATE_BYTES:
                raise ValueError(f"the state of a session must not be larger than {MAX_STATE_BYTES} bytes of JSON")
            return [self._put_state(record, state)]

        await self._change(plan)
        return state

    def clear(self) -> None:
        """Forget everything: what was said, this turn included, and the agent's own object."""
        self._wait(self.clear_async)

    @_on_its_loop
    async def clear_async(self) -> None:
        """Do what `clear` does, without blocking the event loop."""
        left = False

        async def plan(store: Store, record: Record | None) -> list[Change]:
            nonlocal left
            end = await self._end(store, record)
            left = end > 0
            kept = range(_first_kept(end), end)
            changes: list[Change] = [Delete(_MESSAGE, self._message_id(number)) for number in kept]
            if record is not None and (left or record.body["state"]):
                changes.append(self._put_state(record, {}))
            return changes

        for _ in range(_TRIES):  # once, and once more to see that nothing was added meanwhile
            await self._change(plan)
            if not left:
                break
        self.kept_by_agent = True

    # --- for the server

    async def take_turn(self, run: str, *, wait: float) -> None:
        """Take the session's turn for `run`; at once when nobody else can know the session.

        Raises:
            ConversationLockedError: another run had it for `wait` seconds.
            StorageError: the store cannot be read or written.
        """
        if self._given:
            turns = await self._sessions.turns()
            absent, end = self._new_record(), self._expires_at()
            await turns.take(_SESSION, self._record_id, run, wait=wait, absent=absent, expires_at=end)
            self._turn = _Turn(turns, run)

    async def end_turn(self, said: Sequence[Message] = ()) -> None:
        """Remember what was `said`, unless the agent does, and give the turn back: together, or not at all.

        A message that is too long is kept as its text, cut. A store that is away is logged: the answer has been made.
        """
        turn, self._turn = self._turn, None
        try:
            if said and not self.kept_by_agent:
                await self._add_and_release([_fitting(message) for message in said], turn)
            elif turn is not None:
                await turn.turns.release(_SESSION, self._record_id, turn.run)
        except BaseException as exc:
            if turn is not None:
                turn.turns.release_later(_SESSION, self._record_id, turn.run)
            if not isinstance(exc, StorageError):
                raise
            logger.error("a session cannot be written", extra={"session": self._record_id, "reason": str(exc)})

    async def _add_and_release(self, adding: Sequence[str], turn: "_Turn | None") -> None:
        async def plan(store: Store, record: Record | None) -> list[Change]:
            if turn is None:
                return await self._adding(store, record, adding)
            holder = turn.turns.holder(turn.run)
            if record is None or record.status != holder:
                logger.warning(
                    "a run lost the turn of its session", extra={"session": self._record_id, "holder": holder}
                )
                return []
            return [*await self._adding(store, record, adding), released(_SESSION, self._record_id, holder)]

        await self._change(plan)
        if turn is not None:
            await turn.turns.wake(self._record_id)

    # --- changes

    async def _store(self) -> Store:
        return (await self._sessions.storage()).store

    async def _change(self, plan: Callable[[Store, Record | None], Awaitable[list[Change]]]) -> None:
        """Commit what `plan` makes of the session as it is; again when somebody was faster."""
        store = await self._store()
        async with self._writing:  # what one request writes at once need not be tried again
            for tried in range(1, _TRIES + 1):
                record = await store.get(_SESSION, self._record_id, self._owner)
                changes = await plan(store, record)
                if not changes:
                    return
                try:
                    await store.commit(changes)
                except ConflictError:
                    if tried == _TRIES:
                        raise
                else:
                    return

    async def _adding(self, store: Store, record: Record | None, messages: Sequence[str]) -> list[Change]:
        """Return the changes that add `messages`, which are JSON, and delete what is too old."""
        changes: list[Change] = self._use(record) if record is not None else [Create(self._new_record())]
        begin = await self._end(store, record)
        end = begin + len(messages)
        for number, message in enumerate(messages, begin):
            changes.append(Create(self._message_record(number, json.loads(message))))
        old = range(_first_kept(begin), _first_kept(end))
        return changes + [Delete(_MESSAGE, self._message_id(number)) for number in old]

    async def _end(self, store: Store, record: Record | None) -> int:
        """Return the number that the next message has."""
        if record is None:
            return 0
        page = await store.list(_MESSAGE, self._owner, parent=self._record_id, limit=1, order="desc")
        return int(page.records[0].id.rpartition("_")[2]) + 1 if page.records else 0

    def _message_record(self, number: int, message: Mapping[str, Any]) -> Record:
        identity = self._message_id(number)
        return Record(kind=_MESSAGE, id=identity, owner=self._owner, parent=self._record_id, body=message)

    def _message_id(self, number: int) -> str:
        return f"smsg_{self._digest}_{number}"

    def _expires_at(self) -> float:
        """Return when it is to be deleted; infinite, since an update can move an end and not take it away."""
        ttl = self._sessions.ttl
        return self._sessions.clock() + (ttl if self._given else min(ttl, _UNCLAIMED))

    def _use(self, record: Record) -> list[Change]:
        """Return what says that a session is used now; nothing when that is nearly what its record says."""
        expires_at = self._expires_at()
        known = math.inf if record.expires_at is None else record.expires_at
        is_near = known == expires_at or abs(expires_at - known) < self._sessions.ttl * _TENTH
        if is_near or not self._given:
            return []
        return [Update(kind=_SESSION, id=self._record_id, expires_at=expires_at)]

    async def _note_use(self, store: Store, record: Record | None) -> None:
        """Write down that a session is used, when that is worth it."""
        changes = [] if record is None else self._use(record)
        if changes:
            with suppress(StorageError):  # it was deleted just now, or the next who reads it may have more luck
                await store.commit(changes)

    def _new_record(self, state: Mapping[str, Any] | None = None) -> Record:
        end = self._expires_at()
        return Record(
            kind=_SESSION,
            id=self._record_id,
            owner=self._owner,
            body={
                "collection": self._sessions.collection,
                "session_id": self._id,
                "user": self._user,
                "state": state or {},
            },
            expires_at=None if math.isinf(end) else end,
        )

    def _put_state(self, record: Record | None, state: Mapping[str, Any]) -> Change:
        if record is None:
            return Create(self._new_record(state))
        return Update(
            kind=_SESSION,
            id=self._record_id,
            body={**record.body, "state": state},
            expires_at=self._expires_at() if self._given else None,
            expect_version=record.version,
        )

    # --- waiting on a thread

    def _wait(self, method: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the async twin on the loop of the server, and wait for it on this thread."""
        name = getattr(method, "__name__", "")
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            sync = name.removesuffix("_async")
            raise RuntimeError(f"session.{sync} would block the event loop; write: await session.{name}(…)")
        future = self._submit(method(*args, **kwargs))
        try:
            return future.result(_LONGEST_WAIT)
        except TimeoutError:
            future.cancel()
            raise StorageUnavailableError("the store does not answer") from None

    def _submit(self, running: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop of the server."""
        try:
            return asyncio.run_coroutine_threadsafe(running, self.loop)
        except RuntimeError:
            running.close()
            raise StorageUnavailableError("the server has stopped") from None


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise TypeError(f"the {what} of a session must be JSON: {exc}") from None


def _checked(message: Message | Mapping[str, Any]) -> str:
    """Return `message` as JSON.

    Raises:
        TypeError: it is no message.
        ValueError: it is too long, or has no role.
    """
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is a Message or a mapping, not a {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise ValueError("a message needs a role: user, assistant …")
    text = _json(dict(message), "message")
    if len(text) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of a session must not be longer than {MAX_MESSAGE_BYTES} bytes of JSON")
    return text


def _fitting(message: Message) -> str:
    """Return `message` as JSON; one that is too long or none becomes its text, as much as there is room for."""
    words = message.text
    try:
        text = _json(message, "message")
    except TypeError:  # a client may send 1e999, and an agent anything
        text = _json({"role": message.role, "content": words}, "message")
    while len(text) > MAX_MESSAGE_BYTES:
        text = _json({"role": message.role, "content": words}, "message")
        words = words[: len(words) * MAX_MESSAGE_BYTES // (len(text) + 1) - 1]
    return text


def _first_kept(end: int) -> int:
    """Return the number of the oldest message that is kept when `end` is the next."""
    return max(0, (end - MAX_MESSAGES) // _TRIM * _TRIM)
