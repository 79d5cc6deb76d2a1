"""What every protocol decides alike, seen through a protocol that writes each thing as a word."""

from typing import Any

import pytest

from agentrun_server.core.events import (
    Annotation,
    Custom,
    Failure,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    FunctionCallOutputDelta,
    Interrupt,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
)
from agentrun_server.core.grammar import Call, CallPiece
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, GrammarError
from agentrun_server.protocols.turn import Turn
from tests.protocols.openai_chat.answers import Counter


class Words(Turn):
    """A protocol of words."""

    def __init__(self, *tools: str, max_output_bytes: int = 1000, logprobs: bool = False) -> None:
        names: Any = dict.fromkeys(tools, "function")
        super().__init__(names, Counter(), max_output_bytes=max_output_bytes, human_input_tool="ask", logprobs=logprobs)

    def _write_text(self, text: str, logprobs: Any = None, addition: Any = None) -> str:
        return f"text({text}{'' if logprobs is None else ' with logprobs'})"

    def _write_reasoning(self, text: str, addition: Any) -> str:
        return f"reasoning({text})"

    def _write_refusal(self, text: str) -> str:
        return f"refusal({text})"

    def _write_call(self, piece: CallPiece, addition: Any) -> str:
        return f"{'call' if piece.opens else 'more'}({piece.call.name} {piece.arguments})"

    def _write_own_call(self, call: Call, event: FunctionCall | FunctionCallDelta, *, named: bool) -> str:
        return f"{'own' if named else 'own more'}({call.name} {call.arguments})"

    def _write_own_output(self, event: FunctionCallOutput, call: Call | None) -> str:
        return f"output({event.output} of {call and call.name})"

    def _write_own_output_delta(self, event: FunctionCallOutputDelta) -> str:
        return f"output piece({event.delta})"

    def _annotation(self, data: dict[str, Any]) -> str:
        return f"annotation({data['type']})"

    def _active(self, kind: str, activity: str, /, **fields: Any) -> str:
        return f"active({activity})"

    def _write_raw(self, raw: str) -> str:
        return f"raw({raw})"


@pytest.mark.parametrize(
    ("item", "written"),
    [
        ("x", "text(x)"),
        ("", ""),
        (TextDelta("x"), "text(x)"),
        (TextDelta("x", {"content": []}), "text(x)"),
        (ReasoningDelta("x"), "reasoning(x)"),
        (ReasoningDelta(""), ""),
        (RefusalDelta("x"), "refusal(x)"),
        (FunctionCall("f", "{}"), "call(f {})"),
        (FunctionCall("other", "{}"), "own(other {})"),
        (FunctionCallDelta("{", "other"), "own(other {)"),
        (FunctionCallOutput("c", "x"), "output(x of None)"),
        (FunctionCallOutputDelta("c", "x"), "output piece(x)"),
        (Annotation({"type": "t"}), "annotation(t)"),
        (Usage(1), ""),
        (Finish("stop"), ""),
        (Custom("x"), "active(custom)"),
        (Interrupt("i", "Which?", options=["a", 1]), "active(interrupt)text(Which?\n- a\n- 1)"),
        (Raw("x"), "raw(x)"),
    ],
)
def test_each_event_is_written_as_what_it_is(item: Any, written: str) -> None:
    assert Words("f").feed(item) == written


def test_logprobs_go_to_those_who_want_them() -> None:
    assert Words(logprobs=True).feed(TextDelta("x", {"content": []})) == "text(x with logprobs)"


def test_the_agents_failure_is_an_error() -> None:
    with pytest.raises(AgentFailedError, match="It broke"):
        Words().feed(Failure("It broke.", "my_code"))


def test_nothing_but_usage_follows_the_end() -> None:
    turn = Words()
    turn.feed(Finish("length"))
    assert turn.feed(Usage(1, 2)) == ""
    assert (turn.finish_reason, turn.reported) == ("length", Usage(1, 2))
    with pytest.raises(GrammarError):
        turn.feed("more")


def test_an_answer_is_cut_at_its_limit_at_a_letter() -> None:
    turn = Words(max_output_bytes=4)
    assert turn.feed("中é") == "text(中)"
    assert (turn.ended, turn.finish_reason) == (True, "length")
    assert turn.feed("x") == ""


def test_reasoning_has_a_limit_of_its_own() -> None:
    turn = Words(max_output_bytes=4)
    assert turn.feed(ReasoningDelta("1234")) == "reasoning(1234)"
    assert turn.feed("1234") == "text(1234)"
    assert turn.feed(ReasoningDelta("5")) == ""
    assert turn.finish_reason == "length"


def test_arguments_count_as_output() -> None:
    turn = Words("f", max_output_bytes=4)
    turn.feed(FunctionCall("f", '{"a":1}'))
    assert (turn.ended, turn.finish_reason) == (True, "length")


def test_a_question_goes_to_the_clients_tool_when_there_is_one() -> None:
    turn = Words("ask")
    written = turn.feed(Interrupt("i1", "Which?", "choice", options=["a"]))
    assert written == 'active(interrupt)call(ask {"prompt":"Which?","type":"choice","options":["a"]})'
    assert turn.finish_reason == "tool_calls"
    assert turn.feed(Interrupt("i2", "Again?", tool_call_id="i1")) == "active(interrupt)"


def test_the_clients_calls_are_handed_on_one_after_the_other() -> None:
    turn = Words("f", "g")
    assert turn.feed(FunctionCallDelta('{"a"', "f", "c1")) == 'call(f {"a")'
    assert turn.feed(FunctionCallDelta("{}", "g", "c2")) == ""
    assert turn.feed(FunctionCallDelta(":1}", None, "c1")) == "more(f :1})"
    assert turn.close() == "call(g {})"
    assert turn.feed(FunctionCallOutput("c1", "x")) == "", "the client runs it"


def test_stop_is_no_reason_to_leave_a_call_unanswered() -> None:
    turn = Words("f")
    turn.feed(FunctionCall("f"))
    turn.feed(Finish("stop"))
    assert turn.finish_reason == "tool_calls"


def test_usage_is_the_agents_count_or_an_estimate() -> None:
    turn = Words()
    turn.feed("12345")
    turn.feed(ReasoningDelta("1234"))
    assert turn.usage(lambda: 7) == Usage(7, 3, 0, 1)
    turn.feed(Usage(1, 2))
    turn.feed(Usage(3, 4))
    assert turn.usage(lambda: 7) == Usage(4, 6)
