"""What a middleware answers when it does not pass a request on: OpenAI's error object, with the right headers.

A refusal says the same whatever was wrong with a credential; the reason goes to the log. Clients read the status and
the code, and LiteLLM the words "Incorrect API key provided".
"""

import json
import math
from dataclasses import dataclass, field

from agentrun_middleware.asgi import Headers, Receive, Scope, Send

__all__ = ["Refusal", "challenge", "duration", "refuse", "retry_headers"]

_LONGEST_WAIT = 60.0
_CLOSE_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_CLOSE_TRY_AGAIN_LATER = 1013  # registered with IANA


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer in OpenAI's error object."""

    status: int
    message: str
    code: str | None
    type: str = "invalid_request_error"
    headers: Headers = field(default=())

    def body(self) -> bytes:
        """Return the JSON text; all four keys of the error object are always there."""
        error = {"message": self.message, "type": self.type, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def challenge(realm: str, error: str | None = None, scope: str | None = None) -> tuple[bytes, bytes]:
    """Return the ``WWW-Authenticate`` header (RFC 6750, section 3); without `error` when no credential was sent."""
    value = f'Bearer realm="{realm}"'
    if error is not None:
        value += f', error="{error}"'
    if scope:
        value += f', scope="{scope}"'
    return b"www-authenticate", value.encode("ascii")


def retry_headers(seconds: float) -> Headers:
    """Return ``retry-after`` (whole seconds) and ``retry-after-ms`` (which OpenAI clients prefer).

    Rounded up, and at most 60 seconds: clients that are told to wait longer do as they like.
    """
    milliseconds = max(1, _milliseconds(min(seconds, _LONGEST_WAIT)))
    return (b"retry-after", b"%d" % math.ceil(milliseconds / 1000)), (b"retry-after-ms", b"%d" % milliseconds)


def duration(seconds: float) -> bytes:
    """Return `seconds` in the form of OpenAI's ``x-ratelimit-reset-*``, which is Go's: ``20ms``, ``1.5s``, ``6m0s``.

    Rounded up to the millisecond: whoever waits that long has waited long enough.
    """
    milliseconds = max(0, _milliseconds(seconds))
    if 0 < milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    text = f"{milliseconds / 1000:g}s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"
    return text.encode()


def _milliseconds(seconds: float) -> int:
    """Round up, but not what the multiplication adds: 1.1 seconds are 1100 milliseconds."""
    return math.ceil(round(seconds * 1000, 6))


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer the request or WebSocket handshake in `scope` with `refusal`.

    A handshake gets the HTTP answer where the server can send one ("Websocket Denial Response" of ASGI), else it is
    closed before it was accepted, which servers answer with a bare 403.
    """
    body = refusal.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refusal.headers]
    kind = "http.response"
    if scope["type"] == "websocket":
        if (await receive())["type"] != "websocket.connect":
            return  # the client has left
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            again = refusal.status in (429, 503)
            code = _CLOSE_TRY_AGAIN_LATER if again else _CLOSE_POLICY_VIOLATION
            await send({"type": "websocket.close", "code": code, "reason": refusal.code or ""})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
