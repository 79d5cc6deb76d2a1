"""Never a fake success: whatever goes wrong, and whenever, the caller can tell that the answer is not whole.

Before the first event a failure is a real status, afterwards an error in the stream: no finish reason, then the end.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from agentrun_server import AgentError, AgentEvent, AgentRequest, AgentRunServer, APIError, EventType, ServerConfig
from agentrun_server.core.events import Failure
from agentrun_server.invoker.agent import AgentCallable
from tests.support.agents import raising
from tests.support.chat_oracle import check_chat_stream, check_completion
from tests.support.clock import within
from tests.support.raw_client import Response
from tests.support.serve import Served, serve

AGENT_FAILED = {"message": "The agent failed to answer.", "type": "server_error", "param": None, "code": "agent_error"}
SECRET = "the password is hunter2-hunter2"

streamed = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


async def ask(agent: AgentCallable, *, stream: bool = True, config: ServerConfig | None = None) -> Response:
    """Serve `agent`, ask it once, and see that nothing is left and the next request is answered."""
    server = AgentRunServer(agent, config=config)
    async with serve(server) as served:
        answer = await served.chat(stream=stream)
        await served.nothing_left()
        await still_serves(server, served)
    return answer


async def still_serves(server: AgentRunServer, served: Served) -> None:
    assert server._sweeper.active == set()
    assert server._admission.running == 0
    assert (await served.ask("GET", "/v1/models")).status == 200


def assert_failed(answer: Response, error: dict[str, Any], *, status: int = 500) -> None:
    """See that `answer` is a status and an error object, and that a client will not run the agent again."""
    assert answer.status == status
    assert answer.error() == error
    assert answer.header("x-should-retry") == "false"
    assert answer.header("x-request-id")


def assert_broken_off(answer: Response, error: dict[str, Any], *, text: str) -> None:
    """See that `answer` is a stream that begins with `text` and ends with `error`."""
    assert answer.status == 200
    parsed = check_chat_stream(answer.body, include_usage=False)
    assert parsed.text == text
    assert parsed.error == error
    assert parsed.choices[0].finish_reason is None


# --- every way to fail


async def nothing_useful(request: AgentRequest) -> AsyncIterator[object]:
    yield 42


def sync_failing(request: AgentRequest) -> str:
    raise ValueError(SECRET)


def sync_generator_failing(request: AgentRequest) -> Iterator[str]:
    raise ValueError(SECRET)
    yield ""


async def async_failing(request: AgentRequest) -> str:
    raise ValueError(SECRET)


async def leaves_its_task_group(request: AgentRequest) -> AsyncIterator[str]:
    async def child() -> None:
        raise ValueError(SECRET)

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
    yield ""


async def stops_iteration(request: AgentRequest) -> str:
    raise StopAsyncIteration(SECRET)


class FailsWhenClosed:
    """An iterator whose clean-up fails after its last item."""

    def __aiter__(self) -> "FailsWhenClosed":
        return self

    async def __anext__(self) -> str:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        raise ValueError(SECRET)


async def fails_when_closed(request: AgentRequest) -> FailsWhenClosed:
    return FailsWhenClosed()


FAILURES: dict[str, AgentCallable] = {
    "async generator": raising(ValueError(SECRET)),
    "async function": async_failing,
    "sync function": sync_failing,
    "sync generator": sync_generator_failing,
    "task group": leaves_its_task_group,
    "wrong type": nothing_useful,
    "SystemExit": raising(SystemExit(SECRET)),
    "KeyboardInterrupt": raising(KeyboardInterrupt(SECRET)),
    "GeneratorExit": raising(GeneratorExit(SECRET)),
    "CancelledError": raising(asyncio.CancelledError(SECRET)),
    "BaseExceptionGroup": raising(BaseExceptionGroup(SECRET, [KeyboardInterrupt()])),
    "StopIteration": raising(StopIteration(SECRET)),
    "StopAsyncIteration": stops_iteration,
    "TimeoutError": raising(TimeoutError(SECRET)),
    "clean-up": fails_when_closed,
    "MemoryError": raising(MemoryError(SECRET)),
    "RecursionError": raising(RecursionError(SECRET)),
}


@pytest.mark.parametrize("kind", FAILURES)
@streamed
async def test_a_failure_before_the_first_event_is_a_real_status(
    kind: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(FAILURES[kind], stream=stream)
    assert_failed(answer, AGENT_FAILED)
    assert b"hunter2" not in answer.body
    (record,) = [record for record in caplog.records if record.name == "agentrun_server.agent"]
    assert record.getMessage().startswith("agent failed: ") or record.getMessage() == "the agent cancelled itself"
    assert vars(record)["request_id"] == answer.header("x-request-id")


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        SystemExit(SECRET),
        KeyboardInterrupt(SECRET),
        asyncio.CancelledError(SECRET),
        BaseExceptionGroup(SECRET, [SystemExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure_after_the_first_event_is_an_error_in_the_stream(after: int, error: BaseException) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for i in range(after):
            yield f"p{i} "
            await asyncio.sleep(0)
        raise error

    answer = await ask(agent)
    assert_broken_off(answer, AGENT_FAILED, text="".join(f"p{i} " for i in range(after)))
    assert b"hunter2" not in answer.body


async def test_a_failure_in_the_same_burst_as_its_pieces_follows_them_in_the_stream() -> None:
    """What the agent said is not lost because it was said quickly: the same bytes, whatever the timing."""
    assert_broken_off(await ask(raising(ValueError(SECRET), after=3)), AGENT_FAILED, text="p0p1p2")


async def test_a_failure_of_a_whole_answer_is_a_status_however_late() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        for _ in range(3):
            yield "piece"
            await asyncio.sleep(0)
        raise ValueError(SECRET)

    assert_failed(await ask(agent, stream=False), AGENT_FAILED)


@streamed
async def test_a_failure_in_a_finally_block_is_no_success(stream: bool) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        try:
            yield "all of it"
            await asyncio.sleep(0)
        finally:
            raise ValueError(SECRET)

    answer = await ask(agent, stream=stream)
    if stream:
        assert_broken_off(answer, AGENT_FAILED, text="all of it")
    else:
        assert_failed(answer, AGENT_FAILED)


async def test_a_failure_in_the_second_choice_fails_the_answer() -> None:
    calls = 0

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ValueError(SECRET)
        yield "first"
        await asyncio.sleep(0)

    server = AgentRunServer(agent)
    async with serve(server) as served:
        streamed_answer = await served.chat(stream=True, n=3)
        events = [json.loads(block[6:]) for block in streamed_answer.body.decode().split("\n\n")[:-2]]
        assert events[-1] == {"error": AGENT_FAILED}
        assert streamed_answer.body.endswith(b"data: [DONE]\n\n")
        assert calls == 2
        calls = 0
        assert_failed(await served.chat(stream=False, n=3), AGENT_FAILED)
        assert calls == 2


async def test_an_agent_that_yields_what_is_no_answer_is_told_so_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    await ask(nothing_useful)
    assert "TypeError: an agent yielded or returned something of type int, which is no answer" in caplog.text


async def test_an_agent_that_breaks_the_grammar_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[object]:
        yield Failure("given up", "gave_up")
        yield "and yet"

    assert_failed(await ask(agent), {"message": "given up", "type": "server_error", "param": None, "code": "gave_up"})


# --- failing on purpose


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (402, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
@streamed
async def test_an_agent_error_has_its_own_message_status_and_code(status: int, kind: str, stream: bool) -> None:
    error = AgentError("Please name a city.", status_code=status, code="no_city", param="messages")
    answer = await ask(raising(error), stream=stream)
    wanted = {"message": "Please name a city.", "type": kind, "param": "messages", "code": "no_city"}
    assert_failed(answer, wanted, status=status)


async def test_an_agent_error_in_a_stream_has_its_own_message_and_code() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "Well, "
        await asyncio.sleep(0)
        raise AgentError("Please name a city.", code="no_city")

    wanted = {"message": "Please name a city.", "type": "server_error", "param": None, "code": "no_city"}
    assert_broken_off(await ask(agent), wanted, text="Well, ")


@streamed
@pytest.mark.parametrize("late", [False, True])
async def test_an_error_event_is_an_error(stream: bool, late: bool) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[object]:
        if late:
            yield "so far "
            await asyncio.sleep(0)
        yield AgentEvent(event=EventType.ERROR, data={"message": "No luck.", "code": "no_luck"})

    answer = await ask(agent, stream=stream)
    wanted = {"message": "No luck.", "type": "server_error", "param": None, "code": "no_luck"}
    if late and stream:
        assert_broken_off(answer, wanted, text="so far ")
    else:
        assert_failed(answer, wanted)


async def test_an_agent_is_closed_when_it_has_told_of_its_error() -> None:
    closed = False

    async def agent(request: AgentRequest) -> AsyncIterator[object]:
        nonlocal closed
        try:
            yield AgentEvent(event=EventType.ERROR, data={"message": "No luck."})
            raise AssertionError("not reached")
        finally:
            await asyncio.sleep(0)
            closed = True

    await ask(agent)
    assert closed


async def test_an_agent_may_raise_the_servers_own_errors() -> None:
    answer = await ask(raising(APIError("Not here.", status_code=451, type="invalid_request_error", code="law")))
    assert_failed(
        answer, {"message": "Not here.", "type": "invalid_request_error", "param": None, "code": "law"}, status=451
    )


async def test_an_agent_may_ask_its_caller_to_come_back() -> None:
    answer = await ask(raising(APIError("Later.", status_code=503).retry_after(7)))
    assert answer.status == 503
    assert answer.header("retry-after") == "7"
    assert answer.header("x-should-retry") is None


# --- what the caller learns


@streamed
async def test_in_debug_the_caller_sees_the_exception(stream: bool) -> None:
    answer = await ask(raising(ValueError("no such city")), stream=stream, config=ServerConfig(debug=True))
    assert_failed(answer, {**AGENT_FAILED, "message": "ValueError: no such city"})


async def test_in_debug_the_caller_sees_the_exception_in_the_stream() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "p"
        await asyncio.sleep(0)
        raise ValueError("no such city")

    answer = await ask(agent, config=ServerConfig(debug=True))
    assert_broken_off(answer, {**AGENT_FAILED, "message": "ValueError: no such city"}, text="p")


@pytest.mark.parametrize("text", ["\ud800", "a\nb\r\n\u2028\u0085data: [DONE]\n\n", "\x00\x1b[2J"])
async def test_an_error_message_of_any_text_is_one_event(text: str) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "p"
        await asyncio.sleep(0)
        raise AgentError(text)

    answer = await ask(agent)
    assert_broken_off(answer, {**AGENT_FAILED, "message": text}, text="p")


# --- what is no failure


@streamed
@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda request: None,
        lambda: lambda request: "",
        lambda: lambda request: [],
        lambda: lambda request: iter(()),
    ],
    ids=["None", "empty string", "empty list", "empty iterator"],
)
async def test_an_agent_that_says_nothing_has_answered(stream: bool, make: Callable[[], AgentCallable]) -> None:
    answer = await ask(make(), stream=stream)
    assert answer.status == 200
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == ""
    assert parsed.choices[0].finish_reason == "stop"


@streamed
async def test_an_agent_that_handles_its_own_timeout_goes_on(stream: bool) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "wait "
        try:
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            yield "too long"

    answer = await ask(agent, stream=stream)
    assert answer.status == 200
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == "wait too long"


@streamed
async def test_an_agent_may_cancel_its_own_tasks(stream: bool) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            yield "cancelled it"

    answer = await ask(agent, stream=stream)
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == "cancelled it"


@streamed
async def test_a_task_group_around_a_yield_may_be_cut_off_by_a_stop_sequence(stream: bool) -> None:
    """Closing a generator in there raises a group of the request to close: no failure of the agent."""
    ended = False

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        nonlocal ended
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))
                yield "one "
                yield "STOP"
                yield "two"
        finally:
            ended = True

    server = AgentRunServer(agent)
    async with serve(server) as served:
        answer = await served.chat(stream=stream, stop="STOP")
        await served.nothing_left()
    assert ended
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == "one "
    assert parsed.choices[0].finish_reason == "stop"


# --- what agents do to their request

MEMORY = [None, "memory"]


@streamed
@pytest.mark.parametrize("memory", MEMORY, ids=["plain", "kept"])
async def test_an_agent_may_go_on_with_the_messages_of_its_request(stream: bool, memory: str | None) -> None:
    """What it adds is its own business, in whatever form its libraries have; it is not what the client has asked."""

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        said: list[Any] = [ChatCompletionMessage(role="assistant"), {"role": "user", "content": [{"text": "more"}]}]
        request.messages.extend(said)
        yield "answer"

    async with serve(AgentRunServer(agent, memory_collection_name=memory)) as served:
        answer = await served.chat(stream=stream, text="12345678", stream_options={"include_usage": True})
        if stream:
            assert check_chat_stream(answer.body, include_usage=True).text == "answer"
        else:
            assert check_completion(answer.json()).text == "answer"
    assert b'"prompt_tokens":2,' in answer.body


@streamed
@pytest.mark.parametrize("memory", MEMORY, ids=["plain", "kept"])
async def test_an_answer_has_the_form_that_the_client_asked_for(stream: bool, memory: str | None) -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        request.stream = not request.stream
        yield "answer"

    async with serve(AgentRunServer(agent, memory_collection_name=memory)) as served:
        answer = await served.chat(stream=stream)
    parsed = check_chat_stream(answer.body, include_usage=False) if stream else check_completion(answer.json())
    assert parsed.text == "answer"


@pytest.mark.parametrize("ends", ["by itself", "with an error", "when it is cancelled"])
async def test_a_stored_run_comes_to_an_end_whatever_the_agent_did_to_its_request(ends: str) -> None:
    """The end is made of the question, too. When that is spoiled, it is told from what is written down."""
    ready = asyncio.Event()

    async def agent(request: AgentRequest) -> AsyncIterator[str]:
        yield "answer"
        request.messages = None  # type: ignore[assignment]
        if ends == "with an error":
            raise ValueError(SECRET)
        if ends == "when it is cancelled":
            ready.set()
            await asyncio.sleep(60)

    async with serve(AgentRunServer(agent)) as served:
        body = json.dumps({"model": "m", "input": "x", "background": True}).encode()
        made = (await served.ask("POST", "/v1/responses", body)).json()
        path = f"/v1/responses/{made['id']}"
        if ends == "when it is cancelled":
            await within(ready.wait())
            await served.ask("POST", f"{path}/cancel")
        events = await within(served.ask("GET", f"{path}?stream=true"))
        assert events.status == 200
        assert (await served.ask("GET", path)).json()["status"] in ("failed", "cancelled")
        assert b"hunter2" not in events.body
