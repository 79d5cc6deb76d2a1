"""Chat Completions: every scenario, every client, and what each client must see.

`SCENARIOS` says what a client sees that loses nothing, in the words of the official Python client. A `Client` says
which of it that client cannot show, and why; these are facts about the clients, not about the server.
"""

from collections.abc import Mapping
from typing import Any, Final

from tests.clients.cells import HIDDEN, Client, Table

PIECES: Final = [
    "Hel",
    "lo, wörld",
    " — 日本語 ",
    "🎉",
    "\n\ndata: [DONE]\r\n\n",
    '\u2028{"quoted": \\} ',
    "end.",
]
ANSWER: Final = "".join(PIECES)

MODELS: Final = [
    "cite",
    "client-tool",
    "echo",
    "fail-before",
    "fail-late",
    "fail-mid",
    "fail-quiet",
    "fail-status",
    "give-up",
    "json",
    "ledger",
    "length",
    "mixed",
    "params",
    "quiet",
    "reason",
    "refuse",
    "server-tool",
    "slow",
    "stall",
    "stream",
    "stuck",
    "two-tools",
    "usage",
]

_HELLO = {"text": "You said: hello", "role": "assistant", "finish": "stop"}
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
_WEATHER = {"city": "Paris", "degrees": 21}
_CHOICES = {"texts": ["You said: hello", "You said: hello"]}

_CLIENT_TOOL = {
    "executed": [{"city": "Paris"}],
    "texts": ["It is 21 °C in Paris."],
    "finish": ["tool_calls", "stop"],
}
_TWO_TOOLS = {
    "executed": [{"city": "Paris"}, {"city": "Rome"}],
    "texts": ["Paris: 21 °C, Rome: 24 °C"],
    "finish": ["tool_calls", "stop"],
}
_SERVER_TOOL = {"executed": [], "texts": ["Let me look. I found 3 hits."], "finish": ["stop"]}
_MIXED_TOOLS = {
    "executed": [{"city": "Paris"}],
    "texts": ["Let me ask. ", "It is 21 °C in Paris."],
    "finish": ["tool_calls", "stop"],
}
_TOOL_RUNNER = {"executed": _TWO_TOOLS["executed"], "texts": _TWO_TOOLS["texts"]}

_FAILED = {
    "error": "InternalServerError",
    "status": 500,
    "code": "agent_error",
    "request_id": True,
    "leaks": False,
    "runs": 1,
}

SCENARIOS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Answers
    "plain": _HELLO,
    "whole": {"text": ANSWER},
    "streamed": {"pieces": PIECES, "roles": ["assistant"], "finish": ["stop"]},
    "streamed_async": {"text": ANSWER},
    "stream_helper": {
        "text": ANSWER,
        "role": "assistant",
        "finish": "stop",
        "deltas": PIECES,
        "done": [ANSWER],
    },
    # The client holds the first piece before the agent makes the second.
    "live": {"pieces": ["first ", "second"], "runs": 1},
    # The stream is kept alive by comments before its first event and within.
    "quiet": {"text": "first second"},
    "reasoning": _REASONING,
    "reasoning_streamed": _REASONING,
    "refusal": _REFUSAL,
    "refusal_streamed": _REFUSAL,
    "sources": _SOURCES,
    "sources_streamed": _SOURCES,
    "usage": _USAGE,
    "usage_streamed": _USAGE,
    "length": {"text": "Cut of", "finish": "length"},
    "structured": _WEATHER,
    "structured_streamed": _WEATHER,
    "choices": _CHOICES,
    "choices_streamed": _CHOICES,
    # The stop sequence spans two pieces.
    "stop": {"text": "He", "finish": "stop"},
    "stop_streamed": {"text": "He", "finish": ["stop"]},
    "parameters": {
        "params": {"temperature": 0.5, "max_tokens": 50, "seed": 7},
        "messages": ["system", "user"],
    },
    "extras": {"extra": {"top_k": 3}, "user": "ada", "metadata": {"team": "red"}},
    # Tools
    "client_tool": _CLIENT_TOOL,
    "client_tool_streamed": _CLIENT_TOOL,
    "two_tools": _TWO_TOOLS,
    "two_tools_streamed": _TWO_TOOLS,
    "two_tools_by_hand": {
        "calls": [
            {"id": "call_paris", "name": "get_weather", "arguments": '{"city": "Paris"}'},
            {"id": "call_rome", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        ]
    },
    "tool_runner": _TOOL_RUNNER,
    "tool_runner_streamed": _TOOL_RUNNER,
    "server_tool": _SERVER_TOOL,
    "server_tool_streamed": _SERVER_TOOL,
    "mixed_tools": _MIXED_TOOLS,
    "mixed_tools_streamed": _MIXED_TOOLS,
    "legacy_functions": {"name": "get_weather", "arguments": {"city": "Paris"}, "finish": "function_call"},
    # Failures
    "fail_before": _FAILED,
    "fail_before_streamed": _FAILED,
    "fail_status": {**_FAILED, "error": "RateLimitError", "status": 429, "code": "insufficient_quota"},
    "fail_mid": _FAILED,
    "fail_mid_streamed": {
        "pieces": ["one ", "two ", "three "],
        "finish": [],
        "error": "APIError",
        "code": "agent_error",
        "leaks": False,
        "runs": 1,
    },
    "fail_late_streamed": {
        "pieces": ["one "],
        "finish": [],
        "error": "APIError",
        "code": "agent_error",
        "leaks": False,
        "runs": 1,
    },
    # The answer has begun with a comment when the agent fails, so there is no status left to tell it by.
    "fail_quiet_streamed": {
        "pieces": [],
        "finish": [],
        "error": "APIError",
        "code": "agent_error",
        "leaks": False,
        "runs": 1,
    },
    "give_up_streamed": {
        "pieces": ["one "],
        "finish": [],
        "error": "APIError",
        "code": "upstream_down",
        "message": "The upstream is down.",
        "runs": 1,
    },
    # With the client's own retries on: agent code ran, so it must not run again.
    "retries": {"runs": 1},
    "unknown_model": {**_FAILED, "error": "NotFoundError", "status": 404, "code": "model_not_found", "runs": 0},
    "bad_parameter": {"status": 400, "param": "temperature", "type": "invalid_request_error"},
    # Leaving
    "abandon": {"pieces": ["first "], "cancelled": 1, "runs": 1},
    "abandon_by_cancel": {"cancelled": 1},
    "too_late": {"error": "APITimeoutError", "cancelled": 1, "runs": 1},
    # The rest of the API
    "models": {"listed": MODELS},
    "one_model": {"id": "echo", "object": "model", "missing": "model_not_found"},
    "headers": {"x_request_id": True, "version": "2020-10-01", "milliseconds": True, "text": "You said: hello"},
}

# --- facts that several clients share

_BROKEN_STREAMS = ("fail_mid_streamed", "fail_late_streamed", "fail_quiet_streamed", "give_up_streamed")

_ONE_ANSWER = "shows one answer"
_CHAT_ONLY = "calls nothing but chat completions"
_MODERN_TOOLS = "does not send the deprecated functions"
_OWN_LOOP = "its one tool loop is what the other tool scenarios drive"
_NO_LOOP = "has no tool loop of its own"
_OWN_DELTAS = "puts the deltas of a call together itself"
_ONE_STREAM = "its one streaming interface is what the other scenarios drive"
_NO_HEADERS = "does not hand out the response's headers"
_NO_SOURCES = "drops annotations"
_NO_REASONING = "reads neither of the two reasoning keys"
_NO_ROLES = "does not show the role"
_ASYNC = "is async throughout"
_ONE_WAY_OUT = "leaving the loop does not end the request, only its abort signal does"
_RAISES_EARLY = "raises an error ahead of pieces that it has read already and not shown yet"
_NEWER_NAME = "sends max_tokens under its newer name"
_NEWER = {"temperature": 0.5, "max_completion_tokens": 50, "seed": 7}

_FRAMEWORK_LACKS = {
    "stream_helper": _ONE_STREAM,
    "models": _CHAT_ONLY,
    "one_model": _CHAT_ONLY,
}
_LOOPLESS = {**_FRAMEWORK_LACKS, "tool_runner": _NO_LOOP, "tool_runner_streamed": _NO_LOOP}
_AGENT_LACKS = {
    **_FRAMEWORK_LACKS,
    "streamed_async": _ASYNC,
    "choices": _ONE_ANSWER,
    "choices_streamed": _ONE_ANSWER,
    "two_tools_by_hand": _OWN_DELTAS,
    "tool_runner": _OWN_LOOP,
    "tool_runner_streamed": _OWN_LOOP,
    "legacy_functions": _MODERN_TOOLS,
}


# --- the clients


def _openai_python(environment: str, server: str = "uvicorn") -> Client:
    return Client(
        environment,
        "openai_py.py",
        server=server,
        lacks={"tool_runner": _NO_LOOP, "tool_runner_streamed": _NO_LOOP},
    )


def _openai_js(server: str = "uvicorn") -> Client:
    return Client(
        "node",
        "openai.mjs",
        server=server,
        words={"APITimeoutError": "APIConnectionTimeoutError"},
        lacks={"streamed_async": _ASYNC},
    )


def _ai_sdk(provider: str, differs: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Client:
    as_text = ("shows a refusal as text", {"refusal": HIDDEN, "text": "I cannot help with that."})
    return Client(
        "node",
        "ai_sdk.mjs",
        (provider,),
        words={
            "tool_calls": "tool-calls",
            "InternalServerError": "AI_APICallError",
            "RateLimitError": "AI_APICallError",
            "NotFoundError": "AI_APICallError",
            "APITimeoutError": "TimeoutError",
        },
        hides={"role": _NO_ROLES, "roles": _NO_ROLES},
        lacks={**_AGENT_LACKS, "abandon_by_cancel": _ONE_WAY_OUT},
        differs={
            "refusal": as_text,
            "refusal_streamed": as_text,
            **dict.fromkeys(
                _BROKEN_STREAMS,
                (
                    "reports an error in a stream as a part of kind error, with its own finish reason",
                    {"finish": ["error"], "error": HIDDEN, "code": HIDDEN},
                ),
            ),
            "retries": ("does not know x-should-retry and repeats every 5xx, as often as maxRetries says", {"runs": 2}),
            **differs,
        },
    )


_TITLES_ONLY = (
    "shows a source as URL and title",
    {"sources": [["https://example.org/paris", "Paris"], ["https://example.org/france", "France"]]},
)

CLIENTS: Final[Mapping[str, Client]] = {
    "openai3": _openai_python("openai3"),
    "openai2": _openai_python("openai2"),
    "openai1": _openai_python("openai1"),
    "openai_js": _openai_js(),
    # The same server started by its own command, with its own HTTP layer.
    "openai3_on_cli": _openai_python("openai3", server="cli"),
    "openai_js_on_cli": _openai_js(server="cli"),
    "ai_sdk_openai": _ai_sdk(
        "openai",
        {
            "reasoning": (_NO_REASONING, {"reasoning": None}),
            "reasoning_streamed": (_NO_REASONING, {"reasoning": None}),
            "sources": _TITLES_ONLY,
            "sources_streamed": _TITLES_ONLY,
            "extras": ("does not send fields it does not know", {"extra": {}}),
            "fail_quiet_streamed": (
                "takes an error at the head of a stream for a failed request, and would repeat it",
                {"error": HIDDEN, "code": HIDDEN},
            ),
        },
    ),
    "ai_sdk_compatible": _ai_sdk(
        "compatible",
        {
            "sources": (_NO_SOURCES, {"sources": []}),
            "sources_streamed": (_NO_SOURCES, {"sources": []}),
        },
    ),
    "langchain": Client(
        "langchain",
        "langchain_py.py",
        hides={"role": _NO_ROLES, "roles": _NO_ROLES},
        lacks=_LOOPLESS,
        differs={
            "reasoning": (_NO_REASONING, {"reasoning": None}),
            "reasoning_streamed": (_NO_REASONING, {"reasoning": None}),
            "refusal_streamed": ("drops refusals in streams", {"refusal": None}),
            "sources": (_NO_SOURCES, {"sources": []}),
            "sources_streamed": (_NO_SOURCES, {"sources": []}),
            "choices_streamed": (
                "joins all the choices of a stream into one text",
                {"texts": ["You said: helloYou said: hello"]},
            ),
            "parameters": (_NEWER_NAME, {"params": _NEWER}),
        },
    ),
    "langchain_js": Client(
        "node",
        "langchain.mjs",
        words={"APITimeoutError": "TimeoutError"},
        hides={"role": _NO_ROLES, "roles": _NO_ROLES},
        lacks={**_LOOPLESS, "streamed_async": _ASYNC, "choices_streamed": _ONE_ANSWER, "headers": _NO_HEADERS},
        differs={
            "refusal": ("drops refusals", {"refusal": None}),
            "refusal_streamed": ("drops refusals", {"refusal": None}),
            "sources": (_NO_SOURCES, {"sources": []}),
            "sources_streamed": (_NO_SOURCES, {"sources": []}),
            "retries": (
                "retries around the official client, does not know x-should-retry and repeats every 5xx",
                {"runs": 2},
            ),
        },
    ),
    "pydantic_ai": Client(
        "pydantic_ai",
        "pydantic_ai_py.py",
        words={
            "tool_calls": "tool_call",
            "InternalServerError": "ModelServerError",
            "APIError": "ModelServerError",
            "RateLimitError": "ModelQuotaExceededError",
            "NotFoundError": "ModelNotFoundError",
        },
        hides={
            "role": _NO_ROLES,
            "roles": _NO_ROLES,
            "request_id": "its errors hold the body of an answer, not the headers",
        },
        lacks={**_AGENT_LACKS, "headers": _NO_HEADERS},
        differs={
            "sources": (_NO_SOURCES, {"sources": []}),
            "sources_streamed": (_NO_SOURCES, {"sources": []}),
            "parameters": (_NEWER_NAME, {"params": _NEWER}),
            **dict.fromkeys(_BROKEN_STREAMS, ("shows no reason for the end of a broken stream", {"finish": HIDDEN})),
        },
    ),
    "openai_agents": Client(
        "openai_agents",
        "openai_agents_py.py",
        hides={"role": _NO_ROLES, "roles": _NO_ROLES, "finish": "does not show why an answer ended"},
        lacks={**_AGENT_LACKS, "headers": _NO_HEADERS},
        differs={
            "fail_mid_streamed": (_RAISES_EARLY, {"pieces": HIDDEN}),
            "give_up_streamed": (_RAISES_EARLY, {"pieces": HIDDEN}),
        },
    ),
    "litellm": Client(
        "litellm",
        "litellm_py.py",
        words={"APIError": "MidStreamFallbackError", "APITimeoutError": "Timeout"},
        hides={
            "roles": _NO_ROLES,
            "code": "its errors hold text, not the error object",
            "request_id": "its errors hold text, not the headers",
            "param": "its errors hold text, not the error object",
            "type": "its errors hold text, not the error object",
        },
        lacks=_LOOPLESS,
        differs={
            "refusal_streamed": ("drops refusals in streams", {"refusal": ""}),
            "extras": ("does not send the user to servers other than OpenAI's", {"user": None}),
        },
    ),
}

CHAT: Final = Table(SCENARIOS, CLIENTS)
