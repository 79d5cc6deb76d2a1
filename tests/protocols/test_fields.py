"""The checks that every protocol shares: what they take, what they refuse, and how the error names it."""

import json
import math
from typing import Any

import pytest

from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols import fields
from agentrun_server.protocols.fields import Check

TYPE = "invalid_type"

GOOD: list[tuple[Check, Any, Any]] = [
    (fields.text(), "", ""),
    (fields.text(2, min_length=1), "ab", "ab"),
    (fields.choice("a", "b"), "b", "b"),
    (fields.number(0, 2), 0, 0),
    (fields.number(0, 2), 1.5, 1.5),
    (fields.integer(1, 3), 3.0, 3),
    (fields.integer(0), 2**53, 2**53),
    (fields.boolean, False, False),
    (fields.anything, {"x": [1]}, {"x": [1]}),
    (fields.mapping, {}, {}),
    (fields.array, [1], [1]),
    (fields.metadata, {"k" * 64: "v" * 512}, {"k" * 64: "v" * 512}),
]

BAD: list[tuple[Check, Any, str, str]] = [
    # check, value, where behind the field's name, code
    (fields.text(), 5, "", TYPE),
    (fields.text(2), "abc", "", "string_above_max_length"),
    (fields.text(min_length=1), "", "", "empty_string"),
    (fields.choice("a"), "b", "", "invalid_value"),
    (fields.choice("a"), ["a"], "", TYPE),
    (fields.number(0, 2), True, "", TYPE),
    (fields.number(0, 2), "1", "", TYPE),
    (fields.number(0, 2), -0.1, "", "decimal_below_min_value"),
    (fields.number(0, 2), 2.1, "", "decimal_above_max_value"),
    (fields.number(0, 2), math.nan, "", "decimal_above_max_value"),
    (fields.integer(1), 1.5, "", TYPE),
    (fields.integer(1), True, "", TYPE),
    (fields.integer(1), 0, "", "integer_below_min_value"),
    (fields.integer(1), 2**53 + 1, "", "integer_above_max_value"),
    (fields.boolean, 1, "", TYPE),
    (fields.mapping, [], "", TYPE),
    (fields.array, {}, "", TYPE),
    (fields.metadata, {str(i): "v" for i in range(17)}, "", "object_above_max_properties"),
    (fields.metadata, {"k" * 65: "v"}, "", "string_above_max_length"),
    (fields.metadata, {"k": 5}, ".k", TYPE),
    (fields.metadata, {"k": "v" * 513}, ".k", "string_above_max_length"),
]


@pytest.mark.parametrize(("check", "value", "result"), GOOD)
def test_a_check_returns_the_value_to_use(check: Check, value: Any, result: Any) -> None:
    used = check(value, "field")
    assert used == result
    assert type(used) is type(result)


@pytest.mark.parametrize(("check", "value", "where", "code"), BAD)
def test_a_check_refuses_with_the_name_of_the_field(check: Check, value: Any, where: str, code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        check(value, "field")
    assert (raised.value.param, raised.value.code) == (f"field{where}", code)


@pytest.mark.parametrize(
    ("value", "low", "high", "code"),
    [
        ([], 1, None, "empty_array"),
        ([1], 2, None, "array_below_min_length"),
        ([1], 0, 0, "array_above_max_length"),
    ],
)
def test_an_array_has_a_length(value: list[int], low: int, high: int | None, code: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        fields.array(value, "field", low, high)
    assert raised.value.code == code


@pytest.mark.parametrize("value", [math.inf, {"a": [1, {"b": -math.inf}]}, [[math.nan]], {"a": [2**1024]}, -(10**4000)])
def test_numbers_that_are_too_large_are_found_however_deep(value: Any) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        fields.check_finite(value)
    assert raised.value.code == "invalid_json"
    fields.check_finite({"a": [1.5, None, "x", {"b": True}, 1.7e308, 2**1024 - 1, -(2**1023)]})


def test_a_long_body_has_no_numbers_that_take_long_to_write() -> None:
    number, text = {"a": [10**4000]}, b" " * 64 * 1024
    fields.check_amount(number, text)
    with pytest.raises(InvalidRequestError):
        fields.check_amount(number, text + b" ")


def test_what_is_nested_too_deeply_is_refused() -> None:
    def nested(depth: int) -> Any:
        value: Any = "x"
        for _ in range(depth):
            value = [value]
        return value

    fields.check_finite(nested(256))
    with pytest.raises(InvalidRequestError) as refused:
        fields.check_finite(nested(300))
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize("part", ["{},", "[],", "1,", '"",', '{"a":{"b":[1]}},'])
def test_a_body_has_a_bound_in_values(part: str) -> None:
    for count, accepted in ((20_000, True), (140_000, False)):
        text = f"[{part * count}0]".encode()
        if accepted:
            fields.check_amount(json.loads(text), text)
        else:
            with pytest.raises(InvalidRequestError) as refused:
                fields.check_amount(json.loads(text), text)
            assert refused.value.code == "too_many_values"


def test_what_stands_in_texts_is_not_counted() -> None:
    value = ["[{,}]" * 100_000]
    text = json.dumps(value).encode()
    fields.check_density(text)
    fields.check_amount(value, text)


def test_what_would_take_long_to_parse_is_not_parsed() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        fields.check_density(b"[" + b"{}," * 1_100_000)
    assert refused.value.code == "too_many_values"


def test_an_error_never_repeats_the_value() -> None:
    for check, value in ((fields.text(), {"secret": 1}), (fields.choice("a"), "secret"), (fields.text(3), "secret")):
        with pytest.raises(InvalidRequestError) as raised:
            check(value, "field")
        assert "secret" not in raised.value.message
