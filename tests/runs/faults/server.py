"""A server for fault tests, in a process of its own: agents that count themselves, a store that kills at named points.

::

    python -m tests.runs.faults.server

Its settings come from the environment. Besides those of every server:

* ``AGENTRUN_FAILPOINT``: ``before:append:3:kill`` kills the process, as `kill -9` does, before or after its third
  commit of that kind; see `Moment`.
* ``FAULTS_LEDGER``: the file in which agents write down that they were run, one line with their tag each time.
* ``FAULTS_MOST``: how many pieces an agent says at most.

What an agent does, the text of the question says: ``<tag> <pieces> <milliseconds before each>``.
"""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Any, Final

from agentrun_server import AgentRequest, AgentRunServer, events
from agentrun_server.runs.entry import CANCELLING, OPEN
from agentrun_server.server.serve import run
from agentrun_server.storage.contracts import AppendEvents, Change, Create, Delete, Update
from agentrun_server.storage.opening import sqlite_path
from agentrun_server.storage.sqlite import SQLiteStore

__all__ = ["FAIL_POINTS", "Moment", "question"]


_PR_SET_PDEATHSIG: Final = 1


class Moment(StrEnum):
    """Kinds of commits, by what the engine wants of them."""

    JOIN = "join"
    """A worker begins."""
    BEGIN = "begin"
    """A run has a record."""
    PROCEED = "proceed"
    """A run that was queued has its turn."""
    APPEND = "append"
    """A run has said something."""
    END = "end"
    """A run has ended, in whatever way."""
    CANCEL = "cancel"
    """A run is to be cancelled by the worker that has it."""
    ADOPT = "adopt"
    """A run of a dead worker is taken over."""
    BURY = "bury"
    """A dead worker has no runs any more."""
    TURN = "turn"
    """The turn of a conversation is taken or given back."""
    OTHER = "other"


FAIL_POINTS: Final = [
    f"{when}:{moment}:{number}"
    for moment, numbers in {
        Moment.BEGIN: (1, 2, 5),
        Moment.PROCEED: (1, 3),
        Moment.APPEND: (1, 2, 7, 20),
        Moment.END: (1, 2, 4),
        Moment.TURN: (1, 2),
        Moment.ADOPT: (1, 2),
        Moment.BURY: (1,),
    }.items()
    for number in numbers
    for when in ("before", "after")
]
"""Where a server is killed."""


def question(tag: str, pieces: int, pause: float) -> str:
    """Return what makes an agent say so many pieces, with so many seconds before each."""
    return f"{tag} {pieces} {pause * 1000:g}"


def moment_of(changes: Sequence[Change]) -> Moment:
    """Return what a commit is for."""
    if all(isinstance(change, AppendEvents) for change in changes):
        return Moment.APPEND
    for change in changes:
        match change:
            case Create(record) if record.kind == "response":
                return Moment.BEGIN if record.status in OPEN else Moment.END
            case Update(kind="response", status=str(status)):
                known = {CANCELLING: Moment.CANCEL, "queued": Moment.ADOPT, "in_progress": Moment.PROCEED}
                return known.get(status, Moment.END)
            case Create(record) if record.kind == "worker":
                return Moment.JOIN
            case Delete(kind="worker"):
                return Moment.BURY
            case Update(kind="conversation") if len(changes) == 1:
                return Moment.TURN
            case _:
                pass
    return Moment.OTHER


def make_mortal(store: type[Any], point: str) -> None:
    """Let stores of a class kill their process at the fail point `point`."""
    when, moment, number, _ = point.split(":")
    commit, seen = store.commit, 0

    async def mortal_commit(self: Any, changes: Sequence[Change]) -> None:
        nonlocal seen
        at_moment = moment_of(changes) == moment
        seen += at_moment
        hit = at_moment and seen == int(number)
        if hit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await commit(self, changes)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    store.commit = mortal_commit


def _store_class(url: str) -> type[Any]:
    if sqlite_path(url) is not None:
        return SQLiteStore
    from agentrun_server.storage.postgres import PostgresStore

    return PostgresStore


def _asked(request: AgentRequest) -> tuple[str, int, float]:
    """Return what the question says: tag, pieces and seconds before each; note that the agent was run for it."""
    tag, pieces, pause = request.messages[-1].text.split()
    _note(tag)
    return tag, min(int(pieces), int(os.environ.get("FAULTS_MOST", pieces))), float(pause) / 1000


def _note(tag: str) -> None:
    """Write down that an agent was run: one write that others do not get into, and that a kill does not take back."""
    ledger = os.environ.get("FAULTS_LEDGER")
    if ledger:
        descriptor = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, f"{tag}\n".encode())
        finally:
            os.close(descriptor)


async def speaker(request: AgentRequest) -> AsyncIterator[str]:
    """Say pieces of text."""
    tag, pieces, pause = _asked(request)
    for number in range(pieces):
        if pause:
            await asyncio.sleep(pause)
        yield f"{tag}:{number} "


async def listener(request: AgentRequest) -> AsyncIterator[str]:
    """Say the texts of all messages that it was given."""
    tag, _, pause = _asked(request)
    await asyncio.sleep(pause)
    yield f"{tag} heard: " + " / ".join(message.text for message in request.messages)


async def worker(request: AgentRequest) -> AsyncIterator[Any]:
    """Think, use a tool, and say pieces of text with it."""
    tag, pieces, pause = _asked(request)
    yield events.ReasoningDelta("Let me ")
    await asyncio.sleep(pause)
    yield events.ReasoningDelta("see.")
    for number in range(pieces):
        call = f"call_{number}"
        yield events.FunctionCallDelta(id=call, name="look", arguments='{"at":')
        await asyncio.sleep(pause)
        yield events.FunctionCallDelta(id=call, arguments=f'"{number}"}}')
        yield f"{tag}:{number} \u20ac\u2028 "
        await asyncio.sleep(pause)
        yield events.FunctionCallOutput(id=call, output=f"seen {number}")


server = AgentRunServer({"speaker": speaker, "again": speaker, "listener": listener, "worker": worker})

if __name__ == "__main__":
    fail_point = os.environ.get("AGENTRUN_FAILPOINT")
    if fail_point:
        make_mortal(_store_class(server.config.store_url or ""), fail_point)
    if sys.platform == "linux":  # nothing is left of a test that was killed itself
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    run(server, port=0)
