"""Clients that remember what they were told, and servers that can be killed under them."""

import asyncio
import fcntl
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.raw_client import RawClient, Response, request_bytes
from tests.support.serve import ServerProcess, serve_process

__all__ = [
    "DONE",
    "LOST",
    "RESPONSES",
    "Place",
    "Replica",
    "Stream",
    "ask",
    "body_of",
    "create",
    "get",
    "poll",
    "resume",
    "stream",
    "terminal",
    "text_of",
    "wait_until",
]

RESPONSES: Final = "/v1/responses"
DONE: Final = b"data: [DONE]\n\n"
LOST: Final = (OSError, EOFError)
"""What a client meets whose server is gone."""
TERMINAL: Final = frozenset({"completed", "failed", "incomplete", "cancelled"})
_SHOWN_LOG: Final = 4000
_LONGEST: Final = 60.0
"""Seconds that a client waits for the next byte."""


class Client(RawClient):
    """A connection whose end is no error of the test."""

    async def _more(self) -> None:
        data = await self.receive(_LONGEST)
        if not data:
            raise EOFError
        self._read += data


async def ask(port: int, method: str, path: str, body: Any = None, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """Make one request on a connection of its own; return the answer.

    Raises:
        OSError, EOFError: the server is gone.
    """
    async with Client(port) as client:
        data = None if body is None else json.dumps(body).encode()
        await client.request(method, path, data, headers)
        return await client.response()


async def create(port: int, headers: Sequence[tuple[str, str]] = (), **fields: Any) -> Response:
    """Ask for a response that is no stream."""
    return await ask(port, "POST", RESPONSES, {"model": "speaker", **fields}, headers)


async def get(port: int, identity: str) -> dict[str, Any]:
    """Return a response as it is now."""
    answer = await ask(port, "GET", f"{RESPONSES}/{identity}")
    assert answer.status == 200, (identity, answer)
    response: dict[str, Any] = answer.json()
    return response


async def poll(port: int, identity: str, limit: float, pause: float = 0.05) -> dict[str, Any]:
    """Return a response when it has ended."""
    deadline = time.monotonic() + limit
    while (response := await get(port, identity))["status"] not in TERMINAL:
        assert time.monotonic() < deadline, f"{identity} is {response['status']} after {limit} s"
        await asyncio.sleep(pause)
    return response


def terminal(response: dict[str, Any]) -> bool:
    """Tell whether a response has ended."""
    return response["status"] in TERMINAL


def text_of(response: dict[str, Any]) -> str:
    """Return what the agent said."""
    parts = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


@dataclass(slots=True)
class Stream:
    """A stream as far as it was seen."""

    status: int = 0
    events: list[bytes] = field(default_factory=list[bytes])
    """Whole blocks with their closing blank line, ``[DONE]`` too; without comments."""
    error: Any = None
    """The body of an answer that is no stream."""
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def is_done(self) -> bool:
        """It was seen to its end."""
        return bool(self.events) and self.events[-1] == DONE

    @property
    def id(self) -> str:
        """The id of the response; empty while nothing was seen."""
        return str(body_of(self.events[0])["response"]["id"]) if self.events else ""


def body_of(event: bytes) -> dict[str, Any]:
    """Return what an event says."""
    body: dict[str, Any] = json.loads(event.partition(b"\ndata: ")[2])
    return body


async def stream(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Sequence[tuple[str, str]] = (),
    *,
    seen: Stream | None = None,
    most: int | None = None,
) -> Stream:
    """Read a stream, to its end or `most` events of it; `seen` has what there was, whatever happens.

    Raises:
        OSError, EOFError: the server is gone.
    """
    seen = Stream() if seen is None else seen
    async with Client(port) as client:
        data = None if body is None else json.dumps(body).encode()
        await client.send(request_bytes(method, path, data, headers))
        head = await client.head()
        seen.status, seen.headers = head.status, dict(head.headers)
        if head.header("content-type") == "application/json":
            length = head.header("content-length")
            assert length is not None, head
            seen.error = json.loads(await client._exactly(int(length)))
            return seen
        unread = b""
        while most is None or len(seen.events) < most:
            chunk = await client.chunk()
            if not chunk:
                assert not unread, unread
                break
            *blocks, unread = (unread + chunk).split(b"\n\n")
            seen.events += [block + b"\n\n" for block in blocks if not block.startswith(b":")]
        if most is not None:
            del seen.events[most:]
        return seen


def resume(port: int, identity: str, after: int = -1, **options: Any) -> Any:
    """Read the stream of a stored response behind the event `after`."""
    query = "stream=true" if after < 0 else f"stream=true&starting_after={after}"
    return stream(port, "GET", f"{RESPONSES}/{identity}?{query}", **options)


async def wait_until(holds: Any, limit: float, what: str) -> float:
    """Wait until the coroutine function `holds` says so; return the seconds it took."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() - began < limit, f"not within {limit} s: {what}"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


# --- servers


@dataclass(frozen=True)
class Place:
    """Where servers keep what they have: a file of SQLite in a folder, or another store by its URL."""

    folder: Path
    url: str = ""

    @property
    def database(self) -> Path:
        """The file of SQLite."""
        return self.folder / "agentrun.db"

    @property
    def ledger(self) -> Path:
        """Where agents write down that they were run."""
        return self.folder / "ledger"

    def is_being_written(self) -> bool:
        """Tell whether a process has the turn to write to the file."""
        descriptor = os.open(f"{self.database}.lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def runs(self) -> Counter[str]:
        """Return how often an agent was run, for each tag."""
        with suppress(FileNotFoundError):
            return Counter(self.ledger.read_text(encoding="utf-8").split())
        return Counter()

    @asynccontextmanager
    async def serve(
        self, *, most: int = 1_000_000, counted: bool = True, preload: str = "", **settings: Any
    ) -> AsyncIterator["Replica"]:
        """Run a server here; it is killed at the end, unless it has ended.

        Args:
            most: pieces that its agents say at most.
            counted: its agents write down that they were run.
            preload: a library that stands in front of the system's.
            settings: of the server.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        given = {
            "store_url": self.url or "sqlite",
            "worker_lease": 1.0,
            "idempotent_models": "again",
            "access_log": "false",
            "max_queued_runs": 1000,
            **settings,
        }
        env = {f"AGENTRUN_{name.upper()}": str(value) for name, value in given.items()}
        env |= {"AGENTRUN_HOME": str(self.folder), "FAULTS_MOST": str(most)}
        if counted:
            env["FAULTS_LEDGER"] = str(self.ledger)
        if preload:
            env |= {"LD_PRELOAD": preload, "FAULTS_BROKEN_SYNC": str(Path(preload).parent / "broken")}
        async with serve_process("-m", "tests.runs.faults.server", cwd=self.folder, env=env) as process:
            try:
                yield Replica(process)
            except BaseException as exc:
                exc.add_note(f"the log of the server on {process.port}:\n{process.log[-_SHOWN_LOG:]}")
                raise


class Replica:
    """A server of a place."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self.port = process.port

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self.process._process.pid

    async def kill(self) -> float:
        """End it as `kill -9` does; return when it was, on the clock of `time.monotonic`."""
        now = time.monotonic()
        with suppress(ProcessLookupError):
            self.process.signal(signal.SIGKILL)
        await self.process.exit_code()
        return now

    async def terminate(self) -> int:
        """End it in good order; return its exit code."""
        self.process.signal(signal.SIGTERM)
        return await self.process.exit_code(60)

    async def died(self, limit: float) -> bool:
        """Wait until it has ended by itself; return whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await self.process._process.wait()
                return True
        return False

    @asynccontextmanager
    async def stopped(self, place: Place) -> AsyncIterator[None]:
        """Let it stand still meanwhile; not while it writes to a file, where nobody else could then."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            while not place.url and place.is_being_written():
                os.kill(self.pid, signal.SIGCONT)
                await asyncio.sleep(0.003)
                os.kill(self.pid, signal.SIGSTOP)
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)
