"""Whatever an agent yields becomes a stream that an independent judge accepts, or an error; never anything else."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.core.events import Interrupt, TextDelta
from agentrun_server.errors import AgentFailedError, TooManyRequestsError
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings, split_events
from tests.protocols.openai_chat import strategies
from tests.protocols.openai_chat.answers import same_text
from tests.protocols.openai_responses.answers import ALLOWED, End, encoder_of, feed, finish, stream_of
from tests.protocols.openai_responses.strategies import bodies, response_settings
from tests.support.properties import any_text
from tests.support.responses_oracle import ParsedResponse, check_response, check_response_stream

_ends: dict[str, End] = {
    "finish": finish,
    "cancel": ResponseEncoder.cancel,
    "incomplete": lambda encoder: encoder.incomplete("max_output_tokens"),
    "fail": lambda encoder: encoder.fail(AgentFailedError("It broke.")),
    "rate": lambda encoder: encoder.fail(TooManyRequestsError("Too much.", param="input")),
    "queued": lambda encoder: encoder.cancel() + encoder.finish(1) + encoder.fail(AgentFailedError("late")),
}


def check(items: list[Any], body: dict[str, Any], settings: ResponseSettings, end: str = "finish") -> ParsedResponse:
    stream, raised = stream_of(items, body, settings, _ends[end])
    parsed = check_response_stream(stream, obfuscation=body["stream_options"]["include_obfuscation"])
    check_response(parsed.response)
    if raised is not None:
        assert parsed.response["status"] == "failed"
    events = split_events(stream.decode())
    assert len(events) == len(parsed.events)
    assert b"".join(events) + b"data: [DONE]\n\n" == stream
    return parsed


@given(strategies.items, bodies(), response_settings, st.sampled_from(sorted(_ends)))
def test_anything_an_agent_may_yield_gives_a_valid_stream(
    items: list[Any], body: dict[str, Any], settings: ResponseSettings, end: str
) -> None:
    check(items, body, settings, end)


@given(st.lists(strategies.wrong_items, min_size=1, max_size=3), strategies.items, bodies(), response_settings)
def test_what_no_agent_should_yield_is_refused_or_read_but_breaks_nothing(
    wrong: list[Any], items: list[Any], body: dict[str, Any], settings: ResponseSettings
) -> None:
    check([*items[:3], *wrong, *items[3:]], body, settings)


@given(strategies.items, bodies(), response_settings, st.booleans())
def test_a_stream_that_is_opened_early_says_the_same(
    items: list[Any], body: dict[str, Any], settings: ResponseSettings, queued: bool
) -> None:
    lazy, raised = stream_of(items, body, settings)
    encoder = encoder_of(body, settings)
    written = [encoder.open(queued=queued)]
    if queued:
        written.append(encoder.proceed())
    try:
        feed(items, encoder, written)
        written.append(finish(encoder))
    except ALLOWED:
        assert raised is not None
        return
    early = "".join(written).encode()
    if queued:
        obfuscated = body["stream_options"]["include_obfuscation"]
        assert check_response_stream(early, obfuscation=obfuscated).types[1:3] == ["queued", "in_progress"]
    elif raised is None:
        assert early == lazy


@given(st.lists(any_text.filter(bool), max_size=5), st.integers(0, 5))
def test_texts_fed_together_are_the_events_of_each(texts: list[str], split: int) -> None:
    settings = ResponseSettings(max_output_bytes=30)
    alone, _ = stream_of(texts, None, settings)
    encoder = encoder_of(None, settings)
    written = ""
    for text in texts[:split]:
        written += encoder.feed(text) if not encoder.ended else ""
    if texts[split:] and not encoder.ended:
        written += encoder.feed_texts(texts[split:])
    written += finish(encoder)
    assert written.encode() == alone


_said = st.one_of(
    any_text, st.builds(TextDelta, any_text), st.builds(Interrupt, any_text, any_text, st.sampled_from(["input", "x"]))
)


@given(st.lists(_said, max_size=8))
def test_the_text_is_what_the_agent_said_and_nothing_else(items: list[Any]) -> None:
    stream, raised = stream_of(items)
    assert raised is None
    said = "".join(
        item if isinstance(item, str) else item.text if isinstance(item, TextDelta) else item.prompt for item in items
    )
    assert same_text(check_response_stream(stream).text) == same_text(said)


@given(strategies.call_scripts(), st.sets(st.sampled_from(strategies.CLIENT_TOOLS)))
def test_the_calls_of_the_client_are_function_calls_and_the_others_are_not(
    script: strategies.CallScript, names: set[str]
) -> None:
    stream, raised = stream_of(script.said, {"tools": [{"type": "function", "name": name} for name in sorted(names)]})
    assert raised is None
    items = check_response_stream(stream).items
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in items if item["type"] == "function_call"]
    own = [(item["name"], item["arguments"]) for item in items if item["type"] == "mcp_call"]
    said = [(call_id, name, same_text(arguments)) for call_id, name, arguments in script.calls]
    assert [(i, n, same_text(a)) for i, n, a in calls] == [call for call in said if call[1] in names]
    assert [(n, same_text(a)) for n, a in own] == [call[1:] for call in said if call[1] not in names]
