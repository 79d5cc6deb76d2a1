"""pydantic-ai, which validates every answer strictly and runs its tools itself."""

import asyncio
import json
import re
from typing import Any

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
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ContentFilterError, ModelHTTPError
from pydantic_ai.messages import (
    BinaryContent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE_URL, api_key="test")


class CityWeather(BaseModel):
    """Weather of a city."""

    city: str
    degrees: int


def agent(model: str, **options: Any) -> Agent[None, Any]:
    return Agent(OpenAIChatModel(model, provider=provider), **options)


def equipped(model: str) -> tuple[Agent[None, Any], Weather]:
    weather = Weather()
    made = agent(model)

    @made.tool_plain
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return weather(city=city)

    return made, weather


def responses(result: Any) -> list[ModelResponse]:
    return [message for message in result.all_messages() if isinstance(message, ModelResponse)]


def text_of(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def thinking_of(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, ThinkingPart))


def conversation(result: Any, weather: Weather) -> dict[str, Any]:
    turns = responses(result)
    return {
        "executed": sorted(weather.executed, key=str),  # it runs the tools of a turn at the same time
        "texts": [text for text in map(text_of, turns) if text],
        "finish": [turn.finish_reason for turn in turns],
    }


def tokens(result: Any) -> dict[str, int]:
    usage = result.usage
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "total": usage.total_tokens,
        "cached": usage.cache_read_tokens,
        "reasoning": usage.details["reasoning_tokens"],
    }


async def collect(made: Agent[None, Any], prompt: str) -> tuple[dict[str, Any], Any]:
    """Read every event of a run; text comes in `part_start` and in `part_delta` events."""
    seen: dict[str, list[Any]] = {"pieces": [], "reasoning": [], "calls": [], "answers": []}
    result = None
    async with made.run_stream_events(prompt) as events:
        async for event in events:
            match event:
                case PartStartEvent(part=TextPart(content=text)) if text:
                    seen["pieces"].append(text)
                case PartDeltaEvent(delta=TextPartDelta(content_delta=text)) if text:
                    seen["pieces"].append(text)
                case PartStartEvent(part=ThinkingPart(content=text)) if text:
                    seen["reasoning"].append(text)
                case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text)) if text:
                    seen["reasoning"].append(text)
                case FunctionToolCallEvent():
                    seen["calls"].append(event.part.tool_name)
                case FunctionToolResultEvent():
                    seen["answers"].append(event)
                case _:
                    result = getattr(event, "result", None) or result
    return seen, result


def failure(error: Exception, key: str) -> dict[str, Any]:
    body: Any = getattr(error, "body", None) or {}
    return {
        "error": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": body.get("code"),
        "leaks": leaks(error),
        "runs": runs(key),
    }


async def expect_failure(model: str) -> dict[str, Any]:
    key = new_key()
    try:
        return {"answer": (await agent(model).run(key)).output}
    except ModelHTTPError as error:
        return failure(error, key)


# --- answers


@scenario
async def plain() -> dict[str, Any]:
    result = await agent("echo").run("hello")
    return {"text": result.output, "finish": responses(result)[-1].finish_reason}


@scenario
async def streamed() -> dict[str, Any]:
    seen, result = await collect(agent("stream"), "hello")
    return {"pieces": seen["pieces"], "finish": [turn.finish_reason for turn in responses(result)]}


@scenario
async def whole() -> dict[str, Any]:
    return {"text": (await agent("stream").run("hello")).output}


@scenario
async def live() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    async with agent("slow").run_stream(key) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
            await asyncio.to_thread(release, key)
    return {"pieces": pieces, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def quiet() -> dict[str, Any]:
    return {"text": "".join((await collect(agent("quiet"), "hello"))[0]["pieces"])}


@scenario
async def reasoning() -> dict[str, Any]:
    (turn,) = responses(await agent("reason").run("hello"))
    return {"reasoning": thinking_of(turn), "text": text_of(turn)}


@scenario
async def reasoning_streamed() -> dict[str, Any]:
    seen, _ = await collect(agent("reason"), "hello")
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


def refused(error: ContentFilterError) -> dict[str, Any]:
    """A refusal is an exception here, and its text stands in the message."""
    said = re.search(r"Refusal: '(.*?)'", str(error))
    return {"refusal": said and said[1], "text": ""}


@scenario
async def refusal() -> dict[str, Any]:
    try:
        return {"text": (await agent("refuse").run("hello")).output}
    except ContentFilterError as error:
        return refused(error)


@scenario
async def refusal_streamed() -> dict[str, Any]:
    try:
        seen, _ = await collect(agent("refuse"), "hello")
    except ContentFilterError as error:
        return refused(error)
    return {"text": "".join(seen["pieces"])}


def citations(turn: ModelResponse) -> list[Any]:
    details = [turn.provider_details or {}, *(getattr(part, "provider_details", None) or {} for part in turn.parts)]
    return [a for detail in details for a in detail.get("annotations", ())]


@scenario
async def sources() -> dict[str, Any]:
    (turn,) = responses(await agent("cite").run("hello"))
    return {"text": text_of(turn), "sources": citations(turn)}


@scenario
async def sources_streamed() -> dict[str, Any]:
    _, result = await collect(agent("cite"), "hello")
    (turn,) = responses(result)
    return {"text": text_of(turn), "sources": citations(turn)}


@scenario
async def usage() -> dict[str, Any]:
    return tokens(await agent("usage").run("hello"))


@scenario
async def usage_streamed() -> dict[str, Any]:
    return tokens((await collect(agent("usage"), "hello"))[1])


@scenario
async def length() -> dict[str, Any]:
    (turn,) = responses(await agent("length").run("hello"))
    return {"text": text_of(turn), "finish": turn.finish_reason}


@scenario
async def structured() -> dict[str, Any]:
    result = await agent("json", output_type=NativeOutput(CityWeather)).run("Weather?")
    found: dict[str, Any] = result.output.model_dump()
    return found


@scenario
async def structured_streamed() -> dict[str, Any]:
    _, result = await collect(agent("json", output_type=NativeOutput(CityWeather)), "Weather?")
    found: dict[str, Any] = result.output.model_dump()
    return found


@scenario
async def stop() -> dict[str, Any]:
    result = await agent("stream").run("hello", model_settings={"stop_sequences": ["llo"]})
    return {"text": result.output, "finish": responses(result)[-1].finish_reason}


@scenario
async def stop_streamed() -> dict[str, Any]:
    seen, result = await collect(agent("stream", model_settings={"stop_sequences": ["llo"]}), "hello")
    return {"text": "".join(seen["pieces"]), "finish": [turn.finish_reason for turn in responses(result)]}


@scenario
async def extras() -> dict[str, Any]:
    extra = {"metadata": {"team": "red"}, "top_k": 3}
    settings: Any = {"openai_user": "ada", "extra_body": extra}
    arrived = json.loads((await agent("params").run("hello", model_settings=settings)).output)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
async def parameters() -> dict[str, Any]:
    settings: Any = {"temperature": 0.5, "max_tokens": 50, "seed": 7}
    prompt: Any = ["What is this?", BinaryContent(b"png", media_type="image/png")]
    result = await agent("params", instructions="Be brief.").run(prompt, model_settings=settings)
    arrived = json.loads(result.output)
    return {"params": arrived["params"], "messages": [message["role"] for message in arrived["messages"]]}


# --- tools: pydantic-ai runs them and asks again


async def converse(model: str) -> dict[str, Any]:
    made, weather = equipped(model)
    return conversation(await made.run(new_key()), weather)


async def converse_streamed(model: str) -> dict[str, Any]:
    made, weather = equipped(model)
    seen, result = await collect(made, new_key())
    assert len(seen["calls"]) == len(seen["answers"]) == len(weather.executed)
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
    except ModelHTTPError as error:
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
    assert provider.client.max_retries == 2
    return {"runs": (await expect_failure("fail-before"))["runs"]}


async def broken_stream(model: str) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[str] = []
    try:
        async with agent(model).run_stream(key) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)
                await asyncio.to_thread(release, key)
    except Exception as error:
        read = failure(error, key)
        return {"pieces": pieces, **{name: read[name] for name in ("error", "code", "runs")}}, error
    return {"pieces": pieces}, None


@scenario
async def fail_mid_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("fail-mid")
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
    return {**seen, "message": error.body["message"]}


@scenario
async def unknown_model() -> dict[str, Any]:
    return await expect_failure("nobody")


@scenario
async def bad_parameter() -> dict[str, Any]:
    try:
        await agent("echo").run("hello", model_settings={"temperature": 9})
    except ModelHTTPError as error:
        body: Any = error.body
        return {"status": error.status_code, "param": body["param"], "type": body["type"]}
    return {}


# --- leaving


@scenario
async def abandon() -> dict[str, Any]:
    key = new_key()
    pieces = []
    async with agent("stall").run_stream(key) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
            await result.cancel()
            break
    return {
        "pieces": pieces,
        "cancelled": await asyncio.to_thread(cancelled, key),
        "runs": await asyncio.to_thread(runs, key),
    }


@scenario
async def abandon_by_cancel() -> dict[str, Any]:
    key = new_key()
    reached = asyncio.Event()

    async def read() -> None:
        async with agent("stall").run_stream(key) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                reached.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    await asyncio.wait([task], timeout=10)
    return {"cancelled": await asyncio.to_thread(cancelled, key)}


@scenario
async def too_late() -> dict[str, Any]:
    key = new_key()
    patient = provider.client
    hasty = OpenAIProvider(openai_client=patient.with_options(timeout=2.0, max_retries=0))
    try:
        await Agent(OpenAIChatModel("stuck", provider=hasty)).run(key)
    except Exception as error:
        gone = await asyncio.to_thread(cancelled, key)
        return {"error": type(error.__cause__ or error).__name__, "cancelled": gone, "runs": runs(key)}
    return {}


main()
