"""Queries of stored objects: what is accepted, what goes without saying, and what is refused."""

from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.queries import PageQuery, Resume, read_page, read_resume


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, PageQuery(20, "desc", None)),
        ({"limit": "", "order": "", "after": ""}, PageQuery()),
        ({"limit": "1", "order": "asc", "after": "msg_1", "include": "x"}, PageQuery(1, "asc", "msg_1")),
        ({"limit": "100"}, PageQuery(100)),
    ],
)
def test_a_page_is_read(query: dict[str, str], page: PageQuery) -> None:
    assert read_page(query) == page


def test_a_list_may_have_another_order_by_itself() -> None:
    assert read_page({}, order="asc") == PageQuery(order="asc")
    assert read_page({"order": "desc"}, order="asc") == PageQuery()


@pytest.mark.parametrize(
    ("query", "resume"),
    [
        ({}, Resume()),
        ({"stream": "true"}, Resume(stream=True)),
        ({"stream": "false"}, Resume()),
        ({"stream": "1", "starting_after": "0"}, Resume(stream=True, starting_after=0)),
        ({"stream": "TRUE", "starting_after": "41", "include_obfuscation": "true"}, Resume(True, 41, True)),
    ],
)
def test_where_a_stream_goes_on_is_read(query: dict[str, str], resume: Resume) -> None:
    assert read_resume(query) == resume


@pytest.mark.parametrize(
    ("read", "query", "param", "code"),
    [
        (read_page, {"limit": "0"}, "limit", "integer_below_min_value"),
        (read_page, {"limit": "101"}, "limit", "integer_above_max_value"),
        (read_page, {"limit": "-1"}, "limit", "invalid_type"),
        (read_page, {"limit": "+1"}, "limit", "invalid_type"),
        (read_page, {"limit": " 1"}, "limit", "invalid_type"),
        (read_page, {"limit": "1_0"}, "limit", "invalid_type"),
        (read_page, {"limit": "٣"}, "limit", "invalid_type"),
        (read_page, {"limit": "9" * 5000}, "limit", "invalid_type"),
        (read_page, {"order": "up"}, "order", "invalid_value"),
        (read_page, {"after": "x" * 257}, "after", "string_above_max_length"),
        (read_resume, {"stream": "yes"}, "stream", "invalid_value"),
        (read_resume, {"starting_after": "3"}, "starting_after", "invalid_value"),
        (read_resume, {"stream": "true", "starting_after": "-1"}, "starting_after", "invalid_type"),
        (read_resume, {"stream": "true", "starting_after": "x"}, "starting_after", "invalid_type"),
        (read_resume, {"include_obfuscation": "maybe"}, "include_obfuscation", "invalid_value"),
    ],
)
def test_a_bad_query_is_refused_by_its_name(read: Any, query: dict[str, str], param: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read(query)
    assert (raised.value.param, raised.value.code) == (param, code)
