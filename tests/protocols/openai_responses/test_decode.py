"""Reading a whole request: fields, then what they mean together, then what the agent sees of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrun_server.core.messages import Tool
from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_responses.decode import (
    ResponseOptions,
    decode,
    decode_conversation,
    decode_items,
    decode_metadata,
)
from agentrun_server.protocols.openai_responses.fields import FIELDS
from tests.protocols.openai_responses.answers import FUNCTION, Counter, call_of, refused
from tests.support.properties import json_values

CUSTOM = {
    "type": "custom",
    "name": "sh",
    "description": "d",
    "format": {"type": "grammar", "syntax": "lark", "definition": "x"},
}
MESSAGE = {"role": "user", "content": "Hi"}


def read(body: dict[str, Any], **settings: Any) -> Any:
    return decode(body, Headers(), Counter(), **settings)


class TestTogether:
    def test_a_model_is_required_unless_the_server_has_one(self) -> None:
        assert refused({"model": None}) == ("model", "missing_required_parameter")
        call = read({"input": "Hi"}, default_model="mine")
        assert (call.request.model, call.echo["model"]) == ("mine", "mine")

    def test_something_to_answer_is_required(self) -> None:
        assert refused({"input": None}) == ("input", "missing_required_parameter")

    @pytest.mark.parametrize("context", [{"previous_response_id": "r"}, {"conversation": "c"}, {"prompt": {"id": "p"}}])
    @pytest.mark.parametrize("said", [None, []])
    def test_what_came_before_is_enough(self, context: dict[str, Any], said: Any) -> None:
        assert call_of({"input": said, **context}).items == []

    def test_a_response_and_a_conversation_exclude_each_other(self) -> None:
        param, code = refused({"previous_response_id": "r", "conversation": "c"})
        assert (param, code) == ("previous_response_id", "mutually_exclusive_parameters")

    def test_in_a_conversation_a_response_may_be_left_unstored(self) -> None:
        call = call_of({"conversation": "conv_1", "store": False})
        assert (call.conversation, call.store) == ("conv_1", False)

    def test_in_the_background_nothing_can_be_left_unstored(self) -> None:
        assert refused({"background": True, "store": False}) == ("background", "invalid_value")
        assert call_of({"background": True}).background

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tool_choice": "required"}, "tool_choice"),
            ({"tool_choice": {"type": "function", "name": "g"}, "tools": [FUNCTION]}, "tool_choice"),
            ({"tool_choice": {"type": "custom", "name": "f"}, "tools": [FUNCTION]}, "tool_choice"),
            (
                {
                    "tool_choice": {
                        "type": "allowed_tools",
                        "mode": "auto",
                        "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}],
                    },
                    "tools": [FUNCTION],
                },
                "tool_choice",
            ),
        ],
    )
    def test_only_a_tool_that_is_there_can_be_chosen(self, fields: dict[str, Any], param: str) -> None:
        assert refused(fields) == (param, "invalid_value")

    @pytest.mark.parametrize("choice", ["none", "auto"])
    def test_no_tool_is_needed_to_choose_none(self, choice: str) -> None:
        assert call_of({"tool_choice": choice}).request.tool_choice == choice

    def test_too_many_items_are_refused(self) -> None:
        assert refused({"input": [dict(MESSAGE)] * 3}, max_items=2) == ("input", "array_above_max_length")

    def test_unknown_fields_are_handed_on_or_refused(self) -> None:
        assert call_of({"top_k": 5}).request.extra == {"top_k": 5}
        assert refused({"top_k": 5}, strict_fields=True) == ("top_k", "unknown_parameter")

    @pytest.mark.parametrize("number", [1e999, 10**400], ids=["infinite", "long"])
    def test_numbers_that_are_too_large_are_refused_wherever_they_are(self, number: float) -> None:
        for fields in (
            {"top_k": [number]},
            {"tools": [{**FUNCTION, "parameters": {"maximum": number}}]},
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"maximum": number}}}},
            {"prompt": {"id": "p", "variables": {"n": number}}},
            {"reasoning": {"budget": number}},
            {"input": [{**MESSAGE, "weight": number}]},
        ):
            assert refused(fields) == (None, "invalid_json"), fields


class TestDefaults:
    def test_of_a_request_that_asks_for_nothing_special(self) -> None:
        call = call_of()
        assert call.options == ResponseOptions({})
        assert (call.store, call.background, call.include) == (True, False, frozenset())
        assert (call.previous_response_id, call.conversation, call.instructions) == (None, None, None)
        request = call.request
        assert (request.protocol, request.model, request.stream) == ("openai_responses", "m", False)
        assert (request.tools, request.tool_choice, request.response_format) == (None, None, None)
        assert (request.messages, dict(request.params), dict(request.extra)) == ([], {}, {})
        assert call.items == [
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_text", "text": "Hi"}],
            }
        ]
        assert call.echo == {
            "model": "m",
            "instructions": None,
            "previous_response_id": None,
            "tools": [],
            "tool_choice": "auto",
            "truncation": "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_logprobs": 0,
            "temperature": 1.0,
            "reasoning": {"effort": None, "summary": None},
            "max_output_tokens": None,
            "max_tool_calls": None,
            "store": True,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }


class TestAgentsView:
    def test_tools_have_the_form_that_agents_know(self) -> None:
        hosted = {"type": "web_search", "x": 1}
        tools = call_of({"tools": [{**FUNCTION, "strict": None}, dict(CUSTOM), hosted]}).request.tools
        assert tools == [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": None}},
            {
                "type": "custom",
                "custom": {
                    "name": "sh",
                    "description": "d",
                    "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "x"}},
                },
            },
            hosted,
        ]
        assert all(isinstance(tool, Tool) for tool in tools)
        assert [tool.name for tool in tools] == ["f", "sh", ""]

    @pytest.mark.parametrize(
        ("sent", "seen"),
        [
            ("required", "required"),
            ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
            (
                {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}, {"x": 1}]},
                {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "f"}}, {"x": 1}],
                    },
                },
            ),
            ({"type": "mcp", "server_label": "s"}, {"type": "mcp", "server_label": "s"}),
        ],
    )  # fmt: skip
    def test_so_has_the_choice_among_them(self, sent: Any, seen: Any) -> None:
        call = call_of({"tools": [FUNCTION], "tool_choice": sent})
        assert call.request.tool_choice == seen
        assert call.echo["tool_choice"] == sent

    def test_and_the_format_of_the_answer(self) -> None:
        form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
        call = call_of({"text": {"format": dict(form), "verbosity": "low"}})
        assert call.request.response_format == {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": {"type": "object"}},
        }
        assert call.echo["text"] == {"verbosity": "low", "format": {**form, "description": "", "strict": False}}
        assert call_of({"text": {"format": {"type": "json_object"}}}).request.response_format == {"type": "json_object"}

    def test_parameters_are_attributes_also_under_the_names_of_chat(self) -> None:
        request = call_of(
            {"max_output_tokens": 50, "reasoning": {"effort": "low"}, "text": {"verbosity": "high"}, "temperature": 0}
        ).request
        assert (request.max_output_tokens, request.max_completion_tokens) == (50, 50)
        assert (request.reasoning_effort, request.reasoning) == ("low", {"effort": "low"})
        assert (request.verbosity, request.temperature) == ("high", 0)
        assert not hasattr(request, "top_p")

    def test_what_is_the_servers_business_is_no_parameter(self) -> None:
        call = call_of(
            {"store": False, "instructions": "x", "include": ["y"], "metadata": {"k": "v"}, "user": "u", "stream": True}
        )
        assert dict(call.request.params) == {}
        assert (call.request.metadata, call.request.user, call.request.stream) == ({"k": "v"}, "u", True)
        assert (call.store, call.instructions, call.include) == (False, "x", frozenset({"y"}))


class TestOptions:
    def test_the_clients_tools_are_known_by_kind(self) -> None:
        call = call_of({"tools": [FUNCTION, dict(CUSTOM), {"type": "web_search"}]})
        assert call.options.client_tools == {"f": "function", "sh": "custom"}

    @pytest.mark.parametrize(
        ("fields", "wanted"),
        [({}, False), ({"include": ["message.output_text.logprobs"]}, True), ({"top_logprobs": 2}, True)],
    )
    def test_logprobs_are_sent_when_asked_for(self, fields: dict[str, Any], wanted: bool) -> None:
        assert call_of(fields).options.logprobs is wanted


class TestEcho:
    def test_function_tools_get_what_was_left_out(self) -> None:
        tools = call_of({"tools": [{"type": "function", "name": "f", "strict": None}, dict(CUSTOM)]}).echo["tools"]
        filled = {"type": "function", "name": "f", "description": None, "parameters": None, "strict": True}
        assert tools == [filled, CUSTOM]

    def test_what_is_null_is_not_repeated_where_there_is_no_null(self) -> None:
        tools = [
            {"type": "function", "name": "f", "defer_loading": None},
            {"type": "custom", "name": "c", "description": None},
            {"type": "mcp", "server_label": "s", "authorization": None},
        ]
        echo = call_of({"tools": tools, "reasoning": {"effort": "low", "mode": None}}).echo
        assert [list(tool) for tool in echo["tools"]] == [
            ["description", "parameters", "strict", "type", "name"],
            ["type", "name"],
            ["type", "server_label"],
        ]
        assert echo["reasoning"] == {"effort": "low", "summary": None}

    def test_a_conversation_is_named(self) -> None:
        assert call_of({"conversation": "conv_1"}).echo["conversation"] == {"id": "conv_1"}
        assert call_of({"conversation": {"id": "conv_1"}}).conversation == "conv_1"


class TestConversations:
    def test_a_new_one_has_items_and_metadata_or_neither(self) -> None:
        assert decode_conversation({}, Counter()) == ([], {})
        items, metadata = decode_conversation({"items": [dict(MESSAGE)], "metadata": {"k": "v"}}, Counter())
        assert ([item["id"] for item in items], metadata) == (["msg_1"], {"k": "v"})

    @pytest.mark.parametrize(
        ("read", "body", "param", "code"),
        [
            (decode_items, {}, "items", "missing_required_parameter"),
            (decode_items, {"items": [dict(MESSAGE) for _ in range(21)]}, "items", "array_above_max_length"),
            (decode_items, {"items": [{"role": "user"}]}, "items[0].content", "missing_required_parameter"),
            (decode_conversation, {"items": {}}, "items", "invalid_type"),
            (decode_conversation, {"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
            (lambda body, _: decode_metadata(body), {}, "metadata", "missing_required_parameter"),
            (lambda body, _: decode_metadata(body), {"metadata": "x"}, "metadata", "invalid_type"),
        ],
    )
    def test_a_bad_body_is_refused_by_its_name(self, read: Any, body: Any, param: str, code: str) -> None:
        with pytest.raises(InvalidRequestError) as raised:
            read(body, Counter())
        assert (raised.value.param, raised.value.code) == (param, code)

    def test_metadata_can_be_changed(self) -> None:
        assert decode_metadata({"metadata": {"k": "v"}}) == {"k": "v"}
        assert decode_metadata({"metadata": None}) == {}


_bodies = st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=3), json_values, max_size=6)


@given(_bodies)
def test_any_object_is_a_request_or_a_400(body: dict[str, Any]) -> None:
    try:
        call_of(body)
    except InvalidRequestError as error:
        assert error.status_code == 400  # noqa: PT017 - either is right
