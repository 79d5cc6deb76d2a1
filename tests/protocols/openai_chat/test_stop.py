"""Stop sequences in a stream of text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.protocols.openai_chat.stop import StopFilter
from tests.support import properties  # noqa: F401 - settings of hypothesis


def passed(stop: list[str], pieces: list[str]) -> list[str]:
    """Return what the filter passes of each piece, and at the end."""
    stop_filter = StopFilter(stop)
    return [*[stop_filter.feed(piece) for piece in pieces], stop_filter.flush()]


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["END"], ["Hello"], ["Hello", ""]),
        (["END"], ["Hello END more"], ["Hello ", ""]),
        (["END"], ["Hello E", "ND more"], ["Hello ", "", ""]),
        (["END"], ["Hello E", "N", "D"], ["Hello ", "", "", ""]),
        (["END"], ["E", "E", "ND"], ["", "E", "", ""]),
        (["END"], ["EN", "EN", "x"], ["", "EN", "ENx", ""]),
        (["END"], ["Hello EN"], ["Hello ", "EN"]),
        (["END"], ["END"], ["", ""]),
        (["a"], ["bab"], ["b", ""]),
        (["aab"], ["aa", "ab"], ["", "a", ""]),
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", "", ""]),
        (["abc", "b"], ["ab", "c"], ["a", "", ""]),
        (["bc", "abcd"], ["abcd"], ["a", ""]),
        (["x", "y"], ["a", "b"], ["a", "b", ""]),
    ],
)
def test_text_is_passed_up_to_the_first_sequence(stop: list[str], pieces: list[str], shown: list[str]) -> None:
    assert passed(stop, pieces) == shown


def test_nothing_is_passed_after_a_hit() -> None:
    stop_filter = StopFilter(["END"])
    assert not stop_filter.hit
    assert stop_filter.feed("a END b") == "a "
    assert stop_filter.hit
    assert stop_filter.feed("more") == stop_filter.flush() == ""


def test_no_more_is_held_back_than_may_be_the_beginning_of_a_sequence() -> None:
    stop_filter = StopFilter(["long sequence"])
    assert stop_filter.feed("long") == ""
    assert stop_filter.feed(" story") == "long story"


def test_what_was_flushed_still_counts_as_a_beginning() -> None:
    stop_filter = StopFilter(["STOP"])
    assert stop_filter.feed("a ST") == "a "
    assert stop_filter.flush() == "ST"
    assert stop_filter.flush() == ""
    assert stop_filter.feed("OP b") == ""
    assert stop_filter.hit


def test_what_was_flushed_is_not_passed_again() -> None:
    stop_filter = StopFilter(["STOP"])
    assert stop_filter.feed("ST") == ""
    assert stop_filter.flush() == "ST"
    assert stop_filter.feed("ST") == ""
    assert stop_filter.flush() == "ST"
    assert stop_filter.feed("ART") == "ART"


_small = st.text("ab", min_size=1, max_size=4)


def model(stop: list[str], text: str) -> str:
    """Read letter by letter, as a model speaks: the answer ends when a sequence is complete."""
    for end in range(len(text) + 1):
        complete = [sequence for sequence in stop if text[:end].endswith(sequence)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(st.lists(_small, min_size=1, max_size=3), st.lists(st.text("ab", max_size=4), max_size=8))
def test_the_answer_is_the_same_however_the_text_is_split(stop: list[str], pieces: list[str]) -> None:
    assert "".join(passed(stop, pieces)) == model(stop, "".join(pieces))


@given(st.lists(_small, min_size=1, max_size=3), st.lists(st.text("ab", max_size=4) | st.none(), max_size=8))
def test_with_flushes_in_between_no_sequence_is_shown_and_nothing_is_lost(
    stop: list[str], pieces: list[str | None]
) -> None:
    stop_filter = StopFilter(stop)
    shown = "".join([stop_filter.flush() if piece is None else stop_filter.feed(piece) for piece in pieces])
    shown += stop_filter.flush()
    text = "".join(piece for piece in pieces if piece is not None)
    assert text.startswith(shown)
    assert shown.startswith(model(stop, text))
    assert not any(sequence in shown for sequence in stop)
    assert stop_filter.hit or shown == text
