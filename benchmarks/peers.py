"""The servers that are compared: how each is started, and in which environment."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PEERS", "ROOT", "Peer", "UnavailableError", "jwt_peer", "resolve", "venv_python", "versions"]

ROOT = Path(__file__).resolve().parent.parent
VENVS = Path(__file__).resolve().parent / ".venvs"


class UnavailableError(Exception):
    """The peer cannot run here; the message says what to do."""


def venv_python(name: str) -> Path:
    """Return the interpreter of the environment `name` made by `benchmarks.setup_peers`."""
    return VENVS / name / "bin" / "python"


def _here() -> str:
    return sys.executable


def _in_venv(name: str) -> Callable[[], str]:
    def python() -> str:
        path = venv_python(name)
        if not path.exists():
            raise UnavailableError(f"run: python -m benchmarks.setup_peers {name}")
        return str(path)

    return python


@dataclass(frozen=True)
class Peer:
    """A server: its arguments after the interpreter (``{port}`` is filled in), and what its import costs."""

    name: str
    title: str
    arguments: tuple[str, ...]
    imports: str
    python: Callable[[], str] = _here
    path: str = "/v1/chat/completions"
    distributions: tuple[str, ...] = ("uvicorn", "uvloop", "httptools")
    workload_arguments: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Arguments added for one workload alone."""
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, port: int, workload: str = "") -> list[str]:
        """Return the command that serves on `port`.

        Raises:
            UnavailableError: the peer's environment is not there.
        """
        arguments = (*self.arguments, *self.workload_arguments.get(workload, ()))
        return [self.python(), *(argument.replace("{port}", str(port)) for argument in arguments)]

    def environ(self) -> dict[str, str]:
        """Return the environment of the server: this one, with the project importable."""
        paths = [str(ROOT), str(ROOT / "middleware")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONDONTWRITEBYTECODE": "",
            **self.environment,
        }


def _ours(name: str, title: str, target: str, environment: dict[str, str] | None = None) -> Peer:
    return Peer(
        name=name,
        title=title,
        arguments=("-m", "agentrun_server", "run", target, "--host", "127.0.0.1", "--port", "{port}"),
        imports="from agentrun_server import AgentRunServer; AgentRunServer(invoke_agent=print)",
        distributions=("agentrun-server", "fastapi", "starlette", "uvicorn", "uvloop", "httptools"),
        environment=environment or {},
    )


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("raw", "raw ASGI", ("-m", "benchmarks.apps.raw", "--port", "{port}"), "import uvicorn"),
        Peer(
            "raw-joined",
            "raw ASGI, joined writes",
            ("-m", "benchmarks.apps.raw", "--port", "{port}", "--joined"),
            "import uvicorn",
        ),
        _ours("ours", "agentrun-server", "benchmarks.apps.ours:server"),
        Peer(
            "fastapi",
            "FastAPI + StreamingResponse",
            ("-m", "benchmarks.apps.fastapi_app", "--port", "{port}"),
            "import fastapi, fastapi.responses, uvicorn",
            distributions=("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools"),
        ),
        Peer(
            "agentrun_sdk",
            "agentrun-sdk, as shipped",
            ("-m", "benchmarks.apps.agentrun_sdk_app", "--port", "{port}"),
            "from agentrun.server import AgentRunServer",
            python=_in_venv("agentrun_sdk"),
            path="/openai/v1/chat/completions",
            distributions=("agentrun-sdk", "fastapi", "starlette", "uvicorn"),
        ),
        Peer(
            "agentrun_sdk-tuned",
            "agentrun-sdk, tuned",
            ("-m", "benchmarks.apps.agentrun_sdk_app", "--port", "{port}", "--tuned"),
            "from agentrun.server import AgentRunServer",
            python=_in_venv("agentrun_sdk"),
            path="/openai/v1/chat/completions",
            distributions=("agentrun-sdk", "fastapi", "starlette", "uvicorn", "uvloop", "httptools"),
        ),
        Peer(
            "litserve",
            "LitServe OpenAISpec",
            ("-m", "benchmarks.apps.litserve_app", "--port", "{port}"),
            "import litserve",
            python=_in_venv("litserve"),
            distributions=("litserve", "fastapi", "starlette", "uvicorn", "uvloop", "httptools"),
            workload_arguments={"f": ("--sync",)},
        ),
    )
}


def jwt_peer() -> Peer:
    """Return this project behind the JWT middleware.

    Raises:
        UnavailableError: the middleware is not there.
    """
    import importlib.util

    if importlib.util.find_spec("agentrun_middleware.jwt") is None:
        raise UnavailableError("agentrun_middleware.jwt is not there")
    return _ours("ours-jwt", "agentrun-server + JWT", "benchmarks.apps.ours_jwt:server")


def resolve(names: list[str]) -> list[Peer]:
    """Return the peers named.

    Raises:
        UnavailableError: a name is unknown.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise UnavailableError(f"unknown peer {', '.join(unknown)}; known: {', '.join(PEERS)}")
    return [PEERS[name] for name in names]


_VERSIONS = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))
"""


def versions(peer: Peer) -> dict[str, str]:
    """Return the versions of the distributions the peer stands on.

    Raises:
        UnavailableError: the peer's environment is not there.
    """
    output = subprocess.run(
        [peer.python(), "-c", _VERSIONS, *peer.distributions],
        capture_output=True, check=True, text=True, timeout=60, env=peer.environ(),
    ).stdout  # fmt: skip
    found: dict[str, str] = json.loads(output)
    return found
