"""LiteLLM, which classifies errors by status and by their text and has its own idea of usage and reasoning."""

import asyncio
import json
from typing import Any

import litellm
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
from litellm.exceptions import BadRequestError, Timeout
from pydantic import BaseModel


class CityWeather(BaseModel):
    city: str
    degrees: int


def says(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(model: str, text: str = "hello", **options: Any) -> Any:
    settings: Any = {"messages": says(text), "api_base": BASE_URL, "api_key": "test", "timeout": 20, **options}
    return litellm.completion(model=f"openai/{model}", **settings)


def collect(stream: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {"pieces": [], "reasoning": [], "refusal": [], "finish": []}
    for chunk in stream:
        choice = chunk.choices[0]
        if choice.delta.content:
            seen["pieces"].append(choice.delta.content)
        if getattr(choice.delta, "reasoning_content", None):
            seen["reasoning"].append(choice.delta.reasoning_content)
        if getattr(choice.delta, "refusal", None):
            seen["refusal"].append(choice.delta.refusal)
        if choice.finish_reason:
            seen["finish"].append(choice.finish_reason)
    return seen


def tokens(usage: Any) -> dict[str, int]:
    return {
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
        "total": usage.total_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
        "reasoning": usage.completion_tokens_details.reasoning_tokens,
    }


def citations(annotations: Any) -> list[list[Any]]:
    return [[a["url_citation"][key] for key in ("url", "title", "start_index", "end_index")] for a in annotations]


def failure(error: Any, key: str) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "leaks": leaks(error),
        "runs": runs(key),
    }


def expect_failure(model: str, **options: Any) -> dict[str, Any]:
    key = new_key()
    try:
        return {"answer": str(ask(model, key, **options))}
    except Exception as error:
        return failure(error, key)


# --- answers


@scenario
def plain() -> dict[str, Any]:
    choice = ask("echo").choices[0]
    return {"text": choice.message.content, "role": choice.message.role, "finish": choice.finish_reason}


@scenario
def streamed() -> dict[str, Any]:
    seen = collect(ask("stream", stream=True))
    return {"pieces": seen["pieces"], "finish": seen["finish"]}


@scenario
async def streamed_async() -> dict[str, Any]:
    stream = await litellm.acompletion(
        model="openai/stream", messages=says("hello"), api_base=BASE_URL, api_key="test", stream=True
    )
    return {"text": "".join([chunk.choices[0].delta.content or "" async for chunk in stream])}


@scenario
def whole() -> dict[str, Any]:
    return {"text": ask("stream").choices[0].message.content}


@scenario
def live() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    for chunk in ask("slow", key, stream=True):
        if chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            release(key)
    return {"pieces": pieces, "runs": runs(key)}


@scenario
def quiet() -> dict[str, Any]:
    return {"text": "".join(collect(ask("quiet", stream=True))["pieces"])}


@scenario
def reasoning() -> dict[str, Any]:
    message = ask("reason").choices[0].message
    return {"reasoning": message.reasoning_content, "text": message.content}


@scenario
def reasoning_streamed() -> dict[str, Any]:
    seen = collect(ask("reason", stream=True))
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


@scenario
def refusal() -> dict[str, Any]:
    message = ask("refuse").choices[0].message
    said = message.provider_specific_fields or {}
    return {"refusal": getattr(message, "refusal", None) or said.get("refusal"), "text": message.content or ""}


@scenario
def refusal_streamed() -> dict[str, Any]:
    seen = collect(ask("refuse", stream=True))
    return {"refusal": "".join(seen["refusal"]), "text": "".join(seen["pieces"])}


@scenario
def sources() -> dict[str, Any]:
    message = ask("cite").choices[0].message
    return {"text": message.content, "sources": citations(message.annotations)}


@scenario
def sources_streamed() -> dict[str, Any]:
    text = ""
    found: list[Any] = []
    for chunk in ask("cite", stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        found += getattr(delta, "annotations", None) or []
    return {"text": text, "sources": citations(found)}


@scenario
def usage() -> dict[str, Any]:
    return tokens(ask("usage").usage)


@scenario
def usage_streamed() -> dict[str, Any]:
    *_, last = ask("usage", stream=True, stream_options={"include_usage": True})
    return tokens(last.usage)


@scenario
def length() -> dict[str, Any]:
    choice = ask("length").choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


@scenario
def structured() -> dict[str, Any]:
    answer = ask("json", response_format=CityWeather).choices[0].message.content
    return CityWeather.model_validate_json(answer).model_dump()


@scenario
def structured_streamed() -> dict[str, Any]:
    seen = collect(ask("json", response_format=CityWeather, stream=True))
    return CityWeather.model_validate_json("".join(seen["pieces"])).model_dump()


@scenario
def choices() -> dict[str, Any]:
    return {"texts": [choice.message.content for choice in ask("echo", n=2).choices]}


@scenario
def choices_streamed() -> dict[str, Any]:
    texts = ["", ""]
    for chunk in ask("echo", n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return {"texts": texts}


@scenario
def stop() -> dict[str, Any]:
    choice = ask("stream", stop=["llo"]).choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


@scenario
def stop_streamed() -> dict[str, Any]:
    seen = collect(ask("stream", stop=["llo"], stream=True))
    return {"text": "".join(seen["pieces"]), "finish": seen["finish"]}


@scenario
def parameters() -> dict[str, Any]:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}},
            ],
        },
    ]
    answer = ask("params", messages=messages, temperature=0.5, max_tokens=50, seed=7)
    arrived = json.loads(answer.choices[0].message.content)
    return {"params": arrived["params"], "messages": [message["role"] for message in arrived["messages"]]}


@scenario
def extras() -> dict[str, Any]:
    answer = ask("params", user="ada", extra_body={"metadata": {"team": "red"}, "top_k": 3})
    arrived = json.loads(answer.choices[0].message.content)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
def headers() -> dict[str, Any]:
    answer = ask("echo")
    read = answer._response_headers
    return {
        "x_request_id": read["x-request-id"].startswith("req_"),
        "version": read["openai-version"],
        "milliseconds": read["openai-processing-ms"].isdigit(),
        "text": answer.choices[0].message.content,
    }


@scenario
def legacy_functions() -> dict[str, Any]:
    choice = ask("client-tool", new_key(), functions=[WEATHER_TOOL["function"]]).choices[0]
    call = choice.message.function_call
    return {"name": call.name, "arguments": json.loads(call.arguments), "finish": choice.finish_reason}


# --- tools


def converse(model: str, turn: Any) -> dict[str, Any]:
    weather = Weather()
    messages = says(new_key())
    texts: list[str] = []
    finish: list[str] = []
    for _ in range(3):
        choice = turn(model, messages)
        finish.append(choice.finish_reason)
        if choice.message.content:
            texts.append(choice.message.content)
        if not choice.message.tool_calls:
            break
        messages.append(choice.message.model_dump(exclude_none=True))
        for call in choice.message.tool_calls:
            assert (call.type, call.function.name) == ("function", "get_weather")
            answer = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": answer})
    return {"executed": weather.executed, "texts": texts, "finish": finish}


def whole_turn(model: str, messages: Any) -> Any:
    return ask(model, messages=messages, tools=[WEATHER_TOOL]).choices[0]


def streamed_turn(model: str, messages: Any) -> Any:
    chunks = list(ask(model, messages=messages, tools=[WEATHER_TOOL], stream=True))
    answer: Any = litellm.stream_chunk_builder(chunks, messages=messages)
    return answer.choices[0]


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
    for chunk in ask("two-tools", new_key(), tools=[WEATHER_TOOL], stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            if delta.index == len(calls):
                calls.append({"id": delta.id or "", "name": "", "arguments": ""})
            calls[delta.index]["name"] += delta.function.name or ""
            calls[delta.index]["arguments"] += delta.function.arguments or ""
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
    return expect_failure("fail-before", stream=True)


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
    seen: dict[str, Any] = {"pieces": [], "finish": []}
    try:
        for chunk in ask(model, key, stream=True):
            if chunk.choices[0].delta.content:
                seen["pieces"].append(chunk.choices[0].delta.content)
                release(key)
            if chunk.choices[0].finish_reason:
                seen["finish"].append(chunk.choices[0].finish_reason)
    except Exception as error:
        return {**seen, "error": type(error).__name__, "runs": runs(key)}, error
    return seen, None


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
    # What the server said stands between two layers of LiteLLM's own words.
    message = str(error).partition("OpenAIException - ")[2].partition(" Original exception")[0]
    return {**seen, "message": message}


@scenario
def unknown_model() -> dict[str, Any]:
    return expect_failure("nobody")


@scenario
def bad_parameter() -> dict[str, Any]:
    try:
        ask("echo", temperature=9)
    except BadRequestError as error:
        return {"status": error.status_code}
    return {}


# --- leaving


@scenario
def abandon() -> dict[str, Any]:
    key = new_key()
    stream = ask("stall", key, stream=True)
    pieces = []
    for chunk in stream:
        if chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            break
    stream.completion_stream.close()
    return {"pieces": pieces, "cancelled": cancelled(key), "runs": runs(key)}


@scenario
async def abandon_by_cancel() -> dict[str, Any]:
    key = new_key()
    reached = asyncio.Event()

    async def read() -> None:
        stream: Any = await litellm.acompletion(
            model="openai/stall", messages=says(key), api_base=BASE_URL, api_key="test", stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
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
        ask("stuck", key, timeout=2.0, max_retries=0)
    except Timeout as error:
        return {"error": type(error).__name__, "cancelled": cancelled(key), "runs": runs(key)}
    return {}


main()
