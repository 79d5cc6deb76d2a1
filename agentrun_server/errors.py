"""The exception tree.

::

    AgentRunServerError
    ├── ConfigurationError          a setting is wrong; raised while the server is built, never per request
    ├── AgentError                  raised by an agent on purpose: its message is shown to the caller
    ├── GrammarError                an agent yielded an event that may not follow the ones before it
    └── APIError                    an answer to the caller, as OpenAI's error object with a status
        ├── InvalidRequestError     400
        ├── AuthenticationError     401
        ├── PermissionDeniedError   403
        ├── NotFoundError           404
        ├── MethodNotAllowedError   405
        ├── RequestTimeoutError     408
        ├── PayloadTooLargeError    413
        ├── UnsupportedMediaTypeError 415
        ├── TooManyRequestsError    429
        ├── AgentFailedError        500
        ├── ServiceUnavailableError 503
        └── AgentTimeoutError       504

`APIError.body` is the one place where an error becomes OpenAI's error object: all four keys are always there
(``Error`` in the OpenAI specification). Stock clients retry 408, 409, 429 and 5xx unless the answer carries
``x-should-retry: false``; an error raised after agent code has run says so, because a retry would run the agent twice.
"""

from typing import Any, ClassVar, Self

__all__ = [
    "APIError",
    "AgentError",
    "AgentFailedError",
    "AgentRunServerError",
    "AgentTimeoutError",
    "AuthenticationError",
    "ConfigurationError",
    "GrammarError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "RequestTimeoutError",
    "ServiceUnavailableError",
    "TooManyRequestsError",
    "UnsupportedMediaTypeError",
]


class AgentRunServerError(Exception):
    """Base of every exception this package raises."""


class ConfigurationError(AgentRunServerError):
    """A setting, an argument or a combination of them cannot work; the message says what to change."""


class AgentError(AgentRunServerError):
    """Raise this in an agent to answer the caller with a message, a status and a code of your own.

    Any other exception becomes a plain 500 whose message tells the caller nothing of your code.
    After the first event of a stream the status can no longer change: message and code are sent in the stream.
    """

    def __init__(
        self, message: str, *, status_code: int = 500, code: str = "agent_error", param: str | None = None
    ) -> None:
        if not 400 <= status_code <= 599:
            raise ValueError(f"status_code must be between 400 and 599, not {status_code}")
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.code = code
        self.param = param


class GrammarError(AgentRunServerError):
    """An agent yielded an event that may not follow what it yielded before; see `agentrun_server.core.grammar`."""


class APIError(AgentRunServerError):
    """An answer to the caller: a status, OpenAI's error object, and extra response headers."""

    status_code: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status_code: int | None = None,
        type: str | None = None,  # noqa: A002 - the wire's name for it
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code if code is not None else self.default_code
        self.param = param
        self.headers = headers
        if status_code is not None:
            self.status_code = status_code  # type: ignore[misc] # one instance may differ from its class
        if type is not None:
            self.type = type  # type: ignore[misc]

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def retry_after(self, seconds: float) -> Self:
        """Ask the caller to come back after `seconds`; at most 60, which every client honours."""
        seconds = min(max(seconds, 0.05), 60.0)
        whole = max(1, int(seconds + 0.999))
        self.headers = (
            *self.headers,
            (b"retry-after", b"%d" % whole),
            (b"retry-after-ms", b"%d" % int(seconds * 1000)),
        )
        return self

    def no_retry(self) -> Self:
        """Tell stock clients not to send the request again: agent code has already run."""
        self.headers = (*self.headers, (b"x-should-retry", b"false"))
        return self


class InvalidRequestError(APIError):
    """The request cannot be understood or asks for something out of range."""

    status_code = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class AuthenticationError(APIError):
    """Nobody in front of the server has said who is calling."""

    status_code = 401
    type = "invalid_request_error"
    default_code = "missing_api_key"


class PermissionDeniedError(APIError):
    """The caller is known and may not do this."""

    status_code = 403
    type = "invalid_request_error"
    default_code = "insufficient_scope"


class NotFoundError(APIError):
    """Unknown path (``unknown_url``), model (``model_not_found``) or object."""

    status_code = 404
    type = "invalid_request_error"
    default_code = "unknown_url"


class MethodNotAllowedError(APIError):
    """The path exists, the method does not."""

    status_code = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class RequestTimeoutError(APIError):
    """The client did not send its request in time."""

    status_code = 408
    type = "invalid_request_error"
    default_code = "request_timeout"


class PayloadTooLargeError(APIError):
    """The request body is longer than `ServerConfig.max_body_bytes`."""

    status_code = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class UnsupportedMediaTypeError(APIError):
    """The body is compressed or not JSON."""

    status_code = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class TooManyRequestsError(APIError):
    """All places are taken and so is the queue."""

    status_code = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class AgentFailedError(APIError):
    """The agent raised, or yielded something that is not an answer."""

    status_code = 500
    type = "server_error"
    default_code = "agent_error"


class ServiceUnavailableError(APIError):
    """The server is starting, shutting down or overloaded."""

    status_code = 503
    type = "server_error"
    default_code = "service_unavailable"


class AgentTimeoutError(APIError):
    """The agent did not answer in time."""

    status_code = 504
    type = "server_error"
    default_code = "agent_timeout"
