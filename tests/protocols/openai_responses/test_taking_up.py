"""A response whose worker was lost: wherever its log ends, another encoder ends it, or goes on behind it."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrun_server.core.events import (
    Annotation,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    ReasoningDelta,
    TypedEvent,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, GrammarError, TooManyRequestsError
from agentrun_server.invoker.coerce import coerce
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings, split_events
from agentrun_server.protocols.openai_responses.replay import output_so_far, read_log
from tests.protocols.openai_chat import strategies
from tests.protocols.openai_responses.answers import ALLOWED, FUNCTION, Counter, encoder_of, feed, finish, stream_of
from tests.protocols.openai_responses.strategies import bodies, response_settings
from tests.protocols.openai_responses.variants import VARIANTS, Variant
from tests.support.properties import EXAMPLES
from tests.support.responses_oracle import ParsedResponse, check_response, check_response_stream

TOOLS = {"tools": [FUNCTION]}
LOST = AgentFailedError("The worker was lost.", code="worker_lost")
DONE = b"data: [DONE]\n\n"

Log = list[bytes]
Rest = Callable[[ResponseEncoder], str]


def ids_of(worker: str) -> Callable[[str], str]:
    """Return a source of ids that nobody else has."""
    count = Counter()
    return lambda prefix: count(f"{prefix}{worker}_" if prefix else "")


def taken_up(
    log: Sequence[bytes], body: Any = None, settings: ResponseSettings | None = None, worker: str = "other"
) -> ResponseEncoder:
    encoder = encoder_of(body, settings, ids_of(worker))
    encoder.take_up(log)
    return encoder


def log_of(items: Sequence[Any], body: Any = None) -> Log:
    """Return the log of an agent that was lost after `items`."""
    encoder = encoder_of(body)
    written: list[str] = []
    feed(items, encoder, written)
    return split_events("".join(written))


def fail(encoder: ResponseEncoder) -> str:
    return encoder.fail(LOST)


def attempt(items: Sequence[Any]) -> Rest:
    """Return what runs an agent that yields `items` as the server does."""

    def run(encoder: ResponseEncoder) -> str:
        written: list[str] = []
        try:
            written.append(encoder.proceed())
            feed(items, encoder, written)
            written.append(finish(encoder))
        except ALLOWED:
            written.append(encoder.fail(LOST))
        return "".join(written)

    return run


RESTS: dict[str, Rest] = {
    "fail": fail,
    "cancel": ResponseEncoder.cancel,
    "said again": attempt(["Once", FunctionCall("own", "{}", "c1"), " more.", FunctionCall("f", "{}", "again")]),
}


def judged(log: Log, rest: Rest, body: Any = None, settings: ResponseSettings | None = None) -> ParsedResponse:
    """Let another encoder write the rest behind `log`; the judge accepts the whole."""
    encoder = taken_up(log, body, settings)
    written = rest(encoder)
    obfuscated = ((body or {}).get("stream_options") or {}).get("include_obfuscation")
    parsed = check_response_stream(b"".join(log) + (written.encode() or DONE), obfuscation=bool(obfuscated))
    check_response(parsed.response)
    assert encoder.ended
    assert json.loads(json.dumps(encoder.response)) == parsed.response
    assert encoder.cancel() + fail(encoder) + finish(encoder) + encoder.proceed() == ""
    return parsed


def check_every_cut(log: Log, rest: Rest, body: Any, settings: ResponseSettings) -> None:
    for cut in range(len(log) + 1):
        parsed = judged(log[:cut], rest, body, settings)
        if cut == len(log):
            assert len(parsed.events) == len(log)
        else:
            assert bool(read_log(log[:cut]).obstacle) is has_obstacle(parsed.events[:cut])


def has_obstacle(events: Sequence[dict[str, Any]]) -> bool:
    """Whether nothing but an end may follow: an error was told, an end has begun, or a client's call was cut."""
    cut: set[str] = set()
    for event in events:
        item = event.get("item", {})
        match event["type"].removeprefix("response."):
            case "error":
                return True
            case "output_item.added" if item["type"] in ("function_call", "custom_tool_call"):
                cut.add(item["id"])
            case "function_call_arguments.done" | "custom_tool_call_input.done":
                cut.remove(event["item_id"])
            case "output_item.done" if item["type"] == "message" and "phase" not in item:
                return True
    return bool(cut)


@pytest.mark.parametrize("end", ["fail", "said again"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_beginning_of_every_kind_of_stream_has_an_end(variant: Variant, end: str) -> None:
    stream, _ = stream_of(variant.items, variant.body, variant.settings, variant.end)
    check_every_cut(split_events(stream.decode()), RESTS[end], variant.body, variant.settings)


@settings(max_examples=EXAMPLES // 5)
@given(strategies.items, strategies.items, bodies(), response_settings, st.sampled_from(["fail", "cancel", "again"]))
def test_every_beginning_of_any_stream_has_an_end(
    items: list[Any], again: list[Any], body: dict[str, Any], settings: ResponseSettings, end: str
) -> None:
    log = split_events(stream_of(items, body, settings)[0].decode())
    check_every_cut(log, RESTS.get(end, attempt(again)), body, settings)


def _events(items: list[Any]) -> list[str | TypedEvent]:
    """Return what an agent says, but for what a log cannot keep."""
    try:
        events = [event for item in items for event in coerce(item)]
    except TypeError:
        return []
    return [event for event in events if not isinstance(event, FunctionCallOutputDelta)]


@settings(max_examples=EXAMPLES // 2)
@given(strategies.items, st.integers(0, 12), bodies(), response_settings, st.sampled_from(["fail", "cancel"]))
def test_another_encoder_ends_a_response_as_its_own_would_have(
    items: list[Any], cut: int, body: dict[str, Any], settings: ResponseSettings, end: str
) -> None:
    body["stream_options"] = {}  # what hides the length of a piece is drawn at random
    own = encoder_of(body, settings)
    written: list[str] = []
    try:
        feed(_events(items)[:cut], own, written)
    except ALLOWED:
        return
    log = split_events("".join(written))
    other = taken_up(log, body, settings)
    assert (RESTS[end](other) == "") is (RESTS[end](own) == "")
    assert without_usage(other.response) == without_usage(own.response)
    if log:
        assert output_so_far(log, status="incomplete") == json.loads(json.dumps(own.response))["output"]


def without_usage(response: dict[str, Any] | None) -> dict[str, Any]:
    """Return a response as clients see it, but for what the agent said of its cost, which is in no log."""
    read: dict[str, Any] = json.loads(json.dumps({**(response or {}), "usage": None}))
    return read


class TestWhatWasLeftOpen:
    def test_is_closed_by_an_end_as_it_is(self) -> None:
        parsed = judged(log_of(["Hel", "lo", Annotation.url_citation("https://a.example")]), fail)
        (message,) = parsed.response["output"]
        (part,) = message["content"]
        assert (message["status"], part["text"], "phase" in message) == ("incomplete", "Hello", False)
        assert [annotation["url"] for annotation in part["annotations"]] == ["https://a.example"]
        assert parsed.types[-5:] == ["output_text.done", "content_part.done", "output_item.done", "error", "failed"]

    def test_is_commentary_before_another_attempt(self) -> None:
        parsed = judged(log_of(["Hel"]), attempt(["Hello."]))
        first, second = parsed.response["output"]
        assert parsed.response["status"] == "completed"
        assert [item["content"][0]["text"] for item in (first, second)] == ["Hel", "Hello."]
        assert [(item["status"], item["phase"]) for item in (first, second)] == [
            ("incomplete", "commentary"),
            ("completed", "final_answer"),
        ]
        assert [item["id"] for item in (first, second)] == ["msg_1", "msg_other_1"]

    def test_is_closed_before_the_agent_says_anything(self) -> None:
        written = taken_up(log_of(["Hel"])).proceed()
        assert [event.split(b"\n")[0] for event in split_events(written)] == [
            b"event: response.output_text.done",
            b"event: response.content_part.done",
            b"event: response.output_item.done",
        ]

    def test_may_be_calls_of_the_agents_own(self) -> None:
        log = log_of([FunctionCall("a", '{"x":1}', "c1"), FunctionCallDelta('{"y"', "b", "c2"), "meanwhile"])
        items = judged(log, attempt([FunctionCall("a", '{"x":1}', "c1"), FunctionCallOutput("c1", "x")])).items
        assert [(i["type"], i.get("arguments"), i["status"]) for i in items] == [
            ("mcp_call", '{"x":1}', "incomplete"),
            ("mcp_call", '{"y"', "incomplete"),
            ("message", None, "incomplete"),
            ("mcp_call", '{"x":1}', "completed"),
            ("message", None, "completed"),
        ]

    def test_is_no_answer(self) -> None:
        items = judged(log_of(["Hel"]), attempt([])).items
        assert [(item["phase"], item["content"][0]["text"]) for item in items] == [
            ("commentary", "Hel"),
            ("final_answer", ""),
        ]


class TestAClientsCall:
    def test_that_was_cut_is_never_done(self) -> None:
        log = log_of([FunctionCallDelta('{"a":', "f", "c1")], TOOLS)
        for rest in (fail, ResponseEncoder.cancel):
            parsed = judged(log, rest, TOOLS)
            assert "output_item.done" not in parsed.types
            (call,) = parsed.response["output"]
            assert (call["status"], call["arguments"]) == ("incomplete", '{"a":')

    def test_that_was_cut_lets_no_other_attempt_follow(self) -> None:
        encoder = taken_up(log_of(["Hi", FunctionCallDelta('{"a":', "f", "c1")], TOOLS), TOOLS)
        for go_on in (encoder.proceed, lambda: finish(encoder)):
            with pytest.raises(GrammarError, match="a call of the client's was cut"):
                go_on()
        assert "response.failed" in fail(encoder)

    def test_that_is_whole_is_done(self) -> None:
        log = log_of([FunctionCall("f", "{}", "c1")], TOOLS)
        (call,) = judged(log[:-1], fail, TOOLS).response["output"]
        assert (call["status"], call["arguments"]) == ("completed", "{}")


class TestOpening:
    def test_an_empty_log_changes_nothing(self) -> None:
        assert judged([], attempt(["Hi"])).types[:3] == ["created", "in_progress", "output_item.added"]
        encoder = taken_up([])
        written = encoder.feed("Hi") + finish(encoder)
        assert check_response_stream(written.encode()).text == "Hi"

    @pytest.mark.parametrize("queued", [True, False])
    def test_it_is_completed_and_never_repeated(self, queued: bool) -> None:
        encoder = encoder_of()
        written = encoder.open(queued=queued) + (encoder.proceed() if queued else "")
        log = split_events(written)
        opening = ["created", "queued", "in_progress"] if queued else ["created", "in_progress"]
        for cut in range(2, len(log) + 1):
            assert judged(log[:cut], attempt(["Hi"])).types[: len(log) + 1] == [*opening, "output_item.added"]
            assert judged(log[:cut], fail).types == [*opening[:cut], "error", "failed"]
        assert judged(log[:1], fail).types == [*opening[:2], "error", "failed"]
        assert judged(log[:1], attempt(["Hi"])).types[:3] == ["created", "in_progress", "output_item.added"]

    def test_to_proceed_twice_is_told_once(self) -> None:
        encoder = taken_up(split_events(encoder_of().open(queued=True)))
        assert encoder.proceed()
        assert encoder.proceed() == ""

    def test_an_attempt_has_to_proceed_first(self) -> None:
        encoder = taken_up(log_of(["Hi"]))
        with pytest.raises(AssertionError, match="proceed"):
            encoder.feed("again")


class TestALogThatHasEnded:
    def test_is_the_response(self) -> None:
        stream, _ = stream_of(["Hi"])
        encoder = taken_up(split_events(stream.decode()))
        assert encoder.response == check_response_stream(stream).response
        assert encoder.ended
        assert encoder.feed("late") + finish(encoder) + encoder.cancel() + fail(encoder) == ""

    def test_but_for_the_last_event_is_completed_without_the_agent(self) -> None:
        stream, _ = stream_of(["Hi", FunctionCall("own", "{}", "c1"), "Done."])
        log = split_events(stream.decode())
        encoder = taken_up(log[:-1])
        assert encoder.ended
        assert encoder.proceed() + encoder.feed(ReasoningDelta("never")) == ""
        assert b"".join(log[:-1]) + finish(encoder).encode() == stream

    @pytest.mark.parametrize("rest", [*RESTS.values(), finish], ids=[*RESTS, "finish"])
    def test_but_for_the_last_event_stays_a_failure(self, rest: Rest) -> None:
        error = TooManyRequestsError("Later.")
        stream, _ = stream_of(["Hi"], end=lambda encoder: encoder.fail(error))
        log = split_events(stream.decode())
        assert b"".join(log[:-1]) + rest(taken_up(log[:-1])).encode() == stream

    def test_but_for_the_last_event_of_another_end_can_only_end(self) -> None:
        stream, _ = stream_of(["Hi"], end=ResponseEncoder.cancel)
        log = split_events(stream.decode())[:-1]
        with pytest.raises(GrammarError, match="it was being ended"):
            taken_up(log).proceed()
        assert judged(log, fail).response["status"] == "failed"


class TestCounting:
    def test_what_was_said_before_counts(self) -> None:
        said = ["1234567", ReasoningDelta("12345"), FunctionCall("f", '"中"', "c1")]
        own = encoder_of(TOOLS)
        log = log_of(said, TOOLS)
        feed(said, own, [])
        other = taken_up(log, TOOLS)
        assert (other.text_bytes, other.reasoning_bytes) == (own.text_bytes, own.reasoning_bytes) == (12, 5)
        finish(own)
        assert fail(other)
        assert own.response is not None
        assert other.response is not None
        assert other.response["usage"] == own.response["usage"]

    def test_what_the_agent_reports_is_believed(self) -> None:
        usage = judged(log_of(["12345678", Usage(9, 9)]), attempt(["Hi", Usage(3, 4)])).response["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (3, 4)

    def test_a_limit_is_that_of_the_whole_response(self) -> None:
        settings = ResponseSettings(max_output_bytes=8)
        parsed = judged(log_of(["12345"]), attempt(["6789"]), None, settings)
        assert (parsed.response["status"], parsed.text) == ("incomplete", "12345678")
        own = [FunctionCall("a", "{}", "c"), FunctionCallOutput("c", "1234")]
        parsed = judged(log_of(own), attempt([FunctionCallOutput("d", "5678")]), None, settings)
        assert [item.get("output") for item in parsed.items] == ["1234", "56", None]
        failed = [FunctionCallOutput("c", "123456", is_error=True)]
        assert taken_up(log_of(failed))._output_bytes == 8

    def test_so_many_calls_are_those_of_the_whole_response(self) -> None:
        body = {"max_tool_calls": 2}
        own = [FunctionCall("a", "{}", "c"), FunctionCallOutput("c", "x")]
        assert judged(log_of(own, body), attempt(own), body).response["status"] == "completed"
        assert judged(log_of(own, body), attempt([*own, FunctionCall("a", "{}", "d")]), body).response["status"] == (
            "incomplete"
        )


def test_a_response_may_be_taken_up_again_and_again() -> None:
    log = log_of(["one", FunctionCall("own", "{}", "c1")])
    for text in ("two", "three"):
        encoder = taken_up(log, worker=text)
        log += split_events(encoder.proceed() + encoder.feed(text))
    parsed = judged(log, attempt(["four"]))
    assert parsed.text == "onetwothreefour"
    assert [item["type"] for item in parsed.items] == ["message", "mcp_call", "message", "message", "message"]
    assert not read_log(log).obstacle
