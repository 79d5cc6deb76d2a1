"""The parser the tests trust: examples of WHATWG HTML §9.2, and streams cut anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.sse import Event, EventStreamError, SSEParser, parse_events


def test_the_example_of_the_specification_with_comments_ids_and_an_unspaced_colon() -> None:
    stream = b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
    assert parse_events(stream) == [
        Event("message", "first event", "1", comments=(" test stream",), lines=("data: first event", "id: 1")),
        Event("message", "second event", "", lines=("data:second event", "id")),
        Event("message", " third event", "", lines=("data:  third event",)),
    ]


def test_empty_data_lines_are_events_as_the_specification_says() -> None:
    assert [event.data for event in parse_events(b"data\n\ndata\ndata\n\n")] == ["", "\n"]


def test_several_data_lines_are_joined_by_newlines() -> None:
    assert parse_events(b"data: YHOO\ndata: +2\ndata: 10\n\n")[0].data == "YHOO\n+2\n10"


def test_a_block_without_data_is_no_event_but_its_id_counts() -> None:
    events = parse_events(b"event: nothing\nid: 7\n\ndata: x\n\n")
    assert [(event.event, event.data, event.id) for event in events] == [("message", "x", "7")]


def test_the_type_holds_for_one_event_only() -> None:
    events = parse_events(b"event: add\ndata: 1\n\ndata: 2\n\n")
    assert [event.event for event in events] == ["add", "message"]


def test_what_the_specification_ignores_is_ignored_but_kept_as_lines() -> None:
    (event,) = parse_events(b"id: a\0b\nretry: 1s\nfoo: bar\ndata: x\nretry: 300\n\n")
    assert (event.id, event.retry, event.data) == ("", 300, "x")
    assert event.lines == ("id: a\0b", "retry: 1s", "foo: bar", "data: x", "retry: 300")


def test_retry_must_be_ascii_digits() -> None:
    parser = SSEParser()
    parser.feed("retry: \u0663\n\nretry: 5\n\n".encode())
    assert parser.retry == 5


def test_lines_may_end_in_any_of_the_three_ways() -> None:
    stream = b"data: 1\r\n\r\ndata: 2\r\rdata: 3\n\n"
    assert [event.data for event in parse_events(stream)] == ["1", "2", "3"]


def test_one_byte_order_mark_at_the_start_is_dropped() -> None:
    assert [event.data for event in parse_events(b"\xef\xbb\xbfdata: 1\n\n")] == ["1"]
    assert parse_events(b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\n") == []


def test_comments_after_the_last_event_are_kept() -> None:
    parser = SSEParser()
    assert len(parser.feed(b": a\n\ndata: 1\n\n: b\n\n")) == 1
    assert (parser.close(), parser.comments) == ([], [" a", " b"])


def test_an_event_is_dispatched_by_its_blank_line_and_not_before() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: 1\n") == []
    assert [event.data for event in parser.feed(b"\n")] == ["1"]


@pytest.mark.parametrize("stream", [b"data: 1", b"data: 1\n", b"data: 1\n\ndata: 2\n", b"event: x\n"])
def test_a_stream_that_ends_in_the_middle_of_an_event_is_refused(stream: bytes) -> None:
    with pytest.raises(EventStreamError, match="ends"):
        parse_events(stream)


def test_bytes_that_are_not_utf_8_are_refused() -> None:
    with pytest.raises(EventStreamError, match="not UTF-8"):
        parse_events(b"data: \xff\n\n")


LINES = st.sampled_from(
    ["data: a", "data:b", "data", "event: e", "id: 1", "id", "retry: 9", ": c", "x", "data: é𝄞", ""]
)


@given(
    lines=st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r", "\r\n"]))),
    cuts=st.lists(st.integers(0, 200)),
)
def test_where_a_stream_is_cut_makes_no_difference(lines: list[tuple[str, str]], cuts: list[int]) -> None:
    stream = "".join(line + end for line, end in [*lines, ("", "\n"), ("", "\n")]).encode()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[start:end] for start, end in pairwise(places)]
    assert parse_events(pieces) == parse_events(stream)
    assert parse_events([bytes([byte]) for byte in stream]) == parse_events(stream)
