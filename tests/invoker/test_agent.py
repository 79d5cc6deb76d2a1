"""An agent is a callable of any kind; what it says comes out as one stream."""

import asyncio
import contextvars
import functools
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from agentrun_server.core.events import AgentEvent, EventType, ReasoningDelta
from agentrun_server.core.request import AgentRequest
from agentrun_server.errors import ConfigurationError
from agentrun_server.invoker.agent import Agent, AgentCallable, runs_on_loop
from agentrun_server.invoker.coerce import coerce
from agentrun_server.invoker.threads import Threads
from tests.support.clock import within

MAIN = threading.main_thread()


def threads(limit: int = 8) -> Threads:
    return Threads(limit, max_waiting=4, timeout=5, grace=5)


async def said_by(agent: Any, request: AgentRequest | None = None) -> list[Any]:
    """Return all that an agent says."""
    return await within(_collect(agent, request or AgentRequest([{"role": "user", "content": "Hi"}])))


async def _collect(agent: Any, request: AgentRequest) -> list[Any]:
    async with aclosing(Agent(agent).run(request, threads())) as said:
        return [item async for item in said]


# --- the kinds of callables. Each says "a", then "b", or "ab" when it can only return.


def sync_function(request: AgentRequest) -> str:
    return "ab"


async def async_function(request: AgentRequest) -> str:
    return "ab"


def sync_generator(request: AgentRequest) -> Iterator[str]:
    yield "a"
    yield "b"


async def async_generator(request: AgentRequest) -> AsyncIterator[str]:
    yield "a"
    yield "b"


class SyncCallable:
    def __call__(self, request: AgentRequest) -> str:
        return "ab"


class AsyncCallable:
    async def __call__(self, request: AgentRequest) -> str:
        return "ab"


class SyncGeneratorCallable:
    def __call__(self, request: AgentRequest) -> Iterator[str]:
        yield from ("a", "b")


class AsyncGeneratorCallable:
    async def __call__(self, request: AgentRequest) -> AsyncIterator[str]:
        yield "a"
        yield "b"


class Methods:
    def sync(self, request: AgentRequest) -> str:
        return "ab"

    async def asynchronous(self, request: AgentRequest) -> str:
        return "ab"

    @staticmethod
    async def static(request: AgentRequest) -> AsyncIterator[str]:
        yield "a"
        yield "b"

    @classmethod
    def of_class(cls, request: AgentRequest) -> Iterator[str]:
        yield from ("a", "b")


def with_option(option: str, request: AgentRequest, *, other: str) -> str:
    return option + other


async def async_with_option(option: str, request: AgentRequest, *, other: str) -> AsyncIterator[str]:
    yield option
    yield other


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them: sync, whatever it wraps."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def awaited(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


class Stream:
    """An async iterator that is no generator, as clients of models return."""

    def __init__(self) -> None:
        self.pieces = iter(["a", "b"])
        self.closed = False

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> str:
        for piece in self.pieces:
            return piece
        raise StopAsyncIteration

    async def close(self) -> None:
        self.closed = True


class Later:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(0).__await__()
        return "ab"


async def returns_sync_generator(request: AgentRequest) -> Iterator[str]:
    return sync_generator(request)


async def returns_async_generator(request: AgentRequest) -> AsyncIterator[str]:
    return async_generator(request)


async def returns_coroutine(request: AgentRequest) -> Awaitable[str]:
    return async_function(request)  # a forgotten await


def sync_returns_coroutine_of_generator(request: AgentRequest) -> Awaitable[Iterator[str]]:
    return returns_sync_generator(request)


methods = Methods()

KINDS: dict[str, Any] = {
    "sync function": sync_function,
    "async function": async_function,
    "sync generator function": sync_generator,
    "async generator function": async_generator,
    "lambda": lambda request: "ab",
    "lambda that returns a coroutine": lambda request: async_function(request),
    "lambda that returns an async generator": lambda request: async_generator(request),
    "lambda that returns a generator": lambda request: sync_generator(request),
    "object with sync __call__": SyncCallable(),
    "object with async __call__": AsyncCallable(),
    "object with generator __call__": SyncGeneratorCallable(),
    "object with async generator __call__": AsyncGeneratorCallable(),
    "sync method": methods.sync,
    "async method": methods.asynchronous,
    "static method": Methods.static,
    "class method": Methods.of_class,
    "partial": functools.partial(with_option, "a", other="b"),
    "partial of an async generator": functools.partial(async_with_option, "a", other="b"),
    "partial of a partial": functools.partial(functools.partial(with_option, "a"), other="b"),
    "partial of an object": functools.partial(AsyncCallable()),
    "decorated function": logged(sync_function),
    "decorated coroutine function": logged(async_function),
    "decorated async generator function": logged(async_generator),
    "coroutine function decorated with one": awaited(async_function),
    "cached function": functools.lru_cache(maxsize=1)(sync_function),
    "async function that returns a generator": returns_sync_generator,
    "async function that returns an async generator": returns_async_generator,
    "async function that returns a coroutine": returns_coroutine,
    "function that returns a coroutine of a generator": sync_returns_coroutine_of_generator,
    "function that returns an awaitable": lambda request: Later(),
    "function that returns an async iterator": lambda request: Stream(),
    "function that returns an iterator": lambda request: iter(["a", "b"]),
    "function that returns a map": lambda request: map(str.lower, "AB"),
    "function that returns a list": lambda request: ["a", "b"],
    "function that returns an event": lambda request: AgentEvent(EventType.TEXT, {"delta": "ab"}),
    "function that returns a message": lambda request: {"role": "assistant", "content": "ab"},
    "function that returns a chunk": lambda request: {"choices": [{"delta": {"content": "ab"}}]},
    "class": type("Answer", (), {"__init__": lambda self, request: None, "content": "ab"}),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_may_be_a(kind: str) -> None:
    assert "".join(await said_by(KINDS[kind])) == "ab"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_agent_can_run_many_times(kind: str) -> None:
    if kind == "cached function":
        return  # it answers the same request from its cache: a matter of its own
    both = await within(asyncio.gather(*(said_by(KINDS[kind]) for _ in range(2))))
    assert ["".join(said) for said in both] == ["ab", "ab"]


@pytest.mark.parametrize(
    "agent", [lambda request: None, lambda request: "", lambda request: [], lambda request: iter(())]
)
async def test_an_agent_may_say_nothing(agent: Any) -> None:
    assert await said_by(agent) == []


async def test_events_and_text_keep_their_order() -> None:
    async def agent(request: AgentRequest) -> AsyncIterator[Any]:
        yield ReasoningDelta("hm")
        yield ""
        yield None
        yield ["a", {"type": "text", "text": "b"}]

    assert await said_by(agent) == [ReasoningDelta("hm"), "a", "b"]


async def test_the_agent_is_given_the_request_itself() -> None:
    seen: list[AgentRequest] = []
    request = AgentRequest([{"role": "user", "content": "Hi"}], request_id="req_1")
    await said_by(seen.append, request)
    assert seen[0] is request


class TestWhereItRuns:
    @pytest.mark.parametrize(
        ("kind", "on_loop"),
        [
            ("async function", True),
            ("async generator function", True),
            ("object with async __call__", True),
            ("object with async generator __call__", True),
            ("async method", True),
            ("static method", True),
            ("partial of an async generator", True),
            ("partial of an object", True),
            ("coroutine function decorated with one", True),
            ("sync function", False),
            ("sync generator function", False),
            ("lambda that returns a coroutine", False),
            ("object with sync __call__", False),
            ("decorated coroutine function", False),
            ("partial", False),
            ("class", False),
        ],
    )
    def test_what_cannot_block_is_called_on_the_loop_and_all_else_is_not(self, kind: str, on_loop: bool) -> None:
        assert runs_on_loop(KINDS[kind]) is on_loop

    async def test_an_async_agent_runs_in_the_task_that_iterates_it(self) -> None:
        tasks: set[Any] = set()

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            try:
                for piece in "ab":
                    tasks.add(asyncio.current_task())
                    await asyncio.sleep(0)
                    yield piece
            finally:
                tasks.add(asyncio.current_task())

        run = Agent(agent).run(AgentRequest(), threads())
        assert await anext(run) == "a"
        await run.aclose()
        assert tasks == {asyncio.current_task()}

    async def test_what_a_sync_call_returns_is_continued_where_it_belongs(self) -> None:
        where: list[tuple[str, bool]] = []

        def note(what: str) -> None:
            where.append((what, threading.current_thread() is MAIN))

        def agent(request: AgentRequest) -> Awaitable[Iterator[str]]:
            note("function")
            return middle()

        async def middle() -> Iterator[str]:
            note("coroutine")
            return inner()

        def inner() -> Iterator[str]:
            note("generator")
            yield "ab"

        assert await said_by(agent) == ["ab"]
        assert where == [("function", False), ("coroutine", True), ("generator", False)]

    async def test_the_context_of_the_request_is_seen_on_the_thread(self) -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        variable.set("from the request")

        def agent(request: AgentRequest) -> Iterator[str]:
            yield variable.get()
            variable.set("changed by the agent")
            yield variable.get()

        assert await said_by(agent) == ["from the request", "changed by the agent"]
        assert variable.get() == "from the request"


class TestOpen:
    """What `run` yields before it is read, for those who read it themselves."""

    async def test_an_async_generator_is_handed_out_as_it_is(self) -> None:
        opened = Agent(async_generator).open(AgentRequest(), threads())
        assert inspect.isasyncgen(opened)
        assert opened.ag_code is async_generator.__code__
        assert [item async for item in opened] == ["a", "b"]

    @pytest.mark.parametrize("kind", KINDS)
    async def test_every_kind_of_agent_can_be_opened(self, kind: str) -> None:
        async with aclosing(Agent(KINDS[kind]).open(AgentRequest(), threads())) as opened:
            said = [piece async for item in opened for piece in coerce(item)]
        assert "".join(map(str, said)) == "ab"


class TestErrors:
    @pytest.mark.parametrize(
        "error", [ValueError("no"), KeyError("k"), SystemExit(3), StopIteration(), StopAsyncIteration()]
    )
    @pytest.mark.parametrize("kind", ["function", "generator", "async function", "async generator"])
    async def test_what_an_agent_raises_is_raised_and_never_taken_for_an_end(
        self, error: BaseException, kind: str
    ) -> None:
        def function(request: AgentRequest) -> str:
            raise error

        def generator(request: AgentRequest) -> Iterator[str]:
            yield "a"
            raise error

        async def async_function(request: AgentRequest) -> str:
            raise error

        async def async_generator(request: AgentRequest) -> AsyncIterator[str]:
            yield "a"
            raise error

        agents: dict[str, AgentCallable] = {
            "function": function,
            "generator": generator,
            "async function": async_function,
            "async generator": async_generator,
        }
        # Python itself makes a RuntimeError of a StopIteration that leaves a generator.
        expected = RuntimeError if isinstance(error, StopIteration | StopAsyncIteration) else type(error)
        with pytest.raises(expected):
            await said_by(agents[kind])

    @pytest.mark.parametrize("result", [b"ab", 5, object(), {"a": 1}, ValueError("no")], ids=lambda r: type(r).__name__)
    async def test_a_result_that_is_no_answer_is_a_type_error(self, result: Any) -> None:
        async def agent(request: AgentRequest) -> Any:
            return result

        async def yielding(request: AgentRequest) -> AsyncIterator[Any]:
            yield result

        for target in (agent, yielding, lambda request: result, lambda request: iter([result])):
            with pytest.raises(TypeError, match="which is no answer"):
                await said_by(target)

    async def test_a_yielded_generator_is_no_answer(self) -> None:
        with pytest.raises(TypeError, match="of type generator, which is no answer"):
            await said_by(lambda request: iter([sync_generator(request)]))


class TestClosing:
    async def test_an_async_generator_that_is_left_early_is_closed_in_the_same_task(self) -> None:
        ended: list[Any] = []

        async def agent(request: AgentRequest) -> AsyncIterator[str]:
            try:
                yield "a"
                yield "b"
            finally:
                await asyncio.sleep(0)
                ended.append(asyncio.current_task())

        run = Agent(agent).run(AgentRequest(), threads())
        assert await anext(run) == "a"
        await within(run.aclose())
        assert ended == [asyncio.current_task()]

    async def test_a_stream_of_a_client_library_that_is_left_early_is_closed(self) -> None:
        stream = Stream()
        run = Agent(lambda request: stream).run(AgentRequest(), threads())
        assert await anext(run) == "a"
        await within(run.aclose())
        assert stream.closed

    async def test_a_sync_generator_that_is_left_early_is_closed_on_its_own_thread(self) -> None:
        where: list[int] = []

        def agent(request: AgentRequest) -> Iterator[str]:
            where.append(threading.get_ident())
            try:
                while True:
                    yield "a"
            finally:
                where.append(threading.get_ident())

        pool = threads()
        run = Agent(agent).run(AgentRequest(), pool)
        assert await anext(run) == "a"
        await within(run.aclose())
        assert len(set(where)) == 1
        assert len(where) == 2
        assert where[0] != threading.get_ident()
        assert pool.running == pool.zombies == 0

    async def test_a_run_that_is_cancelled_while_its_thread_works_waits_for_the_thread(self) -> None:
        working, ended = threading.Event(), threading.Event()

        def agent(request: AgentRequest) -> Iterator[str]:
            try:
                working.set()
                request.wait_cancelled(30)
                yield "too late"
            finally:
                ended.set()

        request = AgentRequest()
        task = asyncio.create_task(_collect(agent, request))
        await within(asyncio.to_thread(working.wait, 5))
        request._cancel()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        assert ended.is_set()

    async def test_a_coroutine_that_nobody_wants_any_more_is_closed_without_a_warning(self) -> None:
        go, made = threading.Event(), threading.Event()

        def agent(request: AgentRequest) -> Awaitable[str]:
            made.set()
            go.wait(5)
            return async_function(request)

        task = asyncio.create_task(_collect(agent, AgentRequest()))
        await within(asyncio.to_thread(made.wait, 5))
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        del task
        gc.collect()  # "coroutine was never awaited" would be an error here


def no_argument() -> str:
    return ""


def two_arguments(request: Any, other: Any) -> str:
    return ""


def keyword_only(*, request: Any) -> str:
    return ""


class TestWhatIsNoAgent:
    @pytest.mark.parametrize("target", [None, "agent", 5, {}])
    def test_it_must_be_callable(self, target: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"must be callable, and a {type(target).__name__} is not"):
            Agent(target)

    @pytest.mark.parametrize("target", [no_argument, two_arguments, keyword_only], ids=lambda f: f.__name__)
    def test_it_must_take_one_required_argument(self, target: Any) -> None:
        with pytest.raises(ConfigurationError, match="exactly one required argument, the AgentRequest"):
            Agent(target)

    @pytest.mark.parametrize("target", [print, str, lambda request, more=1: "", lambda *args: ""])
    def test_more_arguments_with_defaults_and_builtins_are_fine(self, target: Any) -> None:
        Agent(target)
