"""The documentation of the request tells of the same fields as the code that reads it."""

import json
from typing import Any

from agentrun_server.core.messages import MessageRole
from agentrun_server.protocols.openai_chat.fields import FIELDS
from agentrun_server.protocols.openai_chat.schema import CHAT_OPERATION
from tests.protocols.openai_chat.requests import read

_REQUEST: dict[str, Any] = CHAT_OPERATION["requestBody"]["content"]["application/json"]["schema"]


def test_every_documented_field_is_read() -> None:
    assert _REQUEST["properties"].keys() <= FIELDS.keys()
    assert _REQUEST["required"] == ["model", "messages"]


def test_the_documented_examples_are_good_requests() -> None:
    example = {name: field["examples"][0] for name, field in _REQUEST["properties"].items() if field.get("examples")}
    assert example.keys() == {"model", "messages"}
    request, _ = read(json.loads(json.dumps(example)))
    assert request.messages[0].text == "Hello"


def test_all_roles_are_documented() -> None:
    message = _REQUEST["properties"]["messages"]["items"]
    assert message["properties"]["role"]["enum"] == [str(role) for role in MessageRole]


def test_documented_errors_have_the_four_keys() -> None:
    for status in ("400", "404", "429", "500", "503"):
        schema = CHAT_OPERATION["responses"][status]["content"]["application/json"]["schema"]
        assert schema["properties"]["error"]["required"] == ["message", "type", "param", "code"]
