"""Parts of content: in the form of the Responses API, and in that of Chat Completions."""

from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.parts import chat_content, read_content

IMAGE = {"type": "input_image", "image_url": "https://a.example/x.png", "detail": "low"}
FILE = {"type": "input_file", "filename": "a.pdf", "file_data": "data:,x"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
OUTPUT = {"type": "output_text", "text": "x", "annotations": [], "logprobs": []}


@pytest.mark.parametrize(
    ("content", "by_agent", "parts"),
    [
        ("x", False, [{"type": "input_text", "text": "x"}]),
        ("x", True, [OUTPUT]),
        ([], False, []),
        ([{"type": "text", "text": "x"}], False, [{"type": "input_text", "text": "x"}]),
        ([{"type": "input_text", "text": "x", "more": 1}], False, [{"type": "input_text", "text": "x", "more": 1}]),
        ([{"type": "output_text", "text": "x"}], False, [{"type": "input_text", "text": "x"}]),
        ([{"type": "output_text", "text": "x"}], True, [OUTPUT]),
        ([{"type": "input_text", "text": "x"}], True, [OUTPUT]),
        ([{**OUTPUT, "annotations": None, "logprobs": None}], True, [OUTPUT]),
        ([{**OUTPUT, "annotations": [{"type": "x"}]}], True, [{**OUTPUT, "annotations": [{"type": "x"}]}]),
        ([{"type": "refusal", "refusal": "no"}], True, [{"type": "refusal", "refusal": "no"}]),
        ([IMAGE, FILE, AUDIO], False, [IMAGE, FILE, AUDIO]),
        ([{**IMAGE, "detail": None, "file_id": None}], False, [{**IMAGE, "detail": "auto"}]),
        (
            [{"type": "input_image", "file_id": "f"}],
            False,
            [{"type": "input_image", "file_id": "f", "detail": "auto"}],
        ),
        ([{"type": "input_hologram", "x": 1}], False, [{"type": "input_hologram", "x": 1}]),
    ],
)
def test_content_is_read_as_parts_with_every_key(content: Any, by_agent: bool, parts: Any) -> None:
    assert read_content(content, "c", spoken_by_agent=by_agent) == parts


@pytest.mark.parametrize(
    ("content", "param", "code"),
    [
        (5, "c", "invalid_type"),
        ({}, "c", "invalid_type"),
        ([5], "c[0]", "invalid_type"),
        ([{}], "c[0].type", "missing_required_parameter"),
        ([{"type": 5}], "c[0].type", "invalid_type"),
        ([{"type": "input_text"}], "c[0].text", "missing_required_parameter"),
        ([IMAGE, {"type": "input_text", "text": 5}], "c[1].text", "invalid_type"),
        ([{"type": "refusal"}], "c[0].refusal", "invalid_type"),
        ([{"type": "input_image", "detail": "low"}], "c[0]", "invalid_value"),
        ([{"type": "input_image", "image_url": {"url": "x"}}], "c[0].image_url", "invalid_type"),
        ([{"type": "input_image", "image_url": ""}], "c[0].image_url", "empty_string"),
        ([{**IMAGE, "detail": 5}], "c[0].detail", "invalid_type"),
        ([{"type": "input_file", "filename": "x"}], "c[0]", "invalid_value"),
        ([{"type": "input_file", "file_id": 5}], "c[0].file_id", "invalid_type"),
        ([{"type": "input_audio"}], "c[0].input_audio", "invalid_type"),
        (
            [{"type": "input_audio", "input_audio": {"data": "x", "format": "ogg"}}],
            "c[0].input_audio.format",
            "invalid_value",
        ),
    ],
)
def test_a_malformed_part_is_refused_by_its_place(content: Any, param: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        read_content(content, "c")
    assert (raised.value.param, raised.value.code) == (param, code)


@pytest.mark.parametrize(
    ("parts", "content"),
    [
        ([], ""),
        ([{"type": "input_text", "text": "x"}], "x"),
        ([OUTPUT], "x"),
        ([OUTPUT, OUTPUT], [{"type": "text", "text": "x"}] * 2),
        ([IMAGE], [{"type": "image_url", "image_url": {"url": "https://a.example/x.png", "detail": "low"}}]),
        ([{"type": "input_image", "file_id": "f"}], [{"type": "file", "file": {"file_id": "f"}}]),
        ([FILE], [{"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,x"}}]),
        ([AUDIO], [AUDIO]),
        ([{"type": "input_hologram", "x": 1}], [{"type": "input_hologram", "x": 1}]),
    ],
)
def test_parts_become_the_content_of_a_chat_message(parts: Any, content: Any) -> None:
    assert chat_content(parts) == content
