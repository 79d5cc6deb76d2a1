"""The documentation of the request tells of the same fields as the code that reads it."""

import json
from typing import Any

from agentrun_server.core.messages import MessageRole
from agentrun_server.protocols.openai_chat.fields import FIELDS
from agentrun_server.protocols.openai_chat.schema import CHAT_OPERATIONS
from tests.protocols.openai_chat.requests import read

_CREATE: dict[str, Any] = CHAT_OPERATIONS["POST /chat/completions"]
_REQUEST: dict[str, Any] = _CREATE["requestBody"]["content"]["application/json"]["schema"]


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


def test_what_may_go_wrong_is_documented() -> None:
    assert _CREATE["responses"].keys() == {"200", "400", "404", "429", "500", "503"}
