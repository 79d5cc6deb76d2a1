"""Writing a response: the order of its events, what each kind of item becomes, limits, and every end."""

import json
from typing import Any

import pytest

from agentrun_server.core.events import (
    Annotation,
    Failure,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    Interrupt,
    Raw,
    ReasoningDelta,
    TextDelta,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError, GrammarError
from agentrun_server.protocols.openai_responses.encode import (
    DONE,
    ResponseEncoder,
    ResponseSettings,
    obfuscated,
    split_events,
)
from tests.protocols.openai_responses.answers import (
    COMPLETED,
    CREATED,
    FUNCTION,
    ID,
    PROMPT_TOKENS,
    body_of,
    encoder_of,
    finish,
    judged,
    stream_of,
)
from tests.support.responses_oracle import check_response, check_response_stream

TOOLS = {"tools": [FUNCTION]}
OPENING = ["created", "in_progress"]
MESSAGE = ["output_item.added", "content_part.added"]
MESSAGE_DONE = ["output_text.done", "content_part.done", "output_item.done"]


def items_of(items: list[Any], body: Any = None, settings: ResponseSettings | None = None) -> list[dict[str, Any]]:
    """Return the output of an answer; stream and body say the same."""
    return judged(items, body, settings).items


class TestOrder:
    def test_of_a_text(self) -> None:
        parsed = judged(["Hel", "lo"])
        delta = "output_text.delta"
        assert parsed.types == [*OPENING, *MESSAGE, delta, delta, *MESSAGE_DONE, "completed"]
        assert parsed.events[4] == {
            "type": "response.output_text.delta",
            "sequence_number": 4,
            "item_id": "msg_1",
            "output_index": 0,
            "content_index": 0,
            "delta": "Hel",
            "logprobs": [],
        }
        part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
        assert parsed.items == [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [part],
                "phase": "final_answer",
            }
        ]

    def test_of_a_call(self) -> None:
        parsed = judged([FunctionCall("f", '{"a":1}', "call_1")], TOOLS)
        arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
        assert parsed.types == [*OPENING, "output_item.added", *arguments, "output_item.done", "completed"]
        assert parsed.items == [
            {
                "id": "fc_1",
                "type": "function_call",
                "status": "completed",
                "call_id": "call_1",
                "name": "f",
                "arguments": '{"a":1}',
            }
        ]

    def test_of_a_call_of_the_agents_own(self) -> None:
        parsed = judged([FunctionCall("search", '{"a":1}', "c"), FunctionCallOutput("c", ["x"])])
        assert parsed.types[2:8] == [
            "output_item.added",
            "mcp_call.in_progress",
            "mcp_call_arguments.delta",
            "mcp_call_arguments.done",
            "mcp_call.completed",
            "output_item.done",
        ]
        assert parsed.items[0] == {
            "id": "mcp_1",
            "type": "mcp_call",
            "server_label": "agent",
            "name": "search",
            "arguments": '{"a":1}',
            "output": '["x"]',
            "error": None,
            "status": "completed",
            "approval_request_id": None,
        }

    def test_of_reasoning(self) -> None:
        parsed = judged([ReasoningDelta("Hm"), ReasoningDelta("."), "42"])
        assert parsed.types[2:9] == [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ]
        assert [item["type"] for item in parsed.items] == ["reasoning", "message"]

    def test_of_an_own_call_that_takes_its_time(self) -> None:
        parsed = judged([FunctionCall("a", "{}", "c"), "Meanwhile.", FunctionCallOutput("c", "x"), "Done."])
        assert [item["type"] for item in parsed.items] == ["mcp_call", "message"]
        assert parsed.text == "Meanwhile.Done."

    def test_of_one_that_waits_to_run(self) -> None:
        encoder = encoder_of({"background": True})
        written = encoder.open(queued=True) + encoder.proceed() + encoder.feed("Hi") + finish(encoder)
        parsed = check_response_stream(written.encode())
        assert parsed.types[:4] == ["created", "queued", "in_progress", "output_item.added"]


class TestLazyOpening:
    def test_nothing_is_written_before_there_is_something_to_show(self) -> None:
        encoder = encoder_of()
        assert encoder.feed(Usage(1, 2)) == ""
        assert encoder.feed(Raw(": x")) == ""
        written = encoder.feed("Hi") + finish(encoder)
        assert check_response_stream(written.encode()).text == "Hi"

    def test_a_failure_before_it_is_an_error_for_the_server_to_answer(self) -> None:
        encoder = encoder_of()
        with pytest.raises(AgentFailedError) as raised:
            encoder.feed(Failure("No."))
        parsed = check_response_stream(encoder.fail(raised.value).encode())
        assert parsed.types == [*OPENING, "error", "failed"]

    def test_a_call_without_a_name_fails_at_the_end(self) -> None:
        for said in ([], ["Hi"]):
            stream, raised = stream_of([*said, FunctionCallDelta("{}", None, "c")], TOOLS)
            assert isinstance(raised, GrammarError)
            assert check_response_stream(stream).response["status"] == "failed"


class TestMessages:
    def test_what_comes_before_something_else_is_commentary(self) -> None:
        said = ["a", FunctionCall("own", "{}", "c"), FunctionCallOutput("c", "x"), "b", ReasoningDelta("hm"), "c"]
        phases = [item.get("phase") for item in items_of(said) if item["type"] == "message"]
        assert phases == ["commentary", "commentary", "final_answer"]
        (message, _) = items_of(["a", FunctionCall("f")], TOOLS)
        assert message["phase"] == "commentary"

    def test_annotations_belong_to_the_text_that_is_open_or_the_next(self) -> None:
        first, second = Annotation.url_citation("a"), Annotation.url_citation("b")
        items = items_of([first, "x", second, FunctionCall("own", "{}", "c"), first, "y"])
        found = [[a["url"] for a in i["content"][0]["annotations"]] for i in items if i["type"] == "message"]
        assert found == [["a", "b"], ["a"]]

    def test_what_an_annotation_holds_is_what_clients_see(self) -> None:
        (message,) = items_of(
            ["x", Annotation({"type": "url_citation", "url": "a", "when": {1, 2}, "n": float("nan")})]
        )
        (annotation,) = message["content"][0]["annotations"]
        assert (annotation["when"], annotation["n"]) == ([1, 2], None)
        kept = body_of([Annotation({"type": "url_citation", "url": "a", "when": {1, 2}})])
        assert json.loads(json.dumps(kept)) == kept

    def test_an_annotation_that_clients_do_not_know_is_left_out(self) -> None:
        assert stream_of(["x", Annotation({"type": "hologram"})]) == stream_of(["x"])

    def test_an_annotation_that_contains_itself_leaves_no_gap(self) -> None:
        loop: dict[str, Any] = {"type": "url_citation"}
        loop["more"] = loop
        encoder = encoder_of()
        written = encoder.feed("Hi")
        with pytest.raises(ValueError, match="contains itself"):
            encoder.feed(Annotation(loop))
        written += encoder.fail(AgentFailedError("No."))
        assert check_response_stream(written.encode()).text == "Hi"

    def test_annotations_without_a_text_get_one(self) -> None:
        said = ["x", FunctionCall("own", "{}", "c"), FunctionCallOutput("c", "y"), Annotation.url_citation("a")]
        last = items_of(said)[-1]
        assert (last["content"][0]["text"], len(last["content"][0]["annotations"])) == ("", 1)

    def test_logprobs_are_summed_up_when_asked_for(self) -> None:
        token = {"token": "H", "logprob": -1, "bytes": [72], "top_logprobs": []}
        said = [TextDelta("H", {"content": [token]}), "i", TextDelta("!", {"content": [token]})]
        (message,) = items_of(said, {"top_logprobs": 1})
        assert message["content"][0]["logprobs"] == [token, token]
        (message,) = items_of(said)
        assert message["content"][0]["logprobs"] == []

    def test_a_long_text_is_written_in_pieces(self) -> None:
        text = "x" * 150_000
        parsed = judged([text])
        assert [len(e["delta"]) for e in parsed.events if e["type"].endswith("delta")] == [65536, 65536, 18928]
        assert parsed.text == text

    def test_a_stream_can_hide_how_long_its_pieces_are(self) -> None:
        parsed = judged(["Hi", ReasoningDelta("Hm")], {"stream_options": {"include_obfuscation": True}})
        padded = [len(e["delta"] + e["obfuscation"]) % 16 for e in parsed.events if e["type"].endswith(".delta")]
        assert padded == [0, 0]


class TestCalls:
    def test_arguments_that_are_not_there_are_an_empty_object(self) -> None:
        (call,) = items_of([FunctionCall("f", "", "c")], TOOLS)
        assert call["arguments"] == "{}"

    def test_a_call_that_was_cut_is_never_done(self) -> None:
        said = [FunctionCallDelta('{"a":', "f", "c")]
        for end in (ResponseEncoder.cancel, lambda e: e.incomplete("max_output_tokens")):
            parsed = judged(said, TOOLS, end=end)
            assert "output_item.done" not in parsed.types
            (call,) = parsed.response["output"]
            assert (call["status"], call["arguments"]) == ("incomplete", '{"a":')

    def test_a_custom_tool_has_an_input(self) -> None:
        parsed = judged([FunctionCall("sh", "ls", "c")], {"tools": [{"type": "custom", "name": "sh"}]})
        assert parsed.types[3:5] == ["custom_tool_call_input.delta", "custom_tool_call_input.done"]
        assert parsed.items[0]["input"] == "ls"


class TestOwnTools:
    def test_a_failure_is_told(self) -> None:
        (item, _) = items_of([FunctionCall("a", "{}", "c"), FunctionCallOutput("c", "no", is_error=True)])
        assert (item["status"], item["output"]) == ("failed", None)
        assert item["error"] == {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": "no"}]}

    def test_one_that_never_returned_is_incomplete(self) -> None:
        (item, _) = items_of([FunctionCall("a", "{}", "c")])
        assert (item["status"], item["output"]) == ("incomplete", None)

    def test_an_output_without_a_call_is_a_call_too(self) -> None:
        (item, _) = items_of([FunctionCallOutput("c", "x", "search")])
        assert (item["name"], item["arguments"], item["output"]) == ("search", "{}", "x")

    def test_what_comes_after_the_output_changes_nothing(self) -> None:
        said = [
            FunctionCallDelta('{"a"', "own", "c"),
            FunctionCallOutput("c", "x"),
            FunctionCallDelta(":1}", None, "c"),
        ]
        (item, _) = items_of(said)
        assert (item["arguments"], item["output"], item["status"]) == ('{"a"', "x", "completed")

    def test_hidden_ones_leave_no_trace(self) -> None:
        said = [
            "a",
            FunctionCall("own", "{}", "c"),
            FunctionCallOutput("c", "secret"),
            FunctionCallOutput("d", "secret"),
            "b",
        ]
        stream, _ = stream_of(said, None, ResponseSettings(server_tool_items="hidden"))
        assert stream == stream_of(["a", "b"])[0]

    def test_what_they_return_is_cut_at_the_limit_of_answers(self) -> None:
        settings = ResponseSettings(max_output_bytes=20)
        said = [FunctionCall("a", "{}", "c"), FunctionCallOutput("c", "x" * 100), FunctionCallOutput("d", "y"), "Hi"]
        first, second, message = items_of(said, None, settings)
        assert (first["output"], second["output"]) == ("x" * 18, "")
        assert message["content"][0]["text"] == "Hi"

    def test_one_call_too_many_ends_the_response(self) -> None:
        said = [FunctionCall("a", "{}", "c1"), FunctionCallOutput("c1", "x"), FunctionCall("b", "{}", "c2"), "more"]
        for settings in (ResponseSettings(), ResponseSettings(server_tool_items="hidden")):
            response = judged(said, {"max_tool_calls": 1}, settings).response
            assert (response["status"], [item["type"] for item in response["output"]]) == (
                "incomplete",
                ["mcp_call"] if settings.server_tool_items == "mcp_call" else [],
            )

    def test_the_label_says_who_runs_them(self) -> None:
        (item, _) = items_of([FunctionCall("a", "{}", "c")], None, ResponseSettings(server_label="research"))
        assert item["server_label"] == "research"


class TestInterrupt:
    def test_a_confirmation_is_an_item_for_those_who_want_it(self) -> None:
        asked = Interrupt("i1", "Delete it?", "confirmation")
        settings = ResponseSettings(approval_items=True)
        (item,) = items_of([asked], None, settings)
        assert (item["type"], item["name"]) == ("mcp_approval_request", "request_human_input")
        assert json.loads(item["arguments"]) == {"id": "i1", "prompt": "Delete it?"}
        assert judged([asked]).text == "Delete it?"
        assert judged([Interrupt("i1", "Which?", "choice")], None, settings).text == "Which?"

    def test_it_names_the_tool_that_needs_it(self) -> None:
        said = [FunctionCall("delete", '{"a":1}', "c"), Interrupt("i1", "Sure?", "confirmation", "c")]
        items = items_of(said, None, ResponseSettings(approval_items=True))
        assert (items[1]["name"], items[1]["arguments"]) == ("delete", '{"a":1}')

    def test_a_call_the_client_has_is_question_enough(self) -> None:
        said = [FunctionCall("f", "{}", "c"), Interrupt("i1", "Sure?", "confirmation", "c")]
        assert [i["type"] for i in items_of(said, TOOLS, ResponseSettings(approval_items=True))] == ["function_call"]


class TestEnds:
    def test_a_completed_response_is_whole(self) -> None:
        response = body_of(["Hi", Usage(3, 4, 1, 2)], {"metadata": {"k": "v"}})
        check_response(response)
        assert (response["id"], response["created_at"], response["completed_at"]) == (ID, CREATED, COMPLETED)
        assert (response["status"], response["metadata"]) == ("completed", {"k": "v"})
        assert response == judged(["Hi", Usage(3, 4, 1, 2)], {"metadata": {"k": "v"}}).response

    def test_an_answer_of_nothing_is_an_empty_message(self) -> None:
        (message,) = items_of([])
        assert message["content"][0]["text"] == ""

    def test_usage_is_counted_or_estimated(self) -> None:
        usage = judged(["12345", ReasoningDelta("1234")]).response["usage"]
        assert (usage["input_tokens"], usage["output_tokens"]) == (PROMPT_TOKENS, 3)
        assert usage["output_tokens_details"] == {"reasoning_tokens": 1}

    def test_an_answer_that_is_too_long_is_incomplete(self) -> None:
        response = judged(["12345", "6789"], None, ResponseSettings(max_output_bytes=8)).response
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert (response["output"][0]["status"], response["output"][0]["content"][0]["text"]) == (
            "incomplete",
            "12345678",
        )

    def test_a_cancelled_response_keeps_what_there_is(self) -> None:
        response = judged(["Hel", "lo", Usage(3, 4)], end=ResponseEncoder.cancel).response
        assert (response["status"], response["incomplete_details"]) == ("cancelled", None)
        assert (response["output"][0]["content"][0]["text"], response["usage"]["total_tokens"]) == ("Hello", 7)

    def test_a_failed_response_tells_why_twice(self) -> None:
        error = AgentFailedError("It broke.", code="my_code", param="input")
        parsed = judged(["Hi"], end=lambda encoder: encoder.fail(error))
        assert parsed.error is not None
        assert (parsed.error["code"], parsed.error["param"]) == ("my_code", "input")
        assert parsed.response["error"] == {"code": "server_error", "message": "It broke."}
        assert parsed.response["output"][0]["content"][0]["text"] == "Hi"

    def test_a_response_ends_once(self) -> None:
        for first in (finish, ResponseEncoder.cancel, lambda e: e.fail(AgentFailedError("No."))):
            encoder = encoder_of()
            encoder.feed("Hi")
            written = first(encoder)
            response = encoder.response
            late = finish(encoder) + encoder.cancel() + encoder.fail(AgentFailedError("x"))
            assert written
            assert late + encoder.incomplete("content_filter") == ""
            assert encoder.response is response
            assert encoder.ended

    def test_there_is_no_response_before_its_end(self) -> None:
        encoder = encoder_of()
        encoder.feed("Hi")
        assert encoder.response is None


@pytest.mark.parametrize("asked", [True, False])
def test_events_that_were_kept_can_hide_how_long_they_are(asked: bool) -> None:
    items = ["Hi", ReasoningDelta("Hm"), ',"obfuscation":".delta\n']
    stream, _ = stream_of(items, {"stream_options": {"include_obfuscation": asked}})
    events = split_events(stream.decode())
    shown = [obfuscated(event, lambda _: "0123456789abcdef") for event in events]
    parsed = check_response_stream(b"".join(shown) + DONE.encode(), obfuscation=True)
    assert [e["obfuscation"] != "" for e in parsed.events if e["type"].endswith(".delta")] == [True] * 3
    assert (shown == events) == asked
    if not asked:
        added = len(b',"obfuscation":""')
        assert {(len(one) - added) % 16 for one, event in zip(shown, events, strict=True) if one != event} == {0}


def test_events_are_kept_one_by_one() -> None:
    stream, _ = stream_of(["a\n\nb", "data: [DONE]\n\n"])
    events = split_events(stream.decode())
    assert b"".join(events) + b"data: [DONE]\n\n" == stream
    numbers = [json.loads(event.split(b"data: ", 1)[1])["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))
