"""The vocabulary of what an agent can say."""

import dataclasses
from typing import Any, get_args

import pytest

from agentrun_server.core import events
from agentrun_server.core.events import AgentEvent, AgentResult, Annotation, EventType, TypedEvent

TYPED = get_args(TypedEvent)


@pytest.mark.parametrize("kind", TYPED, ids=lambda kind: kind.__name__)
def test_a_typed_event_is_frozen_small_and_documented(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__doc__
    assert "__slots__" in vars(kind)
    required = [f for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    event: Any = kind(*["x" for _ in required])
    for field in dataclasses.fields(kind)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, field.name, "y")


def test_every_event_that_can_be_said_is_public() -> None:
    assert {kind.__name__ for kind in TYPED} <= set(events.__all__)


def test_the_event_types_are_those_of_the_sdk() -> None:
    assert [str(kind) for kind in EventType] == [
        "TEXT",
        "REASONING",
        "TOOL_CALL",
        "TOOL_CALL_CHUNK",
        "TOOL_RESULT",
        "TOOL_RESULT_CHUNK",
        "ERROR",
        "STATE",
        "HITL",
        "CUSTOM",
        "RAW",
    ]
    assert all(kind == kind.value for kind in EventType)


def test_an_agent_event_takes_its_type_as_a_member_or_as_text() -> None:
    assert AgentEvent(EventType.TEXT, {"delta": "a"}) == AgentEvent("TEXT", {"delta": "a"})  # type: ignore[arg-type]
    assert AgentEvent("TEXT").event is EventType.TEXT  # type: ignore[arg-type]
    assert AgentEvent(EventType.RAW).data == {}
    with pytest.raises(ValueError, match="'text' is not a valid EventType"):
        AgentEvent("text")  # type: ignore[arg-type]


def test_agent_result_is_the_older_name_of_agent_event() -> None:
    assert AgentResult is AgentEvent


def test_a_url_citation_has_the_shape_of_openai() -> None:
    assert Annotation.url_citation("https://example.com", "Example", 3, 9) == Annotation(
        {
            "type": "url_citation",
            "url_citation": {"url": "https://example.com", "title": "Example", "start_index": 3, "end_index": 9},
        }
    )
