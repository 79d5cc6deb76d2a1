"""Compaction items: what goes in comes out, and what did not come from this server is refused."""

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.compaction import compact, expand
from agentrun_server.protocols.openai_responses.items import Item
from tests.protocols.openai_responses.answers import Counter
from tests.protocols.openai_responses.items import any_items, read
from tests.support.properties import any_text

USER = {"role": "user", "content": "Hi"}


def expanded(*items: Item, max_items: int = 99, **limits: int) -> list[Item]:
    return expand(items, Counter(), max_items=max_items, **limits)


def packed(text: str) -> Item:
    content = base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()
    return {"type": "compaction", "id": "cmp_1", "encrypted_content": f"agentrun1.{content}"}


def problem(*items: Item, **limits: int) -> str | None:
    with pytest.raises(InvalidRequestError) as raised:
        expanded(*items, **limits)
    return raised.value.code


@given(any_items)
def test_every_conversation_comes_out_as_it_went_in(items: list[Any]) -> None:
    before = read(*items)
    item = compact(before, Counter())
    assert (item["type"], item["id"]) == ("compaction", "cmp_1")
    assert read(item) == [item], "it can be sent as an input item"
    assert expanded(item) == json.loads(json.dumps(before))


def test_it_stands_where_the_conversation_stood() -> None:
    first, last = read(USER, {"role": "assistant", "content": "Ho"}), read(USER)
    assert expanded(compact(first, Counter()), *last) == [*first, *last]


@pytest.mark.parametrize(
    "content",
    ["", "gAAAA", "agentrun1.", "agentrun1.???", "agentrun1.é", "agentrun2.eJyLjgUAARUAuQ==", "agentrun1.AAAA"],
)
def test_what_another_server_wrote_is_refused(content: str) -> None:
    assert problem({"type": "compaction", "id": "c", "encrypted_content": content}) == "invalid_compaction"


@given(any_text)
def test_any_content_is_refused_or_read(content: str) -> None:
    for item in ({"type": "compaction", "encrypted_content": f"agentrun1.{content}"}, packed(json.dumps(content))):
        try:
            expanded(item)
        except InvalidRequestError as error:
            assert error.param == "input" or str(error.param).startswith("input[")  # noqa: PT017 - either is right


def test_half_of_one_is_refused() -> None:
    whole = compact(read(USER), Counter())
    assert problem({**whole, "encrypted_content": whole["encrypted_content"][:-12]}) == "invalid_compaction"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\\ud800", '{"a": 1}'])
def test_what_is_no_list_of_items_is_refused(text: str) -> None:
    assert problem(packed(text)) in ("invalid_compaction", "invalid_type")


def test_one_in_another_is_refused() -> None:
    inner = compact(read(USER), Counter())
    assert problem(packed(json.dumps([inner]))) == "invalid_compaction"
    assert problem(packed('[{"id": "msg_1"}]')) == "invalid_compaction"


def test_a_small_item_cannot_become_a_huge_one() -> None:
    assert problem(packed("[]" + " " * 10_000_000), max_bytes=1_000_000) == "invalid_compaction"
    once = packed(json.dumps([USER]) + " " * 1000)
    assert len(expanded(once, once, max_bytes=2500)) == 2
    assert problem(once, once, once, max_bytes=2500) == "invalid_compaction", "all together have a bound"
    assert problem(once, max_bytes=0) == "invalid_compaction"
    many = compact(read(*[USER] * 50), Counter())
    assert problem(many, max_items=20) == "array_above_max_length"
    assert problem(many, *read(USER), max_items=50) == "array_above_max_length"
