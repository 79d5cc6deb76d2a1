"""The OpenAI Agents SDK with its Chat Completions model. It runs tools itself and refuses those it does not know."""

import asyncio
import json
from typing import Any

from agents import (
    Agent,
    ItemHelpers,
    MessageOutputItem,
    ModelRefusalError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    ReasoningItem,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from driving import (
    BASE_URL,
    Weather,
    cancelled,
    leaks,
    main,
    new_key,
    release,
    runs,
    scenario,
)
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)  # traces go to OpenAI
client = AsyncOpenAI(base_url=BASE_URL, api_key="test", timeout=20)


class CityWeather(BaseModel):
    city: str
    degrees: int


def agent(model: str, *, using: AsyncOpenAI = client, **options: Any) -> Agent[Any]:
    settings = {"model_settings": ModelSettings(include_usage=True), **options}
    made = OpenAIChatCompletionsModel(model=model, openai_client=using)
    return Agent(name="tester", model=made, **settings)


def equipped(model: str) -> tuple[Agent[Any], Weather]:
    weather = Weather()

    @function_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return weather(city=city)

    return agent(model, tools=[get_weather]), weather


def text_pieces(event: Any) -> str:
    if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
        return str(event.data.delta)
    return ""


async def collect(made: Agent[Any], prompt: str) -> tuple[dict[str, list[str]], Any]:
    seen: dict[str, list[str]] = {"pieces": [], "reasoning": [], "ends": []}
    result = Runner.run_streamed(made, prompt)
    async for event in result.stream_events():
        if piece := text_pieces(event):
            seen["pieces"].append(piece)
        if event.type == "raw_response_event":
            match event.data.type:
                # It also turns `reasoning` into `response.reasoning_text.delta`: the same text, raw.
                case "response.reasoning_summary_text.delta":
                    seen["reasoning"].append(event.data.delta)
                case "response.completed" | "response.incomplete" | "response.failed":
                    seen["ends"].append(event.data.type)
    return seen, result


def conversation(result: Any, weather: Weather) -> dict[str, Any]:
    messages = [item for item in result.new_items if isinstance(item, MessageOutputItem)]
    return {"executed": weather.executed, "texts": [ItemHelpers.text_message_output(m) for m in messages]}


def reasoning_of(result: Any) -> str:
    items = [item.raw_item for item in result.new_items if isinstance(item, ReasoningItem)]
    return "".join(part.text for item in items for part in item.summary)


def tokens(result: Any) -> dict[str, int]:
    read = result.context_wrapper.usage
    return {
        "input": read.input_tokens,
        "output": read.output_tokens,
        "total": read.total_tokens,
        "cached": read.input_tokens_details.cached_tokens,
        "reasoning": read.output_tokens_details.reasoning_tokens,
    }


def failure(error: Any, key: str) -> dict[str, Any]:
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": error.code,
        "request_id": bool(getattr(error, "request_id", None)),
        "leaks": leaks(error),
        "runs": runs(key),
    }


async def expect_failure(model: str) -> dict[str, Any]:
    key = new_key()
    try:
        return {"answer": (await Runner.run(agent(model), key)).final_output}
    except APIError as error:
        return failure(error, key)


# --- answers


@scenario
async def plain() -> dict[str, Any]:
    return {"text": (await Runner.run(agent("echo"), "hello")).final_output}


@scenario
async def streamed() -> dict[str, Any]:
    seen, _ = await collect(agent("stream"), "hello")
    assert seen["ends"] == ["response.completed"]
    return {"pieces": seen["pieces"]}


@scenario
async def whole() -> dict[str, Any]:
    return {"text": (await Runner.run(agent("stream"), "hello")).final_output}


@scenario
async def live() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    async for event in Runner.run_streamed(agent("slow"), key).stream_events():
        if piece := text_pieces(event):
            pieces.append(piece)
            await asyncio.to_thread(release, key)
    return {"pieces": pieces, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def quiet() -> dict[str, Any]:
    return {"text": "".join((await collect(agent("quiet"), "hello"))[0]["pieces"])}


@scenario
async def reasoning() -> dict[str, Any]:
    result = await Runner.run(agent("reason"), "hello")
    return {"reasoning": reasoning_of(result), "text": result.final_output}


@scenario
async def reasoning_streamed() -> dict[str, Any]:
    seen, result = await collect(agent("reason"), "hello")
    assert reasoning_of(result) == "".join(seen["reasoning"])
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


@scenario
async def refusal() -> dict[str, Any]:
    try:
        await Runner.run(agent("refuse"), "hello")
    except ModelRefusalError as error:
        return {"refusal": error.refusal, "text": ""}
    return {}


@scenario
async def refusal_streamed() -> dict[str, Any]:
    pieces: list[str] = []
    try:
        async for event in Runner.run_streamed(agent("refuse"), "hello").stream_events():
            pieces.append(text_pieces(event))  # noqa: PERF401 - they are wanted although the loop raises
    except ModelRefusalError as error:
        return {"refusal": error.refusal, "text": "".join(pieces)}
    return {}


@scenario
async def usage() -> dict[str, Any]:
    return tokens(await Runner.run(agent("usage"), "hello"))


@scenario
async def usage_streamed() -> dict[str, Any]:
    return tokens((await collect(agent("usage"), "hello"))[1])


@scenario
async def length() -> dict[str, Any]:
    return {"text": (await Runner.run(agent("length"), "hello")).final_output}


@scenario
async def stop() -> dict[str, Any]:
    settings = ModelSettings(extra_args={"stop": ["llo"]})
    return {"text": (await Runner.run(agent("stream", model_settings=settings), "hello")).final_output}


@scenario
async def stop_streamed() -> dict[str, Any]:
    settings = ModelSettings(extra_args={"stop": ["llo"]})
    return {"text": "".join((await collect(agent("stream", model_settings=settings), "hello"))[0]["pieces"])}


def citations(result: Any) -> list[Any]:
    (item,) = [item for item in result.new_items if isinstance(item, MessageOutputItem)]
    found = [a for part in item.raw_item.content for a in getattr(part, "annotations", ())]
    return [[a.url, a.title, a.start_index, a.end_index] for a in found]


@scenario
async def sources() -> dict[str, Any]:
    result = await Runner.run(agent("cite"), "hello")
    return {"text": result.final_output, "sources": citations(result)}


@scenario
async def sources_streamed() -> dict[str, Any]:
    _, result = await collect(agent("cite"), "hello")
    return {"text": result.final_output, "sources": citations(result)}


@scenario
async def extras() -> dict[str, Any]:
    settings = ModelSettings(metadata={"team": "red"}, extra_args={"user": "ada"}, extra_body={"top_k": 3}, store=False)
    arrived = json.loads((await Runner.run(agent("params", model_settings=settings), "hello")).final_output)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
async def structured() -> dict[str, Any]:
    result = await Runner.run(agent("json", output_type=CityWeather), "Weather?")
    found: dict[str, Any] = result.final_output.model_dump()
    return found


@scenario
async def structured_streamed() -> dict[str, Any]:
    _, result = await collect(agent("json", output_type=CityWeather), "Weather?")
    found: dict[str, Any] = result.final_output.model_dump()
    return found


@scenario
async def parameters() -> dict[str, Any]:
    settings = ModelSettings(temperature=0.5, max_tokens=50, extra_args={"seed": 7})
    prompt: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,cG5n", "detail": "auto"},
            ],
        }
    ]
    made = agent("params", model_settings=settings, instructions="Be brief.")
    arrived = json.loads((await Runner.run(made, prompt)).final_output)
    return {"params": arrived["params"], "messages": [message["role"] for message in arrived["messages"]]}


# --- tools: the SDK runs them and asks again


async def converse(model: str) -> dict[str, Any]:
    made, weather = equipped(model)
    return conversation(await Runner.run(made, new_key()), weather)


async def converse_streamed(model: str) -> dict[str, Any]:
    made, weather = equipped(model)
    _, result = await collect(made, new_key())
    return conversation(result, weather)


@scenario
async def client_tool() -> dict[str, Any]:
    return await converse("client-tool")


@scenario
async def client_tool_streamed() -> dict[str, Any]:
    return await converse_streamed("client-tool")


@scenario
async def two_tools() -> dict[str, Any]:
    return await converse("two-tools")


@scenario
async def two_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("two-tools")


@scenario
async def server_tool() -> dict[str, Any]:
    return await converse("server-tool")


@scenario
async def server_tool_streamed() -> dict[str, Any]:
    return await converse_streamed("server-tool")


@scenario
async def mixed_tools() -> dict[str, Any]:
    return await converse("mixed")


@scenario
async def mixed_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("mixed")


# --- failures


@scenario
async def fail_before() -> dict[str, Any]:
    return await expect_failure("fail-before")


@scenario
async def fail_before_streamed() -> dict[str, Any]:
    key = new_key()
    try:
        await collect(agent("fail-before"), key)
    except APIError as error:
        return failure(error, key)
    return {}


@scenario
async def fail_status() -> dict[str, Any]:
    return await expect_failure("fail-status")


@scenario
async def fail_mid() -> dict[str, Any]:
    return await expect_failure("fail-mid")


@scenario
async def retries() -> dict[str, Any]:
    assert client.max_retries == 2
    return {"runs": (await expect_failure("fail-before"))["runs"]}


async def broken_stream(model: str) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[str] = []
    try:
        async for event in Runner.run_streamed(agent(model), key).stream_events():
            if piece := text_pieces(event):
                pieces.append(piece)
                await asyncio.to_thread(release, key)
    except APIError as error:
        read = failure(error, key)
        return {"pieces": pieces, **{name: read[name] for name in ("error", "code", "runs")}}, error
    return {"pieces": pieces}, None


@scenario
async def fail_mid_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("fail-mid")
    del seen["pieces"]  # the SDK raises as soon as it can, ahead of pieces it has read already
    return {**seen, "leaks": leaks(error)}


@scenario
async def fail_late_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("fail-late")
    return {**seen, "leaks": leaks(error)}


@scenario
async def fail_quiet_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("fail-quiet")
    return {**seen, "leaks": leaks(error)}


@scenario
async def give_up_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("give-up")
    del seen["pieces"]
    return {**seen, "message": error.message}


@scenario
async def unknown_model() -> dict[str, Any]:
    return await expect_failure("nobody")


@scenario
async def bad_parameter() -> dict[str, Any]:
    try:
        await Runner.run(agent("echo", model_settings=ModelSettings(temperature=9)), "hello")
    except APIError as error:
        return {"status": getattr(error, "status_code", None), "param": error.param, "type": error.type}
    return {}


# --- leaving


@scenario
async def abandon() -> dict[str, Any]:
    key = new_key()
    pieces = []
    result = Runner.run_streamed(agent("stall"), key)
    async for event in result.stream_events():
        if piece := text_pieces(event):
            pieces.append(piece)
            result.cancel()
    gone = await asyncio.to_thread(cancelled, key)
    return {"pieces": pieces, "cancelled": gone, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def abandon_by_cancel() -> dict[str, Any]:
    key = new_key()
    reached = asyncio.Event()

    async def read() -> None:
        async for event in Runner.run_streamed(agent("stall"), key).stream_events():
            if text_pieces(event):
                reached.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    return {"cancelled": await asyncio.to_thread(cancelled, key)}


@scenario
async def too_late() -> dict[str, Any]:
    key = new_key()
    hasty = client.with_options(timeout=2.0, max_retries=0)
    try:
        await Runner.run(agent("stuck", using=hasty), key)
    except APIError as error:
        gone = await asyncio.to_thread(cancelled, key)
        return {"error": type(error).__name__, "cancelled": gone, "runs": runs(key)}
    return {}


main()
