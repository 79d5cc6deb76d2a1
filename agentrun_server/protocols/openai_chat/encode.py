"""Writing a Chat Completions answer: a stream of chunks, or one completion.

Rules are those of the OpenAI specification and of what its clients do with each byte: the role once and first, the same
id, model and time on every chunk, one finish reason a choice and nothing behind it, usage only when asked for, an error
as ``{"error": …}`` without a finish chunk, ``[DONE]`` last.
"""

from collections.abc import Callable, Mapping
from typing import Any

from agentrun_server.core.events import Addition, TypedEvent
from agentrun_server.core.grammar import CallPiece
from agentrun_server.core.usage import Usage, estimate_tokens, utf8_size
from agentrun_server.errors import APIError
from agentrun_server.protocols.json_text import dumps, quote, quote_of
from agentrun_server.protocols.openai_chat.decode import ChatOptions
from agentrun_server.protocols.openai_chat.turn import OWN_KEYS, ChatSettings, Turn
from agentrun_server.protocols.turn import MAX_PIECE

__all__ = ["ChunkEncoder", "CompletionEncoder", "plain_completion"]

_DONE = "data: [DONE]\n\n"
_ROLE_WITHOUT_TEXT = '{"role":"assistant","content":null}'


class ChunkEncoder(Turn):
    """Writes server-sent events."""

    __slots__ = ("_head", "_index", "_is_open", "_prompt_tokens", "_tail", "_text_head", "_text_tail")

    def __init__(
        self,
        options: ChatOptions,
        settings: ChatSettings,
        new_id: Callable[[str], str],
        *,
        id: str,  # noqa: A002 - the wire's name for it
        created: int,
        model: str,
        prompt_tokens: Callable[[], int],
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._index = -1
        # quote(id) is not needed: ids are made by the server from letters and digits.
        self._head = (
            f'data: {{"id":"{id}","object":"chat.completion.chunk","created":{created},"model":{quote(model)},'
            '"service_tier":"default"'
        )
        super().__init__(options, settings, new_id)

    def _begin(self) -> None:
        super()._begin()
        self._index += 1
        self._is_open = False  # the role has been sent
        usage = ',"usage":null' if self._options.include_usage else ""
        self._tail = f',"logprobs":null,"finish_reason":null}}]{usage}}}\n\n'
        self._text_head = f'{self._head},"choices":[{{"index":{self._index},"delta":{{"content":'
        self._text_tail = "}" + self._tail

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; return the chunks it becomes."""
        # The path of almost every token: plain text in an answer that is text already.
        if type(item) is str and self.plain:
            size = len(item) if item.isascii() else utf8_size(item)
            self.text_bytes = total = self.text_bytes + size
            if size <= MAX_PIECE and total <= self._max_bytes:
                return f"{self._text_head}{quote(item)}{self._text_tail}"
            self.text_bytes = total - size
        return super().feed(item)

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of plain text, one chunk each: as `feed` for each, at a quarter of its cost."""
        text = "".join(texts)
        size = utf8_size(text)
        if size > MAX_PIECE or self.text_bytes + size > self._max_bytes:
            return "".join([self.feed(piece) for piece in texts])
        self.text_bytes += size
        between = f"{self._text_tail}{self._text_head}"
        return f"{self._text_head}{between.join(map(quote_of(text), texts))}{self._text_tail}"

    def finish_choice(self, *, more: bool = False) -> str:
        """End this choice with its finish reason; with `more`, begin the next."""
        written = self.close()
        written += self._opened(text=True)
        usage = ',"usage":null' if self._options.include_usage else ""
        written += (
            f'{self._head},"choices":[{{"index":{self._index},"delta":{{}},"logprobs":null,'
            f'"finish_reason":"{self.finish_reason}"}}]{usage}}}\n\n'
        )
        if more:
            self._begin()
        return written

    def finish(self) -> str:
        """End the stream: usage when it was asked for, and the end mark."""
        if not self._options.include_usage:
            return _DONE
        usage = _usage_object(self.usage(self._prompt_tokens))
        return f'{self._head},"choices":[],"usage":{usage}}}\n\n{_DONE}'

    @staticmethod
    def fail(error: APIError) -> str:
        """End the stream with an error. No finish reason: the answer is not whole."""
        return f"data: {dumps(error.body())}\n\n{_DONE}"

    # --- writing

    def _chunk(self, delta: str, logprobs: Mapping[str, Any] | None = None, extra: str = "") -> str:
        tail = self._tail
        if logprobs is not None:
            tail = tail.replace('"logprobs":null', f'"logprobs":{dumps(_join_logprobs([logprobs]))}', 1)
        if self._options.include_obfuscation and delta != "{}":
            # Padding hides the length of each piece from someone who watches the encrypted stream.
            extra += f',"obfuscation":"{self._new_id("")[: 16 - len(delta) % 16]}"'
        if extra:
            tail = tail[: -len("}\n\n")] + extra + "}\n\n"
        return f'{self._head},"choices":[{{"index":{self._index},"delta":{delta}{tail}'

    def _opened(self, *, text: bool = False) -> str:
        """Return the chunk that opens the choice, if it is not open yet."""
        if text:
            self.plain = self._stop is None and not self._options.include_obfuscation and not self.ended
        if self._is_open:
            return ""
        self._is_open = True
        return self._chunk('{"role":"assistant","content":"","refusal":null}' if text else _ROLE_WITHOUT_TEXT)

    def _write_text(
        self, text: str, logprobs: Mapping[str, Any] | None = None, addition: Addition | None = None
    ) -> str:
        written = self._opened(text=True)
        if addition is not None:
            return written + self._chunk(dumps(self._with_addition({"content": text}, addition)), logprobs)
        for start in range(0, len(text), MAX_PIECE):
            piece = text if len(text) <= MAX_PIECE else text[start : start + MAX_PIECE]
            written += self._chunk(f'{{"content":{quote(piece)}}}', logprobs)
            logprobs = None
        return written

    def _write_reasoning(self, text: str, addition: Addition | None) -> str:
        fields = _reasoning_fields(text, self._settings)
        if addition is not None:
            fields = self._with_addition(fields, addition)
        return self._opened() + self._chunk(dumps(fields)) if fields else ""

    def _write_refusal(self, text: str) -> str:
        return self._opened() + self._chunk(f'{{"refusal":{quote(text)}}}')

    def _write_call(self, piece: CallPiece, addition: Addition | None) -> str:
        written = self._opened()
        call = piece.call
        added = self._with_addition({}, addition)
        more = "".join(f",{quote(key)}:{dumps(value)}" for key, value in added.items())
        if self._options.legacy_functions:
            name = f'"name":{quote(call.name)},' if piece.opens else ""
            return written + self._chunk(f'{{"function_call":{{{name}"arguments":{quote(piece.arguments)}}}{more}}}')
        kind, key = ("function", "arguments") if call.client == "function" else ("custom", "input")
        if piece.opens:
            # The first piece has no arguments: some clients do not look for any there.
            opening = (
                f'{{"index":{call.index},"id":{quote(call.id)},"type":"{kind}",'
                f'"{kind}":{{"name":{quote(call.name)},"{key}":""}}}}'
            )
            written += self._chunk(f'{{"tool_calls":[{opening}]}}')
        if piece.arguments or more:
            rest = f'{{"tool_calls":[{{"index":{call.index},"{kind}":{{"{key}":{quote(piece.arguments)}}}}}]'
            written += self._chunk(f"{rest}{more}}}")
        return written

    def _write_annotations(self, annotations: list[dict[str, Any]]) -> str:
        return self._opened() + self._chunk(f'{{"annotations":{dumps(annotations)}}}')

    def _write_activity(self, event: dict[str, Any]) -> str:
        return self._opened() + self._chunk("{}", extra=f',"x_agent":{dumps(event)}')

    def _write_raw(self, raw: str) -> str:
        raw = raw.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
        raw = raw.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
        return f"{raw}\n\n" if raw else ""


class CompletionEncoder(Turn):
    """Collects choices and writes one ``chat.completion`` object."""

    __slots__ = ("_addition", "_choices", "_logprobs", "_reasoning_parts", "_refusals", "_texts")

    def __init__(self, options: ChatOptions, settings: ChatSettings, new_id: Callable[[str], str]) -> None:
        self._choices: list[str] = []
        super().__init__(options, settings, new_id)

    def _begin(self) -> None:
        super()._begin()
        self.plain = self._stop is None
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._reasoning_parts: list[str] = []
        self._logprobs: list[Mapping[str, Any]] = []
        self._addition: list[Addition] = []

    def feed(self, item: str | TypedEvent) -> str:
        """Take the next item; nothing is written before the end."""
        if type(item) is str and self.plain:
            total = self.text_bytes + utf8_size(item)
            if total <= self._max_bytes:
                self.text_bytes = total
                self._texts.append(item)
                return ""
        return super().feed(item)

    def feed_texts(self, texts: list[str]) -> str:
        """Take pieces of plain text; nothing is written before the end."""
        for piece in texts:
            self.feed(piece)
        return ""

    @property
    def text(self) -> str:
        """What the choice says so far."""
        return "".join(self._texts)

    def finish_choice(self, *, more: bool = False) -> str:
        """End this choice; with `more`, begin the next."""
        self.close()
        logprobs = "null"
        if self._logprobs:
            logprobs = dumps(_join_logprobs(self._logprobs))
        self._choices.append(_choice(len(self._choices), self._message(), logprobs, self.finish_reason))
        if more:
            self._begin()
        return ""

    def completion(self, *, id: str, created: int, model: str, usage: Usage) -> str:  # noqa: A002
        """Return the whole answer as JSON text."""
        activity = f',"x_agent":{{"events":{dumps(self._activity)}}}' if self._activity else ""
        return _completion(id, created, model, ",".join(self._choices), usage, activity)

    def _message(self) -> str:
        texts = self._texts
        calls = self._calls.client_calls if self._calls is not None else ()
        content = quote("".join(texts)) if texts else ("null" if calls or self._refusals else '""')
        refusal = quote("".join(self._refusals)) if self._refusals else "null"
        message = f'{{"role":"assistant","content":{content},"refusal":{refusal},"annotations":'
        message += dumps(self._annotations) if self._annotations else "[]"
        more: dict[str, Any] = {}
        if self._reasoning_parts:
            more = _reasoning_fields("".join(self._reasoning_parts), self._settings)
        for addition in self._addition:
            more = merge_message(more, addition)
        if calls and self._options.legacy_functions:
            more["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            more["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                if c.client == "function"
                else {"id": c.id, "type": "custom", "custom": {"name": c.name, "input": c.arguments}}
                for c in calls
            ]
        if more:
            message += "," + dumps(more)[1:-1]
        return message + "}"

    def _write_text(
        self, text: str, logprobs: Mapping[str, Any] | None = None, addition: Addition | None = None
    ) -> str:
        self._texts.append(text)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if addition is not None:
            self._addition.append(addition)
        return ""

    def _write_reasoning(self, text: str, addition: Addition | None) -> str:
        self._reasoning_parts.append(text)
        if addition is not None:
            self._addition.append(addition)
        return ""

    def _write_refusal(self, text: str) -> str:
        self._refusals.append(text)
        return ""

    def _write_call(self, piece: CallPiece, addition: Addition | None) -> str:  # noqa: ARG002
        if addition is not None:
            self._addition.append(addition)
        return ""  # the calls are in the book

    def _write_annotations(self, annotations: list[dict[str, Any]]) -> str:  # noqa: ARG002
        return ""  # in the message

    def _write_activity(self, event: dict[str, Any]) -> str:
        self._activity.append(event)
        return ""

    def _write_raw(self, raw: str) -> str:  # noqa: ARG002
        return ""  # server-sent events have no place in a JSON body


def merge_message(fields: dict[str, Any], addition: Addition) -> dict[str, Any]:
    """Merge one event's addition into a message; strings of the same key are joined, as a client joins deltas."""
    result = dict(fields)
    if addition.options.get("no_new_field"):
        return result  # the fields of the protocol's own cannot be changed
    for key, value in addition.fields.items():
        if key in OWN_KEYS:
            continue
        old = result.get(key)
        result[key] = old + value if isinstance(old, str) and isinstance(value, str) else value
    return result


def _reasoning_fields(text: str, settings: ChatSettings) -> dict[str, Any]:
    match settings.reasoning_field:
        case "both":
            return {"reasoning_content": text, "reasoning": text}
        case "none":
            return {}
        case field:
            return {field: text}


def plain_completion(text: str, *, id: str, created: int, model: str, prompt_tokens: int) -> str:  # noqa: A002
    """Return the ``chat.completion`` of an agent that returned `text` and nothing else, as JSON text.

    What `CompletionEncoder` writes for it, without its bookkeeping.
    """
    message = f'{{"role":"assistant","content":{quote(text)},"refusal":null,"annotations":[]}}'
    usage = Usage(prompt_tokens, estimate_tokens(text))
    return _completion(id, created, model, _choice(0, message, "null", "stop"), usage, "")


def _choice(index: int, message: str, logprobs: str, finish_reason: str) -> str:
    return f'{{"index":{index},"message":{message},"logprobs":{logprobs},"finish_reason":"{finish_reason}"}}'


def _completion(id: str, created: int, model: str, choices: str, usage: Usage, activity: str) -> str:  # noqa: A002
    return (
        f'{{"id":"{id}","object":"chat.completion","created":{created},"model":{quote(model)},'
        f'"service_tier":"default","choices":[{choices}],"usage":{_usage_object(usage)}{activity}}}'
    )


def _usage_object(usage: Usage) -> str:
    # Written out: this is a third of the cost of a small completion when left to the general encoder.
    return (
        f'{{"prompt_tokens":{usage.input_tokens},"completion_tokens":{usage.output_tokens},'
        f'"total_tokens":{usage.input_tokens + usage.output_tokens},'
        f'"prompt_tokens_details":{{"cached_tokens":{usage.cached_tokens},"audio_tokens":0}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{usage.reasoning_tokens},"audio_tokens":0,'
        '"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
    )


def _join_logprobs(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the logprobs of all pieces into the one object of a completion."""
    joined: dict[str, Any] = {"content": None, "refusal": None}
    for part in parts:
        joined = {key: [*(old or []), *(part.get(key) or [])] or None for key, old in joined.items()}
    return joined
