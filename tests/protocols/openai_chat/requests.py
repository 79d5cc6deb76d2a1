"""Requests, and the errors they get, from the reader alone."""

from collections.abc import Mapping
from typing import Any

import pytest

from agentrun_server.core.request import AgentRequest, Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_chat.decode import ChatOptions, decode

__all__ = ["USER", "options_of", "read", "refused"]

USER = {"role": "user", "content": "Hi"}


def read(body: Mapping[str, Any] | None = None, /, **settings: Any) -> tuple[AgentRequest, ChatOptions]:
    """Read a request that has a model and one message, and the fields of `body`."""
    return decode({"model": "m", "messages": [dict(USER)], **(body or {})}, Headers(), **settings)


def options_of(body: Mapping[str, Any] | None = None, /, **settings: Any) -> ChatOptions:
    """Return what the answer must look like."""
    return read(body, **settings)[1]


def refused(body: Mapping[str, Any], /, **settings: Any) -> tuple[str | None, str | None]:
    """Return the param and the code of the error that the fields of `body` get."""
    with pytest.raises(InvalidRequestError) as raised:
        read(body, **settings)
    error = raised.value
    assert error.status_code == 400
    assert error.type == "invalid_request_error"
    assert error.message
    return error.param, error.code
