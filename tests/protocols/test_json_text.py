"""JSON for the wire: exact, and safe inside one line of an event stream."""

import dataclasses
import enum
import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from pydantic import BaseModel

from agentrun_server.protocols.json_text import dumps, quote
from tests.conformance.requirements import requirement
from tests.support.properties import any_text, json_values

LINE_ENDS = ["\n", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def strict(text: str) -> Any:
    """Read JSON as a browser does: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@requirement("chat.stream.json")
@given(any_text)
def test_any_text_is_quoted_on_one_line_and_reads_back(text: str) -> None:
    quoted = quote(text)
    assert json.loads(quoted) == json.loads(json.dumps(text))
    assert len(quoted.splitlines()) == 1
    quoted.encode()  # half of a surrogate pair would fail here
    assert dumps(text) == quoted


@pytest.mark.parametrize("end", LINE_ENDS, ids=ascii)
def test_what_some_reader_takes_for_a_line_end_is_escaped(end: str) -> None:
    assert quote(f"a{end}b").isascii()
    assert len(dumps({end: [end]}).splitlines()) == 1


def test_text_that_breaks_nothing_is_sent_as_it_is() -> None:
    assert quote("中文 é 😀 </p>") == '"中文 é 😀 </p>"'
    assert dumps({"é": "中"}) == '{"é":"中"}'


@given(json_values)
def test_any_value_is_strict_json_on_one_line(value: Any) -> None:
    text = dumps(value)
    assert len(text.splitlines()) == 1
    text.encode()
    read = strict(text)
    if value == value and "nan" not in repr(value) and "inf" not in repr(value):
        assert read == json.loads(json.dumps(value))


def test_numbers_json_has_not_become_null() -> None:
    assert dumps([math.nan, math.inf, -math.inf, 1.5, {"a": math.nan}]) == '[null,null,null,1.5,{"a":null}]'


class Model(BaseModel):
    when: date
    score: float = math.nan


@dataclasses.dataclass
class Point:
    x: int
    y: Any


class Colour(enum.Enum):
    RED = "red"


class Odd:
    def __str__(self) -> str:
        return "odd \u2028 thing"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Model(when=date(2026, 1, 2)), '{"when":"2026-01-02","score":null}'),
        (Point(1, Point(2, None)), '{"x":1,"y":{"x":2,"y":null}}'),
        ([{1}, frozenset(), (1, 2)], "[[1],[],[1,2]]"),
        ({1: "a", None: "b", Odd(): "c"}, '{"1":"a","None":"b","odd \\u2028 thing":"c"}'),
        (Odd(), '"odd \\u2028 thing"'),
        (b"bytes", "\"b'bytes'\""),
        (Colour.RED, '"Colour.RED"'),
        (Point, "\"<class 'protocols.test_json_text.Point'>\""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_json_does_not_know_become_what_they_say_of_themselves(value: Any, text: str) -> None:
    assert dumps(value) == text.replace("protocols.test_json_text", __name__)


def test_a_value_that_contains_itself_is_a_value_error() -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(ValueError, match="contains itself"):
        dumps(endless)
    twice: list[Any] = []
    twice += [twice, twice]  # and soon: it must not be looked at in every combination
    with pytest.raises(ValueError, match="contains itself"):
        dumps(twice)


def test_a_value_that_is_nested_too_deeply_is_a_value_error() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested too deeply"):
        dumps(deep)
    while deep:  # taken apart by hand: Python would do it recursively
        deep = deep.pop()
