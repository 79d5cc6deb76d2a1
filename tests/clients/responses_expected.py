"""The Responses API: every scenario, every client, and what each client must see.

`SCENARIOS` says what a client sees that loses nothing, in the words of the official Python client. A `Client` says
which of it that client cannot show, and why; these are facts about the clients, not about the server.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from tests.clients.cells import HIDDEN, Client, Table
from tests.clients.expected import ANSWER, PIECES

_HELLO = {"text": "You said: hello", "role": "assistant", "finish": "completed"}
_REASONING = {"reasoning": "Six times seven.", "text": "The answer is 42."}
_REFUSAL = {"refusal": "I cannot help with that.", "text": ""}
_SOURCES = {
    "text": "Paris is the capital of France.",
    "sources": [
        ["https://example.org/paris", "Paris", 0, 5],
        ["https://example.org/france", "France", 24, 30],
    ],
}
_USAGE = {"input": 15, "output": 8, "total": 23, "cached": 3, "reasoning": 2}
_LENGTH = {"text": "Cut of", "finish": "incomplete", "reason": "max_output_tokens"}
_WEATHER = {"city": "Paris", "degrees": 21}

_TWICE = ["completed", "completed"]
_CLIENT_TOOL = {"executed": [{"city": "Paris"}], "texts": ["It is 21 °C in Paris."], "finish": _TWICE}
_TWO_TOOLS = {
    "executed": [{"city": "Paris"}, {"city": "Rome"}],
    "texts": ["Paris: 21 °C, Rome: 24 °C"],
    "finish": _TWICE,
}
_MIXED_TOOLS = {
    "executed": [{"city": "Paris"}],
    "texts": ["Let me ask. ", "It is 21 °C in Paris."],
    "finish": _TWICE,
}
_CUSTOM_TOOL = {"name": "run_code", "input": "print(6 * 7)", "text": "It printed 42."}
_SERVER_TOOL = {
    "executed": [],
    "ran": [["search", {"query": "weather"}, "3 hits"]],
    "texts": ["Let me look. ", "I found 3 hits."],
    "finish": "completed",
}

# What an agent hears of two turns, the first of which was thought over, looked up and answered.
_THOUGHT = "thought: Let me see."
_LOOKED = 'called: search({"query": "weather"})'
_HEARD = [
    "user: one",
    _THOUGHT,
    "assistant: Let me look. ",
    _LOOKED,
    "tool: 3 hits",
    "assistant: I found 3 hits.",
    "user: two",
]
_TURNS = {"heard": _HEARD}

_FAILED = {
    "error": "InternalServerError",
    "status": 500,
    "code": "agent_error",
    "request_id": True,
    "leaks": False,
    "runs": 1,
}
_BROKEN = {"pieces": ["one "], "error": "APIError", "code": "agent_error", "leaks": False, "runs": 1}
_LEFT = {"pieces": ["first "], "cancelled": 1, "runs": 1}

SCENARIOS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Answers
    "plain": _HELLO,
    "whole": {"text": ANSWER},
    "streamed": {"pieces": PIECES, "finish": ["completed"]},
    "streamed_async": {"text": ANSWER},
    "stream_helper": {"text": ANSWER, "finish": "completed", "deltas": PIECES, "done": [ANSWER]},
    # The client holds the first piece before the agent makes the second.
    "live": {"pieces": ["first ", "second"], "runs": 1},
    # The stream is kept alive by comments before its first event and within.
    "quiet": {"text": "first second"},
    # With `store: false`, whole and streamed.
    "unstored": {"text": ANSWER, "pieces": PIECES, "kept": [False, False]},
    "reasoning": _REASONING,
    "reasoning_streamed": _REASONING,
    "refusal": _REFUSAL,
    "refusal_streamed": _REFUSAL,
    "sources": _SOURCES,
    "sources_streamed": _SOURCES,
    "usage": _USAGE,
    "usage_streamed": _USAGE,
    "length": _LENGTH,
    "length_streamed": _LENGTH,
    "structured": _WEATHER,
    "structured_streamed": _WEATHER,
    "parameters": {
        "params": {"temperature": 0.5, "max_output_tokens": 50},
        "messages": ["system", "user"],
        "parts": ["text", "image_url"],
    },
    "extras": {"extra": {"top_k": 3}, "user": "ada", "metadata": {"team": "red"}},
    # What a response repeats of its request.
    "echoed": {
        "model": "echo",
        "instructions": "Be brief.",
        "metadata": {"team": "red"},
        "temperature": 0.5,
        "max_output_tokens": 50,
    },
    # Tools. What the next request sends: all items again, unless the name says otherwise.
    "client_tool": _CLIENT_TOOL,
    "client_tool_streamed": _CLIENT_TOOL,
    "client_tool_by_previous_id": _CLIENT_TOOL,
    "client_tool_by_reference": _CLIENT_TOOL,
    "client_tool_by_conversation": _CLIENT_TOOL,
    "client_tool_by_session": _CLIENT_TOOL,
    "two_tools": _TWO_TOOLS,
    "two_tools_streamed": _TWO_TOOLS,
    "mixed_tools": _MIXED_TOOLS,
    "mixed_tools_streamed": _MIXED_TOOLS,
    "custom_tool": _CUSTOM_TOOL,
    "custom_tool_streamed": _CUSTOM_TOOL,
    # Shown, with arguments and output, and executed by nobody.
    "server_tool": _SERVER_TOOL,
    "server_tool_streamed": _SERVER_TOOL,
    "server_tool_failed": {"error": "no connection", "text": "I could not look."},
    # Several turns: what an agent hears of the one before.
    "turns_by_items": _TURNS,
    "turns_by_items_unstored": _TURNS,
    "turns_by_previous_id": _TURNS,
    "turns_by_reference": _TURNS,
    "turns_by_conversation": _TURNS,
    "turns_by_session": _TURNS,
    "turns_compacted": _TURNS,
    "conversation_items": {
        "metadata": [{"team": "red"}, {"team": "blue"}, {"team": "blue"}],
        "added": ["two", "three", "four"],
        "one": "two",
        "same": True,
        "oldest_first": ["one", "two", "four"],
        "newest_first": ["four", "two", "one"],
        "deleted": True,
        "missing": "conversation_not_found",
    },
    # 45 items are added, and two taken away.
    "session_items": {
        "all": True,
        "last": ["43", "44"],
        "popped": ["44", "43"],
        "left": ["42"],
        "another": ["42"],
        "cleared": "conversation_not_found",
        "empty": [],
    },
    # In the background
    "background": {"first": "queued", "finish": "completed", "text": "first second", "runs": 1},
    "background_streamed": {
        "begins": ["response.created", "response.queued", "response.in_progress"],
        "pieces": ["first ", "second"],
        "ends": "response.completed",
        "runs": 1,
    },
    # The client leaves the stream at the first word and comes back after the last event it read.
    "background_resumed": {
        "before": ["first "],
        "after": ["second"],
        "gapless": True,
        "finish": "completed",
        "runs": 1,
    },
    "background_resumed_by_helper": {
        "before": ["first "],
        "after": ["second"],
        "text": "first second",
        "reasoning": "Let me see.",
    },
    "background_cancelled": {
        "finish": ["cancelled", "cancelled", "cancelled"],
        "text": "first ",
        "cancelled": 1,
        "runs": 1,
    },
    "background_failed": {"finish": "failed", "code": "server_error", "leaks": False, "runs": 1},
    # What is stored
    "retrieved": {"same": True},
    # A stream that has ended, as a whole and from each of its events on.
    "replayed": {"whole": True, "rests": True},
    "input_items": {"newest_first": ["three", "two", "one"], "oldest_first": ["one", "two", "three"]},
    "deleted": {"missing": ["response_not_found", "response_not_found"]},
    "counted": {"object": "response.input_tokens", "grows": True},
    # With an idempotency key: the same request twice, then another.
    "repeated": {"same": True, "texts": ["run 1", "run 1"], "other": 400},
    # Failures
    "fail_before": _FAILED,
    "fail_before_streamed": _FAILED,
    "fail_status": {**_FAILED, "error": "RateLimitError", "status": 429, "code": "insufficient_quota"},
    "fail_mid": _FAILED,
    "fail_unstored": _FAILED,
    "fail_mid_streamed": {**_BROKEN, "pieces": ["one ", "two ", "three "]},
    "fail_late_streamed": _BROKEN,
    # The answer has begun with a comment when the agent fails, so there is no status left to tell it by.
    "fail_quiet_streamed": {**_BROKEN, "pieces": []},
    "fail_unstored_streamed": _BROKEN,
    "give_up_streamed": {**_BROKEN, "code": "upstream_down", "message": "The upstream is down."},
    # With the client's own retries on: agent code ran, so it must not run again.
    "retries": {"runs": 1},
    "unknown_model": {"status": 400, "code": "model_not_found", "param": "model", "runs": 0},
    "bad_parameter": {"status": 400, "code": "decimal_above_max_value", "param": "temperature"},
    "unknown_previous": {
        "status": 400,
        "code": "previous_response_not_found",
        "param": "previous_response_id",
    },
    "unknown_reference": {"status": 400, "code": "item_not_found", "param": "input"},
    "unknown_conversation": {"status": 404, "code": "conversation_not_found", "param": "conversation"},
    "two_contexts": {"status": 400, "code": "mutually_exclusive_parameters", "param": "previous_response_id"},
    # Leaving
    "abandon": _LEFT,
    "abandon_unstored": _LEFT,
    "too_late": {"error": "APITimeoutError", "cancelled": 1, "runs": 1},
    "headers": {"x_request_id": True, "version": "2020-10-01", "milliseconds": True, "text": "You said: hello"},
}


# --- facts that several clients share

_ONE_STREAM = "its one streaming interface is what the other scenarios drive"
_ASYNC = "is async throughout"
_NO_SESSIONS = "has no sessions of its own"
_NO_HEADERS = "does not hand out the response's headers"
_NO_OTHER_CALLS = "has no call for it"
_NO_BACKGROUND = "does not wait for what runs in the background"
_NO_ECHO = "does not show what a response repeats"
_IN_FULL = "sends items in full"
_NO_ROLES = "does not show the role"
_ONE_CONTEXT = "does not send two contexts"

_SESSIONS: Mapping[str, str] = {
    "client_tool_by_session": _NO_SESSIONS,
    "turns_by_session": _NO_SESSIONS,
    "session_items": _NO_SESSIONS,
}
_BACKGROUND_ENDS = ("background_cancelled", "background_failed")
_OTHER_CALLS = (
    "conversation_items",
    "background_resumed",
    "background_resumed_by_helper",
    *_BACKGROUND_ENDS,
    "retrieved",
    "replayed",
    "input_items",
    "deleted",
    "counted",
)
_FRAMEWORK_LACKS: Mapping[str, str] = {"stream_helper": _ONE_STREAM, **dict.fromkeys(_OTHER_CALLS, _NO_OTHER_CALLS)}
_REFERENCES = ("client_tool_by_reference", "turns_by_reference", "unknown_reference")
_BROKEN_STREAMS = ("fail_mid_streamed", "fail_late_streamed", "fail_unstored_streamed", "give_up_streamed")
_PIECES_ALONE: tuple[str, Mapping[str, Any]] = (
    "does not show the events themselves",
    {"begins": HIDDEN, "ends": HIDDEN},
)
_LITTLE: tuple[str, Mapping[str, Any]] = (
    "shows of what a response repeats the model and the metadata",
    {"instructions": HIDDEN, "temperature": HIDDEN, "max_output_tokens": HIDDEN},
)


# --- the clients


def _openai_python(environment: str) -> Client:
    return Client(environment, "responses_openai_py.py", server="responses", lacks=_SESSIONS)


_AI_SDK = Client(
    "node",
    "responses_ai_sdk.mjs",
    server="responses",
    words={
        "completed": "stop",
        "incomplete": "length",
        "InternalServerError": "AI_APICallError",
        "RateLimitError": "AI_APICallError",
        "APITimeoutError": "TimeoutError",
    },
    hides={"role": _NO_ROLES},
    lacks={
        **_FRAMEWORK_LACKS,
        **_SESSIONS,
        "background": "cannot ask for it",
        "background_streamed": "cannot ask for it",
        "streamed_async": _ASYNC,
        "echoed": _NO_ECHO,
        "client_tool_by_reference": "sends calls of its own tools in full",
        "turns_by_items": "names stored items by their ids (turns_by_reference)",
        "turns_compacted": _NO_OTHER_CALLS,
    },
    differs={
        **dict.fromkeys(
            ("refusal", "refusal_streamed"),
            ("shows a refusal as text", {"refusal": HIDDEN, "text": "I cannot help with that."}),
        ),
        **dict.fromkeys(
            ("sources", "sources_streamed"),
            (
                "shows a source as URL and title",
                {"sources": [["https://example.org/paris", "Paris"], ["https://example.org/france", "France"]]},
            ),
        ),
        "extras": ("does not send fields it does not know", {"extra": {}}),
        **dict.fromkeys(
            (
                "client_tool",
                "client_tool_streamed",
                "client_tool_by_previous_id",
                "client_tool_by_conversation",
                "two_tools",
                "two_tools_streamed",
                "mixed_tools",
                "mixed_tools_streamed",
            ),
            ("says of a turn that it called tools", {"finish": ["tool-calls", "stop"]}),
        ),
        **dict.fromkeys(
            ("server_tool", "server_tool_streamed"),
            (
                "shows the agent's own tools with a prefix, as executed by the provider",
                {"ran": [["mcp.search", {"query": "weather"}, "3 hits"]]},
            ),
        ),
        "turns_by_items_unstored": (
            "sends no reasoning without encrypted content, and nothing of the agent's own tools",
            {"heard": [line for line in _HEARD if line not in (_THOUGHT, _LOOKED, "tool: 3 hits")]},
        ),
        **dict.fromkeys(
            _BROKEN_STREAMS,
            ("reports an error in a stream as a part of kind error, which holds a plain object", {"error": None}),
        ),
        "fail_quiet_streamed": (
            "takes an error at the head of a stream for a failed request, and would repeat it",
            {"error": "AI_APICallError"},
        ),
        "retries": ("does not know x-should-retry and repeats every 5xx, as often as maxRetries says", {"runs": 2}),
    },
)

CLIENTS: Final[Mapping[str, Client]] = {
    "openai3": _openai_python("openai3"),
    "openai2": _openai_python("openai2"),
    "openai_js": Client(
        "node",
        "responses_openai.mjs",
        server="responses",
        words={"APITimeoutError": "APIConnectionTimeoutError"},
        lacks={**_SESSIONS, "streamed_async": _ASYNC},
    ),
    "openai_agents": Client(
        "openai_agents",
        "responses_openai_agents_py.py",
        server="responses",
        hides={"role": _NO_ROLES},
        lacks={
            **_FRAMEWORK_LACKS,
            "streamed_async": _ASYNC,
            "echoed": _NO_ECHO,
            "client_tool_by_reference": _IN_FULL,
            "turns_by_reference": _IN_FULL,
            "background": _NO_BACKGROUND,
            "two_contexts": _ONE_CONTEXT,
            "headers": _NO_HEADERS,
        },
        differs={
            **dict.fromkeys(
                ("plain", "client_tool", "two_tools", "mixed_tools", "server_tool", "server_tool_streamed"),
                ("does not show why an answer ended, but for the events of a stream", {"finish": HIDDEN}),
            ),
            **dict.fromkeys(
                ("length", "length_streamed"),
                ("raises ModelBehaviorError, which says why, for an answer that was cut off", {"text": HIDDEN}),
            ),
            **dict.fromkeys(
                ("fail_mid_streamed", "give_up_streamed"),
                ("raises an error ahead of pieces that it has read already and not shown yet", {"pieces": HIDDEN}),
            ),
        },
    ),
    "ai_sdk": _AI_SDK,
    "pydantic_ai": Client(
        "pydantic_ai",
        "responses_pydantic_ai_py.py",
        server="responses",
        words={
            "completed": "stop",
            "incomplete": "length",
            "InternalServerError": "ModelServerError",
            "APIError": "ModelServerError",
            "RateLimitError": "ModelQuotaExceededError",
        },
        hides={"role": _NO_ROLES, "request_id": "its errors hold the body of an answer, not the headers"},
        lacks={
            **{row: reason for row, reason in _FRAMEWORK_LACKS.items() if row not in _BACKGROUND_ENDS},
            **_SESSIONS,
            **dict.fromkeys(_REFERENCES, _IN_FULL),
            "streamed_async": _ASYNC,
            "echoed": _NO_ECHO,
            "background_resumed": "resumes what broke, by itself, and not what was left",
            "background_resumed_by_helper": "resumes what broke, by itself, and not what was left",
            "custom_tool": "does not know custom tools",
            "custom_tool_streamed": "does not know custom tools",
            "turns_compacted": "compacts what an OpenAI model said, by itself",
            "two_contexts": _ONE_CONTEXT,
            "headers": _NO_HEADERS,
        },
        differs={
            "turns_by_items_unstored": (
                "sends reasoning as text between tags, and nothing of the agent's own tools",
                {
                    "heard": [
                        "user: one",
                        "assistant: <think>",
                        "Let me see.",
                        "</think>",
                        "assistant: Let me look. ",
                        "assistant: I found 3 hits.",
                        "user: two",
                    ]
                },
            ),
            "background": ("shows the end alone", {"first": HIDDEN}),
            "background_streamed": _PIECES_ALONE,
            "background_cancelled": ("cancels what it reads, and has its own word for it", {"finish": HIDDEN}),
            "background_failed": ("raises an error that names the code", {"finish": HIDDEN}),
        },
    ),
    "langchain": Client(
        "langchain",
        "responses_langchain_py.py",
        server="responses",
        hides={"role": _NO_ROLES},
        lacks={
            **_FRAMEWORK_LACKS,
            **_SESSIONS,
            "background": _NO_BACKGROUND,
            **dict.fromkeys(_REFERENCES, _IN_FULL),
            "turns_compacted": _NO_OTHER_CALLS,
        },
        differs={
            "echoed": _LITTLE,
            "background_streamed": _PIECES_ALONE,
            "turns_by_items_unstored": (
                "sends no reasoning without encrypted content",
                {"heard": [line for line in _HEARD if line != _THOUGHT]},
            ),
        },
    ),
    "langchain_js": Client(
        "node",
        "responses_langchain.mjs",
        server="responses",
        words={"APITimeoutError": "TimeoutError"},
        hides={"role": _NO_ROLES},
        lacks={
            **_FRAMEWORK_LACKS,
            **_SESSIONS,
            "background": _NO_BACKGROUND,
            **dict.fromkeys(_REFERENCES, _IN_FULL),
            "streamed_async": _ASYNC,
            "turns_compacted": _NO_OTHER_CALLS,
            "headers": _NO_HEADERS,
        },
        differs={
            "echoed": _LITTLE,
            "background_streamed": _PIECES_ALONE,
            "server_tool_streamed": (
                "joins the messages of a streamed response",
                {"texts": ["Let me look. I found 3 hits."]},
            ),
            "turns_by_items_unstored": (
                "sends no reasoning without encrypted content, and all text before the calls",
                {
                    "heard": [
                        "user: one",
                        "assistant: Let me look. I found 3 hits.",
                        _LOOKED,
                        "tool: 3 hits",
                        "user: two",
                    ]
                },
            ),
            "retries": (
                "retries around the official client, does not know x-should-retry and repeats every 5xx",
                {"runs": 2},
            ),
        },
    ),
}

RESPONSES: Final = Table(SCENARIOS, CLIENTS)

REPLICAS: Final = Table(
    SCENARIOS,
    {name: replace(client, server="replicas") for name, client in CLIENTS.items() if name != "openai2"},
)
"""The same where requests go in turns to two replicas behind nginx, which share PostgreSQL and Redis."""
