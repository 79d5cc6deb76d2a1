"""One line for every request, written in batches.

A line through `logging` costs as much as a fifth of a short request. Here a request leaves its figures, and many lines
are put together and written at once: code that runs over and over is twice as fast as code that runs in between. Lines
go to the standard output in the order in which requests end, at most `_DELAY` seconds late. The logger
``agentrun_server.access`` takes over when it has been given handlers.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, Literal, TextIO, TypeAlias

from agentrun_server.observability.logs import redact

__all__ = ["AccessLog"]

_DELAY = 0.2
_MAX_LINES = 128

_logger = logging.getLogger("agentrun_server.access")

_Facts: TypeAlias = Mapping[str, Any] | None
_Request: TypeAlias = tuple[float, str, str, Any, int, float, str, _Facts]
"""When it ended, method, path, client, status, seconds it took, id, facts."""


_MAX_TEXT = 512


@lru_cache(maxsize=1024)
def _clean(text: str) -> str:
    """Return a path or a model name as the log may show it: clients send keys in the oddest places.

    Cached, because most requests are for the same few.
    """
    return redact(text[:_MAX_TEXT])


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    return _quote(_clean(text))


def _fields(facts: Mapping[str, Any]) -> str:
    """Return facts, which are strings, numbers, booleans or None, as members of a JSON object."""
    written = ""
    for key, value in facts.items():
        if isinstance(value, str):
            written += f',"{key}":{_quoted(value)}'
        elif value is True or value is False or value is None:
            written += f',"{key}":{_LITERALS[value]}'
        else:
            written += f',"{key}":{value}'
    return written


_LITERALS: Mapping[bool | None, str] = {True: "true", False: "false", None: "null"}


class AccessLog:
    """Collects requests, and writes their lines. `write` is the event loop's; `flush` may be called at any time."""

    def __init__(self, log_format: Literal["auto", "json", "text"], stream: TextIO | None = None) -> None:
        self._stream = stream
        self._format = log_format
        self._requests: list[_Request] = []
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second = 0
        self._stamp = ""

    def write(self, scope: Any, status: int, seconds: float, request_id: str, facts: dict[str, Any] | None) -> None:
        """Write a line for a request that took `seconds`. Query and headers never appear."""
        if _logger.handlers:
            self._log(scope, status, seconds, request_id, facts)
            return
        requests = self._requests
        requests.append(
            (time.time(), scope["method"], scope["path"], scope.get("client"), status, seconds, request_id, facts)
        )
        if len(requests) >= _MAX_LINES:
            self.flush()
            return
        loop = asyncio.get_running_loop()
        # A timer of another loop never fires: test clients run each request in a loop of its own.
        if self._handle is None or self._loop is not loop:
            self._loop, self._handle = loop, loop.call_later(_DELAY, self.flush)

    def flush(self) -> None:
        """Write what has been collected."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel()
        requests, self._requests = self._requests, []
        if not requests:
            return
        stream = self._stream or sys.stdout
        if self._format == "auto":
            self._format = "text" if stream.isatty() else "json"
        line = self._text_line if self._format == "text" else self._json_line
        try:
            stream.write("".join(map(line, requests)))
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more: no reason to fail requests

    def _time(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return self._stamp

    # A path is the client's own text: a JSON string, or ascii() on a terminal, keeps it on its line.

    def _text_line(self, request: _Request) -> str:
        now, method, path, client, status, seconds, request_id, facts = request
        more = "".join(f" {key}={_clean(str(value))}" for key, value in (facts or {}).items() if value is not None)
        return (
            f"{self._time(now)[11:]} {status} {seconds * 1000:8.1f} ms  {ascii(f'{method} {_clean(path)}')[1:-1]}"
            f" {client[0] if client else ''} request_id={request_id}{ascii(more)[1:-1]}\n"
        )

    def _json_line(self, request: _Request) -> str:
        now, method, path, client, status, seconds, request_id, facts = request
        return (
            f'{{"time":"{self._time(now)}.{int(now * 1000) % 1000:03d}Z","level":"info",'
            f'"logger":"agentrun_server.access","message":"request","method":"{method}","path":{_quoted(path)},'
            f'"status":{status},"duration_ms":{seconds * 1000:.1f},"client":"{client[0] if client else ""}",'
            f'"request_id":"{request_id}"{_fields(facts) if facts else ""}}}\n'
        )

    def _log(self, scope: Any, status: int, seconds: float, request_id: str, facts: dict[str, Any] | None) -> None:
        client = scope.get("client")
        fields = {
            "method": scope["method"],
            "path": _clean(scope["path"]),
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "client": client[0] if client else "",
            "request_id": request_id,
            **(facts or {}),
        }
        _logger.info("request", extra=fields)
