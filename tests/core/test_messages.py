"""Messages and tools are dictionaries with attributes."""

import copy
import json
import pickle
from typing import Any

import pytest

from agentrun_server.core.messages import Message, MessageRole, Tool, ToolCall, content_text

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
CUSTOM_CALL = {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls"}}


def test_a_message_is_a_dict_and_its_fields_are_attributes() -> None:
    data = {"role": "user", "content": "Hi", "name": "ann", "cache_control": {"type": "ephemeral"}}
    message = Message(data)
    assert message == data
    assert isinstance(message, dict)
    assert message["content"] == message.content == message.text == "Hi"
    assert message.role == "user"
    assert type(message.role) is str
    assert message.name == "ann"
    assert message.cache_control == {"type": "ephemeral"}


def test_a_message_can_be_built_from_keywords() -> None:
    assert Message(role="user", content="Hi") == {"role": "user", "content": "Hi"}
    assert Message({"role": "user"}, content="Hi") == {"role": "user", "content": "Hi"}


def test_roles_are_plain_strings_that_equal_the_enum() -> None:
    assert Message(role="developer").role == MessageRole.DEVELOPER
    assert [str(role) for role in MessageRole] == ["developer", "system", "user", "assistant", "tool", "function"]


def test_a_field_that_was_not_sent_reads_as_none_and_is_absent_from_the_dict() -> None:
    message = Message(role="user", content="Hi")
    for name in ("name", "tool_calls", "tool_call_id", "reasoning_content", "id"):
        assert getattr(message, name) is None
        assert name not in message
    assert Message(role="assistant").content is None
    assert Message(role="assistant").text == ""


def test_an_attribute_that_is_no_field_is_an_attribute_error_that_names_it() -> None:
    message = Message(role="user", content="Hi")
    assert not hasattr(message, "audio")
    assert getattr(message, "audio", "none") == "none"
    with pytest.raises(AttributeError, match="Message has no field 'audio'"):
        message.audio  # noqa: B018


def test_the_text_of_parts_leaves_out_what_is_no_text() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": "a cat"},
        {"type": "vendor"},
    ]
    assert Message(role="user", content=parts).text == "Look: a cat"
    assert Message(role="user", content=parts).content == parts
    assert content_text(parts) == "Look: a cat"
    assert content_text([]) == content_text(None) == content_text("") == ""


def test_tool_calls_of_a_message_have_attributes_too() -> None:
    message = Message(role="assistant", content=None, tool_calls=[CALL, CUSTOM_CALL])
    assert message.tool_calls is not None
    first, second = message.tool_calls
    assert (first.id, first.type, first.name, first.arguments) == (
        "call_1",
        "function",
        "weather",
        '{"city":"Paris"}',
    )
    assert first.function["name"] == "weather"
    assert (second.type, second.name, second.arguments) == ("custom", "shell", "ls")
    assert message["tool_calls"] == [CALL, CUSTOM_CALL]


def test_a_tool_call_without_its_parts_reads_as_empty() -> None:
    call = ToolCall({})
    assert (call.id, call.type, call.name, call.arguments, call.function) == ("", "function", "", "", {})


def test_a_tool_has_the_attributes_of_its_function() -> None:
    schema = {"type": "object", "properties": {}}
    function = {"name": "f", "description": "Does it.", "parameters": schema, "strict": None}
    tool = Tool(type="function", function=function)
    assert (tool.type, tool.name, tool.description, tool.parameters) == ("function", "f", "Does it.", schema)
    assert tool.function is function
    custom = Tool(type="custom", custom={"name": "shell", "description": "Runs it."})
    assert (custom.type, custom.name, custom.description, custom.parameters) == ("custom", "shell", "Runs it.", None)
    other = Tool(type="web_search")
    assert (other.name, other.description, other.parameters) == ("", None, None)


@pytest.mark.parametrize(
    "record",
    [
        Message(role="assistant", content=[{"type": "text", "text": "ü"}], tool_calls=[CALL], vendor=1),
        ToolCall(CALL),
        Tool(type="function", function={"name": "f"}),
    ],
    ids=lambda record: type(record).__name__,
)
class TestWhateverHandlesDicts:
    def test_json_takes_it(self, record: dict[str, Any]) -> None:
        assert json.loads(json.dumps(record)) == record

    def test_model_dump_gives_a_plain_dict(self, record: Any) -> None:
        dumped = record.model_dump()
        assert type(dumped) is dict
        assert dumped == record
        assert record.model_dump(mode="json", by_alias=True) == record

    def test_it_can_be_copied_and_pickled(self, record: Any) -> None:
        for other in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert other == record
            assert type(other) is type(record)

    def test_it_can_be_spread_and_merged(self, record: dict[str, Any]) -> None:
        assert {**record} == dict(record) == record | {} == record

    def test_its_repr_names_the_class(self, record: dict[str, Any]) -> None:
        assert repr(record).startswith(type(record).__name__ + "({")


def test_model_dump_can_leave_out_what_is_none() -> None:
    message = Message(role="assistant", content=None, name="a")
    assert message.model_dump(exclude_none=True) == {"role": "assistant", "name": "a"}
