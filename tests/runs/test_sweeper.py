"""One timer for all open requests: when it ticks, and that there is none while nothing is open."""

import asyncio
from typing import Any

import pytest

from agentrun_server import AgentRequest, AgentRunServer, ServerConfig
from agentrun_server.runs.sweeper import Sweeper
from tests.support.clock import eventually


class Checked:
    """Stands where an `Execution` does."""

    request_id = "req_x"

    def __init__(self, *, fails: bool = False) -> None:
        self.times: list[float] = []
        self._fails = fails

    def check(self, now: float) -> None:
        self.times.append(now)
        if self._fails:
            raise ValueError("this check fails")


def sweeper(**settings: Any) -> Any:
    return Sweeper(ServerConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "interval"),
    [
        ({}, 1.0),
        ({"heartbeat_interval": 2.0}, 0.5),
        ({"response_hold": 0}, 0.01),
        ({"cancel_grace": 0}, 0.01),
        ({"heartbeat_interval": None, "first_event_timeout": None, "run_timeout": None, "write_timeout": None}, 1.0),
    ],
)
def test_the_interval_is_a_quarter_of_the_shortest_limit(settings: dict[str, Any], interval: float) -> None:
    assert sweeper(**settings)._interval == interval


async def test_every_open_request_is_checked_with_the_time() -> None:
    watch = sweeper()
    watch.clock = lambda: 42.0
    open_requests = [Checked() for _ in range(3)]
    for one in open_requests:
        watch.add(one)
    watch.tick()
    assert [one.times for one in open_requests] == [[42.0]] * 3


async def test_a_check_that_fails_does_not_keep_the_others_from_theirs(caplog: pytest.LogCaptureFixture) -> None:
    watch = sweeper()
    open_requests = [Checked(fails=True) for _ in range(3)]
    for one in open_requests:
        watch.add(one)
    watch.tick()
    assert all(one.times for one in open_requests)
    assert [one.getMessage() for one in caplog.records] == ["check failed"] * 3


async def test_it_ticks_while_something_is_open_and_not_after() -> None:
    watch = sweeper(heartbeat_interval=0.04)
    one = Checked()
    assert watch._handle is None
    watch.add(one)
    await eventually(lambda: len(one.times) >= 3)
    watch.discard(one)
    await eventually(lambda: watch._handle is None)
    seen = len(one.times)
    await asyncio.sleep(0.03)
    assert len(one.times) == seen


async def test_the_last_to_leave_is_told() -> None:
    watch, told = sweeper(), []
    one, other = Checked(), Checked()
    watch.add(one)
    watch.add(other)
    watch.on_empty = lambda: told.append(True)
    watch.discard(one)
    assert told == []
    watch.discard(other)
    assert told == [True]


def test_it_ticks_in_every_event_loop() -> None:
    """A test client runs each request in a loop of its own; the timer of a loop that is closed never fires."""
    watch = sweeper(heartbeat_interval=0.04)

    async def request(*, ticks: int) -> None:
        one = Checked()
        watch.add(one)
        if ticks:
            await eventually(lambda: len(one.times) >= ticks)
        watch.discard(one)

    asyncio.run(request(ticks=0))
    asyncio.run(request(ticks=2))


def test_a_server_answers_in_every_event_loop() -> None:
    """So a server of a module can be used by many tests."""

    async def agent(request: AgentRequest) -> str:
        await asyncio.sleep(0.03)
        return "done"

    server = AgentRunServer(agent, config=ServerConfig(response_hold=0.01))

    async def request() -> bytes:
        sent: list[Any] = []
        body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        incoming.put_nowait({"type": "http.request", "body": body})

        async def send(message: Any) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [],
            "root_path": "",
            "client": None,
        }
        await server(scope, incoming.get, send)
        assert sent[0]["status"] == 200
        return b"".join(message["body"] for message in sent[1:])

    for _ in range(3):
        body = asyncio.run(request())
        assert body.startswith(b": keep-alive\n\n")
        assert body.endswith(b"data: [DONE]\n\n")
