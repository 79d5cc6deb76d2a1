"""A real Redis for a test: Debian's ``redis-server``, in a process of its own that can be killed, frozen and restarted.

It keeps nothing: started again, it is empty, and has the same port.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.clock import LIMIT

__all__ = ["RedisServer", "needs_redis", "redis_server"]

_PROGRAM = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(_PROGRAM is None, reason="redis-server is not installed")


class RedisServer:
    """A Redis on a port of the loopback, which `redis_server` starts and ends."""

    def __init__(self, directory: str, password: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.url = f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}/0"
        self._directory = directory
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; wait until it answers."""
        assert _PROGRAM is not None
        options = {
            "--port": str(self.port),
            "--bind": "127.0.0.1",
            "--save": "",
            "--appendonly": "no",
            "--dir": self._directory,
            "--loglevel": "warning",
        }
        if self._password:
            options["--requirepass"] = self._password
        command = [_PROGRAM, *(word for option in options.items() for word in option)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT
        while True:
            try:
                assert self.ask("PING") == "PONG"
                return
            except OSError:
                assert self._process.poll() is None, "redis-server has ended"
                assert time.monotonic() < deadline, f"redis-server did not answer within {LIMIT} s"
                time.sleep(0.005)

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it in its tracks meanwhile: connections are accepted by the kernel, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> str:
        """Run a command on a connection of its own; return its answer as ``redis-cli`` shows it, one line each."""
        with (
            socket.create_connection(("127.0.0.1", self.port), LIMIT) as connection,
            connection.makefile("rwb") as wire,
        ):

            def run(*words: str) -> str:
                text = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
                wire.write(f"*{len(words)}\r\n{text}".encode())
                wire.flush()
                return read()

            def read() -> str:
                line = wire.readline().decode().rstrip()
                assert line, "the connection has ended"
                kind, rest = line[0], line[1:]
                if kind == "$":
                    return wire.read(int(rest) + 2).decode()[:-2] if rest != "-1" else ""
                if kind == "*":
                    return "\n".join(read() for _ in range(int(rest)))
                assert kind != "-", rest
                return rest

            if self._password:
                run("AUTH", self._password)
            return run(*command)


@contextmanager
def redis_server(*, password: str = "") -> Iterator[RedisServer]:
    """Run a Redis; it is killed at the end."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(directory, password)
        try:
            server.start()
            yield server
        finally:
            server.kill()
