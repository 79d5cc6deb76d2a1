"""What a server says cannot command the terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.cli.terminal import Screen, clean, use_styles


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcödé, 日本語, 🙂", "plain text, ünïcödé, 日本語, 🙂"),
        ("lines\nand\ttabs", "lines\nand\ttabs"),
        ("from Windows\r\n", "from Windows\n"),
        ("\x1b[2J\x1b]0;title\x07", "^[[2J^[]0;title^G"),
        ("\x00\x08\x7f", "^@^H^?"),
        ("\x9b31m", "\ufffd31m"),
        ("safe \u202eexe.txt", "safe \ufffdexe.txt"),
        ("half \ud800 pair", "half \ufffd pair"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text(st.characters()))
def test_no_text_gets_through_that_a_terminal_would_obey(text: str) -> None:
    cleaned = clean(text)
    assert not [c for c in cleaned if (ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    cleaned.encode()


@pytest.mark.parametrize(
    ("stream", "environ", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_dim_text_is_for_terminals_that_want_it(stream: io.StringIO, environ: dict[str, str], expected: bool) -> None:
    assert use_styles(stream, environ) is expected


def test_a_screen_on_a_terminal_dims_what_is_not_the_answer() -> None:
    both = Terminal()
    screen = Screen(both, both)
    screen.aside("hmm")
    screen.answer("Yes.")
    screen.note("· done")
    assert both.getvalue() == "\x1b[2mhmm\x1b[22mYes.\n\x1b[2m· done\n\x1b[22m"


def test_a_screen_without_a_terminal_keeps_the_answer_apart_and_plain() -> None:
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err)
    screen.aside("hm")
    screen.aside("m")
    screen.answer("Y")
    screen.answer("es.")
    screen.note("· done")
    screen.error("it broke\x1b[2J")
    screen.end_line()
    assert out.getvalue() == "Yes.\n"
    assert err.getvalue() == "hmm\n· done\nError: it broke^[[2J\n"


def test_a_line_is_ended_once() -> None:
    out = io.StringIO()
    screen = Screen(out, io.StringIO())
    screen.answer("one\n")
    screen.end_line()
    screen.answer("two")
    screen.end_line()
    screen.end_line()
    assert out.getvalue() == "one\ntwo\n"


def test_an_old_locale_gets_question_marks_and_no_traceback() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    Screen(out, io.StringIO()).answer("naïve 🙂")
    out.flush()
    assert raw.getvalue() == b"na?ve ?"
