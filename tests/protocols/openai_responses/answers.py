"""Requests and answers from the translators alone: no server, no event loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from agentrun_server.core.request import Headers
from agentrun_server.errors import AgentFailedError, APIError, GrammarError, InvalidRequestError
from agentrun_server.invoker.coerce import coerce
from agentrun_server.protocols.openai_responses.decode import ResponsesCall, decode
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings
from tests.support.responses_oracle import ParsedResponse, check_response_stream

__all__ = [
    "ALLOWED",
    "COMPLETED",
    "CREATED",
    "FUNCTION",
    "ID",
    "PROMPT_TOKENS",
    "Counter",
    "body_of",
    "call_of",
    "encoder_of",
    "feed",
    "finish",
    "judged",
    "refused",
    "stream_of",
]

ID = "resp_0123"
CREATED = 1_700_000_000
COMPLETED = CREATED + 5
PROMPT_TOKENS = 7
ALLOWED = (APIError, GrammarError, TypeError)
"""What an encoder, or the reading of what an agent yields, may raise."""
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}

End = Callable[[ResponseEncoder], str]


class Counter:
    """Makes ids that a test can foresee: ``msg_1``, ``msg_2`` and so on, counted for each prefix."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, prefix: str = "") -> str:
        count = self._counts[prefix] = self._counts.get(prefix, 0) + 1
        return f"{prefix}{count}" if prefix else f"{count:032d}"


def call_of(body: Mapping[str, Any] | None = None, /, **settings: Any) -> ResponsesCall:
    """Read a request that has a model and an input, and the fields of `body`."""
    return decode({"model": "m", "input": "Hi", **(body or {})}, Headers(), Counter(), **settings)


def refused(body: Mapping[str, Any], /, **settings: Any) -> tuple[str | None, str | None]:
    """Return the param and the code of the error that the fields of `body` get."""
    with pytest.raises(InvalidRequestError) as raised:
        call_of(body, **settings)
    error = raised.value
    assert (error.status_code, error.type) == (400, "invalid_request_error")
    assert error.message
    return error.param, error.code


def encoder_of(
    body: Mapping[str, Any] | None = None,
    settings: ResponseSettings | None = None,
    new_id: Callable[[str], str] | None = None,
) -> ResponseEncoder:
    """Return an encoder for the answer to a request with the fields of `body`."""
    return ResponseEncoder(
        call_of(body),
        settings or ResponseSettings(),
        new_id or Counter(),
        id=ID,
        created_at=CREATED,
        prompt_tokens=lambda: PROMPT_TOKENS,
    )


def finish(encoder: ResponseEncoder) -> str:
    """End the response as the server does."""
    return encoder.finish(COMPLETED)


def stream_of(
    items: Iterable[Any],
    body: Mapping[str, Any] | None = None,
    settings: ResponseSettings | None = None,
    end: End = finish,
) -> tuple[bytes, BaseException | None]:
    """Return the stream of an agent that yields `items`, and what was raised, if anything."""
    encoder = encoder_of(body, settings)
    written: list[str] = []
    raised: BaseException | None = None
    try:
        feed(items, encoder, written)
        written.append(end(encoder))
    except ALLOWED as exc:
        raised = exc
        error = exc if isinstance(exc, APIError) else AgentFailedError("The agent failed to answer.")
        written.append(encoder.fail(error))
    return "".join(written).encode(), raised


def feed(items: Iterable[Any], encoder: ResponseEncoder, written: list[str]) -> None:
    """Do what the server's pump does: stop when nothing more would be shown."""
    for item in items:
        for event in coerce(item):
            if encoder.ended:
                return
            written.append(encoder.feed(event))


def judged(
    items: Sequence[Any],
    body: Mapping[str, Any] | None = None,
    settings: ResponseSettings | None = None,
    end: End = finish,
) -> ParsedResponse:
    """Return what the stream of an agent that yields `items` says; the judge accepts it, and nothing was raised."""
    stream, raised = stream_of(items, body, settings, end)
    if raised is not None:
        raise raised
    asked = ((body or {}).get("stream_options") or {}).get("include_obfuscation")
    return check_response_stream(stream, obfuscation=bool(asked))


def body_of(items: Sequence[Any], body: Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Return the response in one body: the same encoder, whose stream nobody reads."""
    encoder = encoder_of(body, ResponseSettings(**settings))
    feed(items, encoder, [])
    encoder.finish(COMPLETED)
    assert encoder.response is not None
    return encoder.response
