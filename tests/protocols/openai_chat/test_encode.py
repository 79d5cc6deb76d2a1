"""What is written, byte by byte and key by key."""

import json
from typing import Any

import pytest

from agentrun_server.core.events import (
    Addition,
    Annotation,
    Custom,
    Finish,
    FunctionCall,
    FunctionCallDelta,
    FunctionCallOutput,
    Raw,
    ReasoningDelta,
    RefusalDelta,
    Step,
    TextDelta,
)
from agentrun_server.core.usage import Usage
from agentrun_server.errors import AgentFailedError
from agentrun_server.protocols.openai_chat.encode import ChunkEncoder
from agentrun_server.protocols.openai_chat.turn import ChatSettings
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat.answers import (
    CREATED,
    ID,
    MODEL,
    body_of,
    chunk_encoder,
    chunks_of,
    completion_of,
    judged,
    judged_body,
    options,
    stream_of,
)

ROLE = {"role": "assistant", "content": "", "refusal": None}
ROLE_WITHOUT_TEXT = {"role": "assistant", "content": None}
CITATION = Annotation.url_citation("https://e.com", "E", 0, 5)
LOGPROBS = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}], "refusal": None}


def chunk(delta: dict[str, Any], finish: str | None = None, *, index: int = 0, **more: Any) -> dict[str, Any]:
    """Return a whole chunk; `more` are top-level keys, or `logprobs`."""
    choice = {"index": index, "delta": delta, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
    return {
        "id": ID,
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": MODEL,
        "service_tier": "default",
        "choices": [choice],
        **more,
    }


def deltas_of(items: list[Any], settings: ChatSettings | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Return the deltas of all chunks but the one that finishes."""
    *chunks, finish = chunks_of(items, settings, **changes)
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"]
    return [part["choices"][0]["delta"] for part in chunks]


class TestStream:
    @requirement("chat.stream.frames", "chat.stream.json", "chat.stream.no-named-events")
    def test_a_stream_byte_by_byte(self) -> None:
        body, _ = stream_of(["Hé\u2028", 'l"lo\n'], options())
        head = (
            '"id":"chatcmpl-0123","object":"chat.completion.chunk","created":1700000000,"model":"mo\\u2028del",'
            '"service_tier":"default","choices":[{"index":0,'
        )
        assert body.decode() == (
            f'data: {{{head}"delta":{{"role":"assistant","content":"","refusal":null}},'
            '"logprobs":null,"finish_reason":null}]}\n\n'
            f'data: {{{head}"delta":{{"content":"Hé\\u2028"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
            f'data: {{{head}"delta":{{"content":"l\\"lo\\n"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
            f'data: {{{head}"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
            "data: [DONE]\n\n"
        )

    @requirement("chat.stream.envelope", "chat.stream.choice-keys", "chat.stream.finish-chunk")
    def test_a_stream_key_by_key(self) -> None:
        assert chunks_of(["Hel", "lo"]) == [
            chunk(ROLE),
            chunk({"content": "Hel"}),
            chunk({"content": "lo"}),
            chunk({}, "stop"),
        ]

    @requirement("chat.stream.empty-answer")
    @pytest.mark.parametrize("items", [[], [None], [""], [Usage(1)], [Finish("stop")]])
    def test_an_agent_that_says_nothing(self, items: list[Any]) -> None:
        assert chunks_of(items) == [chunk(ROLE), chunk({}, "stop")]

    @requirement("chat.stream.role-once")
    @pytest.mark.parametrize(
        "first",
        [
            ReasoningDelta("hm"),
            FunctionCall("f"),
            RefusalDelta("no"),
            CITATION,
            Step("s"),
            TextDelta("a", LOGPROBS),
            TextDelta("", None, Addition({"k": "v"}, {})),
        ],
        ids=lambda event: type(event).__name__,
    )
    def test_the_role_comes_once_and_first_whatever_comes_first(self, first: Any) -> None:
        deltas = deltas_of([first], tools=["f"], activity=frozenset({"steps"}))
        assert deltas[0] in (ROLE, ROLE_WITHOUT_TEXT)
        assert len(deltas) > 1
        assert not any("role" in delta for delta in deltas[1:])

    @requirement("chat.stream.usage-asked")
    def test_usage_is_null_until_the_last_chunk(self) -> None:
        assert chunks_of(["a", Usage(3, 4, 1, 2), Usage(10, 10)], include_usage=True) == [
            chunk(ROLE, usage=None),
            chunk({"content": "a"}, usage=None),
            chunk({}, "stop", usage=None),
            {
                **chunk({}),
                "choices": [],
                "usage": {
                    "prompt_tokens": 13,
                    "completion_tokens": 14,
                    "total_tokens": 27,
                    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
                    "completion_tokens_details": {
                        "reasoning_tokens": 2,
                        "audio_tokens": 0,
                        "accepted_prediction_tokens": 0,
                        "rejected_prediction_tokens": 0,
                    },
                },
            },
        ]

    @requirement("chat.stream.usage-unasked")
    def test_without_being_asked_for_there_is_no_usage(self) -> None:
        chunks = chunks_of(["a", Usage(3, 4)])
        assert not any("usage" in part for part in chunks)
        assert all(part["choices"] for part in chunks)

    @requirement("chat.stream.choice-order", "chat.request.n")
    def test_choices_come_one_after_the_other(self) -> None:
        assert chunks_of(["a"], n=2, include_usage=True)[:-1] == [
            chunk(ROLE, usage=None),
            chunk({"content": "a"}, usage=None),
            chunk({}, "stop", usage=None),
            chunk(ROLE, index=1, usage=None),
            chunk({"content": "a"}, index=1, usage=None),
            chunk({}, "stop", index=1, usage=None),
        ]

    @requirement("chat.stream.obfuscation")
    def test_padding_is_on_delta_chunks_and_only_when_asked_for(self) -> None:
        chunks = chunks_of(["a", "a longer piece", ReasoningDelta("b")], include_obfuscation=True)
        assert [isinstance(part.pop("obfuscation", None), str) for part in chunks] == [True, True, True, True, False]
        assert chunks == chunks_of(["a", "a longer piece", ReasoningDelta("b")])

    def test_padding_hides_the_length_of_a_piece(self) -> None:
        def length(piece: str) -> int:
            body, _ = stream_of([piece], options(include_obfuscation=True))
            return len(body.split(b"\n\n")[1])

        assert length("abc") == length("abcdefghijklmno")

    @requirement("chat.stream.logprobs")
    def test_logprobs_are_sent_only_when_asked_for(self) -> None:
        items = [TextDelta("a", LOGPROBS), TextDelta("b", {"content": None}), "c"]
        assert chunks_of(items, logprobs=True)[1:-1] == [
            chunk({"content": "a"}, logprobs=LOGPROBS),
            chunk({"content": "b"}, logprobs={"content": None, "refusal": None}),
            chunk({"content": "c"}),
        ]
        assert chunks_of(items)[1] == chunk({"content": "a"})

    @pytest.mark.parametrize("letter", ["x", "é", "中", "😀", "\ud800"])
    def test_a_very_long_piece_becomes_several_chunks(self, letter: str) -> None:
        text = letter * 200_000
        deltas = deltas_of([text], include_usage=False)
        assert len(deltas) == 5
        assert "".join(delta["content"] for delta in deltas) == text
        assert deltas_of(["a", text])[2:] == deltas[1:], "also when text has come before"

    def test_logprobs_of_a_very_long_piece_are_sent_once(self) -> None:
        chunks = chunks_of([TextDelta("x" * 200_000, LOGPROBS)], logprobs=True)
        assert [part["choices"][0]["logprobs"] for part in chunks] == [None, LOGPROBS, None, None, None, None]

    @requirement("chat.stream.refusal")
    def test_a_refusal_is_no_content(self) -> None:
        assert chunks_of([RefusalDelta("I "), RefusalDelta(""), RefusalDelta("can't")]) == [
            chunk(ROLE_WITHOUT_TEXT),
            chunk({"refusal": "I "}),
            chunk({"refusal": "can't"}),
            chunk({}, "stop"),
        ]

    @requirement("activity.sources")
    def test_annotations_come_once_right_before_the_end(self) -> None:
        items = [CITATION, "a", Annotation({"type": "vendor", "n": 1}), "b"]
        assert deltas_of(items) == [
            ROLE,
            {"content": "a"},
            {"content": "b"},
            {"annotations": [CITATION.data, {"type": "vendor", "n": 1}]},
        ]

    def test_what_an_agent_writes_itself_stands_as_it_is_on_lines_that_end_right(self) -> None:
        encoder = chunk_encoder(options())
        assert encoder.feed(Raw(": a\r\n\r\ndata: b\rdata: c\n\n\n")) == ": a\n\ndata: b\ndata: c\n\n"
        assert encoder.feed(Raw("\n\n")) == ""
        encoder.feed(Raw("data: \ud800")).encode()

    @requirement("chat.error.mid-stream")
    def test_an_error_ends_the_stream_without_a_finish_chunk(self) -> None:
        error = AgentFailedError('no "\u2028', code="c", param="p")
        assert ChunkEncoder.fail(error) == (
            'data: {"error":{"message":"no \\"\\u2028","type":"server_error","param":"p","code":"c"}}\n\n'
            "data: [DONE]\n\n"
        )


class TestToolCalls:
    @requirement("chat.stream.tool-calls", "chat.stream.tool-turn-role", "chat.stream.tool-finish")
    def test_a_whole_call(self) -> None:
        assert chunks_of([FunctionCall("f", '{"a":1}')], tools=["f"]) == [
            chunk(ROLE_WITHOUT_TEXT),
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ]
                }
            ),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a":1}'}}]}),
            chunk({}, "tool_calls"),
        ]

    @requirement("chat.stream.tool-call-order")
    def test_two_calls_in_pieces_that_are_mixed(self) -> None:
        pieces = [
            FunctionCallDelta("", "f", "x", 0),
            FunctionCallDelta("", "g", "y", 1),
            FunctionCallDelta('{"b":', index=1),
            FunctionCallDelta('{"a":1}', index=0),
            FunctionCallDelta("2}", index=1),
        ]
        deltas = deltas_of(pieces, tools=["f", "g"])
        calls = [delta["tool_calls"][0] for delta in deltas[1:]]
        assert calls == [
            {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"a":1}'}},
            {"index": 1, "id": "y", "type": "function", "function": {"name": "g", "arguments": ""}},
            {"index": 1, "function": {"arguments": '{"b":2}'}},
        ]

    @requirement("activity.ownership", "chat.stream.tool-finish")
    def test_the_agents_own_calls_are_invisible(self) -> None:
        items = [FunctionCall("own", "{}", "1"), FunctionCallOutput("1", "secret"), "a"]
        assert chunks_of(items, tools=["f"]) == chunks_of(["a"])

    @requirement("activity.mixed-turns")
    def test_own_calls_before_a_clients_call_do_not_count(self) -> None:
        items = ["Looking. ", FunctionCall("own", "{}", "1"), FunctionCallOutput("1", 5), FunctionCall("f", "{}", "2")]
        *chunks, finish = chunks_of(items, tools=["f"])
        assert [part["choices"][0]["delta"] for part in chunks[:2]] == [ROLE, {"content": "Looking. "}]
        assert chunks[2]["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
        assert finish == chunk({}, "tool_calls")

    @pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
    def test_stop_behind_calls_means_tool_calls_and_other_reasons_stay(self, reason: Any) -> None:
        finish = chunks_of([FunctionCall("f"), Finish(reason)], tools=["f"])[-1]
        assert finish == chunk({}, "tool_calls" if reason == "stop" else reason)

    def test_a_custom_tool_is_called_with_its_input(self) -> None:
        call = FunctionCall("sh", "ls", "x")
        assert deltas_of([call], client_tools={"sh": "custom"}) == [
            ROLE_WITHOUT_TEXT,
            {"tool_calls": [{"index": 0, "id": "x", "type": "custom", "custom": {"name": "sh", "input": ""}}]},
            {"tool_calls": [{"index": 0, "custom": {"input": "ls"}}]},
        ]
        message = body_of([call], client_tools={"sh": "custom"})["choices"][0]["message"]
        assert message["tool_calls"] == [{"id": "x", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]

    @requirement("chat.stream.legacy-function-call")
    def test_the_deprecated_form_has_one_call(self) -> None:
        items = [FunctionCallDelta('{"a"', "f", "1"), FunctionCallDelta(":1}", id="1"), FunctionCall("f", "{}", "2")]
        assert chunks_of(items, tools=["f"], legacy_functions=True) == [
            chunk(ROLE_WITHOUT_TEXT),
            chunk({"function_call": {"name": "f", "arguments": '{"a"'}}),
            chunk({"function_call": {"arguments": ":1}"}}),
            chunk({}, "function_call"),
        ]
        choice = body_of(items, tools=["f"], legacy_functions=True)["choices"][0]
        assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"a":1}'}
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "function_call"

    def test_a_deprecated_call_that_was_cut_off_says_so(self) -> None:
        items = [FunctionCallDelta('{"a"', "f", "1"), FunctionCallDelta("{", "f", "2"), Finish("length")]
        assert chunks_of(items, tools=["f"], legacy_functions=True)[-1] == chunk({}, "length")

    @pytest.mark.parametrize("call_id", ['x"y', "\u2028", "\ud800", "中"])
    def test_ids_and_arguments_may_be_any_text(self, call_id: str) -> None:
        body, _ = stream_of([FunctionCall("f", call_id, call_id)], options(tools=["f"]))
        (call,) = judged(body, options()).choices[0].tool_calls
        assert (call.id, call.arguments) == (call_id, call_id)


class TestReasoning:
    @requirement("activity.reasoning")
    @pytest.mark.parametrize(
        ("field", "delta"),
        [
            ("both", {"reasoning_content": "hm", "reasoning": "hm"}),
            ("reasoning_content", {"reasoning_content": "hm"}),
            ("reasoning", {"reasoning": "hm"}),
        ],
    )
    def test_it_stands_in_the_fields_that_were_configured(self, field: Any, delta: dict[str, str]) -> None:
        settings = ChatSettings(reasoning_field=field)
        items = [ReasoningDelta("hm"), "a"]
        assert deltas_of(items, settings) == [ROLE_WITHOUT_TEXT, delta, {"content": "a"}]
        message = body_of(items, settings)["choices"][0]["message"]
        assert {key: message[key] for key in delta} == delta
        assert message["content"] == "a"

    @requirement("activity.reasoning")
    def test_it_can_be_left_out_and_is_counted_all_the_same(self) -> None:
        settings = ChatSettings(reasoning_field="none")
        items = [ReasoningDelta("x" * 40), "abcd"]
        assert deltas_of(items, settings) == [ROLE, {"content": "abcd"}]
        message = body_of(items, settings)["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "abcd", "refusal": None, "annotations": []}
        usage = chunks_of(items, settings, include_usage=True)[-1]["usage"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] == 10
        assert usage["completion_tokens"] == 11

    def test_nothing_is_no_chunk(self) -> None:
        assert deltas_of([ReasoningDelta(""), "a"]) == [ROLE, {"content": "a"}]


class TestActivity:
    ITEMS = (
        FunctionCall("own", '{"q":1}', "1"),
        Step("search"),
        FunctionCallOutput("1", {"hits": 2}, is_error=True),
        "a",
        Custom("mine", [1]),
    )

    @requirement("activity.opt-in")
    def test_without_being_asked_for_nothing_is_shown(self) -> None:
        assert chunks_of([*self.ITEMS]) == chunks_of(["a"])
        assert "x_agent" not in body_of([*self.ITEMS])

    @requirement("activity.chunks", "activity.io")
    def test_each_event_is_a_chunk_of_its_own_with_an_idle_choice(self) -> None:
        chunks = chunks_of([*self.ITEMS], activity=frozenset({"tools", "steps"}), include_usage=True)
        started, step, failed = chunks[1:4]
        assert started == chunk(
            {}, usage=None, x_agent={"type": "tool_call.started", "seq": 1, "id": "1", "name": "own"}
        )
        assert step == chunk({}, usage=None, x_agent={"type": "step.started", "seq": 2, "name": "search"})
        assert failed == chunk({}, usage=None, x_agent={"type": "tool_call.failed", "seq": 3, "id": "1", "name": "own"})
        assert chunks[5]["x_agent"] == {"type": "custom", "seq": 4, "name": "mine", "value": [1]}

    @requirement("activity.io")
    def test_arguments_and_outputs_are_shown_to_those_who_asked_for_them(self) -> None:
        chunks = chunks_of([*self.ITEMS], activity=frozenset({"tools", "io"}))
        started, failed = (part["x_agent"] for part in chunks if "x_agent" in part)
        assert started["arguments"] == '{"q":1}'
        assert failed == {
            "type": "tool_call.failed",
            "seq": 2,
            "id": "1",
            "name": "own",
            "output": {"hits": 2},
            "arguments": '{"q":1}',
        }

    @requirement("activity.in-body")
    @pytest.mark.parametrize("kinds", [{"tools"}, {"steps"}, {"tools", "steps", "progress", "io"}])
    def test_a_body_has_the_same_events_in_a_list(self, kinds: set[str]) -> None:
        streamed = [p["x_agent"] for p in chunks_of([*self.ITEMS], activity=frozenset(kinds)) if "x_agent" in p]
        assert body_of([*self.ITEMS], activity=frozenset(kinds))["x_agent"] == {"events": streamed}

    def test_activity_of_a_later_choice_stands_at_that_choice(self) -> None:
        chunks = chunks_of([Step("s")], n=2, activity=frozenset({"steps"}))
        assert [p["choices"][0]["index"] for p in chunks if "x_agent" in p] == [0, 1]
        assert [p["x_agent"]["seq"] for p in chunks if "x_agent" in p] == [1, 2]


class TestAdditions:
    def text(self, fields: dict[str, Any], **merge_options: bool) -> TextDelta:
        return TextDelta("a", None, Addition(fields, merge_options))  # type: ignore[arg-type]

    def test_new_fields_stand_in_the_delta_and_in_the_message(self) -> None:
        item = self.text({"vendor": {"k": [1]}, "tag": "x"})
        assert deltas_of([item]) == [ROLE, {"content": "a", "vendor": {"k": [1]}, "tag": "x"}]
        message = body_of([item, item])["choices"][0]["message"]
        assert message["vendor"] == {"k": [1]}
        assert message["tag"] == "xx", "as a client joins deltas"

    @requirement("chat.stream.mergeable")
    @pytest.mark.parametrize(
        "key", ["role", "refusal", "annotations", "tool_calls", "function_call", "reasoning_content", "reasoning"]
    )
    @pytest.mark.parametrize("value", ["x", None, [], {}, 5], ids=repr)
    def test_fields_of_the_protocol_cannot_be_added(self, key: str, value: Any) -> None:
        item = self.text({key: value})
        assert deltas_of([item]) == [ROLE, {"content": "a"}]
        assert body_of([item]) == body_of(["a"])

    @pytest.mark.parametrize("value", [None, [], {}, 5], ids=repr)
    def test_the_text_can_be_replaced_by_text_only(self, value: Any) -> None:
        assert deltas_of([self.text({"content": value})]) == [ROLE, {"content": "a"}]
        assert deltas_of([self.text({"content": "b"})]) == [ROLE, {"content": "b"}]
        assert body_of([self.text({"content": "b"})]) == body_of(["b"])

    def test_replaced_text_passes_the_stop_sequences_too(self) -> None:
        items = [self.text({"content": "ST"}), "OP", "b"]
        assert "".join(d.get("content") or "" for d in deltas_of(items, stop=("STOP",))) == ""
        assert body_of(items, stop=("STOP",))["choices"][0]["message"]["content"] == ""

    def test_reasoning_can_be_replaced_in_both_fields(self) -> None:
        item = ReasoningDelta("hm", Addition({"reasoning": "oh", "k": "v"}, {}))
        assert deltas_of([item])[1] == {"reasoning_content": "oh", "reasoning": "oh", "k": "v"}
        message = body_of([item])["choices"][0]["message"]
        assert (message["reasoning_content"], message["reasoning"], message["k"]) == ("oh", "oh", "v")

    def test_no_new_field_keeps_new_fields_out(self) -> None:
        item = self.text({"content": "b", "k": "v"}, no_new_field=True)
        assert deltas_of([item]) == [ROLE, {"content": "b"}]
        assert body_of([item]) == body_of(["b"])

    def test_an_addition_without_text_is_not_lost(self) -> None:
        item = TextDelta("", None, Addition({"k": "v"}, {}))
        assert deltas_of([item, "a"]) == [ROLE, {"content": "", "k": "v"}, {"content": "a"}]
        assert body_of([item, "a"])["choices"][0]["message"]["k"] == "v"

    def test_an_addition_whose_text_is_held_back_is_not_lost(self) -> None:
        item = TextDelta("ST", None, Addition({"k": "v"}, {}))
        assert deltas_of([item], stop=("STOP",)) == [ROLE, {"content": "", "k": "v"}, {"content": "ST"}]

    @pytest.mark.parametrize("arguments", ["", '{"a":1}'])
    def test_a_calls_addition_stands_once_beside_its_arguments(self, arguments: str) -> None:
        item = FunctionCall("f", arguments, "1", Addition({"k": "v", "role": "x"}, {}))
        *_, last = deltas_of([item], tools=["f"])
        assert last == {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}], "k": "v"}
        assert body_of([item], tools=["f"])["choices"][0]["message"]["k"] == "v"

    def test_an_addition_is_not_repeated_for_the_calls_its_event_sets_free(self) -> None:
        items = [
            FunctionCallDelta('{"a":', "f", "1"),
            FunctionCall("g", '{"b":2}', "2"),
            FunctionCallDelta("1}", id="1", addition=Addition({"k": "v"}, {})),
        ]
        deltas = deltas_of(items, tools=["f", "g"])
        assert [delta.get("k") for delta in deltas if "tool_calls" in delta] == [None, None, "v", None, None]
        assert body_of(items, tools=["f", "g"])["choices"][0]["message"]["k"] == "v"

    def test_values_json_has_not_are_written_all_the_same(self) -> None:
        assert deltas_of([self.text({"k": float("nan"), "o": {1}})])[1] == {"content": "a", "k": None, "o": [1]}


class TestBody:
    @requirement("chat.completion.shape", "chat.completion.usage")
    def test_a_body_key_by_key(self) -> None:
        assert body_of(["Hel", "lo\ud800"]) == {
            "id": ID,
            "object": "chat.completion",
            "created": CREATED,
            "model": MODEL,
            "service_tier": "default",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello\ud800", "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 7,
                "completion_tokens": 2,
                "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
        }

    @requirement("chat.completion.tool-turn")
    def test_a_turn_of_calls(self) -> None:
        (choice,) = body_of([FunctionCall("f", {"a": 1}, "x")], tools=["f"])["choices"]  # type: ignore[arg-type]
        assert choice == {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }

    def test_text_and_calls_can_stand_together(self) -> None:
        message = body_of(["Let me see.", FunctionCall("f")], tools=["f"])["choices"][0]["message"]
        assert message["content"] == "Let me see."
        assert len(message["tool_calls"]) == 1

    @requirement("chat.stream.refusal")
    def test_a_refusal(self) -> None:
        (choice,) = body_of([RefusalDelta("I "), RefusalDelta("can't")])["choices"]
        assert (choice["message"]["content"], choice["message"]["refusal"]) == (None, "I can't")
        assert choice["finish_reason"] == "stop"

    def test_an_empty_answer_is_empty_text(self) -> None:
        assert body_of([])["choices"][0]["message"]["content"] == ""

    @requirement("activity.sources")
    def test_annotations_stand_in_the_message(self) -> None:
        assert body_of(["a", CITATION])["choices"][0]["message"]["annotations"] == [CITATION.data]

    def test_logprobs_of_all_pieces_are_joined(self) -> None:
        items = [TextDelta("a", LOGPROBS), "b", TextDelta("c", {"content": [{"token": "c"}]})]
        (choice,) = body_of(items, logprobs=True)["choices"]
        assert choice["logprobs"] == {"content": [*LOGPROBS["content"], {"token": "c"}], "refusal": None}  # type: ignore[misc]
        assert body_of(items)["choices"][0]["logprobs"] is None

    @requirement("chat.request.n")
    def test_each_choice_is_an_answer_of_its_own(self) -> None:
        body = body_of(["a"], n=3)
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
        assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "a", "a"]

    def test_what_an_agent_writes_into_a_stream_has_no_place_in_a_body(self) -> None:
        assert body_of([Raw("data: x"), "a"]) == body_of(["a"])

    @requirement("chat.completion.same-as-stream")
    def test_the_judge_accepts_it(self) -> None:
        asked = options(tools=["f"], activity=frozenset({"tools"}), n=2)
        body, _ = completion_of([ReasoningDelta("hm"), "a", FunctionCall("own"), FunctionCall("f"), CITATION], asked)
        assert body is not None
        assert judged_body(body, asked).choices[1].finish_reason == "tool_calls"
        json.dumps(body, allow_nan=False)
