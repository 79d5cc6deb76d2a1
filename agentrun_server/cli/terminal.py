"""What may be written to a terminal, and how.

Text from a server is not trusted: an escape sequence in it could rewrite the screen, change the window's
title or, in some terminals, type commands. `clean` lets printable characters, line feeds and tabs through
and makes the rest visible.
"""

import os
import sys
from collections.abc import Mapping
from typing import TextIO

__all__ = ["Screen", "clean", "use_styles"]

# Overrides of the writing direction can make text read as something else than it is.
_DIRECTION = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))


def _visible() -> dict[int, str | None]:
    table: dict[int, str | None] = {code: "^" + chr(code + 64) for code in range(32)}
    del table[ord("\n")], table[ord("\t")]
    table[ord("\r")] = None  # half of a line end in text from Windows
    table[0x7F] = "^?"
    table |= dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")  # the 8-bit forms of escape sequences
    table |= dict.fromkeys(_DIRECTION, "\N{REPLACEMENT CHARACTER}")
    table |= dict.fromkeys(range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}")  # lone surrogates cannot be written
    return table


_TABLE = _visible()


def clean(text: str) -> str:
    """Return `text` without anything a terminal would obey."""
    return text if text.isprintable() else text.translate(_TABLE)


def use_styles(stream: TextIO, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to dim text on `stream`: on a terminal, unless ``NO_COLOR`` or a dumb one says no."""
    environ = os.environ if environ is None else environ
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Screen:
    """Writes answers to one stream and everything about them (reasoning, activity, notices) to another.

    On a terminal the two are the same place, and what is not answer is dim. Piped, the answer alone is in
    stdout.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err
        self._styles = use_styles(self._err)
        self._open: TextIO | None = None  # the stream whose last line is not ended yet

    def answer(self, text: str) -> None:
        """Write a piece of the answer."""
        self._switch(self._out)
        self._write(self._out, clean(text))

    def aside(self, text: str) -> None:
        """Write a piece of reasoning."""
        self._switch(self._err)
        self._write(self._err, clean(text), dim=True)

    def note(self, line: str) -> None:
        """Write a line of its own about what happens."""
        self.end_line()
        self._write(self._err, clean(line) + "\n", dim=True)

    def error(self, line: str) -> None:
        """Write a line that says what went wrong."""
        self.end_line()
        self._write(self._err, f"Error: {clean(line)}\n")

    def end_line(self) -> None:
        """End the line that is open, if one is."""
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def _switch(self, stream: TextIO) -> None:
        if self._open is not None and self._open is not stream:
            self.end_line()

    def _write(self, stream: TextIO, text: str, *, dim: bool = False) -> None:
        if not text:
            return
        self._open = stream  # before the write, which Ctrl-C may end
        try:
            stream.write(f"\x1b[2m{text}\x1b[22m" if dim and self._styles else text)
        except UnicodeEncodeError:  # an old locale
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
        if text.endswith("\n"):
            self._open = None
