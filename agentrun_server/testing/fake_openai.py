"""A scripted OpenAI: an upstream that answers what a test has written down, on the wire OpenAI has.

It is an ASGI app, so it runs in the process of the test, through
`agentrun_server.testing.StreamingASGITransport`, or on a real socket, through `FakeOpenAI.serve`, for
frameworks that bring an HTTP client of their own. How turns become bytes is said in `fake_chat` and
`fake_responses`, what is refused in `fake_checks`; here requests are told apart and recorded, and answers are
sent, held, delayed and broken off.

Every wait ends: a gate that nobody opens after `gate_timeout`, everything else with the client.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from starlette.types import Message, Receive, Scope, Send

from agentrun_server.testing.fake_chat import ChatAnswer
from agentrun_server.testing.fake_checks import refuse_chat, refuse_responses
from agentrun_server.testing.fake_responses import ResponsesAnswer
from agentrun_server.testing.fake_wire import CREATED, Json
from agentrun_server.testing.gate import Flag
from agentrun_server.testing.serving import Served
from agentrun_server.testing.turns import BEFORE_HEAD, Split, Turn, UpstreamError

__all__ = ["FakeOpenAI", "RecordedRequest", "Script"]

Script = Turn | str | Sequence[Turn | str] | Callable[[Json], "Turn | str | Awaitable[Turn | str]"]
"""Turns, one for each request in the order they come; or a function that makes one from a request's JSON."""

Outcome = Literal["running", "finished", "refused", "disconnected", "broken off"]

_Answer = ChatAnswer | ResponsesAnswer


@dataclass(eq=False)
class RecordedRequest:
    """A request the upstream got.

    Attributes:
        path: without the prefix: ``/chat/completions`` or ``/responses``.
        headers: names in lower case.
        json: the body.
        outcome: ``finished`` when the whole answer was sent, ``refused`` when it was an error the script did
            not ask for, ``disconnected`` when the client left before the end, ``broken off`` by
            `Turn.disconnect_at`.
    """

    path: str
    headers: Mapping[str, str]
    json: Json
    outcome: Outcome = "running"
    _ended: Flag = field(default_factory=Flag, repr=False)

    async def ended(self, timeout: float = 5.0) -> Outcome:
        """Wait until the upstream is done with this request and return its outcome."""
        async with asyncio.timeout(timeout):
            await self._ended.wait()
        return self.outcome

    def ended_sync(self, timeout: float = 5.0) -> Outcome:
        """Do what `ended` does, in a test without an event loop."""
        if not self._ended.wait_sync(timeout):
            raise TimeoutError(f"the upstream still answers after {timeout} s")
        return self.outcome


class FakeOpenAI:
    """An upstream that follows a script and speaks OpenAI's wire: chat completions, responses and models.

    ::

        fake = FakeOpenAI(
            [
                Turn(tool_calls=[ToolCallSpec("get_weather", {"city": "Paris"})]),
                Turn("It is sunny in Paris."),
            ]
        )
        client = openai_client(fake)

    Requests that OpenAI would refuse are refused, with its error. A request after the end of the script is
    answered with a 500 that says so.

    Attributes:
        requests: the requests to a model, in the order they came.
    """

    def __init__(
        self,
        script: Script = (),
        *,
        repeat_last: bool = False,
        split: Split | None = None,
        models: Sequence[str] = ("gpt-test",),
        api_key: str | None = None,
        strict: bool = True,
        reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning"),
        gate_timeout: float = 30.0,
    ) -> None:
        """Prepare the script; nothing runs before the first request.

        Args:
            script: a turn, a text, a list of them, or a function of the request's JSON that returns one.
            repeat_last: answer with the last turn again and again when the script is at its end.
            split: how texts are cut into pieces: a number of characters, or a function; None cuts at words.
            models: what ``GET /v1/models`` lists. A request may name any model.
            api_key: the key requests must bring; None accepts any, and none.
            strict: refuse what OpenAI refuses, such as a tool message that answers no call.
            reasoning_fields: where Chat Completions carries reasoning; empty to leave it out, as OpenAI does.
            gate_timeout: seconds after which a gate that nobody opens becomes an `AssertionError`.
        """
        if isinstance(split, int) and split < 1:
            raise ValueError(f"split must be at least 1, not {split}")
        self.requests: list[RecordedRequest] = []
        self._choose = script if callable(script) else None
        self._turns = [] if callable(script) else _turns(script)
        self._next = 0
        self._surplus = 0
        self._repeat_last = repeat_last
        self._split = split
        self._models = tuple(models)
        self._api_key = api_key
        self._strict = strict
        self._reasoning_fields = reasoning_fields
        self._gate_timeout = gate_timeout
        self._calls: set[_Call] = set()

    def assert_finished(self) -> None:
        """Raise `AssertionError` unless every turn of the script was used and nothing more was asked for."""
        left = len(self._turns) - self._next
        assert not left, f"{left} of {len(self._turns)} turns of the script were not used"
        assert not self._surplus, f"{self._surplus} requests came after the end of the script"

    def serve(self) -> Served:
        """Serve on a free port of the loopback interface; a context manager, sync or async, of the base URL.

        ``async with fake.serve() as base_url`` runs the server in the event loop of the test, ``with
        fake.serve() as base_url`` in a thread of its own. Use the second one when code under test blocks the
        event loop.
        """
        return Served(self, before_stop=self._hang_up)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI app."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"FakeOpenAI speaks HTTP only, not {scope['type']}")
        async with self._call(scope, receive, send) as call:
            await self._answer(call)

    @asynccontextmanager
    async def _call(self, scope: Scope, receive: Receive, send: Send) -> "AsyncIterator[_Call]":
        call = _Call(scope, receive, send)
        self._calls.add(call)
        try:
            yield call
        finally:
            self._calls.discard(call)
            await call.end()

    def _hang_up(self) -> None:
        """Break off every answer that is under way in this event loop; its server is about to stop."""
        loop = asyncio.get_running_loop()
        for call in list(self._calls):
            if call.loop is loop:
                call.gone.set()

    async def _answer(self, call: "_Call") -> None:
        if self._api_key is not None and call.headers.get("authorization") != f"Bearer {self._api_key}":
            await call.error(UpstreamError(401, "Incorrect API key provided.", code="invalid_api_key"))
            return
        path = _without_prefix(call.path)
        if path in ("/chat/completions", "/responses"):
            if call.method == "POST":
                await self._answer_model_call(call, path)
            else:
                await call.error(_method_not_allowed(call, "POST"))
        elif path == "/models" or path.startswith("/models/"):
            await self._answer_models(call, path.removeprefix("/models").removeprefix("/"))
        else:
            message = f"Invalid URL ({call.method} {call.path})"
            await call.error(UpstreamError(404, message, code="unknown_url", type="invalid_request_error"))

    async def _answer_models(self, call: "_Call", name: str) -> None:
        if call.method != "GET":
            await call.error(_method_not_allowed(call, "GET"))
        elif not name:
            await call.json({"object": "list", "data": [_model(model) for model in self._models]})
        elif name in self._models:
            await call.json(_model(name))
        else:
            await call.error(UpstreamError(404, f"The model '{name}' does not exist", code="model_not_found"))

    async def _answer_model_call(self, call: "_Call", path: str) -> None:
        body = await call.body()
        request = RecordedRequest(path, call.headers, body if isinstance(body, dict) else {})
        self.requests.append(request)
        call.number = len(self.requests)
        call.request = request
        if not isinstance(body, dict):
            refused: UpstreamError | None = UpstreamError(400, "The body of the request is not a JSON object.")
        else:
            refused = (refuse_chat if path == "/chat/completions" else refuse_responses)(body)
        if refused is not None and (self._strict or not isinstance(body, dict) or "model" not in body):
            await call.refuse(refused)
            return
        turn = await self._turn(request.json)
        if turn is None:
            await call.refuse(self._script_is_over())
            return
        pieces = turn.pieces(self._split)
        answer: _Answer
        if path == "/chat/completions":
            answer = ChatAnswer(turn, pieces, request.json, number=call.number, reasoning_fields=self._reasoning_fields)
        else:
            answer = ResponsesAnswer(turn, pieces, request.json, number=call.number)
        player = _Player(call, turn, answer, len(pieces), self._gate_timeout)
        await (player.stream() if request.json.get("stream") is True else player.whole())

    async def _turn(self, body: Json) -> Turn | None:
        if self._choose is not None:
            chosen = self._choose(body)
            if not isinstance(chosen, Turn | str):
                chosen = await chosen
            return _turn(chosen)
        if self._next < len(self._turns):
            self._next += 1
        elif not (self._repeat_last and self._turns):
            self._surplus += 1
            return None
        return self._turns[self._next - 1]

    def _script_is_over(self) -> UpstreamError:
        count = len(self._turns)
        turns = "1 turn" if count == 1 else f"{count} turns"
        message = (
            f"FakeOpenAI: the script has {turns}, and request {len(self.requests)} came. "
            "Add a turn, or say repeat_last=True."
        )
        return UpstreamError(500, message, code="script_is_over", headers={"x-should-retry": "false"})


class _Call:
    """One request to the upstream: reads, sends, and knows when its client has gone."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self.loop = asyncio.get_running_loop()
        self.gone = asyncio.Event()
        self.number = 0
        self.request: RecordedRequest | None = None
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    async def body(self) -> object:
        """Read the body as JSON; None when it is not JSON. From then on, watch for the client to leave."""
        parts: list[bytes] = []
        more = True
        while more and not self.gone.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        self._watcher = asyncio.create_task(self._watch(), name="fake openai watcher")
        try:
            return cast("object", json.loads(b"".join(parts)))
        except ValueError:
            return None

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def until(self, wanted: Awaitable[object], timeout: float | None) -> bool:
        """Wait for `wanted` or until the client leaves; True when `wanted` came first, or together."""
        wait = asyncio.ensure_future(wanted)
        leave = asyncio.create_task(self.gone.wait())
        try:
            done, _ = await asyncio.wait((wait, leave), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (wait, leave):
                task.cancel()
            await asyncio.gather(wait, leave, return_exceptions=True)
        if not done:
            raise AssertionError(f"FakeOpenAI: a gate was not opened within {timeout} s")
        return wait in done

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        every = {
            "content-type": content_type,
            "x-request-id": f"req_{self.number:032x}",
            "openai-version": "2020-10-01",
            "openai-processing-ms": "1",
            **({} if length is None else {"content-length": str(length)}),
            **headers,
        }
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in every.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def json(self, document: Json, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        text = json.dumps(document, ensure_ascii=False).encode()
        await self.start(status, "application/json", headers or {}, len(text))
        await self.write(text, more=False)

    async def error(self, error: UpstreamError) -> None:
        await self.json(error.body(), error.status, error.headers)

    async def refuse(self, error: UpstreamError) -> None:
        await self.error(error)
        self.outcome("refused")

    def outcome(self, outcome: Outcome) -> None:
        """Note how it went; the first word counts."""
        if self.request is not None and self.request.outcome == "running":
            self.request.outcome = outcome

    async def end(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self.request is not None:
            self.outcome("disconnected" if self.gone.is_set() else "broken off")
            self.request._ended.set()


class _Player:
    """Plays one turn to one call: holds, delays, breaks off."""

    def __init__(self, call: _Call, turn: Turn, answer: _Answer, pieces: int, gate_timeout: float) -> None:
        self._call = call
        self._turn = turn
        self._answer = answer
        self._pieces = pieces
        self._gate_timeout = gate_timeout

    async def whole(self) -> None:
        """Answer in one body."""
        turn, call = self._turn, self._call
        if not await self._pause(turn.delay * self._pieces) or not await self._gate():
            return
        if turn.failure is not None:
            await call.json(turn.failure.body(), turn.failure.status, {**turn.headers, **turn.failure.headers})
            call.outcome("finished")
            return
        text = json.dumps(self._answer.document(), ensure_ascii=False).encode()
        await call.start(200, "application/json", turn.headers, len(text))
        if turn.disconnect_at is not None:
            await call.write(text[: len(text) // 2])
            return
        await call.write(text, more=False)
        call.outcome("finished")

    async def stream(self) -> None:
        """Answer with a stream."""
        turn, call = self._turn, self._call
        if turn.gate_at == BEFORE_HEAD and not await self._gate():
            return
        if turn.failure is not None and turn.error_at is None:
            await call.json(turn.failure.body(), turn.failure.status, {**turn.headers, **turn.failure.headers})
            call.outcome("finished")
            return
        await call.start(200, "text/event-stream; charset=utf-8", {"cache-control": "no-cache", **turn.headers})
        if await self._play(self._answer.frames()):
            await call.write(b"", more=False)
            call.outcome("finished")

    async def _play(self, frames: "Iterator[tuple[bytes, int | None]]") -> bool:
        """Send the frames; False when the client has gone or the script breaks the connection."""
        reached = -1
        for sent, (data, piece) in enumerate(frames):
            if piece is not None and piece > reached:
                reached = piece
                if not await self._before(piece):
                    return False
                if self._turn.error_at == piece:
                    return await self._fail(sent)
            if self._call.gone.is_set():
                return False
            await self._call.write(data)
        return True

    async def _before(self, piece: int) -> bool:
        turn = self._turn
        if piece < self._pieces and not await self._pause(turn.delay):
            return False
        if turn.gate_at == piece and not await self._gate():
            return False
        return turn.disconnect_at != piece

    async def _fail(self, sent: int) -> bool:
        failure = self._turn.failure
        assert failure is not None
        for data in self._answer.failure(failure, sent=sent):
            await self._call.write(data)
        return True

    async def _gate(self) -> bool:
        if self._turn.gate is None:
            return True
        return await self._call.until(self._turn.gate.wait(), self._gate_timeout)

    async def _pause(self, seconds: float) -> bool:
        if seconds <= 0:
            return True
        return await self._call.until(asyncio.sleep(seconds), None)


def _turn(turn: Turn | str) -> Turn:
    return Turn(turn) if isinstance(turn, str) else turn


def _turns(script: "Turn | str | Sequence[Turn | str]") -> list[Turn]:
    return [_turn(script)] if isinstance(script, Turn | str) else [_turn(turn) for turn in script]


def _without_prefix(path: str) -> str:
    """Accept base URLs with ``/v1``, as OpenAI has it, and without."""
    path = path.rstrip("/")
    return path.removeprefix("/v1") or "/"


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "fake-openai"}


def _method_not_allowed(call: _Call, allowed: str) -> UpstreamError:
    return UpstreamError(
        405,
        f"Not allowed to {call.method} on {call.path}.",
        code="method_not_supported",
        type="invalid_request_error",
        headers={"allow": allowed},
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message: Message = await receive()
        kind: Any = message["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
