"""A small client of Chat Completions: bytes in, what the terminal shows out.

It reads server-sent events itself (`SSEDecoder`) and trusts nothing of the server: sizes are bounded, every
field is checked before it is used, and whatever goes wrong becomes a `ChatError` with one line for the
user.
"""

import codecs
import ipaddress
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "Activity",
    "ChatClient",
    "ChatError",
    "ChatEvent",
    "ChatOptions",
    "Finished",
    "Reasoning",
    "SSEDecoder",
    "Text",
    "ToolRequest",
    "base_url",
    "is_loopback",
]

MAX_EVENT = 16 * 1024 * 1024
"""Largest event or JSON answer that is read; a server that sends more is broken or hostile."""

_CONNECT_TIMEOUT = 5.0

_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


class ChatError(Exception):
    """The answer did not come, or came incomplete; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What the agent is doing: an ``x_agent`` object."""

    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """The agent asks its client to run a tool."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete; `reason` says why it ended: ``stop``, ``length`` and so on."""

    reason: str


ChatEvent = Text | Reasoning | Activity | ToolRequest | Finished


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatOptions:
    """How to ask."""

    stream: bool = True
    events: bool = False


# --- addresses ------------------------------------------------------------------------------------


def base_url(text: str) -> str:
    """Complete what the user typed: ``localhost:8000`` and ``http://host/v1/models`` lead to ``…/v1``.

    Raises:
        ChatError: it is no HTTP address.
    """
    text = text.strip()
    if "://" not in text:
        text = "http://" + text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ChatError(f"{text!r} is not a URL: {exc}") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ChatError(f"{text!r} is not an http:// or https:// address")
    if parts.username is not None or parts.query or parts.fragment:
        raise ChatError("the URL must hold neither a user name, a query nor a fragment; a key goes into --api-key")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if port is None else f"{host}:{port}"
    return urlunsplit((parts.scheme, netloc, path or "/v1", "", ""))


def is_loopback(url: str) -> bool:
    """Whether `url` leads to this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- the event stream -----------------------------------------------------------------------------


class SSEDecoder:
    """Puts server-sent events together: `feed` bytes cut anywhere, get the ``data`` of finished events.

    Lines may end in LF, CRLF or CR. Comments and the fields ``event``, ``id`` and ``retry`` are skipped.
    """

    def __init__(self) -> None:
        # A broken sequence becomes U+FFFD, as the event-stream format asks; `BOM` is dropped once, at the
        # beginning.
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._rest = ""
        self._size = 0
        self._data: list[str] = []
        self._first = True

    def feed(self, piece: bytes) -> list[str]:
        """Take `piece` of the stream; return the data of each event that it completes."""
        text = self._decode(piece)
        if self._first and text:
            text, self._first = text.removeprefix("\ufeff"), False
        text = self._rest + text
        held = ""
        if text.endswith("\r"):  # perhaps half of CRLF
            text, held = text[:-1], "\r"
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = rest + held
        events: list[str] = []
        for line in lines:
            self._line(line, events)
        if self._size + len(self._rest) > MAX_EVENT:
            raise ChatError(f"the server sent an event of more than {MAX_EVENT // 1024 // 1024} MiB")
        return events

    def _line(self, line: str, events: list[str]) -> None:
        if not line:
            if self._data:
                events.append("\n".join(self._data))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(":")
        if name == "data":
            value = value.removeprefix(" ")
            self._data.append(value)
            self._size += len(value) + 1


# --- what the answer says -------------------------------------------------------------------------


@dataclass(slots=True)
class _Answer:
    """Reads chunks into events, and remembers what has to be known at the end."""

    reason: str | None = None
    calls: dict[int, list[str]] = field(default_factory=dict[int, list[str]])

    def chunk(self, chunk: Mapping[str, Any]) -> Iterator[ChatEvent]:
        """Yield what one chunk of a stream says."""
        if chunk.get("x_agent"):
            yield Activity(_record(chunk["x_agent"]))
        choice = _record(_first(chunk.get("choices")))
        yield from self._message(_record(choice.get("delta")))
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.reason = reason

    def whole(self, body: Mapping[str, Any]) -> Iterator[ChatEvent]:
        """Yield what an answer says that came in one piece."""
        for item in _list(_record(body.get("x_agent")).get("events")):
            yield Activity(_record(item))
        choice = _record(_first(body.get("choices")))
        if not choice.get("message"):
            raise ChatError("the server's answer holds no message")
        yield from self._message(_record(choice["message"]))
        reason = choice.get("finish_reason")
        self.reason = reason if isinstance(reason, str) else "stop"

    def _message(self, message: Mapping[str, Any]) -> Iterator[ChatEvent]:
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(reasoning, str) and reasoning:
            yield Reasoning(reasoning)
        for key in ("content", "refusal"):
            text = message.get(key)
            if isinstance(text, str) and text:
                yield Text(text)
        for position, call in enumerate(_list(message.get("tool_calls"))):
            self._call(_record(call), position)

    def _call(self, call: Mapping[str, Any], position: int) -> None:
        index = call.get("index")
        function = _record(call.get("function"))
        parts = self.calls.setdefault(index if isinstance(index, int) else position, ["", ""])
        parts[0] += str(function.get("name") or "")
        parts[1] += str(function.get("arguments") or "")

    def end(self) -> Iterator[ChatEvent]:
        """Yield what is only known when everything has come."""
        if self.reason is None:
            raise ChatError("the stream ended before the answer was complete")
        for _, (name, arguments) in sorted(self.calls.items()):
            yield ToolRequest(name, arguments)
        yield Finished(self.reason)


def _record(value: Any) -> Mapping[str, Any]:
    """Return `value` when it is an object, else an empty one: what a server sends wrongly is not there."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _first(value: Any) -> Any:
    items = _list(value)
    return items[0] if items else None


def _json_object(text: str | bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ChatError("the server sent something that is not JSON") from exc
    if not isinstance(value, dict):
        raise ChatError("the server sent JSON that is not an object")
    return _record(value)


def _error_text(error: Any) -> str:
    """Read OpenAI's error object, and what other servers make of it."""
    if not isinstance(error, dict):
        return str(error)
    message = str(_record(error).get("message") or "the server gave no reason")
    code = _record(error).get("code")
    return f"{message} ({code})" if isinstance(code, str) and code else message


def _status_error(status: int, reason: str, body: bytes, headers: Mapping[str, str]) -> ChatError:
    text = f"{status} {reason}".strip()
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    error = _record(parsed).get("error")
    if error:
        text += f": {_error_text(error)}"
    if 300 <= status < 400 and headers.get("location"):
        text += f"; the server wants you to go to {headers['location']}"
    if headers.get("retry-after"):
        text += f"; try again in {headers['retry-after']} s"
    if headers.get("x-request-id"):
        text += f" [{headers['x-request-id']}]"
    return ChatError(text)


# --- the client -----------------------------------------------------------------------------------


class ChatClient:
    """Talks to one server. Use it as a context manager.

    Redirects are not followed, so that the key goes nowhere else, and no proxy is used for this machine's own
    servers. `timeout` is how long the server may be silent; `transport` takes the place of the network.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        transport: "httpx2.BaseTransport | None" = None,
    ) -> None:
        import httpx2

        self.url = base_url(url)
        if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ChatError("the API key holds characters that cannot stand in a header")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._failures = (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError)
        self._timeout_error = httpx2.TimeoutException
        self._connect_error = httpx2.ConnectError
        self._http = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(timeout, connect=min(_CONNECT_TIMEOUT, timeout)),
            trust_env=not is_loopback(self.url),
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Return the ids of the models the server lists.

        Raises:
            ChatError: it cannot be reached, or lists none.
        """
        try:
            with self._http.stream("GET", self.url + "/models") as response:
                body = self._read(response)
                if response.status_code != 200:
                    raise _status_error(response.status_code, response.reason_phrase, body, response.headers)
        except self._failures as exc:
            raise self._unreachable(exc) from exc
        listed = [_record(item).get("id") for item in _list(_json_object(body).get("data"))]
        ids = [model for model in listed if isinstance(model, str)]
        if not ids:
            raise ChatError(f"{self.url}/models lists no model; name one with --model")
        return ids

    def ask(
        self, model: str, messages: Sequence[Mapping[str, Any]], options: ChatOptions
    ) -> Generator[ChatEvent, None, None]:
        """Send the conversation and yield the answer as it comes. Closing the iterator hangs up.

        Raises:
            ChatError: the server refused, failed, or fell silent before the answer was complete.
        """
        payload = {"model": model, "messages": list(messages), "stream": options.stream}
        headers = {"X-Agent-Events": "tools,steps,progress,io"} if options.events else {}
        content = json.dumps(payload).encode()
        headers["Content-Type"] = "application/json"
        try:
            with self._http.stream(
                "POST", self.url + "/chat/completions", content=content, headers=headers
            ) as response:
                yield from self._events(response)
        except self._failures as exc:
            raise self._unreachable(exc) from exc

    def _events(self, response: "httpx2.Response") -> Iterator[ChatEvent]:
        if response.status_code != 200:
            body = self._read(response)
            raise _status_error(response.status_code, response.reason_phrase, body, response.headers)
        answer = _Answer()
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            yield from self._stream(response, answer)
        else:
            yield from answer.whole(self._checked(self._read(response)))
        yield from answer.end()

    def _stream(self, response: "httpx2.Response", answer: _Answer) -> Iterator[ChatEvent]:
        decoder = SSEDecoder()
        for piece in response.iter_bytes():
            for data in decoder.feed(piece):
                if data.strip() == "[DONE]":
                    return
                yield from answer.chunk(self._checked(data))

    def _checked(self, text: str | bytes) -> Mapping[str, Any]:
        body = _json_object(text)
        if body.get("error"):
            raise ChatError(_error_text(body["error"]))
        return body

    def _read(self, response: "httpx2.Response") -> bytes:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_EVENT:
                raise ChatError(f"the server sent more than {MAX_EVENT // 1024 // 1024} MiB")
        return bytes(body)

    def _unreachable(self, exc: Exception) -> ChatError:
        if isinstance(exc, self._timeout_error):
            return ChatError(f"{self.url} did not answer in time")
        if isinstance(exc, self._connect_error):
            reason = _ERRNO.sub("", str(exc))
            return ChatError(f"cannot reach {self.url}: {reason}. Is the server running?")
        return ChatError(f"the connection to {self.url} failed: {str(exc) or type(exc).__name__}")
