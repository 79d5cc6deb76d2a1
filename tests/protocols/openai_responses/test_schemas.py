"""Every event and body against the published schemas, where they are at hand.

They are not part of this repository. Set ``OPENAI_SCHEMAS`` to a JSON file with OpenAI's ``components.schemas`` and
``OPEN_RESPONSES_SCHEMAS`` to one with those of Open Responses. What every run checks is in
`tests.support.responses_oracle` and in the types of the official client.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentrun_server.core.usage import Usage
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.compaction import compact
from agentrun_server.protocols.openai_responses.items import read_items
from tests.protocols.openai_responses.answers import CREATED, Counter, judged
from tests.protocols.openai_responses.variants import VARIANTS, Variant

if not (os.environ.get("OPENAI_SCHEMAS") or os.environ.get("OPEN_RESPONSES_SCHEMAS")):
    pytest.skip("no file with schemas is named", allow_module_level=True)

Validate = Callable[[str, Any], None]

_OPEN_NAMES = {
    "error": "ErrorStreamingEvent",
    "response.created": "ResponseCreatedStreamingEvent",
    "response.queued": "ResponseQueuedStreamingEvent",
    "response.in_progress": "ResponseInProgressStreamingEvent",
    "response.completed": "ResponseCompletedStreamingEvent",
    "response.incomplete": "ResponseIncompleteStreamingEvent",
    "response.failed": "ResponseFailedStreamingEvent",
    "response.output_item.added": "ResponseOutputItemAddedStreamingEvent",
    "response.output_item.done": "ResponseOutputItemDoneStreamingEvent",
    "response.content_part.added": "ResponseContentPartAddedStreamingEvent",
    "response.content_part.done": "ResponseContentPartDoneStreamingEvent",
    "response.output_text.delta": "ResponseOutputTextDeltaStreamingEvent",
    "response.output_text.done": "ResponseOutputTextDoneStreamingEvent",
    "response.output_text.annotation.added": "ResponseOutputTextAnnotationAddedStreamingEvent",
    "response.refusal.delta": "ResponseRefusalDeltaStreamingEvent",
    "response.refusal.done": "ResponseRefusalDoneStreamingEvent",
    "response.reasoning_summary_part.added": "ResponseReasoningSummaryPartAddedStreamingEvent",
    "response.reasoning_summary_part.done": "ResponseReasoningSummaryPartDoneStreamingEvent",
    "response.reasoning_summary_text.delta": "ResponseReasoningSummaryDeltaStreamingEvent",
    "response.reasoning_summary_text.done": "ResponseReasoningSummaryDoneStreamingEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaStreamingEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneStreamingEvent",
}


def _validator(variable: str) -> Validate:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} names no file with schemas")
    jsonschema = pytest.importorskip("jsonschema")
    schemas = json.loads(Path(path).read_text(encoding="utf-8"))["components"]["schemas"]
    made: dict[str, Any] = {}

    def validate(name: str, value: Any) -> None:
        if name not in made:
            assert name in schemas, name
            schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
            made[name] = jsonschema.Draft202012Validator(schema)
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}" for e in made[name].iter_errors(value)]
        assert not errors, f"{name}: {errors}"

    return validate


@pytest.fixture(scope="module")
def openai() -> Validate:
    return _validator("OPENAI_SCHEMAS")


@pytest.fixture(scope="module")
def open_responses() -> Validate:
    return _validator("OPEN_RESPONSES_SCHEMAS")


def _as_openai_says(event: dict[str, Any]) -> dict[str, Any]:
    """Leave out a usage of null: the specification has none, while the real API and Open Responses have."""
    response = event.get("response")
    if response is None or response["usage"] is not None:
        return event
    return {**event, "response": {key: value for key, value in response.items() if key != "usage"}}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_event_is_one_of_openai(variant: Variant, openai: Validate) -> None:
    for event in judged(variant.items, variant.body, variant.settings, variant.end).events:
        name = {"error": "ResponseErrorEvent"}.get(event["type"], "ResponseStreamEvent")
        openai(name, _as_openai_says(event))
        if "response" in event:
            openai("Response", _as_openai_says(event)["response"])


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS.values() if v.open_types], ids=[k for k, v in VARIANTS.items() if v.open_types]
)
def test_every_event_is_one_of_open_responses(variant: Variant, open_responses: Validate) -> None:
    for event in judged(variant.items, variant.body, variant.settings, variant.end).events:
        open_responses(_OPEN_NAMES[event["type"]], event)
        if "response" in event:
            open_responses("ResponseResource", event["response"])


_ITEMS: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {"role": "system", "content": [{"type": "input_text", "text": "x"}]},
    {"role": "assistant", "content": "Ho"},
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "1"},
]
_MORE: list[dict[str, Any]] = [
    {"type": "custom_tool_call", "call_id": "c2", "name": "sh", "input": "ls"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": "1"},
    {"type": "mcp_call", "name": "f", "server_label": "s", "arguments": "{}"},
    {"type": "mcp_approval_request", "name": "f", "server_label": "s", "arguments": "{}"},
]


def _read(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return read_items(json.loads(json.dumps(items)), Counter(), max_items=99)


def test_items_that_were_read_are_listed_as_openai_lists_them(openai: Validate) -> None:
    page = objects.item_list(_read([*_ITEMS, *_MORE]), has_more=False)
    openai("ResponseItemList", page)
    openai("ConversationItemList", page)


def test_items_that_were_read_are_items_of_open_responses(open_responses: Validate) -> None:
    for item in _read(_ITEMS):
        open_responses("ItemField", item)


def test_the_other_objects_are_openais(openai: Validate) -> None:
    openai("ConversationResource", objects.conversation("conv_1", CREATED, {"k": "v"}))
    openai("DeletedConversationResource", objects.conversation_deleted("conv_1"))
    openai("TokenCountsResource", objects.input_tokens(3))
    openai("CompactResource", objects.compaction("resp_1", CREATED, [compact(_read(_ITEMS), Counter())], Usage(1, 2)))


def test_a_compaction_is_one_of_open_responses(open_responses: Validate) -> None:
    item = compact(_read(_ITEMS), Counter())
    open_responses("CompactResource", objects.compaction("resp_1", CREATED, [item], Usage(1, 2)))
