"""The OpenAI Agents SDK with its Responses model: it runs tools itself, and keeps conversations in sessions."""

import asyncio
import json
import re
import uuid
from typing import Any

from agents import (
    Agent,
    CustomTool,
    ItemHelpers,
    MessageOutputItem,
    ModelBehaviorError,
    ModelRefusalError,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesCompactionSession,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    ToolCallItem,
    function_tool,
    set_tracing_disabled,
)
from driving import API_KEY, BASE_URL, Weather, cancelled, leaks, main, new_key, release, runs, scenario
from openai import APIError, AsyncOpenAI, BadRequestError, NotFoundError
from pydantic import BaseModel

set_tracing_disabled(True)  # traces go to OpenAI
client = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=20)


class CityWeather(BaseModel):
    city: str
    degrees: int


def agent(model: str, *, using: AsyncOpenAI = client, **options: Any) -> Agent[Any]:
    return Agent(name="tester", model=OpenAIResponsesModel(model=model, openai_client=using), **options)


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


async def collect(made: Agent[Any], prompt: Any, **options: Any) -> tuple[dict[str, list[Any]], Any]:
    seen: dict[str, list[Any]] = {"pieces": [], "reasoning": [], "finish": []}
    result = Runner.run_streamed(made, prompt, **options)
    async for event in result.stream_events():
        if piece := text_pieces(event):
            seen["pieces"].append(piece)
        if event.type == "raw_response_event":
            match event.data.type:
                case "response.reasoning_summary_text.delta":
                    seen["reasoning"].append(event.data.delta)
                case "response.completed" | "response.incomplete" | "response.failed":
                    seen["finish"].append(event.data.response.status)
    return seen, result


def items(result: Any, kind: str) -> list[Any]:
    return [item.raw_item for item in result.new_items if getattr(item.raw_item, "type", None) == kind]


def texts(result: Any) -> list[str]:
    return [ItemHelpers.text_message_output(item) for item in result.new_items if isinstance(item, MessageOutputItem)]


def summaries(result: Any) -> str:
    return "".join(part.text for item in items(result, "reasoning") for part in item.summary)


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


async def expect_failure(model: str, **settings: Any) -> dict[str, Any]:
    key = new_key()
    try:
        made = agent(model, model_settings=ModelSettings(**settings))
        return {"answer": (await Runner.run(made, key)).final_output}
    except APIError as error:
        return failure(error, key)


async def refused(prompt: Any = "hello", *, settings: Any = None, **options: Any) -> dict[str, Any]:
    """Make a request that the server must refuse."""
    try:
        await Runner.run(agent("echo", model_settings=settings or ModelSettings()), prompt, **options)
    except APIError as error:
        return {"status": getattr(error, "status_code", None), "code": error.code, "param": error.param}
    return {}


# --- answers


@scenario
async def plain() -> dict[str, Any]:
    return {"text": (await Runner.run(agent("echo"), "hello")).final_output}


@scenario
async def whole() -> dict[str, Any]:
    return {"text": (await Runner.run(agent("stream"), "hello")).final_output}


@scenario
async def streamed() -> dict[str, Any]:
    seen, _ = await collect(agent("stream"), "hello")
    return {"pieces": seen["pieces"], "finish": seen["finish"]}


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
async def unstored() -> dict[str, Any]:
    made = agent("stream", model_settings=ModelSettings(store=False))
    result = await Runner.run(made, "hello")
    seen, stream = await collect(made, "hello")
    kept = []
    for identity in (result.last_response_id, stream.last_response_id):
        try:
            await client.responses.retrieve(identity)
            kept.append(True)
        except NotFoundError:
            kept.append(False)
    return {"text": result.final_output, "pieces": seen["pieces"], "kept": kept}


@scenario
async def reasoning() -> dict[str, Any]:
    result = await Runner.run(agent("reason"), "hello")
    return {"reasoning": summaries(result), "text": result.final_output}


@scenario
async def reasoning_streamed() -> dict[str, Any]:
    seen, result = await collect(agent("reason"), "hello")
    assert summaries(result) == "".join(seen["reasoning"])
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


def citations(result: Any) -> list[Any]:
    found = [a for item in items(result, "message") for part in item.content for a in part.annotations]
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
async def usage() -> dict[str, Any]:
    return tokens(await Runner.run(agent("usage"), "hello"))


@scenario
async def usage_streamed() -> dict[str, Any]:
    return tokens((await collect(agent("usage"), "hello"))[1])


def cut_off(error: ModelBehaviorError) -> dict[str, Any]:
    """An answer that was cut off is an exception here, and its text is lost."""
    finish, reason = (re.search(pattern, str(error)) for pattern in (r"status=(\w+)", r"reason='(\w+)'"))
    return {"finish": finish and finish[1], "reason": reason and reason[1]}


@scenario
async def length() -> dict[str, Any]:
    try:
        return {"text": (await Runner.run(agent("length"), "hello")).final_output}
    except ModelBehaviorError as error:
        return cut_off(error)


@scenario
async def length_streamed() -> dict[str, Any]:
    try:
        return {"text": (await collect(agent("length"), "hello"))[0]["pieces"]}
    except ModelBehaviorError as error:
        return cut_off(error)


@scenario
async def structured() -> dict[str, Any]:
    result = await Runner.run(agent("json", output_type=CityWeather), "Weather?")
    return CityWeather.model_dump(result.final_output)


@scenario
async def structured_streamed() -> dict[str, Any]:
    _, result = await collect(agent("json", output_type=CityWeather), "Weather?")
    return CityWeather.model_dump(result.final_output)


@scenario
async def parameters() -> dict[str, Any]:
    settings = ModelSettings(temperature=0.5, max_tokens=50)
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
    return {
        "params": {name: arrived["params"][name] for name in ("temperature", "max_output_tokens")},
        "messages": [message["role"] for message in arrived["messages"]],
        "parts": [part["type"] for part in arrived["messages"][-1]["content"]],
    }


@scenario
async def extras() -> dict[str, Any]:
    settings = ModelSettings(metadata={"team": "red"}, extra_args={"user": "ada"}, extra_body={"top_k": 3})
    arrived = json.loads((await Runner.run(agent("params", model_settings=settings), "hello")).final_output)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


# --- tools: the SDK runs them and asks again


async def converse(model: str, **options: Any) -> dict[str, Any]:
    made, weather = equipped(model)
    result = await Runner.run(made, new_key(), **options)
    return {"executed": weather.executed, "texts": texts(result)}


async def converse_streamed(model: str, **options: Any) -> dict[str, Any]:
    made, weather = equipped(model)
    seen, result = await collect(made, new_key(), **options)
    return {"executed": weather.executed, "texts": texts(result), "finish": seen["finish"]}


@scenario
async def client_tool() -> dict[str, Any]:
    return await converse("client-tool")


@scenario
async def client_tool_streamed() -> dict[str, Any]:
    return await converse_streamed("client-tool")


@scenario
async def client_tool_by_previous_id() -> dict[str, Any]:
    return await converse_streamed("client-tool", auto_previous_response_id=True)


@scenario
async def client_tool_by_conversation() -> dict[str, Any]:
    conversation = await client.conversations.create()
    return await converse_streamed("client-tool", conversation_id=conversation.id)


@scenario
async def client_tool_by_session() -> dict[str, Any]:
    return await converse_streamed("client-tool", session=OpenAIConversationsSession(openai_client=client))


@scenario
async def two_tools() -> dict[str, Any]:
    return await converse("two-tools", auto_previous_response_id=True)


@scenario
async def two_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("two-tools")


@scenario
async def mixed_tools() -> dict[str, Any]:
    return await converse("mixed")


@scenario
async def mixed_tools_streamed() -> dict[str, Any]:
    return await converse_streamed("mixed", auto_previous_response_id=True)


def with_custom_tool() -> tuple[Agent[Any], list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []

    async def run_code(context: Any, code: str) -> str:
        calls.append({"name": context.tool_name, "input": code})
        return "42"

    tool = CustomTool(name="run_code", description="Runs Python", on_invoke_tool=run_code)
    return agent("custom-tool", tools=[tool]), calls


@scenario
async def custom_tool() -> dict[str, Any]:
    made, calls = with_custom_tool()
    result = await Runner.run(made, "hello")
    (call,) = calls
    return {**call, "text": result.final_output}


@scenario
async def custom_tool_streamed() -> dict[str, Any]:
    made, calls = with_custom_tool()
    _, result = await collect(made, "hello")
    (call,) = calls
    return {**call, "text": result.final_output}


def see_server_tool(result: Any, weather: Weather) -> dict[str, Any]:
    assert len([item for item in result.new_items if isinstance(item, ToolCallItem)]) == 1
    ran = [[item.name, json.loads(item.arguments), item.output] for item in items(result, "mcp_call")]
    return {"executed": weather.executed, "ran": ran, "texts": texts(result)}


@scenario
async def server_tool() -> dict[str, Any]:
    made, weather = equipped("server-tool")
    return see_server_tool(await Runner.run(made, "hello"), weather)


@scenario
async def server_tool_streamed() -> dict[str, Any]:
    made, weather = equipped("server-tool")
    return see_server_tool((await collect(made, "hello"))[1], weather)


@scenario
async def server_tool_failed() -> dict[str, Any]:
    _, result = await collect(agent("broken-tool"), "hello")
    (call,) = items(result, "mcp_call")
    return {"error": call.to_dict()["error"]["content"][0]["text"], "text": result.final_output}


# --- several turns


async def two_turns(following: Any, settings: Any = None, **options: Any) -> dict[str, Any]:
    """Ask an agent that thinks, looks and answers, then one that tells all it heard."""
    with_settings = {"model_settings": settings or ModelSettings()}
    _, result = await collect(agent("thorough", **with_settings), "one", **options)
    prompt, more = following(result)
    last = await Runner.run(agent("recall", **with_settings), prompt, **options, **more)
    return {"heard": last.final_output.split("\n")}


def everything(result: Any) -> tuple[Any, dict[str, Any]]:
    return [*result.to_input_list(), {"role": "user", "content": "two"}], {}


@scenario
async def turns_by_items() -> dict[str, Any]:
    return await two_turns(everything)


@scenario
async def turns_by_items_unstored() -> dict[str, Any]:
    return await two_turns(everything, ModelSettings(store=False))


@scenario
async def turns_by_previous_id() -> dict[str, Any]:
    return await two_turns(lambda result: ("two", {"previous_response_id": result.last_response_id}))


@scenario
async def turns_by_conversation() -> dict[str, Any]:
    conversation = await client.conversations.create()
    return await two_turns(lambda _: ("two", {}), conversation_id=conversation.id)


@scenario
async def turns_by_session() -> dict[str, Any]:
    return await two_turns(lambda _: ("two", {}), session=OpenAIConversationsSession(openai_client=client))


@scenario
async def turns_compacted() -> dict[str, Any]:
    session = OpenAIResponsesCompactionSession("test", SQLiteSession("test"), client=client)
    await Runner.run(agent("thorough"), "one", session=session)
    await session.run_compaction({"force": True})
    (item,) = await session.get_items()
    assert dict(item)["type"] == "compaction"
    last = await Runner.run(agent("recall"), "two", session=session)
    return {"heard": last.final_output.split("\n")}


def says(text: str) -> Any:
    return {"role": "user", "content": text}


def said_in(found: Any) -> list[str]:
    return [item["content"][0]["text"] for item in found]


@scenario
async def session_items() -> dict[str, Any]:
    session = OpenAIConversationsSession(openai_client=client)
    numbers = [str(number) for number in range(45)]
    await session.add_items([says(number) for number in numbers])  # 20 at a time
    first = session.session_id
    seen = {
        "all": said_in(await session.get_items()) == numbers,
        "last": said_in(await session.get_items(limit=2)),
        "popped": said_in([await session.pop_item(), await session.pop_item()]),
        "left": said_in(await session.get_items(limit=1)),
    }
    again = OpenAIConversationsSession(conversation_id=first, openai_client=client)
    seen["another"] = said_in(await again.get_items(limit=1))
    await session.clear_session()
    try:
        await client.conversations.retrieve(first)
    except NotFoundError as error:
        seen["cleared"] = error.code
    return {**seen, "empty": await session.get_items()}


@scenario
async def background_streamed() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    kinds: list[str] = []
    made = agent("slow", model_settings=ModelSettings(extra_args={"background": True}))
    async for event in Runner.run_streamed(made, key).stream_events():
        if event.type == "raw_response_event":
            kinds.append(event.data.type)
        if piece := text_pieces(event):
            pieces.append(piece)
            await asyncio.to_thread(release, key)
    return {"begins": kinds[:3], "pieces": pieces, "ends": kinds[-1], "runs": await asyncio.to_thread(runs, key)}


@scenario
async def repeated() -> dict[str, Any]:
    """Send a request twice, with a key that says that it is the same."""
    key = new_key()
    made = agent("counted", model_settings=ModelSettings(extra_headers={"Idempotency-Key": uuid.uuid4().hex}))
    first, second = [await Runner.run(made, key) for _ in range(2)]
    try:
        await Runner.run(made, f"{key} but another")
    except BadRequestError as error:
        other = error.status_code
    same = first.last_response_id == second.last_response_id
    return {"same": same, "texts": [first.final_output, second.final_output], "other": other}


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
async def fail_unstored() -> dict[str, Any]:
    return await expect_failure("fail-mid", store=False)


@scenario
async def retries() -> dict[str, Any]:
    assert client.max_retries == 2
    return {"runs": (await expect_failure("fail-before"))["runs"]}


async def broken_stream(model: str, **settings: Any) -> tuple[dict[str, Any], Any]:
    key = new_key()
    pieces: list[str] = []
    try:
        made = agent(model, model_settings=ModelSettings(**settings))
        async for event in Runner.run_streamed(made, key).stream_events():
            if piece := text_pieces(event):
                pieces.append(piece)
                await asyncio.to_thread(release, key)
    except APIError as error:
        read = failure(error, key)
        told = {name: read[name] for name in ("error", "code", "leaks", "runs")}
        return {"pieces": pieces, **told}, error
    return {"pieces": pieces}, None


@scenario
async def fail_mid_streamed() -> dict[str, Any]:
    seen, _ = await broken_stream("fail-mid")
    del seen["pieces"]  # the SDK raises as soon as it can, ahead of pieces it has read already
    return seen


@scenario
async def fail_late_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-late"))[0]


@scenario
async def fail_quiet_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-quiet"))[0]


@scenario
async def fail_unstored_streamed() -> dict[str, Any]:
    return (await broken_stream("fail-late", store=False))[0]


@scenario
async def give_up_streamed() -> dict[str, Any]:
    seen, error = await broken_stream("give-up")
    del seen["pieces"]
    return {**seen, "message": error.message}


@scenario
async def unknown_model() -> dict[str, Any]:
    key = new_key()
    try:
        await Runner.run(agent("nobody"), key)
    except APIError as error:
        told = {"status": getattr(error, "status_code", None), "code": error.code, "param": error.param}
        return {**told, "runs": runs(key)}
    return {}


@scenario
async def bad_parameter() -> dict[str, Any]:
    return await refused(settings=ModelSettings(temperature=9))


@scenario
async def unknown_previous() -> dict[str, Any]:
    return await refused(previous_response_id="resp_unknown")


@scenario
async def unknown_reference() -> dict[str, Any]:
    return await refused([{"type": "item_reference", "id": "msg_unknown"}])


@scenario
async def unknown_conversation() -> dict[str, Any]:
    return await refused(conversation_id="conv_unknown")


# --- leaving


async def leave(**settings: Any) -> dict[str, Any]:
    key = new_key()
    pieces = []
    result = Runner.run_streamed(agent("stall", model_settings=ModelSettings(**settings)), key)
    async for event in result.stream_events():
        if piece := text_pieces(event):
            pieces.append(piece)
            result.cancel()
    gone = await asyncio.to_thread(cancelled, key)
    return {"pieces": pieces, "cancelled": gone, "runs": await asyncio.to_thread(runs, key)}


@scenario
async def abandon() -> dict[str, Any]:
    return await leave()


@scenario
async def abandon_unstored() -> dict[str, Any]:
    return await leave(store=False)


@scenario
async def too_late() -> dict[str, Any]:
    key = new_key()
    hasty = client.with_options(timeout=1.0, max_retries=0)
    try:
        await Runner.run(agent("stuck", using=hasty), key)
    except APIError as error:
        gone = await asyncio.to_thread(cancelled, key)
        return {"error": type(error).__name__, "cancelled": gone, "runs": runs(key)}
    return {}


main()
