"""The exception tree: what a caller is told, and what a client does with it."""

from typing import Any

import pytest

from agentrun_server import errors
from agentrun_server.errors import AgentError, AgentRunServerError, APIError, InvalidRequestError

ANSWERS = {
    "InvalidRequestError": (400, "invalid_request_error", "invalid_value"),
    "NotFoundError": (404, "invalid_request_error", "unknown_url"),
    "MethodNotAllowedError": (405, "invalid_request_error", "method_not_allowed"),
    "RequestTimeoutError": (408, "invalid_request_error", "request_timeout"),
    "PayloadTooLargeError": (413, "invalid_request_error", "request_too_large"),
    "UnsupportedMediaTypeError": (415, "invalid_request_error", "unsupported_media_type"),
    "TooManyRequestsError": (429, "rate_limit_error", "rate_limit_exceeded"),
    "AgentFailedError": (500, "server_error", "agent_error"),
    "ServiceUnavailableError": (503, "server_error", "service_unavailable"),
    "AgentTimeoutError": (504, "server_error", "agent_timeout"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_answer_has_its_status_type_and_code(name: str) -> None:
    kind: type[APIError] = getattr(errors, name)
    status, type_, code = ANSWERS[name]
    error = kind("No.")
    assert isinstance(error, APIError)
    assert error.status_code == status
    assert error.body() == {"error": {"message": "No.", "type": type_, "param": None, "code": code}}
    assert str(error) == "No."
    assert error.headers == ()


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {word for word in (errors.__doc__ or "").replace("─", " ").split() if word.endswith("Error")}
    assert set(errors.__all__) <= drawn
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, AgentRunServerError)
        assert kind.__doc__


def test_one_answer_may_differ_from_its_class() -> None:
    error = InvalidRequestError("No.", code="c", param="p", status_code=402, type="t")
    assert (error.status_code, InvalidRequestError.status_code) == (402, 400)
    assert error.body() == {"error": {"message": "No.", "type": "t", "param": "p", "code": "c"}}
    assert InvalidRequestError("No.").type == "invalid_request_error"


def test_advice_to_clients_is_added_to_the_headers() -> None:
    error = APIError("No.", headers=((b"allow", b"GET"),))
    assert error.no_retry() is error
    assert error.retry_after(1.5) is error
    assert error.headers == (
        (b"allow", b"GET"),
        (b"x-should-retry", b"false"),
        (b"retry-after", b"2"),
        (b"retry-after-ms", b"1500"),
    )


def test_advice_of_one_error_is_not_that_of_its_class() -> None:
    APIError("No.").no_retry()
    assert APIError("No.").headers == ()


def test_an_agent_error_holds_what_the_agent_wants_to_say() -> None:
    error = AgentError("No.", status_code=402, code="c", param="p")
    assert (error.message, error.status_code, error.code, error.param, str(error)) == ("No.", 402, "c", "p", "No.")
    plain = AgentError("No.")
    assert (plain.status_code, plain.code, plain.param) == (500, "agent_error", None)


@pytest.mark.parametrize("status", [200, 302, 399, 600, -1, 0])
def test_an_agent_error_is_an_error(status: Any) -> None:
    with pytest.raises(ValueError, match="between 400 and 599"):
        AgentError("No.", status_code=status)
