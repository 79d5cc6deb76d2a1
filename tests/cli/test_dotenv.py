"""The ``.env`` file: what is read, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.cli.dotenv import DotenvError, parse_dotenv


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("\n\n# a comment\n   # another\n", {}),
        ("KEY=value", {"KEY": "value"}),
        ("KEY=value\nOTHER=2\n", {"KEY": "value", "OTHER": "2"}),
        ("  KEY  =  value with spaces  \n", {"KEY": "value with spaces"}),
        ("export KEY=value", {"KEY": "value"}),
        ("export\tKEY=value", {"KEY": "value"}),
        ("exported=1", {"exported": "1"}),
        ("KEY=", {"KEY": ""}),
        ("KEY=   ", {"KEY": ""}),
        ("KEY=value # comment", {"KEY": "value"}),
        ("KEY= # comment", {"KEY": ""}),
        ("KEY=value#no comment", {"KEY": "value#no comment"}),
        ("COLOUR=#fff", {"COLOUR": "#fff"}),
        ("KEY='single # quoted $HOME \\n'", {"KEY": "single # quoted $HOME \\n"}),
        ('KEY="double # quoted"', {"KEY": "double # quoted"}),
        ('KEY="a\\nb\\t\\"c\\" \\\\ \\$d \\x"', {"KEY": 'a\nb\t"c" \\ $d \\x'}),
        ("KEY='it' # comment", {"KEY": "it"}),
        ("KEY=''", {"KEY": ""}),
        ('KEY="line 1\nline 2"\nNEXT=1', {"KEY": "line 1\nline 2", "NEXT": "1"}),
        ("KEY='# not a comment\n=still text'\nNEXT=1", {"KEY": "# not a comment\n=still text", "NEXT": "1"}),
        ("KEY=a=b==", {"KEY": "a=b=="}),
        ("KEY=it's", {"KEY": "it's"}),
        ("KEY=$OTHER ${THIS}", {"KEY": "$OTHER ${THIS}"}),
        ("A=1\nA=2", {"A": "2"}),
        ("\ufeffKEY=1", {"KEY": "1"}),
        ("KEY=1\r\nOTHER=2\r\n", {"KEY": "1", "OTHER": "2"}),
        ("KEY=日本\n", {"KEY": "日本"}),
    ],
)
def test_a_line_is_a_pair(text: str, pairs: dict[str, str]) -> None:
    assert parse_dotenv(text) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KEY", "line 1: expected KEY=VALUE"),
        ("A=1\n\nsecret-without-name", "line 3: expected KEY=VALUE"),
        ("=value", "line 1: the name before '=' must be letters, digits and underscores"),
        ("MY-KEY=1", "line 1: the name before '=' must be letters, digits and underscores"),
        ("1KEY=1", "line 1: the name before '=' must be letters, digits and underscores"),
        ("A=1\nKEY='open\nB=2", "line 2: the quote is not closed"),
        ('KEY="open \\"', "line 1: the quote is not closed"),
        ("KEY='a' b", "line 1: there is text after the closing quote"),
        ("KEY=a\0b", "holds a NUL byte; is it a text file?"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_by_its_number(text: str, message: str) -> None:
    with pytest.raises(DotenvError) as caught:
        parse_dotenv(text)
    assert str(caught.value) == message


def test_an_error_does_not_repeat_the_line() -> None:
    with pytest.raises(DotenvError) as caught:
        parse_dotenv("A=1\nsk-very-secret\n")
    assert "secret" not in str(caught.value)


@given(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
def test_any_text_survives_in_double_quotes(value: str) -> None:
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_dotenv(f'BEFORE=1\nKEY="{quoted}"\nAFTER=2') == {"BEFORE": "1", "KEY": value, "AFTER": "2"}


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        pairs = parse_dotenv(text)
    except DotenvError:
        return
    assert all(name.isidentifier() for name in pairs)
