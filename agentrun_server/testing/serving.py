"""An ASGI app on a real socket of the loopback interface, for as long as a ``with`` block lasts.

The port is the system's choice and listens before the server starts, so a client may connect at once: there
is nothing to poll for. Signals stay with whoever runs the test. Start and stop are bounded in time.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

if TYPE_CHECKING:
    import uvicorn

__all__ = ["Served"]

_LIMIT = 10.0


class Served:
    """Serves `app`; entering gives the base URL, with ``/v1``.

    ``async with`` serves in the running event loop, ``with`` in a thread. `before_stop` is called in the
    server's loop when the block ends, so that answers under way can be ended. To be entered once.
    """

    def __init__(self, app: ASGIApp, *, before_stop: Callable[[], None]) -> None:
        self._before_stop = before_stop
        self._server = _server(app)
        self._listener: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None

    async def __aenter__(self) -> str:
        url = self._listen()
        self._task = asyncio.create_task(self._serve(), name="served app")
        return url

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._stop()
        _, pending = await asyncio.wait([self._task], timeout=_LIMIT)
        if pending:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_LIMIT)
            raise TimeoutError(f"the server did not stop within {_LIMIT} s")
        self._task.result()

    def __enter__(self) -> str:
        url = self._listen()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="served app", daemon=True)
        self._thread.start()
        if not started.wait(_LIMIT):
            raise TimeoutError(f"the server did not start within {_LIMIT} s")
        return url

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._thread is not None
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # a closed loop: the server has failed, which is told below
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(_LIMIT)
        if self._thread.is_alive():
            raise TimeoutError(f"the server did not stop within {_LIMIT} s")
        if self._error is not None:
            raise self._error

    def _listen(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def _run(self, started: threading.Event) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            started.set()
            await self._serve()

        try:
            asyncio.run(main())
        except BaseException as error:
            self._error = error

    async def _serve(self) -> None:
        assert self._listener is not None
        with self._listener:
            await self._server.serve(sockets=[self._listener])

    def _stop(self) -> None:
        self._before_stop()
        self._server.should_exit = True


def _server(app: ASGIApp) -> "uvicorn.Server":
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2
    )
    return Server(config)
