"""One request and its response: what passes between a client and one call of an app, without a socket.

Above stands `agentrun_server.testing.transport`, which decides how long a call may go on; below is the app.
"""

import asyncio
import contextvars
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from typing import cast

import httpx2
from starlette.types import ASGIApp, Message, Scope

__all__ = ["Exchange"]

_PIECE = 65536  # the largest piece of a request body one ``receive`` gives: what a server reads at once
_HEADER_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2, token
_NOT_IN_HEADER_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110 §5.5

_Head = tuple[int, list[tuple[bytes, bytes]]]


class Exchange:
    """One request and its response: what passes between a client and one call of the app.

    Both directions are queues with a bound. Whoever changes something wakes everyone who waits; each waiter
    looks again at what it waits for.
    """

    def __init__(self, request: httpx2.Request, *, buffer_bytes: int, errors_as_500: bool) -> None:
        self.left = False
        self.complete = False
        self.app_ended = False
        self.failure: BaseException | None = None
        self.reaper: asyncio.Task[None] | None = None
        self._request = request
        self._errors_as_500 = errors_as_500
        self._changed = asyncio.Event()
        # client to app
        self._upload: deque[bytes] = deque()
        self._unsent = 0
        self._uploaded = False
        self._upload_told = False
        self._upload_error: Exception | None = None
        # app to client
        self._head: _Head | None = None
        self._expected: int | None = None  # bytes of body still to come, when content-length was sent
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._buffer_bytes = buffer_bytes
        self._cut = False  # the app ended in the middle of its response

    # Life of the two tasks.

    def run(
        self,
        app: ASGIApp,
        scope: Scope,
        context: contextvars.Context,
        *,
        on_end: "Callable[[Exchange], None]",
    ) -> None:
        """Call the app, in a task of its own; `on_end` is told when it is over."""
        self._uploader = asyncio.create_task(self._send_body(), name="asgi upload")
        self._app = asyncio.create_task(
            self._call(app, scope), name=f"asgi {scope['method']} {scope['path']}", context=context
        )
        self._app.add_done_callback(self._app_is_over)
        self._app.add_done_callback(lambda _: on_end(self))

    async def _call(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            if not self.left:
                self.failure = RuntimeError("the app was cancelled, not by its client")
            raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.failure = error
        finally:
            # Here and not only in the task's callback: what the app did last and its end are seen together.
            self._app_is_over()

    def _app_is_over(self, _: object = None) -> None:
        self.app_ended = True
        self._cut = not self.complete
        self._wake()

    def take_failure(self) -> BaseException | None:
        """Return what the app raised, to the first who asks."""
        failure, self.failure = self.failure, None
        return failure

    def client_leaves(self) -> None:
        """From now on the app hears ``http.disconnect`` and nobody hears the app."""
        self.left = True
        self._uploader.cancel()
        self._wake()

    async def wait_for_upload(self, timeout: float) -> bool:
        """Wait until no more of the request is sent; False when that takes longer than `timeout`."""
        return await _ended(self._uploader, timeout)

    async def wait_for_app(self, timeout: float) -> bool:
        """Wait until the app's call has ended; False when that takes longer than `timeout`."""
        return await _ended(self._app, timeout)

    def cancel_app(self) -> None:
        """Cancel the app's call, which a server does only when it is forced to exit."""
        self._app.cancel()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # The app's side.

    async def _receive(self) -> Message:
        while True:
            if self.left or self.complete or self._upload_error:
                return {"type": "http.disconnect"}
            if self._upload:
                body = self._upload.popleft()
                self._unsent -= len(body)
                more = bool(self._upload) or not self._uploaded
                self._upload_told = not more
                self._wake()
                return {"type": "http.request", "body": body, "more_body": more}
            if self._uploaded and not self._upload_told:
                self._upload_told = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._changed.wait()

    async def _send(self, message: Message) -> None:
        if self.left:
            return
        if self._head is None:
            _expect("http.response.start", message)
            self._start(message["status"], message.get("headers", ()))
        elif self.complete:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}: the response is already complete")
        else:
            _expect("http.response.body", message)
            await self._add(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        checked = list(_checked(headers))
        length = dict(checked).get(b"content-length")
        if self._request.method != "HEAD":
            no_body = status in (204, 304)
            self._expected = 0 if no_body else None if length is None else int(length)
        self._head = (status, checked)
        self._wake()

    async def _add(self, body: bytes, *, more: bool) -> None:
        if self._request.method == "HEAD":
            body = b""
        if self._expected is not None:
            self._expected -= len(body)
            if self._expected < 0:
                raise RuntimeError("the response body is longer than its content-length")
            if self._expected > 0 and not more:
                raise RuntimeError("the response body is shorter than its content-length")
        if body:
            self._chunks.append(bytes(body))
            self._unread += len(body)
        self.complete = not more
        self._wake()
        # The last piece never waits: a server has nothing to hold back an app for that is done.
        while more and self._unread > self._buffer_bytes and not self.left:
            await self._changed.wait()

    # The client's side.

    async def head(self) -> _Head:
        """Wait for the response head.

        While the request body is sent, its own timeouts apply; then the client's read timeout does.
        """
        while not (self._settled() or self._uploaded):
            await self._changed.wait()
        await self._within_read_timeout(self._settled)
        if self._upload_error is not None and self._head is None:
            raise self._upload_error
        if self._head is None:
            self._answer_without_head()
        assert self._head is not None
        return self._head

    def _settled(self) -> bool:
        return self._head is not None or self.app_ended or self._upload_error is not None

    def _answer_without_head(self) -> None:
        failure = self.failure or RuntimeError("the app returned without sending a response")
        if not self._errors_as_500:
            self.take_failure()
            raise failure
        text = b"Internal Server Error"
        self.failure = failure
        self._head = (
            500,
            [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))],
        )
        self._chunks.append(text)
        self.complete, self._cut = True, False

    async def next_chunk(self) -> bytes | None:
        """Return the next chunk of the body as the app sent it; None at its end."""
        await self._within_read_timeout(self._readable)
        if self._chunks:
            chunk = self._chunks.popleft()
            self._unread -= len(chunk)
            self._wake()
            return chunk
        if self.complete:
            return None
        if self._upload_error is not None:
            raise self._upload_error
        if self.failure is not None and not self._errors_as_500:
            raise cast("BaseException", self.take_failure())
        raise httpx2.RemoteProtocolError(
            "the app ended without completing its response", request=self._request
        ) from self.failure

    def _readable(self) -> bool:
        return bool(self._chunks) or self.complete or self._cut or self._upload_error is not None

    async def _within_read_timeout(self, arrived: Callable[[], bool]) -> None:
        seconds = self._timeout("read")
        try:
            async with asyncio.timeout(seconds):
                while not arrived():
                    await self._changed.wait()
        except TimeoutError:
            raise httpx2.ReadTimeout(f"the app sent nothing for {seconds} s", request=self._request) from None

    def _timeout(self, kind: str) -> float | None:
        timeouts = cast("dict[str, float | None]", self._request.extensions.get("timeout", {}))
        return timeouts.get(kind)

    async def _send_body(self) -> None:
        """Send the request's body, in a task of its own: a client may still send while it already reads."""
        declared = self._request.headers.get("content-length")
        missing = None if declared is None else int(declared)
        try:
            stream = cast("httpx2.AsyncByteStream", self._request.stream)
            async for piece in _pieces(stream):
                if missing is not None:
                    missing -= len(piece)
                    self._uploaded = missing == 0
                if not await self._offer(piece):
                    return
            if missing:
                raise httpx2.LocalProtocolError(
                    "the request body does not have its content-length", request=self._request
                )
            self._uploaded = True
        except Exception as error:
            # The client's own generator, or its write timeout: the client hears of it, the app sees it leave.
            self._upload_error = error
        finally:
            self._wake()

    async def _offer(self, piece: bytes) -> bool:
        """Hand one piece to the app and wait until there is room for more; False when it takes no more."""
        self._upload.append(piece)
        self._unsent += len(piece)
        self._wake()
        seconds = self._timeout("write")
        try:
            async with asyncio.timeout(seconds):
                while self._unsent > self._buffer_bytes and not (self._uploaded or self._takes_no_more()):
                    await self._changed.wait()
        except TimeoutError:
            raise httpx2.WriteTimeout(f"the app read nothing for {seconds} s", request=self._request) from None
        return not self._takes_no_more()

    def _takes_no_more(self) -> bool:
        return self.left or self.complete or self.app_ended


async def _ended(task: "asyncio.Task[None]", timeout: float) -> bool:
    _, pending = await asyncio.wait([task], timeout=timeout)
    return not pending


async def _pieces(stream: httpx2.AsyncByteStream) -> AsyncIterator[bytes]:
    chunks = stream.__aiter__()
    try:
        async for chunk in chunks:
            for start in range(0, len(chunk), _PIECE):
                yield chunk[start : start + _PIECE]
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


def _expect(kind: str, message: Message) -> None:
    if message["type"] != kind:
        raise RuntimeError(f"expected the ASGI message {kind!r}, but the app sent {message['type']!r}")


def _checked(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the response headers in lower case; refuse what a server would refuse to write."""
    for name, value in headers:
        if not (isinstance(name, bytes) and isinstance(value, bytes)):
            raise TypeError(f"names and values of response headers are bytes, not {name!r}: {value!r}")
        if not _HEADER_NAME.fullmatch(name):
            raise RuntimeError(f"invalid name of a response header: {name!r}")
        if _NOT_IN_HEADER_VALUE.search(value):
            raise RuntimeError(f"invalid value of the response header {name!r}: {value!r}")
        yield name.lower(), value
