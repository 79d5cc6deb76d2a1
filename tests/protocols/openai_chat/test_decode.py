"""Reading a whole request: JSON, then fields, then what they mean together."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentrun_server.core.messages import Tool
from agentrun_server.core.request import Headers
from agentrun_server.errors import InvalidRequestError
from agentrun_server.protocols.openai_chat.decode import ChatOptions, decode, parse_json
from agentrun_server.protocols.openai_chat.fields import FIELDS
from tests.conformance.requirements import requirement
from tests.protocols.openai_chat.requests import USER, options_of, read, refused
from tests.support.properties import any_text, json_values

FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CUSTOM = {"type": "custom", "custom": {"name": "sh"}}


class TestJSON:
    @requirement("chat.request.strict-json")
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b"{} {}",
            b"{'a': 1}",
            b'{"a": 1,}',
            b'{"a": 01}',
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"a": -Infinity}',
            b'{"a": "\x01"}',
            b'{"a": "\x00"}',
            b'{"a": "\xff"}',
            b'{"a": "\xed\xa0\x80"}',
            b'{"a": "\\ud800"}',
            b'{"a": "\\udc00\\ud800"}',
            b'{"a": "\\x"}',
            b"\xef\xbb\xbf{}",
            '{"a": 1}'.encode("utf-16"),
            b'{"a": ' + b"1" * 5000 + b"}",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}",
            b'{"a": [' + b"9" * 4000 + b"," + b" " * 64_000 + b"1]}",
            b"// comment\n{}",
            b"stream=true&model=m",
        ],
        ids=lambda body: repr(body[:24]),
    )
    def test_what_is_no_json_is_a_400(self, body: bytes) -> None:
        with pytest.raises(InvalidRequestError) as raised:
            parse_json(body)
        assert raised.value.code == "invalid_json"
        assert raised.value.param is None

    @requirement("chat.request.strict-json")
    @pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"5", b"true", b"[{}]"])
    def test_what_is_no_object_is_a_400(self, body: bytes) -> None:
        with pytest.raises(InvalidRequestError) as raised:
            parse_json(body)
        assert raised.value.code == "invalid_type"

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b"{}", {}),
            (b' \r\n\t{"a": 1} ', {"a": 1}),
            (b'{"a": 1, "a": 2}', {"a": 2}),
            (b'{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
            ('{"ü": "\u2028中文"}'.encode(), {"ü": "\u2028中文"}),
            (b'{"a": ' + b"9" * 100 + b"}", {"a": int("9" * 100)}),
            (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", None),
        ],
        ids=lambda value: repr(value)[:24],
    )
    def test_json_is_read_as_it_is(self, body: bytes, value: Any) -> None:
        read_back = parse_json(body)
        assert value is None or read_back == value
        assert parse_json(bytearray(body)) == read_back

    @given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
    def test_any_bytes_are_an_object_or_a_400(self, body: bytes) -> None:
        try:
            assert isinstance(parse_json(body), dict)
        except InvalidRequestError as error:
            assert error.status_code == 400  # noqa: PT017 - either is right


class TestRequired:
    @requirement("chat.request.required")
    @pytest.mark.parametrize("name", ["model", "messages"])
    @pytest.mark.parametrize("absent", [True, False], ids=["absent", "null"])
    def test_model_and_messages_are_required(self, name: str, absent: bool) -> None:
        body: dict[str, Any] = {"model": "m", "messages": [USER], name: None}
        if absent:
            del body[name]
        with pytest.raises(InvalidRequestError) as raised:
            decode(body, Headers())
        assert (raised.value.param, raised.value.code) == (name, "missing_required_parameter")

    @requirement("chat.request.required")
    def test_nothing_else_is(self) -> None:
        request, options = read()
        assert (request.model, request.messages, request.stream) == ("m", [USER], False)
        assert (request.protocol, request.tools, request.tool_choice) == ("openai", None, None)
        assert dict(request.params) == dict(request.extra) == {}
        assert options == ChatOptions(client_tools={})


class TestParameters:
    @requirement("chat.request.parameters", "chat.request.max-tokens", "chat.request.open-values")
    def test_what_was_sent_is_an_attribute_and_what_was_not_is_none_at_all(self) -> None:
        sent: dict[str, Any] = {
            "temperature": 0,
            "max_tokens": 5,
            "max_completion_tokens": 6,
            "reasoning_effort": "extreme",
            "parallel_tool_calls": False,
            "logit_bias": {"1": 2},
            "store": True,
            "safety_identifier": "s",
        }
        request, _ = read(sent)
        assert {name: getattr(request, name) for name in sent} == sent
        assert dict(request.params) == sent
        for name in FIELDS.keys() - sent.keys() - {"model", "messages", "stream", "tools", "tool_choice"}:
            if name not in ("response_format", "metadata", "user"):
                assert not hasattr(request, name), name

    @requirement("chat.request.response-format")
    def test_some_are_always_attributes(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": None}}
        request, _ = read({"response_format": form, "metadata": {"k": "v"}, "user": "u", "stream": True})
        assert (request.response_format, request.metadata, request.user, request.stream) == (
            form,
            {"k": "v"},
            "u",
            True,
        )

    @requirement("chat.request.unknown-fields")
    def test_unknown_fields_are_kept_for_the_agent(self) -> None:
        extra = {"top_k": 40, "chat_template_kwargs": {"thinking": True}, "provider": ["a"]}
        request, _ = read({**extra, "nothing": None})
        assert dict(request.extra) == extra

    @requirement("chat.request.unknown-fields")
    def test_a_strict_server_refuses_unknown_fields(self) -> None:
        assert refused({"zeta": 1, "alpha": 2}, strict_fields=True) == ("alpha", "unknown_parameter")
        read({"temperature": 1, "x_agent": {}, "nothing": None}, strict_fields=True)


class TestOptions:
    @requirement("chat.request.stream-options")
    @pytest.mark.parametrize("stream", [True, False])
    def test_stream_options_are_read_with_and_without_stream(self, stream: bool) -> None:
        body = {"stream": stream, "stream_options": {"include_usage": True, "include_obfuscation": True}}
        options = options_of(body)
        assert (options.include_usage, options.include_obfuscation) == (True, True)
        assert not options_of({"stream_options": {"include_usage": None}}).include_usage

    @requirement("chat.request.n")
    def test_n_is_bounded_by_the_server(self) -> None:
        assert options_of({"n": 3}).n == 3
        assert refused({"n": 3}, max_choices=2) == ("n", "integer_above_max_value")

    @requirement("chat.request.stop")
    @pytest.mark.parametrize(
        ("stop", "sequences"),
        [("a", ("a",)), (["a", "b"], ("a", "b")), ("", ()), (["", "b"], ("b",)), ("\n\n", ("\n\n",))],
    )
    def test_stop_is_one_or_several_sequences(self, stop: Any, sequences: tuple[str, ...]) -> None:
        assert options_of({"stop": stop}).stop == sequences

    def test_logprobs_are_asked_for(self) -> None:
        assert options_of({"logprobs": True, "top_logprobs": 3}).logprobs
        assert not options_of({"logprobs": False}).logprobs

    @requirement("activity.opt-in")
    def test_activity_is_asked_for_by_header_body_and_configuration(self) -> None:
        headers = Headers([(b"x-agent-events", b"Tools, steps ,")])
        body = {"model": "m", "messages": [USER], "x_agent": {"include": ["io"]}}
        request, options = decode(body, headers, activity=("progress",))
        assert options.activity >= {"tools", "steps", "io", "progress"}
        assert not hasattr(request, "x_agent")
        assert options_of().activity == frozenset()


class TestTools:
    @requirement("chat.request.tools")
    def test_the_agent_gets_tools_and_the_answer_knows_whose_they_are(self) -> None:
        request, options = read({"tools": [FUNCTION, CUSTOM, {"type": "web_search"}]})
        assert request.tools == [FUNCTION, CUSTOM, {"type": "web_search"}]
        assert all(isinstance(tool, Tool) for tool in request.tools or ())
        assert [tool.name for tool in request.tools or ()] == ["f", "sh", ""]
        assert options.client_tools == {"f": "function", "sh": "custom"}

    def test_no_tools_are_none(self) -> None:
        assert read({"tools": []})[0].tools is None
        assert read({"tools": None})[0].tools is None

    @requirement("chat.request.tool-choice")
    @pytest.mark.parametrize(
        "choice",
        [
            "none",
            "auto",
            "required",
            {"type": "function", "function": {"name": "f"}},
            {"type": "custom", "custom": {"name": "sh"}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}},
        ],
        ids=str,
    )
    def test_a_tool_choice_reaches_the_agent_as_sent(self, choice: Any) -> None:
        assert read({"tools": [FUNCTION, CUSTOM], "tool_choice": choice})[0].tool_choice == choice

    @requirement("chat.request.tool-choice")
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
    @pytest.mark.parametrize("tools", [None, []])
    def test_a_choice_needs_tools(self, choice: Any, tools: Any) -> None:
        assert refused({"tools": tools, "tool_choice": choice}) == ("tool_choice", "invalid_value")

    @pytest.mark.parametrize("choice", ["none", "auto"])
    def test_no_choice_needs_none(self, choice: str) -> None:
        assert read({"tool_choice": choice})[0].tool_choice == choice

    @requirement("chat.request.tool-choice")
    def test_the_chosen_tool_must_be_there(self) -> None:
        choice = {"type": "function", "function": {"name": "g"}}
        assert refused({"tools": [FUNCTION], "tool_choice": choice}) == ("tool_choice", "invalid_value")

    @requirement("chat.request.legacy-functions")
    @pytest.mark.parametrize("tools", [None, []])
    def test_deprecated_functions_become_tools(self, tools: Any) -> None:
        functions = [{"name": "f", "parameters": {}}, {"name": "g"}]
        request, options = read({"tools": tools, "functions": functions, "function_call": {"name": "g"}})
        assert request.tools == [{"type": "function", "function": function} for function in functions]
        assert request.tool_choice == {"type": "function", "function": {"name": "g"}}
        assert options.legacy_functions
        assert options.client_tools == {"f": "function", "g": "function"}

    @requirement("chat.request.legacy-functions")
    @pytest.mark.parametrize("choice", ["none", "auto", None])
    def test_the_deprecated_choice_becomes_the_tool_choice(self, choice: Any) -> None:
        assert read({"functions": [{"name": "f"}], "function_call": choice})[0].tool_choice == choice

    def test_tools_win_over_deprecated_functions(self) -> None:
        request, options = read({"tools": [FUNCTION], "functions": [{"name": "g"}]})
        assert request.tools == [FUNCTION]
        assert not options.legacy_functions
        assert options.client_tools == {"f": "function"}


_messages = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal"]),
        st.one_of(
            st.sampled_from(["user", "assistant", "tool", "system", "function", None, 5, ["user"]]),
            any_text,
            json_values,
            st.lists(
                st.dictionaries(
                    st.sampled_from(["type", "text", "image_url", "input_audio", "file", "id", "function", "custom"]),
                    st.sampled_from(["text", "image_url", "input_audio", "file", "function", "custom"]) | json_values,
                ),
                max_size=3,
            ),
        ),
    ),
    max_size=3,
)
_tool = st.dictionaries(
    st.sampled_from(["type", "function", "custom"]),
    st.sampled_from(["function", "custom", {"name": "f"}, {"name": "f", "parameters": []}]) | json_values,
)
_bodies = st.fixed_dictionaries(
    {"model": st.just("m") | json_values, "messages": st.just([USER]) | _messages | json_values},
    optional={
        **{name: json_values for name in FIELDS if name not in ("model", "messages")},
        "tools": st.lists(_tool, max_size=2) | json_values,
        "tool_choice": st.sampled_from(["auto", "required", FUNCTION, CUSTOM]) | json_values,
        "functions": st.lists(json_values | st.just({"name": "f"}), max_size=2),
        "x_agent": json_values | st.fixed_dictionaries({"include": json_values}),
        "whatever": json_values,
    },
)
_few_fields = st.tuples(_bodies, st.sets(st.sampled_from(sorted(FIELDS)), max_size=3)).map(
    lambda drawn: {k: v for k, v in drawn[0].items() if k in ("model", "messages", *drawn[1])}
)


@requirement("chat.request.openai-errors")
@given(_few_fields | _bodies, st.booleans())
@example({"model": "m", "messages": [USER], "temperature": 10**400}, False)
def test_any_object_is_a_request_or_a_400(body: dict[str, Any], strict: bool) -> None:
    try:
        request, options = decode(body, Headers(), strict_fields=strict)
    except InvalidRequestError as error:
        said = error.body()["error"]
        assert said.keys() == {"message", "type", "param", "code"}
        assert said["code"]
        return
    assert request.messages
    assert options.n >= 1
    assert set(options.client_tools) <= {tool.name for tool in request.tools or ()}
