"""Start a server on its core, wait until it answers, stop it with everything it started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator

from benchmarks import machine
from benchmarks.http_client import ProtocolError, ResponseParser, http_request
from benchmarks.peers import Peer

__all__ = ["Server", "ServerError", "ask", "free_port", "running"]

READY_SECONDS = 90.0
STOP_SECONDS = 1.0

Headers = tuple[tuple[str, str], ...]


class ServerError(Exception):
    """The server did not start or did not answer."""


def free_port() -> int:
    """Return a port that is free just now; not every peer can choose one itself."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ask(port: int, request: bytes, timeout: float) -> tuple[int, bytes]:
    """Send one request on a new connection; return status and body.

    Raises:
        OSError: nobody listens, or the connection broke.
        ProtocolError: the answer is not HTTP.
    """
    pieces: list[bytes] = []
    parser = ResponseParser(pieces.append)
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(request)
        while not parser.complete:
            data = connection.recv(65536)
            if not data:
                parser.feed_eof()
                break
            parser.feed(data)
    if not parser.complete:
        raise ConnectionResetError("the connection ended before the answer")
    return parser.status, b"".join(pieces)


class Server:
    """A running peer."""

    def __init__(self, peer: Peer, port: int, process: "subprocess.Popen[bytes]") -> None:
        self.peer = peer
        self.port = port
        self._process = process

    def pids(self) -> list[int]:
        """Return the server's process and all it started."""
        return machine.process_tree(self._process.pid)

    def cpu_seconds(self) -> float:
        return machine.cpu_seconds(self.pids())

    def resident_kb(self) -> int:
        return machine.resident_kb(self.pids())

    def wait_ready(self, body: bytes, *, headers: Headers = (), poll: float = 0.01) -> None:
        """Return when a request gets its first 200.

        Raises:
            ServerError: the process ended, or `READY_SECONDS` passed.
        """
        request = http_request(self.peer.path, body, self.port, headers)
        end = time.monotonic() + READY_SECONDS
        last = "it does not listen"
        while time.monotonic() < end:
            if self._ended():
                raise ServerError(f"{self.peer.name} ended while starting; see --server-log")
            try:
                status, answer = ask(self.port, request, timeout=30.0)
            except (OSError, ProtocolError) as exc:
                last = str(exc)
            else:
                if status == 200:
                    return
                last = f"{status}: {answer[:200]!r}"
            time.sleep(poll)
        raise ServerError(f"{self.peer.name} gave no 200 within {READY_SECONDS:.0f} s: {last}")

    def _ended(self) -> bool:
        """Whether the process has ended; it is not reaped yet, so that its id stays its own until `stop`."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        """End the process and its group, first politely."""
        os.kill(self._process.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while not self._ended() and time.monotonic() < end:
            time.sleep(0.01)
        # Started with `start_new_session`: the group holds this server's processes and nothing else.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


def start(peer: Peer, core: int, workload: str = "", *, log: str | None = None) -> Server:
    """Start `peer` pinned to `core`; its output goes to the file `log`, or nowhere.

    Raises:
        UnavailableError: the peer's environment is not there.
    """
    port = free_port()
    command = peer.command(port, workload)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "ab")) if log else subprocess.DEVNULL  # noqa: PTH123
        stack.enter_context(machine.on_core(core))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=peer.environ(),
            start_new_session=True,
        )
    return Server(peer, port, process)


@contextlib.contextmanager
def running(
    peer: Peer, core: int, body: bytes, workload: str = "", *, headers: Headers = (), log: str | None = None
) -> Iterator[Server]:
    """Run `peer` until the block ends; inside, it has answered `body` with 200."""
    server = start(peer, core, workload, log=log)
    try:
        server.wait_ready(body, headers=headers)
        yield server
    finally:
        server.stop()
