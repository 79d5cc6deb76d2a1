"""``…/responses`` as a WebSocket: many responses, one after the other or at once, over one connection.

The client sends ``{"type": "response.create", …}`` with the body of ``POST …/responses``, and gets each event of the
response as one message. Every message becomes a request of its own (`inner_request`), so nothing is decided twice:
here is only what belongs to a connection.

* Lanes. Messages with the same ``stream_id`` are answered one after the other, those with different ones at the same
  time; those without one are a lane too. Events of a named lane carry its name.
* Memory. The last response of each lane that is not stored can be continued here (``previous_response_id``): what was
  said is put in front of the new input. A continuation that fails in the same lane ends that; another lane's does not.
* Errors. ``{"type": "error", "status", "error"}``, and the connection goes on. A response that fails after it has begun
  ends with ``response.failed`` alone: clients take an ``error`` for the end of a turn, and what followed for the next.
* The end. After `max_age` the client is told to open another connection; when the server drains, responses that run
  come to their end. Either way what still waits is refused with the reason, and so is what comes.

The protocol is OpenAI's "WebSocket mode", and the one of Open Responses.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import Headers
from agentrun_server.core.usage import Usage
from agentrun_server.errors import (
    AgentFailedError,
    APIError,
    InvalidRequestError,
    ServiceUnavailableError,
    TooManyRequestsError,
)
from agentrun_server.observability.logs import get_logger
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_chat.decode import parse_json
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.decode import decode
from agentrun_server.server.admission import shutting_down
from agentrun_server.server.asgi import ASGIApp, Receive, Scope, Send
from agentrun_server.server.drain import Drain
from agentrun_server.server.exchange import EXCHANGE, HANDSHAKE, Exchange, principal_of, refuse_websocket
from agentrun_server.server.resources import owner_of
from agentrun_server.server.responses.inner_request import InnerRequest
from agentrun_server.server.responses.socket_contexts import Context, Contexts
from agentrun_server.server.responses.socket_messages import (
    Create,
    error_message,
    event_message,
    input_items,
    output_items,
    read_create,
    read_lane,
    request_body,
)

__all__ = ["ResponsesSocket", "SocketLimits"]

logger = get_logger("agentrun_server.websocket")

_NORMAL, _GOING_AWAY, _TOO_BIG = 1000, 1001, 1009  # RFC 6455, section 7.4.1
_KEEPS = frozenset({"response.completed", "response.incomplete"})
_ENDS = _KEEPS | {"response.failed", "response.cancelled"}
_WHOLE = _ENDS | {"response.created", "response.queued", "response.in_progress"}
"""Events that show the whole response."""


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What the connections of one process may cost. Sizes are bytes, times are seconds."""

    max_connections: int = 1000
    max_connections_per_owner: int | None = None
    """Of one caller, where callers are authenticated."""
    max_age: float = 3600.0
    """OpenAI's; clients are made for it."""
    max_idle: float = 900.0
    """Without a response that runs."""
    max_running: int = 16
    """Responses of a connection at once."""
    max_lanes: int = 32
    """Names of lanes that a connection may use."""
    max_waiting: int = 64
    """Messages of a connection that wait for their turn; all together they may be as long as one."""
    max_context_bytes: int = 256 * 1024 * 1024
    """What is remembered for all connections."""


class ResponsesSocket:
    """Answers the WebSockets of one server.

    Args:
        app: the server itself, to which each message is put as a request.
        config: of the server.
        drain: of the server.
        new_id: makes ids.
        limits: what connections may cost.
    """

    def __init__(
        self, app: ASGIApp, config: ServerConfig, drain: Drain, new_id: IdSource, limits: SocketLimits | None = None
    ) -> None:
        self.app = app
        self.config = config
        self.drain = drain
        self.new_id = new_id
        self.limits = limits or SocketLimits(
            max_connections=config.max_websockets, max_connections_per_owner=config.max_websockets_per_owner
        )
        self.contexts = Contexts(self.limits.max_context_bytes, config.max_body_bytes)
        self.open: set[_Connection] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket."""
        if (await receive())["type"] != "websocket.connect":
            return
        if not self.drain.serving:
            await refuse_websocket(scope, send, shutting_down())
            return
        try:
            owner = owner_of(principal_of(scope))
            self._check_room(owner)
        except APIError as refused:
            await refuse_websocket(scope, send, refused)
            return
        connection = _Connection(self, owner, scope, receive, send)
        self.open.add(connection)
        try:
            with self.drain.guest():
                await connection.serve()
        finally:
            self.open.discard(connection)

    def _check_room(self, owner: str) -> None:
        """Refuse one connection too many."""
        limits = self.limits
        if len(self.open) >= limits.max_connections:
            message = "The server has as many WebSockets as it may."
            raise ServiceUnavailableError(message, code="too_many_websockets").retry_after(10.0)
        if not owner or limits.max_connections_per_owner is None:
            return
        if sum(one.owner == owner for one in self.open) >= limits.max_connections_per_owner:
            message = f"You have as many WebSockets as you may: {limits.max_connections_per_owner}."
            raise TooManyRequestsError(message, code="too_many_websockets").retry_after(10.0)


@dataclass(slots=True)
class _Turn:
    """One message, on its way to be a response."""

    lane: "_Lane"
    create: Create
    size: int
    """Bytes of the message."""
    request: InnerRequest | None = None
    continued: Context | None = None
    held: tuple[str, bytes] | None = None
    """An ``error`` event, until it is known what follows."""
    ended: bool = False


@dataclass(slots=True)
class _Lane:
    """Turns that are answered one after the other."""

    name: str | None
    waiting: deque[_Turn] = field(default_factory=deque[_Turn])
    task: asyncio.Task[None] | None = None
    last: str | None = None
    """The response that is remembered."""


@dataclass(frozen=True, slots=True)
class _Farewell:
    """Why the connection ends: what is still asked for is refused with it."""

    error: APIError
    code: int
    is_told: bool
    """The error is also told to who asks for nothing."""


class _Connection:
    def __init__(self, shared: ResponsesSocket, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        self.owner = owner
        self._shared = shared
        self._limits = shared.limits
        self._scope = scope
        self._handshake: Scope = scope.get(HANDSHAKE) or scope
        self._receive = receive
        self._send = send
        self._id = shared.new_id()
        self._lanes: dict[str | None, _Lane] = {}
        self._slots = asyncio.Semaphore(self._limits.max_running)
        self._waiting = 0
        self._waiting_bytes = 0
        self._running: set[InnerRequest] = set()
        self._answered = 0
        self._farewell: _Farewell | None = None
        self._over = asyncio.Event()
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None

    # --- the connection

    async def serve(self) -> None:
        """Accept, and answer until either side ends it."""
        loop = asyncio.get_running_loop()
        age = loop.call_later(self._limits.max_age, self._end, _too_old(self._limits.max_age), _NORMAL, True)
        with self._shared.drain.told(lambda: self._end(shutting_down(), _GOING_AWAY)):
            try:
                await self._send({"type": "websocket.accept"})
                self._settle()
                await self._until_the_end()
            except OSError:
                pass  # how servers tell that the client has left
            finally:
                self._closed = True
                age.cancel()
                self._stop_idle_timer()
                await self._leave()
        exchange: Exchange | None = self._scope.get(EXCHANGE)
        if exchange is not None:
            exchange.note({"responses": self._answered})

    async def _until_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        reader, over = loop.create_task(self._read()), loop.create_task(self._over.wait())
        try:
            await asyncio.wait([reader, over], return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            else:
                await self._say_farewell()
        finally:
            for task in (reader, over):
                task.cancel()
            await asyncio.wait([reader, over])

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            await self._take(text.encode() if text is not None else message.get("bytes") or b"")

    async def _leave(self) -> None:
        """End what runs, as when the client of a request leaves, and wait for it."""
        for request in self._running:
            request.leave()
        for lane in self._lanes.values():
            lane.waiting.clear()
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()  # only when this one was
            for lane in self._lanes.values():
                self._forget(lane)

    # --- its end

    def _end(self, error: APIError, code: int, is_told: bool = False) -> None:
        """Begin to end: what runs may finish."""
        if self._farewell is None:
            self._farewell = _Farewell(error, code, is_told)
            self._settle()

    def _settle(self) -> None:
        """See what is due when a lane has come to rest, or the end has come: the farewell, or to wait for more."""
        self._stop_idle_timer()
        if any(lane.task is not None for lane in self._lanes.values()):
            return
        if self._farewell is not None:
            self._over.set()
        elif not self._closed:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self._limits.max_idle, self._end, _idle_for_long(), _NORMAL)

    def _stop_idle_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    async def _say_farewell(self) -> None:
        farewell = self._farewell
        assert farewell is not None, "it is over"
        if farewell.is_told:
            await self._say(error_message(farewell.error, None))
        await self._close(farewell.code, farewell.error.code or "")

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            with suppress(OSError):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _say(self, text: str) -> None:
        """Send a message; do nothing when nobody is there any more."""
        if not self._closed:
            try:
                await self._send({"type": "websocket.send", "text": text})
            except OSError:
                self._closed = True

    # --- messages

    async def _take(self, data: bytes) -> None:
        """Put a message into its lane, or say why not."""
        if len(data) > self._shared.config.max_body_bytes:
            await self._close(_TOO_BIG, "message too long")
            return
        lane: str | None = None
        try:
            message = parse_json(data)
            lane = read_lane(message)
            if self._farewell is not None:
                raise self._farewell.error
            create = read_create(message)
            self._enter(self._lane(lane), create, len(data))
        except APIError as error:
            await self._say(error_message(error, lane))

    def _lane(self, name: str | None) -> _Lane:
        lane = self._lanes.get(name)
        if lane is None:
            if name is not None and sum(known is not None for known in self._lanes) >= self._limits.max_lanes:
                raise InvalidRequestError(
                    "This WebSocket connection has reached its maximum number of distinct stream IDs "
                    f"({self._limits.max_lanes}). Reuse an existing stream_id or open a new WebSocket connection.",
                    code="websocket_stream_limit_reached",
                    param="stream_id",
                )
            lane = self._lanes[name] = _Lane(name)
        return lane

    def _enter(self, lane: _Lane, create: Create, size: int) -> None:
        total = self._waiting_bytes + size
        full = self._waiting >= self._limits.max_waiting or total > self._shared.config.max_body_bytes
        if self._waiting and full:
            raise TooManyRequestsError(
                "Too many messages of this connection wait to be answered.", code="websocket_queue_full"
            ).retry_after(1.0)
        self._waiting += 1
        self._waiting_bytes = total
        lane.waiting.append(_Turn(lane, create, size))
        if lane.task is None:
            self._stop_idle_timer()
            lane.task = asyncio.get_running_loop().create_task(self._answer_lane(lane))

    # --- turns

    async def _answer_lane(self, lane: _Lane) -> None:
        try:
            while lane.waiting:
                async with self._slots:
                    if not lane.waiting:
                        return  # the client has left meanwhile
                    turn = lane.waiting.popleft()
                    self._waiting -= 1
                    self._waiting_bytes -= turn.size
                    await self._answer(turn)
        finally:
            lane.task = None
            self._settle()

    async def _answer(self, turn: _Turn) -> None:
        error: APIError | None = None
        try:
            if self._farewell is not None:
                raise self._farewell.error
            self._answered += 1
            if turn.create.generate:
                await self._respond(turn)
            else:
                await self._warm_up(turn)
        except APIError as refused:
            error = refused
        except Exception:
            logger.exception("response failed", extra={"connection": self._id})
            error = AgentFailedError("The server had an error.", code="internal_error")
        if error is not None:
            self._forget_continued(turn)
            await self._say(error_message(error, turn.lane.name))

    async def _respond(self, turn: _Turn) -> None:
        async def on_event(name: str, data: bytes) -> None:
            await self._on_event(turn, name, data)

        await self._ask("", self._body(turn, turn.create), on_event)
        if not turn.ended and not self._closed:
            raise _told(turn)

    def _body(self, turn: _Turn, create: Create) -> bytes:
        """Return the request of a turn, with what is remembered of the response it continues."""
        previous = create.previous
        if previous is not None and create.fields.get("conversation") is None:
            turn.continued = self._shared.contexts.find(self._id, previous)
        context = turn.continued
        if context is None:
            return request_body(create, None, previous)
        return request_body(create, context.items, context.base)

    async def _ask(self, below: str, body: bytes, on_event: Callable[[str, bytes], Any]) -> bytes:
        request = InnerRequest(self._handshake, below, body, facts={"websocket": self._name()}, on_event=on_event)
        self._running.add(request)
        try:
            return await request.ask(self._shared.app)
        finally:
            self._running.discard(request)

    def _name(self) -> str:
        exchange: Exchange | None = self._scope.get(EXCHANGE)
        return self._id if exchange is None else exchange.request_id

    async def _on_event(self, turn: _Turn, name: str, data: bytes) -> None:
        if name == "error":
            turn.held = name, data
            return
        if name in _ENDS or (name in _WHOLE and turn.continued is not None):
            event = json.loads(data)  # our own, which may have half a surrogate where a request may not
            response = event["response"]
            if turn.continued is not None:
                response["previous_response_id"] = turn.create.previous
                data = dumps(event).encode()
            if name in _ENDS:
                turn.ended = True
                self._on_end(turn, name, response)
        await self._say(event_message(data, turn.lane.name))

    def _on_end(self, turn: _Turn, name: str, response: Mapping[str, Any]) -> None:
        if name not in _KEEPS:
            self._forget_continued(turn)
            return
        self._forget(turn.lane)
        if not response.get("store"):
            self._remember(turn, response["id"], output_items(response["output"]))

    # --- memory

    def _remember(self, turn: _Turn, response: str, output: str) -> None:
        create, before = turn.create, turn.continued
        if create.fields.get("conversation") is not None:
            return  # what was said there before is not known here
        parts = (before.items if before is not None else "", input_items(create.input), output)
        context = Context(
            turn.lane.name,
            before.base if before is not None else create.previous,
            ",".join(part for part in parts if part),
        )
        self._shared.contexts.keep(self._id, response, context)
        turn.lane.last = response

    def _forget(self, lane: _Lane) -> None:
        if lane.last is not None:
            self._shared.contexts.drop(self._id, lane.last)
            lane.last = None

    def _forget_continued(self, turn: _Turn) -> None:
        """Forget the response that could not be continued, if it is one of the same lane."""
        if turn.continued is not None and turn.continued.lane == turn.lane.name:
            self._forget(turn.lane)

    # --- warm-up

    async def _warm_up(self, turn: _Turn) -> None:
        """Answer with a response in which nothing is said, and which can be continued.

        The request is checked by asking for its length: that costs no run.
        """
        create = turn.create
        says_nothing = not create.input and create.previous is None
        body = self._body(turn, replace(create, input="") if says_nothing else create)
        await self._ask("/input_tokens", body, _no_event)
        new_id = self._shared.new_id
        call = decode(parse_json(body), Headers(), new_id, max_items=self._shared.config.max_messages)
        echo = {**call.echo, "store": False, "previous_response_id": create.previous}
        now, name = int(time.time()), turn.lane.name
        shown: dict[str, Any] = {"id": new_id("resp_"), "created_at": now}
        begun = objects.response(echo, status="in_progress", **shown)
        ended = objects.response(echo, status="completed", usage=Usage(), completed_at=now, **shown)
        self._forget(turn.lane)
        self._remember(turn, shown["id"], "")
        for number, (kind, response) in enumerate(
            [("response.created", begun), ("response.in_progress", begun), ("response.completed", ended)]
        ):
            event = {"type": kind, "sequence_number": number, "response": response}
            await self._say(event_message(dumps(event).encode(), name))


async def _no_event(_: str, __: bytes) -> None:
    """Take an event of what is no stream."""


def _told(turn: _Turn) -> APIError:
    """Return the error that a response told which came to no end."""
    if turn.held is not None:
        with suppress(ValueError, LookupError, TypeError):
            told = json.loads(turn.held[1])["error"]
            return APIError(str(told["message"]), code=told["code"], param=told["param"], type=str(told["type"]))
    return AgentFailedError("The response came to no end.", code="internal_error")


def _too_old(seconds: float) -> APIError:
    return InvalidRequestError(
        f"Responses websocket connection limit reached ({seconds / 60:.0f} minutes). "
        "Create a new websocket connection to continue.",
        code="websocket_connection_limit_reached",
    )


def _idle_for_long() -> APIError:
    return InvalidRequestError(
        "The websocket connection was idle for too long. Create a new one to continue.", code="websocket_idle"
    )
