"""Two replicas of a server behind nginx, with PostgreSQL and Redis, as in a real deployment; each part can be stopped.

nginx runs with the shipped configuration, and so takes the replicas in turns. Its limits of one address are raised: all
callers of a test are one address.
"""

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import openai

from agentrun_middleware.key_file import KeyFile
from tests.replicas.control import CONTROL, NAME, Control
from tests.support.clock import eventually, within
from tests.support.nginx import Nginx, make_certificate, nginx
from tests.support.postgres_server import PostgresServer, postgres_server
from tests.support.raw_client import Headers, RawClient, Response
from tests.support.redis_server import RedisServer, redis_server
from tests.support.serve import REPOSITORY, ServerProcess, serve_process

__all__ = ["APP", "CALLERS", "LEASE", "PLACES", "SETTINGS", "Replica", "Replicas", "replicas"]

APP = "tests.replicas.app:server"

CALLERS = ("alice", "bob")
"""Who has a key."""

LEASE = 2.0
"""Seconds after which a replica that is not heard of is dead."""

BUS = "agentrun:bus:"
"""What the channels of Redis begin with."""

PLACES = 8
"""Runs of one replica at a time."""

BEHIND_NGINX: Mapping[str, str] = {
    "AGENTRUN_TRUSTED_PROXIES": "127.0.0.1/32",
    "AGENTRUN_TRUST_REQUEST_ID": "true",
}
"""Settings of every deployment."""

SETTINGS: Mapping[str, str] = {
    "AGENTRUN_WORKER_LEASE": str(LEASE),
    "AGENTRUN_IDEMPOTENT_MODELS": "again",
    "AGENTRUN_MAX_CONCURRENT_RUNS": str(PLACES),
}
"""Settings of these tests."""

_ONE_ADDRESS = {
    "rate=20r/s": "rate=5000r/s",
    "burst=100 nodelay": "burst=5000 nodelay",
    "limit_conn open 100;": "limit_conn open 5000;",
}


class Replica:
    """One process of the server. It has the same port in each of its lives, and nobody gets it in between."""

    def __init__(self, name: str, app: str, env: Mapping[str, str]) -> None:
        self.name = name
        # Bound, and not listening: connections are refused while the server is away.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port: int = self._reserved.getsockname()[1]
        self._arguments = ("-m", "uvicorn", app, "--port", str(self.port), "--no-access-log")
        self._env = {**env, NAME: name}
        self._life = AsyncExitStack()
        self.process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; wait until it takes connections."""
        self._life = AsyncExitStack()
        self.process = await self._life.enter_async_context(
            serve_process(*self._arguments, cwd=REPOSITORY, env=self._env)
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process is not None, "it does not run"
        self.process.signal(number)

    async def ended(self) -> int:
        """Wait until it has ended; return its exit code."""
        assert self.process is not None, "it does not run"
        return await self.process.exit_code()

    async def revive(self) -> None:
        """Start it again, unless it is up."""
        try:
            async with self.client() as client:
                await client.request("GET", "/readyz")
                is_up = (await client.response()).status == 200
        except OSError:
            is_up = False
        if not is_up:
            await self.kill()
            await self.start()

    async def kill(self) -> None:
        """End it at once, if it runs."""
        self.process = None
        await self._life.aclose()

    async def close(self) -> None:
        """End it for good."""
        await self.kill()
        self._reserved.close()

    def client(self) -> RawClient:
        """Return a client of single bytes; ``async with`` connects it."""
        return RawClient(self.port)


class Replicas:
    """What runs: `a` and `b` behind `front`, and what they share. Made by `replicas`."""

    def __init__(
        self,
        a: Replica,
        b: Replica,
        front: Nginx,
        postgres: PostgresServer,
        redis: RedisServer,
        control: Control,
        keys: Mapping[str, str],
    ) -> None:
        self.a = a
        self.b = b
        self.front = front
        self.postgres = postgres
        self.redis = redis
        self.control = control
        self.keys = keys
        """API key of each of `CALLERS`."""
        self._clients: dict[tuple[str, str], openai.AsyncOpenAI] = {}

    @property
    def replicas(self) -> tuple[Replica, Replica]:
        """Both."""
        return self.a, self.b

    def openai(self, at: Replica | None = None, *, name: str = "alice") -> openai.AsyncOpenAI:
        """Return the official client of one replica, or of nginx; it repeats nothing."""
        url = self.front.url if at is None else at.url
        if (url, name) not in self._clients:
            http = openai.DefaultAsyncHttpxClient(verify=self.front.trusted, trust_env=False)
            self._clients[url, name] = openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key=self.keys[name], max_retries=0, timeout=20, http_client=http
            )
        return self._clients[url, name]

    def headers(self, *more: tuple[str, str], name: str = "alice") -> Headers:
        """Return the headers of a request of a caller."""
        return (("authorization", f"Bearer {self.keys[name]}"), *more)

    async def ask(
        self,
        at: Replica | None,
        method: str,
        path: str,
        body: bytes | None = None,
        *more: tuple[str, str],
        name: str = "alice",
    ) -> Response:
        """Make one request of a caller to one replica, or to nginx, on a connection of its own."""
        async with (self.front if at is None else at).client() as client:
            await client.request(method, f"/v1{path}", body, self.headers(*more, name=name))
            return await within(client.response(), 20)

    async def redis_hears(self, *topics: str) -> None:
        """Wait until somebody listens to each of these topics of the bus."""
        await eventually(lambda: not {f"{BUS}{topic}" for topic in topics} - set(self.listened_to()))

    def listened_to(self, topics: str = "*") -> list[str]:
        """Return the channels of Redis to which a replica listens."""
        return self.redis.ask("PUBSUB", "CHANNELS", f"{BUS}{topics}").splitlines()

    async def restart_postgres(self) -> None:
        """End PostgreSQL, cutting all connections, and start it again."""
        await asyncio.to_thread(self.postgres.stop)
        await asyncio.to_thread(self.postgres.start)

    async def aclose(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            await client.close()


def _make_keys(path: Path) -> dict[str, str]:
    file = KeyFile(path)
    return {name: file.create(name, subject=name).key for name in CALLERS}


@asynccontextmanager
async def replicas(app: str = APP, settings: Mapping[str, str] = SETTINGS) -> AsyncIterator[Replicas]:
    """Run PostgreSQL, Redis, two replicas of `app` and nginx."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replicas-")))
        starting = asyncio.create_task(asyncio.to_thread(stack.enter_context, postgres_server()))
        redis = stack.enter_context(redis_server())
        keys = _make_keys(folder / "keys.json")
        certificate = make_certificate(folder / "tls")
        postgres = await starting
        control = await stack.enter_async_context(Control.listen())
        env = {
            **BEHIND_NGINX,
            **settings,
            "AGENTRUN_STORE_URL": postgres.url,
            "AGENTRUN_BUS_REDIS_URL": redis.url,
            "AGENTRUN_AUTH_KEYS_FILE": str(folder / "keys.json"),
            CONTROL: str(control.port),
        }
        both = Replica("a", app, env), Replica("b", app, env)
        for replica in both:
            stack.push_async_callback(replica.close)
        await asyncio.gather(*(replica.start() for replica in both))
        (folder / "nginx").mkdir()
        front = await stack.enter_async_context(
            nginx(folder / "nginx", certificate, both[0].port, both[1].port, edits=_ONE_ADDRESS)
        )
        running = Replicas(*both, front, postgres, redis, control, keys)
        stack.push_async_callback(running.aclose)
        yield running
