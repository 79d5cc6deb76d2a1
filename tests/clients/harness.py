"""Starts the server as a user would, and runs a client's driver in the client's own environment."""

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

from scripts import client_envs
from tests.clients.cells import Client

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START_LIMIT: Final = 60.0
STOP_LIMIT: Final = 20.0
DRIVER_LIMIT: Final = 240.0
"""Seconds for a client's whole set of scenarios; each is limited on its own as well."""
AT_ONCE: Final = 3
"""Clients driven at the same time. They wait half of their time, so two cores have enough to do with three."""

CHAT_APP: Final = "tests.clients.agents_app:server"
RESPONSES_APP: Final = "tests.clients.responses_app:server"
SETTINGS: Final = {"AGENTRUN_RESPONSE_HOLD": "0.5", "AGENTRUN_HEARTBEAT_INTERVAL": "0.1"}
"""Short, so that an agent need not be silent for long before clients get to see heartbeats."""

COMMANDS: Final[Mapping[str, list[str]]] = {
    "uvicorn": ["uvicorn", CHAT_APP, "--host", "127.0.0.1", "--port", "0"],
    "cli": ["agentrun_server", "run", CHAT_APP, "--host", "127.0.0.1", "--port", "0"],
    "responses": ["uvicorn", RESPONSES_APP, "--host", "127.0.0.1", "--port", "0"],
    "replicas": ["tests.replicas", RESPONSES_APP],
}
"""Modules that serve, with their arguments."""

ELSEWHERE: Final = {"responses": "TEST_RESPONSES_URL"}
"""Environment variables: the base URL of a server that serves the same app and is there already."""

_CREDENTIALS: Final = ("OPENAI_API_KEY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
"""Environment variables by which clients are told how to be let in, and whom to trust."""


@dataclass
class Server:
    """A running server, what it wrote so far, and what the environment of its clients must hold."""

    url: str
    log: list[str] = field(default_factory=list)
    environment: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def running_server(kind: str) -> Iterator[Server]:
    """Run the server of `COMMANDS` on a port of the system's choice until the block ends, unless it is elsewhere."""
    if url := os.environ.get(ELSEWHERE.get(kind, "")):
        yield Server(url, environment={name: os.environ[name] for name in _CREDENTIALS if name in os.environ})
        return
    with TemporaryDirectory(prefix="agentrun-clients-") as directory, _process(kind, Path(directory)) as server:
        yield server


def server_environment(ledger: Path) -> dict[str, str]:
    """Return what a server of the agents needs to know; all that answer to one address share a `ledger`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "middleware")])
    return {**_environment(), **SETTINGS, "PYTHONPATH": path, "TEST_LEDGER": str(ledger)}


@contextmanager
def _process(kind: str, directory: Path) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", *COMMANDS[kind]],
        cwd=ROOT,
        env={**server_environment(directory / "ledger"), "AGENTRUN_HOME": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    log: list[str] = []
    servers: queue.Queue[Server | None] = queue.Queue()
    found_in = _replicas if kind == "replicas" else _one_process
    reader = threading.Thread(target=_read_log, args=(process.stdout, log, found_in, servers), name=f"log of {kind}")
    reader.start()
    try:
        try:
            server = servers.get(timeout=START_LIMIT)
        except queue.Empty:
            server = None
        if server is None:
            raise RuntimeError(f"the server did not start:\n{''.join(log)}")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_LIMIT)
            raise
        finally:
            reader.join(STOP_LIMIT)
            process.stdin.close()
            process.stdout.close()


def _read_log(
    output: IO[str],
    log: list[str],
    found_in: Callable[[list[str]], Server | None],
    servers: "queue.Queue[Server | None]",
) -> None:
    """Keep reading, so that the server never waits for us; tell where it is, or that there will be none."""
    for line in output:
        log.append(line)
        if server := found_in(log):
            servers.put(server)
    servers.put(None)


def _one_process(log: list[str]) -> Server | None:
    found = re.search(r"http://127\.0\.0\.1:(\d+)", log[-1])
    return Server(f"http://127.0.0.1:{found[1]}/v1", log) if found else None


def _replicas(log: list[str]) -> Server | None:
    if not log[-1].startswith("REPLICA_2="):  # the last line that `tests.replicas` writes
        return None
    said = dict(line.rstrip().split("=", 1) for line in log if "=" in line)
    return Server(said["OPENAI_BASE_URL"], log, {name: said[name] for name in _CREDENTIALS})


@dataclass
class Report:
    """What a driver printed: for each scenario its result, or the traceback of its crash."""

    results: dict[str, Any] = field(default_factory=dict)
    crashes: dict[str, str] = field(default_factory=dict)

    @property
    def scenarios(self) -> set[str]:
        """Names of the scenarios the driver played."""
        return self.results.keys() | self.crashes.keys()


def run_driver(client: Client, server: Server) -> Report:
    """Run every scenario of `client` against `server`; the environment is made if need be."""
    done = subprocess.run(
        [*_command(client), server.url, *client.arguments],
        cwd=HERE,
        env={**_environment(), **server.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DRIVER_LIMIT,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{client.driver} ended with {done.returncode}:\n{done.stderr[-8000:]}")
    report = Report()
    for line in done.stdout.rstrip("\n").split("\n"):  # answers hold other line separators
        entry = json.loads(line)
        if "crash" in entry:
            report.crashes[entry["scenario"]] = entry["crash"]
        else:
            report.results[entry["scenario"]] = entry.get("result")
    return report


@contextmanager
def driven(clients: Iterable[Client], servers: Callable[[str], Server]) -> Iterator[Callable[[Client], Report]]:
    """Drive `clients`, a few at a time, each against the server of its kind; what is given waits for a report."""
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        running: dict[Client, Future[Report]] = {
            client: pool.submit(run_driver, client, servers(client.server)) for client in clients
        }
        # A wait may include the clients before this one, and the installation of everything.
        yield lambda client: running[client].result(timeout=len(running) * DRIVER_LIMIT)


def _command(client: Client) -> list[str]:
    if client.environment == client_envs.NODE:
        node = client_envs.node_environment()
        return [str(node.executable), str(_staged(node.directory) / client.driver)]
    interpreter = client_envs.python_environment(client.environment)
    return [str(interpreter), str(HERE / "drivers" / client.driver)]


def _staged(environment: Path) -> Path:
    """Copy the scripts beside `node_modules`: an ES module looks for packages from where it lies."""
    directory = environment / "drivers"
    directory.mkdir(exist_ok=True)
    for source in (HERE / "node").glob("*.mjs"):
        fresh = directory / f".{source.name}.{os.getpid()}.{threading.get_ident()}"
        shutil.copy(source, fresh)
        fresh.replace(directory / source.name)  # at once, for someone else may be reading it
    return directory


def _environment() -> dict[str, str]:
    """Return a small environment: no keys, no proxies, nothing that a developer's shell happens to hold."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PYTHONUTF8": "1",
        "NO_PROXY": "*",
        "no_proxy": "*",
        # These libraries would call home.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "LANGSMITH_TRACING": "false",
        "DO_NOT_TRACK": "1",
    }
