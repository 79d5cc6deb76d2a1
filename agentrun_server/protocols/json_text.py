"""JSON for the wire: exact, safe inside a line of an event stream, and quick for a piece of text.

Text is sent as UTF-8, so that Chinese reads well in a terminal, but for the characters that break readers: line ends
that some clients split at (U+0085, U+2028, U+2029) and lone surrogates, which UTF-8 cannot hold, are escaped. Control
characters below U+0020 always are. NaN and infinities do not exist in JSON and become null.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from json.encoder import encode_basestring as _quote
from typing import Any

__all__ = ["dumps", "quote", "quote_of"]

_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")

_MAX_DEPTH = 64
"""Deeper values than this are refused: no client shows them, and they would exhaust the stack."""


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def quote(text: str) -> str:
    """Return `text` as a JSON string."""
    if text.isascii():
        return _quote(text)
    return _UNSAFE.sub(_escape, _quote(text))


def quote_of(text: str) -> Callable[[str], str]:
    """Return the quickest function that quotes every part of `text` as `quote` does."""
    return _quote if text.isascii() else quote


def dumps(value: Any) -> str:
    """Return `value` as JSON on one line; objects JSON does not know become what they say of themselves.

    Pydantic models and dataclasses become objects, other values their `str`.

    Raises:
        ValueError: the value contains itself.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(_plain(value, _MAX_DEPTH), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text if text.isascii() else _UNSAFE.sub(_escape, text)


def _plain(value: Any, depth: int) -> Any:
    if depth == 0:
        raise ValueError("the value is nested too deeply, or contains itself")
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, depth - 1)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _plain(dump(), depth - 1)
    return str(value)
