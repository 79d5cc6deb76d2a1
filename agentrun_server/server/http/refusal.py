"""What is answered to a request that no app will see, as values: OpenAI's error object and its bytes on the wire."""

import json
import uuid

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from agentrun_server.errors import APIError, InvalidRequestError, PayloadTooLargeError
from agentrun_server.observability.logs import get_logger

__all__ = [
    "MAX_TARGET_BYTES",
    "Headers",
    "RefusedError",
    "answer_bytes",
    "answer_parts",
    "bad_request",
    "body_too_large",
    "head_too_large",
    "internal_error",
    "new_request_id",
    "refusal_of",
    "target_too_long",
    "version_not_supported",
]

logger = get_logger("agentrun_server.http")

Headers = list[tuple[bytes, bytes]]

MAX_TARGET_BYTES = 16 * 1024
"""Longest request target; browsers and proxies stop far below."""


class RefusedError(Exception):
    """A request that is not handed to the app: what the caller is told, and the short reason for the log."""

    def __init__(self, reason: str, error: APIError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def bad_request(reason: str, message: str, *, status: int = 400, code: str = "invalid_http_request") -> RefusedError:
    """Return the refusal of a request that is not valid HTTP; `reason` is for the log."""
    error = InvalidRequestError(message, code=code, status_code=status)
    # Stock clients repeat a 5xx; what is not supported now will not be supported in half a second.
    return RefusedError(reason, error.no_retry() if status >= 500 else error)


def head_too_large(reason: str, message: str) -> RefusedError:
    """Return the refusal of a head with too many bytes or lines (RFC 6585 §5)."""
    return bad_request(reason, message, status=431, code="request_header_fields_too_large")


def target_too_long() -> RefusedError:
    """Return the refusal of a request target longer than `MAX_TARGET_BYTES`."""
    message = f"The request target is longer than {MAX_TARGET_BYTES} bytes."
    return bad_request("target_length", message, status=414, code="uri_too_long")


def body_too_large(limit: int) -> RefusedError:
    """Return the refusal of a body longer than `limit` bytes."""
    return RefusedError("body_bytes", PayloadTooLargeError(f"The request body is longer than {limit} bytes."))


def version_not_supported() -> RefusedError:
    """Return the refusal of any HTTP but 1.0 and 1.1."""
    message = "This server speaks HTTP/1.1 and HTTP/1.0."
    return bad_request("version", message, status=505, code="http_version_not_supported")


def refusal_of(exc: httptools.HttpParserError) -> RefusedError:
    """Turn an error of the parser into what the caller is told."""
    cause = exc.__context__
    if isinstance(cause, RefusedError):
        return cause
    if isinstance(exc, httptools.HttpParserCallbackError):
        logger.error("error while reading a request", exc_info=cause)
        return RefusedError("internal", internal_error())
    reason = str(exc)
    # The preface of HTTP/2 ("PRI * HTTP/2.0") is a version too.
    if reason == "Invalid HTTP version" or "PRI/Upgrade" in reason or "Connection Preface" in reason:
        return version_not_supported()
    # llhttp's reasons are fixed sentences; nothing of the request is in them.
    return bad_request("syntax", f"Invalid HTTP request: {reason}.")


def internal_error() -> APIError:
    """Return what is told when the app, or this server, fails without an answer."""
    # Code of the app may have run: tell stock clients not to run it twice.
    return APIError("The server had an error while processing your request.", code="internal_error").no_retry()


def new_request_id() -> str:
    """Return an id for a request that got none from the app."""
    return f"req_{uuid.uuid4().hex}"


def answer_parts(error: APIError, request_id: str) -> tuple[Headers, bytes]:
    """Return headers and body of the answer that tells `error` and ends the connection."""
    body = json.dumps(error.body()).encode("ascii")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode("ascii")),
        (b"connection", b"close"),
        *error.headers,
    ]
    return headers, body


def answer_bytes(error: APIError, request_id: str, default_headers: Headers, *, head_only: bool) -> bytes:
    """Return that answer as it goes on the wire."""
    headers, body = answer_parts(error, request_id)
    lines = [name + b": " + value + b"\r\n" for name, value in (*default_headers, *headers)]
    return b"".join([STATUS_LINE[error.status_code], *lines, b"\r\n", b"" if head_only else body])
