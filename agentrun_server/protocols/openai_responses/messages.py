"""From items to the messages an agent is given, in the form of Chat Completions.

One assistant message holds what the assistant did before it waited for somebody: its reasoning, its text and its calls,
in that order. The answers to its calls stand right behind it, wherever the client put them, because that is what every
model's API wants. Calls of the agent's own tools (``mcp_call``) come with what they returned, and approvals as calls
that a human answered. Items that no message can hold (``mcp_list_tools``, types nobody knows) are left out.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from agentrun_server.core.messages import Message, MessageRole
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.json_text import dumps
from agentrun_server.protocols.openai_responses.items import Item
from agentrun_server.protocols.openai_responses.parts import chat_content

__all__ = ["to_messages"]

_CLIENT_CALLS = {"function_call": "function_call_output", "custom_tool_call": "custom_tool_call_output"}
_OUTPUTS = frozenset(_CLIENT_CALLS.values())
_MAX_SHOWN = 64
"""Characters of a call's id that an error repeats."""


def to_messages(items: Sequence[Item], instructions: str | None = None) -> list[Message]:
    """Return the conversation: history and input, oldest first, without references and compactions.

    Raises:
        InvalidRequestError: an output has no call before it, or a call has no output.
    """
    answers = _answers(items)
    builder = _Builder()
    if instructions is not None:
        builder.messages.append(Message(role=MessageRole.SYSTEM.value, content=instructions))
    for place, item in enumerate(items):
        builder.take(item, answers.get(place))
    builder.flush()
    return builder.messages


def _answers(items: Sequence[Item]) -> dict[int, Item]:
    """Return what answers each call, by its place in `items`; check that every call of the client's has an answer.

    An id may be used again: an answer belongs to the last call before it.
    """
    called: dict[str, int] = {}
    answers: dict[int, Item] = {}
    for place, item in enumerate(items):
        kind = item["type"]
        if kind in _CLIENT_CALLS:
            called[item["call_id"]] = place
        elif kind == "mcp_approval_request":
            called[item["id"]] = place
        elif kind in _OUTPUTS:
            call = called.get(item["call_id"])
            if call is None or _CLIENT_CALLS.get(items[call]["type"]) != kind:
                _refuse(f"No tool call found for {kind.replace('_', ' ')} with call_id '{_shown(item['call_id'])}'.")
            answers[call] = item
        elif kind == "mcp_approval_response":
            call = called.get(item["approval_request_id"])
            if call is None or items[call]["type"] != "mcp_approval_request":
                _refuse(f"No approval request found with id '{item['approval_request_id']}'.")
            answers[call] = item
    for place, item in enumerate(items):
        # A call that was cut off was never the client's to answer.
        if item["type"] in _CLIENT_CALLS and place not in answers and item.get("status") != "incomplete":
            _refuse(f"No tool output found for {item['type'].replace('_', ' ')} {_shown(item['call_id'])}.")
    return answers


def _shown(call_id: str) -> str:
    return call_id if len(call_id) <= _MAX_SHOWN else f"{call_id[:_MAX_SHOWN]}…"


def _refuse(message: str) -> NoReturn:
    raise InvalidRequestError(message, code="invalid_value", param="input")


class _Builder:
    """Puts messages together; `assistant` is the one that is not complete yet."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._assistant: dict[str, Any] = {}
        self._reasoning: list[str] = []
        self._results: list[Message] = []

    def take(self, item: Item, answer: Item | None) -> None:
        """Take the next item of the conversation; for a call, with what answers it."""
        match item["type"]:
            case "message":
                self._take_message(item)
            case "reasoning":
                self._take_reasoning(item)
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                self._take_client_call(item["call_id"], "function", function, answer)
            case "custom_tool_call":
                custom = {"name": item["name"], "input": item["input"]}
                self._take_client_call(item["call_id"], "custom", custom, answer)
            case "mcp_call":
                self._take_own_call(item, _result(item))
            case "mcp_approval_request":
                if answer is not None:  # one that nobody answered is over
                    said = {"approve": answer["approve"], "reason": answer.get("reason")}
                    self._take_own_call(item, dumps(said))
            case kind if kind in _OUTPUTS:
                self.flush()  # the answer itself is there already, behind its call
            case _:
                pass

    def _take_message(self, item: Item) -> None:
        if item["role"] != "assistant":
            self.flush()
            self.messages.append(Message(role=item["role"], content=chat_content(item["content"])))
            return
        if "content" in self._assistant or "tool_calls" in self._assistant:
            self.flush()
        refusals = [part["refusal"] for part in item["content"] if part["type"] == "refusal"]
        said = [part for part in item["content"] if part["type"] != "refusal"]
        self._assistant["content"] = chat_content(said) if said or not refusals else None
        if refusals:
            self._assistant["refusal"] = "".join(refusals)

    def _take_reasoning(self, item: Item) -> None:
        if "content" in self._assistant or "tool_calls" in self._assistant:
            self.flush()
        self._reasoning += [part["text"] for part in item["summary"] or item.get("content") or () if part.get("text")]

    def _take_client_call(self, call_id: str, kind: str, body: dict[str, Any], answer: Item | None) -> None:
        if answer is None:
            return
        output = answer["output"]
        content = output if isinstance(output, str) else chat_content(output)
        self._call(call_id, kind, body, content)

    def _take_own_call(self, item: Item, result: str) -> None:
        if "tool_calls" in self._assistant:
            self.flush()
        self._call(item["id"], "function", {"name": item["name"], "arguments": item["arguments"]}, result)
        self.flush()

    def _call(self, call_id: str, kind: str, body: dict[str, Any], content: Any) -> None:
        calls = self._assistant.setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": kind, kind: body})
        self._results.append(Message(role=MessageRole.TOOL.value, tool_call_id=call_id, content=content))

    def flush(self) -> None:
        """End the assistant's message; nothing happens when it has said and done nothing."""
        if "content" in self._assistant or "tool_calls" in self._assistant:
            # Joined once: there may be thousands, and megabytes of them.
            thought = {"reasoning_content": "\n\n".join(self._reasoning)} if self._reasoning else {}
            said = {"role": MessageRole.ASSISTANT.value, "content": None, **thought, **self._assistant}
            self.messages.append(Message(said))
        self.messages += self._results
        self._assistant, self._reasoning, self._results = {}, [], []


def _result(item: Item) -> str:
    """Return what a tool of the agent's own returned, or what went wrong."""
    output = item.get("output")
    if output is not None:
        return str(output)
    error = item.get("error")
    if error is None:
        return ""
    if isinstance(error, dict) and isinstance(error.get("content"), list):
        return "".join(part["text"] for part in error["content"] if isinstance(part, dict) and _is_text(part))
    return error if isinstance(error, str) else dumps(error)


def _is_text(part: dict[str, Any]) -> bool:
    return isinstance(part.get("text"), str)
