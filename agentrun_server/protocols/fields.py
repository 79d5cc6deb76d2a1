"""Checks for the fields of a request, shared by the protocols.

A check takes the value the client sent (never null: null is read as absent) and the field's name for the error, and
returns the value to use. What is wrong is an `InvalidRequestError` whose `param` names the field.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from agentrun_server.errors import InvalidRequestError

__all__ = [
    "MAX_CALL_ID",
    "Check",
    "anything",
    "array",
    "boolean",
    "check_amount",
    "check_density",
    "check_finite",
    "choice",
    "integer",
    "invalid",
    "mapping",
    "metadata",
    "missing",
    "number",
    "text",
    "wrong_type",
]

Check = Callable[[Any, str], Any]

MAX_CALL_ID = 64 * 1024
"""Characters of the id of a tool call. OpenAI's are short; gateways put a model's signed thoughts into them, which the
model wants back with the result."""

_MAX_INTEGER = 2**53
_CONTAINERS = (dict, list)
_MAX_DEPTH = 256
_SMALL = 64 * 1024
"""Bytes of JSON that hold no more values than there may be, and not much of anything."""
_MAX_VALUES = 128 * 1024
"""Ten times what a conversation of 2048 messages with tool calls has; a body of ten megabytes could have millions."""
_MAX_BRACKETS = 1024 * 1024
"""Brackets in a body, those in its texts included: one in ten bytes of the longest body, more than code or JSON has.
A body that is no longer than this cannot have more."""
_MAX_BITS = 1024
"""Of an integer, as many as the largest decimal number has: to write one takes steps by the square of its length."""
_NAMES: Mapping[type, str] = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a decimal number",
    list: "an array", dict: "an object", type(None): "null",
}  # fmt: skip


def wrong_type(param: str, expected: str, value: object) -> NoReturn:
    """Raise the answer to a value of the wrong type. The value itself is never repeated."""
    got = _NAMES.get(type(value), "something else")
    raise InvalidRequestError(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.",
        code="invalid_type",
        param=param,
    )


def invalid(param: str, problem: str, code: str = "invalid_value") -> NoReturn:
    """Raise the answer to a value of the right type that cannot be used."""
    raise InvalidRequestError(f"Invalid '{param}': {problem}", code=code, param=param)


def missing(param: str) -> NoReturn:
    """Raise the answer to a field that must be there."""
    raise InvalidRequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def text(max_length: int | None = None, *, min_length: int = 0) -> Check:
    """Accept a string of bounded length."""

    def check(value: Any, param: str) -> str:
        if not isinstance(value, str):
            wrong_type(param, "a string", value)
        if max_length is not None and len(value) > max_length:
            invalid(
                param,
                f"string too long. Expected at most {max_length} characters.",
                "string_above_max_length",
            )
        if len(value) < min_length:
            invalid(param, "empty string. Expected at least one character.", "empty_string")
        return value

    return check


def choice(*values: str) -> Check:
    """Accept one of `values`."""
    listed = ", ".join(f"'{value}'" for value in values)

    def check(value: Any, param: str) -> str:
        if not isinstance(value, str):
            wrong_type(param, f"one of {listed}", value)
        if value not in values:
            invalid(param, f"expected one of {listed}.")
        return value

    return check


def number(low: float, high: float) -> Check:
    """Accept a finite number between `low` and `high`."""

    def check(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            wrong_type(param, "a number", value)
        if not low <= value <= high:  # never so for NaN and the infinities
            _out_of_range(param, "decimal", low if value < low else None, high)
        return value

    return check


def integer(low: int, high: int = _MAX_INTEGER) -> Check:
    """Accept an integer between `low` and `high`; a float without a fraction counts."""

    def check(value: Any, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(param, "an integer", value)
        if not low <= value <= high:
            _out_of_range(param, "integer", low if value < low else None, high)
        return value

    return check


def _out_of_range(param: str, kind: str, low: float | None, high: float) -> NoReturn:
    """Raise the answer to a number below `low` or, without one, above `high`."""
    if low is not None:
        invalid(param, f"{kind} below minimum value. Expected a value >= {low}.", f"{kind}_below_min_value")
    invalid(param, f"{kind} above maximum value. Expected a value <= {high}.", f"{kind}_above_max_value")


def boolean(value: Any, param: str) -> bool:
    """Accept true or false, nothing that looks like it."""
    if not isinstance(value, bool):
        wrong_type(param, "a boolean", value)
    return value


def anything(value: Any, _param: str) -> Any:
    """Accept any value: the agent judges it."""
    return value


def mapping(value: Any, param: str) -> dict[str, Any]:
    """Accept an object."""
    if not isinstance(value, dict):
        wrong_type(param, "an object", value)
    return value


def array(value: Any, param: str, low: int = 0, high: int | None = None) -> list[Any]:
    """Accept an array of `low` to `high` items."""
    if not isinstance(value, list):
        wrong_type(param, "an array", value)
    if low and not value:
        invalid(param, f"empty array. Expected at least {low} item(s).", "empty_array")
    if len(value) < low:
        invalid(param, f"array too short. Expected at least {low} items.", "array_below_min_length")
    if high is not None and len(value) > high:
        invalid(param, f"array too long. Expected at most {high} items.", "array_above_max_length")
    return value


def metadata(value: Any, param: str) -> dict[str, str]:
    """Accept at most 16 pairs, keys of 64 and string values of 512 characters."""
    pairs = mapping(value, param)
    if len(pairs) > 16:
        invalid(param, "expected at most 16 pairs.", "object_above_max_properties")
    for key, item in pairs.items():
        if len(key) > 64:
            invalid(param, "a key is longer than 64 characters.", "string_above_max_length")
        text(512)(item, f"{param}.{key}")
    return pairs


def check_density(text: bytes | bytearray) -> None:
    """Refuse JSON whose parsing alone would take long: what it holds is counted by `check_amount` then."""
    if len(text) > _MAX_BRACKETS and text.count(b"{") + text.count(b"[") > _MAX_BRACKETS:
        _refuse_amount()


def check_amount(value: Any, text: bytes | bytearray) -> None:
    """Refuse what was parsed from `text` when that is long, and has too many values or numbers that are too large.

    A value costs as much as a thousand letters, and a number of a thousand digits more. Not many fit into a short text,
    and its numbers are refused where they would matter.
    """
    if len(text) <= _SMALL:
        return
    left = _MAX_VALUES
    for level in _levels(value):
        left -= sum(map(len, level))
        if left < 0:
            _refuse_amount()


def _refuse_amount() -> NoReturn:
    raise InvalidRequestError(
        f"The body of your request holds too many values. Expected at most {_MAX_VALUES}.", code="too_many_values"
    )


def check_finite(value: Any) -> None:
    """Refuse numbers that are too large: 1e999, which is infinite in Python and no JSON, or an integer as long.

    Values nested more than `_MAX_DEPTH` deep are refused too. A body is not, but what was packed into one may be.
    """
    for depth, level in enumerate(_levels(value)):
        if level and depth == _MAX_DEPTH:
            raise InvalidRequestError("The body of your request is nested too deeply.", code="invalid_json")


def _levels(value: Any) -> Iterator[list[Any]]:
    """Yield the arrays and objects in `value`, one nesting after the other; refuse numbers that are too large.

    Most values are texts, which are passed over quickly so.
    """
    inner = [value]
    while inner:
        level = [item for item in inner if isinstance(item, _CONTAINERS)]
        if len(level) < len(inner):
            for item in inner:
                _check_number(item)
        yield level
        inner = [
            item for one in level for item in (one.values() if isinstance(one, dict) else one) if type(item) is not str
        ]


def _check_number(value: Any) -> None:
    if isinstance(value, int):
        is_too_large = value.bit_length() > _MAX_BITS
    else:
        is_too_large = isinstance(value, float) and not math.isfinite(value)
    if is_too_large:
        raise InvalidRequestError("A number in the body of your request is too large.", code="invalid_json")
