"""Pieces of text fed together are what they are one by one: `feed_texts` is only quicker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.protocols.openai_chat.decode import PLAIN
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder, CompletionEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings

# Surrogates too, and what lies near the limits of a chunk and of the whole answer.
pieces = st.lists(
    st.text(st.characters(codec=None), min_size=1)
    | st.builds("".join, st.lists(st.just("x" * 40_000), min_size=1, max_size=3)),
    min_size=1,
)


def chunks(limit: int) -> ChunkEncoder:
    encoder = ChunkEncoder(
        PLAIN,
        ChatSettings(max_output_bytes=limit),
        lambda prefix: f"{prefix}id",
        id="chatcmpl-1",
        created=1,
        model="m",
        prompt_tokens=lambda: 1,
    )
    encoder.feed("first")  # the role is sent, and the text is plain
    assert encoder.plain
    return encoder


@pytest.mark.parametrize("limit", [8, 100_000, 10**9])
@given(texts=pieces)
def test_texts_fed_together_are_the_chunks_of_each(texts: list[str], limit: int) -> None:
    together, single = chunks(limit), chunks(limit)
    assert together.feed_texts(texts) == "".join(single.feed(text) for text in texts)
    assert (together.text_bytes, together.ended) == (single.text_bytes, single.ended)
    assert together.finish_choice() == single.finish_choice()


@given(texts=pieces)
def test_texts_fed_together_are_the_completion_of_each(texts: list[str]) -> None:
    def encoder() -> CompletionEncoder:
        return CompletionEncoder(PLAIN, ChatSettings(), lambda prefix: f"{prefix}id")

    together, single = encoder(), encoder()
    assert together.feed_texts(texts) == "".join(single.feed(text) for text in texts) == ""
    assert together._texts == single._texts
    assert together.text_bytes == single.text_bytes
