"""The documentation of requests tells of the same fields as the code that reads them."""

import json
from typing import Any

import pytest

from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import Headers
from agentrun_server.protocols.openai_responses.decode import decode, decode_conversation, decode_items
from agentrun_server.protocols.openai_responses.fields import FIELDS
from agentrun_server.protocols.openai_responses.items import PREFIXES
from agentrun_server.protocols.openai_responses.schema import CONVERSATION_OPERATIONS, RESPONSE_OPERATIONS

READ_BY_DECODE = ["POST /responses", "POST /responses/input_tokens", "POST /responses/compact"]


def body_of(operation: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


@pytest.mark.parametrize("name", READ_BY_DECODE)
def test_every_documented_field_is_read(name: str) -> None:
    assert body_of(RESPONSE_OPERATIONS[name])["properties"].keys() <= FIELDS.keys()


@pytest.mark.parametrize("name", READ_BY_DECODE)
def test_the_documented_examples_are_good_requests(name: str) -> None:
    body = body_of(RESPONSE_OPERATIONS[name])
    example = {field: schema["examples"][0] for field, schema in body["properties"].items() if schema.get("examples")}
    assert set(body["required"]) <= example.keys() == {"model", "input"}
    call = decode(json.loads(json.dumps(example)), Headers(), IdSource())
    assert call.items[0]["content"][0]["text"] == "Hello"


def test_documented_types_of_items_are_known() -> None:
    item = body_of(CONVERSATION_OPERATIONS["POST /conversations"])["properties"]["items"]["items"]
    assert set(item["properties"]["type"]["examples"]) <= PREFIXES.keys()


def test_as_many_items_as_documented_may_be_added_and_no_more() -> None:
    most = body_of(CONVERSATION_OPERATIONS["POST /conversations"])["properties"]["items"]["maxItems"]
    items = [{"role": "user", "content": "Hello"}]
    assert len(decode_conversation({"items": items * most}, IdSource())[0]) == most
    assert len(decode_items({"items": items * most}, IdSource())) == most
    with pytest.raises(Exception, match="array too long"):
        decode_items({"items": items * (most + 1)}, IdSource())
