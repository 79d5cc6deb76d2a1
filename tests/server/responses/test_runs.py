"""Responses whose server has gone: the next one ends them or runs them again, as if it had been there all the time."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentrun_server import AgentRequest, events
from agentrun_server.config import ServerConfig
from agentrun_server.core.ids import IdSource
from agentrun_server.core.request import Headers
from agentrun_server.errors import AgentFailedError
from agentrun_server.invoker.threads import Threads
from agentrun_server.protocols.openai_responses.decode import decode
from agentrun_server.protocols.openai_responses.encode import DONE, ResponseEncoder, split_events
from agentrun_server.protocols.openai_responses.objects import response
from agentrun_server.runs.registry import Runs, worker_lost
from agentrun_server.runs.sweeper import Sweeper
from agentrun_server.server.admission import Admission
from agentrun_server.server.agents import Agents
from agentrun_server.server.responses.runs import ResponseRuns, encode_error, response_settings
from agentrun_server.server.services import Services
from agentrun_server.storage.contracts import Create, Record
from agentrun_server.storage.local_bus import LocalBus
from agentrun_server.storage.opening import Storage
from agentrun_server.storage.sqlite import SQLiteStore
from tests.server.storing import ALICE, Speaker, storing
from tests.support.responses_oracle import check_response, check_response_stream

QUESTION: Mapping[str, Any] = {"model": "m", "input": "Hi", "background": True, "metadata": {"a": "b"}}


class Life:
    """A server that has gone, and what it knew: a response and the log of it."""

    def __init__(self, agent: Any, path: Path, **settings: Any) -> None:
        self.config = ServerConfig(store_durable=False, **settings)
        self.store = SQLiteStore(path / "test.db", durable=False)
        self.new_id = IdSource()
        self.services = Services(
            config=self.config,
            agents=Agents(agent, None, strict=True),
            admission=Admission(1, max_queued=0, timeout=1),
            threads=Threads(1, max_waiting=0, timeout=1, grace=1),
            sweeper=Sweeper(self.config),
            new_id=self.new_id,
        )
        self.runs = Runs(self.config, self.new_id, self.services.sweeper, self._open)
        self.kind = ResponseRuns(self.services, self.runs)

    async def _open(self) -> Storage:
        return Storage(self.store, self.store, LocalBus())

    def log(self, *items: Any, question: Mapping[str, Any] = QUESTION) -> tuple[Record, list[bytes]]:
        """Return the record of a response in the background and its events: those of an agent that said `items`."""
        call = decode(dict(question), Headers(), self.new_id)
        encoder = ResponseEncoder(
            call, response_settings(self.services), self.new_id, id="resp_1", created_at=1, prompt_tokens=lambda: 1
        )
        text = encoder.open(queued=True) + encoder.proceed() + "".join(map(encoder.feed, items))
        body = {
            "response": response(call.echo, id="resp_1", created_at=1, status="in_progress"),
            "input": list(call.items),
            "history": [],
            "conversation": "",
            "turn": "",
            "background": True,
            "streamed": True,
            "model": "m",
            "made": [item["id"] for item in call.items],
            "attempt": 1,
            "call": dict(question),
            "principal": {"subject": "alice", "issuer": "test", "scopes": ["use"], "claims": {}},
            "request_id": "req_dead",
            "worker": "wrk_dead",
        }
        return Record(kind="response", id="resp_1", owner=ALICE, status="in_progress", body=body), split_events(text)


async def echo(request: AgentRequest) -> str:
    return request.messages[-1].text


@asynccontextmanager
async def life(path: Path, agent: Any = None, **settings: Any) -> AsyncIterator[Life]:
    found = Life(agent or {"agentrun": echo, "m": echo}, path, **settings)
    try:
        yield found
    finally:
        await found.runs.aclose()
        await found.store.aclose()


def stream_of(written: list[bytes]) -> bytes:
    return b"".join(written) + DONE.encode()


# --- ended


@pytest.mark.parametrize(
    "items",
    [
        [],
        ["said"],
        [events.ReasoningDelta("thought")],
        [events.FunctionCall("look", "{}", id="call_1")],
        ["said", events.FunctionCall("look", "{}", id="call_1"), events.FunctionCallOutput("call_1", "seen"), "more"],
    ],
    ids=["nothing", "text", "a thought", "a call", "all of it"],
)
@pytest.mark.parametrize("error", [worker_lost(), None], ids=["failed", "cancelled"])
async def test_a_run_that_nobody_runs_is_ended_with_what_it_has_said(
    tmp_path: Path, items: list[Any], error: Any
) -> None:
    async with life(tmp_path) as gone:
        record, log = gone.log(*items)
        for cut in range(1, len(log) + 1):
            entry, written, outcome = gone.kind.conclude(record, log[:cut], error)
            parsed = check_response_stream(stream_of([*log[:cut], *written]))
            found = outcome.body["response"]
            check_response(found)
            assert found == parsed.response
            assert (found["id"], found["metadata"], found["created_at"]) == ("resp_1", {"a": "b"}, 1)
            assert outcome.status == found["status"] == ("cancelled" if error is None else "failed")
            if error is not None:
                assert parsed.error is not None
                assert parsed.error["code"] == "worker_lost"
                assert outcome.body["failure"]["status"] == 503
            assert {"call", "principal", "request_id", "worker"}.isdisjoint(outcome.body)
            assert (entry.kind, entry.id, entry.owner, entry.begun) == ("response", "resp_1", ALICE, True)


async def test_a_run_that_said_nothing_to_anybody_is_ended_too(tmp_path: Path) -> None:
    """One without a stream has no log, and one that never began has an empty one."""
    async with life(tmp_path) as gone:
        record, _ = gone.log()
        _, _, outcome = gone.kind.conclude(record, [], worker_lost())
        check_response(outcome.body["response"])
        assert (outcome.status, outcome.body["response"]["output"]) == ("failed", [])


# --- run again


async def test_a_run_that_is_taken_up_has_its_question_and_its_caller(tmp_path: Path) -> None:
    speaker = Speaker()
    async with life(tmp_path, {"m": speaker}) as gone:
        record, log = gone.log("said")
        revived = await gone.kind.revive(record, log, attempt=2)
        assert revived is not None
        request = revived.recording.request
        assert request is not None
        assert [message.text for message in request.messages] == ["Hi"]
        assert (request.principal.id, request.principal.scopes) == ("test|alice", {"use"})
        assert (request.model, dict(request.metadata or {})) == ("m", {"a": "b"})
        assert (revived.body["attempt"], revived.body["call"]) == (2, QUESTION)
        assert revived.recording.meter is None  # who lost a run pays for the next attempt
        assert revived.recording.request_id == request.request_id == "req_dead"


@pytest.mark.parametrize("why", ["no request", "no such agent", "not allowed", "a call was cut", "it has failed"])
async def test_what_cannot_be_run_again_is_not(tmp_path: Path, why: str) -> None:
    agents = {"agentrun": echo} if why == "no such agent" else {"m": echo}
    async with life(tmp_path, agents, auth_model_scopes="optional") as gone:
        tool = {"type": "function", "name": "look", "parameters": {}}
        question = {**QUESTION, "tools": [tool]} if why == "a call was cut" else QUESTION
        said: list[Any] = ["said"]
        if why == "a call was cut":
            said.append(events.FunctionCallDelta(name="look", id="call_1", arguments="{", index=0))
        record, log = gone.log(*said, question=question)
        if why == "no request":
            del record.body["call"]  # type: ignore[attr-defined]
        if why == "not allowed":
            record.body["principal"]["scopes"] = ["models:other"]
        if why == "it has failed":
            _, written, _ = gone.kind.conclude(record, log, AgentFailedError("x"))
            log += written[:-1]
        assert await gone.kind.revive(record, log, attempt=2) is None


# --- what follows somebody else's run


def test_an_error_that_ends_somebody_elses_stream_is_numbered_and_whole() -> None:
    text = encode_error(worker_lost(), 7)
    first, *rest = text.split("\n\n")
    name, _, data = first.partition("\ndata: ")
    event = json.loads(data)
    assert (name, event["type"], event["sequence_number"], event["code"]) == ("event: error", "error", 7, "worker_lost")
    assert event["error"]["code"] == "worker_lost"
    assert "\n\n".join(rest) == DONE


# --- from one life to the next


async def history(request: AgentRequest) -> str:
    return json.dumps([[message.role, message.text] for message in request.messages] + [[request.principal.subject]])


@pytest.mark.parametrize("kind", ["response", "conversation"])
async def test_a_run_that_had_not_begun_runs_in_the_next_life(kind: str) -> None:
    speaker = Speaker()
    agents = {"speaker": speaker, "history": history}
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(storing(agents, max_concurrent_runs=1, drain_timeout=0.01))
        follow: dict[str, Any] = {}
        if kind == "conversation":
            follow = {"conversation": (await api.ask("POST", "/conversations", {})).json()["id"]}
        made = await api.made(model="history", input="one", **follow)
        if kind == "response":
            follow = {"previous_response_id": made["id"]}
        running = await api.made(model="speaker", background=True)
        await speaker.started()
        speaker.say("half")
        waits = await api.made(model="history", input="two", background=True, **follow)
        await asyncio.sleep(0)
        await stack.aclose()
    async with storing(agents) as api:
        found = await api.ended(waits["id"])
        check_response(found)
        told = json.loads(found["output"][0]["content"][0]["text"])
        answer = made["output"][0]["content"][0]["text"]
        assert told == [["user", "one"], ["assistant", answer], ["user", "two"], ["alice"]]
        lost = await api.ended(running["id"])
        assert (lost["status"], lost["error"]["code"]) == ("failed", "server_error")
        log = (await api.ask("GET", f"/responses/{waits['id']}?stream=true")).body
        assert check_response_stream(log).response == found
        if kind == "conversation":
            again = await api.made(model="history", input="three", **follow)
            assert len(json.loads(again["output"][0]["content"][0]["text"])) == 6
        await api.quiet()


async def test_a_run_of_an_idempotent_model_is_taken_up_in_the_next_life() -> None:
    first, second = Speaker(), Speaker()
    settings: dict[str, Any] = {"idempotent_models": ["m"], "drain_timeout": 0.01}
    async with storing({"m": first}, **settings) as api:
        made = await api.made(background=True)
        async with api.stream(f"/responses/{made['id']}?stream=true") as reader:
            first.say("half")
            await reader.until("response.output_text.delta")
            seen = list(reader.blocks)
    async with storing({"m": second}, **settings) as api:
        await second.started()
        second.finish("whole")
        found = await api.ended(made["id"])
        log = (await api.ask("GET", f"/responses/{made['id']}?stream=true")).body
        assert check_response_stream(log).response == found
        assert found["status"] == "completed"
        assert log.decode().split("\n\n")[: len(seen)] == seen
        record = await api.record(made["id"])
        assert "attempt" not in record.body


async def test_a_run_that_was_lost_too_often_is_ended(tmp_path: Path) -> None:
    """Three times; then the agent may be what kills the server."""
    async with life(tmp_path) as gone:
        record, _ = gone.log("said")
        record.body["attempt"] = 3  # type: ignore[index]
    settings: dict[str, Any] = {"idempotent_models": ["*"], "worker_lease": 0.3}
    async with storing({"m": echo}, **settings) as api:
        store = await api.store()
        dead = Record(kind="worker", id="wrk_dead", owner="", body={})
        await store.commit([Create(record), Create(dead)])
        found = await api.ended(record.id)
        assert (found["status"], found["error"]["code"]) == ("failed", "server_error")
