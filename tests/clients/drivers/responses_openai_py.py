"""The official `openai` package for Python on the Responses API: one script for its 2.x and 3.x lines."""

import json
import time
import uuid
from typing import Any

import openai
from driving import (
    API_KEY,
    BASE_URL,
    FLAT_WEATHER_TOOL,
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

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=20)
responses: Any = client.responses

TOOLS: Any = [FLAT_WEATHER_TOOL]
CODE_TOOL = {"type": "custom", "name": "run_code", "description": "Runs Python"}


class CityWeather(BaseModel):
    city: str
    degrees: int


def ask(model: str, text: Any = "hello", **options: Any) -> Any:
    return responses.create(model=model, input=text, **options)


def collect(stream: Any) -> dict[str, Any]:
    """Read a stream the way most code does."""
    seen: dict[str, Any] = {"pieces": [], "reasoning": [], "refusal": [], "sources": [], "finish": []}
    for event in stream:
        match event.type:
            case "response.output_text.delta":
                seen["pieces"].append(event.delta)
            case "response.reasoning_summary_text.delta":
                seen["reasoning"].append(event.delta)
            case "response.refusal.delta":
                seen["refusal"].append(event.delta)
            case "response.output_text.annotation.added":
                seen["sources"].append(event.annotation)
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                seen["finish"].append(event.response.status)
                seen["response"] = event.response
    return seen


def texts(response: Any) -> list[str]:
    """Return the text of each message."""
    return ["".join(part.text for part in item.content) for item in response.output if item.type == "message"]


def summaries(response: Any) -> str:
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.summary)


def refusals(response: Any) -> str:
    parts = [part for item in response.output if item.type == "message" for part in item.content]
    return "".join(part.refusal for part in parts if part.type == "refusal")


def annotations(response: Any) -> list[Any]:
    return [a for item in response.output for part in item.content for a in part.annotations]


def citations(found: Any) -> list[list[Any]]:
    # The event of an annotation does not say which kind it is, so the package leaves a dictionary.
    plain = [a if isinstance(a, dict) else a.model_dump() for a in found]
    return [[a[key] for key in ("url", "title", "start_index", "end_index")] for a in plain]


def ran(response: Any) -> list[list[Any]]:
    """Return what the agent's own tools did."""
    return [[i.name, json.loads(i.arguments), i.output] for i in response.output if i.type == "mcp_call"]


def tokens(usage: Any) -> dict[str, int]:
    return {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "total": usage.total_tokens,
        "cached": usage.input_tokens_details.cached_tokens,
        "reasoning": usage.output_tokens_details.reasoning_tokens,
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


def expect_failure(model: str, **options: Any) -> dict[str, Any]:
    key = new_key()
    try:
        answer = ask(model, key, **options)
    except openai.APIError as error:
        return failure(error, key)
    return {"answer": str(answer)}


def refused(**options: Any) -> dict[str, Any]:
    """Make a request that the server must refuse."""
    try:
        responses.create(model="echo", **options)
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "param": error.param}
    return {}


def missing(call: Any) -> Any:
    """Return the code with which `call` is told that there is nothing."""
    try:
        call()
    except openai.NotFoundError as error:
        return error.code
    return None


def is_kept(response_id: str) -> bool:
    return missing(lambda: responses.retrieve(response_id)) != "response_not_found"


# --- answers


@scenario
def plain() -> dict[str, Any]:
    answer = ask("echo")
    (message,) = answer.output
    return {"text": answer.output_text, "role": message.role, "finish": answer.status}


@scenario
def whole() -> dict[str, Any]:
    return {"text": ask("stream").output_text}


@scenario
def streamed() -> dict[str, Any]:
    seen = collect(ask("stream", stream=True))
    return {"pieces": seen["pieces"], "finish": seen["finish"]}


@scenario
async def streamed_async() -> dict[str, Any]:
    concurrent = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, timeout=20)
    async with concurrent, concurrent.responses.stream(model="stream", input="hello") as stream:
        final = await stream.get_final_response()
    return {"text": final.output_text}


@scenario
def stream_helper() -> dict[str, Any]:
    with responses.stream(model="stream", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return {
        "text": final.output_text,
        "finish": final.status,
        "deltas": [event.delta for event in events if event.type == "response.output_text.delta"],
        "done": [event.text for event in events if event.type == "response.output_text.done"],
    }


@scenario
def live() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    for event in ask("slow", key, stream=True):
        if event.type == "response.output_text.delta":
            pieces.append(event.delta)
            release(key)
    return {"pieces": pieces, "runs": runs(key)}


@scenario
def quiet() -> dict[str, Any]:
    return {"text": "".join(collect(ask("quiet", stream=True))["pieces"])}


@scenario
def unstored() -> dict[str, Any]:
    answer = ask("stream", store=False)
    seen = collect(ask("stream", store=False, stream=True))
    kept = [is_kept(response.id) for response in (answer, seen["response"])]
    return {"text": answer.output_text, "pieces": seen["pieces"], "kept": kept}


@scenario
def reasoning() -> dict[str, Any]:
    answer = ask("reason")
    return {"reasoning": summaries(answer), "text": answer.output_text}


@scenario
def reasoning_streamed() -> dict[str, Any]:
    seen = collect(ask("reason", stream=True))
    return {"reasoning": "".join(seen["reasoning"]), "text": "".join(seen["pieces"])}


@scenario
def refusal() -> dict[str, Any]:
    answer = ask("refuse")
    return {"refusal": refusals(answer), "text": answer.output_text}


@scenario
def refusal_streamed() -> dict[str, Any]:
    seen = collect(ask("refuse", stream=True))
    return {"refusal": "".join(seen["refusal"]), "text": "".join(seen["pieces"])}


@scenario
def sources() -> dict[str, Any]:
    answer = ask("cite")
    return {"text": answer.output_text, "sources": citations(annotations(answer))}


@scenario
def sources_streamed() -> dict[str, Any]:
    seen = collect(ask("cite", stream=True))
    assert citations(seen["sources"]) == citations(annotations(seen["response"]))
    return {"text": "".join(seen["pieces"]), "sources": citations(seen["sources"])}


@scenario
def usage() -> dict[str, Any]:
    return tokens(ask("usage").usage)


@scenario
def usage_streamed() -> dict[str, Any]:
    return tokens(collect(ask("usage", stream=True))["response"].usage)


@scenario
def length() -> dict[str, Any]:
    answer = ask("length")
    return {"text": answer.output_text, "finish": answer.status, "reason": answer.incomplete_details.reason}


@scenario
def length_streamed() -> dict[str, Any]:
    seen = collect(ask("length", stream=True))
    (finish,) = seen["finish"]
    return {"text": "".join(seen["pieces"]), "finish": finish, "reason": seen["response"].incomplete_details.reason}


@scenario
def structured() -> dict[str, Any]:
    parsed = responses.parse(model="json", input="Weather?", text_format=CityWeather).output_parsed
    return CityWeather.model_dump(parsed)


@scenario
def structured_streamed() -> dict[str, Any]:
    with responses.stream(model="json", input="Weather?", text_format=CityWeather) as stream:
        parsed = stream.get_final_response().output_parsed
    return CityWeather.model_dump(parsed)


def with_picture() -> Any:
    return [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,cG5n", "detail": "auto"},
            ],
        }
    ]


@scenario
def parameters() -> dict[str, Any]:
    answer = ask("params", with_picture(), instructions="Be brief.", temperature=0.5, max_output_tokens=50)
    arrived = json.loads(answer.output_text)
    return {
        "params": {name: arrived["params"][name] for name in ("temperature", "max_output_tokens")},
        "messages": [message["role"] for message in arrived["messages"]],
        "parts": [part["type"] for part in arrived["messages"][-1]["content"]],
    }


@scenario
def extras() -> dict[str, Any]:
    answer = ask("params", user="ada", metadata={"team": "red"}, extra_body={"top_k": 3})
    arrived = json.loads(answer.output_text)
    return {name: arrived[name] for name in ("extra", "user", "metadata")}


@scenario
def echoed() -> dict[str, Any]:
    said = {"instructions": "Be brief.", "metadata": {"team": "red"}, "temperature": 0.5, "max_output_tokens": 50}
    answer = ask("echo", **said)
    return {"model": answer.model, **{name: getattr(answer, name) for name in said}}


# --- tools


def converse(model: str, turn: Any, following: Any, **first: Any) -> dict[str, Any]:
    """Answer calls until there are none; `turn` makes one request, `following` what the next one sends."""
    weather = Weather()
    seen: dict[str, Any] = {"executed": weather.executed, "texts": [], "finish": []}
    question: dict[str, Any] = {"input": [{"role": "user", "content": new_key()}], **first}
    for _ in range(3):
        answer = turn(model=model, tools=TOOLS, **question)
        seen["finish"].append(answer.status)
        seen["texts"] += texts(answer)
        calls = [item for item in answer.output if item.type == "function_call"]
        if not calls:
            break
        outputs = []
        for call in calls:
            assert call.name == "get_weather"
            said = weather(**json.loads(call.arguments))
            outputs.append({"type": "function_call_output", "call_id": call.call_id, "output": said})
        question = following(question, answer, outputs)
    return seen


def streamed_turn(**question: Any) -> Any:
    with responses.stream(**question) as stream:
        return stream.get_final_response()


def by_items(question: Any, answer: Any, new: Any) -> dict[str, Any]:
    """Send everything again, as it was read."""
    return {"input": [*question["input"], *(item.to_dict() for item in answer.output), *new]}


def by_previous_id(question: Any, answer: Any, new: Any) -> dict[str, Any]:
    return {"input": new, "previous_response_id": answer.id}


def by_reference(question: Any, answer: Any, new: Any) -> dict[str, Any]:
    """Name the items of the answer by their ids."""
    references = [{"type": "item_reference", "id": item.id} for item in answer.output]
    return {"input": [*question["input"], *references, *new]}


def by_conversation(question: Any, answer: Any, new: Any) -> dict[str, Any]:
    return {"input": new, "conversation": question["conversation"]}


@scenario
def client_tool() -> dict[str, Any]:
    return converse("client-tool", responses.create, by_items)


@scenario
def client_tool_streamed() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, by_items)


@scenario
def client_tool_by_previous_id() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, by_previous_id)


@scenario
def client_tool_by_reference() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, by_reference)


@scenario
def client_tool_by_conversation() -> dict[str, Any]:
    return converse("client-tool", streamed_turn, by_conversation, conversation=client.conversations.create().id)


@scenario
def two_tools() -> dict[str, Any]:
    return converse("two-tools", responses.create, by_previous_id)


@scenario
def two_tools_streamed() -> dict[str, Any]:
    return converse("two-tools", streamed_turn, by_items)


@scenario
def mixed_tools() -> dict[str, Any]:
    return converse("mixed", responses.create, by_items)


@scenario
def mixed_tools_streamed() -> dict[str, Any]:
    return converse("mixed", streamed_turn, by_previous_id)


def use_custom_tool(turn: Any) -> dict[str, Any]:
    first = turn(model="custom-tool", input="hello", tools=[CODE_TOOL])
    (call,) = first.output
    answered = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "42"}
    second = turn(model="custom-tool", input=[answered], tools=[CODE_TOOL], previous_response_id=first.id)
    return {"name": call.name, "input": call.input, "text": second.output_text}


@scenario
def custom_tool() -> dict[str, Any]:
    return use_custom_tool(responses.create)


@scenario
def custom_tool_streamed() -> dict[str, Any]:
    return use_custom_tool(streamed_turn)


def see_server_tool(response: Any) -> dict[str, Any]:
    calls = [item for item in response.output if item.type == "function_call"]
    return {"executed": calls, "ran": ran(response), "texts": texts(response), "finish": response.status}


@scenario
def server_tool() -> dict[str, Any]:
    return see_server_tool(ask("server-tool", tools=TOOLS))


@scenario
def server_tool_streamed() -> dict[str, Any]:
    return see_server_tool(streamed_turn(model="server-tool", input="hello", tools=TOOLS))


@scenario
def server_tool_failed() -> dict[str, Any]:
    answer = streamed_turn(model="broken-tool", input="hello")
    (call,) = [item for item in answer.output if item.type == "mcp_call"]
    return {"error": call.to_dict()["error"]["content"][0]["text"], "text": answer.output_text}


# --- several turns


def two_turns(following: Any, **first: Any) -> dict[str, Any]:
    """Ask an agent that thinks, looks and answers, then one that tells all it heard."""
    question: dict[str, Any] = {"input": [{"role": "user", "content": "one"}], **first}
    answer = streamed_turn(model="thorough", **question)
    last = ask_again(following(question, answer, [{"role": "user", "content": "two"}]))
    return {"heard": last.output_text.split("\n")}


def ask_again(question: Any) -> Any:
    return responses.create(model="recall", **question)


@scenario
def turns_by_items() -> dict[str, Any]:
    return two_turns(by_items)


@scenario
def turns_by_items_unstored() -> dict[str, Any]:
    def following(question: Any, answer: Any, new: Any) -> dict[str, Any]:
        return {**by_items(question, answer, new), "store": False}

    return two_turns(following, store=False)


@scenario
def turns_by_previous_id() -> dict[str, Any]:
    return two_turns(by_previous_id)


@scenario
def turns_by_reference() -> dict[str, Any]:
    return two_turns(by_reference)


@scenario
def turns_by_conversation() -> dict[str, Any]:
    conversation = client.conversations.create()
    return two_turns(by_conversation, conversation=conversation.id)


@scenario
def turns_compacted() -> dict[str, Any]:
    first = ask("thorough", "one")
    compacted: Any = responses.compact(model="thorough", previous_response_id=first.id)
    (item,) = compacted.output
    assert item.type == "compaction"
    again = ask("recall", [item.to_dict(), {"role": "user", "content": "two"}])
    return {"heard": again.output_text.split("\n")}


def said_in(items: Any) -> list[str]:
    return [item.content[0].text for item in items]


def says(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


@scenario
def conversation_items() -> dict[str, Any]:
    conversations: Any = client.conversations
    made = conversations.create(items=[says("one")], metadata={"team": "red"})
    changed = conversations.update(made.id, metadata={"team": "blue"})
    added = conversations.items.create(made.id, items=[says("two"), says("three"), says("four")]).data
    after_delete = conversations.items.delete(added[1].id, conversation_id=made.id)
    seen = {
        "metadata": [made.metadata, changed.metadata, conversations.retrieve(made.id).metadata],
        "added": said_in(added),
        "one": conversations.items.retrieve(added[0].id, conversation_id=made.id).content[0].text,
        "same": after_delete.id == made.id,
        # A page at a time: the package asks for the next by itself.
        "oldest_first": said_in(conversations.items.list(made.id, order="asc", limit=2)),
        "newest_first": said_in(conversations.items.list(made.id, limit=2)),
    }
    deleted = conversations.delete(made.id)
    return {**seen, "deleted": deleted.deleted, "missing": missing(lambda: conversations.retrieve(made.id))}


# --- in the background


def poll(response: Any) -> Any:
    deadline = time.monotonic() + 20
    while response.status in {"queued", "in_progress"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        response = responses.retrieve(response.id)
    return response


@scenario
def background() -> dict[str, Any]:
    key = new_key()
    first = ask("slow", key, background=True)
    release(key)
    last = poll(first)
    return {"first": first.status, "finish": last.status, "text": last.output_text, "runs": runs(key)}


@scenario
def background_streamed() -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    kinds: list[str] = []
    for event in ask("slow", key, background=True, stream=True):
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            pieces.append(event.delta)
            release(key)
    return {"begins": kinds[:3], "pieces": pieces, "ends": kinds[-1], "runs": runs(key)}


def leave_early(key: str) -> tuple[str, int, list[str]]:
    """Start a run in the background and leave its stream at the first word; return its id and how far one came."""
    pieces: list[str] = []
    with ask("stepwise", key, background=True, stream=True) as stream:
        for event in stream:
            if event.type == "response.created":
                identity = event.response.id
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
                break
    return identity, event.sequence_number, pieces


@scenario
def background_resumed() -> dict[str, Any]:
    key = new_key()
    identity, number, before = leave_early(key)
    after: list[str] = []
    numbers: list[int] = []
    with responses.retrieve(identity, stream=True, starting_after=number) as stream:
        release(key)
        for event in stream:
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                after.append(event.delta)
    gapless = numbers == list(range(number + 1, number + 1 + len(numbers)))
    return {"before": before, "after": after, "gapless": gapless, "finish": event.response.status, "runs": runs(key)}


@scenario
def background_resumed_by_helper() -> dict[str, Any]:
    key = new_key()
    identity, number, before = leave_early(key)
    release(key)
    with responses.stream(response_id=identity, starting_after=number) as stream:
        events = list(stream)
        final = stream.get_final_response()
    after = [event.delta for event in events if event.type == "response.output_text.delta"]
    return {"before": before, "after": after, "text": final.output_text, "reasoning": summaries(final)}


@scenario
def background_cancelled() -> dict[str, Any]:
    key = new_key()
    with ask("stall", key, background=True, stream=True) as stream:
        for event in stream:
            if event.type == "response.created":
                identity = event.response.id
            if event.type == "response.output_text.delta":
                break
    first = responses.cancel(identity)
    again = responses.cancel(identity)
    last = responses.retrieve(identity)
    return {
        "finish": [first.status, again.status, last.status],
        "text": last.output_text,
        "cancelled": cancelled(key),
        "runs": runs(key),
    }


@scenario
def background_failed() -> dict[str, Any]:
    key = new_key()
    last = poll(ask("fail-mid", key, background=True))
    return {
        "finish": last.status,
        "code": last.error.code,
        "leaks": "secret detail" in last.to_json(),
        "runs": runs(key),
    }


# --- what is stored


@scenario
def retrieved() -> dict[str, Any]:
    made = ask("thorough", metadata={"team": "red"})
    return {"same": responses.retrieve(made.id).to_dict() == made.to_dict()}


@scenario
def replayed() -> dict[str, Any]:
    """Take up a stream that has ended, after each of its events."""
    events = list(ask("thorough", stream=True))

    def again(**options: Any) -> list[Any]:
        return list(responses.retrieve(events[0].response.id, stream=True, **options))

    rests = [again(starting_after=number) for number in range(len(events))]
    return {"whole": again() == events, "rests": rests == [events[number + 1 :] for number in range(len(events))]}


@scenario
def input_items() -> dict[str, Any]:
    made = ask("recall", [{"role": "user", "content": text} for text in ("one", "two", "three")])
    listed: Any = responses.input_items
    return {
        "newest_first": said_in(listed.list(made.id, limit=2)),
        "oldest_first": said_in(listed.list(made.id, order="asc", limit=1)),
    }


@scenario
def deleted() -> dict[str, Any]:
    made = ask("echo")
    responses.delete(made.id)
    return {"missing": [missing(lambda: responses.retrieve(made.id)), missing(lambda: responses.delete(made.id))]}


@scenario
def counted() -> dict[str, Any]:
    few, many = (responses.input_tokens.count(model="echo", input=text) for text in ("hello", "hello " * 100))
    return {"object": few.object, "grows": 0 < few.input_tokens < many.input_tokens}


@scenario
def repeated() -> dict[str, Any]:
    """Send a request twice, with a key that says that it is the same."""
    key = new_key()
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (ask("counted", key, extra_headers=headers) for _ in range(2))
    try:
        ask("counted", f"{key} but another", extra_headers=headers)
    except openai.BadRequestError as error:
        other = error.status_code
    return {"same": first.id == second.id, "texts": [first.output_text, second.output_text], "other": other}


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
def fail_unstored() -> dict[str, Any]:
    return expect_failure("fail-mid", store=False)


@scenario
def retries() -> dict[str, Any]:
    assert client.max_retries == 2
    return {"runs": expect_failure("fail-before")["runs"]}


def broken_stream(model: str, **options: Any) -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    try:
        for event in ask(model, key, stream=True, **options):
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
                release(key)
    except openai.APIError as error:
        read = failure(error, key)
        told = {name: read[name] for name in ("error", "code", "leaks", "runs")}
        return {"pieces": pieces, **told, "message": error.message}
    return {"pieces": pieces}


@scenario
def fail_mid_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-mid")
    del seen["message"]
    return seen


@scenario
def fail_late_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-late")
    del seen["message"]
    return seen


@scenario
def fail_quiet_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-quiet")
    del seen["message"]
    return seen


@scenario
def fail_unstored_streamed() -> dict[str, Any]:
    seen = broken_stream("fail-late", store=False)
    del seen["message"]
    return seen


@scenario
def give_up_streamed() -> dict[str, Any]:
    return broken_stream("give-up")


@scenario
def unknown_model() -> dict[str, Any]:
    key = new_key()
    try:
        ask("nobody", key)
    except openai.APIStatusError as error:
        return {"status": error.status_code, "code": error.code, "param": error.param, "runs": runs(key)}
    return {}


@scenario
def bad_parameter() -> dict[str, Any]:
    return refused(input="hello", temperature=9)


@scenario
def unknown_previous() -> dict[str, Any]:
    return refused(input="hello", previous_response_id="resp_unknown")


@scenario
def unknown_reference() -> dict[str, Any]:
    return refused(input=[{"type": "item_reference", "id": "msg_unknown"}])


@scenario
def unknown_conversation() -> dict[str, Any]:
    return refused(input="hello", conversation="conv_unknown")


@scenario
def two_contexts() -> dict[str, Any]:
    return refused(input="hello", conversation="conv_unknown", previous_response_id="resp_unknown")


# --- leaving


def leave(**options: Any) -> dict[str, Any]:
    key = new_key()
    pieces: list[str] = []
    with ask("stall", key, stream=True, **options) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
                break
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
        client.with_options(timeout=1.0, max_retries=0).responses.create(model="stuck", input=key)
    except openai.APITimeoutError as error:
        return {"error": type(error).__name__, "cancelled": cancelled(key), "runs": runs(key)}
    return {}


@scenario
def headers() -> dict[str, Any]:
    raw = responses.with_raw_response.create(model="echo", input="hello")
    return {
        "x_request_id": bool(raw.headers["x-request-id"]),
        "version": raw.headers["openai-version"],
        "milliseconds": raw.headers["openai-processing-ms"].isdigit(),
        "text": raw.parse().output_text,
    }


main()
