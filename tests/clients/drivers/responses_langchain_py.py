"""LangChain for Python: the chat model of `langchain-openai` on the Responses API."""

import json
import uuid
from typing import Any

from driving import API_KEY, BASE_URL, WEATHER_TOOL, Weather, cancelled, leaks, main, new_key, release, runs, scenario
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_openai import custom_tool as as_custom_tool
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

stored = OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=20)
"""Looks at what is left of LangChain's requests, and makes conversations for them."""


class CityWeather(BaseModel):
    """Weather of a city."""

    city: str
    degrees: int


def chat(model: str, **options: Any) -> ChatOpenAI:
    settings: Any = {"api_key": API_KEY, "timeout": 20, "use_responses_api": True, **options}
    return ChatOpenAI(model=model, base_url=BASE_URL, **settings)


def blocks(message: Any, kind: str) -> list[Any]:
    return [block for block in message.content if isinstance(block, dict) and block["type"] == kind]


def texts(message: Any) -> list[str]:
    return [block["text"] for block in blocks(message, "text")]


def collect(stream: Any) -> tuple[list[str], Any]:
    pieces: list[str] = []
    whole: AIMessageChunk | None = None
    for chunk in stream:
        if chunk.text:
            pieces.append(str(chunk.text))
        whole = chunk if whole is None else whole + chunk
    return pieces, whole


def finish(message: Any) -> str:
    reason: str = message.response_metadata["status"]
    return reason


def summaries(message: Any) -> str:
    return "".join(part["text"] for block in blocks(message, "reasoning") for part in block["summary"])


def tokens(message: Any) -> dict[str, int]:
    usage = message.usage_metadata
    return {
        "input": usage["input_tokens"],
        "output": usage["output_tokens"],
        "total": usage["total_tokens"],
        "cached": usage["input_token_details"]["cache_read"],
        "reasoning": usage["output_token_details"]["reasoning"],
    }


def failure(error: Any, key: str) -> dict[str, Any]:
    return {
        # LangChain derives classes of its own from the client's, so the client's is the second.
        "error": next(c.__name__ for c in type(error).__mro__ if c.__module__.startswith("openai")),
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "request_id": bool(getattr(error, "request_id", None)),
        "leaks": leaks(error),
        "runs": runs(key),
    }


def expect_failure(model: str, **options: Any) -> dict[str, Any]:
    key = new_key()
    try:
        return {"answer": chat(model, **options).invoke(key).content}
    except Exception as error:
        return failure(error, key)


def refused(**options: Any) -> dict[str, Any]:
    """Make a request that the server must refuse."""
    try:
        chat("echo", **options).invoke("hello")
    except Exception as error:
        read: Any = error
        return {"status": read.status_code, "code": read.code, "param": read.param}
    return {}


# --- answers


@scenario
def plain() -> dict[str, Any]:
    message = chat("echo").invoke("hello")
    return {"text": message.text, "finish": finish(message)}


@scenario
def whole() -> dict[str, Any]:
    return {"text": chat("stream").invoke("hello").text}


@scenario
def streamed() -> dict[str, Any]:
    pieces, message = collect(chat("stream").stream("hello"))
    return {"pieces": pieces, "finish": [finish(message)]}


@scenario
async def streamed_async() -> dict[str, Any]:
    return {"text": "".join([str(chunk.text) async for chunk in chat("stream").astream("hello")])}


def pieces_of(made: ChatOpenAI) -> dict[str, Any]:
    key = new_key()
    pieces: list[Any] = []
    for chunk in made.stream(key):
        if chunk.text:
            pieces.append(chunk.text)
            release(key)
    return {"pieces": pieces, "runs": runs(key)}


@scenario
def live() -> dict[str, Any]:
    return pieces_of(chat("slow"))


@scenario
def quiet() -> dict[str, Any]:
    return {"text": "".join(collect(chat("quiet").stream("hello"))[0])}


@scenario
def unstored() -> dict[str, Any]:
    made = chat("stream", store=False)
    message = made.invoke("hello")
    pieces, streamed = collect(made.stream("hello"))
    kept = []
    for identity in (message.id, streamed.id):
        try:
            stored.responses.retrieve(identity)
            kept.append(True)
        except NotFoundError:
            kept.append(False)
    return {"text": message.text, "pieces": pieces, "kept": kept}


@scenario
def reasoning() -> dict[str, Any]:
    message = chat("reason").invoke("hello")
    return {"reasoning": summaries(message), "text": message.text}


@scenario
def reasoning_streamed() -> dict[str, Any]:
    pieces, message = collect(chat("reason").stream("hello"))
    return {"reasoning": summaries(message), "text": "".join(pieces)}


def refusals(message: Any) -> str:
    return "".join(block["refusal"] for block in blocks(message, "refusal"))


@scenario
def refusal() -> dict[str, Any]:
    message = chat("refuse").invoke("hello")
    return {"refusal": refusals(message), "text": message.text}


@scenario
def refusal_streamed() -> dict[str, Any]:
    pieces, message = collect(chat("refuse").stream("hello"))
    return {"refusal": refusals(message), "text": "".join(pieces)}


def citations(message: Any) -> list[Any]:
    found = [a for block in blocks(message, "text") for a in block.get("annotations", ())]
    return [[a.get(key) for key in ("url", "title", "start_index", "end_index")] for a in found]


@scenario
def sources() -> dict[str, Any]:
    message = chat("cite").invoke("hello")
    return {"text": message.text, "sources": citations(message)}


@scenario
def sources_streamed() -> dict[str, Any]:
    pieces, message = collect(chat("cite").stream("hello"))
    return {"text": "".join(pieces), "sources": citations(message)}


@scenario
def usage() -> dict[str, Any]:
    return tokens(chat("usage").invoke("hello"))


@scenario
def usage_streamed() -> dict[str, Any]:
    return tokens(collect(chat("usage").stream("hello"))[1])


def cut_off(message: Any) -> dict[str, Any]:
    reason = message.response_metadata["incomplete_details"]["reason"]
    return {"text": message.text, "finish": finish(message), "reason": reason}


@scenario
def length() -> dict[str, Any]:
    return cut_off(chat("length").invoke("hello"))


@scenario
def length_streamed() -> dict[str, Any]:
    return cut_off(collect(chat("length").stream("hello"))[1])


@scenario
def structured() -> dict[str, Any]:
    answer: Any = chat("json").with_structured_output(CityWeather).invoke("Weather?")
    return CityWeather.model_dump(answer)


@scenario
def structured_streamed() -> dict[str, Any]:
    *_, last = chat("json").with_structured_output(CityWeather).stream("Weather?")
    answer: Any = last
    return CityWeather.model_dump(answer)


@scenario
def parameters() -> dict[str, Any]:
    messages = [
        SystemMessage("Be brief."),
        HumanMessage(
            [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}},
            ]
        ),
    ]
    arrived = json.loads(str(chat("params", temperature=0.5, max_tokens=50).invoke(messages).text))
    return {
        "params": {name: arrived["params"][name] for name in ("temperature", "max_output_tokens")},
        "messages": [message["role"] for message in arrived["messages"]],
        "parts": [part["type"] for part in arrived["messages"][-1]["content"]],
    }


@scenario
def extras() -> dict[str, Any]:
    # Its own argument `metadata` is for LangChain's tracing.
    extra: Any = {"metadata": {"team": "red"}, "top_k": 3}
    answer = chat("params", model_kwargs={"user": "ada"}, extra_body=extra).invoke("hello")
    arrived = json.loads(str(answer.text))
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
def echoed() -> dict[str, Any]:
    read = chat("echo", extra_body={"metadata": {"team": "red"}}).invoke("hello").response_metadata
    return {name: read[name] for name in ("model", "metadata")}


@scenario
def headers() -> dict[str, Any]:
    message = chat("echo", include_response_headers=True).invoke("hello")
    read = message.response_metadata["headers"]
    return {
        "x_request_id": bool(read["x-request-id"]),
        "version": read["openai-version"],
        "milliseconds": read["openai-processing-ms"].isdigit(),
        "text": message.text,
    }


# --- tools


def converse(model: str, turn: Any, following: Any, **options: Any) -> dict[str, Any]:
    weather = Weather()
    bound = chat(model, **options).bind_tools([WEATHER_TOOL])
    messages: list[Any] = [HumanMessage(new_key())]
    seen: dict[str, Any] = {"executed": weather.executed, "texts": [], "finish": []}
    for _ in range(3):
        message = turn(bound, messages)
        seen["finish"].append(finish(message))
        seen["texts"] += texts(message)
        assert not message.invalid_tool_calls
        if not message.tool_calls:
            break
        assert {call["name"] for call in message.tool_calls} == {"get_weather"}
        answers = [ToolMessage(weather(**call["args"]), tool_call_id=call["id"]) for call in message.tool_calls]
        messages = following(messages, message, answers)
    return seen


def everything(messages: Any, message: Any, new: Any) -> list[Any]:
    return [*messages, message, *new]


def only_new(messages: Any, message: Any, new: Any) -> list[Any]:
    return list(new)


def whole_turn(bound: Any, messages: Any) -> Any:
    return bound.invoke(messages)


def streamed_turn(bound: Any, messages: Any) -> Any:
    return collect(bound.stream(messages))[1]


@scenario
def client_tool() -> dict[str, Any]:
    return converse("client-tool", whole_turn, everything)


@scenario
def client_tool_streamed() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, everything)


@scenario
def client_tool_by_previous_id() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, everything, use_previous_response_id=True)


def conversation() -> Any:
    return {"conversation": stored.conversations.create().id}


@scenario
def client_tool_by_conversation() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, only_new, model_kwargs=conversation())


@scenario
def two_tools() -> dict[str, Any]:
    return converse("two-tools", whole_turn, everything, use_previous_response_id=True)


@scenario
def two_tools_streamed() -> dict[str, Any]:
    return converse("two-tools", streamed_turn, everything)


@scenario
def mixed_tools() -> dict[str, Any]:
    return converse("mixed", whole_turn, everything)


@scenario
def mixed_tools_streamed() -> dict[str, Any]:
    return converse("mixed", streamed_turn, everything, use_previous_response_id=True)


def use_custom_tool(turn: Any) -> dict[str, Any]:
    inputs: list[str] = []

    @as_custom_tool
    def run_code(code: str) -> str:
        """Runs Python."""
        inputs.append(code)
        return "42"

    bound = chat("custom-tool").bind_tools([run_code])
    first = turn(bound, [HumanMessage("hello")])
    (call,) = first.tool_calls
    last = turn(bound, [HumanMessage("hello"), first, run_code.invoke(call)])
    return {"name": call["name"], "input": inputs[0], "text": last.text}


@scenario
def custom_tool() -> dict[str, Any]:
    return use_custom_tool(whole_turn)


@scenario
def custom_tool_streamed() -> dict[str, Any]:
    return use_custom_tool(streamed_turn)


def see_server_tool(message: Any) -> dict[str, Any]:
    ran = [[block["name"], json.loads(block["arguments"]), block["output"]] for block in blocks(message, "mcp_call")]
    return {"executed": message.tool_calls, "ran": ran, "texts": texts(message), "finish": finish(message)}


@scenario
def server_tool() -> dict[str, Any]:
    return see_server_tool(whole_turn(chat("server-tool").bind_tools([WEATHER_TOOL]), "hello"))


@scenario
def server_tool_streamed() -> dict[str, Any]:
    return see_server_tool(streamed_turn(chat("server-tool").bind_tools([WEATHER_TOOL]), "hello"))


@scenario
def server_tool_failed() -> dict[str, Any]:
    message = streamed_turn(chat("broken-tool"), "hello")
    (call,) = blocks(message, "mcp_call")
    return {"error": call["error"]["content"][0]["text"], "text": message.text}


# --- several turns


def two_turns(following: Any = everything, **options: Any) -> dict[str, Any]:
    """Ask an agent that thinks, looks and answers, then one that tells all it heard."""
    messages: list[Any] = [HumanMessage("one")]
    first = streamed_turn(chat("thorough", **options), messages)
    last = chat("recall", **options).invoke(following(messages, first, [HumanMessage("two")]))
    return {"heard": str(last.text).split("\n")}


@scenario
def turns_by_items() -> dict[str, Any]:
    return two_turns()


@scenario
def turns_by_items_unstored() -> dict[str, Any]:
    return two_turns(store=False)


@scenario
def turns_by_previous_id() -> dict[str, Any]:
    return two_turns(use_previous_response_id=True)


@scenario
def turns_by_conversation() -> dict[str, Any]:
    return two_turns(only_new, model_kwargs=conversation())


@scenario
def background_streamed() -> dict[str, Any]:
    return pieces_of(chat("slow", model_kwargs={"background": True}))


@scenario
def repeated() -> dict[str, Any]:
    """Send a request twice, with a key that says that it is the same."""
    key = new_key()
    made = chat("counted", default_headers={"Idempotency-Key": uuid.uuid4().hex})
    first, second = [made.invoke(key) for _ in range(2)]
    try:
        made.invoke(f"{key} but another")
    except BadRequestError as error:
        other = error.status_code
    return {"same": first.id == second.id, "texts": [first.text, second.text], "other": other}


# --- failures


@scenario
def fail_before() -> dict[str, Any]:
    return expect_failure("fail-before")


@scenario
def fail_before_streamed() -> dict[str, Any]:
    key = new_key()
    try:
        collect(chat("fail-before").stream(key))
    except Exception as error:
        return failure(error, key)
    return {}


@scenario
def fail_status() -> dict[str, Any]:
    return expect_failure("fail-status")


@scenario
def fail_mid() -> dict[str, Any]:
    return expect_failure("fail-mid")


@scenario
def fail_unstored() -> dict[str, Any]:
    return expect_failure("fail-mid", store=False)


@scenario
def retries() -> dict[str, Any]:
    return {"runs": expect_failure("fail-before", max_retries=2)["runs"]}


def broken_stream(model: str, **options: Any) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[Any] = []
    try:
        for chunk in chat(model, **options).stream(key):
            if chunk.text:
                pieces.append(chunk.text)
                release(key)
    except Exception as error:
        read = failure(error, key)
        told = {name: read[name] for name in ("error", "code", "leaks", "runs")}
        return {"pieces": pieces, **told}, error
    return {"pieces": pieces}, None


@scenario
def fail_mid_streamed() -> dict[str, Any]:
    return broken_stream("fail-mid")[0]


@scenario
def fail_late_streamed() -> dict[str, Any]:
    return broken_stream("fail-late")[0]


@scenario
def fail_quiet_streamed() -> dict[str, Any]:
    return broken_stream("fail-quiet")[0]


@scenario
def fail_unstored_streamed() -> dict[str, Any]:
    return broken_stream("fail-late", store=False)[0]


@scenario
def give_up_streamed() -> dict[str, Any]:
    seen, error = broken_stream("give-up")
    return {**seen, "message": error.message}


@scenario
def unknown_model() -> dict[str, Any]:
    key = new_key()
    try:
        chat("nobody").invoke(key)
    except Exception as error:
        read: Any = error
        return {"status": read.status_code, "code": read.code, "param": read.param, "runs": runs(key)}
    return {}


@scenario
def bad_parameter() -> dict[str, Any]:
    return refused(temperature=9)


@scenario
def unknown_previous() -> dict[str, Any]:
    return refused(model_kwargs={"previous_response_id": "resp_unknown"})


@scenario
def unknown_conversation() -> dict[str, Any]:
    return refused(model_kwargs={"conversation": "conv_unknown"})


@scenario
def two_contexts() -> dict[str, Any]:
    return refused(model_kwargs={"conversation": "conv_unknown", "previous_response_id": "resp_unknown"})


# --- leaving


def leave(**options: Any) -> dict[str, Any]:
    key = new_key()
    stream: Any = chat("stall", **options).stream(key)
    pieces = []
    for chunk in stream:
        if chunk.text:
            pieces.append(chunk.text)
            break
    stream.close()
    return {"pieces": pieces, "cancelled": cancelled(key), "runs": runs(key)}


@scenario
def abandon() -> dict[str, Any]:
    return leave()


@scenario
def abandon_unstored() -> dict[str, Any]:
    return leave(store=False)


@scenario
def too_late() -> dict[str, Any]:
    key = new_key()
    try:
        chat("stuck", timeout=1.0, max_retries=0).invoke(key)
    except Exception as error:
        return {"error": failure(error, key)["error"], "cancelled": cancelled(key), "runs": runs(key)}
    return {}


main()
