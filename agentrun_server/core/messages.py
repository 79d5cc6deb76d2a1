"""Messages and tools of a conversation, in OpenAI's shape.

They are dictionaries with attributes. A message goes on as it came: `client.chat.completions.create(messages=
request.messages)`, LangChain's ``{"messages": request.messages}`` and `json.dumps` all take it, unknown keys included,
and ``message.role``, ``message.content`` and ``message.text`` read well in an agent.
"""

from enum import StrEnum
from typing import Any, cast

__all__ = ["ContentPart", "Message", "MessageRole", "Tool", "ToolCall", "content_text"]

ContentPart = dict[str, Any]
"""A part of a message's content: ``{"type": "text", "text": …}``, ``{"type": "image_url", "image_url": {…}}`` …"""


class MessageRole(StrEnum):
    """Roles of Chat Completions; members compare equal to the plain strings in `Message.role`."""

    DEVELOPER = "developer"
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    FUNCTION = "function"


def content_text(content: str | list[ContentPart] | None) -> str:
    """Return the text of `content`: itself, or its text parts joined; images, audio and files are left out."""
    if isinstance(content, str):
        return content
    if not content:
        return ""
    return "".join(part["text"] for part in content if isinstance(part.get("text"), str))


class _Record(dict[str, Any]):
    """A dict whose keys can be read as attributes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}") from None

    def model_dump(self, *, exclude_none: bool = False, **_: Any) -> dict[str, Any]:
        """Return a plain dict, for code that was written for pydantic messages."""
        return {key: value for key, value in self.items() if not (exclude_none and value is None)}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict.__repr__(self)})"


class ToolCall(_Record):
    """A call the assistant asked for: ``{"id", "type": "function", "function": {"name", "arguments"}}``."""

    __slots__ = ()

    @property
    def id(self) -> str:
        """Id that the tool message answering this call carries as `tool_call_id`."""
        return cast("str", self.get("id", ""))

    @property
    def type(self) -> str:
        """``function`` or ``custom``."""
        return cast("str", self.get("type", "function"))

    @property
    def function(self) -> dict[str, Any]:
        """``{"name": str, "arguments": str}``; the arguments are JSON text."""
        return cast("dict[str, Any]", self.get("function") or {})

    @property
    def name(self) -> str:
        """Name of the function or custom tool."""
        return cast("str", (self.get(self.type) or {}).get("name", ""))

    @property
    def arguments(self) -> str:
        """Arguments as the JSON text the model wrote (for a custom tool: its input)."""
        body = self.get(self.type) or {}
        return cast("str", body.get("arguments", body.get("input", "")))


class Message(_Record):
    """One message of the conversation.

    `role` is a plain `str`; `content` is a `str`, a list of parts, or None. A key the client did not send reads as None
    through the attributes below and is absent from the dict.
    """

    __slots__ = ()

    @property
    def role(self) -> str:
        """``developer``, ``system``, ``user``, ``assistant``, ``tool`` or ``function``."""
        return cast("str", self["role"])

    @property
    def content(self) -> str | list[ContentPart] | None:
        """Text, content parts, or None (an assistant message that only calls tools)."""
        return cast("str | list[ContentPart] | None", self.get("content"))

    @property
    def text(self) -> str:
        """The text of `content`, whichever form it has."""
        return content_text(self.get("content"))

    @property
    def name(self) -> str | None:
        """Name of the participant, if the client sent one."""
        return self.get("name")

    @property
    def tool_calls(self) -> list[ToolCall] | None:
        """Calls of an assistant message."""
        calls = self.get("tool_calls")
        return None if calls is None else [call if isinstance(call, ToolCall) else ToolCall(call) for call in calls]

    @property
    def tool_call_id(self) -> str | None:
        """The call that a tool message answers."""
        return self.get("tool_call_id")

    @property
    def reasoning_content(self) -> str | None:
        """Reasoning text, which some clients send back."""
        return self.get("reasoning_content")

    @property
    def id(self) -> str | None:
        """Id of the message, where the protocol has one."""
        return self.get("id")


class Tool(_Record):
    """A tool the client offers: ``{"type": "function", "function": {"name", "description", "parameters"}}``."""

    __slots__ = ()

    @property
    def type(self) -> str:
        """``function`` or ``custom``."""
        return cast("str", self.get("type", "function"))

    @property
    def function(self) -> dict[str, Any]:
        """Name, description and JSON schema of a function tool."""
        return cast("dict[str, Any]", self.get("function") or {})

    @property
    def name(self) -> str:
        """Name under which the tool is called."""
        return cast("str", (self.get(self.type) or {}).get("name", ""))

    @property
    def description(self) -> str | None:
        """What the tool does, in the client's words."""
        return cast("str | None", (self.get(self.type) or {}).get("description"))

    @property
    def parameters(self) -> dict[str, Any] | None:
        """JSON schema of the arguments."""
        return cast("dict[str, Any] | None", self.function.get("parameters"))
