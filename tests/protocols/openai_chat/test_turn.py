"""What an agent's events mean for the answer: limits, questions to a human, counting, the end."""

from typing import Any

import pytest

from agentrun_server.core.events import (
    Custom,
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    Progress,
    ReasoningDelta,
    RefusalDelta,
    StateUpdate,
    Step,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, GrammarError
from agentrun_server.protocols.openai_chat.turn import ChatSettings, merge
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat.answers import (
    PROMPT_TOKENS,
    body_of,
    chunk_encoder,
    chunks_of,
    judged,
    options,
    stream_of,
)

ALL = frozenset({"tools", "steps", "progress", "io"})


def choice_of(items: list[Any], settings: ChatSettings | None = None, **changes: Any) -> dict[str, Any]:
    """Return the only choice of the answer in one body; the stream says the same."""
    choice: dict[str, Any] = body_of(items, settings, **changes)["choices"][0]
    body, _ = stream_of(items, options(**changes), settings)
    streamed = judged(body, options(**changes)).choices[0]
    assert streamed.content == (choice["message"]["content"] or "")
    assert streamed.finish_reason == choice["finish_reason"]
    return choice


def activity_of(items: list[Any], *kinds: str, **changes: Any) -> list[dict[str, Any]]:
    chunks = chunks_of(items, activity=frozenset(kinds) or ALL, **changes)
    return [chunk["x_agent"] for chunk in chunks if "x_agent" in chunk]


class TestLimit:
    @pytest.mark.parametrize(
        ("pieces", "shown"),
        [
            (["12345678"], "12345678"),
            (["123456789"], "12345678"),
            (["1234", "5678"], "12345678"),
            (["1234", "56789", "x"], "12345678"),
            (["12345678", "9"], "12345678"),
            (["中中中"], "中中"),
            (["1234567", "é"], "1234567"),
            (["1234567\ud800"], "1234567?"),
        ],
    )
    def test_an_answer_that_is_too_long_is_cut_at_a_letter(self, pieces: list[str], shown: str) -> None:
        choice = choice_of(pieces, ChatSettings(max_output_bytes=8))
        assert choice["message"]["content"] == shown
        assert choice["finish_reason"] == ("stop" if "".join(pieces) == shown else "length")

    def test_nothing_that_was_held_back_is_shown_behind_the_cut(self) -> None:
        choice = choice_of(["1234567890S"], ChatSettings(max_output_bytes=8), stop=("STOP",))
        assert (choice["message"]["content"], choice["finish_reason"]) == ("12345678", "length")

    def test_nor_what_would_fit_into_the_room_that_a_letter_left(self) -> None:
        choice = choice_of(["1234567éS"], ChatSettings(max_output_bytes=8), stop=("STOP",))
        assert (choice["message"]["content"], choice["finish_reason"]) == ("1234567", "length")

    def test_what_was_held_back_counts_too(self) -> None:
        choice = choice_of(["1234567", "ST"], ChatSettings(max_output_bytes=8), stop=("STOP",))
        assert (choice["message"]["content"], choice["finish_reason"]) == ("1234567S", "length")

    def test_reasoning_has_the_same_limit(self) -> None:
        choice = choice_of([ReasoningDelta("12345678"), ReasoningDelta("9"), "a"], ChatSettings(max_output_bytes=8))
        assert choice["message"]["reasoning"] == "12345678"
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")

    def test_a_refusal_counts(self) -> None:
        choice: dict[str, Any] = body_of([RefusalDelta("123456789")], ChatSettings(max_output_bytes=8))["choices"][0]
        assert (choice["message"]["refusal"], choice["finish_reason"]) == ("12345678", "length")

    def test_arguments_count_and_text_behind_them_is_not_shown(self) -> None:
        items = [FunctionCall("f", '{"a":"123456"}', "1"), "text", FunctionCall("f", "{}", "2")]
        choice = choice_of(items, ChatSettings(max_output_bytes=8), tools=["f"])
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] is None
        assert [call["id"] for call in choice["message"]["tool_calls"]] == ["1"]

    def test_the_encoder_says_that_it_wants_no_more(self) -> None:
        encoder = chunk_encoder(options(stop=("b",)), ChatSettings(max_output_bytes=8))
        encoder.feed("a")
        assert not encoder.ended
        encoder.feed("abc")
        assert encoder.ended
        assert encoder.feed("more") == ""


class TestHumanInput:
    QUESTION = Interrupt("hitl_1", "Which one?", "choice", None, ["a", {"value": "b"}], {"type": "string"}, "a", 60)

    @requirement("activity.human-input")
    def test_a_question_is_a_call_of_the_clients_tool_for_it(self) -> None:
        choice = choice_of([self.QUESTION], tools=["request_human_input"])
        (call,) = choice["message"]["tool_calls"]
        assert call["id"] == "hitl_1"
        assert call["function"] == {
            "name": "request_human_input",
            "arguments": '{"prompt":"Which one?","type":"choice","options":["a",{"value":"b"}],'
            '"schema":{"type":"string"},"default":"a","timeout":60}',
        }
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None

    @requirement("activity.human-input")
    def test_without_such_a_tool_it_is_text(self) -> None:
        choice = choice_of([self.QUESTION], tools=["other"])
        assert choice["message"]["content"] == 'Which one?\n- a\n- {"value":"b"}'
        assert choice["finish_reason"] == "stop"

    def test_the_tool_can_have_another_name(self) -> None:
        choice = choice_of([self.QUESTION], ChatSettings(human_input_tool="ask"), tools=["ask"])
        assert choice["message"]["tool_calls"][0]["function"]["name"] == "ask"

    def test_a_question_about_a_call_the_client_has_is_that_call(self) -> None:
        items = [FunctionCall("f", "{}", "call_1"), Interrupt("h", "Sure?", "confirmation", "call_1")]
        choice = choice_of(items, tools=["f"])
        assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_1"]
        assert choice["message"]["content"] is None

    def test_a_question_about_the_agents_own_call_is_asked(self) -> None:
        items = [FunctionCall("own", "{}", "call_1"), Interrupt("h", "Sure?", "confirmation", "call_1")]
        assert choice_of(items)["message"]["content"] == "Sure?"

    def test_those_who_asked_for_steps_are_told_of_it(self) -> None:
        assert activity_of([self.QUESTION], "steps") == [
            {
                "type": "interrupt",
                "seq": 1,
                "id": "hitl_1",
                "prompt": "Which one?",
                "kind": "choice",
                "options": ["a", {"value": "b"}],
                "schema": {"type": "string"},
                "default": "a",
                "timeout": 60,
            }
        ]


class TestActivity:
    @requirement("activity.chunks")
    @pytest.mark.parametrize(
        ("event", "kind", "shown"),
        [
            (Step("s"), "steps", {"type": "step.started", "name": "s"}),
            (Step("s", "finished"), "steps", {"type": "step.finished", "name": "s"}),
            (Progress("Searching", 0.5), "progress", {"type": "progress", "label": "Searching", "progress": 0.5}),
            (Progress("Searching"), "progress", {"type": "progress", "label": "Searching"}),
            (StateUpdate({"a": 1}), "steps", {"type": "state", "snapshot": {"a": 1}}),
            (StateUpdate(None, [{"op": "add"}]), "steps", {"type": "state", "delta": [{"op": "add"}]}),
            (Custom("c", 1), "steps", {"type": "custom", "name": "c", "value": 1}),
            (FunctionCallOutputDelta("1", "o"), "io", {"type": "tool_call.output", "id": "1", "delta": "o"}),
            (FunctionCall("own", "{}", "1"), "tools", {"type": "tool_call.started", "id": "1", "name": "own"}),
            (FunctionCallDelta("{", "own", "1"), "tools", {"type": "tool_call.started", "id": "1", "name": "own"}),
            (FunctionCallOutput("1", 5, "own"), "tools", {"type": "tool_call.completed", "id": "1", "name": "own"}),
        ],
        ids=lambda value: getattr(type(value), "__name__", None) if not isinstance(value, str | dict) else "",
    )
    def test_an_event_is_shown_to_those_who_asked_for_its_kind(
        self, event: Any, kind: str, shown: dict[str, Any]
    ) -> None:
        expected = {"type": shown["type"], "seq": 1, **shown}
        assert activity_of([event, "a"], kind) == [expected]
        assert activity_of([event, "a"], *(ALL - {kind, "io"})) == []

    def test_a_call_in_pieces_is_told_of_once(self) -> None:
        items = [FunctionCallDelta("{", "own", "1"), FunctionCallDelta("}", id="1"), FunctionCall("own", "{}", "1")]
        assert len(activity_of(items, "tools")) == 1

    @requirement("activity.ownership")
    def test_a_clients_call_and_its_result_are_no_activity(self) -> None:
        items = [FunctionCall("f", "{}", "1"), FunctionCallOutput("1", "made up by the agent")]
        assert activity_of(items, tools=["f"]) == []

    def test_a_result_of_a_call_nobody_knows_is_told_under_its_id(self) -> None:
        assert activity_of([FunctionCallOutput("1", "x")], "tools", "io") == [
            {"type": "tool_call.completed", "seq": 1, "id": "1", "output": "x"}
        ]


class TestUsage:
    @requirement("chat.completion.usage")
    def test_what_the_agent_reports_is_added_up(self) -> None:
        usage = body_of(["a", Usage(10, 5), "b", Usage(1, 2, 1, 1)])["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (11, 7, 18)

    @requirement("chat.completion.usage")
    def test_otherwise_it_is_estimated_from_all_that_was_said(self) -> None:
        items = ["abcd" * 3, ReasoningDelta("abcd"), FunctionCall("f", "abcdabcd")]
        usage = body_of(items, tools=["f"])["usage"]
        assert usage["prompt_tokens"] == PROMPT_TOKENS
        assert usage["completion_tokens"] == 3 + 1 + 2
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 1

    def test_the_estimate_of_several_choices_is_that_of_all(self) -> None:
        assert body_of(["abcd"], n=3)["usage"]["completion_tokens"] == 3

    def test_what_is_not_shown_does_not_count(self) -> None:
        usage = body_of(["abcdSTOPabcdabcd"], stop=("STOP",))["usage"]
        assert usage["completion_tokens"] == 1


class TestEnd:
    @requirement("chat.completion.finish-reasons")
    @pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
    def test_the_agent_may_say_why_it_ends(self, reason: Any) -> None:
        assert choice_of(["a", Finish(reason)])["finish_reason"] == reason

    def test_only_usage_may_follow(self) -> None:
        assert choice_of(["a", Finish("length"), Usage(1, 1)])["finish_reason"] == "length"
        with pytest.raises(GrammarError, match="str may not follow: the turn has finished"):
            chunks_of(["a", Finish("length"), "b"])

    @requirement("chat.error.agent-error")
    def test_a_failure_is_an_error_that_is_not_to_be_tried_again(self) -> None:
        encoder = chunk_encoder(options())
        with pytest.raises(AgentFailedError) as raised:
            encoder.feed(Failure("no", "too_hard"))
        assert raised.value.body()["error"] == {
            "message": "no",
            "type": "server_error",
            "param": None,
            "code": "too_hard",
        }
        assert (b"x-should-retry", b"false") in raised.value.headers

    def test_a_failure_without_words_gets_some(self) -> None:
        with pytest.raises(AgentFailedError, match="reported an error") as raised:
            chunk_encoder(options()).feed(Failure("", ""))
        assert raised.value.code == "agent_error"

    def test_a_call_without_a_name_is_found_out_at_the_end(self) -> None:
        with pytest.raises(GrammarError, match="no name"):
            chunks_of([FunctionCallDelta("{}", id="1")])


@pytest.mark.parametrize(
    ("fields", "addition", "merge_options", "merged"),
    [
        ({"a": 1}, {"b": 2}, {}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {}, {"a": 2}),
        ({"a": 1}, {"a": None}, {}, {"a": 1}),
        ({"a": 1}, {"b": 2}, {"no_new_field": True}, {"a": 1}),
        ({"a": 1}, {"a": 2}, {"no_new_field": True}, {"a": 2}),
        ({"a": {"x": 1}}, {"a": {"y": 2}}, {}, {"a": {"x": 1, "y": 2}}),
        ({"a": {"x": 1}}, {"a": {"x": 3, "y": 2}}, {"no_new_field": True}, {"a": {"x": 3}}),
        ({"a": [1]}, {"a": [2]}, {}, {"a": [2]}),
        ({"a": [1]}, {"a": [2]}, {"concat_list": True}, {"a": [1, 2]}),
        ({"a": [1]}, {"a": []}, {}, {"a": []}),
        ({"a": [1]}, {"a": []}, {"ignore_empty_list": True}, {"a": [1]}),
        ({"a": {"x": [1]}}, {"a": {"x": [2]}}, {"concat_list": True}, {"a": {"x": [1, 2]}}),
    ],
)
def test_fields_are_merged_as_the_options_say(
    fields: dict[str, Any], addition: dict[str, Any], merge_options: Any, merged: dict[str, Any]
) -> None:
    before = repr((fields, addition))
    assert merge(fields, addition, merge_options) == merged
    assert repr((fields, addition)) == before, "neither is changed"
