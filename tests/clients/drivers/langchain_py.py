"""LangChain for Python: the chat model of `langchain-openai`."""

import asyncio
import json
from typing import Any

from driving import (
    BASE_URL,
    WEATHER_TOOL,
    Weather,
    cancelled,
    leaks,
    main,
    new_key,
    release,
    runs,
    scenario,
)
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class CityWeather(BaseModel):
    """Weather of a city."""

    city: str
    degrees: int


def chat(model: str, **options: Any) -> ChatOpenAI:
    # `stream_usage` is off by default when the base URL is not OpenAI's.
    settings: Any = {"api_key": "test", "timeout": 20, "stream_usage": True, **options}
    return ChatOpenAI(model=model, base_url=BASE_URL, **settings)


def collect(stream: Any) -> tuple[list[str], Any]:
    pieces: list[str] = []
    whole: AIMessageChunk | None = None
    for chunk in stream:
        if chunk.content:
            pieces.append(chunk.content)
        whole = chunk if whole is None else whole + chunk
    return pieces, whole


def finish(message: Any) -> str:
    reason: str = message.response_metadata["finish_reason"]
    return reason


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


# --- answers


@scenario
def plain() -> dict[str, Any]:
    message = chat("echo").invoke("hello")
    return {"text": message.content, "finish": finish(message)}


@scenario
def streamed() -> dict[str, Any]:
    pieces, whole = collect(chat("stream").stream("hello"))
    return {"pieces": pieces, "finish": [finish(whole)]}


@scenario
async def streamed_async() -> dict[str, Any]:
    return {"text": "".join([str(chunk.content) async for chunk in chat("stream").astream("hello")])}


@scenario
def whole() -> dict[str, Any]:
    return {"text": chat("stream").invoke("hello").content}


@scenario
def live() -> dict[str, Any]:
    key = new_key()
    pieces: list[Any] = []
    for chunk in chat("slow").stream(key):
        if chunk.content:
            pieces.append(chunk.content)
            release(key)
    return {"pieces": pieces, "runs": runs(key)}


@scenario
def quiet() -> dict[str, Any]:
    return {"text": "".join(collect(chat("quiet").stream("hello"))[0])}


@scenario
def reasoning() -> dict[str, Any]:
    message = chat("reason").invoke("hello")
    return {"reasoning": message.additional_kwargs.get("reasoning_content"), "text": message.content}


@scenario
def reasoning_streamed() -> dict[str, Any]:
    _, message = collect(chat("reason").stream("hello"))
    return {"reasoning": message.additional_kwargs.get("reasoning_content"), "text": message.content}


@scenario
def refusal() -> dict[str, Any]:
    message = chat("refuse").invoke("hello")
    return {"refusal": message.additional_kwargs.get("refusal"), "text": message.content}


@scenario
def refusal_streamed() -> dict[str, Any]:
    pieces, whole = collect(chat("refuse").stream("hello"))
    return {"refusal": whole.additional_kwargs.get("refusal"), "text": "".join(pieces)}


def citations(message: Any) -> list[Any]:
    found = message.additional_kwargs.get("annotations") or message.response_metadata.get("annotations") or []
    return [*found, *(a for block in message.content_blocks for a in block.get("annotations", ()))]


@scenario
def sources() -> dict[str, Any]:
    message = chat("cite").invoke("hello")
    return {"text": message.content, "sources": citations(message)}


@scenario
def sources_streamed() -> dict[str, Any]:
    _, message = collect(chat("cite").stream("hello"))
    return {"text": message.content, "sources": citations(message)}


@scenario
def usage() -> dict[str, Any]:
    return tokens(chat("usage").invoke("hello"))


@scenario
def usage_streamed() -> dict[str, Any]:
    return tokens(collect(chat("usage").stream("hello"))[1])


@scenario
def length() -> dict[str, Any]:
    message = chat("length").invoke("hello")
    return {"text": message.content, "finish": finish(message)}


@scenario
def structured() -> dict[str, Any]:
    answer: Any = chat("json").with_structured_output(CityWeather).invoke("Weather?")
    found: dict[str, Any] = answer.model_dump()
    return found


@scenario
def structured_streamed() -> dict[str, Any]:
    *_, last = chat("json").with_structured_output(CityWeather).stream("Weather?")
    answer: Any = last
    found: dict[str, Any] = answer.model_dump()
    return found


@scenario
def choices() -> dict[str, Any]:
    (generations,) = chat("echo", n=2).generate([[HumanMessage("hello")]]).generations
    return {"texts": [generation.text for generation in generations]}


@scenario
def choices_streamed() -> dict[str, Any]:
    generations = [chunk.text for chunk in chat("echo", n=2).stream("hello")]
    return {"texts": ["".join(generations)]}


@scenario
def stop() -> dict[str, Any]:
    message = chat("stream").invoke("hello", stop=["llo"])
    return {"text": message.content, "finish": finish(message)}


@scenario
def stop_streamed() -> dict[str, Any]:
    pieces, whole = collect(chat("stream").stream("hello", stop=["llo"]))
    return {"text": "".join(pieces), "finish": [finish(whole)]}


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
    answer = chat("params", temperature=0.5, max_tokens=50, seed=7).invoke(messages)
    arrived = json.loads(str(answer.content))
    return {"params": arrived["params"], "messages": [message["role"] for message in arrived["messages"]]}


@scenario
def extras() -> dict[str, Any]:
    extra: Any = {"metadata": {"team": "red"}, "top_k": 3}
    answer = chat("params", model_kwargs={"user": "ada"}, extra_body=extra).invoke("hello")
    arrived = json.loads(str(answer.content))
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
def headers() -> dict[str, Any]:
    message = chat("echo", include_response_headers=True).invoke("hello")
    read = message.response_metadata["headers"]
    return {
        "x_request_id": read["x-request-id"].startswith("req_"),
        "version": read["openai-version"],
        "milliseconds": read["openai-processing-ms"].isdigit(),
        "text": message.content,
    }


@scenario
def legacy_functions() -> dict[str, Any]:
    message = chat("client-tool").bind(functions=[WEATHER_TOOL["function"]]).invoke(new_key())
    call = message.additional_kwargs["function_call"]
    return {"name": call["name"], "arguments": json.loads(call["arguments"]), "finish": finish(message)}


# --- tools


def converse(model: str, turn: Any) -> dict[str, Any]:
    weather = Weather()
    bound = chat(model).bind_tools([WEATHER_TOOL])
    messages: list[Any] = [HumanMessage(new_key())]
    texts: list[str] = []
    reasons: list[str] = []
    for _ in range(3):
        message = turn(bound, messages)
        reasons.append(finish(message))
        if message.content:
            texts.append(message.content)
        assert not message.invalid_tool_calls
        if not message.tool_calls:
            break
        messages.append(message)
        for call in message.tool_calls:
            assert call["name"] == "get_weather"
            messages.append(ToolMessage(weather(**call["args"]), tool_call_id=call["id"]))
    return {"executed": weather.executed, "texts": texts, "finish": reasons}


def whole_turn(bound: Any, messages: Any) -> Any:
    return bound.invoke(messages)


def streamed_turn(bound: Any, messages: Any) -> Any:
    return collect(bound.stream(messages))[1]


@scenario
def client_tool() -> dict[str, Any]:
    return converse("client-tool", whole_turn)


@scenario
def client_tool_streamed() -> dict[str, Any]:
    return converse("client-tool", streamed_turn)


@scenario
def two_tools() -> dict[str, Any]:
    return converse("two-tools", whole_turn)


@scenario
def two_tools_streamed() -> dict[str, Any]:
    return converse("two-tools", streamed_turn)


@scenario
def two_tools_by_hand() -> dict[str, Any]:
    calls: list[dict[str, str]] = []
    for chunk in chat("two-tools").bind_tools([WEATHER_TOOL]).stream(new_key()):
        assert isinstance(chunk, AIMessageChunk)
        for delta in chunk.tool_call_chunks:
            if delta["index"] == len(calls):
                calls.append({"id": delta["id"] or "", "name": "", "arguments": ""})
            call = calls[delta["index"] or 0]
            call["name"] += delta["name"] or ""
            call["arguments"] += delta["args"] or ""
    return {"calls": calls}


@scenario
def server_tool() -> dict[str, Any]:
    return converse("server-tool", whole_turn)


@scenario
def server_tool_streamed() -> dict[str, Any]:
    return converse("server-tool", streamed_turn)


@scenario
def mixed_tools() -> dict[str, Any]:
    return converse("mixed", whole_turn)


@scenario
def mixed_tools_streamed() -> dict[str, Any]:
    return converse("mixed", streamed_turn)


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
def retries() -> dict[str, Any]:
    return {"runs": expect_failure("fail-before", max_retries=2)["runs"]}


def broken_stream(model: str) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[Any] = []
    reasons: list[Any] = []
    try:
        for chunk in chat(model).stream(key):
            if chunk.content:
                pieces.append(chunk.content)
                release(key)
            if "finish_reason" in chunk.response_metadata:
                reasons.append(finish(chunk))
    except Exception as error:
        read = failure(error, key)
        told = {name: read[name] for name in ("error", "code", "runs")}
        return {"pieces": pieces, "finish": reasons, **told}, error
    return {"pieces": pieces, "finish": reasons}, None


@scenario
def fail_mid_streamed() -> dict[str, Any]:
    seen, error = broken_stream("fail-mid")
    return {**seen, "leaks": leaks(error)}


@scenario
def fail_late_streamed() -> dict[str, Any]:
    seen, error = broken_stream("fail-late")
    return {**seen, "leaks": leaks(error)}


@scenario
def fail_quiet_streamed() -> dict[str, Any]:
    seen, error = broken_stream("fail-quiet")
    return {**seen, "leaks": leaks(error)}


@scenario
def give_up_streamed() -> dict[str, Any]:
    seen, error = broken_stream("give-up")
    return {**seen, "message": error.message}


@scenario
def unknown_model() -> dict[str, Any]:
    return expect_failure("nobody")


@scenario
def bad_parameter() -> dict[str, Any]:
    try:
        chat("echo", temperature=9).invoke("hello")
    except Exception as error:
        read: Any = error
        return {"status": read.status_code, "param": read.param, "type": read.type}
    return {}


# --- leaving


@scenario
def abandon() -> dict[str, Any]:
    key = new_key()
    stream: Any = chat("stall").stream(key)
    pieces = []
    for chunk in stream:
        if chunk.content:
            pieces.append(chunk.content)
            break
    stream.close()
    return {"pieces": pieces, "cancelled": cancelled(key), "runs": runs(key)}


@scenario
async def abandon_by_cancel() -> dict[str, Any]:
    key = new_key()
    reached = asyncio.Event()

    async def read() -> None:
        async for chunk in chat("stall").astream(key):
            if chunk.content:
                reached.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    return {"cancelled": await asyncio.to_thread(cancelled, key)}


@scenario
def too_late() -> dict[str, Any]:
    key = new_key()
    try:
        chat("stuck", timeout=2.0, max_retries=0).invoke(key)
    except Exception as error:
        return {"error": failure(error, key)["error"], "cancelled": cancelled(key), "runs": runs(key)}
    return {}


main()
