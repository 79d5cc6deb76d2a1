"""One line for every request, written in batches.

A line through `logging` costs as much as a fifth of a short request; here it is one string, and many lines are one
write. Lines go to the standard output in the order in which requests end, at most `_DELAY` seconds late. The logger
``agentrun_server.access`` takes over when it has been given handlers.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, Literal, TextIO

from agentrun_server.observability.logs import redact

__all__ = ["AccessLog"]

_DELAY = 0.2
_MAX_LINES = 256

_logger = logging.getLogger("agentrun_server.access")


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
    """Collects lines and writes them. `write` belongs to the event loop; `flush` may be called at any time."""

    def __init__(self, log_format: Literal["auto", "json", "text"], stream: TextIO | None = None) -> None:
        self._stream = stream
        self._format = log_format
        self._lines: list[str] = []
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._second = 0
        self._stamp = ""

    def write(self, scope: Any, status: int, seconds: float, request_id: str, facts: dict[str, Any] | None) -> None:
        """Write a line for a request that took `seconds`. Query and headers never appear."""
        if _logger.handlers:
            self._log(scope, status, seconds, request_id, facts)
            return
        lines = self._lines
        lines.append(self._line(scope, status, seconds, request_id, facts))
        if len(lines) >= _MAX_LINES:
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
        lines, self._lines = self._lines, []
        if not lines:
            return
        stream = self._stream or sys.stdout
        try:
            stream.write("".join(lines))
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads the log any more: no reason to fail requests

    def _line(self, scope: Any, status: int, seconds: float, request_id: str, facts: dict[str, Any] | None) -> str:
        if self._format == "auto":
            self._format = "text" if (self._stream or sys.stdout).isatty() else "json"
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        client = scope.get("client")
        address = client[0] if client else ""
        # A path is the client's own text: json.dumps, or ascii() on a terminal, keeps it on its line.
        if self._format == "text":
            more = "".join(f" {key}={_clean(str(value))}" for key, value in (facts or {}).items() if value is not None)
            text = f"{scope['method']} {_clean(scope['path'])}"
            return (
                f"{self._stamp[11:]} {status} {seconds * 1000:8.1f} ms  {ascii(text)[1:-1]} {address}"
                f" request_id={request_id}{ascii(more)[1:-1]}\n"
            )
        more = _fields(facts) if facts else ""
        return (
            f'{{"time":"{self._stamp}.{int(now * 1000) % 1000:03d}Z","level":"info","logger":"agentrun_server.access",'
            f'"message":"request","method":"{scope["method"]}","path":{_quoted(scope["path"])},'
            f'"status":{status},"duration_ms":{seconds * 1000:.1f},"client":"{address}",'
            f'"request_id":"{request_id}"{more}}}\n'
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
