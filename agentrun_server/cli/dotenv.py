"""Reads a ``.env`` file: text in, pairs out.

One ``KEY=VALUE`` a line. ``export`` in front is allowed; ``#`` starts a comment at the beginning of a line,
after a quoted value, or after white space in an unquoted one. ``'…'`` is taken as it is; ``"…"`` knows
``\\n \\r \\t \\" \\\\ \\$``; both may span lines. Nothing is expanded: ``$HOME`` stays ``$HOME``. The last
of several equal keys wins.

A file that cannot be read this way is refused with the line's number. The line itself is not repeated: such
files hold secrets.
"""

import re

__all__ = ["DotenvError", "parse_dotenv"]

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_INLINE_COMMENT = re.compile(r"\s#.*\Z")  # ``COLOUR=#fff`` has none


class DotenvError(ValueError):
    """The file does not follow the form; the message names the line."""


def parse_dotenv(text: str) -> dict[str, str]:
    """Return the pairs of a ``.env`` file's `text`.

    Raises:
        DotenvError: a line is not ``KEY=VALUE``, a quote is not closed, or the text holds a NUL byte.
    """
    if "\0" in text:
        raise DotenvError("holds a NUL byte; is it a text file?")
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    pairs: dict[str, str] = {}
    position = 0
    while position < len(text):
        position = _read_line(text, position, pairs)
    return pairs


def _read_line(text: str, start: int, pairs: dict[str, str]) -> int:
    """Read the entry that begins at `start` into `pairs`; return where the next one begins."""
    end = _line_end(text, start)
    line = text[start:end].strip()
    if not line or line.startswith("#"):
        return end + 1
    number = text.count("\n", 0, start) + 1
    equals = text.find("=", start, end)
    if equals < 0:
        raise DotenvError(f"line {number}: expected KEY=VALUE")
    key = text[start:equals].strip()
    if key.startswith(("export ", "export\t")):
        key = key[len("export") :].strip()
    if not _KEY.match(key):
        raise DotenvError(f"line {number}: the name before '=' must be letters, digits and underscores")
    value_start = equals + 1
    while value_start < end and text[value_start] in " \t":
        value_start += 1
    if text[value_start : value_start + 1] in ("'", '"'):
        pairs[key], end = _read_quoted(text, value_start, number)
    else:
        pairs[key] = _INLINE_COMMENT.sub("", text[equals + 1 : end]).strip()
    return end + 1


def _read_quoted(text: str, start: int, number: int) -> tuple[str, int]:
    """Return the quoted value at `start` and the end of the line on which its quote closes."""
    double = text[start] == '"'
    match = (_DOUBLE_QUOTED if double else _SINGLE_QUOTED).match(text, start)
    if match is None:
        raise DotenvError(f"line {number}: the quote is not closed")
    end = _line_end(text, match.end())
    rest = text[match.end() : end].strip()
    if rest and not rest.startswith("#"):
        raise DotenvError(f"line {number}: there is text after the closing quote")
    return (_ESCAPE.sub(_unescape, match[1]) if double else match[1]), end


def _unescape(match: re.Match[str]) -> str:
    # An unknown escape stays as it is written: Windows paths and regular expressions are common values.
    return _ESCAPES.get(match[1], match[0])


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end
