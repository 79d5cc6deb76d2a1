"""Customers of a server that is killed under them: they ask for every kind of response, remember what they were told,
and look afterwards whether it is so.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.runs.faults.clients import (
    DONE,
    LOST,
    RESPONSES,
    Place,
    Stream,
    ask,
    body_of,
    create,
    resume,
    stream,
    terminal,
    text_of,
)
from tests.runs.faults.server import question

__all__ = ["HABITS", "Customers", "Told", "check_conversation", "check_key", "check_log", "check_told"]

FOREVER: Final = 100_000
"""Pieces of a run that is certainly not at its end when it is killed."""


@dataclass(slots=True, kw_only=True)
class Told:
    """What a client asked for and what it was told."""

    tag: str
    body: dict[str, Any]
    key: str = ""
    id: str = ""
    seen: Stream = field(default_factory=Stream)
    answer: dict[str, Any] | None = None
    """The response as it was at its end."""
    cancelled: bool = False
    """That it is cancelled was told."""
    deleting: bool = False
    deleted: bool = False
    """That it is deleted was told."""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of the request."""
        return [("idempotency-key", self.key)] if self.key else []

    @property
    def may_run_again(self) -> bool:
        """Its agent is declared idempotent."""
        return bool(self.body["model"] == "again" and self.body.get("background"))

    @property
    def goes_on(self) -> bool:
        """It was started, may run again, and was not seen to end."""
        return bool(self.may_run_again and self.id and self.answer is None)

    @property
    def most_runs(self) -> int:
        """How often its agent may be run."""
        return 3 if self.may_run_again else 1


class Customers:
    """Clients that come back again and again until the server is gone. `told` is what they were told in this life."""

    def __init__(self, seed: int, name: str = "") -> None:
        self._random = random.Random(seed)
        self._name = name
        self._count = 0
        self.told: list[Told] = []
        self.conversations: dict[int, str] = {}
        self.turns: dict[str, list[list[str]]] = {}
        """Conversation → ids of the items of its turns that were told to have ended, in order."""
        self.acknowledged = 0
        """Answers and events that were received."""

    async def use(self, port: int, clients: int = 6, first: str = "") -> None:
        """Let so many clients use the server until it is gone; two of them begin with the habit `first`."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._use(port, number, first if number < 2 else ""))

    async def have_left_enough(self) -> bool:
        """Tell whether there are two runs that others go on with."""
        return sum(told.goes_on for told in self.told) >= 2

    async def _use(self, port: int, number: int, first: str) -> None:
        habits = list(HABITS)
        try:
            if first:
                await HABITS[first](self, port, number)
            while True:
                await HABITS[self._random.choice(habits)](self, port, number)
        except LOST:
            return

    def _ask(self, pieces: int | None = None, pause: float | None = None, **fields: Any) -> Told:
        """Return a new request, which is remembered from now on."""
        self._count += 1
        tag = f"{self._name}{self._count}"
        pieces = self._random.randint(1, 25) if pieces is None else pieces
        pause = self._random.choice([0, 0.001, 0.005]) if pause is None else pause
        model = fields.pop("model", None) or self._random.choice(["speaker", "speaker", "worker"])
        text = question(tag, pieces, pause)
        told = Told(tag=tag, body={"model": model, "input": text, **fields})
        if self._random.random() < 0.3:
            told.key = f"key-{tag}-{self._random.getrandbits(64)}"
        self.told.append(told)
        return told

    async def _whole(self, port: int, number: int) -> None:
        told = self._ask()
        await self._wait_for(port, told)

    async def _wait_for(self, port: int, told: Told) -> None:
        answer = await create(port, told.headers, **told.body)
        assert answer.status == 200, answer
        told.answer = answer.json()
        told.id = told.answer["id"]
        self.acknowledged += 1

    async def _streamed(self, port: int, number: int) -> None:
        await self._watch(port, self._ask(stream=True))

    async def _watch(self, port: int, told: Told) -> None:
        try:
            await stream(port, "POST", RESPONSES, told.body, told.headers, seen=told.seen)
            assert told.seen.is_done, told.seen
        finally:
            told.id = told.seen.id
            self.acknowledged += len(told.seen.events)
        told.answer = body_of(told.seen.events[-2])["response"]

    async def _background(self, port: int, number: int) -> None:
        model = self._random.choice(["speaker", "again"])
        told = self._ask(background=True, model=model)
        await self._start(port, told)
        for _ in range(20):
            response = (await ask(port, "GET", f"{RESPONSES}/{told.id}")).json()
            if terminal(response):
                told.answer = response
                break
            await asyncio.sleep(0.01)

    async def _start(self, port: int, told: Told) -> None:
        answer = await create(port, told.headers, **told.body)
        assert answer.status == 200, answer
        told.id = answer.json()["id"]
        self.acknowledged += 1

    async def _left_running(self, port: int, number: int) -> None:
        """Start something that is still running when the server is killed."""
        await self._start(port, self._ask(FOREVER, 0.01, background=True, model="speaker"))

    async def _left_to_others(self, port: int, number: int) -> None:
        """Start something that goes on when the server is killed."""
        await self._start(port, self._ask(30, 0.05, background=True, model="again"))

    async def _watched_background(self, port: int, number: int) -> None:
        await self._watch(port, self._ask(background=True, stream=True))

    async def _resumed(self, port: int, number: int) -> None:
        """Leave a stream, and take it up again."""
        told = self._ask(background=True, stream=True, pieces=20, pause=0.002)
        await stream(port, "POST", RESPONSES, told.body, told.headers, seen=told.seen, most=self._random.randint(1, 15))
        told.id = told.seen.id
        rest = Stream()
        try:
            await resume(port, told.id, len(told.seen.events) - 1, seen=rest)
        finally:
            told.seen.events += rest.events
            self.acknowledged += len(told.seen.events)

    async def _cancelled(self, port: int, number: int) -> None:
        told = self._ask(FOREVER, 0.001, background=True, model="speaker")
        await self._start(port, told)
        await asyncio.sleep(self._random.choice([0, 0.005, 0.02]))
        answer = await ask(port, "POST", f"{RESPONSES}/{told.id}/cancel")
        assert answer.status == 200, answer
        assert answer.json()["status"] == "cancelled", answer
        told.cancelled = True
        self.acknowledged += 1

    async def _deleted(self, port: int, number: int) -> None:
        told = self._ask(pieces=3, pause=0)
        told.key = ""
        await self._wait_for(port, told)
        told.deleting = True
        answer = await ask(port, "DELETE", f"{RESPONSES}/{told.id}")
        assert answer.status == 200, answer
        told.deleted = True
        self.acknowledged += 1

    async def _turn(self, port: int, number: int) -> None:
        """Say something in the conversation of this client."""
        if number not in self.conversations:
            answer = await ask(port, "POST", "/v1/conversations", {})
            assert answer.status == 200, answer
            self.conversations[number] = answer.json()["id"]
            self.turns[answer.json()["id"]] = []
        conversation = self.conversations[number]
        told = self._ask(conversation=conversation, stream=self._random.random() < 0.5)
        await (self._watch if told.body["stream"] else self._wait_for)(port, told)
        assert told.answer is not None
        self.turns[conversation].append([item["id"] for item in told.answer["output"]])

    async def _chained(self, port: int, number: int) -> None:
        """Go on from a response of this life."""
        before = [told.id for told in self.told if told.answer and told.answer["status"] == "completed"]
        known = [identity for identity in before if identity]
        if not known or any(told.deleting and told.id == known[-1] for told in self.told):
            return
        await self._wait_for(port, self._ask(previous_response_id=known[-1], model="speaker"))


Habit = Callable[[Customers, int, int], Awaitable[None]]
HABITS: Final[Mapping[str, Habit]] = {
    "whole": Customers._whole,
    "streamed": Customers._streamed,
    "background": Customers._background,
    "left running": Customers._left_running,
    "left to others": Customers._left_to_others,
    "watched background": Customers._watched_background,
    "resumed": Customers._resumed,
    "cancelled": Customers._cancelled,
    "deleted": Customers._deleted,
    "turn": Customers._turn,
    "chained": Customers._chained,
}


# --- afterwards


async def check_told(port: int, told: Told, runs: Mapping[str, int], limit: float) -> tuple[list[str], float]:
    """Return what is not as `told`, and when the run was seen to have ended, on the clock of `time.monotonic`."""
    wrong = [f"the agent was run {runs[told.tag]} times"] if runs[told.tag] > told.most_runs else []
    if told.deleting:
        answer = await ask(port, "GET", f"{RESPONSES}/{told.id}")
        return wrong + (["it is there again"] if told.deleted and answer.status != 404 else []), 0.0
    if not told.id:
        return wrong, 0.0
    deadline = time.monotonic() + limit
    while True:
        answer = await ask(port, "GET", f"{RESPONSES}/{told.id}")
        if answer.status != 200:
            return [*wrong, f"it is gone: {answer}"], 0.0
        now = answer.json()
        if terminal(now) or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.05)
    ended = time.monotonic()
    wrong += _compare(told, now)
    if told.body.get("background") or told.body.get("stream"):
        log = await resume(port, told.id)
        wrong += check_log(log.events, now)
        if told.seen.events != log.events[: len(told.seen.events)]:
            at = sum(1 for mine, there in zip(told.seen.events, log.events, strict=False) if mine == there)
            wrong.append(f"event {at} of {len(told.seen.events)} that were seen is not in the log of {len(log.events)}")
    return wrong, ended


def _compare(told: Told, now: dict[str, Any]) -> list[str]:
    """Return how a response that should have ended differs from what was told of it."""
    if not terminal(now):
        return [f"it is still {now['status']}"]
    if told.answer is not None and told.answer != now:
        return [f"it was {told.answer} and is {now}"]
    if told.cancelled and now["status"] != "cancelled":
        return [f"it was cancelled and is {now['status']}"]
    if now["status"] == "failed" and "was lost" not in now["error"]["message"]:
        return [f"it failed with {now['error']}"]
    if told.may_run_again and now["status"] != "completed":
        return [f"it may run again, and is {now['status']}"]
    return []


def check_log(events: list[bytes], response: dict[str, Any]) -> list[str]:
    """Return what is wrong with the whole stream of a response that has ended."""
    wrong: list[str] = []
    if not events or events[-1] != DONE:
        return ["its stream does not end"]
    bodies = [body_of(event) for event in events[:-1]]
    if [body["sequence_number"] for body in bodies] != list(range(len(bodies))):
        wrong.append(f"its numbers are {[body['sequence_number'] for body in bodies]}")
    ends = [
        at
        for at, body in enumerate(bodies)
        if body["type"] in ("response.completed", "response.failed", "response.incomplete")
    ]
    if ends != [len(bodies) - 1]:
        wrong.append(f"it ends at {ends} of {len(bodies)}")
    elif bodies[-1]["response"] != response:
        wrong.append("its last event is not the response")
    if response["status"] == "failed":
        codes = [body["code"] for body in bodies if body["type"] == "error"]
        if codes != ["worker_lost"]:
            wrong.append(f"it failed with the codes {codes}")
    said = "".join(body["delta"] for body in bodies if body["type"] == "response.output_text.delta")
    if said != text_of(response):
        wrong.append("its deltas are not its text")
    return wrong


async def check_key(port: int, told: Told, place: Place) -> list[str]:
    """Ask once more by its key for what was asked for before; return what is not as it should be."""
    if told.deleting or (not told.id and told.body["input"].split()[1] == str(FOREVER)):
        return []
    again = await stream(port, "POST", RESPONSES, told.body, told.headers)
    wrong: list[str] = []
    if place.runs()[told.tag] > told.most_runs:
        wrong.append("by its key it was run again")
    if again.status != 200:
        if told.answer is not None or again.error["error"]["code"] != "worker_lost":
            wrong.append(f"by its key it is {again.status} {again.error}")
    elif again.error is not None:
        if told.id and told.id != again.error["id"]:
            wrong.append("by its key it is another one")
        if told.answer is not None and told.answer != again.error:
            wrong.append(f"by its key it is {again.error}, and was {told.answer}")
    elif told.seen.events != again.events[: len(told.seen.events)] or not again.is_done:
        wrong.append("by its key it is another stream")
    return wrong


async def check_conversation(port: int, conversation: str, told: list[list[str]]) -> list[str]:
    """Return whether the items that were told of a conversation are not in it, in order."""
    path = f"/v1/conversations/{conversation}/items?order=asc&limit=100"
    there: list[str] = []
    more, after = True, ""
    while more:
        page = (await ask(port, "GET", path + after)).json()
        there += [item["id"] for item in page["data"]]
        more, after = page["has_more"], f"&after={page['last_id']}"
    known = set(there)
    items = [item for turn in told for item in turn]
    if [item for item in there if item in set(items)] != items:
        return [f"of {len(items)} items {len([item for item in items if item not in known])} are missing"]
    return []
