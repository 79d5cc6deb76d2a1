"""An in-process transport for `httpx2` that runs an ASGI app and really streams.

`httpx2.ASGITransport` runs the app to its end and hands over a finished response, so nothing that happens
*during* a stream can be tested with it: pacing, heartbeats, slow readers, a client that leaves. Here the app
runs in a task of its own beside the client, with what a server on a socket would give it:

* the response head is handed over as soon as the app sends it, and every body message is one chunk for the
  client;
* the app's ``send`` waits while more than `buffer_bytes` are unread, as a full socket buffer makes it wait;
* a client that closes the response early, is cancelled or runs into its timeout is a client that is gone: the
  app's ``receive`` says ``http.disconnect`` and what it still sends is dropped;
* request bodies arrive in pieces, and a client that sends faster than the app reads has to wait;
* read and write timeouts of the client are honoured;
* the app does not see the client's context variables.

Above it sits any `httpx2.AsyncClient`, below it any ASGI 3 app. It is deliberately not a server: no bytes of
HTTP are written or parsed, and there are no websockets.

Every wait ends: a start-up and a shutdown after a limit, an app whose client is gone after `close_timeout`,
when it is cancelled. No task outlives the transport.
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

import httpx2
from starlette.types import ASGIApp, Scope

from agentrun_server.testing.exchange import Exchange
from agentrun_server.testing.lifespan import Lifespan, LifespanMode

__all__ = ["StreamingASGITransport"]

logger = logging.getLogger(__name__)


class StreamingASGITransport(httpx2.AsyncBaseTransport):
    """Runs `app` in this process under an `httpx2.AsyncClient`, streaming both ways.

    ::

        async with StreamingASGITransport(app) as transport:
            async with httpx2.AsyncClient(transport=transport, base_url="http://app") as client:
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for line in response.aiter_lines():
                        ...

    ``async with`` starts the app (its lifespan) and shuts it down. Without it, the first request starts the
    app and `aclose`, which closing the client calls, shuts it down. A client closed inside the ``async with``
    leaves it up, so that several clients can share one app.

    Attributes:
        cancelled: how many calls of the app had to be cancelled, because they did not end within
            `close_timeout` after their client had gone. A well-behaved app leaves it at 0.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        raise_app_exceptions: bool = True,
        lifespan: LifespanMode = "auto",
        root_path: str = "",
        client: tuple[str, int] = ("127.0.0.1", 50000),
        buffer_bytes: int = 65536,
        startup_timeout: float = 30.0,
        close_timeout: float = 5.0,
    ) -> None:
        """Prepare to run `app`; nothing is started yet.

        Args:
            app: any ASGI 3 app.
            raise_app_exceptions: raise what the app raises to the client, at the point of the response where
                it happened. With False a client sees what it would see over a socket: a 500, or, once the
                response has begun, `httpx2.RemoteProtocolError`; the exception is logged.
            lifespan: whether to run the app's lifespan; ``auto`` accepts apps that have none.
            root_path: where the app is mounted, as a proxy in front would say.
            client: address and port the app sees as its client.
            buffer_bytes: how much of a response may be unread before the app's ``send`` waits, and how much
                of a request before the client waits. With 0, each piece waits until it has been taken.
            startup_timeout: seconds the app may take to start.
            close_timeout: seconds an app may take to end after its client has gone, and to shut down.
        """
        self.cancelled = 0
        self._app = app
        self._raise = raise_app_exceptions
        self._lifespan_mode: LifespanMode = lifespan
        self._root_path = root_path
        self._client = client
        self._buffer_bytes = buffer_bytes
        self._startup_timeout = startup_timeout
        self._close_timeout = close_timeout
        self._context = contextvars.copy_context()
        self._lifespan: Lifespan | None = None
        self._entered = 0
        self._exchanges: set[Exchange] = set()

    @property
    def running(self) -> int:
        """How many calls of the app are running now."""
        return sum(not exchange.app_ended for exchange in self._exchanges)

    async def __aenter__(self) -> Self:
        await self._startup()
        self._entered += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            await self._close(raise_failures=exc_value is None)

    async def aclose(self) -> None:
        """End what still runs and shut the app down; inside ``async with`` its end does that, not this."""
        if self._entered == 0:
            await self._close(raise_failures=True)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Run the app for `request` and return its response as soon as the app has sent the head."""
        state = await self._startup()
        exchange = Exchange(request, buffer_bytes=self._buffer_bytes, errors_as_500=not self._raise)
        exchange.run(self._app, self._scope(request, state), self._context.copy(), on_end=self._forget)
        self._exchanges.add(exchange)
        try:
            status, headers = await exchange.head()
        except BaseException:
            await self._end(exchange)
            self._report(exchange, to_caller=False)
            raise
        return httpx2.Response(
            status,
            headers=headers,
            stream=_ResponseStream(self, exchange),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def _startup(self) -> dict[str, object]:
        if self._lifespan is None:
            self._lifespan = Lifespan(
                self._app,
                mode=self._lifespan_mode,
                startup_timeout=self._startup_timeout,
                shutdown_timeout=self._close_timeout,
            )
        await self._lifespan.startup()
        return self._lifespan.state

    def _scope(self, request: httpx2.Request, state: dict[str, object]) -> Scope:
        url = request.url
        root = self._root_path
        return {
            "type": "http",
            # 2.3 as uvicorn says: from 2.4 on, frameworks expect `send` to raise when the client has gone.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": root + url.path,
            "raw_path": root.encode() + url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": root,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (url.host, url.port or {"https": 443}.get(url.scheme, 80)),
            "client": self._client,
            "state": state.copy(),
        }

    async def _end(self, exchange: Exchange) -> None:
        """Tell the app that its client has gone and wait, for a limited time, until it has ended.

        A call that has sent its whole response may go on, as behind a server, until the transport is closed.
        """
        exchange.client_leaves()
        if exchange.app_ended or exchange.complete:
            await exchange.wait_for_upload(self._close_timeout)
            self._forget(exchange)
            return
        # In a task of its own, so that a caller who is cancelled while waiting leaves nothing half ended.
        await asyncio.shield(self._reap(exchange))

    def _reap(self, exchange: Exchange) -> "asyncio.Task[None]":
        if exchange.reaper is None:
            exchange.reaper = asyncio.create_task(self._reaped(exchange), name="asgi reaper")
        return exchange.reaper

    async def _reaped(self, exchange: Exchange) -> None:
        try:
            await exchange.wait_for_upload(self._close_timeout)
            ended = await exchange.wait_for_app(self._close_timeout)
        except asyncio.CancelledError:
            exchange.cancel_app()
            raise
        if not ended:
            self.cancelled += 1
            logger.warning(
                "an app call was cancelled: it did not end after its client had gone",
                extra={"seconds": self._close_timeout},
            )
            exchange.cancel_app()
            if not await exchange.wait_for_app(self._close_timeout):
                raise RuntimeError(f"the app still runs {self._close_timeout} s after it was cancelled")
        self._forget(exchange)

    def _forget(self, exchange: Exchange) -> None:
        # One whose failure nobody has heard of yet is kept: reading or closing tells it.
        if exchange.app_ended and exchange.left and exchange.failure is None:
            self._exchanges.discard(exchange)

    def _report(self, exchange: Exchange, *, to_caller: bool) -> None:
        """Tell what the app raised, once: raise it, or log it for a caller who is told of another exception."""
        failure = exchange.take_failure()
        self._forget(exchange)
        if failure is None:
            return
        if self._raise and to_caller:
            raise failure
        logger.error("exception in the ASGI app", exc_info=failure)

    async def _close(self, *, raise_failures: bool) -> None:
        exchanges = list(self._exchanges)
        for exchange in exchanges:
            exchange.client_leaves()
        problems = await asyncio.gather(*map(self._reap, exchanges), return_exceptions=True)
        problems.append(await self._shutdown())
        failures = [exchange.take_failure() for exchange in exchanges]
        self._exchanges.clear()
        to_raise = [problem for problem in problems if problem]
        to_log = [failure for failure in failures if failure]
        if self._raise:
            to_raise, to_log = to_raise + to_log, []
        if not raise_failures:
            to_raise, to_log = [], to_raise + to_log
        for failure in to_log:
            logger.error("exception in the ASGI app", exc_info=failure)
        if to_raise:
            raise to_raise[0] if len(to_raise) == 1 else BaseExceptionGroup("failures of the app", to_raise)

    async def _shutdown(self) -> BaseException | None:
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            try:
                await lifespan.shutdown()
            except Exception as error:
                return error
        return None


class _ResponseStream(httpx2.AsyncByteStream):
    """The body as the client reads it. A second iteration goes on where the first stopped, as on a socket."""

    def __init__(self, transport: StreamingASGITransport, exchange: Exchange) -> None:
        self._transport = transport
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._exchange.next_chunk()) is not None:
                yield chunk
            self._transport._report(self._exchange, to_caller=True)
        except BaseException:
            await self._transport._end(self._exchange)
            self._transport._report(self._exchange, to_caller=False)
            raise

    async def aclose(self) -> None:
        await self._transport._end(self._exchange)
        self._transport._report(self._exchange, to_caller=True)
