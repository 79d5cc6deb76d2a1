"""The official `openai` package for Python: one script for its 1.x, 2.x and 3.x lines."""

import asyncio
import base64
import json
from typing import Any

import openai
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
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=BASE_URL, api_key="test", timeout=20)
completions = client.chat.completions
# `.stream()` and `.parse()` left beta in 1.92.
helpers = completions if hasattr(completions, "stream") else client.beta.chat.completions

TOOLS: Any = [WEATHER_TOOL]


class CityWeather(BaseModel):
    city: str
    degrees: int


def says(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(model: str, text: str = "hello", **options: Any) -> Any:
    return completions.create(model=model, messages=says(text), **options)


def collect(stream: Any) -> dict[str, Any]:
    """Read a stream the way most code does, without looking before it indexes."""
    seen: dict[str, Any] = {"pieces": [], "roles": [], "reasoning": [], "refusal": [], "finish": []}
    for chunk in stream:
        choice = chunk.choices[0]
        if choice.delta.content:
            seen["pieces"].append(choice.delta.content)
        if choice.delta.role:
            seen["roles"].append(choice.delta.role)
        if getattr(choice.delta, "reasoning_content", None):
            seen["reasoning"].append(choice.delta.reasoning_content)
        if getattr(choice.delta, "refusal", None):
            seen["refusal"].append(choice.delta.refusal)
        if choice.finish_reason:
            seen["finish"].append(choice.finish_reason)
    return seen


def citations(annotations: Any) -> list[list[Any]]:
    # 1.40 does not know annotations and keeps them as dictionaries.
    plain = [a if isinstance(a, dict) else a.model_dump() for a in annotations]
    return [[a["url_citation"][key] for key in ("url", "title", "start_index", "end_index")] for a in plain]


def tokens(usage: Any) -> dict[str, int]:
    read = usage.model_dump()
    return {
        "input": read["prompt_tokens"],
        "output": read["completion_tokens"],
        "total": read["total_tokens"],
        "cached": read["prompt_tokens_details"]["cached_tokens"],
        "reasoning": read["completion_tokens_details"]["reasoning_tokens"],
    }


def failure(error: Exception, key: str) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "request_id": bool(getattr(error, "request_id", None)),
        "leaks": leaks(error),
        "runs": runs(key),
    }


def expect_failure(model: str, **options: Any) -> dict[str, Any]:
    key = new_key()
    try:
        answer = ask(model, key, **options)
    except openai.APIError as error:
        return failure(error, key)
    return {"answer": str(answer)}


# --- answers


@scenario
def plain() -> dict[str, Any]:
    answer = ask("echo")
    choice = answer.choices[0]
    return {"text": choice.message.content, "role": choice.message.role, "finish": choice.finish_reason}


@scenario
def streamed() -> dict[str, Any]:
    seen = collect(ask("stream", stream=True))
    return {"pieces": seen["pieces"], "roles": seen["roles"], "finish": seen["finish"]}


@scenario
async def streamed_async() -> dict[str, Any]:
    async with AsyncOpenAI(base_url=BASE_URL, api_key="test", timeout=20) as concurrent:
        stream = await concurrent.chat.completions.create(model="stream", messages=says("hello"), stream=True)
        chunks = [chunk async for chunk in stream]
    return {"text": "".join(chunk.choices[0].delta.content or "" for chunk in chunks)}


@scenario
def whole() -> dict[str, Any]:
    return {"text": ask("stream").choices[0].message.content}


@scenario
def stream_helper() -> dict[str, Any]:
    with helpers.stream(model="stream", messages=says("hello")) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    return {
        "text": final.message.content,
        "role": final.message.role,
        "finish": final.finish_reason,
        "deltas": [event.delta for event in events if event.type == "content.delta" and event.delta],
        "done": [event.content for event in events if event.type == "content.done"],
    }


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
    message: Any = ask("reason").choices[0].message
    return {"reasoning": message.reasoning_content, "text": message.content}


@scenario
def reasoning_streamed() -> dict[str, Any]:
    seen = collect(ask("reason", stream=True))
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


@scenario
def refusal() -> dict[str, Any]:
    message = ask("refuse").choices[0].message
    return {"refusal": message.refusal, "text": message.content or ""}


@scenario
def refusal_streamed() -> dict[str, Any]:
    seen = collect(ask("refuse", stream=True))
    return {"refusal": "".join(seen["refusal"]), "text": "".join(seen["pieces"])}


@scenario
def sources() -> dict[str, Any]:
    message: Any = ask("cite").choices[0].message
    return {"text": message.content, "sources": citations(message.annotations)}


@scenario
def sources_streamed() -> dict[str, Any]:
    text = ""
    found: list[Any] = []
    for chunk in ask("cite", stream=True):
        delta: Any = chunk.choices[0].delta
        text += delta.content or ""
        found += getattr(delta, "annotations", None) or []
    return {"text": text, "sources": citations(found)}


@scenario
def usage() -> dict[str, Any]:
    return tokens(ask("usage").usage)


@scenario
def usage_streamed() -> dict[str, Any]:
    *others, last = ask("usage", stream=True, stream_options={"include_usage": True})
    assert not any(chunk.usage for chunk in others)
    return tokens(last.usage)


@scenario
def length() -> dict[str, Any]:
    choice = ask("length").choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


@scenario
def structured() -> dict[str, Any]:
    parsed = helpers.parse(model="json", messages=says("Weather?"), response_format=CityWeather)
    answer: Any = parsed.choices[0].message.parsed
    return CityWeather.model_dump(answer)


@scenario
def structured_streamed() -> dict[str, Any]:
    with helpers.stream(model="json", messages=says("Weather?"), response_format=CityWeather) as stream:
        answer: Any = stream.get_final_completion().choices[0].message.parsed
    return CityWeather.model_dump(answer)


@scenario
def choices() -> dict[str, Any]:
    return {"texts": [choice.message.content for choice in ask("echo", n=2).choices]}


@scenario
def choices_streamed() -> dict[str, Any]:
    with helpers.stream(model="echo", messages=says("hello"), n=2) as stream:
        final = stream.get_final_completion()
    return {"texts": [choice.message.content for choice in final.choices]}


@scenario
def stop() -> dict[str, Any]:
    choice = ask("stream", stop=["llo"]).choices[0]
    return {"text": choice.message.content, "finish": choice.finish_reason}


@scenario
def stop_streamed() -> dict[str, Any]:
    seen = collect(ask("stream", stop="llo", stream=True))
    return {"text": "".join(seen["pieces"]), "finish": seen["finish"]}


def with_picture() -> Any:
    picture = "data:image/png;base64," + base64.b64encode(b"png").decode()
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": picture}},
            ],
        },
    ]


@scenario
def parameters() -> dict[str, Any]:
    answer = completions.create(model="params", messages=with_picture(), temperature=0.5, max_tokens=50, seed=7)
    arrived = json.loads(answer.choices[0].message.content or "")
    assert arrived["messages"] == with_picture()
    return {"params": arrived["params"], "messages": [message["role"] for message in arrived["messages"]]}


@scenario
def extras() -> dict[str, Any]:
    # 1.40 has no argument for metadata yet, so it goes the way of unknown fields.
    answer = ask("params", user="ada", extra_body={"metadata": {"team": "red"}, "top_k": 3})
    arrived = json.loads(answer.choices[0].message.content or "")
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
def legacy_functions() -> dict[str, Any]:
    function: Any = WEATHER_TOOL["function"]
    choice = ask("client-tool", new_key(), functions=[function]).choices[0]
    call: Any = choice.message.function_call
    return {"name": call.name, "arguments": json.loads(call.arguments), "finish": choice.finish_reason}


# --- tools


def converse(model: str, turn: Any) -> dict[str, Any]:
    """Answer tool calls until there are none, as a client does by hand; `turn` makes one request."""
    weather = Weather()
    messages = says(new_key())
    texts: list[str] = []
    finish: list[str] = []
    for _ in range(3):
        message, reason = turn(model, messages)
        finish.append(reason)
        if message.content:
            texts.append(message.content)
        if not message.tool_calls:
            break
        # Everything the client read goes back, as it is: reasoning, annotations and the rest.
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            assert (call.type, call.function.name) == ("function", "get_weather")
            answer = weather(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": answer})
    return {"executed": weather.executed, "texts": texts, "finish": finish}


def whole_turn(model: str, messages: Any) -> Any:
    choice = completions.create(model=model, messages=messages, tools=TOOLS).choices[0]
    return choice.message, choice.finish_reason


def streamed_turn(model: str, messages: Any) -> Any:
    with helpers.stream(model=model, messages=messages, tools=TOOLS) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    return choice.message, choice.finish_reason


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
    """Put the calls together from the raw deltas, as OpenAI's cookbook does."""
    calls: list[dict[str, str]] = []
    for chunk in ask("two-tools", new_key(), tools=TOOLS, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            if delta.index == len(calls):
                calls.append({"id": delta.id or "", "name": "", "arguments": ""})
            call = calls[delta.index]
            call["name"] += (delta.function.name if delta.function else "") or ""
            call["arguments"] += (delta.function.arguments if delta.function else "") or ""
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
def retries() -> dict[str, Any]:
    assert client.max_retries == 2
    return {"runs": expect_failure("fail-before")["runs"]}


@scenario
def fail_mid() -> dict[str, Any]:
    return expect_failure("fail-mid")


def broken_stream(model: str) -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    finish: list[str] = []
    try:
        for chunk in ask(model, key, stream=True):
            if chunk.choices[0].delta.content:
                pieces.append(chunk.choices[0].delta.content)
                release(key)
            if chunk.choices[0].finish_reason:
                finish.append(chunk.choices[0].finish_reason)
    except openai.APIError as error:
        return {
            "pieces": pieces,
            "finish": finish,
            "error": type(error).__name__,
            "code": error.code,
            "message": error.message,
            "runs": runs(key),
        }
    return {"pieces": pieces, "finish": finish}


@scenario
def fail_mid_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-mid")
    seen["leaks"] = "secret detail" in seen.pop("message")
    return seen


@scenario
def fail_late_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-late")
    seen["leaks"] = "secret detail" in seen.pop("message")
    return seen


@scenario
def fail_quiet_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-quiet")
    seen["leaks"] = "secret detail" in seen.pop("message")
    return seen


@scenario
def give_up_streamed() -> dict[str, Any]:
    return broken_stream("give-up")


@scenario
def unknown_model() -> dict[str, Any]:
    return expect_failure("nobody")


@scenario
def bad_parameter() -> dict[str, Any]:
    try:
        ask("echo", temperature=9)
    except openai.BadRequestError as error:
        return {"status": error.status_code, "param": error.param, "type": error.type}
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
    stream.close()
    return {"pieces": pieces, "cancelled": cancelled(key), "runs": runs(key)}


@scenario
async def abandon_by_cancel() -> dict[str, Any]:
    key = new_key()
    async with AsyncOpenAI(base_url=BASE_URL, api_key="test", timeout=20) as concurrent:
        stream = await concurrent.chat.completions.create(model="stall", messages=says(key), stream=True)
        reached = asyncio.Event()

        async def read() -> None:
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
        client.with_options(timeout=2.0, max_retries=0).chat.completions.create(model="stuck", messages=says(key))
    except openai.APITimeoutError as error:
        return {"error": type(error).__name__, "cancelled": cancelled(key), "runs": runs(key)}
    return {}


# --- the rest of the API


@scenario
def models() -> dict[str, Any]:
    return {"listed": sorted(model.id for model in client.models.list())}


@scenario
def one_model() -> dict[str, Any]:
    found = client.models.retrieve("echo")
    try:
        client.models.retrieve("nobody")
    except openai.NotFoundError as error:
        return {"id": found.id, "object": found.object, "missing": error.code}
    return {}


@scenario
def headers() -> dict[str, Any]:
    raw = completions.with_raw_response.create(model="echo", messages=says("hello"))
    return {
        "x_request_id": (raw.headers["x-request-id"] or "").startswith("req_"),
        "version": raw.headers["openai-version"],
        "milliseconds": raw.headers["openai-processing-ms"].isdigit(),
        "text": raw.parse().choices[0].message.content,
    }


main()
