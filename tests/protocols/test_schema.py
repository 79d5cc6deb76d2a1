"""Parts of the description that are the same for every protocol."""

from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.fields import metadata
from agentrun_server.protocols.openai_responses.queries import read_page
from agentrun_server.protocols.schema import METADATA, PAGE, json_body, operation

LIMITS: dict[str, Any] = {parameter["name"]: parameter["schema"] for parameter in PAGE}


def test_an_error_has_the_four_keys() -> None:
    described = operation("Do it", "Done.", {}, errors={"404": "There is none."})
    missing = described["responses"]["404"]
    assert missing["description"] == "There is none."
    schema = missing["content"]["application/json"]["schema"]
    assert schema["properties"]["error"]["required"] == ["message", "type", "param", "code"]


def test_an_operation_says_only_what_it_has() -> None:
    plain = operation("Do it", "Done.", {"type": "object"})
    content = {"application/json": {"schema": {"type": "object"}}}
    assert plain == {"summary": "Do it", "responses": {"200": {"description": "Done.", "content": content}}}
    streamed = operation("Do it", "Done.", {}, body=json_body({}), parameters=PAGE, stream=True)
    assert streamed["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert streamed["requestBody"]["required"] is True
    assert [parameter["name"] for parameter in streamed["parameters"]] == ["limit", "order", "after"]


def test_the_documented_limits_of_a_page_are_those_that_hold() -> None:
    limit = LIMITS["limit"]
    assert read_page({}).limit == limit["default"]
    for good in (limit["minimum"], limit["maximum"]):
        assert read_page({"limit": str(good)}).limit == good
    for bad in (limit["minimum"] - 1, limit["maximum"] + 1):
        with pytest.raises(InvalidRequestError):
            read_page({"limit": str(bad)})
    for order in LIMITS["order"]["enum"]:
        assert read_page({"order": order}).order == order


def test_the_documented_limits_of_metadata_are_those_that_hold() -> None:
    pairs, length = METADATA["maxProperties"], METADATA["additionalProperties"]["maxLength"]
    assert len(metadata({str(i): "x" * length for i in range(pairs)}, "metadata")) == pairs
    for bad in ({str(i): "x" for i in range(pairs + 1)}, {"key": "x" * (length + 1)}):
        with pytest.raises(InvalidRequestError):
            metadata(bad, "metadata")
