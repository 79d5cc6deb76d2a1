"""Annotations and log probabilities, from the forms agents have to the flat one."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.core.events import Annotation
from agentrun_server.protocols.openai_responses.annotations import flat_annotation, flat_logprobs
from tests.support.properties import json_objects, json_values

URL = {"type": "url_citation", "url": "u", "title": "t", "start_index": 1, "end_index": 2}
TOKEN = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}


@pytest.mark.parametrize(
    ("data", "flat"),
    [
        (Annotation.url_citation("u", "t", 1, 2).data, URL),
        (URL, URL),
        ({**URL, "x": 1}, {**URL, "x": 1}),
        ({"type": "url_citation"}, {**URL, "url": "", "title": "", "start_index": 0, "end_index": 0}),
        (
            {**URL, "url": 5, "start_index": "1", "end_index": True},
            {**URL, "url": "", "start_index": 0, "end_index": 0},
        ),
        (
            {"type": "file_citation", "file_id": "f"},
            {"type": "file_citation", "file_id": "f", "filename": "", "index": 0},
        ),
        ({"type": "file_path", "file_path": {"file_id": "f"}}, {"type": "file_path", "file_id": "f", "index": 0}),
        ({"type": "hologram"}, None),
        ({"type": 5}, None),
        ({"type": ["url_citation"]}, None),
        ({}, None),
    ],
)
def test_an_annotation_is_flat_and_whole_or_left_out(data: Any, flat: Any) -> None:
    assert flat_annotation(data) == flat


@pytest.mark.parametrize(
    ("logprobs", "tokens"),
    [
        (None, []),
        ({"content": None}, []),
        ({"content": "x"}, []),
        ({"content": [TOKEN]}, [{**TOKEN, "top_logprobs": []}]),
        ({"content": [{"token": "x", "logprob": 0}]}, [{"token": "x", "logprob": 0, "bytes": [], "top_logprobs": []}]),
        (
            {"content": [{**TOKEN, "bytes": None, "top_logprobs": [TOKEN, 5]}]},
            [{**TOKEN, "bytes": [], "top_logprobs": [TOKEN]}],
        ),
        ({"content": [5, {}, {"token": "x"}, {"token": 5, "logprob": 0}, {"token": "x", "logprob": math.nan}]}, []),
    ],
)
def test_tokens_are_whole_or_left_out(logprobs: Any, tokens: Any) -> None:
    assert flat_logprobs(logprobs) == tokens


@given(json_objects, st.lists(json_values, max_size=3))
def test_whatever_an_agent_gives_is_json(data: dict[str, Any], tokens: list[Any]) -> None:
    flat_annotation({**data, "type": "url_citation"})
    json.dumps(flat_logprobs({"content": tokens}), allow_nan=False)
