"""Runs the command line as users do: in a process of its own."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["REPOSITORY", "ServerProcess", "command", "serving"]

REPOSITORY = Path(__file__).resolve().parents[2]

LIMIT = 30.0
"""Longest wait for a process, in seconds; a slow machine needs a few."""

_RUNNING = re.compile(r"running on (https?://[^\s\"]+:\d+|unix socket \S+)")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment, with the repository importable from anywhere."""
    paths = [str(REPOSITORY), str(REPOSITORY / "middleware")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(extra or {})}


def command(
    *args: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "agentrun_server", *args],
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


@dataclass
class ServerProcess:
    """A server that runs; `url` is where."""

    process: "subprocess.Popen[str]"
    lines: "queue.Queue[str | None]" = field(default_factory=queue.Queue)
    log: list[str] = field(default_factory=list)
    url: str = ""

    def wait_for(self, pattern: "re.Pattern[str]", limit: float = LIMIT) -> "re.Match[str]":
        """Return the first match in the lines that come from now on."""
        while True:
            try:
                line = self.lines.get(timeout=limit)
            except queue.Empty:
                raise TimeoutError(f"no {pattern.pattern!r} within {limit} s in:\n{self.output}") from None
            if line is None:
                raise AssertionError(f"ended with {self.process.wait(LIMIT)}:\n{self.output}")
            match = pattern.search(line)
            if match:
                return match

    @property
    def output(self) -> str:
        """What it has written so far."""
        return "".join(self.log)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(LIMIT)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            self.lines.put(line)
        self.lines.put(None)


@contextmanager
def serving(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, pattern: "re.Pattern[str]" = _RUNNING
) -> Iterator[ServerProcess]:
    """Start a server and wait until it says where it listens; it is stopped at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "agentrun_server", *args],
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = ServerProcess(process)
    reader = threading.Thread(target=server._read)
    reader.start()
    try:
        server.url = server.wait_for(pattern)[1]
        yield server
    finally:
        _end(process)
        reader.join(LIMIT)
        if process.stdout is not None:
            process.stdout.close()


def _end(process: "subprocess.Popen[str]", steps: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGKILL)) -> None:
    for number in steps:
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            continue
