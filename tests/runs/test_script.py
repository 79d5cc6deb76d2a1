"""A response from its opening to each way it can end."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from agentrun_server.core.request import Headers
from agentrun_server.errors import APIError, ServiceUnavailableError
from agentrun_server.protocols.openai_responses.decode import decode
from agentrun_server.protocols.openai_responses.encode import ResponseEncoder, ResponseSettings
from agentrun_server.runs.run import Run, RunStatus
from agentrun_server.runs.script import ResponseScript
from tests.runs.doubles import Counter

CREATED = 1000


class Taken:
    """An `Outlet` that keeps what it is given."""

    def __init__(self) -> None:
        self.run = Run()
        self.first_event = self.last_write = 0.0
        self.text = ""

    def push(self, text: str, now: float) -> bool:
        self.text += text
        self.last_write = now
        return True

    async def write(self, text: str) -> None:
        self.text += text

    def before_wait(self) -> None: ...

    def watch(self) -> None: ...


async def hello() -> AsyncIterator[str]:
    yield "hel"
    yield "lo"


def script(encoder: ResponseEncoder | None = None, *, agent: Any = hello, **options: Any) -> ResponseScript:
    return ResponseScript(
        encoder or new_encoder(),
        agent,
        prompt_tokens=lambda: 3,
        clock=lambda: CREATED + 1.5,
        body=body_of,
        **options,
    )


def new_encoder() -> ResponseEncoder:
    call = decode({"model": "m", "input": "Hi"}, Headers(), Counter())
    return ResponseEncoder(
        call, ResponseSettings(), Counter(), id="resp_1", created_at=CREATED, prompt_tokens=lambda: 3
    )


def body_of(response: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"response": response, "input": []}


def types(events: list[bytes]) -> list[str]:
    return [event.split(b"\n")[0].removeprefix(b"event: response.").decode() for event in events]


async def test_an_agent_is_run_and_its_last_events_are_returned() -> None:
    tried, outlet = script(), Taken()
    assert not tried.is_open
    rest = await tried.perform(outlet)
    shown = types(tried.split(outlet.text) + rest)
    assert shown[:3] == ["created", "in_progress", "output_item.added"]
    assert shown[-1] == "completed"
    assert tried.is_open
    outcome = tried.outcome()
    assert outcome.status is RunStatus.COMPLETED
    assert outcome.body["response"]["completed_at"] == CREATED + 1
    assert (tried.usage().input_tokens, tried.usage().output_tokens) == (3, 2)


async def test_what_nobody_reads_is_not_written() -> None:
    tried, outlet = script(silent=True), Taken()
    await tried.perform(outlet)
    assert outlet.text == ""
    assert tried.outcome().body["response"]["output"][0]["content"][0]["text"] == "hello"


@pytest.mark.parametrize(("queued", "second"), [(False, "in_progress"), (True, "queued")])
def test_it_can_be_opened_before_the_agent_says_anything(queued: bool, second: str) -> None:
    tried = script(queued=queued)
    assert types(tried.open()) == ["created", second]
    assert tried.open() == [], "once"


async def test_one_that_was_queued_proceeds_once() -> None:
    tried, outlet = script(queued=True), Taken()
    tried.open()
    assert types(tried.proceed()) == ["in_progress"]
    assert tried.proceed() == []
    rest = await tried.perform(outlet)
    assert types(rest)[-1] == "completed"
    assert script().proceed() == []


def test_an_error_ends_it_and_is_kept_for_who_asks_again() -> None:
    error = ServiceUnavailableError("Gone.", code="worker_lost")
    tried = script()
    assert types(tried.open() + tried.fail(error)) == ["created", "in_progress", "event: error", "failed"]
    outcome = tried.outcome()
    assert outcome.status is RunStatus.FAILED
    assert outcome.body["failure"]["status"] == 503
    assert outcome.body["failure"]["error"]["code"] == "worker_lost"
    assert outcome.body["input"] == []


async def test_a_cancellation_keeps_what_there_is() -> None:
    tried = script()
    encoder = tried.encoder
    tried.split(encoder.feed("hel"))
    assert types(tried.cancel())[-1] == "incomplete"
    outcome = tried.outcome()
    assert outcome.status is RunStatus.CANCELLED
    assert outcome.body["response"]["output"][0]["content"][0]["text"] == "hel"
    assert "failure" not in outcome.body


async def test_after_its_end_nothing_is_written() -> None:
    tried = script()
    tried.open()
    tried.cancel()
    assert tried.fail(APIError("late")) == []
    outcome = tried.outcome()
    assert outcome.status is RunStatus.CANCELLED
    assert "failure" not in outcome.body


async def test_one_that_was_whole_when_it_was_taken_up_is_only_ended() -> None:
    first, outlet = script(), Taken()
    rest = await first.perform(outlet)
    log = first.split(outlet.text) + rest
    encoder = new_encoder()
    encoder.take_up(log[:-1])

    def never() -> AsyncIterator[str]:
        raise AssertionError("the agent has said all it had to say")

    second = script(encoder, agent=never, queued=True, is_open=True)
    assert second.is_open
    assert types(second.proceed() + await second.perform(Taken())) == ["completed"]
    assert second.outcome().status is RunStatus.COMPLETED
