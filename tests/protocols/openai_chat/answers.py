"""Answers from the encoders alone: what an agent says goes in, the wire comes out. No server, no event loop."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from agentrun_server.core.events import TypedEvent
from agentrun_server.errors import AgentFailedError, APIError, GrammarError
from agentrun_server.invoker.coerce import coerce
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from tests.support.chat_oracle import ParsedChoice, ParsedStream, check_chat_stream, check_completion

__all__ = [
    "ALLOWED",
    "CREATED",
    "ID",
    "MODEL",
    "PROMPT_TOKENS",
    "Counter",
    "body_of",
    "chunk_encoder",
    "chunks_of",
    "completion_of",
    "judged",
    "judged_body",
    "options",
    "same_text",
    "stream_of",
    "summary",
    "texts_said",
]

ID = "chatcmpl-0123"
CREATED = 1_700_000_000
MODEL = "mo\u2028del"
PROMPT_TOKENS = 7
ALLOWED = (APIError, GrammarError, TypeError)
"""What an encoder, or the reading of what an agent yields, may raise."""


class Counter:
    """Makes ids that a test can foresee: ``call_1``, ``call_2`` and so on, counted for each prefix."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, prefix: str = "") -> str:
        count = self._counts[prefix] = self._counts.get(prefix, 0) + 1
        return f"{prefix}{count}" if prefix else f"{count:032d}"


def options(**changes: Any) -> ChatOptions:
    """Return the options of a request that asks for nothing special, with `changes`.

    ``tools=["a", "b"]`` declares function tools.
    """
    names = changes.pop("tools", ())
    changes.setdefault("client_tools", dict.fromkeys(names, "function"))
    return ChatOptions(**changes)


def chunk_encoder(options: ChatOptions, settings: ChatSettings | None = None) -> ChunkEncoder:
    """Return an encoder for one stream."""
    return ChunkEncoder(
        options,
        settings or ChatSettings(),
        Counter(),
        id=ID,
        created=CREATED,
        model=MODEL,
        prompt_tokens=lambda: PROMPT_TOKENS,
    )


def _feed(items: Iterable[Any], encoder: ChunkEncoder | CompletionEncoder, written: list[str]) -> None:
    """Do what the server's pump does: stop when nothing more would be shown."""
    for item in items:
        for event in coerce(item):
            if encoder.ended:
                return
            written.append(encoder.feed(event))


def stream_of(
    items: Sequence[Any], options: ChatOptions, settings: ChatSettings | None = None
) -> tuple[bytes, BaseException | None]:
    """Return the stream of an agent that yields `items`, once for each choice, and what was raised, if anything."""
    encoder = chunk_encoder(options, settings)
    written: list[str] = []
    raised: BaseException | None = None
    try:
        for left in range(options.n - 1, -1, -1):
            _feed(items, encoder, written)
            written.append(encoder.finish_choice(more=left > 0))
        written.append(encoder.finish())
    except ALLOWED as exc:
        raised = exc
        error = exc if isinstance(exc, APIError) else AgentFailedError("The agent failed to answer.")
        written.append(encoder.fail(error))
    return "".join(written).encode(), raised


def completion_of(
    items: Sequence[Any], options: ChatOptions, settings: ChatSettings | None = None
) -> tuple[dict[str, Any] | None, BaseException | None]:
    """Return the one body of an agent that yields `items`, or what was raised."""
    encoder = CompletionEncoder(options, settings or ChatSettings(), Counter())
    try:
        for left in range(options.n - 1, -1, -1):
            _feed(items, encoder, [])
            encoder.finish_choice(more=left > 0)
    except ALLOWED as exc:
        return None, exc
    usage = encoder.usage(lambda: PROMPT_TOKENS)
    body: dict[str, Any] = json.loads(encoder.completion(id=ID, created=CREATED, model=MODEL, usage=usage))
    return body, None


def chunks_of(items: Sequence[Any], settings: ChatSettings | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Return the JSON of every event but the last, which must be ``[DONE]``."""
    body, error = stream_of(items, options(**changes), settings)
    if error is not None:
        raise error
    *data, done, end = body.decode().split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in data]


def body_of(items: Sequence[Any], settings: ChatSettings | None = None, **changes: Any) -> dict[str, Any]:
    """Return the answer in one body."""
    body, error = completion_of(items, options(**changes), settings)
    if error is not None:
        raise error
    assert body is not None
    return body


def judged(body: bytes, options: ChatOptions) -> ParsedStream:
    """Let the independent judge check a stream, with what the request asked for."""
    return check_chat_stream(
        body,
        include_usage=options.include_usage,
        n=options.n,
        logprobs=options.logprobs,
        obfuscation=options.include_obfuscation,
    )


def judged_body(body: dict[str, Any], options: ChatOptions) -> ParsedStream:
    """Let the independent judge check an answer in one body."""
    return check_completion(body, n=options.n, logprobs=options.logprobs)


def same_text(text: str) -> str:
    """Return `text` as every reader of JSON sees it: two halves of a surrogate pair are one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def summary(choice: ParsedChoice) -> dict[str, Any]:
    """Return what a stream and a body must have in common."""
    calls = [(same_text(c.id), same_text(c.name), same_text(c.arguments)) for c in choice.tool_calls]
    called = choice.function_call
    return {
        "content": same_text(choice.content),
        "reasoning": same_text(choice.reasoning),
        "refusal": same_text(choice.refusal),
        "tool_calls": calls,
        "function_call": called and (same_text(called.name), same_text(called.arguments)),
        "annotations": choice.annotations,
        "finish_reason": choice.finish_reason,
    }


def texts_said(items: Iterable[Any]) -> list[str | TypedEvent]:
    """Return what `items` mean, as `coerce` tells it."""
    return [event for item in items for event in coerce(item)]
