"""pydantic-ai with its Responses model, which validates strictly and runs its tools itself."""

import asyncio
import json
import re
import uuid
from typing import Any

from driving import API_KEY, BASE_URL, Weather, cancelled, leaks, main, new_key, release, runs, scenario
from openai import NotFoundError
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ContentFilterError, ModelAPIError, ModelHTTPError
from pydantic_ai.messages import (
    BinaryContent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
)
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE_URL, api_key=API_KEY)


class CityWeather(BaseModel):
    """Weather of a city."""

    city: str
    degrees: int


def agent(model: str, **options: Any) -> Agent[None, Any]:
    return Agent(OpenAIResponsesModel(model, provider=provider), **options)


def equipped(model: str, **options: Any) -> tuple[Agent[None, Any], Weather]:
    weather = Weather()
    made = agent(model, **options)

    @made.tool_plain
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return weather(city=city)

    return made, weather


def responses(result: Any) -> list[ModelResponse]:
    return [message for message in result.all_messages() if isinstance(message, ModelResponse)]


def parts(response: ModelResponse, kind: Any) -> list[Any]:
    return [part for part in response.parts if isinstance(part, kind)]


def texts(result: Any) -> list[str]:
    return [part.content for response in responses(result) for part in parts(response, TextPart)]


def thinking_of(response: ModelResponse) -> str:
    return "".join(part.content for part in parts(response, ThinkingPart))


def conversation(result: Any, weather: Weather) -> dict[str, Any]:
    return {
        "executed": sorted(weather.executed, key=str),  # it runs the tools of a turn at the same time
        "texts": texts(result),
        "finish": [turn.finish_reason for turn in responses(result)],
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


async def collect(made: Agent[None, Any], prompt: str, **options: Any) -> tuple[dict[str, Any], Any]:
    """Read every event of a run; text comes in `part_start` and in `part_delta` events."""
    seen: dict[str, list[Any]] = {"pieces": [], "reasoning": [], "calls": [], "answers": []}
    result = None
    async with made.run_stream_events(prompt, **options) as events:
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


async def expect_failure(model: str, **settings: Any) -> dict[str, Any]:
    key = new_key()
    try:
        return {"answer": (await agent(model).run(key, model_settings=settings)).output}  # type: ignore[arg-type]
    except ModelHTTPError as error:
        return failure(error, key)


async def refused(**settings: Any) -> dict[str, Any]:
    """Make a request that the server must refuse."""
    try:
        await agent("echo").run("hello", model_settings=settings)  # type: ignore[arg-type]
    except ModelHTTPError as error:
        body: Any = error.body
        return {"status": error.status_code, "code": body["code"], "param": body["param"]}
    return {}


# --- answers


@scenario
async def plain() -> dict[str, Any]:
    result = await agent("echo").run("hello")
    return {"text": result.output, "finish": responses(result)[-1].finish_reason}


@scenario
async def whole() -> dict[str, Any]:
    return {"text": (await agent("stream").run("hello")).output}


@scenario
async def streamed() -> dict[str, Any]:
    seen, result = await collect(agent("stream"), "hello")
    return {"pieces": seen["pieces"], "finish": [turn.finish_reason for turn in responses(result)]}


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
async def unstored() -> dict[str, Any]:
    made = agent("stream", model_settings={"openai_store": False})
    result = await made.run("hello")
    seen, stream = await collect(made, "hello")
    kept = []
    for turn in (*responses(result), *responses(stream)):
        try:
            await provider.client.responses.retrieve(turn.provider_response_id or "")
            kept.append(True)
        except NotFoundError:
            kept.append(False)
    return {"text": result.output, "pieces": seen["pieces"], "kept": kept}


@scenario
async def reasoning() -> dict[str, Any]:
    result = await agent("reason").run("hello")
    (turn,) = responses(result)
    return {"reasoning": thinking_of(turn), "text": result.output}


@scenario
async def reasoning_streamed() -> dict[str, Any]:
    seen, _ = await collect(agent("reason"), "hello")
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


def refused_by(error: ContentFilterError) -> dict[str, Any]:
    """A refusal is an exception here, and its text stands in the message."""
    said = re.search(r"Refusal: '(.*?)'", str(error))
    return {"refusal": said and said[1], "text": ""}


@scenario
async def refusal() -> dict[str, Any]:
    try:
        return {"text": (await agent("refuse").run("hello")).output}
    except ContentFilterError as error:
        return refused_by(error)


@scenario
async def refusal_streamed() -> dict[str, Any]:
    try:
        seen, _ = await collect(agent("refuse"), "hello")
    except ContentFilterError as error:
        return refused_by(error)
    return {"text": "".join(seen["pieces"])}


def citations(result: Any) -> list[Any]:
    found = [c for turn in responses(result) for part in parts(turn, TextPart) for c in part.citations or ()]
    return [
        [source.url, source.title, citation.anchor.start, citation.anchor.end]
        for citation in found
        for source in citation.sources
    ]


@scenario
async def sources() -> dict[str, Any]:
    result = await agent("cite").run("hello")
    return {"text": result.output, "sources": citations(result)}


@scenario
async def sources_streamed() -> dict[str, Any]:
    seen, result = await collect(agent("cite"), "hello")
    return {"text": "".join(seen["pieces"]), "sources": citations(result)}


@scenario
async def usage() -> dict[str, Any]:
    return tokens(await agent("usage").run("hello"))


@scenario
async def usage_streamed() -> dict[str, Any]:
    return tokens((await collect(agent("usage"), "hello"))[1])


def cut_off(result: Any) -> dict[str, Any]:
    (turn,) = responses(result)
    return {
        "text": result.output,
        "finish": turn.finish_reason,
        "reason": (turn.provider_details or {}).get("finish_reason"),
    }


@scenario
async def length() -> dict[str, Any]:
    return cut_off(await agent("length").run("hello"))


@scenario
async def length_streamed() -> dict[str, Any]:
    return cut_off((await collect(agent("length"), "hello"))[1])


@scenario
async def structured() -> dict[str, Any]:
    result = await agent("json", output_type=NativeOutput(CityWeather)).run("Weather?")
    return CityWeather.model_dump(result.output)


@scenario
async def structured_streamed() -> dict[str, Any]:
    _, result = await collect(agent("json", output_type=NativeOutput(CityWeather)), "Weather?")
    return CityWeather.model_dump(result.output)


@scenario
async def parameters() -> dict[str, Any]:
    settings: Any = {"temperature": 0.5, "max_tokens": 50}
    prompt: Any = ["What is this?", BinaryContent(b"png", media_type="image/png")]
    result = await agent("params", instructions="Be brief.").run(prompt, model_settings=settings)
    arrived = json.loads(result.output)
    return {
        "params": {name: arrived["params"][name] for name in ("temperature", "max_output_tokens")},
        "messages": [message["role"] for message in arrived["messages"]],
        "parts": [part["type"] for part in arrived["messages"][-1]["content"]],
    }


@scenario
async def extras() -> dict[str, Any]:
    extra = {"metadata": {"team": "red"}, "top_k": 3}
    settings: Any = {"openai_user": "ada", "extra_body": extra}
    arrived = json.loads((await agent("params").run("hello", model_settings=settings)).output)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


# --- tools: pydantic-ai runs them and asks again


async def converse(model: str, **settings: Any) -> dict[str, Any]:
    made, weather = equipped(model, model_settings=settings)
    return conversation(await made.run(new_key()), weather)


async def converse_streamed(model: str, **settings: Any) -> dict[str, Any]:
    made, weather = equipped(model, model_settings=settings)
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
async def client_tool_by_previous_id() -> dict[str, Any]:
    return await converse_streamed("client-tool", openai_previous_response_id="auto")


@scenario
async def client_tool_by_conversation() -> dict[str, Any]:
    made = await provider.client.conversations.create()
    return await converse_streamed("client-tool", openai_conversation_id=made.id)


@scenario
async def two_tools() -> dict[str, Any]:
    return await converse("two-tools", openai_previous_response_id="auto")


@scenario
async def two_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("two-tools")


@scenario
async def mixed_tools() -> dict[str, Any]:
    return await converse("mixed")


@scenario
async def mixed_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("mixed", openai_previous_response_id="auto")


def see_server_tool(result: Any, weather: Weather) -> dict[str, Any]:
    (turn,) = responses(result)
    returned = {part.tool_call_id: part.content for part in parts(turn, NativeToolReturnPart)}
    ran = [
        [part.args_as_dict()["tool_name"], part.args_as_dict()["tool_args"], returned[part.tool_call_id]["output"]]
        for part in parts(turn, NativeToolCallPart)
    ]
    return {"executed": weather.executed, "ran": ran, "texts": texts(result), "finish": turn.finish_reason}


@scenario
async def server_tool() -> dict[str, Any]:
    made, weather = equipped("server-tool")
    return see_server_tool(await made.run("hello"), weather)


@scenario
async def server_tool_streamed() -> dict[str, Any]:
    made, weather = equipped("server-tool")
    return see_server_tool((await collect(made, "hello"))[1], weather)


@scenario
async def server_tool_failed() -> dict[str, Any]:
    _, result = await collect(agent("broken-tool"), "hello")
    (returned,) = parts(responses(result)[0], NativeToolReturnPart)
    return {"error": returned.content["error"]["content"][0]["text"], "text": result.output}


# --- several turns


async def two_turns(**settings: Any) -> dict[str, Any]:
    """Ask an agent that thinks, looks and answers, then one that tells all it heard."""
    options: Any = {"model_settings": settings}
    _, result = await collect(agent("thorough"), "one", **options)
    last = await agent("recall").run("two", message_history=result.all_messages(), **options)
    return {"heard": last.output.split("\n")}


@scenario
async def turns_by_items() -> dict[str, Any]:
    # Without it no item has its id, and calls of the agent's own tools are left out.
    return await two_turns(openai_send_reasoning_ids=True)


@scenario
async def turns_by_items_unstored() -> dict[str, Any]:
    return await two_turns(openai_store=False)


@scenario
async def turns_by_previous_id() -> dict[str, Any]:
    return await two_turns(openai_previous_response_id="auto")


@scenario
async def turns_by_conversation() -> dict[str, Any]:
    made = await provider.client.conversations.create()
    return await two_turns(openai_conversation_id=made.id)


# --- in the background


@scenario
async def background() -> dict[str, Any]:
    key = new_key()
    made = agent("slow", model_settings={"openai_background": True})
    await asyncio.to_thread(release, key)
    result = await made.run(key)
    (turn,) = responses(result)
    return {"text": result.output, "finish": turn.finish_reason, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def background_streamed() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    made = agent("slow", model_settings={"openai_background": True})
    async with made.run_stream(key) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
            await asyncio.to_thread(release, key)
    return {"pieces": pieces, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def repeated() -> dict[str, Any]:
    """Send a request twice, with a key that says that it is the same."""
    key = new_key()
    made = agent("counted", model_settings={"extra_headers": {"Idempotency-Key": uuid.uuid4().hex}})
    first, second = [await made.run(key) for _ in range(2)]
    try:
        await made.run(f"{key} but another")
    except ModelHTTPError as error:
        other = error.status_code
    same = responses(first)[0].provider_response_id == responses(second)[0].provider_response_id
    return {"same": same, "texts": [first.output, second.output], "other": other}


@scenario
async def background_cancelled() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    async with agent("stall", model_settings={"openai_background": True}).run_stream(key) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
            await result.cancel()
            break
    gone = await asyncio.to_thread(cancelled, key)
    return {"text": "".join(pieces), "cancelled": gone, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def background_failed() -> dict[str, Any]:
    key = new_key()
    try:
        await agent("fail-mid", model_settings={"openai_background": True}).run(key)
    except ModelAPIError as error:
        code = str(error).partition(":")[0]
        return {"code": code, "leaks": leaks(error), "runs": await asyncio.to_thread(runs, key)}
    return {}


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
async def fail_unstored() -> dict[str, Any]:
    return await expect_failure("fail-mid", openai_store=False)


@scenario
async def retries() -> dict[str, Any]:
    assert provider.client.max_retries == 2
    return {"runs": (await expect_failure("fail-before"))["runs"]}


async def broken_stream(model: str, **settings: Any) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[str] = []
    try:
        async with agent(model, model_settings=settings).run_stream(key) as result:
            async for piece in result.stream_text(delta=True, debounce_by=None):
                pieces.append(piece)
                await asyncio.to_thread(release, key)
    except Exception as error:
        read = failure(error, key)
        told = {name: read[name] for name in ("error", "code", "leaks", "runs")}
        return {"pieces": pieces, **told}, error
    return {"pieces": pieces}, None


@scenario
async def fail_mid_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-mid"))[0]


@scenario
async def fail_late_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-late"))[0]


@scenario
async def fail_quiet_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-quiet"))[0]


@scenario
async def fail_unstored_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-late", openai_store=False))[0]


@scenario
async def give_up_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("give-up")
    return {**seen, "message": error.body["message"]}


@scenario
async def unknown_model() -> dict[str, Any]:
    key = new_key()
    try:
        await agent("nobody").run(key)
    except ModelHTTPError as error:
        body: Any = error.body
        return {"status": error.status_code, "code": body["code"], "param": body["param"], "runs": runs(key)}
    return {}


@scenario
async def bad_parameter() -> dict[str, Any]:
    return await refused(temperature=9)


@scenario
async def unknown_previous() -> dict[str, Any]:
    return await refused(openai_previous_response_id="resp_unknown")


@scenario
async def unknown_conversation() -> dict[str, Any]:
    return await refused(openai_conversation_id="conv_unknown")


# --- leaving


async def leave(**settings: Any) -> dict[str, Any]:
    key = new_key()
    pieces = []
    async with agent("stall", model_settings=settings).run_stream(key) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
            await result.cancel()
            break
    gone = await asyncio.to_thread(cancelled, key)
    return {"pieces": pieces, "cancelled": gone, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def abandon() -> dict[str, Any]:
    return await leave()


@scenario
async def abandon_unstored() -> dict[str, Any]:
    return await leave(openai_store=False)


@scenario
async def too_late() -> dict[str, Any]:
    key = new_key()
    hasty = OpenAIProvider(openai_client=provider.client.with_options(timeout=1.0, max_retries=0))
    try:
        await Agent(OpenAIResponsesModel("stuck", provider=hasty)).run(key)
    except Exception as error:
        gone = await asyncio.to_thread(cancelled, key)
        return {"error": type(error.__cause__ or error).__name__, "cancelled": gone, "runs": runs(key)}
    return {}


main()
