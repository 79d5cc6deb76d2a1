"""Counting tokens, and guessing them honestly."""

import pytest

from agentrun_server.core.usage import Usage, estimate_tokens, utf8_size


def test_usages_are_added_field_by_field() -> None:
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)
    assert sum([Usage(1), Usage(output_tokens=2)], Usage()) == Usage(1, 2)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("é", 2),
        ("中文", 6),
        ("😀", 4),
        ("\ud800", 3),
    ],
)
def test_the_size_of_a_text_is_its_length_in_utf_8(text: str, size: int) -> None:
    assert utf8_size(text) == size


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("中文中文", 3)])
def test_an_estimate_is_one_token_for_every_four_bytes_begun(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens
