"""Reading a log: the items so far, whether their end is known, and what is in the way of another attempt."""

import json
from typing import Any

import pytest

from agentrun_server.core.events import (
    Annotation,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    Interrupt,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
)
from agentrun_server.protocols.openai_responses import objects
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings, split_events
from agentrun_server.protocols.openai_responses.replay import ResponseLog, Stage, output_so_far, read_log
from tests.protocols.openai_responses.answers import CREATED, FUNCTION, ID, call_of, encoder_of, feed, stream_of
from tests.protocols.openai_responses.variants import VARIANTS, Variant
from tests.support.responses_oracle import check_response

TOOLS = {"tools": [FUNCTION, {"type": "custom", "name": "sh"}]}
TOKEN = {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": []}

Log = list[bytes]


def log_of(items: list[Any], body: Any = None, settings: ResponseSettings | None = None) -> Log:
    """Return the log of an agent that has said `items`, and goes on."""
    encoder = encoder_of(body, settings)
    written: list[str] = []
    feed(items, encoder, written)
    return split_events("".join(written))


def up_to(log: Log, kind: str) -> Log:
    """Return the beginning of `log`, up to the last event of this type."""
    kinds = [event.split(b"\n", 1)[0].removeprefix(b"event: response.").decode() for event in log]
    return log[: len(kinds) - kinds[::-1].index(kind)]


class TestOutputSoFar:
    def test_is_what_was_said(self) -> None:
        log = log_of([ReasoningDelta("Hm"), ReasoningDelta("."), "Hel", "lo", Annotation.url_citation("u")])
        reasoning, message = output_so_far(log)
        assert reasoning == {
            "id": "rs_1",
            "type": "reasoning",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": "Hm."}],
        }
        (part,) = message["content"]
        assert (message["status"], part["text"], part["annotations"][0]["url"]) == ("in_progress", "Hello", "u")

    @pytest.mark.parametrize(
        ("said", "told"),
        [
            (ReasoningDelta("Hm"), {"summary": [{"type": "summary_text", "text": "Hm"}]}),
            (RefusalDelta("No."), {"content": [{"type": "refusal", "refusal": "No."}]}),
            (FunctionCallDelta('{"a"', "f", "c1"), {"arguments": '{"a"'}),
            (FunctionCallDelta("ls", "sh", "c1"), {"input": "ls"}),
            (FunctionCallDelta('{"a"', "own", "c1"), {"arguments": '{"a"'}),
        ],
    )
    def test_has_what_still_grows(self, said: Any, told: dict[str, Any]) -> None:
        log = log_of([said], TOOLS)
        for status in ("in_progress", "incomplete"):
            (item,) = output_so_far(log, status=status)
            assert item.items() >= {**told, "status": status}.items()

    def test_has_every_part_of_a_message(self) -> None:
        logprobs = {"include": ["message.output_text.logprobs"]}
        said = [TextDelta("H", {"content": [TOKEN]}), TextDelta("i", {"content": [TOKEN]}), RefusalDelta("But no.")]
        log = log_of(said, logprobs)
        (message,) = output_so_far(log)
        assert message["content"] == [
            {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": [TOKEN, TOKEN]},
            {"type": "refusal", "refusal": "But no."},
        ]
        (message,) = output_so_far(log[:5])
        assert message["content"] == [{"type": "output_text", "text": "H", "annotations": [], "logprobs": [TOKEN]}]

    def test_keeps_a_call_that_returned_though_not_what_it_returned(self) -> None:
        for is_error, kind in ((False, "mcp_call.completed"), (True, "mcp_call.failed")):
            log = up_to(log_of([FunctionCall("a", "{}", "c"), FunctionCallOutput("c", "x", is_error=is_error)]), kind)
            (item,) = output_so_far(log, status="incomplete")
            told = (None, objects.tool_error("")) if is_error else ("", None)
            assert (item["status"], (item["output"], item["error"])) == (kind.removeprefix("mcp_call."), told)

    def test_has_a_question_that_was_asked(self) -> None:
        log = log_of([Interrupt("i", "Sure?", "confirmation")], None, ResponseSettings(approval_items=True))
        assert output_so_far(log[:-1], status="incomplete") == output_so_far(log)

    @pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
    def test_fits_the_response_at_every_moment(self, variant: Variant) -> None:
        stream, _ = stream_of(variant.items, variant.body, variant.settings, variant.end)
        log = split_events(stream.decode())
        echo = call_of(variant.body).echo
        for cut in range(len(log)):
            output = output_so_far(log[:cut])
            check_response(objects.response(echo, id=ID, created_at=CREATED, status="in_progress", output=output))
        assert output_so_far(log) == json.loads(log[-1].split(b"data: ")[1])["response"]["output"]


class TestObstacles:
    def test_there_are_none_while_an_agent_talks(self) -> None:
        assert read_log([]) == ResponseLog()
        log = read_log(log_of(["Hi", FunctionCall("own", "{}", "c"), ReasoningDelta("hm")]))
        assert (log.status, log.obstacle, log.calls_client, log.is_whole) == ("in_progress", "", False, False)
        assert [(logged.kind, logged.stage) for logged in log.left_open] == [
            ("reasoning", Stage.OPEN),
            ("mcp_call", Stage.TOLD),
        ]

    def test_a_clients_call_is_one_until_it_is_whole(self) -> None:
        log = log_of(["Hi", FunctionCall("f", "{}", "c1")], TOOLS)
        cut = read_log(up_to(log, "function_call_arguments.delta"))
        assert (cut.obstacle, cut.calls_client) == ("a call of the client's was cut", True)
        whole = read_log(up_to(log, "function_call_arguments.done"))
        assert (whole.obstacle, whole.calls_client) == ("", True)

    def test_an_end_that_has_begun_is_one(self) -> None:
        log = split_events(stream_of(["Hi"], end=ResponseEncoder.cancel)[0].decode())
        assert read_log(log[:-1]).obstacle == "it was being ended"

    def test_a_response_that_waits_says_so(self) -> None:
        log = split_events(encoder_of().open(queued=True))
        assert [read_log(log[:cut]).status for cut in range(3)] == ["", "queued", "queued"]
