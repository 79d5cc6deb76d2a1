"""How a turn looks on the wire of the Responses API. Values in, values out; nothing is sent from here.

Written from OpenAI's specification and recorded traffic, apart from the server's own encoder on purpose: each
is a check on the other.
"""

from collections.abc import Iterator, Mapping, Sequence

from agentrun_server.testing.fake_wire import CREATED, DONE, Frame, Json, call_id, estimate, frame
from agentrun_server.testing.turns import Piece, Turn, UpstreamError, joined

__all__ = ["ResponsesAnswer"]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}

_DEFAULTS: Mapping[str, object] = {
    "instructions": None,
    "previous_response_id": None,
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "store": True,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}


class ResponsesAnswer:
    """The answer of `turn` to the request `body`, the `number`-th the upstream got."""

    def __init__(self, turn: Turn, pieces: Sequence[Piece], body: Json, *, number: int) -> None:
        self._turn = turn
        self._pieces = pieces
        self._body = body
        self._number = number
        self._sequence = 0
        self._incomplete = _INCOMPLETE.get(turn.finish)
        self._usage = turn.usage or estimate(body.get("input"), pieces)
        self._items = self._all_items()
        self._done: list[Json] = []

    def document(self) -> Json:
        """Return the answer in one body."""
        return self._response(self._last_status, self._items)

    def frames(self) -> Iterator[Frame]:
        """Yield the answer as a stream, from ``response.created`` to ``[DONE]``."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress", [])), None
        for output_index, item in enumerate(self._items):
            match item["type"]:
                case "reasoning":
                    yield from self._reasoning(output_index, item)
                case "message":
                    yield from self._message(output_index, item)
                case _:
                    yield from self._function_call(output_index, item)
            self._done.append(item)
        last = self._event(f"response.{self._last_status}", response=self.document())
        yield last, len(self._pieces)
        yield DONE, None

    def failure(self, error: UpstreamError, *, sent: int) -> Iterator[bytes]:
        """Yield the end of a stream that breaks off with `error` after `sent` events."""
        self._sequence = sent
        told = error.body()["error"]
        flat = {key: told[key] for key in ("code", "message", "param")}
        yield self._event("error", **flat, error=told)
        failed = {
            **self._response("failed", self._done),
            "error": {"code": "server_error", "message": error.message},
            "completed_at": None,
        }
        yield self._event("response.failed", response=failed)
        yield DONE

    @property
    def _last_status(self) -> str:
        return "incomplete" if self._incomplete else "completed"

    # The items, finished.

    def _all_items(self) -> list[Json]:
        turn = self._turn
        items: list[Json] = []
        if turn.reasoning:
            summary = {"type": "summary_text", "text": joined(turn.reasoning)}
            items.append({"id": self._id("rs", 0), "type": "reasoning", "summary": [summary]})
        if turn.text or turn.refusal or not turn.tool_calls:
            items.append(
                {
                    "id": self._id("msg", len(items)),
                    "type": "message",
                    "role": "assistant",
                    "content": [_refusal(joined(turn.refusal)) if turn.refusal else _output_text(joined(turn.text))],
                }
            )
        for index, call in enumerate(turn.tool_calls):
            items.append(
                {
                    "id": self._id("fc", len(items)),
                    "type": "function_call",
                    "call_id": call_id(call, self._number, index),
                    "name": call.name,
                    "arguments": call.json_arguments,
                }
            )
        for item in items:
            item["status"] = "completed"
        if self._incomplete:
            items[-1]["status"] = "incomplete"
        return items

    def _id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self._number:024x}{index:024x}"

    # The stream of one item each.

    def _reasoning(self, output_index: int, item: Json) -> Iterator[Frame]:
        pieces = self._of("reasoning")
        place = {"item_id": item["id"], "output_index": output_index, "summary_index": 0}
        done = item["summary"][0]
        yield self._added(output_index, {**item, "summary": []}), pieces[0][0]
        empty = {"type": "summary_text", "text": ""}
        yield self._event("response.reasoning_summary_part.added", **place, part=empty), None
        for index, piece in pieces:
            yield self._event("response.reasoning_summary_text.delta", **place, delta=piece.text), index
        yield self._event("response.reasoning_summary_text.done", **place, text=done["text"]), None
        yield self._event("response.reasoning_summary_part.done", **place, part=done), None
        yield self._item_done(output_index, item), None

    def _message(self, output_index: int, item: Json) -> Iterator[Frame]:
        place = {"item_id": item["id"], "output_index": output_index, "content_index": 0}
        part = item["content"][0]
        refused = part["type"] == "refusal"
        pieces = self._of("refusal" if refused else "text")
        yield self._added(output_index, {**item, "content": []}), pieces[0][0] if pieces else None
        empty = _refusal("") if refused else _output_text("")
        yield self._event("response.content_part.added", **place, part=empty), None
        for index, piece in pieces:
            yield self._text_delta(place, piece, refused=refused), index
        if refused:
            yield self._event("response.refusal.done", **place, refusal=part["refusal"]), None
        else:
            yield self._event("response.output_text.done", **place, text=part["text"], logprobs=[]), None
        yield self._event("response.content_part.done", **place, part=part), None
        yield self._item_done(output_index, item), None

    def _text_delta(self, place: Json, piece: Piece, *, refused: bool) -> bytes:
        if refused:
            return self._event("response.refusal.delta", **place, delta=piece.text)
        return self._event("response.output_text.delta", **place, delta=piece.text, logprobs=[])

    def _function_call(self, output_index: int, item: Json) -> Iterator[Frame]:
        place = {"item_id": item["id"], "output_index": output_index}
        nth = sum(item["type"] == "function_call" for item in self._items[:output_index])
        pieces = [(index, piece) for index, piece in self._of("arguments") if piece.call == nth]
        yield self._added(output_index, {**item, "arguments": ""}), pieces[0][0] if pieces else None
        for index, piece in pieces:
            yield self._event("response.function_call_arguments.delta", **place, delta=piece.text), index
        whole = {"name": item["name"], "arguments": item["arguments"]}
        yield self._event("response.function_call_arguments.done", **place, **whole), None
        yield self._item_done(output_index, item), None

    def _of(self, kind: str) -> list[tuple[int, Piece]]:
        return [(index, piece) for index, piece in enumerate(self._pieces) if piece.kind == kind]

    def _added(self, output_index: int, item: Json) -> bytes:
        item = {**item, "status": "in_progress"}
        return self._event("response.output_item.added", output_index=output_index, item=item)

    def _item_done(self, output_index: int, item: Json) -> bytes:
        return self._event("response.output_item.done", output_index=output_index, item=item)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return frame(data, event=kind)

    # The response object, with every key the API has.

    def _response(self, status: str, output: list[Json]) -> Json:
        body = self._body
        sent = {key: value for key, value in body.items() if value is not None}
        over = status in ("completed", "incomplete")
        response = {
            "id": f"resp_{self._number:048x}",
            "object": "response",
            "created_at": CREATED,
            "completed_at": CREATED if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": self._incomplete} if status == "incomplete" else None,
            "model": body["model"],
            "output": list(output),
            **{key: sent.get(key, default) for key, default in _DEFAULTS.items()},
            "service_tier": "default",
            "tools": [_echoed(tool) for tool in sent.get("tools", [])],
            "text": {"format": {"type": "text"}, **sent.get("text", {})},
            "reasoning": {"effort": None, "summary": None, **sent.get("reasoning", {})},
            "usage": self._usage_object() if over else None,
        }
        if "user" in sent:
            response["user"] = sent["user"]
        if "conversation" in sent:
            conversation = sent["conversation"]
            response["conversation"] = {"id": conversation} if isinstance(conversation, str) else conversation
        return response

    def _usage_object(self) -> Json:
        usage = self._usage
        return {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }


def _output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _refusal(text: str) -> Json:
    return {"type": "refusal", "refusal": text}


def _echoed(tool: Json) -> Json:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": True, **tool}
